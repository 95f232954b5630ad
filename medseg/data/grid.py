"""From the images of a study to the grid that the network sees; one way for training and inference."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from highdicom import Volume, VolumeGeometry
from numpy.typing import NDArray

from medseg.errors import GeometryError, InputError
from medseg.values.detections import Detections
from medseg.values.geometry import AxisMap, describe_grid, grid_map, orientation_map, spacing_of
from medseg.values.plan import InputPlan
from medseg.values.resampling import resample_plane, resampled_size

#: Pixels of air kept around the patient.
BODY_MARGIN = 4
#: Windows at least this wide lose nothing that shows by values rounded to whole numbers; images of 0..1 would be lost.
WHOLE_NUMBERS_WIDTH = 64.0
INT16 = np.iinfo(np.int16)


@dataclass(frozen=True, kw_only=True)
class GridPlace:
    """Where the network's grid lies in a study, and the way back.

    Attributes:
        slice_spacing_mm: distance of slices.
        axis_map: from the source's axes to the network's.
        geometry: the source grid in the network's axis order, not resampled.
        rows, columns: (first, last + 1) source pixels that the network sees.
        size: (rows, columns) of a slice in the network's pixels.
    """

    slice_spacing_mm: float
    axis_map: AxisMap
    geometry: VolumeGeometry
    rows: tuple[int, int]
    columns: tuple[int, int]
    size: tuple[int, int]

    @property
    def factors(self) -> tuple[float, float]:
        """Network pixels per source pixel along rows and columns."""
        return (
            self.size[0] / (self.rows[1] - self.rows[0]),
            self.size[1] / (self.columns[1] - self.columns[0]),
        )

    @property
    def array_geometry(self) -> VolumeGeometry:
        """Where the network's pixels lie in the patient (pixel i covers [i, i + 1))."""
        step = np.eye(4)
        for axis, first, factor in zip((1, 2), (self.rows[0], self.columns[0]), self.factors, strict=True):
            step[axis, axis] = 1 / factor
            step[axis, 3] = first + 0.5 / factor - 0.5  # the centre of the first pixel, in source pixels
        shape = (self.geometry.spatial_shape[0], *self.size)
        frame = self.geometry.frame_of_reference_uid
        return VolumeGeometry(self.geometry.affine @ step, shape, "PATIENT", frame_of_reference_uid=frame)

    def to_source(self, detections: Detections) -> Detections:
        """Return detections in pixels of ``geometry``."""
        row_factor, column_factor = self.factors
        return detections.scaled(1 / row_factor, 1 / column_factor).shifted(self.rows[0], self.columns[0])


@dataclass(frozen=True, kw_only=True)
class NetworkGrid(GridPlace):
    """The images of a study in the Plan's orientation and pixel size.

    Attributes:
        array: [N, Z, h, w], N images, see `array_type`: the images' values, HU for example (``window``), or each image
            of mean 0 and SD 1 (``zscore``).
    """

    array: NDArray


def check_channels(count: int, plan: InputPlan) -> None:
    """Refuse (InputError) another number of images than the plan's."""
    expected = len(plan.channel_names)
    if count != expected:
        raise InputError(
            f"{count} {'image' if count == 1 else 'images'} of a study given, expected {expected}: give "
            f"{', '.join(plan.channel_names)}, in this order"
        )


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


def place_grid(volumes: Sequence[Volume], plan: InputPlan) -> GridPlace:
    """Decide where the network's grid lies: the Plan's orientation and pixels, the air around the patient cut off.

    Slices stay where they are. Spacings are taken to 0.1 um, so that the same study stored in another way
    (float32 affine, another axis order) gives the same grid.

    Args:
        volumes: one per channel of the plan, all on one grid up to axis order and flips.
        plan: the input's.

    Raises:
        InputError: another number of images than the plan's.
        GeometryError: images on different grids.
    """
    check_channels(len(volumes), plan)
    stacked = stack_channels(volumes, plan.channel_names)
    axis_map = orientation_map(stacked[0], plan.orientation)
    geometry = axis_map.geometry(stacked[0])
    slice_mm, row_mm, column_mm = (round(s, 4) for s in spacing_of(geometry))
    # What is tissue in any image belongs to the patient.
    windows = [body_window(axis_map.array(volume.array), plan.air_threshold) for volume in stacked]
    rows = (min(w[0][0] for w in windows), max(w[0][1] for w in windows))
    columns = (min(w[1][0] for w in windows), max(w[1][1] for w in windows))
    return GridPlace(
        slice_spacing_mm=slice_mm,
        axis_map=axis_map,
        geometry=geometry,
        rows=rows,
        columns=columns,
        size=(
            resampled_size(rows[1] - rows[0], row_mm, plan.spacing_mm[0]),
            resampled_size(columns[1] - columns[0], column_mm, plan.spacing_mm[1]),
        ),
    )


def array_type(plan: InputPlan) -> np.dtype:
    """Return the type of a `NetworkGrid` array: int16 for windows that HU have, else float32."""
    wide = all(high - low >= WHOLE_NUMBERS_WIDTH and INT16.min <= low < high <= INT16.max for low, high in plan.windows)
    return np.dtype(np.int16 if plan.intensity == "window" and wide else np.float32)


def grid_planes(volumes: Sequence[Volume], place: GridPlace, plan: InputPlan) -> Iterator[NDArray]:
    """Give the slices of a `NetworkGrid` array one by one, image after image; no copy of a volume is made."""
    for volume in stack_channels(volumes, plan.channel_names):
        cut = place.axis_map.array(volume.array)[:, place.rows[0] : place.rows[1], place.columns[0] : place.columns[1]]
        mean, deviation = _mean_and_deviation(cut) if plan.intensity == "zscore" else (0.0, 1.0)
        whole = array_type(plan) == np.int16
        for stored in cut:
            plane = np.ascontiguousarray(stored, np.float32)  # sums then do not depend on the order in memory
            if plan.intensity == "zscore":
                plane = (plane - mean) / deviation
            sampled = resample_plane(plane, *place.size)
            yield np.clip(np.rint(sampled), INT16.min, INT16.max).astype(np.int16) if whole else sampled


def _mean_and_deviation(array: NDArray) -> tuple[float, float]:
    """Return mean and SD of [Z, H, W], slice by slice so that nothing as large as the volume is made."""
    total = sum(float(np.ascontiguousarray(plane, np.float32).mean(dtype=np.float64)) for plane in array)
    mean = total / len(array)
    square = sum(float(np.square(np.ascontiguousarray(plane, np.float64) - mean).mean()) for plane in array)
    return mean, max(float(np.sqrt(square / len(array))), 1e-6)


def to_network_grid(volumes: Sequence[Volume], plan: InputPlan) -> NetworkGrid:
    """Bring the images of a study into the Plan's orientation, cut off the air, and resample in plane.

    See `place_grid` for arguments and errors.
    """
    place = place_grid(volumes, plan)
    depth = place.geometry.spatial_shape[0]
    array = np.empty((len(volumes), depth, *place.size), array_type(plan))
    for out, plane in zip(array.reshape(-1, *place.size), grid_planes(volumes, place, plan), strict=True):
        out[:] = plane
    return NetworkGrid(**vars(place), array=array)
