"""Several detections of one thing in one slice."""

import numpy as np

from medseg.labels import LabelTable
from medseg.linking.nodes import Nodes
from medseg.values.linking_plan import LinkingPlan

#: A mask inside a larger one is kept beside it (as part or alternative) from this share of its score.
PART_SCORE_RATIO = 0.5


def drop_duplicates(nodes: Nodes, labels: LabelTable, config: LinkingPlan, *, contained: bool = True) -> Nodes:
    """Keep, of detections of one slice and label that show the same thing, the one with the higher score.

    Overlap is that of the masks: two lesions side by side have boxes that overlap and masks that do not.
    Two masks are duplicates at an IoU of ``duplicate_iou`` or when ``duplicate_overlap`` of the smaller lies
    in the larger. Detections are taken by descending score (then larger, then by content), and each is
    dropped when it duplicates one that was kept.

    A label of kind `single` may have several parts in a slice, and one of them may lie within a mask of the
    whole; there a contained mask is dropped only when its score is less than half the other's, and otherwise
    united with it later.

    Args:
        nodes: detections.
        labels: for the kinds.
        config: thresholds.
        contained: whether a mask within another is a duplicate for the other kinds, too; if not, both stay
            under the same rule as for `single` (`alternatives` has them compete).
    """
    first, second = nodes.pairs(0)
    shared = nodes.intersections(first, second)
    area_a, area_b = nodes.areas[first], nodes.areas[second]
    same = shared >= config.duplicate_iou * (area_a + area_b - shared)
    inside = shared >= config.duplicate_overlap * np.minimum(area_a, area_b)
    rivals: dict[int, list[tuple[int, bool]]] = {}
    for a, b, is_same in zip(
        first[same | inside].tolist(),
        second[same | inside].tolist(),
        same[same | inside].tolist(),
        strict=True,
    ):
        rivals.setdefault(a, []).append((b, is_same))
        rivals.setdefault(b, []).append((a, is_same))
    dropped: set[int] = set()
    kept: set[int] = set()
    for i in sorted(rivals, key=lambda i: (-nodes.scores[i], -nodes.areas[i], nodes.keys[i], i)):
        strict = contained and labels[int(nodes.labels[i])].kind != "single"
        duplicate = any(
            other in kept and (is_same or strict or nodes.scores[i] < PART_SCORE_RATIO * nodes.scores[other])
            for other, is_same in rivals[i]
        )
        (dropped if duplicate else kept).add(i)
    return nodes.select(np.array([i for i in range(len(nodes)) if i not in dropped], np.intp)) if dropped else nodes
