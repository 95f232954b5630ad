"""Non-maximum suppression in many groups at once: levels, classes and images that know nothing of each other."""

import torch
from torch import Tensor
from torchvision.ops import nms


def grouped_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float) -> Tensor:
    """Suppress, within each group, every box that overlaps a better one of the group by more than ``iou``.

    What is kept of a group does not depend on the other groups, to the last bit. torchvision's `batched_nms` moves
    each group to a place of its own in float32, where boxes at the threshold may fall to the other side; here that is
    done in float64, in which the sums are exact (boxes of up to 24 bits, places below 2^28), or not at all.

    Args:
        boxes: [N, 4] float32 in pixels, not negative.
        scores: [N].
        groups: [N] int64, from 0.
        iou: intersection over union.

    Returns:
        [K] positions of those kept, best first; of equal ones the first.
    """
    if not len(boxes):
        return groups.new_zeros(0)
    if boxes.device.type == "cuda":  # one call, as each waits for the device
        place = groups.double() * (boxes.max().double().ceil() + 1)
        kept: Tensor = nms(boxes.double() + place[:, None], scores.double(), iou)
        return kept
    order = torch.argsort(groups, stable=True)
    parts = []
    for members in order.split(torch.bincount(groups).tolist()):  # a call over all groups would compare all pairs
        parts.append(members[nms(boxes[members], scores[members], iou)])
    found = torch.cat(parts).sort().values
    return found[torch.argsort(scores[found], descending=True, stable=True)]


def by_image(kept: Tensor, image: Tensor, count: int, limit: int) -> list[Tensor]:
    """Return for each of ``count`` images the first ``limit`` of the positions ``kept`` that are in it, in their order.

    Args:
        kept: [K] positions.
        image: [N] int64, the image of each position.
        count, limit: see above.
    """
    owner = image[kept]
    ordered = kept[torch.argsort(owner, stable=True)]
    return [own[:limit] for own in ordered.split(torch.bincount(owner, minlength=count).tolist())]
