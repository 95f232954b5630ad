"""What a cohort looks like, in millimetres and intensities: the facts that a Plan is derived from."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray

from medseg.data.grid import body_window
from medseg.errors import InputError
from medseg.labels import LabelTable
from medseg.values.geometry import grid_map, orientation_map, spacing_of
from medseg.values.instances import InstanceSet

#: Volumes whose lowest value lies below this are taken for CT in HU.
CT_BELOW = -200.0
#: CT values at or below this are air or the table's foam.
CT_AIR = -300.0


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseFacts:
    """Facts of one case, axes in the plan's orientation.

    Attributes:
        spacing_mm, shape: of the grid (slice, row, column), not resampled.
        body_mm: rows and columns that hold more than air, mm.
        boxes_mm: per label id, [n, 2] height and width in mm of its objects in each slice they appear in.
        sides_mm: per label id, [objects] square root of the box area (mm2) of each object in its largest slice.
        smallest_ml: per label id, volume of its smallest object.
        per_slice: the most objects in any one slice.
        intensities: a sample of the values under the masks.
        lowest: the lowest value of the volume.
    """

    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    body_mm: tuple[float, float]
    boxes_mm: dict[int, NDArray[np.float64]]
    sides_mm: dict[int, NDArray[np.float64]]
    smallest_ml: dict[int, float]
    per_slice: int
    intensities: NDArray[np.float64]
    lowest: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Fingerprint:
    """Facts of a cohort."""

    cases: tuple[CaseFacts, ...]
    labels: LabelTable

    @property
    def is_ct(self) -> bool:
        """Whether intensities are Hounsfield units, judged by the presence of air in every case."""
        return all(case.lowest < CT_BELOW for case in self.cases)

    def boxes_mm(self, label: int) -> NDArray[np.float64]:
        """Return [n, 2] heights and widths (mm) of a label's objects over all slices and cases."""
        found = [case.boxes_mm[label] for case in self.cases if label in case.boxes_mm]
        return np.concatenate(found) if found else np.zeros((0, 2))

    def sides_mm(self, label: int) -> NDArray[np.float64]:
        """Return the side (mm) of each object of a label in its largest slice, over all cases."""
        return np.concatenate([case.sides_mm.get(label, np.zeros(0)) for case in self.cases])


def look_at(volume: Volume, instances: InstanceSet, orientation: str) -> CaseFacts:
    """Collect the facts of one case; image and label lie on the same grid."""
    axis_map = orientation_map(volume, orientation)
    to_image = grid_map(instances.geometry, volume)
    assert to_image is not None  # the reader of the case has checked it
    objects = instances.moved(to_image).moved(axis_map)
    array = axis_map.array(volume.array)
    geometry = axis_map.geometry(volume)
    _, row_mm, column_mm = spacing_of(geometry)
    boxes: dict[int, list[tuple[float, float]]] = {}
    sides: dict[int, list[float]] = {}
    smallest: dict[int, float] = {}
    voxel_ml = float(np.prod(spacing_of(geometry))) / 1000
    per_slice = np.zeros(array.shape[0], np.int64)
    values = []
    for instance in objects:
        largest = 0.0
        for z, plane in enumerate(instance.mask):
            rows, columns = np.flatnonzero(plane.any(axis=1)), np.flatnonzero(plane.any(axis=0))
            if not len(rows):
                continue
            per_slice[instance.offset[0] + z] += 1
            size = (float(rows[-1] - rows[0] + 1) * row_mm, float(columns[-1] - columns[0] + 1) * column_mm)
            boxes.setdefault(instance.label, []).append(size)
            largest = max(largest, (size[0] * size[1]) ** 0.5)
        sides.setdefault(instance.label, []).append(largest)
        smallest[instance.label] = min(smallest.get(instance.label, np.inf), instance.voxels * voxel_ml)
        inside = array[instance.window][instance.mask]
        values.append(inside[:: max(1, len(inside) // 2000)].astype(np.float64))
    rows_of, columns_of = body_window(array, CT_AIR if float(array.min()) < CT_BELOW else None)
    return CaseFacts(
        spacing_mm=spacing_of(geometry),
        shape=(array.shape[0], array.shape[1], array.shape[2]),
        body_mm=((rows_of[1] - rows_of[0]) * row_mm, (columns_of[1] - columns_of[0]) * column_mm),
        boxes_mm={label: np.array(found) for label, found in boxes.items()},
        sides_mm={label: np.array(found) for label, found in sides.items()},
        smallest_ml=smallest,
        per_slice=int(per_slice.max(initial=0)),
        intensities=np.concatenate(values) if values else np.zeros(0),
        lowest=float(array.min()),
    )


def fingerprint(cases: Iterable[CaseFacts], labels: LabelTable) -> Fingerprint:
    """Put the cases' facts together.

    Raises:
        InputError: no case, or a label of the table that occurs in none.
    """
    facts = tuple(cases)
    if not facts:
        raise InputError("the cohort has no cases")
    missing = [label.name for label in labels if not any(label.id in case.boxes_mm for case in facts)]
    if missing:
        raise InputError(
            f"labels {missing} occur in no case of the cohort; take them out of the label table or add cases with them"
        )
    return Fingerprint(cases=facts, labels=labels)
