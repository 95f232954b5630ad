"""Ellipsoids in a volume and what a detector would report of them, for the tests of linking."""

from dataclasses import dataclass

import numpy as np
from highdicom import VolumeGeometry
from numpy.typing import NDArray

from medseg.values.detections import Detections
from medseg.values.geometry import spacing_of

MASK_SIZE = 28
# The mask of an ellipse in its own box is that of a disc: 0.5 on the circle, falling over a tenth of the radius.
_AXIS = (np.arange(MASK_SIZE) + 0.5) / MASK_SIZE * 2 - 1
DISC = (1 / (1 + np.exp((np.hypot(_AXIS[:, None], _AXIS[None]) - 1) * 20))).astype(np.float32)


@dataclass(frozen=True)
class Ellipsoid:
    """Centre and semi-axes in mm along (slice, row, column), and a label."""

    centre_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]
    label: int

    def mask(self, geometry: VolumeGeometry) -> NDArray[np.bool_]:
        """Return the full-size mask: voxels whose centre lies inside (index 0 is at half a voxel)."""
        axes = [(np.arange(n) + 0.5) * s for n, s in zip(geometry.spatial_shape, spacing_of(geometry), strict=True)]
        grid = np.meshgrid(*axes, indexing="ij", sparse=True)
        parts = zip(grid, self.centre_mm, self.radii_mm, strict=True)
        return sum(((x - c) / r) ** 2 for x, c, r in parts) <= 1

    def box(self, z_mm: float, spacing_mm: tuple[float, float, float]) -> NDArray[np.float64] | None:
        """Return the box (pixels) of the cross-section at a height; None where there is none."""
        left = 1 - ((z_mm - self.centre_mm[0]) / self.radii_mm[0]) ** 2
        if left <= 0:
            return None
        row, column = self.centre_mm[1] / spacing_mm[1], self.centre_mm[2] / spacing_mm[2]
        h, w = (r / s * np.sqrt(left) for r, s in zip(self.radii_mm[1:], spacing_mm[1:], strict=True))
        return np.array([column - w, row - h, column + w, row + h])


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What goes wrong: SD of box edges in pixels (less for boxes under 10), shares missed, invented and doubled."""

    jitter: float = 0.0
    misses: float = 0.0
    false_positives: float = 0.0
    duplicates: float = 0.0


def random_ellipsoids(
    rng: np.random.Generator, geometry: VolumeGeometry, label: int, count: int, radius_mm: tuple[float, float]
) -> list[Ellipsoid]:
    """Place ellipsoids in pairs that touch in the plane, pairs apart from each other."""
    size = np.array(geometry.spatial_shape) * spacing_of(geometry)
    placed: list[Ellipsoid] = []
    for _ in range(10000):
        if len(placed) == count:
            return placed
        r = rng.uniform(*radius_mm, 3)
        reach = np.array([r[0], r[1], 3 * r[2]])
        centre = rng.uniform(reach, size - reach)
        centres = np.array([p.centre_mm for p in placed]).reshape(-1, 3)
        reaches = np.array([p.radii_mm for p in placed]).reshape(-1, 3) * (1, 1, 3)
        if ((np.abs(centre - centres) - reach - reaches).max(axis=1) > 2).all():
            for side in (-1, 1)[: count - len(placed)]:
                placed.append(Ellipsoid((centre[0], centre[1], centre[2] + side * r[2]), (r[0], r[1], r[2]), label))
    raise AssertionError("the volume is too small for that many ellipsoids")


def simulate(
    rng: np.random.Generator, geometry: VolumeGeometry, objects: list[Ellipsoid], noise: Noise
) -> list[Detections]:
    """Return the detections of every slice."""
    spacing_mm = spacing_of(geometry)
    depth, rows, columns = geometry.spatial_shape
    result = []
    for z in range(depth):
        boxes, scores, labels = [], [], []
        for thing in objects:
            box = thing.box((z + 0.5) * spacing_mm[0], spacing_mm)
            if box is None:
                continue
            if rng.random() < noise.false_positives:
                w, h = rng.uniform(3, 12, 2)
                x, y = rng.uniform(0, columns), rng.uniform(0, rows)
                boxes.append([x - w, y - h, x + w, y + h])
                scores.append(rng.uniform(0.2, 0.5))
                labels.append(thing.label)
            if rng.random() < noise.misses:
                continue
            jitter = noise.jitter * min(1.0, (box[2:] - box[:2]).min() / 10)
            for copy in range(2 if rng.random() < noise.duplicates else 1):
                boxes.append(box + rng.normal(0, jitter, 4))
                scores.append(np.clip(rng.normal(0.85, 0.08), 0.3, 1) - 0.2 * copy)
                labels.append(thing.label)
        n = len(scores)
        part = Detections(
            slice_index=z,
            boxes=np.array(boxes, np.float32).reshape(-1, 4),
            scores=np.array(scores, np.float32),
            labels=np.array(labels, np.int64),
            masks=np.repeat(DISC[None], n, axis=0),
        )
        keep = (part.boxes[:, 2] > part.boxes[:, 0]) & (part.boxes[:, 3] > part.boxes[:, 1])
        result.append(part[keep])
    return result
