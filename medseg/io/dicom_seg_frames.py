"""Where the frames of a DICOM Segmentation lie (PS3.3 C.7.6.16): positions, planes, and the grid that holds them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from highdicom import VolumeGeometry
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medseg.errors import GeometryError
from medseg.io.dicom_context import ImageReference
from medseg.values.geometry import check_affine, spacing_of

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
#: How far a frame may lie from its place in an even, rectangular stack.
TOLERANCE_MM = 0.05


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Where a frame lies and what it holds; ``segment`` is None in a label map, which holds all of them."""

    segment: int | None
    position: NDArray[np.float64]
    image: ImageReference | None


def _group(dataset: Dataset, index: int, name: str) -> Dataset | None:
    """Return a functional group of a frame: its own, or the one shared by all (PS3.3 C.7.6.16)."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for item in (*per_frame[index : index + 1], *shared[:1]):
        if name in item and item[name].value:
            return item[name].value[0]
    return None


def read_frames(dataset: Dataset) -> list[Frame]:
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
        frames.append(Frame(segment=number, position=position, image=images[key]))
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


def frame_stack(
    dataset: Dataset, frames: list[Frame], image: VolumeGeometry | None, path: Path
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
