"""What is measured of every object: size, place, intensities, diameters, neighbours.

Diameters follow the way lesions are measured on a workstation (RECIST 1.1, Eisenhauer et al., Eur J Cancer
2009, 45:228): the longest diameter in one slice of the acquisition, and the extent perpendicular to it.
Slices are the first array axis of the grid, as `medseg.io` reads them.
"""

from dataclasses import dataclass, field

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist, squareform

from medseg.errors import GeometryError
from medseg.values.geometry import describe_grid, grid_map, spacing_of
from medseg.values.instances import Instance, InstanceSet
from medseg.values.pairs import PairTable

NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One object in numbers.

    Attributes:
        id, label, name, score: as in its set; ``label`` is the label's name, ``name`` the object's.
        voxels: number of voxels.
        volume_ml: voxels times voxel volume.
        bbox: first and last voxel (inclusive) along (slice, row, column), array indices from 0.
        centroid_mm: (L, P, S) of the mean of the voxel centres, in mm; it may lie outside a hollow object.
        mean, sd, minimum, maximum: of the image's voxels in the object, in the image's unit (HU for CT);
            ``sd`` is that of the population. NaN without an image.
        long_axis_mm, short_axis_mm: see `slice_diameters`.
        axis_slice: array index of the slice where the long axis is longest (the first of equals).
        touches_border: whether the object reaches the first or last voxel along any axis, so that it may go on
            beyond the image.
        overlaps: other instance id -> shared volume in ml, where any.
    """

    id: int
    label: str
    name: str
    score: float
    voxels: int
    volume_ml: float
    bbox: tuple[tuple[int, int, int], tuple[int, int, int]]
    centroid_mm: tuple[float, float, float]
    mean: float
    sd: float
    minimum: float
    maximum: float
    long_axis_mm: float
    short_axis_mm: float
    axis_slice: int
    touches_border: bool
    overlaps: dict[int, float] = field(default_factory=dict)


def measure(instances: InstanceSet, volume: Volume | None) -> list[Measurement]:
    """Measure every object.

    Args:
        instances: the objects.
        volume: the image on the same grid in world space (any axis order), or None: intensities are NaN.

    Returns:
        One measurement per instance, in the order of their ids.

    Raises:
        GeometryError: the image lies on another grid.
    """
    image = None if volume is None else _image_on(instances, volume)
    voxel_ml = float(np.prod(spacing_of(instances.geometry))) / 1000
    pairs = PairTable.between(instances, instances)
    overlaps: dict[int, dict[int, float]] = {i.id: {} for i in instances}
    for a, b, shared in zip(pairs.reference, pairs.prediction, pairs.intersection, strict=True):
        if a != b:
            overlaps[int(a) + 1][int(b) + 1] = int(shared) * voxel_ml
    return [
        _measure_one(instance, name, instances, image, voxel_ml, overlaps[instance.id])
        for instance, name in zip(instances, instances.names(), strict=True)
    ]


def _image_on(instances: InstanceSet, volume: Volume) -> NDArray:
    axis_map = grid_map(volume, instances.geometry)
    if axis_map is None:
        raise GeometryError(
            f"the image lies on another grid ({describe_grid(volume)}) than the objects "
            f"({describe_grid(instances.geometry)}); measure on the image that the objects were drawn on"
        )
    return axis_map.array(volume.array)


def _measure_one(
    instance: Instance,
    name: str,
    instances: InstanceSet,
    image: NDArray | None,
    voxel_ml: float,
    overlaps: dict[int, float],
) -> Measurement:
    affine = instances.geometry.affine
    shape = instances.geometry.spatial_shape
    start = instance.offset
    # Voxels per slice, per row and per column: box and centroid without a list of all voxels.
    counts = [np.count_nonzero(instance.mask, axis=others) for others in ((1, 2), (0, 2), (0, 1))]
    voxels = int(counts[0].sum())
    centre = np.array(start) + [np.arange(len(n)) @ n / voxels for n in counts]
    centroid = affine[:3, :3] @ centre + affine[:3, 3]
    # Means of int16 or float32 voxels are taken in double precision.
    values = None if image is None else image[instance.window][instance.mask].astype(np.float64)
    low, high = (np.array(start) + [int(np.flatnonzero(n)[end]) for n in counts] for end in (0, -1))
    _, row_mm, column_mm = spacing_of(instances.geometry)
    axis_slice, long_axis, short_axis = _longest_slice(instance.mask, row_mm, column_mm)
    return Measurement(
        id=instance.id,
        label=instances.labels[instance.label].name,
        name=name,
        score=instance.score,
        voxels=voxels,
        volume_ml=voxels * voxel_ml,
        bbox=((int(low[0]), int(low[1]), int(low[2])), (int(high[0]), int(high[1]), int(high[2]))),
        centroid_mm=(float(centroid[0]), float(centroid[1]), float(centroid[2])),
        mean=NAN if values is None else float(values.mean()),
        sd=NAN if values is None else float(values.std()),
        minimum=NAN if values is None else float(values.min()),
        maximum=NAN if values is None else float(values.max()),
        long_axis_mm=long_axis,
        short_axis_mm=short_axis,
        axis_slice=start[0] + axis_slice,
        touches_border=bool((low == 0).any() or (high == np.array(shape) - 1).any()),
        overlaps=overlaps,
    )


def _longest_slice(mask: NDArray[np.bool_], row_mm: float, column_mm: float) -> tuple[int, float, float]:
    """Return the slice [of d, h, w] with the longest diameter, that diameter, and the short axis there, mm."""
    best = (0, -1.0, -1.0)
    for index, section in enumerate(mask):
        rows, columns = np.flatnonzero(section.any(axis=1)), np.flatnonzero(section.any(axis=0))
        if not len(rows):
            continue
        # No diameter exceeds that of the section's box: most slices need no hull.
        bound = np.hypot((rows[-1] - rows[0] + 1) * row_mm, (columns[-1] - columns[0] + 1) * column_mm)
        if bound <= best[1]:
            continue
        long_axis, short_axis = slice_diameters(section, row_mm, column_mm)
        if long_axis > best[1] + 1e-9:  # rounding does not decide between equal slices
            best = (index, long_axis, short_axis)
    return best


def slice_diameters(section: NDArray[np.bool_], row_mm: float, column_mm: float) -> tuple[float, float]:
    """Measure the long and the short axis of one section.

    Args:
        section: [h, w] bool, at least one pixel set; parts that hang apart are measured as one.
        row_mm, column_mm: pixel spacing along the first and second array axis, mm.

    Returns:
        Long axis: the largest distance between two corners of the section's convex hull, its points being
        the outer corners of pixels, not their centres (one pixel has its diagonal). Short axis: the hull's width
        along the perpendicular of the long axis. Both in mm.
    """
    rows = np.flatnonzero(section.any(axis=1))
    first = section[rows].argmax(axis=1)
    last = section.shape[1] - section[rows, ::-1].argmax(axis=1)  # exclusive: the right edge of the last pixel
    # The hull's corners are corners of the outermost pixels of each row.
    points = np.array(
        [(r + edge, c) for edge in (0, 1) for side in (first, last) for r, c in zip(rows, side, strict=True)]
    )
    points = points * (row_mm, column_mm)
    hull = points[ConvexHull(points).vertices]
    distance = squareform(pdist(hull))
    a, b = np.unravel_index(distance.argmax(), distance.shape)
    direction = (hull[b] - hull[a]) / distance[a, b]
    across = hull @ (-direction[1], direction[0])
    return float(distance[a, b]), float(across.max() - across.min())
