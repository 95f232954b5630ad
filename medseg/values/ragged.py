"""Many ranges of different lengths at once, without a loop."""

import numpy as np
from numpy.typing import NDArray


def spans(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Return the numbers of N ranges, one range after the other.

    Args:
        starts: [N] first number of each range.
        sizes: [N] how many numbers it has, 0 or more.

    Returns:
        Which range each number belongs to, and the number; [sum of sizes] each.
    """
    owner = np.repeat(np.arange(len(sizes)), sizes)
    ends = np.cumsum(sizes)
    return owner, np.arange(len(owner)) + np.repeat(starts - (ends - sizes), sizes)


def blocks(sizes: NDArray[np.int64], most: int) -> list[slice]:
    """Cut N consecutive items into slices that hold less than ``most`` besides the first item of each."""
    number = np.cumsum(sizes) // most
    cuts = np.flatnonzero(np.diff(number)) + 1
    return [slice(a, b) for a, b in zip([0, *cuts.tolist()], [*cuts.tolist(), len(sizes)], strict=True) if b > a]
