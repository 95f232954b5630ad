"""Crowded synthetic volumes: ellipsoids and winding tubes that touch, as a truth for linking."""

from dataclasses import dataclass

import numpy as np
from highdicom import VolumeGeometry
from numpy.typing import NDArray
from scipy import ndimage

from medseg.errors import ConfigError
from medseg.labels import Label, LabelTable
from medseg.values.instances import Instance, InstanceSet, crop_to_object

#: Share of the objects that are set against one that stands already, and of those that are tubes.
BESIDE, TUBES = 0.7, 0.3
#: An object is set elsewhere when more of it than this would lie in others, or of another in it.
LOST = 0.3
#: Objects tried for each that is wanted.
TRIES = 60


@dataclass(eq=False)
class _Body:
    """Distance of the voxels of a window from an object's middle over that of its surface: inside below 1."""

    distance: NDArray[np.float32]
    offset: NDArray[np.intp]
    mask: NDArray[np.bool_]
    centre_mm: NDArray[np.float64]
    radius_mm: float


def crowded_stack(
    *,
    seed: int,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    count: int,
    radius_mm: tuple[float, float] = (5.0, 13.0),
) -> InstanceSet:
    """Fill a volume with objects of one label, ``lesion``, most of which touch another; none overlap.

    Turned ellipsoids with semi-axes between the two radii, and tubes along the slice axis (radius from the lower
    half of that range, several times as long as wide) that wind sideways. Where two would overlap, each voxel is
    of the one whose middle is nearer in units of its size, so they meet in a flat contact. Memory grows with the
    objects, not with the volume.

    Args:
        seed: 0 or more; the same arguments give the same voxels.
        shape: (slices, rows, columns).
        spacing_mm: of the same axes.
        count: objects wanted.
        radius_mm: smallest and largest semi-axis.

    Raises:
        ConfigError: the volume is too small for that many objects.
    """
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = np.diag(spacing_mm)[::-1]
    bodies: list[_Body] = []
    for _ in range(TRIES * count):
        if len(bodies) == count:
            break
        body = _draw(rng, bodies, np.array(shape), np.array(spacing_mm), radius_mm)
        if body is not None:
            _place(body, bodies)
    if len(bodies) < count:
        raise ConfigError(f"count {count}: only {len(bodies)} objects found room; use fewer, or a larger shape {shape}")
    labels = LabelTable([Label(id=1, name="lesion", colour=(200, 60, 60), kind="ids")])
    instances = []
    for body in bodies:
        crop = crop_to_object(_largest_piece(body.mask))
        assert crop is not None
        a, b, c = (int(o + s) for o, s in zip(body.offset, crop[1], strict=True))
        instances.append(Instance(id=1, label=1, mask=crop[0], offset=(a, b, c)))
    return InstanceSet.build(instances, VolumeGeometry(affine, shape, "PATIENT"), labels)


def _draw(
    rng: np.random.Generator,
    bodies: list[_Body],
    shape: NDArray[np.intp],
    spacing_mm: NDArray[np.float64],
    radius_mm: tuple[float, float],
) -> _Body | None:
    """Return an object somewhere, or beside one that stands; None where less than 8 of its voxels are inside."""
    low, high = radius_mm
    tube = rng.random() < TUBES
    radii = np.full(3, rng.uniform(low, (low + high) / 2)) if tube else rng.uniform(low, high, 3)
    half_length = radii[0] * rng.uniform(2.5, 5) if tube else float(radii.max())
    centre = rng.uniform(0, shape * spacing_mm)
    if bodies and rng.random() < BESIDE:
        other = bodies[int(rng.integers(len(bodies)))]
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        centre = other.centre_mm + direction * (other.radius_mm + float(radii.mean())) * rng.uniform(0.8, 1.05)
    sway, phase, period = rng.uniform(-0.8, 0.8, 2) * radii[0], rng.uniform(0, 2 * np.pi), rng.uniform(3, 6) * radii[0]
    lean = rng.uniform(-0.5, 0.5, 2)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]

    reach = np.full(3, radii.max())
    if tube:
        reach = np.array([half_length, *(radii[0] + np.abs(sway) + np.abs(lean) * half_length)])
    first = np.maximum(0, np.floor((centre - reach) / spacing_mm - 0.5)).astype(np.intp)
    last = np.minimum(shape, np.ceil((centre + reach) / spacing_mm + 0.5).astype(np.intp))
    if (last <= first).any():
        return None
    z, y, x = np.meshgrid(
        *((np.arange(a, b) + 0.5) * s - c for a, b, s, c in zip(first, last, spacing_mm, centre, strict=True)),
        indexing="ij", sparse=True,
    )  # fmt: skip
    if tube:
        along = np.sin(2 * np.pi * z / period + phase) - np.sin(phase)
        aside = (y - sway[0] * along - lean[0] * z) ** 2 + (x - sway[1] * along - lean[1] * z) ** 2
        beyond = np.maximum(0.0, np.abs(z) - (half_length - radii[0]))  # round ends
        distance = np.sqrt(aside + beyond**2) / radii[0]
    else:
        distance = np.sqrt(sum(((t[0] * z + t[1] * y + t[2] * x) / r) ** 2 for t, r in zip(turn, radii, strict=True)))
    mask = distance < 1
    if np.count_nonzero(mask) < 8:
        return None
    radius = float(radii.mean())
    return _Body(distance=distance.astype(np.float32), offset=first, mask=mask, centre_mm=centre, radius_mm=radius)


def _place(body: _Body, bodies: list[_Body]) -> None:
    """Add an object, shared voxels going to the nearer middle, unless it or another would lose too much."""
    mask = body.mask.copy()
    losers = []
    for other in bodies:
        low = np.maximum(body.offset, other.offset)
        high = np.minimum(body.offset + body.mask.shape, other.offset + other.mask.shape)
        if (high <= low).any():
            continue
        here, there = (
            tuple(slice(a, b) for a, b in zip(low - b.offset, high - b.offset, strict=True)) for b in (body, other)
        )
        shared = body.mask[here] & other.mask[there]
        nearer = shared & (body.distance[here] < other.distance[there])
        if np.count_nonzero(nearer) > LOST * np.count_nonzero(other.mask):
            return
        mask[here] &= ~(shared & ~nearer)
        losers.append((other, there, nearer))
    if np.count_nonzero(mask) < (1 - LOST) * np.count_nonzero(body.mask):
        return
    body.mask = mask
    for other, there, nearer in losers:
        other.mask[there] &= ~nearer
    bodies.append(body)


def _largest_piece(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    pieces, count = ndimage.label(mask)
    return mask if count == 1 else pieces == 1 + int(np.argmax(np.bincount(pieces[mask])[1:]))
