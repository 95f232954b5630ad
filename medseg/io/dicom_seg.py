"""DICOM Segmentation objects (PS3.3 A.51 and C.8.20): every segment one object, overlaps and sparse frames kept.

BINARY, FRACTIONAL and LABELMAP are read frame by frame, so that memory grows with the objects and not with
volume x segments. Frames are placed by their positions in the patient; where the grid of the image is known, they have
to lie on it.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from highdicom import VolumeGeometry
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels import iter_pixels

from medseg.errors import GeometryError, InputError, MedsegError
from medseg.io.dicom_context import DicomContext, ImageReference, shared_header
from medseg.io.dicom_files import first_line
from medseg.io.dicom_seg_labels import Algorithm, algorithm_of, noted_by_medseg, segment_labels
from medseg.values.geometry import check_affine, spacing_of
from medseg.values.instances import Instance, InstanceSet
from medseg.values.placement import lattice_map, place
from medseg.values.resampling import resample_instances

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABELMAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"
#: How far a frame may lie from its place in an even, rectangular stack.
TOLERANCE_MM = 0.05


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """A segmentation file.

    Attributes:
        instances: one per segment that has a voxel, in the order of the segment numbers.
        context: patient, study and images that the file itself refers to, on the grid of the file.
        algorithms: how each instance came about, in order.
        segment_numbers: the SegmentNumber of each instance.
        warnings: what the reader should know, one line each.
    """

    instances: InstanceSet
    context: DicomContext
    algorithms: tuple[Algorithm, ...]
    segment_numbers: tuple[int, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """Where a frame lies and what it holds; ``segment`` is None in a label map, which holds all of them."""

    segment: int | None
    position: NDArray[np.float64]
    image: ImageReference | None


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """What one frame adds to one segment: the tight [h, w] crop in its slice."""

    slice: int
    row: int
    column: int
    mask: NDArray[np.bool_]


def is_dicom_seg(dataset: Dataset) -> bool:
    """Tell whether a data set is a segmentation."""
    return str(dataset.get("SOPClassUID") or "") in (SEGMENTATION, LABELMAP_SEGMENTATION)


def read_dicom_seg(
    path: Path,
    image: DicomContext | VolumeGeometry | None = None,
    *,
    ignore_frame_of_reference: bool = False,
    resample: bool = False,
) -> Segmentation:
    """Read a DICOM SEG.

    Args:
        path: the file.
        image: the series it belongs to, or a grid; the objects then lie on that grid. None: on the smallest grid that
            holds the file's frames.
        ignore_frame_of_reference: match to the image by positions alone.
        resample: resample the objects where the image has other voxels, which is refused otherwise.

    Returns:
        The objects; voxels of FRACTIONAL segments count from half of the maximum. Segments of one label (those that
        medseg wrote, or that have one SegmentLabel) are objects of it.

    Raises:
        InputError: no segmentation, damaged, or in a coordinate system other than the patient's.
        GeometryError: frames that are no even stack, another frame of reference, or frames off the image's grid.
    """
    dataset = _read(path)
    try:
        return _segmentation(dataset, path, image, ignore_frame_of_reference, resample)
    except MedsegError:
        raise
    except (AttributeError, KeyError, IndexError, ValueError, TypeError) as error:
        raise InputError(f"{path}: not a usable DICOM segmentation ({first_line(error)}); export it again") from None


def _read(path: Path) -> Dataset:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = dcmread(path, force=True)
            found = str(dataset.get("Modality") or "no modality")
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror or error})") from None
    except Exception as error:  # pydicom raises whatever a damaged byte leads to
        raise InputError(f"{path}: cannot be read as DICOM ({first_line(error)}); copy the file again") from None
    if not is_dicom_seg(dataset):
        raise InputError(f"{path}: a DICOM object of {found}, expected a segmentation (SEG)")
    if "TotalPixelMatrixRows" in dataset:
        raise InputError(f"{path}: a tiled segmentation of a slide, expected one in the patient's coordinates")
    return dataset


def _segmentation(
    dataset: Dataset,
    path: Path,
    image: DicomContext | VolumeGeometry | None,
    ignore_frame_of_reference: bool,
    resample: bool,
) -> Segmentation:
    grid = image.geometry if isinstance(image, DicomContext) else image
    notes = _check_partner(dataset, path, image, ignore_frame_of_reference) if image is not None else []
    frames = _frames(dataset)
    geometry, slices = _stack(dataset, frames, grid, path)
    described = {int(item.SegmentNumber): item for item in dataset.SegmentSequence}
    if str(dataset.SOPClassUID) == LABELMAP_SEGMENTATION:
        described.pop(0, None)  # the background
    labels, table = segment_labels(dataset, list(described.values()))
    pieces = _pieces(dataset, frames, slices, path)
    unknown = sorted(set(pieces) - set(described))
    if unknown:
        raise InputError(f"{path}: voxels of segments {unknown[:10]} that SegmentSequence does not describe")
    details = noted_by_medseg(dataset).get("segments", {})
    instances, algorithms, numbers = [], [], []
    for (number, item), label in zip(described.items(), labels, strict=True):
        if number not in pieces:
            continue
        own = details.get(str(number), {})
        mask, offset = _assemble(pieces.pop(number))
        source_id = own.get("source_id", number)
        instances.append(
            Instance(
                id=1, label=label, mask=mask, offset=offset, score=float(own.get("score", 1.0)), source_id=source_id
            )
        )
        algorithms.append(algorithm_of(item))
        numbers.append(number)
    found = InstanceSet.build(instances, geometry, table)
    if grid is not None and resample and lattice_map(geometry, grid) is None:
        found, kept = resample_instances(found, grid)
        algorithms = [algorithms[i - 1] for i in kept]
    elif grid is not None:
        found = place(found, grid, f"{path}: the segmentation")
    return Segmentation(
        instances=found,
        context=_own_context(dataset, path, geometry, frames, slices),
        algorithms=tuple(algorithms),
        segment_numbers=tuple(numbers),
        warnings=tuple(notes),
    )


def _check_partner(
    dataset: Dataset, path: Path, image: DicomContext | VolumeGeometry, ignore_frame_of_reference: bool
) -> list[str]:
    """Refuse an image in another frame of reference; return a warning where the series differs alone."""
    context = image if isinstance(image, DicomContext) else None
    theirs = (context.frame_of_reference_uid if context else image.frame_of_reference_uid) or ""
    ours = str(dataset.get("FrameOfReferenceUID") or "")
    if ours and theirs and ours != theirs and not ignore_frame_of_reference:
        raise GeometryError(
            f"{path}: frame of reference {ours}, that of the image is {theirs}; positions of different frames cannot "
            "be compared (--ignore-frame-of-reference to insist)"
        )
    series = _series_uids(dataset)
    if context and context.series_uid and series and context.series_uid not in series:
        return [
            f"{path}: made on series {series[0]}, the image is series {context.series_uid}; the grids agree, so it "
            "was taken"
        ]
    return []


def _series_uids(dataset: Dataset) -> list[str]:
    return [str(item.get("SeriesInstanceUID") or "") for item in dataset.get("ReferencedSeriesSequence") or []]


def _group(dataset: Dataset, index: int, name: str) -> Dataset | None:
    """Return a functional group of a frame: its own, or the one shared by all (PS3.3 C.7.6.16)."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for item in (*per_frame[index : index + 1], *shared[:1]):
        if name in item and item[name].value:
            return item[name].value[0]
    return None


def _frames(dataset: Dataset) -> list[_Frame]:
    """Return where each frame lies; what it was drawn on is looked up once per position, which is slow."""
    frames, images = [], {}
    for index in range(int(dataset.get("NumberOfFrames") or 1)):
        segment = _group(dataset, index, "SegmentIdentificationSequence")
        place_in = _group(dataset, index, "PlanePositionSequence")
        if place_in is None:
            raise ValueError(f"frame {index + 1} has no position")
        if segment is None and str(dataset.SOPClassUID) == SEGMENTATION:
            raise ValueError(f"frame {index + 1} names no segment")
        position = np.array(place_in.ImagePositionPatient, np.float64)
        key = tuple(position)
        if key not in images:
            images[key] = _image_of(_group(dataset, index, "DerivationImageSequence"))
        number = None if segment is None else int(segment.ReferencedSegmentNumber)
        frames.append(_Frame(segment=number, position=position, image=images[key]))
    return frames


def _image_of(derivation: Dataset | None) -> ImageReference | None:
    """Return the one image a frame was drawn on; None where there are none or several."""
    sources = (derivation.get("SourceImageSequence") if derivation is not None else None) or []
    if len(sources) != 1:
        return None
    number = sources[0].get("ReferencedFrameNumber")
    if number is not None and not isinstance(number, (int, str)):
        if len(number) != 1:
            return None
        number = number[0]
    return ImageReference(
        sop_class_uid=str(sources[0].ReferencedSOPClassUID),
        sop_instance_uid=str(sources[0].ReferencedSOPInstanceUID),
        frame=None if number is None else int(number),
    )


def _stack(
    dataset: Dataset, frames: list[_Frame], image: VolumeGeometry | None, path: Path
) -> tuple[VolumeGeometry, list[int]]:
    """Return the smallest even grid that holds the frames, and the slice of each."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    planes, spacings, stated, thick = [], [], [], []
    for index in range(len(frames)):
        orientation = _group(dataset, index, "PlaneOrientationSequence")
        measures = _group(dataset, index, "PixelMeasuresSequence")
        if orientation is None or measures is None:
            raise ValueError(f"frame {index + 1} has no orientation or no pixel spacing")
        planes.append(np.array(orientation.ImageOrientationPatient, np.float64).reshape(2, 3))
        spacings.append(np.array(measures.PixelSpacing, np.float64))
        stated.append(measures.get("SpacingBetweenSlices"))
        thick.append(measures.get("SliceThickness"))
    plane, spacing = planes[0], spacings[0]
    reach = np.array([columns * spacing[1], rows * spacing[0]])
    off = max(np.abs((p - plane) * reach[:, None]).max() for p in planes)
    off = max(off, *(np.abs((s - spacing) * (rows, columns)).max() for s in spacings))
    positions = np.array([frame.position for frame in frames])
    if not np.isfinite(positions).all() or not np.isfinite(plane).all() or not spacing.min() > 0:
        raise GeometryError(f"{path}: positions, orientation or spacing are no usable numbers; export it again")
    if off > TOLERANCE_MM:
        raise GeometryError(f"{path}: frames lie in different planes or have different spacing; split the file")
    row, column = plane / np.linalg.norm(plane, axis=1, keepdims=True)
    normal = np.cross(row, column)
    along = (positions - positions[0]) @ normal
    drift = np.linalg.norm(positions - positions[0] - np.outer(along, normal), axis=1).max()
    if drift > TOLERANCE_MM:
        raise GeometryError(
            f"{path}: frames are shifted sideways by up to {drift:.2f} mm, expected a stack at right angles; "
            "was it made on a series with gantry tilt?"
        )
    hints = [stated[0]]
    if image is not None:
        cosines = np.abs(image.affine[:3, :3].T @ normal) / spacing_of(image)
        hints.append(spacing_of(image)[int(cosines.argmax())])
    hints.append(thick[0])
    slices, step = _slice_numbers(along, [float(hint) for hint in hints if hint is not None and float(hint) > 0], path)
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([normal * step, column * spacing[0], row * spacing[1]])
    affine[:3, 3] = positions[int(along.argmin())]
    shape = (max(slices) + 1, rows, columns)
    frame_uid = str(dataset.get("FrameOfReferenceUID") or "") or None
    checked = check_affine(affine, shape, str(path))
    return VolumeGeometry(checked, shape, "PATIENT", frame_of_reference_uid=frame_uid), slices


def _slice_numbers(along: NDArray[np.float64], hints: list[float], path: Path) -> tuple[list[int], float]:
    """Return the slice number of each position (mm along the normal) and the distance between slices.

    Frames without a voxel are left out of most files, so the distance is the stated one, else the largest that all
    gaps are multiples of.
    """
    levels = np.sort(along)
    gaps = np.diff(levels)
    gaps = gaps[gaps > TOLERANCE_MM / 10]
    if not len(gaps):
        if not hints:
            raise GeometryError(f"{path}: one slice without a thickness; name the image it belongs to (--image)")
        return [0] * len(along), hints[0]
    for step in (*hints, *(gaps.min() / k for k in range(1, 9))):
        if step <= 2 * TOLERANCE_MM / 10 or np.abs(gaps / step).max() > 1e6:
            continue
        counts = np.rint(gaps / step)
        if counts.min() < 1 or np.abs(gaps - counts * step).max() > min(TOLERANCE_MM, step / 4):
            continue
        step = float(gaps.sum() / counts.sum())
        numbers = np.rint((along - along.min()) / step).astype(int)
        if np.abs(along - along.min() - numbers * step).max() <= min(TOLERANCE_MM, step / 4):
            return numbers.tolist(), step
    raise GeometryError(
        f"{path}: frames lie {gaps.min():.2f} to {gaps.max():.2f} mm apart, no multiples of one slice distance; "
        "was it made on a series with uneven slices?"
    )


def _pieces(dataset: Dataset, frames: list[_Frame], slices: list[int], path: Path) -> dict[int, list[_Piece]]:
    """Return what each segment has in which slice, empty frames left out."""
    kind = str(dataset.get("SegmentationType") or "BINARY")
    threshold = 1.0
    if kind == "FRACTIONAL":
        threshold = max(int(dataset.MaximumFractionalValue) / 2, 0.5)
    pieces: dict[int, list[_Piece]] = {}
    seen: set[tuple[int, int]] = set()
    for frame, index, plane in zip(frames, slices, _planes(dataset, path), strict=True):
        if frame.segment is None or kind == "LABELMAP":
            parts = [(int(value), plane == value) for value in np.unique(plane) if value]
        else:
            parts = [(frame.segment, plane >= threshold)]
        for number, mask in parts:
            if (number, index) in seen:
                raise InputError(f"{path}: segment {number} has several frames in one place; export it again")
            seen.add((number, index))
            rows = np.flatnonzero(mask.any(axis=1))
            if len(rows):
                band = mask[rows[0] : rows[-1] + 1]
                columns = np.flatnonzero(band.any(axis=0))
                crop = band[:, columns[0] : columns[-1] + 1].copy()
                piece = _Piece(slice=index, row=int(rows[0]), column=int(columns[0]), mask=crop)
                pieces.setdefault(number, []).append(piece)
    return pieces


def _planes(dataset: Dataset, path: Path) -> Iterator[NDArray]:
    """Yield the stored values [rows, columns] of each frame."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    frames, pixels = int(dataset.get("NumberOfFrames") or 1), rows * columns
    bits = int(dataset.BitsAllocated)
    if bits == 1 and not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        # Frames follow each other bit by bit, without padding to whole bytes (PS3.5 8.1.1).
        packed = np.frombuffer(dataset.PixelData, np.uint8)
        if len(packed) * 8 < pixels * frames:
            raise InputError(f"{path}: truncated: {len(packed)} bytes of {frames} frames; copy the file again")
        for index in range(frames):
            start = index * pixels
            part = np.unpackbits(packed[start // 8 : -(-(start + pixels) // 8)], bitorder="little")
            yield part[start % 8 : start % 8 + pixels].reshape(rows, columns)
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            count = 0
            for plane in iter_pixels(dataset, raw=True):
                count += 1
                yield plane
    except MedsegError:
        raise
    except Exception as error:  # decoders raise whatever a damaged byte leads to
        raise InputError(f"{path}: the frames cannot be decoded ({first_line(error)}); copy the file again") from None
    if count != frames:
        raise InputError(f"{path}: {count} frames of pixel data, the header says {frames}; copy the file again")


def _assemble(pieces: list[_Piece]) -> tuple[NDArray[np.bool_], tuple[int, int, int]]:
    """Return the [d, h, w] mask of a segment and its offset."""
    first = (min(p.slice for p in pieces), min(p.row for p in pieces), min(p.column for p in pieces))
    last = (
        max(p.slice for p in pieces) + 1,
        max(p.row + p.mask.shape[0] for p in pieces),
        max(p.column + p.mask.shape[1] for p in pieces),
    )
    mask = np.zeros([b - a for a, b in zip(first, last, strict=True)], np.bool_)
    for p in pieces:
        top, left = p.row - first[1], p.column - first[2]
        mask[p.slice - first[0], top : top + p.mask.shape[0], left : left + p.mask.shape[1]] = p.mask
    return mask, first


def _own_context(
    dataset: Dataset, path: Path, geometry: VolumeGeometry, frames: list[_Frame], slices: list[int]
) -> DicomContext:
    """Return the context that the file refers to: its images, and its patient and study, which are theirs."""
    header = shared_header(dataset)
    series = _series_uids(dataset)
    header.SeriesInstanceUID = series[0] if len(series) == 1 else ""
    images: list[ImageReference | None] = [None] * int(geometry.spatial_shape[0])
    for frame, index in zip(frames, slices, strict=True):
        images[index] = images[index] or frame.image
    known = {image.sop_instance_uid for image in images if image is not None}
    others = [
        ImageReference(sop_class_uid=str(i.ReferencedSOPClassUID), sop_instance_uid=str(i.ReferencedSOPInstanceUID))
        for item in (dataset.get("ReferencedSeriesSequence") or [])[:1]
        for i in item.get("ReferencedInstanceSequence") or []
        if str(i.ReferencedSOPInstanceUID) not in known
    ]
    return DicomContext(source=str(path), geometry=geometry, header=header, images=tuple(images), others=tuple(others))
