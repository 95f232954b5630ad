"""Competing readings of a slice: one object or two.

A detector merges two objects into one mask now and then, and splits one into two. Which it was, the slice alone
cannot tell; its neighbours can. So both readings become nodes of the graph that exclude each other, and the optimum
over all slices chooses (`flow.solve_tracks`):

- a mask within a larger one: either of the two;
- a mask that covers two or more of a neighbouring slice: itself, or its parts by watershed on the distance to its
  boundary, flooded from the neighbours' masks;
- two or more masks that one of a neighbouring slice covers: themselves, or their union.

A label of kind `single` has no alternatives: it may have parts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from medseg.labels import LabelTable
from medseg.linking.affinity import missing_slices
from medseg.linking.flow import node_rewards
from medseg.linking.nodes import Nodes
from medseg.values.plan import LinkingPlan

#: Parts found in one round split the masks next to them in the following: runs of up to six merged slices.
ROUNDS = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Readings:
    """Detections and their alternatives.

    Attributes:
        nodes: N of both, in canonical order.
        rewards: [N] worth of taking each, log-odds.
        shares: [N] in 0..1, a node's share of the pixels of the largest mask that it competes with and is smaller
            than; 1 for nodes without. Links count by it, so that two readings of the same pixels weigh the same.
        exclusive: [X, 2] positions of which at most one is taken.
        together: [T, 2] positions that are taken together or not at all: the parts of one mask.
    """

    nodes: Nodes
    rewards: NDArray[np.float64]
    shares: NDArray[np.float64]
    exclusive: NDArray[np.intp]
    together: NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class _Draft:
    """A node in the making: mask and window in the slice of node ``like``, its parent or first member."""

    like: int
    mask: NDArray[np.bool_]
    window: tuple[int, int, int, int]
    score: float
    reward: float
    key: int
    sources: tuple[int, ...]
    family: int  # parts of one mask have one number


def plain_readings(nodes: Nodes, config: LinkingPlan) -> Readings:
    """Return detections as they are, without alternatives."""
    none = np.zeros((0, 2), np.intp)
    return Readings(
        nodes=nodes,
        rewards=node_rewards(nodes.scores, config.min_score),
        shares=np.ones(len(nodes)),
        exclusive=none,
        together=none,
    )


def find_readings(
    nodes: Nodes, labels: LabelTable, spacing_mm: tuple[float, float, float], config: LinkingPlan
) -> Readings:
    """Add to detections (duplicates dropped, contained masks kept) the alternatives that their neighbours suggest.

    The parts of a mask share its reward and pay the log-odds of ``merged_prior`` once; a union earns the rewards of
    its members and pays those of ``split_prior``.
    """
    several = np.array([label.id for label in labels if label.kind != "single"])
    plural = np.isin(nodes.labels, several)
    part_price, union_price = (
        float(np.log(p / (1 - p))) if p else -np.inf for p in (config.merged_prior, config.split_prior)
    )
    readings = plain_readings(nodes, config)
    reach = missing_slices(config.gap_mm, spacing_mm[0]) + 1
    families = np.full(len(nodes), -1, np.intp)
    split: set[tuple[int, ...]] = set()  # sources of masks that have parts
    for turn in range(ROUNDS):
        drafts: list[_Draft] = []
        united: set[tuple[int, ...]] = set()
        nodes = readings.nodes
        fresh = families >= 0 if turn else np.ones(len(nodes), np.bool_)
        if not fresh.any():
            break
        chosen: dict[int, tuple[tuple[float, ...], tuple[int, ...]]] = {}
        for distance, big, covered, iou in _covers(nodes, plural, fresh, reach, config):
            order = (distance, -round(iou, 9), sum(int(nodes.keys[i]) for i in covered))
            whole = families[big] < 0 and len(nodes.sources[big]) == 1 and nodes.sources[big] not in split
            if config.merged_prior and whole and (big not in chosen or order < chosen[big][0]):
                chosen[big] = (order, covered)
            sources = tuple(sorted({s for i in covered for s in nodes.sources[i]}))
            if config.split_prior and turn == 0 and sources not in united:
                united.add(sources)
                drafts.append(_union(nodes, readings.rewards, covered, sources, union_price))
        for big in sorted(chosen):
            parts = _parts(nodes, big, chosen[big][1], spacing_mm[1:], part_price + float(readings.rewards[big]))
            if parts:
                split.add(nodes.sources[big])
                drafts += parts
        if not drafts:
            break
        readings, families = _with_drafts(readings, families, drafts)
        plural = np.isin(readings.nodes.labels, several)
    return _with_conflicts(readings, families, plural, config)


def _covers(
    nodes: Nodes, plural: NDArray[np.bool_], fresh: NDArray[np.bool_], reach: int, config: LinkingPlan
) -> Iterator[tuple[int, int, tuple[int, ...], float]]:
    """Yield (distance in slices, mask, masks of one other slice that it covers, IoU with all of them together).

    Two or more masks are covered, each by ``duplicate_overlap`` of itself and none a part of another; together
    they fill the mask to an IoU of ``duplicate_iou``. One of them at least is ``fresh``.
    """
    for distance in range(1, reach + 1):
        below, above = nodes.pairs(distance)
        big, small = np.concatenate([below, above]), np.concatenate([above, below])
        most = nodes.window_overlap(big, small)
        area = nodes.areas
        keep = plural[big] & (area[small] < area[big]) & (most >= config.duplicate_overlap * area[small])
        big, small = big[keep], small[keep]
        # One slice on one side: twice the mask's position, odd for the upper side.
        side = 2 * big + (nodes.slices[small] > nodes.slices[big])
        groups, group, sizes = np.unique(side, return_inverse=True, return_counts=True)
        some = np.bincount(group, weights=fresh[small], minlength=len(groups)) > 0
        keep = (sizes[group] > 1) & some[group]
        big, small, side = big[keep], small[keep], side[keep]
        shared = nodes.intersections(big, small)
        keep = shared >= config.duplicate_overlap * area[small]
        big, small, side, shared = big[keep], small[keep], side[keep], shared[keep]
        order = np.lexsort((small, side))
        for rows in np.split(order, np.flatnonzero(np.diff(side[order])) + 1):
            apart = _smallest(nodes, small[rows], config.duplicate_overlap)
            rows = rows[apart]
            if len(rows) < 2:
                continue
            both = float(shared[rows].sum())
            iou = both / (float(area[big[rows[0]]] + area[small[rows]].sum()) - both)
            if iou >= config.duplicate_iou:
                yield distance, int(big[rows[0]]), tuple(small[rows].tolist()), iou


def _smallest(nodes: Nodes, members: NDArray[np.intp], overlap: float) -> NDArray[np.bool_]:
    """Return [K], which masks of one slice hold no other of them."""
    first, second = np.triu_indices(len(members), k=1)
    shared = nodes.intersections(members[first], members[second])
    a, b = nodes.areas[members[first]], nodes.areas[members[second]]
    nested = shared >= overlap * np.minimum(a, b)
    result = np.ones(len(members), np.bool_)
    result[np.where(a >= b, first, second)[nested]] = False
    return result


def _union(
    nodes: Nodes, rewards: NDArray[np.float64], members: tuple[int, ...], sources: tuple[int, ...], price: float
) -> _Draft:
    windows = nodes.windows[list(members)]
    low, high = windows[:, :2].min(axis=0), windows[:, 2:].max(axis=0)
    mask = np.zeros(high - low, np.bool_)
    for i, (r0, c0, r1, c1) in zip(members, (windows - np.tile(low, 2)).tolist(), strict=True):
        mask[r0:r1, c0:c1] |= nodes.masks[i]
    weights = nodes.areas[list(members)]
    return _Draft(
        like=members[0],
        mask=mask,
        window=(int(low[0]), int(low[1]), int(high[0]), int(high[1])),
        score=float(np.sort(weights * nodes.scores[list(members)]).sum() / weights.sum()),
        reward=float(np.sort(rewards[list(members)]).sum()) + price,
        key=sum(int(nodes.keys[i]) for i in members) % 2**32,
        sources=sources,
        family=-1,
    )


def _parts(
    nodes: Nodes, big: int, covered: tuple[int, ...], pixel_mm: tuple[float, float], reward: float
) -> list[_Draft]:
    """Divide a mask among the masks that it covers; none if one of them gets nothing.

    Watershed on the distance to the boundary (Vincent & Soille, "Watersheds in digital spaces", PAMI 1991).
    """
    mask = nodes.masks[big]
    row, column = (int(v) for v in nodes.windows[big, :2])
    markers = np.zeros(mask.shape, np.int32)
    for number, i in enumerate(sorted(covered, key=lambda i: (nodes.keys[i], *nodes.windows[i].tolist())), start=1):
        r0, c0, r1, c1 = (nodes.windows[i] - [row, column, row, column]).tolist()
        rows, columns = (max(r0, 0), min(r1, mask.shape[0])), (max(c0, 0), min(c1, mask.shape[1]))
        inside = nodes.masks[i][rows[0] - r0 : rows[1] - r0, columns[0] - c0 : columns[1] - c0]
        view = markers[rows[0] : rows[1], columns[0] : columns[1]]
        view[inside & (view == 0)] = number
    depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=pixel_mm)[1:-1, 1:-1]
    regions = watershed(-depth, markers * mask, mask=mask)
    drafts = []
    for number, window in enumerate(ndimage.find_objects(regions, max_label=len(covered)), start=1):
        if window is None:
            return []
        part = regions[window] == number
        share = np.count_nonzero(part) / int(nodes.areas[big])
        r, c = window[0].start, window[1].start
        drafts.append(
            _Draft(
                like=big,
                mask=part,
                window=(row + r, column + c, row + r + part.shape[0], column + c + part.shape[1]),
                score=float(nodes.scores[big]),
                reward=share * reward,
                key=(int(nodes.keys[big]) + 0x9E3779B1 * (r * 8191 + c + 1)) % 2**32,
                sources=nodes.sources[big],
                family=big,
            )
        )
    return drafts


def _with_drafts(
    readings: Readings, families: NDArray[np.intp], drafts: list[_Draft]
) -> tuple[Readings, NDArray[np.intp]]:
    """Return readings with more nodes, in canonical order, and the family of each node (-1: none).

    Families are renumbered by the position of one of their parts; pairs are found again at the end.
    """
    old, n = readings.nodes, len(readings.nodes)
    like = np.array([d.like for d in drafts])
    windows = np.concatenate([old.windows, np.array([d.window for d in drafts], np.int64)])
    masks = (*old.masks, *(d.mask for d in drafts))
    centres = np.array([[axis.mean() for axis in np.nonzero(d.mask)] for d in drafts]) + windows[n:, :2]
    boxes = windows[n:][:, [1, 0, 3, 2]].astype(np.float32)
    joined = Nodes(
        labels=np.concatenate([old.labels, old.labels[like]]),
        slices=np.concatenate([old.slices, old.slices[like]]),
        scores=np.concatenate([old.scores, [d.score for d in drafts]]),
        keys=np.concatenate([old.keys, np.array([d.key for d in drafts], np.uint64)]),
        masks=masks,
        windows=windows,
        areas=np.concatenate([old.areas, [np.count_nonzero(d.mask) for d in drafts]]),
        centroids=np.concatenate([old.centroids, centres]),
        boxes=np.concatenate([old.boxes, boxes]),
        sources=(*old.sources, *(d.sources for d in drafts)),
        detected=old.detected,
    )
    order = np.lexsort((joined.keys, -joined.scores, *windows.T[::-1], joined.slices, joined.labels))
    # Parts of the same mask keep a common number, whichever.
    family = np.concatenate([families, [n + d.family if d.family >= 0 else -1 for d in drafts]])
    _, numbers = np.unique(family, return_inverse=True)
    family = np.where(family >= 0, numbers, -1)
    return (
        Readings(
            nodes=joined.select(order),
            rewards=np.concatenate([readings.rewards, [d.reward for d in drafts]])[order],
            shares=np.ones(len(order)),
            exclusive=readings.exclusive,
            together=readings.together,
        ),
        family[order],
    )


def _with_conflicts(
    readings: Readings, families: NDArray[np.intp], plural: NDArray[np.bool_], config: LinkingPlan
) -> Readings:
    """Return readings with the pairs that exclude each other and those that go together.

    Two nodes of a slice exclude each other where one lies in the other, or where they stand for the same detection;
    the parts of one mask do not.
    """
    nodes = readings.nodes
    first, second = nodes.pairs(0)
    keep = plural[first]
    first, second = first[keep], second[keep]
    family = (families[first] >= 0) & (families[first] == families[second])
    shared = nodes.intersections(first, second)
    rivals = shared >= config.duplicate_overlap * np.minimum(nodes.areas[first], nodes.areas[second])
    rivals |= np.array(
        [not set(nodes.sources[i]).isdisjoint(nodes.sources[j]) for i, j in zip(first, second, strict=True)], np.bool_
    )
    rivals &= ~family
    together = []
    for number in np.unique(families[families >= 0]):
        members = np.flatnonzero(families == number)
        together += [(int(members[0]), int(i)) for i in members[1:]]
    first, second = first[rivals], second[rivals]
    shares = np.ones(len(nodes))
    for small, large in ((first, second), (second, first)):
        np.minimum.at(shares, small, nodes.areas[small] / nodes.areas[large])
    return Readings(
        nodes=nodes,
        rewards=readings.rewards,
        shares=shares,
        exclusive=np.column_stack([first, second]),
        together=np.array(together, np.intp).reshape(-1, 2),
    )
