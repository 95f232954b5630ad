"""Mask R-CNN on slices: He et al. 2017, "Mask R-CNN" (arXiv 1703.06870), over torchvision's parts.

The network takes the Plan's grid as it is: nothing inside resizes or normalises. Boxes are continuous
pixel coordinates, pixel i covers [i, i + 1).
"""

import re

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from medseg.errors import ModelError
from medseg.models.backbones import build_backbone
from medseg.models.heads import Result, RoiHeads, Target
from medseg.models.proposals import build_proposals
from medseg.models.semantic import SemanticHead
from medseg.values.plan import Plan


class MaskRCNN(nn.Module):
    """Backbone with pyramid, region proposals, box head and mask head; see `build_mask_rcnn`."""

    def __init__(self, plan: Plan):
        super().__init__()
        self.channels = plan.input.channels
        self.backbone = build_backbone(plan.model, self.channels)
        self.rpn = build_proposals(plan)
        self.rpn_box_weight = plan.training.rpn_box_weight
        self.roi_heads = RoiHeads(plan)
        self.semantic_weight = plan.training.semantic_weight
        self.semantic = (
            SemanticHead(
                plan.model.fpn_channels, len(plan.labels), plan.model.finest_stride, plan.training.semantic_min_cells
            )
            if plan.model.semantic_head
            else None
        )

    def losses(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Return the losses of a batch, to be added up: means over its images of the losses of each.

        A batch may therefore be cut into parts and spread over processes: the mean of the parts is that of the whole.

        Args:
            images: [B, C, H, W] float32, already windowed.
            targets: one per image; no objects is an ordinary value.

        Raises:
            ModelError: a number of channels that does not fit, or a degenerate box.
        """
        self._check(images)
        for position, target in enumerate(targets):
            if len(target.boxes) and not (target.boxes[:, 2:] > target.boxes[:, :2]).all():
                raise ModelError(f"image {position} of the batch has a box without area: {target.boxes.tolist()}")
        logits, features = self._features(images)
        size = (images.shape[-2], images.shape[-1])
        plain = [{"boxes": t.boxes} for t in targets]
        proposals, rpn = self.rpn(ImageList(images, [size] * len(images)), features, plain)
        second = self.roi_heads.losses(list(features.values()), [p.detach() for p in proposals], targets)
        losses = {
            "objectness": rpn["loss_objectness"],
            "rpn_box": rpn["loss_rpn_box_reg"] * self.rpn_box_weight,
            **second,
        }
        if self.semantic is not None and logits is not None:
            dense = self.semantic.loss(logits, torch.stack([t.covered for t in targets]))
            losses["semantic"] = dense * self.semantic_weight
        return losses

    def forward(self, images: Tensor) -> list[Result]:
        """Return what is found in each image.

        Args:
            images: [B, C, H, W] float32, already windowed; any H and W from 32 up.
        """
        self._check(images)
        logits, features = self._features(images)
        size = (images.shape[-2], images.shape[-1])
        proposals, _ = self.rpn(ImageList(images, [size] * len(images)), features)
        dense = logits.sigmoid() if logits is not None and self.roi_heads.limits.semantic_share else None
        return self.roi_heads.results(list(features.values()), proposals, size, dense)

    def _features(self, images: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Return the semantic head's logits, if there is one, and the pyramid levels as the other heads see them."""
        features = self.backbone(images)
        return (None, features) if self.semantic is None else self.semantic(features)

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ModelError(
                f"input of shape {tuple(images.shape)}, expected [batch, {self.channels}, rows, columns]: "
                "windows and context planes must be those of the plan"
            )


def build_mask_rcnn(plan: Plan) -> MaskRCNN:
    """Build the network of a plan, weights drawn from torch's generator.

    ``model.losses(images, targets)`` in training mode, ``model(images)`` in evaluation mode.
    """
    return MaskRCNN(plan)


def choose_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda`` or ``cuda:1``; an unusable one is an error.

    Raises:
        ModelError: no such device, or CUDA cannot be used here. ``auto`` takes CUDA where it is usable.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ModelError(f"device {name!r} is unknown; expected auto, cpu, cuda or cuda:N")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"device {name!r} cannot be used ({reason}); choose --device cpu or auto") from None
    return device
