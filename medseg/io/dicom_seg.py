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
from medseg.io.dicom_seg_frames import SEGMENTATION, Frame, frame_stack, read_frames
from medseg.io.dicom_seg_labels import Algorithm, algorithm_of, noted_by_medseg, segment_labels
from medseg.values.instances import Instance, InstanceSet
from medseg.values.placement import lattice_map, place
from medseg.values.resampling import resample_instances

LABELMAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"


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
    frames = read_frames(dataset)
    geometry, slices = frame_stack(dataset, frames, grid, path)
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
            "be compared (medseg export --ignore-frame-of-reference insists)"
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


def _pieces(dataset: Dataset, frames: list[Frame], slices: list[int], path: Path) -> dict[int, list[_Piece]]:
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
    dataset: Dataset, path: Path, geometry: VolumeGeometry, frames: list[Frame], slices: list[int]
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
