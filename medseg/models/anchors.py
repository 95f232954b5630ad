"""Anchors: the boxes that the region proposal network refines."""

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from medseg.values.plan import ModelPlan


class PyramidAnchors(AnchorGenerator):
    """torchvision's anchor generator without its rounding, centred on the feature cells.

    torchvision rounds the sides of anchors to even pixels, which moves a 5 pixel anchor by a fifth, and
    centres them on the cells' corners. ``exact=False`` does the same, for its weights.

    Args:
        sizes: square root of the area in pixels, one tuple per pyramid level.
        ratios: height / width, the same on every level.
        finest_stride: pixels per cell on the first level; it doubles from level to level.
        exact: keep the sizes and centre anchors on the cells (offset half a stride); else as torchvision.
    """

    def __init__(
        self,
        sizes: tuple[tuple[float, ...], ...],
        ratios: tuple[float, ...],
        *,
        finest_stride: int = 4,
        exact: bool = True,
    ):
        self.finest_stride = finest_stride
        self.exact = exact
        super().__init__(sizes, (ratios,) * len(sizes))

    def generate_anchors(
        self,
        scales: list[float],
        aspect_ratios: list[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> Tensor:
        """Return [len(ratios) * len(scales), 4] anchors around zero."""
        if not self.exact:
            return super().generate_anchors(scales, aspect_ratios, dtype, device)
        height = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        side = torch.as_tensor(scales, dtype=dtype, device=device)
        widths = ((1 / height)[:, None] * side[None, :]).reshape(-1)
        heights = (height[:, None] * side[None, :]).reshape(-1)
        return torch.stack([-widths, -heights, widths, heights], dim=1) / 2

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return per image [sum of cells * anchors, 4] anchors in pixels, coarse levels last.

        The stride of a level is a power of two (a level may be cut off where the image side is no multiple
        of it), so it is read off the level's rank and not off the ratio of sizes, which rounds.
        """
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        levels = []
        for rank, (feature, cell) in enumerate(zip(feature_maps, self.cell_anchors, strict=True)):
            stride = self.finest_stride * 2**rank
            offset = stride / 2 if self.exact else 0.0
            rows = torch.arange(feature.shape[-2], device=device) * stride + offset
            columns = torch.arange(feature.shape[-1], device=device) * stride + offset
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            centres = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
            levels.append((centres + cell[None]).reshape(-1, 4))
        anchors = torch.cat(levels)
        return [anchors] * len(image_list.image_sizes)


def build_anchors(plan: ModelPlan) -> PyramidAnchors:
    """Return the plan's anchors."""
    exact = plan.anchor_grid == "exact"
    return PyramidAnchors(plan.anchor_sizes, plan.anchor_ratios, finest_stride=plan.finest_stride, exact=exact)
