"""Slices to a stack: order along the normal, and every reason to refuse what is no rectangular volume.

All tolerances are millimetres at the far end of the slice or volume, never degrees: half a degree is
nothing at a hand and 3 mm at the end of a 300 mm scan. Sources: DICOM PS3.3 C.7.6.2 (Image Plane Module).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from highdicom import VolumeGeometry
from numpy.typing import NDArray

from medseg.errors import GeometryError, InputError
from medseg.io.dicom_files import Slice
from medseg.values.geometry import check_affine

#: How far a slice, or a corner of one, may lie from its place in the even, rectangular grid.
TOLERANCE_MM = 0.05
#: Slices closer than this lie in the same place.
SAME_PLACE_MM = 0.005


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Slices in order along their normal, and the grid they fill."""

    slices: tuple[Slice, ...]
    grid: VolumeGeometry


def stack_slices(slices: Sequence[Slice], source: str, same_content: Callable[[Slice, Slice], bool]) -> Stack:
    """Order slices along their normal and check that they fill one even, rectangular grid.

    Args:
        slices: at least one, in any order.
        source: what to call the series in an error.
        same_content: tells whether two slices in the same place hold the same image; the second is then
            left out, otherwise the series is refused.

    Raises:
        GeometryError: positions missing, mixed or uneven, gantry tilt; names files, millimetres and degrees.
        InputError: mixed matrix sizes or rescale values that are no numbers.
    """
    for item in slices:
        _check_slice(item)
    _check_alike(slices, source)
    first = slices[0]
    assert first.orientation is not None and first.spacing is not None
    row, column = (v / np.linalg.norm(v) for v in np.reshape(first.orientation, (2, 3)))
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)

    positions = np.array([item.position for item in slices])
    order = np.argsort(positions @ normal, kind="stable")
    ordered = _without_copies([slices[i] for i in order], normal, source, same_content)
    positions = np.array([item.position for item in ordered])
    if len(ordered) == 1:
        step = normal * _single_thickness(ordered[0])
    else:
        _check_even(ordered, positions, normal, source)
        step = (positions[-1] - positions[0]) / (len(ordered) - 1)

    affine = np.eye(4)
    # PixelSpacing is (between rows, between columns); the first three numbers of the orientation run along a row.
    affine[:3, :3] = np.column_stack([step, column * first.spacing[0], row * first.spacing[1]])
    affine[:3, 3] = positions[0]
    shape = (len(ordered), first.rows, first.columns)
    frame = first.frame_of_reference or None
    grid = VolumeGeometry(check_affine(affine, shape, source), shape, "PATIENT", frame_of_reference_uid=frame)
    return Stack(slices=tuple(ordered), grid=grid)


def _check_slice(item: Slice) -> None:
    for what, value in (
        ("ImagePositionPatient", item.position),
        ("ImageOrientationPatient", item.orientation),
        ("PixelSpacing", item.spacing),
    ):
        if value is None or not np.isfinite(value).all():
            found = "none" if value is None else "values that are no finite numbers"
            raise GeometryError(
                f"{item.name}: {what} has {found}; the slice cannot be placed in the patient, export the series again"
            )
    assert item.spacing is not None and item.orientation is not None
    if min(item.spacing) <= 0:
        raise GeometryError(f"{item.name}: PixelSpacing {item.spacing} mm, expected more than zero")
    row, column = np.reshape(item.orientation, (2, 3))
    reach = max(item.rows * item.spacing[0], item.columns * item.spacing[1])
    lengths = np.linalg.norm((row, column), axis=1)
    if np.abs(lengths - 1).max() * reach > TOLERANCE_MM or abs(row @ column) * reach > TOLERANCE_MM:
        raise GeometryError(
            f"{item.name}: ImageOrientationPatient {item.orientation} is not two unit vectors at right angles"
        )
    if (item.slope is None) != (item.intercept is None):
        raise InputError(f"{item.name}: only one of RescaleSlope and RescaleIntercept is given, expected both or none")
    if item.slope is not None and not (np.isfinite((item.slope, item.intercept or 0.0)).all() and item.slope != 0):
        raise InputError(
            f"{item.name}: RescaleSlope and RescaleIntercept are no usable numbers, or a lookup table replaces them; "
            "the stored values cannot be brought to HU"
        )


def _check_alike(slices: Sequence[Slice], source: str) -> None:
    """Refuse slices of another matrix, orientation, spacing or frame of reference than most have."""
    _refuse_minority(
        slices, [f"{s.rows} x {s.columns} pixels" for s in slices], "matrix", source, "split the series", InputError
    )
    _refuse_minority(slices, [s.frame_of_reference or "none" for s in slices], "FrameOfReferenceUID", source,
                     "positions of different frames of reference cannot be compared")  # fmt: skip
    first = slices[0]
    corners = np.array([[first.rows - 1, 0.0], [0.0, first.columns - 1]])
    for what, plane in (("orientation", _plane_of), ("PixelSpacing", _spacing_of)):
        # Compared by where the far corners of the slice come to lie, in units of the tolerance.
        ends = np.array([plane(s, corners) for s in slices])
        if np.ptp(ends, axis=0).max() <= TOLERANCE_MM:
            continue
        keys = [_text(s.orientation if what == "orientation" else s.spacing) for s in slices]
        _refuse_minority(slices, keys, what, source, "the slices lie in different planes; split the series")


def _plane_of(item: Slice, corners: NDArray) -> NDArray:
    assert item.orientation is not None and item.spacing is not None
    row, column = np.reshape(item.orientation, (2, 3))
    return np.concatenate([column * corners[0, 0] * item.spacing[0], row * corners[1, 1] * item.spacing[1]])


def _spacing_of(item: Slice, corners: NDArray) -> NDArray:
    assert item.spacing is not None
    return np.array([corners[0, 0] * item.spacing[0], corners[1, 1] * item.spacing[1]])


def _text(values: Sequence[float] | None) -> str:
    return "(" + ", ".join(f"{v:.6g}" for v in values or ()) + ")"


def _refuse_minority(
    slices: Sequence[Slice],
    keys: list[str],
    what: str,
    source: str,
    advice: str,
    kind: type[InputError] = GeometryError,
) -> None:
    counts = Counter(keys)
    if len(counts) < 2:
        return
    usual = counts.most_common(1)[0][0]
    odd = [i for i, key in enumerate(keys) if key != usual]
    raise kind(
        f"{source}: {len(odd)} of {len(slices)} slices have another {what} than the rest ({keys[odd[0]]} in "
        f"{slices[odd[0]].name}, {usual} in most); {advice}"
    )


def _without_copies(
    ordered: list[Slice], normal: NDArray, source: str, same_content: Callable[[Slice, Slice], bool]
) -> list[Slice]:
    """Leave out further copies of a slice; refuse different slices in one place."""
    kept: list[Slice] = []
    for item in ordered:
        if kept and np.linalg.norm(np.subtract(item.position, kept[-1].position)) < SAME_PLACE_MM:  # type: ignore[arg-type]
            if not same_content(kept[-1], item):
                raise GeometryError(
                    f"{source}: {kept[-1].name} and {item.name} lie in the same place "
                    f"({float(np.dot(item.position, normal)):.2f} mm along the normal) with different content; "  # type: ignore[arg-type]
                    "two phases or series are mixed, keep one of them"
                )
            continue
        kept.append(item)
    return kept


def _single_thickness(item: Slice) -> float:
    if item.thickness is None or not np.isfinite(item.thickness) or item.thickness <= 0:
        raise GeometryError(
            f"{item.name}: a single slice without SpacingBetweenSlices or SliceThickness; its extent along the normal "
            "is unknown"
        )
    return item.thickness


def _check_even(ordered: list[Slice], positions: NDArray, normal: NDArray, source: str) -> None:
    """Refuse a stack that is tilted, shifted sideways or unevenly spaced, and say all of it at once."""
    along = (positions - positions[0]) @ normal
    sideways = (positions - positions[0]) - np.outer(along, normal)
    even = np.linspace(0.0, along[-1], len(ordered))
    gaps = np.diff(along)
    problems = []
    drift = np.linalg.norm(sideways[-1])
    straight = along[:, None] / along[-1] * sideways[-1]
    if np.linalg.norm(sideways - straight, axis=1).max() > TOLERANCE_MM:
        worst = int(np.linalg.norm(sideways - straight, axis=1).argmax())
        problems.append(
            f"slices are shifted sideways by up to {np.linalg.norm(sideways, axis=1).max():.2f} mm (worst: "
            f"{ordered[worst].name})"
        )
    elif drift > TOLERANCE_MM:
        angle = np.degrees(np.arctan2(drift, along[-1]))
        problems.append(
            f"the gantry is tilted by {angle:.1f} degrees (the last slice lies {drift:.1f} mm off the normal of "
            "the first)"
        )
    if np.abs(along - even).max() > TOLERANCE_MM:
        usual = float(np.median(gaps))
        worst = int(np.abs(gaps - usual).argmax())
        steps = gaps[worst] / usual
        whole = steps > 1.5 and abs(steps - round(steps)) < 0.05
        hint = f", {round(steps) - 1} slice(s) missing?" if whole else ""
        problems.append(
            f"slice distances run from {gaps.min():.2f} to {gaps.max():.2f} mm, usually {usual:.2f} mm (most unlike: "
            f"{gaps[worst]:.2f} mm between {_short(ordered[worst])} and {_short(ordered[worst + 1])}{hint})"
        )
    if problems:
        raise GeometryError(
            f"{source}: {' and '.join(problems)}; expected slices at even distances, stacked at right angles. "
            "Add the missing slices or resample the series first"
        )


def _short(item: Slice) -> str:
    name = Path(item.path).name
    return name if item.frame == 0 else f"{name} frame {item.frame + 1}"
