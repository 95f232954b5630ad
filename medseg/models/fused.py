"""Convolutions on a CPU that add a residual and apply ReLU while they write: oneDNN's post-operations.

By themselves these are passes over memory that cost as much as a 1 x 1 convolution. torch has the fused operations for
its compiler (`torch.ops.mkldnn`), without gradients. Results are those of the plain modules but for rounding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FeaturePyramidNetwork


class FusedConv2d(nn.Conv2d):
    """A convolution of arrays that lie channels last, for inference.

    Attributes:
        relu: whether negative results become 0.
    """

    relu = False

    @classmethod
    def of(cls, plain: nn.Conv2d, relu: bool = False) -> "FusedConv2d":
        """Return a convolution with the same weights."""
        made = cls(plain.in_channels, plain.out_channels, 1, device="meta")
        made.kernel_size, made.stride, made.padding = plain.kernel_size, plain.stride, plain.padding
        made.dilation, made.groups = plain.dilation, plain.groups
        made.weight, made.bias, made.relu = plain.weight, plain.bias, relu
        return made.requires_grad_(False).train(plain.training)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolve [B, C, H, W]; a residual is added before ReLU and overwritten by the result."""
        if not len(x):
            return super().forward(x)
        how = (self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups)
        fused: Tensor
        if residual is None:
            fused = torch.ops.mkldnn._convolution_pointwise(x, *how, "relu" if self.relu else "none", [], "")
        else:
            then = "relu" if self.relu else None
            fused = torch.ops.mkldnn._convolution_pointwise_.binary(residual, x, *how, "add", 1.0, then, [], None)
        return fused


class Residual(nn.Module):
    """A block of a ResNet (He et al. 2016) whose normalisation is in its convolutions; it overwrites its input."""

    def __init__(self, block: BasicBlock | Bottleneck):
        super().__init__()
        layers = [layer for layer in block.children() if isinstance(layer, FusedConv2d)]
        self.convolutions = nn.ModuleList(layers)
        for layer in layers:
            layer.relu = True
        self.shortcut = block.downsample

    def forward(self, x: Tensor) -> Tensor:
        """Return ReLU of the block's convolutions and its shortcut, [B, C, H, W]."""
        residual = x if self.shortcut is None else self.shortcut(x)
        *inner, last = self.convolutions
        for convolution in inner:
            x = convolution(x)
        result: Tensor = last(x, residual)
        return result


class Pyramid(nn.Module):
    """A feature pyramid (Lin et al. 2017) whose lateral convolutions add themselves to what comes from above."""

    def __init__(self, plain: FeaturePyramidNetwork):
        super().__init__()
        self.laterals = nn.ModuleList(block[0] for block in plain.inner_blocks)
        self.layer_blocks, self.extra_blocks = plain.layer_blocks, plain.extra_blocks

    def forward(self, levels: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the pyramid of [B, C, H, W] levels, finest first, by the same names and those of extra ones."""
        sums: list[Tensor] = []
        for lateral, level in zip(reversed(self.laterals), reversed(levels.values()), strict=True):
            above = [F.interpolate(below, size=level.shape[2:]) for below in sums[:1]]
            sums.insert(0, lateral(level, *above))
        found = [block(level) for block, level in zip(self.layer_blocks, sums, strict=True)]
        found, names = self.extra_blocks(found, list(levels.values()), list(levels))
        return dict(zip(names, found, strict=True))


def is_available() -> bool:
    """Tell whether this torch has oneDNN and the fused operations."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def fuse(module: nn.Module) -> None:
    """Exchange convolutions for fused ones, with what follows them where that is ReLU or a sum, in place.

    A normalisation that is left between them is computed as before.
    """
    for name, child in module.named_children():
        fuse(child)
        normalised = any(isinstance(layer, nn.GroupNorm) for layer in child.modules())
        if type(child) is nn.Conv2d and isinstance(child.padding, tuple) and child.padding_mode == "zeros":
            setattr(module, name, FusedConv2d.of(child))
        elif isinstance(child, BasicBlock | Bottleneck) and not normalised:
            setattr(module, name, Residual(child))
        elif isinstance(child, FeaturePyramidNetwork) and not normalised:
            setattr(module, name, Pyramid(child))
    if isinstance(module, nn.Sequential | IntermediateLayerGetter):  # whose order is that of their children
        layers = [(name, child) for name, child in module.named_children() if not isinstance(child, nn.Identity)]
        for (_, layer), (name, following) in zip(layers, layers[1:], strict=False):
            if isinstance(layer, FusedConv2d) and isinstance(following, nn.ReLU):
                layer.relu = True
                setattr(module, name, nn.Identity())
