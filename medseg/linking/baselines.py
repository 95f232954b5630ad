"""The field's usual ways to link slices, to compare the flow with.

A baseline stands in for `flow.solve_tracks`: what comes before it (pasting, `drop_duplicates`) and after it (score,
`min_score`, gap filling, kinds, shared voxels) is the same for every method. So it gets the nodes after duplicates
were dropped, of all labels and slices at once (`Nodes` is sorted by label, then slice, and holds masks, windows,
boxes, scores, areas and centroids), and returns tracks.

Each has the plan's ``gap_mm``, whether the published method bridges gaps or not, and ``link_iou`` and ``gap_iou`` as
its thresholds, as far as it has any. The published ones see only detections above a score; here that is the
detector's own threshold (``inference.score_threshold``). No code of theirs was used.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import connected_components

from medseg.linking.affinity import missing_slices
from medseg.linking.bitmasks import BitMasks
from medseg.linking.nodes import Nodes
from medseg.values.linking_plan import LinkingPlan

#: (nodes, spacing_mm as (slice, row, column), config) -> tracks: lists of node positions, each of one label and by
#: ascending slice (several of one slice are allowed and united), no position in two tracks, ordered by their first
#: position. A node in no track is dropped; a track of one is an object of one slice. Only slices between two
#: consecutive members of a track are filled.
Baseline = Callable[[Nodes, tuple[float, float, float], LinkingPlan], list[list[int]]]
#: (first, second, iou) of the pairs of two slices that may be joined -> which of them are.
_Choice = Callable[[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]], NDArray[np.bool_]]


def greedy(nodes: Nodes, spacing_mm: tuple[float, float, float], config: LinkingPlan) -> list[list[int]]:
    """Give every mask the object of the mask below it that overlaps it best.

    The rule of Cellpose's `stitch3D` (Stringer et al., Cellpose: a generalist algorithm for cellular segmentation,
    Nature Methods 2021; `cellpose.utils`): of the IoUs of two neighbouring slices, those below a threshold do not
    count, and of each lower mask only its best does; each upper mask then takes the object of its best lower one.
    Two upper masks that tie for a lower one both take its object. Across a gap the same rule joins what is
    left over (`stitch3D` bridges none, and numbers objects anew after a leading empty slice so that two may get one
    id; here they do not).
    """

    def best(first: NDArray[np.intp], second: NDArray[np.intp], iou: NDArray[np.float64]) -> NDArray[np.bool_]:
        highest = np.zeros(len(nodes))
        np.maximum.at(highest, first, iou)
        stays = iou == highest[first]
        chosen = np.zeros(len(iou), np.bool_)
        order = np.lexsort((first, -iou))
        order = order[stays[order]]
        chosen[order[np.unique(second[order], return_index=True)[1]]] = True
        return chosen

    return _slice_by_slice(nodes, spacing_mm, config, best)


def hungarian(nodes: Nodes, spacing_mm: tuple[float, float, float], config: LinkingPlan) -> list[list[int]]:
    """Match the masks of two neighbouring slices one to one: most matches, then the largest total IoU.

    The rule of StarDist's `group_matching_labels` (Schmidt et al., Cell Detection with Star-convex Polygons,
    MICCAI 2018; `stardist.matching`), with the assignment of Kuhn, The Hungarian method, 1955. Across a gap, the
    same joins what is left over, as trackers do that keep an object alive for some frames (Bewley et al., Simple
    Online and Realtime Tracking, ICIP 2016).
    """

    def assign(first: NDArray[np.intp], second: NDArray[np.intp], iou: NDArray[np.float64]) -> NDArray[np.bool_]:
        chosen = np.zeros(len(iou), np.bool_)
        lower = nodes.labels[first], nodes.slices[first]
        order = np.lexsort((lower[1], lower[0]))
        change = np.flatnonzero((np.diff(lower[0][order]) != 0) | (np.diff(lower[1][order]) != 0)) + 1
        for part in np.split(order, change):
            left, i = np.unique(first[part], return_inverse=True)
            right, j = np.unique(second[part], return_inverse=True)
            weight = np.zeros((len(left), len(right)))
            weight[i, j] = iou[part] + min(weight.shape)  # one match more outweighs any IoU
            picked = np.zeros(weight.shape, np.bool_)
            picked[linear_sum_assignment(weight, maximize=True)] = True
            chosen[part] = picked[i, j]
        return chosen

    return _slice_by_slice(nodes, spacing_mm, config, assign)


def nms(nodes: Nodes, spacing_mm: tuple[float, float, float], config: LinkingPlan) -> list[list[int]]:
    """Gather around the best detection those that overlap it in the neighbouring slices.

    The 2-D to 3-D merging of the Medical Detection Toolkit (Jaeger et al., Retina U-Net, ML4H 2020; `nms_2to3D`
    in its `predictor.py`), with the IoU of masks in place of that of boxes. By descending score, a detection claims
    all that overlap *it* by ``link_iou`` or more when all slices are laid over each other, outwards from its slice
    until a hole of more than ``gap_mm``. Of several in one slice the best becomes the object's mask there, and the
    others are suppressed.
    """
    reach = missing_slices(config.gap_mm, spacing_mm[0]) + 1
    places, starts = np.unique(np.stack([nodes.labels, nodes.slices], axis=1), axis=0, return_index=True)
    ends = [*starts[1:], len(nodes)]
    groups = {(z[0], z[1]): np.arange(a, b) for z, a, b in zip(places.tolist(), starts, ends, strict=False)}
    free = np.ones(len(nodes), np.bool_)

    def claimed(core: int, z: int) -> NDArray[np.intp]:
        there = groups.get((int(nodes.labels[core]), z), np.zeros(0, np.intp))
        there = there[free[there]]
        a, b = nodes.windows[core], nodes.windows[there]
        there = there[(np.minimum(a[2:], b[:, 2:]) > np.maximum(a[:2], b[:, :2])).all(axis=1)]
        shared = nodes.intersections(np.full(len(there), core, np.intp), there)
        union = nodes.areas[core] + nodes.areas[there] - shared
        return there[shared >= config.link_iou * union]

    tracks = []
    order = np.lexsort((nodes.keys, -nodes.areas, -nodes.scores))  # the best first
    rank = np.empty(len(nodes), np.intp)
    rank[order] = np.arange(len(nodes))
    for core in order.tolist():
        if not free[core]:
            continue
        track = [core]
        free[claimed(core, int(nodes.slices[core]))] = False
        for direction in (-1, 1):
            z = last = int(nodes.slices[core])
            while abs(z - last) < reach:
                z += direction
                found = claimed(core, z)
                if len(found):
                    track.append(int(found[np.argmin(rank[found])]))
                    free[found] = False
                    last = z
        tracks.append(sorted(track))
    return sorted(tracks)


def components(nodes: Nodes, spacing_mm: tuple[float, float, float], config: LinkingPlan) -> list[list[int]]:
    """Take what hangs together in the union of a class's masks for one object.

    What is done with semantic networks (Rosenfeld and Pfaltz, Sequential operations in digital picture processing,
    JACM 1966; cc3d and `scipy.ndimage.label` in practice): the voxels of all masks of a class, neighbours sharing a
    face. Masks rather than voxels are joined here, so a mask in two pieces holds its pieces together. Gaps of up to
    ``gap_mm`` in a column of voxels are closed.
    """
    first, second = _touching(nodes)
    pairs = [(first, second)]
    for missing in range(missing_slices(config.gap_mm, spacing_mm[0]) + 1):
        first, second = nodes.pairs(missing + 1)
        shared = nodes.intersections(first, second) > 0
        pairs.append((first[shared], second[shared]))
    return _connected(len(nodes), *(np.concatenate(side) for side in zip(*pairs, strict=True)))


BASELINES: dict[str, Baseline] = {"greedy": greedy, "hungarian": hungarian, "nms": nms, "components": components}


def _slice_by_slice(
    nodes: Nodes, spacing_mm: tuple[float, float, float], config: LinkingPlan, choose: _Choice
) -> list[list[int]]:
    """Join neighbouring slices by a rule, then, over ever wider gaps, what neither end of has been joined there."""
    has_upper, has_lower = np.zeros(len(nodes), np.bool_), np.zeros(len(nodes), np.bool_)
    joined = []
    for missing in range(missing_slices(config.gap_mm, spacing_mm[0]) + 1):
        first, second = nodes.pairs(missing + 1)
        is_open = ~has_upper[first] & ~has_lower[second]
        first, second = first[is_open], second[is_open]
        shared = nodes.intersections(first, second)
        iou = shared / (nodes.areas[first] + nodes.areas[second] - shared)
        near = iou >= (config.gap_iou if missing else config.link_iou)
        first, second, iou = first[near], second[near], iou[near]
        chosen = choose(first, second, iou)
        first, second = first[chosen], second[chosen]
        has_upper[first] = has_lower[second] = True
        joined.append((first, second))
    return _connected(len(nodes), *(np.concatenate(side) for side in zip(*joined, strict=True)))


def _connected(count: int, first: NDArray[np.intp], second: NDArray[np.intp]) -> list[list[int]]:
    """Return the connected sets of nodes; as nodes are sorted by slice, so is each."""
    graph = sparse.coo_array((np.ones(len(first)), (first, second)), shape=(count, count))
    _, part = connected_components(graph, directed=False)
    tracks: dict[int, list[int]] = {}
    for i, p in enumerate(part.tolist()):
        tracks.setdefault(p, []).append(i)
    return list(tracks.values())


def _touching(nodes: Nodes) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the pairs of one slice and label whose masks share a pixel or the edge of one."""
    masks = tuple(np.pad(mask, 1) for mask in nodes.masks)
    windows = nodes.windows + (-1, -1, 1, 1)
    padded = replace(nodes, masks=masks, bits=BitMasks.pack(masks, windows), windows=windows)
    first, second = padded.pairs(0)
    touch = np.zeros(len(first), np.bool_)
    for p, (i, j) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        low = np.maximum(padded.windows[i, :2], padded.windows[j, :2])
        high = np.minimum(padded.windows[i, 2:], padded.windows[j, 2:])
        a, b = (
            masks[k][tuple(slice(*ends) for ends in zip(low - corner, high - corner, strict=True))]
            for k, corner in ((i, padded.windows[i, :2]), (j, padded.windows[j, :2]))
        )
        touch[p] = (ndimage.binary_dilation(a) & b).any()
    return first[touch], second[touch]
