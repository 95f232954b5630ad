"""The volume seen across its slices (coronal and sagittal for an axial model), as evidence of what is one object.

The network was trained on slices of one direction. Across them it knows what looks alike from every side: lesions,
nodules, vessels cut across, cells; hardly organs with a shape of their own. What it finds there makes no objects, it
only speaks for and against joining detections of neighbouring slices (`medseg.linking.views`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from highdicom import Volume, VolumeGeometry
from numpy.typing import NDArray

from medseg.data.grid import GridPlace
from medseg.errors import GeometryError
from medseg.values.detections import Detections
from medseg.values.geometry import AxisMap, spacing_of
from medseg.values.plan import InputPlan

#: Slices may be this many times as thick as the plan's pixels: across them, a pixel is then interpolated so often.
MOST_THICKNESS = 3.0
#: What agreement of the views counts in linking (log-odds) where the plan gives it no weight.
VIEW_WEIGHT = 2.0
#: Rows, then columns become the slices; the old slices become rows that run backwards: head up where they ran to it.
CROSSWISE = (
    AxisMap(order=(1, 0, 2), flips=(False, True, False)),
    AxisMap(order=(2, 0, 1), flips=(False, True, False)),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossView:
    """A study turned so that its rows or columns are the slices, as far apart as its slices were.

    Attributes:
        volumes: of the study; some of the turned slices.
        geometry: all of the turned slices.
        taken: [n] which of these ``volumes`` holds.
    """

    volumes: tuple[Volume, ...]
    geometry: VolumeGeometry
    taken: NDArray[np.int64]

    def spread(self, detections: Sequence[Detections]) -> list[Detections]:
        """Return detections in ``volumes`` as detections in ``geometry``, each in the slices nearest to its own."""
        low, high = int(self.taken[0]), int(self.taken[-1])
        nearest = np.abs(np.arange(low, high + 1)[:, None] - self.taken).argmin(axis=1)
        return [replace(detections[k], slice_index=low + i) for i, k in enumerate(nearest.tolist())]


def cross_views(volumes: Sequence[Volume], place: GridPlace, plan: InputPlan) -> tuple[CrossView, ...]:
    """Turn a study so that its rows, then its columns are the slices.

    As many of them are taken as lie within the patient, as far apart as the slices are: a view costs about what the
    slices cost themselves.

    Args:
        volumes: of the study, in the plan's orientation.
        place: where the network's grid lies in them.
        plan: the input's.

    Raises:
        GeometryError: slices too thick or too few for a picture across them.
    """
    depth, thickness, pixel = place.geometry.spatial_shape[0], place.slice_spacing_mm, max(plan.spacing_mm)
    if depth < 2 or thickness > MOST_THICKNESS * pixel:
        raise GeometryError(
            f"views: the study has {depth} slices of {thickness:g} mm, expected at least 2 of at most "
            f"{MOST_THICKNESS * pixel:g} mm ({MOST_THICKNESS:g} times the model's pixels); leave the option out"
        )
    views = []
    for axis_map, extent in zip(CROSSWISE, (place.rows, place.columns), strict=True):
        turned = [axis_map.volume(volume) for volume in volumes]
        geometry = axis_map.geometry(place.geometry)
        step = max(1, round(thickness / spacing_of(geometry)[0]))
        first = min(extent[0] + step // 2, extent[1] - 1)
        taken = np.arange(first, extent[1], step)
        chosen = tuple(volume[first : extent[1] : step] for volume in turned)
        views.append(CrossView(volumes=chosen, geometry=geometry, taken=taken))
    return tuple(views)
