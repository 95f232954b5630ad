"""Slices to a stack: order along the normal, and every reason to refuse what is no rectangular volume.

All tolerances are millimetres at the far end of the slice or volume, never degrees: half a degree is
nothing at a hand and 3 mm at the end of a 300 mm scan. Sources: DICOM PS3.3 C.7.6.2 (Image Plane Module).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from highdicom import VolumeGeometry
from numpy.typing import NDArray

from medseg.errors import GeometryError, InputError
from medseg.io.dicom_header import Slice
from medseg.io.dicom_resampling import Resampling, plan_resampling
from medseg.values.geometry import check_affine

#: How far a slice, or a corner of one, may lie from its place in the even, rectangular grid.
TOLERANCE_MM = 0.05
#: Slices closer than this lie in the same place.
SAME_PLACE_MM = 0.005
#: Distances between slices that differ from the usual one by this factor are uneven, however small they are.
FACTOR = 1.5
#: No scanner rescales by more; 32 stored bits times this fit into 64.
MAX_RESCALE = 1e9


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Slices in order along their normal, and the grid they fill, where asked for after a resampling."""

    slices: tuple[Slice, ...]
    grid: VolumeGeometry
    resampling: Resampling | None = None


def stack_slices(
    slices: Sequence[Slice],
    source: str,
    same_content: Callable[[Slice, Slice], bool],
    *,
    resample_uneven: bool = False,
    resample_tilt: bool = False,
) -> Stack:
    """Order slices along their normal and check that they fill one even, rectangular grid.

    Args:
        slices: at least one, in any order.
        source: what to call the series in an error.
        same_content: tells whether two slices in the same place hold the same image; the second is then
            left out, otherwise the series is refused.
        resample_uneven: plan a resampling where the distances between slices are not even.
        resample_tilt: plan a resampling where the stack is sheared by a tilted gantry.

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
    _check_phases(ordered, source)
    positions = np.array([item.position for item in ordered])
    shape = (len(ordered), first.rows, first.columns)
    origin, resampling = positions[0], None
    if len(ordered) == 1:
        step = normal * _single_thickness(ordered[0])
    else:
        problems = _find_problems(ordered, positions, normal)
        left = [p for p in problems if not {"uneven": resample_uneven, "tilted": resample_tilt}.get(p.kind, False)]
        if left:
            advice = "; ".join(dict.fromkeys(p.advice for p in left))
            raise GeometryError(
                f"{source}: {' and '.join(p.text for p in left)}; expected slices at even distances, stacked at right "
                f"angles; {advice}"
            )
        step = (positions[-1] - positions[0]) / (len(ordered) - 1)
        if problems:
            along = (positions - positions[0]) @ normal
            aside = (positions - positions[0]) @ np.column_stack([column / first.spacing[0], row / first.spacing[1]])
            resampling = plan_resampling(along, aside, shape[1:], even=not any(p.kind == "uneven" for p in problems))
            shape, step = resampling.shape, normal * resampling.step_mm
            top, left_edge = resampling.corner
            origin = positions[0] + top * first.spacing[0] * column + left_edge * first.spacing[1] * row

    affine = np.eye(4)
    # PixelSpacing is (between rows, between columns); the first three numbers of the orientation run along a row.
    affine[:3, :3] = np.column_stack([step, column * first.spacing[0], row * first.spacing[1]])
    affine[:3, 3] = origin
    frame = first.frame_of_reference or None
    grid = VolumeGeometry(check_affine(affine, shape, source), shape, "PATIENT", frame_of_reference_uid=frame)
    return Stack(slices=tuple(ordered), grid=grid, resampling=resampling)


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
    # The first condition holds for slices so small that directions of any length would pass the second.
    off = max(np.abs(lengths - 1).max(), abs(row @ column))
    if off > 0.01 or off * reach > TOLERANCE_MM:
        raise GeometryError(
            f"{item.name}: ImageOrientationPatient {item.orientation} is not two unit vectors at right angles"
        )
    if item.lookup_table:
        raise InputError(f"{item.name}: a lookup table replaces the rescale; the stored values cannot be brought to HU")
    if (item.slope is None) != (item.intercept is None):
        raise InputError(f"{item.name}: only one of RescaleSlope and RescaleIntercept is given, expected both or none")
    rescale = np.abs((item.slope or 0.0, item.intercept or 0.0))
    if item.slope is not None and not (item.slope != 0 and (rescale <= MAX_RESCALE).all()):  # NaN fails too
        raise InputError(
            f"{item.name}: RescaleSlope {item.slope} and RescaleIntercept {item.intercept} are no usable numbers; "
            "the stored values cannot be brought to HU"
        )


def _check_alike(slices: Sequence[Slice], source: str) -> None:
    """Refuse slices of another kind, matrix, orientation, spacing or frame of reference than most have."""
    for what, keys, advice in (
        ("StudyInstanceUID", [s.study_uid for s in slices], "two studies share one series UID; give one folder each"),
        ("Modality", [s.modality for s in slices], "two series share one UID; give one folder each"),
        ("matrix", [f"{s.rows} x {s.columns} pixels" for s in slices], "split the series"),
        ("rescale", ["none" if s.slope is None else "slope and intercept" for s in slices],
         "values with and without RescaleSlope cannot be brought together; export the series again"),
    ):  # fmt: skip
        if what == "StudyInstanceUID" and len(set(keys)) == len(keys) > 2:
            continue  # every file a study of its own: made up by the program that wrote them, and mixes nothing
        _refuse_minority(slices, [key or "none" for key in keys], what, source, advice, InputError)
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
    return "(" + ", ".join(f"{v:.9g}" for v in values or ()) + ")"


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


def _check_phases(ordered: list[Slice], source: str) -> None:
    """Refuse acquisitions whose slices alternate: two phases half a slice apart look like one even stack.

    Blocks one after the other, and one acquisition a slice, are how scanners number one volume.
    """
    for what, keys in (
        ("AcquisitionNumber", [s.acquisition for s in ordered]),
        ("TemporalPositionIdentifier", [s.temporal for s in ordered]),
    ):
        runs = [key for key, _ in groupby(keys)]
        if len(runs) > len(set(keys)):
            again = next(i for i in range(1, len(keys)) if keys[i] != keys[i - 1] and keys[i] in keys[:i])
            raise GeometryError(
                f"{source}: slices of {len(set(keys))} acquisitions interleave ({what} {keys[again - 1] or 'none'} in "
                f"{ordered[again - 1].name} lies between slices of {keys[again] or 'none'}, such as "
                f"{ordered[again].name}); two phases share one series UID, give one folder each"
            )


def _single_thickness(item: Slice) -> float:
    if item.thickness is None or not np.isfinite(item.thickness) or item.thickness <= 0:
        raise GeometryError(
            f"{item.name}: a single slice without SpacingBetweenSlices or SliceThickness; its extent along the normal "
            "is unknown"
        )
    return item.thickness


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """Why slices are no grid: ``kind`` is what resampling can be asked for (uneven, tilted) or ``scattered``."""

    kind: str
    text: str
    advice: str


def _find_problems(ordered: list[Slice], positions: NDArray, normal: NDArray) -> list[_Problem]:
    """Tell whether a stack is tilted, shifted sideways or unevenly spaced, all of it at once."""
    along = (positions - positions[0]) @ normal
    sideways = (positions - positions[0]) - np.outer(along, normal)
    gaps = np.diff(along)
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    problems = []
    drift = np.linalg.norm(sideways[-1])
    straight = along[:, None] / max(along[-1], SAME_PLACE_MM) * sideways[-1]
    stray = np.linalg.norm(sideways - straight, axis=1)
    closest = int(gaps.argmin())
    if stray.max() > TOLERANCE_MM or gaps[closest] < SAME_PLACE_MM:
        worst = int(stray.argmax())
        text = (
            f"slices are shifted sideways by up to {np.linalg.norm(sideways, axis=1).max():.2f} mm (worst: "
            f"{ordered[worst].name})"
        )
        problems.append(_Problem(kind="scattered", text=text, advice="keep the slices of one stack"))
    elif drift > TOLERANCE_MM:
        angle = np.degrees(np.arctan2(drift, along[-1]))
        text = (
            f"the gantry is tilted by {angle:.1f} degrees (the last slice lies {drift:.1f} mm off the normal of "
            f"the first, slices {usual:.2f} mm apart)"
        )
        advice = "--resample-tilt of predict and convert straightens it"
        problems.append(_Problem(kind="tilted", text=text, advice=advice))
    off = np.abs(along - np.linspace(0.0, along[-1], len(ordered))).max()
    if off > TOLERANCE_MM or gaps.max() > FACTOR * usual or gaps[closest] < usual / FACTOR:
        worst = int(np.abs(gaps - usual).argmax())
        steps = gaps[worst] / usual if usual > SAME_PLACE_MM else 0.0
        whole = steps > 1.5 and abs(steps - round(steps)) < 0.05
        hint = f", {round(steps) - 1} slice(s) missing?" if whole else ""
        text = (
            f"slice distances run from {gaps.min():.2f} to {gaps.max():.2f} mm, usually {usual:.2f} mm (most unlike: "
            f"{gaps[worst]:.2f} mm between {_short(ordered[worst])} and {_short(ordered[worst + 1])}{hint})"
        )
        advice = "add missing slices; --resample-uneven of predict and convert resamples on the true positions"
        # Slices that nearly coincide are two images of one place, which no interpolation brings together.
        kind = "uneven" if gaps[closest] > usual / 10 else "scattered"
        problems.append(_Problem(kind=kind, text=text, advice=advice if kind == "uneven" else "keep one phase of two"))
    return problems


def _short(item: Slice) -> str:
    name = Path(item.path).name
    return name if item.frame == 0 else f"{name} frame {item.frame + 1}"
