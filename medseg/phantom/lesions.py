"""Lesions inside organs: sizes, shapes, contrasts, touching pairs and necrotic cores."""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.phantom.anatomy import Torso
from medseg.phantom.shapes import Array, Frame, Window, occupancy, rotation

#: How many a patient gets, if there is room.
LESIONS = (6, 12)
DIAMETER_MM = (6.0, 30.0)
CONTRAST_HU = (15.0, 60.0)
CNR = (1.0, 4.0)
#: Contrast over noise times the square root of the pixels in the largest section. Below about 5 nobody sees a
#: lesion (A. Rose, J. Opt. Soc. Am. 38 (1948) 196); a reader who outlines it with confidence needs about twice that.
ROSE = 10.0
#: Lesions of more than this diameter carry a necrotic core.
NECROSIS_FROM_MM = 20.0
#: Largest lesion that each organ gets, and how often it is chosen.
HOSTS = {"liver": (30.0, 0.40), "spleen": (26.0, 0.24), "kidney_left": (22.0, 0.18), "kidney_right": (22.0, 0.18)}
#: Free parenchyma between lesions that do not touch.
GAP_MM = 7.0
#: A lesion's centre lies this share of its diameter deep: some reach the organ's surface and are cut by it.
_DEPTH = 0.375
_MIN_VOXELS = 4
#: Layouts that are tried until one has enough lesions and a touching pair (a small field of view may have no room).
_ATTEMPTS = 8


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """One lesion as it was drawn.

    Attributes:
        host: name of the organ that holds it.
        diameter_mm: of the sphere of the same volume, partial voxels counted.
        contrast_hu: lesion minus organ, signed; of the rim where there is a core.
        cnr: absolute contrast over the SD of the noise.
        touches: positions (0-based) of the lesions that share a face with it.
        mask: [d, h, w] bool, voxel centres inside.
        offset: (slice, row, column) of the mask's first voxel.
        core: bool mask of its necrosis in the same window, or None.
    """

    host: str
    diameter_mm: float
    contrast_hu: float
    cnr: float
    mask: NDArray[np.bool_] = field(repr=False)
    offset: tuple[int, int, int]
    touches: tuple[int, ...] = ()
    core: NDArray[np.bool_] | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class _Blob:
    """A smooth irregular body: an ellipsoid whose radius varies with direction."""

    centre: NDArray[np.float64]  # (x, y, z) mm on the untilted, unwarped grid
    diameter: float
    matrix: NDArray[np.float32]  # into the unit sphere
    bumps: tuple[tuple[float, NDArray[np.float32]], ...]

    def rho(self, grid: Frame) -> Array:
        """Return the relative radius: 1 on the surface."""
        offset = [g - np.float32(c) for g, c in zip((grid.x, grid.y, grid.z), self.centre, strict=True)]
        q = [sum(self.matrix[i, j] * offset[j] for j in range(3)) for i in range(3)]
        length = np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2) + np.float32(1e-4)
        factor = np.ones_like(length)
        for amplitude, direction in self.bumps:
            along = (q[0] * direction[0] + q[1] * direction[1] + q[2] * direction[2]) / length
            factor += np.float32(amplitude) * along**3
        return (length * factor).astype(np.float32)


def _draw_blob(rng: np.random.Generator, centre: NDArray[np.float64], diameter: float) -> _Blob:
    axes = np.exp(rng.normal(0, 0.16, 3).clip(-0.3, 0.3))
    axes /= np.prod(axes) ** (1 / 3)
    turn = rotation(*rng.uniform(0, 180, 3))
    matrix = (np.diag(2 / (diameter * axes)) @ turn).astype(np.float32)
    bumps = []
    for _ in range(3):
        direction = rng.normal(size=3)
        bumps.append((float(rng.normal(0, 0.13)), (direction / np.linalg.norm(direction)).astype(np.float32)))
    return _Blob(centre=centre, diameter=diameter, matrix=matrix, bumps=tuple(bumps))


class _Site:
    """The grid without tilt and warp, on which lesions keep the size they were drawn with."""

    def __init__(self, frame: Frame, torso: Torso, labels: dict[str, int]):
        self.axes = frame.axes
        self.owner = torso.owner
        self.labels = labels
        self.step = [float(a[1] - a[0]) for a in frame.axes]
        self.voxel_mm3 = float(np.prod(self.step))
        self.depths: dict[str, tuple[tuple[int, int, int], Array]] = {}
        windows = ndimage.find_objects(torso.owner, max_label=max(labels.values()))
        for name in HOSTS:
            window = windows[labels[name] - 1]
            if window is None:
                continue
            mask = np.pad(torso.owner[window] == labels[name], 1)
            depth = ndimage.distance_transform_edt(mask, sampling=self.step)[1:-1, 1:-1, 1:-1]
            start = (window[0].start, window[1].start, window[2].start)
            self.depths[name] = start, depth.astype(np.float32)

    def crop(self, centre: NDArray[np.float64], reach: float) -> tuple[Window, Frame]:
        window = []
        for axis, c in zip(self.axes, centre[::-1], strict=True):
            start, stop = np.searchsorted(axis, [c - reach, c + reach])
            window.append(slice(max(int(start) - 1, 0), int(stop) + 1))
        parts = (window[0], window[1], window[2])
        z, y, x = (axis[part] for axis, part in zip(self.axes, parts, strict=True))
        gz, gy, gx = np.meshgrid(z, y, x, indexing="ij")
        return parts, Frame(x=gx, y=gy, z=gz, axes=(z, y, x), margin_mm=(0.0, 0.0, 0.0))

    def candidates(self, host: str, depth_mm: float) -> NDArray[np.intp]:
        """Return [n, 3] voxels of a host that lie at least this deep."""
        start, depth = self.depths[host]
        return np.argwhere(depth >= depth_mm) + start

    def position(self, voxel: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.float64]:
        """Return a point (x, y, z) within a voxel."""
        shift = rng.uniform(-0.5, 0.5, 3)
        return np.array([self.axes[a][voxel[a]] + shift[a] * self.step[a] for a in (2, 1, 0)], np.float64)


def _is_free(centre: NDArray[np.float64], diameter: float, others: list[_Blob]) -> bool:
    """Tell whether a lesion keeps its distance from all others, bumps and flattening allowed for."""
    return all(np.linalg.norm(centre - b.centre) - 0.6 * (b.diameter + diameter) > GAP_MM for b in others)


def _place(
    rng: np.random.Generator, site: _Site, diameter: float, placed: list[tuple[str, _Blob]], hosts: list[str]
) -> tuple[str, _Blob] | None:
    """Find room for one lesion away from all others, or None."""
    for host in hosts:
        room = site.candidates(host, _DEPTH * diameter)
        for _ in range(24 if len(room) else 0):
            centre = site.position(room[rng.integers(len(room))], rng)
            if _is_free(centre, diameter, [b for _, b in placed]):
                return host, _draw_blob(rng, centre, diameter)
    return None


def _place_partner(
    rng: np.random.Generator, site: _Site, host: str, first: _Blob, diameter: float,
    placed: list[tuple[str, _Blob]],
) -> _Blob | None:  # fmt: skip
    """Find room for a lesion that touches ``first``, or None."""
    start, depth = site.depths[host]
    distance = 0.5 * (first.diameter + diameter)
    for attempt in range(60):
        direction = rng.normal(size=3)
        direction[2] *= 0.6  # more often side by side than one above the other
        direction /= np.linalg.norm(direction)
        centre = first.centre + direction * distance * rng.uniform(0.84, 0.96) * 0.995**attempt
        voxel = [int(np.abs(axis - c).argmin()) - s for axis, c, s in zip(site.axes, centre[::-1], start, strict=True)]
        if any(not 0 <= v < n for v, n in zip(voxel, depth.shape, strict=True)):
            continue
        if depth[tuple(voxel)] < _DEPTH * diameter:
            continue
        if _is_free(centre, diameter, [b for _, b in placed if b is not first]):
            return _draw_blob(rng, centre, diameter)
    return None


def _layout(rng: np.random.Generator, site: _Site) -> tuple[list[tuple[str, _Blob]], list[tuple[int, int]]]:
    """Draw how many lesions there are, how large, where, and which of them touch."""
    count = int(rng.integers(LESIONS[0], LESIONS[1] + 1))
    low, high = DIAMETER_MM
    # One diameter from each of `count` equal intervals: uniform, and every case has small and large ones.
    steps = (np.arange(count) + rng.uniform(0.05, 0.95, count)) / count
    diameters = sorted((low + 0.4 + (high - low - 1.6) * steps).tolist(), reverse=True)
    placed: list[tuple[str, _Blob]] = []
    pairs: list[tuple[int, int]] = []
    hosts = [name for name in HOSTS if name in site.depths]
    weight = np.array([HOSTS[name][1] for name in hosts])
    for _ in range(2 if count >= 7 and rng.random() < 0.5 else 1):
        # Pairs of middling size, alike enough that neither is a bump on the other.
        first = int(rng.integers(0, max(1, min(len(diameters) - 1, count // 2))))
        a, b = diameters[first], diameters[first + 1]
        for host in sorted(hosts, key=lambda name: rng.random() > HOSTS[name][1] * 2):
            if a > HOSTS[host][0]:
                continue
            found = _place(rng, site, a, placed, [host])
            partner = _place_partner(rng, site, host, found[1], b, [*placed, found]) if found else None
            if found and partner:
                pairs.append((len(placed), len(placed) + 1))
                placed += [found, (host, partner)]
                del diameters[first : first + 2]
                break
    for diameter in diameters:
        order = list(rng.choice(hosts, len(hosts), replace=False, p=weight / weight.sum())) if hosts else []
        fitting = [str(h) for h in order if diameter <= HOSTS[str(h)][0]]
        found = _place(rng, site, diameter, placed, fitting)
        if found:
            placed.append(found)
    return placed, pairs


def _contrast(rng: np.random.Generator, diameter: float, noise_sd: float, pixel_mm: float) -> float:
    """Draw an unsigned contrast in HU: CNR uniform over what its size and the ranges allow."""
    pixels = np.pi / 4 * diameter**2 / pixel_mm**2
    low = max(CNR[0] * noise_sd, CONTRAST_HU[0], ROSE / np.sqrt(pixels) * noise_sd)
    high = min(CNR[1] * noise_sd, CONTRAST_HU[1])
    return float(rng.uniform(min(low, high), high))


def add_lesions(
    rng: np.random.Generator, frame: Frame, torso: Torso, labels: dict[str, int], *, noise_sd: float
) -> tuple[Array, tuple[Lesion, ...]]:
    """Draw lesions into a torso.

    Args:
        rng: the source of all variation.
        frame: the patient's grid.
        torso: the organs; not changed.
        labels: label id of each organ by name.
        noise_sd: SD of the noise that will be added, HU.

    Returns:
        HU with the lesions, and their truth: 6 to 12 lesions, at least two that touch, unless so little of
        the organs lies in the field of view that there is no room.
    """
    site = _Site(frame, torso, labels)
    best: tuple[tuple[bool, int], Array, tuple[Lesion, ...]] | None = None
    for _ in range(_ATTEMPTS):
        hu = torso.hu.copy()
        lesions = _draw(rng, site, torso, hu, noise_sd)
        rank = any(lesion.touches for lesion in lesions), min(len(lesions), LESIONS[0])
        if best is None or rank > best[0]:
            best = rank, hu, lesions
        if rank == (True, LESIONS[0]):
            break
    assert best is not None
    return best[1], best[2]


def _draw(rng: np.random.Generator, site: _Site, torso: Torso, hu: Array, noise_sd: float) -> tuple[Lesion, ...]:
    """Lay out and paint one set of lesions into ``hu``."""
    blobs, pairs = _layout(rng, site)
    hypo = rng.uniform(0.7, 0.95)  # most lesions of a patient behave alike
    partner = {b: a for a, b in pairs}
    contrasts: list[float] = []
    drawn: list[Lesion] = []
    for position, (host, blob) in enumerate(blobs):
        size = _contrast(rng, blob.diameter, noise_sd, site.step[1])
        sign = -1.0 if rng.random() < hypo else 1.0
        if position in partner:
            # Of one kind with its neighbour, a little brighter or darker.
            other = contrasts[partner[position]]
            sign = float(np.sign(other))
            low, high = max(CONTRAST_HU[0], CNR[0] * noise_sd), min(CONTRAST_HU[1], CNR[1] * noise_sd)
            size = float(np.clip(abs(other) + rng.uniform(4, 10) * rng.choice([-1, 1]), low, high))
        contrasts.append(sign * size)
        neighbours = [blobs[b if a == position else a][1] for a, b in pairs if position in (a, b)]
        lesion = _paint(rng, site, torso, hu, host, blob, neighbours, contrasts[-1], noise_sd)
        if lesion is not None:
            drawn.append(lesion)
    touching = [
        tuple(j for j, other in enumerate(drawn) if other is not lesion and share_a_face(lesion, other))
        for lesion in drawn
    ]
    return tuple(replace(lesion, touches=touches) for lesion, touches in zip(drawn, touching, strict=True))


def share_a_face(a: Lesion, b: Lesion) -> bool:
    """Tell whether a voxel of one lesion lies face to face with a voxel of the other."""
    shift = [ob - oa for oa, ob in zip(a.offset, b.offset, strict=True)]
    near = all(-nb <= s <= na for s, na, nb in zip(shift, a.mask.shape, b.mask.shape, strict=True))
    if not near:
        return False
    grown = ndimage.binary_dilation(np.pad(a.mask, 1))
    voxels = np.argwhere(b.mask) + shift + 1
    voxels = voxels[((voxels >= 0) & (voxels < grown.shape)).all(axis=1)]
    return bool(grown[tuple(voxels.T)].any())


def _paint(
    rng: np.random.Generator, site: _Site, torso: Torso, into: Array, host: str, blob: _Blob,
    neighbours: list[_Blob], contrast: float, noise_sd: float,
) -> Lesion | None:  # fmt: skip
    """Paint one lesion; None where too little of it lies inside its host."""
    window, grid = site.crop(blob.centre, 0.9 * blob.diameter + max(site.step))
    rho = blob.rho(grid)
    f = (rho - 1) * np.float32(blob.diameter / 2)
    for other in neighbours:  # bodies that touch flatten each other, as bubbles do
        f = np.maximum(f, 0.5 * (rho * np.float32(blob.diameter / 2) - other.rho(grid) * np.float32(other.diameter / 2)
                                 - np.float32(0.5 * (blob.diameter - other.diameter))))  # fmt: skip
    label = site.labels[host]
    organ = torso.owner[window] == label
    share = occupancy(f) * organ
    mask = (f < 0) & organ
    core_radius = rng.uniform(0.45, 0.6)
    diameter = float(np.cbrt(6 / np.pi * share.sum() * site.voxel_mm3))
    if mask.sum() < _MIN_VOXELS or not DIAMETER_MM[0] <= diameter <= DIAMETER_MM[1]:
        return None
    parts, count = ndimage.label(mask)
    if count > 1:  # a sliver cut off by the organ's surface is not part of the lesion
        keep = parts == np.argmax(np.bincount(parts.ravel())[1:]) + 1
        share *= keep | ~mask
        mask = keep
    base = torso.organ_hu[label]
    hu = into[window]
    deep = ndimage.binary_erosion(organ)
    hu += share * np.where(deep, base + contrast - hu, contrast)
    core = None
    if diameter > NECROSIS_FROM_MM:
        inner = (rho - np.float32(core_radius)) * np.float32(blob.diameter / 2)
        inner = np.maximum(inner, f + np.float32(2.0 + 0.5 * site.step[1]))
        core = inner < 0
        darker = -rng.uniform(22, 45) if base + contrast > 55 else -15.0
        hu += occupancy(inner) * organ * np.float32(darker)
        core &= ndimage.binary_erosion(mask)
        core = core if core.sum() >= 2 * _MIN_VOXELS else None
    return Lesion(
        host=host, diameter_mm=diameter, contrast_hu=contrast, cnr=abs(contrast) / noise_sd, mask=mask,
        offset=(window[0].start, window[1].start, window[2].start), core=core,
    )  # fmt: skip
