"""Other readings of single masks: the union of several, and the parts of one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from medseg.linking.nodes import Nodes
from medseg.values.ragged import blocks

#: Pixels of masks that are divided in one go; bounds the memory.
PIXELS_PER_CALL = 1 << 18
#: Pixels at one depth are flooded in the order of rows and columns: far less than any two depths differ by, mm.
_TIE = 1e-12


@dataclass(frozen=True, eq=False)
class Draft:
    """A node in the making: mask and window in the slice of node ``like``, its parent or first member."""

    like: int
    mask: NDArray[np.bool_]
    window: tuple[int, int, int, int]
    score: float
    reward: float
    key: int
    sources: tuple[int, ...]
    family: int  # parts of one mask have one number


def union(nodes: Nodes, rewards: NDArray[np.float64], members: tuple[int, ...], price: float) -> Draft:
    """Return several masks of a slice as one: the sum of their rewards [N] and of a price."""
    windows = nodes.windows[list(members)]
    low, high = windows[:, :2].min(axis=0), windows[:, 2:].max(axis=0)
    mask = np.zeros(high - low, np.bool_)
    for i, (r0, c0, r1, c1) in zip(members, (windows - np.tile(low, 2)).tolist(), strict=True):
        mask[r0:r1, c0:c1] |= nodes.masks[i]
    weights = nodes.areas[list(members)]
    return Draft(
        like=members[0],
        mask=mask,
        window=(int(low[0]), int(low[1]), int(high[0]), int(high[1])),
        score=float(np.sort(weights * nodes.scores[list(members)]).sum() / weights.sum()),
        reward=float(np.sort(rewards[list(members)]).sum()) + price,
        key=sum(int(nodes.keys[i]) for i in members) % 2**32,
        sources=tuple(sorted({s for i in members for s in nodes.sources[i]})),
        family=-1,
    )


def divide(
    nodes: Nodes,
    wanted: Sequence[tuple[int, tuple[int, ...]]],
    pixel_mm: tuple[float, float],
    rewards: Sequence[float],
) -> list[list[Draft]]:
    """Divide masks among the masks that each covers: parts, or none if one of those gets nothing.

    Watershed on the distance to the boundary (Vincent & Soille, "Watersheds in digital spaces", PAMI 1991), flooded
    from the masks that are covered. Many masks lie below each other on one canvas, as wide as the widest: a call
    costs more than a mask.

    Args:
        nodes: the masks.
        wanted: the mask to divide, and those that it covers.
        pixel_mm: (row, column) spacing.
        rewards: worth of each mask, which its parts share by area.
    """
    found: list[list[Draft]] = [[] for _ in wanted]
    sides = np.array([nodes.masks[big].shape for big, _ in wanted], np.int64).reshape(-1, 2)
    order = np.lexsort((sides[:, 0], sides[:, 1]))  # of one width: little room is lost
    for block in blocks((sides[order] + 1).prod(axis=1), PIXELS_PER_CALL):
        chosen = order[block].tolist()
        tops = (np.cumsum(sides[chosen, 0] + 1) - sides[chosen, 0]).tolist()  # a free row above and below each
        shape = (tops[-1] + int(sides[chosen[-1], 0]) + 1, int(sides[chosen, 1].max()) + 2)
        inside, markers = np.zeros(shape, np.bool_), np.zeros(shape, np.int32)
        owners: list[int] = []
        for k, top in zip(chosen, tops, strict=True):
            big, covered = wanted[k]
            h, w = nodes.masks[big].shape
            inside[top : top + h, 1 : w + 1] = nodes.masks[big]
            _mark(nodes, big, covered, markers[top : top + h, 1 : w + 1], len(owners))
            owners += [k] * len(covered)
        regions = _flood(inside, markers * inside, pixel_mm)
        top_of = dict(zip(chosen, tops, strict=True))
        lost: set[int] = set()
        for number, (k, window) in enumerate(zip(owners, ndimage.find_objects(regions, len(owners)), strict=True), 1):
            if window is None:
                lost.add(k)
                continue
            part = regions[window] == number
            corner = window[0].start - top_of[k], window[1].start - 1
            found[k].append(_part(nodes, wanted[k][0], part, corner, rewards[k]))
        for k in lost:
            found[k] = []
    return found


def _flood(inside: NDArray[np.bool_], markers: NDArray[np.int32], pixel_mm: tuple[float, float]) -> NDArray[np.int32]:
    """Return [h, w] ``markers`` grown over all ``inside``; the outermost rows and columns are not."""
    level = ndimage.distance_transform_edt(inside, sampling=pixel_mm)
    level = np.arange(level.size).reshape(level.shape) * _TIE - level
    left = inside & (markers == 0)
    # Floods start where a marker borders on what is left.
    border = np.zeros_like(left)
    border[1:] |= left[:-1]
    border[:-1] |= left[1:]
    border[:, 1:] |= left[:, :-1]
    border[:, :-1] |= left[:, 1:]
    border &= markers > 0
    regions = watershed(level, markers * border, mask=left | border)
    return np.where(left, regions, markers)


def _mark(nodes: Nodes, big: int, covered: Sequence[int], markers: NDArray[np.int32], before: int) -> None:
    """Number the masks that one covers from ``before`` + 1 on; where two lie on each other the first stays."""
    row, column, row_end, column_end = nodes.windows[big].tolist()
    for number, i in enumerate(
        sorted(covered, key=lambda i: (nodes.keys[i], *nodes.windows[i].tolist())), start=before + 1
    ):
        r0, c0, r1, c1 = nodes.windows[i].tolist()
        a, b, c, d = max(r0, row), max(c0, column), min(r1, row_end), min(c1, column_end)
        view = markers[a - row : c - row, b - column : d - column]
        view[nodes.masks[i][a - r0 : c - r0, b - c0 : d - c0] & (view == 0)] = number


def _part(nodes: Nodes, big: int, part: NDArray[np.bool_], corner: tuple[int, int], reward: float) -> Draft:
    r, c = corner
    row, column = int(nodes.windows[big, 0]) + r, int(nodes.windows[big, 1]) + c
    return Draft(
        like=big,
        mask=part,
        window=(row, column, row + part.shape[0], column + part.shape[1]),
        score=float(nodes.scores[big]),
        reward=np.count_nonzero(part) / int(nodes.areas[big]) * reward,
        key=(int(nodes.keys[big]) + 0x9E3779B1 * (r * 8191 + c + 1)) % 2**32,
        sources=nodes.sources[big],
        family=big,
    )
