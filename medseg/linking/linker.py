"""Detections per slice -> objects: the steps of `link` in order."""

from collections.abc import Sequence

import numpy as np
from highdicom import VolumeGeometry
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from medseg.labels import LabelTable
from medseg.linking.affinity import Edges, build_edges
from medseg.linking.baselines import BASELINES
from medseg.linking.duplicates import drop_duplicates
from medseg.linking.flow import node_rewards, solve_tracks
from medseg.linking.nodes import Nodes, build_nodes
from medseg.linking.reassembly import Object3D, build_object, expected_slices, object_score, settle
from medseg.values.detections import Detections
from medseg.values.geometry import spacing_of
from medseg.values.instances import Instance, InstanceSet
from medseg.values.plan import LinkingPlan

#: Scores come as float32; one that was 0.3 there still reaches a threshold of 0.3.
_ROUNDING = 1e-6


def link(
    detections: Sequence[Detections], geometry: VolumeGeometry, labels: LabelTable, config: LinkingPlan
) -> InstanceSet:
    """Link the detections of all slices into 3-D objects.

    Detections of one slice that show the same thing are reduced to one (`duplicates`), the others are joined
    along the slice axis by an exact minimum-cost flow (`affinity`, `flow`), and tracks become masks, missed
    slices filled (`reassembly`). Each track is an object, so objects that touch stay apart; for a label of
    kind `single` the tracks that belong together are united and the others left out (`unite_single`).

    Neither the order of detections nor turning the volume upside down changes the objects. Memory grows with
    the detections and objects, not with the volume.

    Args:
        detections: any number per slice, in any order; slices without detections may be absent. Slice
            indices and boxes refer to the first axis and the (row, column) pixels of ``geometry``.
        geometry: the grid of the volume.
        labels: the label table; its kinds decide what an object is.
        config: thresholds; see `LinkingPlan`.

    Returns:
        Objects ordered by label id, first slice, row and column. The score is the mean of the detections'
        scores over the slices that should show the object, those that do not counting 0.

    Raises:
        InputError: a slice outside the volume, an unknown label, a score outside 0..1, values not finite.
    """
    spacing_mm = spacing_of(geometry)
    depth, rows, columns = geometry.spatial_shape
    shape = (rows, columns)
    nodes = drop_duplicates(build_nodes(detections, geometry, labels, config.mask_threshold), labels, config)
    edges = build_edges(nodes, spacing_mm, config)
    if config.method == "flow":
        tracks = solve_tracks(node_rewards(nodes.scores, config.min_score), edges)
    else:
        tracks = BASELINES[config.method](nodes, spacing_mm, config)

    def single(track: list[int]) -> bool:
        return labels[int(nodes.labels[track[0]])].kind == "single"

    def score(track: list[int]) -> float:
        ratio = 0.0 if single(track) else config.length_ratio  # parts of an organ may well be flat
        return object_score(nodes, track, expected_slices(nodes, track, spacing_mm, depth, ratio))

    scores = {track[0]: score(track) for track in tracks}
    tracks = [track for track in tracks if scores[track[0]] >= config.min_score - _ROUNDING]
    apart = [track for track in tracks if not single(track)]
    united = unite_single(nodes, [track for track in tracks if single(track)], edges, config.part_fraction)
    objects = [build_object(nodes, [track], scores[track[0]], spacing_mm, shape) for track in apart]
    objects += [build_object(nodes, group, None, spacing_mm, shape) for group in united]
    objects = [o for o in objects if _extent_mm(o, spacing_mm[0]) >= config.min_extent_mm - _ROUNDING]
    settle(objects, nodes, shape)

    found = []
    for obj in objects:
        crop = obj.crop()
        if crop is None:
            continue
        volume_ml = np.count_nonzero(crop[0]) * float(np.prod(spacing_mm)) / 1000
        if volume_ml >= config.min_volume_ml.get(obj.label, 0.0):
            instance = Instance(id=1, label=obj.label, mask=crop[0], offset=crop[1], score=min(1.0, obj.score))
            found.append((obj.key, instance))
    found.sort(key=lambda entry: (entry[1].label, entry[1].offset, entry[0]))
    return InstanceSet.build((instance for _, instance in found), geometry, labels)


def unite_single(
    nodes: Nodes, tracks: Sequence[list[int]], edges: Edges, part_fraction: float
) -> list[list[list[int]]]:
    """Choose, for each label, the tracks that make up its one object.

    Tracks are joined to parts where an edge leads from one to the other (an organ that branches) or where
    their masks overlap in a slice (parts that grow together). The part with the most evidence, the sum of
    score x area, is the object; others are added from ``part_fraction`` of its evidence (two halves of a
    spine), and the rest are taken for false.

    Returns:
        One list of tracks per label that has any.
    """
    if not tracks:
        return []
    owner = np.full(len(nodes), -1, np.intp)
    for t, track in enumerate(tracks):
        owner[track] = t
    first, second = nodes.pairs(0)
    known = (owner[first] >= 0) & (owner[second] >= 0)
    overlap = np.flatnonzero(known)[nodes.intersections(first[known], second[known]) > 0]
    a: NDArray[np.intp] = owner[np.concatenate([edges.first, first[overlap]])]
    b: NDArray[np.intp] = owner[np.concatenate([edges.second, second[overlap]])]
    joined = (a >= 0) & (b >= 0)
    graph = sparse.coo_array(
        (np.ones(np.count_nonzero(joined)), (a[joined], b[joined])), shape=(len(tracks), len(tracks))
    )
    _, part = connected_components(graph, directed=False)
    parts: dict[int, dict[int, list[int]]] = {}  # label -> part -> tracks
    for t, track in enumerate(tracks):
        parts.setdefault(int(nodes.labels[track[0]]), {}).setdefault(int(part[t]), []).append(t)
    groups = []
    for of_label in parts.values():
        members = {p: [i for t in ts for i in tracks[t]] for p, ts in of_label.items()}
        evidence = {p: float(np.sum(np.sort(nodes.scores[m] * nodes.areas[m]))) for p, m in members.items()}
        most = max(evidence.values())
        groups.append([tracks[t] for p, ts in of_label.items() if evidence[p] >= part_fraction * most for t in ts])
    return groups


def _extent_mm(obj: Object3D, slice_spacing_mm: float) -> float:
    return (max(obj.patches) - min(obj.patches) + 1) * slice_spacing_mm
