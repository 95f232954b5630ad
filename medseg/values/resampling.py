"""Resampling: slices between pixel sizes, objects between grids.

In-plane, source and target cover the same rectangle edge to edge, so a continuous pixel coordinate is multiplied by
``target pixels / source pixels``, and boxes go there and back without rounding.
"""

from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np
from highdicom import VolumeGeometry
from numpy.typing import NDArray
from scipy import ndimage

from medseg.values.geometry import spacing_of
from medseg.values.instances import Instance, InstanceSet, crop_to_object

#: At most this many sample points along an axis of a voxel.
_MOST_SAMPLES = 16


def resampled_size(pixels: int, spacing_mm: float, target_mm: float) -> int:
    """Return how many pixels of about ``target_mm`` cover the extent of ``pixels`` (at least 1)."""
    return max(1, round(pixels * spacing_mm / target_mm))


def line_weights(source: int, target: int, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
    """Return the [stop - start, source] weights of target pixels ``start``..``stop`` along one axis.

    Linear interpolation at the target's pixel centres; when sampling down, a triangle as wide as the target
    pixel, so that thin structures are averaged and not skipped. Rows sum to 1; beyond the outermost source
    centres the edge value is held.
    """
    factor = target / source
    centres = (np.arange(start, target if stop is None else stop) + 0.5) / factor - 0.5
    width = max(1.0, 1.0 / factor)
    low = np.floor(centres - width).astype(np.intp)
    taps = low[:, None] + np.arange(int(np.ceil(2 * width)) + 2)
    weights = np.clip(1 - np.abs(taps - centres[:, None]) / width, 0, None)
    matrix = np.zeros((len(centres), source), np.float32)
    np.add.at(matrix, (np.arange(len(centres))[:, None], np.clip(taps, 0, source - 1)), weights)
    return matrix / matrix.sum(axis=1, keepdims=True)


def resample_plane(array: NDArray, rows: int, columns: int) -> NDArray[np.float32]:
    """Resample the last two axes of [..., H, W] to (rows, columns), edge to edge; float32."""
    out = np.asarray(array, np.float32)
    if out.shape[-2] != rows:
        out = line_weights(out.shape[-2], rows) @ out
    if out.shape[-1] != columns:
        out = out @ line_weights(out.shape[-1], columns).T
    return out


def resample_crop(
    mask: NDArray[np.bool_], offset: tuple[int, int], source: tuple[int, int], target: tuple[int, int]
) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """Resample the last two axes of a crop as if the whole slice, empty outside the crop, were resampled.

    Args:
        mask: [..., h, w], the crop.
        offset: (row, column) of the crop in the source slice.
        source, target: (rows, columns) of the two slices.

    Returns:
        The share of each target pixel in 0..1, [..., h', w'], and the (row, column) of that crop.
    """
    out = mask.astype(np.float32)
    starts = []
    for axis, (first, size, n_in, n_out) in enumerate(zip(offset, mask.shape[-2:], source, target, strict=True)):
        factor = n_out / n_in
        start = max(0, int(np.floor((first - 1) * factor)) - 1)
        stop = min(n_out, int(np.ceil((first + size + 1) * factor)) + 1)
        weights = line_weights(n_in, n_out, start, stop)[:, first : first + size]
        out = weights @ out if axis == 0 else out @ weights.T
        starts.append(start)
    return out, (starts[0], starts[1])


class Resampled(NamedTuple):
    """Objects on another grid, and the ids that they had; those that lay outside are missing."""

    instances: InstanceSet
    kept: tuple[int, ...]


def resample_instances(instances: InstanceSet, grid: VolumeGeometry) -> Resampled:
    """Return the objects on another grid, each resampled by itself, overlaps kept.

    A voxel belongs to an object that covers more than half of it, or half of it and its centre. What is covered is
    measured at points spread over the voxel, finer than the source's voxels, so nothing is skipped between them. Where
    an object is too thin to cover half of any voxel around, the voxels that it covers most are taken, so that vessels
    and plates thinner than the new voxels stay, a voxel wide.

    Args:
        instances: the objects.
        grid: any grid, turned, shifted or of another spacing.

    Returns:
        The objects that reach into the grid, cut at its edge and numbered anew, and the ids they had before.
    """
    to_source = np.linalg.inv(instances.geometry.affine) @ grid.affine
    found, kept = [], []
    for instance in instances:
        resampled = _resample(instance, to_source, grid, spacing_of(instances.geometry))
        if resampled is not None:
            found.append(replace(instance, mask=resampled[0], offset=resampled[1]))
            kept.append(instance.id)
    return Resampled(InstanceSet.build(found, grid, instances.labels), tuple(kept))


def _resample(
    instance: Instance, to_source: NDArray[np.float64], grid: VolumeGeometry, spacing_mm: tuple[float, float, float]
) -> tuple[NDArray[np.bool_], tuple[int, int, int]] | None:
    """Return mask and offset of an object on the new grid, None where it lies outside."""
    crop = crop_to_object(instance.mask)
    assert crop is not None
    mask, inner = crop
    first = np.add(instance.offset, inner)
    # the corners of the object's voxels, not their centres
    corners = np.array(list(product(*((f - 0.5, f + n - 0.5) for f, n in zip(first, mask.shape, strict=True)))))
    there = np.linalg.inv(to_source)
    placed = corners @ there[:3, :3].T + there[:3, 3]
    # one more voxel on each side tells what is thin from what is thick
    low = np.maximum(np.floor(placed.min(axis=0) + 0.5).astype(int) - 1, 0)
    high = np.minimum(np.ceil(placed.max(axis=0) - 0.5).astype(int) + 2, grid.spatial_shape)
    if (high <= low).any():
        return None
    share = _share(mask, first, to_source, low, high - low, _samples(grid, spacing_mm))
    centre = _share(mask, first, to_source, low, high - low, (1, 1, 1))
    chosen = (share > 0.5) | ((share == 0.5) & (centre > 0))
    lost = (share > 0) & ~ndimage.binary_dilation(chosen, np.ones((3, 3, 3)))
    if lost.any():
        chosen |= lost & (share >= 0.5 * ndimage.maximum_filter(share, size=3))
    result = crop_to_object(chosen)
    if result is None:
        return None
    start = low + result[1]
    return result[0], (int(start[0]), int(start[1]), int(start[2]))


def _samples(grid: VolumeGeometry, spacing_mm: tuple[float, float, float]) -> tuple[int, ...]:
    """Return how many points a voxel is sampled at along each axis: two for each source voxel it spans.

    An even number: where new voxels hold whole source voxels, no point lies on an edge and the share is exact.
    """
    counts = [2 * int(np.ceil(size / min(spacing_mm) - 1e-6)) for size in spacing_of(grid)]
    return tuple(min(count, _MOST_SAMPLES) for count in counts)


def _share(
    mask: NDArray[np.bool_],
    first: NDArray[np.intp],
    to_source: NDArray[np.float64],
    low: NDArray[np.intp],
    shape: NDArray[np.intp],
    samples: tuple[int, ...],
) -> NDArray[np.float32]:
    """Return the share of each voxel of a window (``low``, ``shape``) of the new grid that the mask covers."""
    padded = np.pad(mask, 1)  # a point outside the crop falls on its empty border
    axes = [np.arange(start, start + n) for start, n in zip(low, shape, strict=True)]
    hits = np.zeros(shape, np.uint16)
    steps = [(np.arange(n) + 0.5) / n - 0.5 for n in samples]
    for shift in product(*steps):
        index = []
        for axis in range(3):
            row = to_source[axis]
            parts = [row[k] * (axes[k] + shift[k]) for k in range(3)]
            position = parts[0][:, None, None] + parts[1][None, :, None] + parts[2][None, None, :] + row[3]
            nearest = np.floor(position + 0.5).astype(np.int32) - int(first[axis]) + 1
            index.append(np.clip(nearest, 0, padded.shape[axis] - 1))
        hits += padded[index[0], index[1], index[2]]
    return hits.astype(np.float32) / float(np.prod(samples))
