"""What is measured of every object: size, place, intensities, diameters, surface, neighbours.

Long and short axis follow the way lesions are measured on a workstation (RECIST 1.1, Eisenhauer et al., Eur J Cancer
2009, 45:228): the longest diameter in one slice of the acquisition, and the extent perpendicular to it. Slices are the
first array axis of the grid, as `medseg.io` reads them; where they are not axial, these two are NaN.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from highdicom import Volume, VolumeGeometry
from numpy.typing import NDArray

from medseg.errors import GeometryError
from medseg.metrics.shape import longest_axes, maximum_diameter, outlines, sphericity, surface_and_volume
from medseg.progress import Track, silent
from medseg.values.geometry import IDENTITY, describe_grid, grid_map, spacing_of
from medseg.values.instances import Instance, InstanceSet
from medseg.values.pairs import PairTable

NAN = float("nan")
#: How far slices may be tilted from axial for a long axis to be measured in them, degrees.
AXIAL_DEGREES = 20.0
#: Share of an object's voxels that a class must hold for the object to lie in it.
INSIDE = 0.5


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
        long_axis_mm: largest distance between two outer pixel corners within one slice, in the slice where it is
            longest; NaN where the slices are more than `AXIAL_DEGREES` from axial.
        short_axis_mm: width of that slice's convex hull along the perpendicular of the long axis.
        axis_slice: array index of that slice; None where there is none.
        axis_reason: why the axes are NaN, else empty.
        max_diameter_mm: largest distance between two outer voxel corners in space.
        surface_mm2: area of the marching-cubes surface (see `medseg.metrics.shape`).
        sphericity: surface of the ball of the volume that this surface encloses, over the surface; 0..1.
        touches_border: whether the object reaches the first or last voxel along any axis, so that it may go on
            beyond the image.
        overlaps: other instance id -> shared volume in ml, where any.
        class_overlaps: name of another label -> volume in ml shared with all its objects together, where any.
        lies_in: names of the other labels that hold at least half of the object's voxels.
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
    axis_slice: int | None
    axis_reason: str
    max_diameter_mm: float
    surface_mm2: float
    sphericity: float
    touches_border: bool
    overlaps: dict[int, float] = field(default_factory=dict)
    class_overlaps: dict[str, float] = field(default_factory=dict)
    lies_in: tuple[str, ...] = ()


def measure(instances: InstanceSet, volume: Volume | None, *, track: Track = silent) -> list[Measurement]:
    """Measure every object.

    Args:
        instances: the objects.
        volume: the image on the same grid in world space, or None: intensities are NaN. Where its axes are ordered
            otherwise than those of the objects, its own count: slices are those of the image, and so are indices.
        track: reports progress over objects.

    Returns:
        One measurement per instance, in the order of their ids.

    Raises:
        GeometryError: the image lies on another grid.
    """
    if volume is not None:
        instances = _on_image(instances, volume)
    pairs = PairTable.between(instances, instances)
    shared: dict[int, dict[int, int]] = {i.id: {} for i in instances}
    for a, b, voxels in zip(pairs.reference, pairs.prediction, pairs.intersection, strict=True):
        if a != b:
            shared[int(a) + 1][int(b) + 1] = int(voxels)
    array = None if volume is None else volume.array
    return [
        _measure_one(instance, name, instances, array, shared[instance.id])
        for instance, name in track(list(zip(instances, instances.names(), strict=True)), "measuring")
    ]


def degrees_from_axial(geometry: VolumeGeometry) -> float:
    """Return the angle between a grid's slices (its first array axis being their normal) and axial ones, 0..90."""
    normal = geometry.affine[:3, 0]
    return math.degrees(math.acos(min(1.0, abs(normal[2]) / float(np.linalg.norm(normal)))))


def _on_image(instances: InstanceSet, volume: Volume) -> InstanceSet:
    axis_map = grid_map(instances.geometry, volume)
    if axis_map is None:
        raise GeometryError(
            f"the image lies on another grid ({describe_grid(volume)}) than the objects "
            f"({describe_grid(instances.geometry)}); measure on the image that the objects were drawn on"
        )
    return instances if axis_map == IDENTITY else instances.moved(axis_map)


def _measure_one(
    instance: Instance, name: str, instances: InstanceSet, image: NDArray | None, shared: dict[int, int]
) -> Measurement:
    geometry, labels = instances.geometry, instances.labels
    spacing = spacing_of(geometry)
    voxel_ml = float(np.prod(spacing)) / 1000
    start = instance.offset
    # Voxels per slice, per row and per column: box and centroid without a list of all voxels.
    counts = [np.count_nonzero(instance.mask, axis=others) for others in ((1, 2), (0, 2), (0, 1))]
    voxels = int(counts[0].sum())
    centre = np.array(start) + [np.arange(len(n)) @ n / voxels for n in counts]
    centroid = geometry.affine[:3, :3] @ centre + geometry.affine[:3, 3]
    # Means of int16 or float32 voxels are taken in double precision.
    values = None if image is None else image[instance.window][instance.mask].astype(np.float64)
    low, high = (np.array(start) + [int(np.flatnonzero(n)[end]) for n in counts] for end in (0, -1))
    hulls = outlines(instance.mask, spacing[1], spacing[2])
    tilt = degrees_from_axial(geometry)
    axes = longest_axes(hulls) if tilt <= AXIAL_DEGREES + 1e-6 else None
    surface_mm2, enclosed_mm3 = surface_and_volume(instance.mask, spacing)
    in_class = _shared_with_classes(instance, instances, shared)
    return Measurement(
        id=instance.id,
        label=labels[instance.label].name,
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
        long_axis_mm=NAN if axes is None else axes.long_mm,
        short_axis_mm=NAN if axes is None else axes.short_mm,
        axis_slice=None if axes is None else start[0] + axes.slice,
        axis_reason="" if axes else f"slices are {tilt:.1f} degrees from axial, more than {AXIAL_DEGREES:g}",
        max_diameter_mm=maximum_diameter(hulls, spacing[0]),
        surface_mm2=surface_mm2,
        sphericity=sphericity(surface_mm2, enclosed_mm3),
        touches_border=bool((low == 0).any() or (high == np.array(geometry.spatial_shape) - 1).any()),
        overlaps={other: n * voxel_ml for other, n in shared.items()},
        class_overlaps={labels[label].name: n * voxel_ml for label, n in in_class.items()},
        lies_in=tuple(labels[label].name for label, n in in_class.items() if n >= INSIDE * voxels),
    )


def _shared_with_classes(instance: Instance, instances: InstanceSet, shared: dict[int, int]) -> dict[int, int]:
    """Return label id -> voxels that an object shares with the union of that label's objects, other labels only."""
    objects: dict[int, list[Instance]] = {}
    for other in shared:
        if instances[other].label != instance.label:
            objects.setdefault(instances[other].label, []).append(instances[other])
    return {
        # Objects of one label may overlap as well: a voxel counts once.
        label: shared[group[0].id] if len(group) == 1 else _voxels_in_union(instance, group)
        for label, group in sorted(objects.items())
    }


def _voxels_in_union(instance: Instance, others: Sequence[Instance]) -> int:
    union = np.zeros(instance.mask.shape, np.bool_)
    for other in others:
        start = np.subtract(other.offset, instance.offset)
        low = np.maximum(start, 0)
        high = np.minimum(start + other.mask.shape, instance.mask.shape)
        here = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        there = tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))
        union[here] |= other.mask[there]
    return int(np.count_nonzero(union & instance.mask))
