"""From a volume in the patient to the grid that the network sees; one function for training and inference."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from highdicom import Volume, VolumeGeometry
from numpy.typing import NDArray

from medseg.errors import GeometryError
from medseg.values.detections import Detections
from medseg.values.geometry import AxisMap, describe_grid, grid_map, orientation_map, spacing_of
from medseg.values.plan import InputPlan
from medseg.values.resampling import resample_plane, resampled_size

#: Pixels of air kept around the patient.
BODY_MARGIN = 4


@dataclass(frozen=True, kw_only=True)
class NetworkGrid:
    """A volume in the Plan's orientation and pixel size, and the way back.

    Attributes:
        array: [Z, h, w], int16 HU (``window``) or float32 (``zscore``: mean 0, SD 1).
        slice_spacing_mm: distance of slices.
        axis_map: from the source's axes to the network's.
        geometry: the source grid in the network's axis order, not resampled.
        rows, columns: (first, last + 1) source pixels that ``array`` covers.
    """

    array: NDArray
    slice_spacing_mm: float
    axis_map: AxisMap
    geometry: VolumeGeometry
    rows: tuple[int, int]
    columns: tuple[int, int]

    @property
    def factors(self) -> tuple[float, float]:
        """Network pixels per source pixel along rows and columns."""
        return (
            self.array.shape[1] / (self.rows[1] - self.rows[0]),
            self.array.shape[2] / (self.columns[1] - self.columns[0]),
        )

    def to_source(self, detections: Detections) -> Detections:
        """Return detections in pixels of ``geometry``."""
        row_factor, column_factor = self.factors
        return detections.scaled(1 / row_factor, 1 / column_factor).shifted(self.rows[0], self.columns[0])


def stack_channels(volumes: Sequence[Volume], names: Sequence[str]) -> tuple[Volume, ...]:
    """Return several images of one study in the first one's axis order.

    Args:
        volumes: at least one.
        names: what each is called in errors, for example its path.

    Raises:
        GeometryError: an image whose voxels are not those of the first, whatever the order of axes.
    """
    stacked = [volumes[0]]
    for volume, name in zip(volumes[1:], names[1:], strict=True):
        axis_map = grid_map(volume, volumes[0])
        if axis_map is None:
            raise GeometryError(
                f"{name}: not on the grid of {names[0]}: it has {describe_grid(volume)}, expected "
                f"{describe_grid(volumes[0])}; register and resample it to the first image"
            )
        stacked.append(axis_map.volume(volume))
    return tuple(stacked)


def body_window(array: NDArray, threshold: float | None) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the (first, last + 1) rows and columns of a [Z, H, W] array that hold more than air.

    With no threshold, or nothing above it, that is everything.
    """
    whole = ((0, array.shape[1]), (0, array.shape[2]))
    if threshold is None:
        return whole
    flat = array.max(axis=0) > threshold
    rows, columns = np.flatnonzero(flat.any(axis=1)), np.flatnonzero(flat.any(axis=0))
    if not len(rows):
        return whole
    window = [
        (max(0, int(hit[0]) - BODY_MARGIN), min(n, int(hit[-1]) + 1 + BODY_MARGIN))
        for hit, n in ((rows, array.shape[1]), (columns, array.shape[2]))
    ]
    return window[0], window[1]


def to_network_grid(volume: Volume, plan: InputPlan) -> NetworkGrid:
    """Bring a volume into the Plan's orientation, cut off the air, and resample in plane.

    Slices stay where they are. Spacings are taken to 0.1 um, so that the same study stored in another way
    (float32 affine, another axis order) gives the same array.
    """
    axis_map = orientation_map(volume, plan.orientation)
    array = axis_map.array(volume.array)
    geometry = axis_map.geometry(volume)
    slice_mm, row_mm, column_mm = (round(s, 4) for s in spacing_of(geometry))
    rows, columns = body_window(array, plan.air_threshold)
    array = array[:, rows[0] : rows[1], columns[0] : columns[1]]
    if plan.intensity == "zscore":
        values = np.ascontiguousarray(array, np.float32)
        array = (values - values.mean(dtype=np.float64)) / max(float(values.std(dtype=np.float64)), 1e-6)
    size = (
        resampled_size(array.shape[1], row_mm, plan.spacing_mm[0]),
        resampled_size(array.shape[2], column_mm, plan.spacing_mm[1]),
    )
    out = np.empty((array.shape[0], *size), np.float32 if plan.intensity == "zscore" else np.int16)
    for z in range(array.shape[0]):
        plane = resample_plane(array[z], *size)
        out[z] = plane if plan.intensity == "zscore" else np.clip(np.rint(plane), -32768, 32767)
    return NetworkGrid(
        array=out, slice_spacing_mm=slice_mm, axis_map=axis_map, geometry=geometry, rows=rows, columns=columns
    )
