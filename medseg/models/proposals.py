"""Region proposals: torchvision's network with losses that small objects need."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import sigmoid_focal_loss

from medseg.models.anchors import build_anchors
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
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma

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
