"""Region proposals: torchvision's network with losses that small objects need."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import clip_boxes_to_image, sigmoid_focal_loss

from medseg.models.anchors import build_anchors
from medseg.models.box_iou import box_iou
from medseg.models.suppression import by_image, grouped_nms
from medseg.values.plan import Plan


class DenseProposals(RegionProposalNetwork):
    """Region proposal network (Ren et al. 2015) whose objectness loss sees every anchor.

    The published loss samples some hundred anchors a slice. Where an object covers a few of fifty thousand
    anchors, the look-alikes that it must be told from are hardly ever drawn; the focal loss (Lin et al. 2017, "Focal
    loss for dense object detection", arXiv 1708.02002) weighs every anchor by how wrong it is. Both losses are divided
    by the number of positive anchors of each image and averaged over the images, so that they do not depend on which
    images share a batch; nothing is random.

    Args:
        parts, settings: of torchvision's network.
        focal_alpha: weight of positives.
        focal_gamma: focusing exponent.
    """

    def __init__(self, *parts: Any, focal_alpha: float, focal_gamma: float, **settings: Any):
        super().__init__(*parts, **settings)
        self.box_similarity = box_iou
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return the proposals per image, best first, and in training the losses.

        In evaluation these are torchvision's, but only the anchors that are looked at become boxes (of 65,000 at 512 x
        512 pixels), and all images and levels are suppressed in one go, none of them changed by another.
        """
        if self.training:
            proposals: tuple[list[Tensor], dict[str, Tensor]] = super().forward(images, features, targets)
            return proposals
        levels = list(features.values())
        anchors = self.anchor_generator(images, levels)[0]
        boxes, scores, numbers = [], [], []
        start = 0
        for level, (objectness, deltas) in enumerate(zip(*self.head(levels), strict=True)):
            count = len(objectness)
            logits = objectness.permute(0, 2, 3, 1).reshape(count, -1)
            codes = deltas.permute(0, 2, 3, 1).reshape(count, -1, 4)
            best, index = logits.topk(min(self.pre_nms_top_n(), logits.shape[1]), dim=1)
            chosen = codes.gather(1, index[..., None].expand(-1, -1, 4)).reshape(-1, 4)
            decoded = self.box_coder.decode_single(chosen, anchors[start + index.reshape(-1)])
            boxes.append(decoded.reshape(count, -1, 4))
            scores.append(best)
            numbers.append(torch.full_like(index, level))
            start += logits.shape[1]
        groups = torch.cat(numbers, dim=1)
        groups += len(levels) * torch.arange(len(groups), device=groups.device)[:, None]
        size = images.image_sizes[0]
        return self._suppress(torch.cat(boxes, dim=1), torch.cat(scores, dim=1), groups, size), {}

    def _suppress(self, boxes: Tensor, logits: Tensor, groups: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """Return the best of [B, n, 4] boxes for each image, all of this size; logits and groups [B, n]."""
        boxes = clip_boxes_to_image(boxes, size)
        sides = boxes[..., 2:] - boxes[..., :2]
        image, rank = torch.nonzero((sides >= self.min_size).all(dim=2) & ~logits.isnan(), as_tuple=True)
        count = len(groups)
        boxes, logits, groups = boxes[image, rank], logits[image, rank], groups[image, rank]
        kept = grouped_nms(boxes, logits.sigmoid(), groups, self.nms_thresh)
        return [boxes[own] for own in by_image(kept, image, count, self.post_nms_top_n())]

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return objectness and box loss; labels are 1 (object), 0 (background), -1 (neither)."""
        wanted = torch.cat(labels)
        positive = torch.nonzero(wanted > 0)[:, 0]
        counted = torch.nonzero(wanted >= 0)[:, 0]
        shares = [1.0 / (max(int((image > 0).sum()), 1) * len(labels)) for image in labels]
        share = torch.cat([torch.full_like(image, s) for image, s in zip(labels, shares, strict=True)])
        focal = sigmoid_focal_loss(objectness.flatten()[counted], wanted[counted], self.focal_alpha, self.focal_gamma)
        boxes = F.smooth_l1_loss(
            pred_bbox_deltas[positive], torch.cat(regression_targets)[positive], beta=1 / 9, reduction="none"
        )
        return (focal * share[counted]).sum(), (boxes.sum(dim=1) * share[positive]).sum()


class _Head(RPNHead):
    """Gives float32 whatever the precision: eight bits of a bfloat16 are half a pixel at the far end of a slice."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [level.float() for level in logits], [level.float() for level in deltas]


def build_proposals(plan: Plan) -> RegionProposalNetwork:
    """Return the region proposal network of a plan, parameters named as in torchvision."""
    model, training = plan.model, plan.training
    anchors = build_anchors(model)
    head = _Head(model.fpn_channels, anchors.num_anchors_per_location()[0], model.rpn_convolutions)
    torch.nn.init.constant_(head.cls_logits.bias, -4.0)  # almost everything is background
    return DenseProposals(
        anchors,
        head,
        fg_iou_thresh=training.rpn_positive_iou,
        bg_iou_thresh=training.rpn_negative_iou,
        batch_size_per_image=1,  # of torchvision's sampler, which compute_loss does not use
        positive_fraction=0.5,
        pre_nms_top_n={"training": model.proposals_before_nms, "testing": model.proposals_before_nms},
        post_nms_top_n={"training": training.proposals, "testing": plan.inference.proposals},
        nms_thresh=model.rpn_nms_iou,
        focal_alpha=training.focal_alpha,
        focal_gamma=training.focal_gamma,
    )
