"""From boxes to features and mask targets: ROI Align without rounding, and ROI Pool to compare with.

ROI Align: He et al. 2017, "Mask R-CNN", section 3. With ``aligned=True`` a box edge at pixel x lies at
x / stride - 0.5 in feature cells, so that pixel centres meet cell centres; torchvision's
`MultiScaleRoIAlign` cannot do that, and is half a cell off.

ROI Pool: Girshick 2015, "Fast R-CNN" (arXiv 1504.08083), section 2.1: the indices of a box's first and last pixel are
divided by the stride and rounded to cells; each bin takes the largest of its cells.
"""

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align, roi_pool

from medseg.models.roi_cpu import align_on_cpu, cut_on_cpu
from medseg.values.plan import ModelPlan


def with_image_index(boxes: list[Tensor]) -> Tensor:
    """Return [sum N, 5] boxes, the image's position in the batch first, as torchvision's ROI ops take them."""
    index = [torch.full((len(b), 1), float(i), dtype=b.dtype, device=b.device) for i, b in enumerate(boxes)]
    return torch.cat([torch.cat(index), torch.cat(boxes)], dim=1)


class PyramidPooler(nn.Module):
    """Pools boxes from the pyramid level that fits their size (Lin et al. 2017, eq. 1).

    Args:
        size: side of the pooled features, cells.
        plan: operation (align or pool), alignment, sampling ratio and canonical size.
    """

    def __init__(self, size: int, plan: ModelPlan):
        super().__init__()
        self.size = size
        self.op = plan.roi_op
        self.aligned = plan.roi_aligned
        self.sampling_ratio = plan.roi_sampling_ratio
        self.canonical_size = plan.roi_canonical_size
        self.strides = plan.strides

    def forward(self, features: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Pool every box.

        Args:
            features: [B, C, H, W] at the plan's strides; a level beyond them is not pooled from.
            boxes: per image [N, 4] in pixels.

        Returns:
            [sum N, C, size, size], in the order of the boxes.
        """
        rois = with_image_index(boxes)
        features = features[: len(self.strides)]
        sides = ((rois[:, 3] - rois[:, 1]).clamp(min=0) * (rois[:, 4] - rois[:, 2]).clamp(min=0)).sqrt()
        # Stride 16 for boxes from the canonical size, 32 from twice it, 8 from half of it, ...
        level = (torch.log2(sides / self.canonical_size + 1e-8) + 1e-6).floor().long()
        level = (level + self.strides.index(16)).clamp(0, len(self.strides) - 1)
        pooled = features[0].new_zeros((len(rois), features[0].shape[1], self.size, self.size))
        last_pixel = rois.new_tensor([0.0, 0.0, 0.0, 1.0, 1.0])  # a box that ends at pixel 8 has pixel 7 as its last
        for rank, (feature, stride) in enumerate(zip(features, self.strides, strict=True)):
            chosen = torch.nonzero(level == rank)[:, 0]
            if not len(chosen):
                continue
            scale = 1.0 / stride
            whole = feature.float()  # coordinates in bfloat16 are a pixel off from 128 on
            if self.op == "align" and feature.device.type == "cpu":
                values = align_on_cpu(whole, rois[chosen], self.size, scale, self.sampling_ratio, self.aligned)
            elif self.op == "align":
                values = roi_align(whole, rois[chosen], self.size, scale, self.sampling_ratio, self.aligned)
            else:
                values = roi_pool(whole, rois[chosen] - last_pixel, self.size, scale)
            pooled.index_put_((chosen,), values.to(feature.dtype))
        return pooled


def mask_targets(
    masks: Tensor, boxes: Tensor, index: Tensor, size: int, *, sampling: int = 4, aligned: bool = True
) -> Tensor:
    """Cut the target of each box out of full-slice masks: the share of each cell that the object covers.

    Args:
        masks: [G, H, W] objects, 0 or 1.
        boxes: [N, 4] in pixels.
        index: [N] int64, which object belongs to which box.
        size: M.
        sampling: samples per cell and direction; 4 follows the area that a cell covers to 1/16.
        aligned: half-pixel correction; off only to compare with torchvision's ``project_masks_on_boxes``.

    Returns:
        [N, M, M] float32 in 0..1.
    """
    if masks.device.type == "cpu":
        return cut_on_cpu(masks.float(), boxes.float(), index, size, sampling, aligned)
    rois = torch.cat([index[:, None].to(boxes.dtype), boxes], dim=1).float()
    cut = roi_align(masks[:, None].float(), rois, size, 1.0, sampling, aligned)
    return cut[:, 0]
