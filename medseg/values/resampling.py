"""Exact in-plane resampling between pixel sizes.

Source and target cover the same rectangle edge to edge, so a continuous pixel coordinate is multiplied by
``target pixels / source pixels``, and boxes go there and back without rounding.
"""

import numpy as np
from numpy.typing import NDArray


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
