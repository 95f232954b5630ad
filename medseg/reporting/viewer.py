"""What the interactive viewer of a page is given: a reduced image in 8 bit, and every object's voxels on its grid."""

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray

from medseg.reporting.html import packed
from medseg.reporting.tiles import Window, displayed
from medseg.values.geometry import Orientation, orientation_map, spacing_of
from medseg.values.instances import Instance, InstanceSet

#: NIfTI's own order, x fastest: columns to the patient's right, rows to anterior, slices to the head.
NIFTI_ORDER: Orientation = "HAR"
#: Bytes of the packed image in a page; base64 makes a third more of it, and NiiVue and pictures add two million.
BUDGET = 5_000_000
#: Voxels that a browser on a phone still shows.
MAX_VOXELS = 12_000_000
#: HU at grey levels of the embedded CT: fine between -200 and 300, where organs are, coarse in lung and bone.
CT_SCALE = ((-1024, 0), (-200, 36), (300, 212), (1600, 255))
CT_WINDOWS: dict[str, Window] = {
    "Soft tissue": (-160.0, 240.0),
    "Liver": (-45.0, 105.0),
    "Lung": (-1350.0, 150.0),
    "Bone": (-500.0, 1300.0),
}
#: Levels from black to white of a volume whose unit is not known, between its 0.5th and 99.9th percentile.
LEVELS: dict[str, Window] = {"Full range": (0.0, 255.0), "Brighter": (0.0, 150.0), "More contrast": (50.0, 200.0)}
#: Voxels looked at to find percentiles.
SAMPLE = 2_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class _Reduced:
    """The image as a page holds it: [slice, row, column] grey levels, affine to LPS mm, voxels taken together."""

    grey: NDArray[np.uint8]
    affine: NDArray[np.float64]
    factors: tuple[int, int, int]


def viewer_data(volume: Volume, instances: InstanceSet, window: Window | None) -> dict[str, Any]:
    """Return what viewer.js needs, for `for_script`.

    Args:
        volume: the image, any axis order.
        instances: on the same grid in world space.
        window: HU shown as black and white at first, so the image is a CT; None where its unit is not known.

    Returns:
        ``shape`` (x, y, z), ``affine`` ([16], row by row, voxel -> RAS mm) and ``image`` (packed, x fastest) of the
        reduced image; ``windows``: [name, grey level of black, of white]; ``masks``: the objects' bits, packed, one
        after the other, the first in the lowest bit of a byte, each object from a whole byte on; ``objects``: id, name,
        colour, ``box`` (x, y, z of its first voxel, then its size) and centroid in RAS mm.

    Raises:
        GeometryError: the objects lie on another grid.
    """
    shown = orientation_map(volume, NIFTI_ORDER).volume(volume)
    objects = displayed(instances, volume, NIFTI_ORDER)
    scale, windows = _scale(shown.array, window)
    reduced = _reduce(shown, scale)
    boxes, bits = [], []
    for instance in objects:
        offset, mask = _reduce_mask(instance, reduced)
        boxes.append([*offset[::-1], *mask.shape[::-1]])
        bits.append(np.packbits(mask, bitorder="little"))
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    return {
        "shape": list(reduced.grey.shape[::-1]),
        "affine": (to_ras @ reduced.affine @ np.eye(4)[[2, 1, 0, 3]]).ravel().round(6).tolist(),
        "image": packed(reduced.grey.tobytes()),
        "windows": windows,
        "masks": packed(np.concatenate([np.zeros(0, np.uint8), *bits]).tobytes()),
        "objects": [
            {"id": i.id, "name": name, "colour": list(colour), "box": box, "centroid": _centroid_ras(i, objects)}
            for i, name, colour, box in zip(objects, objects.names(), objects.colours(), boxes, strict=True)
        ],
        "factors": list(reduced.factors[::-1]),
    }


def _scale(array: NDArray, window: Window | None) -> tuple[Sequence[tuple[float, float]], list[list[Any]]]:
    """Return value -> grey level as corners of a broken line, and the windows in grey levels."""
    if window is None:
        sample = array.ravel()[:: max(1, array.size // SAMPLE)]
        low, high = (float(v) for v in np.percentile(sample, (0.5, 99.9)))
        return ((low, 0), (max(high, low + 1e-6 * max(1.0, abs(low))), 255)), [[n, *w] for n, w in LEVELS.items()]
    values, levels = zip(*CT_SCALE, strict=True)
    windows = {"As in the pictures": window, **{n: w for n, w in CT_WINDOWS.items() if w != window}}
    return CT_SCALE, [[n, *np.interp(w, values, levels).round(2).tolist()] for n, w in windows.items()]


def _reduce(shown: Volume, scale: Sequence[tuple[float, float]]) -> _Reduced:
    """Average blocks of voxels until the image fits, the axis with the smallest voxels first."""
    spacing = np.array(spacing_of(shown))
    factors = np.ones(3, int)

    def coarser() -> None:
        sizes = np.where(np.array(shown.spatial_shape) > factors, spacing * factors, np.inf)
        # voxels of nearly one size are made coarser together
        factors[sizes <= 1.2 * sizes.min()] += 1

    while np.prod(-(-np.array(shown.spatial_shape) // factors)) > MAX_VOXELS:
        coarser()
    while True:
        grey = _average(shown.array, factors, scale)
        # Quick to compute and close to what the page's gzip needs.
        if len(zlib.compress(grey.tobytes(), 1)) <= BUDGET or (factors >= shown.spatial_shape).all():
            break
        coarser()
    affine = shown.affine.copy()
    affine[:3, 3] += shown.affine[:3, :3] @ ((factors - 1) / 2)
    affine[:3, :3] *= factors
    a, b, c = (int(f) for f in factors)
    return _Reduced(grey=grey, affine=affine, factors=(a, b, c))


def _average(array: NDArray, factors: NDArray[np.int_], scale: Sequence[tuple[float, float]]) -> NDArray[np.uint8]:
    """Return grey levels of the means of blocks; at the far ends blocks repeat the last voxel."""
    values, levels = zip(*scale, strict=True)
    shape = -(-np.array(array.shape) // factors)
    columns = np.minimum(np.arange(shape[2] * factors[2]), array.shape[2] - 1)
    rows = np.minimum(np.arange(shape[1] * factors[1]), array.shape[1] - 1)
    grey = np.empty(shape, np.uint8)
    for z in range(shape[0]):  # slab by slab: a float copy of a large volume would take gigabytes
        slab = array[z * factors[0] : (z + 1) * factors[0]].astype(np.float32).mean(axis=0)
        slab = slab[rows].reshape(shape[1], factors[1], -1).mean(axis=1)
        slab = slab[:, columns].reshape(shape[1], shape[2], factors[2]).mean(axis=2)
        grey[z] = np.interp(slab, values, levels).round()
    return grey


def _reduce_mask(instance: Instance, reduced: _Reduced) -> tuple[list[int], NDArray[np.bool_]]:
    """Return an object on the reduced grid: voxels of which it holds half or more, or the one it holds most of."""
    factors = np.array(reduced.factors)
    start = np.array(instance.offset) // factors
    stop = -(-(np.array(instance.offset) + instance.mask.shape) // factors)
    before = np.array(instance.offset) - start * factors
    after = (stop - start) * factors - before - instance.mask.shape
    padded = np.pad(instance.mask, list(zip(before, after, strict=True)))
    blocks = [n for pair in zip(stop - start, factors, strict=True) for n in pair]
    share = padded.reshape(blocks).sum(axis=(1, 3, 5), dtype=np.int32)
    half = np.prod(factors) / 2
    return start.tolist(), share >= min(half, share.max())


def _centroid_ras(instance: Instance, objects: InstanceSet) -> list[float]:
    counts = [np.count_nonzero(instance.mask, axis=others) for others in ((1, 2), (0, 2), (0, 1))]
    centre = [o + float(np.arange(len(n)) @ n) / n.sum() for o, n in zip(instance.offset, counts, strict=True)]
    left, posterior, head = objects.geometry.affine[:3, :3] @ centre + objects.geometry.affine[:3, 3]
    return [round(float(-left), 3), round(float(-posterior), 3), round(float(head), 3)]


def unpacked(text: str) -> bytes:
    """Return what `packed` holds."""
    return zlib.decompress(base64.b64decode(text), wbits=31)
