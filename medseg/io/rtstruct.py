"""RT structure sets (PS3.3 A.19) to objects: contours are placed in the slices of an image by their positions.

A structure set has no grid of its own. Its closed contours must lie in slices of the image that is given; UIDs tell
whether that is the image they were drawn on. What lies elsewhere is refused or set aside by name, never moved.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from highdicom import VolumeGeometry
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medseg.errors import GeometryError, InputError, MedsegError
from medseg.io.dicom_context import DicomContext
from medseg.io.dicom_seg_labels import UNKNOWN_ORIGIN, Algorithm, noted_by_medseg
from medseg.io.rtstruct_rois import Roi, open_rtstruct, read_rois, referenced_series
from medseg.labels import Kind, Label, LabelTable, palette_colour
from medseg.values.contours import fill_slices
from medseg.values.geometry import AxisMap, describe_grid, spacing_of
from medseg.values.instances import Instance, InstanceSet

#: How far (share of the slice distance) a contour may lie off its slice; what lies further off was drawn on others.
OFF_SLICE = 0.2
#: From here on (mm) that is worth a warning.
NOTED_MM = 0.1


@dataclass(frozen=True, kw_only=True)
class StructureSet:
    """An RT structure set on the grid of its image.

    Attributes:
        instances: one per region of interest that has a voxel, in the order of the file; a region without has its
            label in the table.
        algorithms: how each instance came about, in order.
        warnings: what was set aside, cut or not as it should be, one line each.
    """

    instances: InstanceSet
    algorithms: tuple[Algorithm, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Placed:
    """A contour in its slice: [n, 2] (row, column) in continuous pixels."""

    roi: int
    slice: int
    polygon: NDArray[np.float64]
    exclusive: bool
    image_uid: str


def read_rtstruct(
    path: Path, image: DicomContext | VolumeGeometry, *, ignore_frame_of_reference: bool = False
) -> StructureSet:
    """Read a structure set onto the grid of an image.

    A pixel belongs to a region if its centre lies inside the contour or on it; nested contours alternate (see
    `medseg.values.contours.fill_polygons`). Regions of one name are objects of one label.

    Args:
        path: the file.
        image: the series it was drawn on, or a grid alone, whose axes may come in any order.
        ignore_frame_of_reference: match by positions alone.

    Raises:
        InputError: no RT structure set, damaged, or with contours that enclose nothing in the image.
        GeometryError: another frame of reference, or contours that do not lie in the slices of the image.
    """
    dataset = open_rtstruct(path)
    rois = read_rois(dataset, path)
    notes = _set_aside(rois, path)
    context = image if isinstance(image, DicomContext) else None
    grid = image.geometry if isinstance(image, DicomContext) else image
    if not ignore_frame_of_reference:
        frame = (context.frame_of_reference_uid if context else grid.frame_of_reference_uid) or ""
        rois = _of_frame(rois, frame, path, notes)
    if context is not None:
        notes += _check_series(dataset, context, path)
    axis = _slice_axis(rois, grid)
    axis_map = AxisMap(order=(axis, *(a for a in range(3) if a != axis)), flips=(False, False, False))  # type: ignore[arg-type]
    turned = axis_map.geometry(grid)
    contours = _place(rois, turned, path, notes)
    if context is not None and axis == 0:
        notes += _check_images(contours, rois, context, path)
    instances, algorithms, table = _build(rois, contours, turned, dataset, path, notes)
    found = InstanceSet.build(instances, turned, table).moved(axis_map.inverse())
    return StructureSet(instances=found, algorithms=tuple(algorithms), warnings=tuple(notes))


def _set_aside(rois: Sequence[Roi], path: Path) -> list[str]:
    """Say what encloses nothing, region by region."""
    notes = []
    for roi in rois:
        if roi.set_aside:
            what = ", ".join(f"{count} {kind}" for kind, count in roi.set_aside.items())
            notes.append(f"{path}: {roi.name!r}: {what} set aside, only closed contours enclose voxels")
        elif not roi.contours:
            notes.append(f"{path}: {roi.name!r} has no contours, so it has no voxels")
    return notes


def _of_frame(rois: list[Roi], frame: str, path: Path, notes: list[str]) -> list[Roi]:
    """Refuse regions of another frame of reference; where only some are, set those aside."""
    drawn = [roi for roi in rois if roi.contours]
    if drawn and (not frame or any(not roi.frame_of_reference_uid for roi in drawn)):
        who = "the image" if not frame else "the structure set"
        notes.append(f"{path}: {who} names no frame of reference; contours were matched by their positions alone")
    foreign = [roi for roi in drawn if frame and roi.frame_of_reference_uid not in ("", frame)]
    if foreign and len(foreign) == len(drawn):
        raise GeometryError(
            f"{path}: frame of reference {foreign[0].frame_of_reference_uid}, that of the image is {frame}; positions "
            "of different frames cannot be compared (medseg export --ignore-frame-of-reference insists)"
        )
    for roi in foreign:
        notes.append(
            f"{path}: {roi.name!r} is drawn in another frame of reference ({roi.frame_of_reference_uid}) and set aside"
        )
    return [replace(roi, contours=()) if roi in foreign else roi for roi in rois]


def _check_series(dataset: Dataset, context: DicomContext, path: Path) -> list[str]:
    series = referenced_series(dataset)
    if not series:
        return [f"{path}: names no image series; contours were matched by their positions"]
    if context.series_uid and context.series_uid not in series:
        return [
            f"{path}: drawn on series {series[0]}, the image is series {context.series_uid}; contours were matched by "
            "their positions"
        ]
    return []


def _indices(rois: Sequence[Roi], grid: VolumeGeometry) -> NDArray[np.float64]:
    """Return [n, 3] array indices of all points of all contours, in order; centres are whole numbers."""
    points = [contour.points for roi in rois for contour in roi.contours]
    world = np.concatenate(points) if points else np.zeros((0, 3))
    return (world - grid.affine[:3, 3]) @ np.linalg.inv(grid.affine[:3, :3]).T


def _ends(rois: Sequence[Roi]) -> NDArray[np.intp]:
    """Return where each contour begins in `_indices`, and the end of the last."""
    return np.cumsum([0, *(len(contour.points) for roi in rois for contour in roi.contours)])


def _slice_axis(rois: Sequence[Roi], grid: VolumeGeometry) -> int:
    """Return the array axis across which most contours are flat; only DICOM has its axes in a known order."""
    indices, starts = _indices(rois, grid), _ends(rois)[:-1]
    if not len(starts):
        return 0
    extent = np.maximum.reduceat(indices, starts) - np.minimum.reduceat(indices, starts)
    return int((extent <= 2 * OFF_SLICE).sum(axis=0).argmax())


def _place(rois: Sequence[Roi], grid: VolumeGeometry, path: Path, notes: list[str]) -> list[_Placed]:
    """Return the contours that touch the image, each in its slice.

    Raises:
        GeometryError: contours between slices or across them, or none in the image at all.
    """
    indices, ends = _indices(rois, grid), _ends(rois)
    depth, rows, columns = grid.spatial_shape
    distance_mm = spacing_of(grid)[0]
    contours = [(number, contour) for number, roi in enumerate(rois) for contour in roi.contours]
    placed: list[_Placed] = []
    outside: Counter[int] = Counter()
    cut: Counter[int] = Counter()
    off_mm = 0.0
    for (number, contour), start, stop in zip(contours, ends[:-1], ends[1:], strict=True):
        across = indices[start:stop, 0]
        if across.max() < -0.5 or across.min() > depth - 0.5:
            outside[number] += 1
            continue
        index = int(np.rint(across.mean()))
        off = float(np.abs(across - index).max())
        if off > OFF_SLICE:
            raise _misses(rois[number], across, index, distance_mm, path)
        off_mm = max(off_mm, off * distance_mm)
        polygon = indices[start:stop, 1:] + 0.5
        low, high = polygon.min(axis=0), polygon.max(axis=0)
        if not 0 <= index < depth or (high < 0).any() or (low > (rows, columns)).any():
            outside[number] += 1
            continue
        cut[number] += bool((low < -1).any() or (high > (rows + 1, columns + 1)).any())
        placed.append(
            _Placed(roi=number, slice=index, polygon=polygon, exclusive=contour.exclusive, image_uid=contour.image_uid)
        )
    if contours and not placed:
        first = contours[0][1].points.mean(axis=0)
        raise GeometryError(
            f"{path}: all {len(contours)} contours miss the image ({describe_grid(grid)}): the first lies at "
            f"({', '.join(f'{v:.1f}' for v in first)}) mm; give the image they were drawn on"
        )
    for number, roi in enumerate(rois):
        if outside[number]:
            notes.append(
                f"{path}: {roi.name!r}: {outside[number]} of {len(roi.contours)} contours lie outside the image and "
                "were set aside"
            )
        if cut[number]:
            notes.append(
                f"{path}: {roi.name!r}: {cut[number]} contours reach beyond the image and were cut at its edge"
            )
    if off_mm > NOTED_MM:
        notes.append(f"{path}: contours lie up to {off_mm:.2f} mm off the slices they were placed in")
    return placed


def _misses(roi: Roi, across: NDArray[np.float64], index: int, distance_mm: float, path: Path) -> GeometryError:
    if np.ptp(across) > 2 * OFF_SLICE:
        what = f"runs across {np.ptp(across) * distance_mm:.1f} mm of slices, it was drawn in other planes"
    else:
        what = (
            f"lies {abs(float(across.mean()) - index) * distance_mm:.2f} mm off the nearest slice (slices are "
            f"{distance_mm:.4g} mm apart), it was drawn on other slices"
        )
    return GeometryError(f"{path}: a contour of {roi.name!r} {what}; give the image it was drawn on")


def _check_images(contours: Sequence[_Placed], rois: Sequence[Roi], context: DicomContext, path: Path) -> list[str]:
    """Say which contours name images of other series, or another slice than they lie in."""
    slices: dict[str, set[int]] = {}
    for index, image in enumerate(context.images):
        if image is not None and image.sop_instance_uid:
            slices.setdefault(image.sop_instance_uid, set()).add(index)
    if not slices:
        return []
    notes = []
    unknown = [c for c in contours if c.image_uid and c.image_uid not in slices]
    if unknown:
        notes.append(
            f"{path}: {len(unknown)} of {len(contours)} contours name images that are not of this series; they were "
            "matched by their positions"
        )
    elsewhere = [c for c in contours if c.image_uid in slices and c.slice not in slices[c.image_uid]]
    if elsewhere:
        worst = elsewhere[0]
        notes.append(
            f"{path}: {len(elsewhere)} of {len(contours)} contours name the image of another slice than they lie in "
            f"(the first of {rois[worst.roi].name!r}: slice {min(slices[worst.image_uid]) + 1}, lies in slice "
            f"{worst.slice + 1}); positions were believed"
        )
    return notes


def _build(
    rois: Sequence[Roi],
    contours: Sequence[_Placed],
    grid: VolumeGeometry,
    dataset: Dataset,
    path: Path,
    notes: list[str],
) -> tuple[list[Instance], list[Algorithm], LabelTable]:
    try:
        labels, table, details = roi_labels(rois, dataset)
    except (MedsegError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: its regions of interest are no usable labels: {error}") from None
    of_roi: dict[int, list[_Placed]] = {}
    for contour in contours:
        of_roi.setdefault(contour.roi, []).append(contour)
    instances, algorithms = [], []
    for number, own in sorted(of_roi.items()):
        roi = rois[number]
        notes += _sparse({contour.slice for contour in own}, f"{path}: {roi.name!r}")
        filled = _fill(own, grid, f"{path}: {roi.name!r}", notes)
        if filled is None:
            notes.append(
                f"{path}: {roi.name!r}: its contours enclose no voxel centre of the image, so it has no voxels"
            )
            continue
        score, source_id = details.get(roi.number, (1.0, roi.number))
        instances.append(
            Instance(id=1, label=labels[number], mask=filled[0], offset=filled[1], score=score, source_id=source_id)
        )
        algorithms.append(_algorithm(roi))
    return instances, algorithms, table


def _sparse(slices: set[int], what: str) -> list[str]:
    """Say where no two neighbouring slices have contours: drawn on thicker slices, the object comes out in sheets."""
    steps = np.diff(sorted(slices))
    if len(steps) < 2 or steps.min() < 2:
        return []
    return [f"{what} has contours in no two neighbouring slices; the slices between them stay empty"]


def _algorithm(roi: Roi) -> Algorithm:
    if roi.algorithm not in ("AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"):
        return UNKNOWN_ORIGIN
    return Algorithm(type=roi.algorithm, name=roi.made_by)


def _fill(
    contours: Sequence[_Placed], grid: VolumeGeometry, what: str, notes: list[str]
) -> tuple[NDArray[np.bool_], tuple[int, int, int]] | None:
    """Return the mask of one region and its offset, None where it covers no centre."""
    _, rows, columns = grid.spatial_shape
    of_slice: dict[int, list[_Placed]] = {}
    for contour in contours:
        of_slice.setdefault(contour.slice, []).append(contour)
    polygons = [[contour.polygon for contour in own] for own in of_slice.values()]
    exclusive = [any(contour.exclusive for contour in own) for own in of_slice.values()]
    filled = zip(of_slice, fill_slices(polygons, (rows, columns), exclusive), strict=True)
    planes = {index: plane for index, plane in filled if plane is not None}
    crossing = sum(plane.crossing for plane in planes.values())
    if crossing:
        notes.append(f"{what}: {crossing} contours cross another of the same slice; their areas were united")
    if not planes:
        return None
    first = np.array([min(planes), *np.min([p.offset for p in planes.values()], axis=0)])
    last = np.array([max(planes) + 1, *np.max([np.add(p.offset, p.mask.shape) for p in planes.values()], axis=0)])
    mask = np.zeros(last - first, np.bool_)
    for index, plane in planes.items():
        top, left = plane.offset - first[1:]
        mask[index - first[0], top : top + plane.mask.shape[0], left : left + plane.mask.shape[1]] = plane.mask
    return mask, (int(first[0]), int(first[1]), int(first[2]))


def roi_labels(
    rois: Sequence[Roi], dataset: Dataset
) -> tuple[list[int], LabelTable, dict[int, tuple[float, int | None]]]:
    """Return the label id of each region, the table, and score and original number of those that medseg wrote."""
    noted = noted_by_medseg(dataset)
    rows = noted.get("segments", {})
    table = list(LabelTable.from_dict(noted["labels"])) if noted else []
    by_name = {label.name: label.id for label in table}
    details = {int(key): (float(row.get("score", 1.0)), row.get("source_id")) for key, row in rows.items()}
    counts = Counter(roi.name for roi in rois)
    ids = []
    for roi in rois:
        row = rows.get(str(roi.number))
        if row is not None:
            ids.append(int(row["label"]))
            continue
        if roi.name not in by_name:
            new = max((label.id for label in table), default=0) + 1
            kind: Kind = "ids" if counts[roi.name] > 1 else "single"
            table.append(Label(id=new, name=roi.name, colour=roi.colour or palette_colour(new - 1), kind=kind))
            by_name[roi.name] = new
        ids.append(by_name[roi.name])
    return ids, LabelTable(table), details
