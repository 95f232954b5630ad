"""Detections per slice -> objects: the steps of `link` in order."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from highdicom import VolumeGeometry
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from medseg.labels import LabelTable
from medseg.linking.affinity import Edges, build_edges
from medseg.linking.alternatives import Readings, find_readings, plain_readings
from medseg.linking.baselines import BASELINES
from medseg.linking.duplicates import drop_duplicates
from medseg.linking.ends import join_ends
from medseg.linking.flow import Solution, solve_tracks
from medseg.linking.joins import Join, join_confidences
from medseg.linking.nodes import Nodes, build_nodes
from medseg.linking.pieces import drop_pieces
from medseg.linking.reassembly import Object3D, build_object, settle, smooth
from medseg.linking.scores import calibrated, object_score, unseen_slices
from medseg.linking.views import Views
from medseg.linking.waists import cut_at_waists
from medseg.values.detections import Detections
from medseg.values.geometry import spacing_of
from medseg.values.instances import Instance, InstanceSet
from medseg.values.linking_plan import LinkingPlan

#: Scores come as float32; one that was 0.3 there still reaches a threshold of 0.3.
_ROUNDING = 1e-6

#: Detections of a pass along another axis, and the grid that they refer to.
Pass = tuple[Sequence[Detections], VolumeGeometry]


@dataclass(frozen=True, kw_only=True, eq=False)
class LinkingResult:
    """Objects, and how firm they are.

    Attributes:
        instances: the objects.
        joins: every pair of detections that was taken for one object, by instance and slice; none for a baseline.
        optimality_gap: 0 where the optimum was found; otherwise the largest relative distance to its bound where
            ``node_limit`` ended the search, infinite where it ended before anything was found.
    """

    instances: InstanceSet
    joins: tuple[Join, ...]
    optimality_gap: float

    def doubtful_joins(self, below: float) -> tuple[Join, ...]:
        """Return the joins of less confidence (log-odds) than this, the least first."""
        return tuple(sorted((j for j in self.joins if j.confidence < below), key=lambda j: j.confidence))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Linked:
    """What the steps leave: the instances, the nodes of each, and the graph."""

    instances: InstanceSet
    members: list[tuple[int, ...]]
    readings: Readings
    edges: Edges
    solution: Solution | None


def link(
    detections: Sequence[Detections],
    geometry: VolumeGeometry,
    labels: LabelTable,
    config: LinkingPlan,
    views: Sequence[Pass] = (),
) -> InstanceSet:
    """Link the detections of all slices into 3-D objects.

    Detections of one slice that show the same thing are reduced to one (`duplicates`) or kept as readings that
    compete (`alternatives`), the others are joined along the slice axis by an exact minimum-cost flow (`affinity`,
    `flow`), cut where they thin out (`waists`), joined where one goes on where another ends (`ends`), left out
    where they are short and probably no objects (`pieces`), and become masks, missed slices filled (`reassembly`). Each
    track is an object, so objects that touch stay apart; for a label of kind `single` the tracks that belong together
    are united and the others left out (`unite_single`).

    Neither the order of detections nor turning the volume upside down changes the objects. Memory grows with
    the detections and objects, not with the volume.

    Args:
        detections: any number per slice, in any order; slices without detections may be absent. Slice
            indices and boxes refer to the first axis and the (row, column) pixels of ``geometry``.
        geometry: the grid of the volume.
        labels: the label table; its kinds decide what an object is.
        config: thresholds; see `LinkingPlan`.
        views: detections of passes along other axes of the same volume, each with the grid (``geometry`` in another
            axis order) that its slices, rows and columns refer to. They make no objects of their own, but speak for
            and against joins with the weight ``config.weights.view``.

    Returns:
        Objects ordered by label id, first slice, row and column. The score is that of `scores.object_score`,
        through ``config.calibration`` where there is one.

    Raises:
        InputError: a slice outside the volume, an unknown label, a score outside 0..1, values not finite.
        GeometryError: a view on another grid.
    """
    return _link(detections, geometry, labels, config, views).instances


def link_in_detail(
    detections: Sequence[Detections],
    geometry: VolumeGeometry,
    labels: LabelTable,
    config: LinkingPlan,
    views: Sequence[Pass] = (),
) -> LinkingResult:
    """Link as `link` does, and say how firm each join is and whether the optimum was found."""
    linked = _link(detections, geometry, labels, config, views)
    solution = linked.solution
    if solution is None:
        return LinkingResult(instances=linked.instances, joins=(), optimality_gap=0.0)
    nodes, edges = linked.readings.nodes, linked.edges
    confidence = join_confidences(linked.readings.rewards, edges, solution)
    owner = np.zeros(len(nodes), np.int64)
    for instance, members in zip(linked.instances, linked.members, strict=True):
        owner[list(members)] = instance.id
    joined = solution.followed & (owner[edges.first] > 0) & (owner[edges.first] == owner[edges.second])
    joins = []
    for e in np.flatnonzero(joined).tolist():
        a, b = int(edges.first[e]), int(edges.second[e])
        z = int(nodes.slices[a]), int(nodes.slices[b])
        row, column = (nodes.centroids[a] + nodes.centroids[b]) / 2
        x, y, s = (geometry.affine @ [(z[0] + z[1]) / 2, row, column, 1.0])[:3].tolist()
        joins.append(
            Join(
                instance=int(owner[a]),
                slices=z,
                point_mm=(x, y, s),
                log_odds=float(edges.log_odds[e]),
                confidence=float(confidence[e]),
            )
        )
    joins.sort(key=lambda j: (j.instance, j.slices, j.point_mm))
    return LinkingResult(instances=linked.instances, joins=tuple(joins), optimality_gap=solution.gap)


def _link(
    detections: Sequence[Detections],
    geometry: VolumeGeometry,
    labels: LabelTable,
    config: LinkingPlan,
    views: Sequence[Pass],
) -> _Linked:
    spacing_mm = spacing_of(geometry)
    depth, rows, columns = geometry.spatial_shape
    shape = (rows, columns)
    compete = config.method == "flow" and config.merged_prior + config.split_prior > 0
    detected = build_nodes(detections, geometry, labels, config.mask_threshold)
    organs = np.isin(detected.labels, [label.id for label in labels if label.kind == "single"])
    detected = detected.select(np.flatnonzero(~organs | (detected.scores >= config.single_min_score - _ROUNDING)))
    detected = drop_duplicates(detected, labels, config, contained=not compete)
    readings = find_readings(detected, labels, spacing_mm, config) if compete else plain_readings(detected, config)
    nodes = readings.nodes
    others = Views.build(views, geometry, labels, config.mask_threshold) if views else None
    edges = build_edges(nodes, spacing_mm, config, readings.shares, others)
    solution = None
    if config.method == "flow":
        solution = solve_tracks(
            readings.rewards, edges, readings.exclusive, readings.together, node_limit=config.node_limit
        )
        tracks = solution.tracks(edges)
    else:
        tracks = BASELINES[config.method](nodes, spacing_mm, config)

    def single(track: list[int]) -> bool:
        return labels[int(nodes.labels[track[0]])].kind == "single"

    def score(track: list[int]) -> float:
        # parts of an organ may well be flat
        unseen = 0 if single(track) else unseen_slices(nodes, track, spacing_mm, depth, config.length_ratio)
        return object_score(nodes, [track], unseen)

    if config.method == "flow":
        tracks = [
            part
            for t in tracks
            for part in ([t] if single(t) else cut_at_waists(nodes, t, config.waist_ratio, spacing_mm[1:]))
        ]
        several = join_ends(nodes, [t for t in tracks if not single(t)], spacing_mm, config)
        tracks = [t for t in tracks if single(t)] + several
    scores = {track[0]: score(track) for track in tracks}
    tracks = [track for track in tracks if scores[track[0]] >= config.min_score - _ROUNDING]
    apart = [track for track in tracks if not single(track)]
    if config.method == "flow":
        apart = drop_pieces(nodes, apart, spacing_mm, depth, config)
    united = unite_single(nodes, [track for track in tracks if single(track)], edges, config.part_fraction)
    objects = [build_object(nodes, [track], scores[track[0]], spacing_mm, shape) for track in apart]
    objects += [build_object(nodes, group, object_score(nodes, group, 0), spacing_mm, shape) for group in united]
    objects = [o for o in objects if _extent_mm(o, spacing_mm[0]) >= config.min_extent_mm - _ROUNDING]
    for obj in objects:
        smooth(obj, nodes, config.smooth_mm, spacing_mm[0], config.mask_threshold, shape)
    settle(objects, nodes, shape)

    found = []
    for obj in objects:
        crop = obj.crop()
        if crop is None:
            continue
        volume_ml = np.count_nonzero(crop[0]) * float(np.prod(spacing_mm)) / 1000
        if volume_ml >= config.min_volume_ml.get(obj.label, 0.0):
            probability = calibrated(min(1.0, obj.score), config.calibration)
            instance = Instance(id=1, label=obj.label, mask=crop[0], offset=crop[1], score=probability)
            found.append(((obj.label, crop[1], obj.key), instance, obj.nodes))
    found.sort(key=lambda entry: entry[0])
    return _Linked(
        instances=InstanceSet.build((instance for _, instance, _ in found), geometry, labels),
        members=[members for *_, members in found],
        readings=readings,
        edges=edges,
        solution=solution,
    )


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
