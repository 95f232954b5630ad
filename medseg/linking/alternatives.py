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

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.labels import LabelTable
from medseg.linking.affinity import missing_slices
from medseg.linking.bitmasks import BitMasks
from medseg.linking.covers import find_covers
from medseg.linking.drafts import Draft, divide, union
from medseg.linking.flow import node_rewards
from medseg.linking.nodes import Nodes, centroids_in_crop
from medseg.values.linking_plan import LinkingPlan

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
        drafts: list[Draft] = []
        nodes = readings.nodes
        fresh = families >= 0 if turn else np.ones(len(nodes), np.bool_)
        if not fresh.any():
            break
        covers = find_covers(nodes, plural, fresh, reach, config)
        if config.split_prior and turn == 0:
            united = dict.fromkeys(covers.members(c) for c in range(len(covers)))
            drafts += [union(nodes, readings.rewards, members, union_price) for members in united]
        if config.merged_prior:
            whole = np.array([len(s) == 1 and s not in split for s in nodes.sources], np.bool_) & (families < 0)
            wanted = [(int(covers.mask[c]), covers.members(c)) for c in covers.best(whole, nodes.keys).tolist()]
            prices = [part_price + float(readings.rewards[big]) for big, _ in wanted]
            for (big, _), parts in zip(wanted, divide(nodes, wanted, spacing_mm[1:], prices), strict=True):
                if parts:
                    split.add(nodes.sources[big])
                    drafts += parts
        if not drafts:
            break
        readings, families = _with_drafts(readings, families, drafts)
        plural = np.isin(readings.nodes.labels, several)
    return _with_conflicts(readings, families, plural, config)


def _with_drafts(
    readings: Readings, families: NDArray[np.intp], drafts: list[Draft]
) -> tuple[Readings, NDArray[np.intp]]:
    """Return readings with more nodes, in canonical order, and the family of each node (-1: none).

    Families are renumbered by the position of one of their parts; pairs are found again at the end.
    """
    old, n = readings.nodes, len(readings.nodes)
    like = np.array([d.like for d in drafts])
    windows = np.concatenate([old.windows, np.array([d.window for d in drafts], np.int64)])
    masks = tuple(d.mask for d in drafts)
    areas = np.array([np.count_nonzero(mask) for mask in masks], np.int64)
    centres = centroids_in_crop(masks) + windows[n:, :2]
    boxes = windows[n:][:, [1, 0, 3, 2]].astype(np.float32)
    joined = Nodes(
        labels=np.concatenate([old.labels, old.labels[like]]),
        slices=np.concatenate([old.slices, old.slices[like]]),
        scores=np.concatenate([old.scores, [d.score for d in drafts]]),
        keys=np.concatenate([old.keys, np.array([d.key for d in drafts], np.uint64)]),
        masks=(*old.masks, *masks),
        bits=old.bits.joined(BitMasks.pack(masks, windows[n:])),
        windows=windows,
        areas=np.concatenate([old.areas, areas]),
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
    derived = (families >= 0) | (np.array([len(s) for s in nodes.sources], np.intp) > 1)
    for p in np.flatnonzero(~rivals & (derived[first] | derived[second])).tolist():
        rivals[p] = not set(nodes.sources[first[p]]).isdisjoint(nodes.sources[second[p]])
    rivals &= ~family
    parts = np.flatnonzero(families >= 0)
    parts = parts[np.argsort(families[parts], kind="stable")]
    _, starts, number = np.unique(families[parts], return_index=True, return_inverse=True)
    together = np.column_stack([parts[starts][number], parts])
    together = together[together[:, 0] != together[:, 1]]
    first, second = first[rivals], second[rivals]
    shares = np.ones(len(nodes))
    for small, large in ((first, second), (second, first)):
        np.minimum.at(shares, small, nodes.areas[small] / nodes.areas[large])
    return Readings(
        nodes=nodes,
        rewards=readings.rewards,
        shares=shares,
        exclusive=np.column_stack([first, second]),
        together=together,
    )
