"""Wide 3 x 3 convolutions on a CPU in float32 by Winograd's minimal filtering.

Lavin and Gray 2016 (arXiv 1509.09308): tiles of 6 x 6 results take 64 multiplications per pair of channels in place of
324. torch carries NNPACK, which has it for one image, but calls it of its own accord only where oneDNN is switched
off and for 16 images or more. Results differ from the plain sum by rounding, about 1e-4 of the features' spread at
worst; an image's do not depend on others in its batch, as each is computed by itself.
"""

import torch
from torch import Tensor, nn

from medseg.models.fused import FusedConv2d
from medseg.models.layout import channels_first, channels_last

#: Below, the tiles' edges and transforms cost more than is gained: (measured) pixels, and products of input channels,
#: output channels and pixels.
LEAST_PIXELS, LEAST_PRODUCTS = 900, 2**25
#: Of input or output; with fewer, turning the array (NNPACK wants channels first) costs what is gained.
LEAST_CHANNELS = 128


class WinogradConv2d(FusedConv2d):
    """A 3 x 3 convolution of stride 1 with a border of one pixel; small images go oneDNN's way.

    Attributes:
        layout: how results lie in memory; those of small images are channels last.
        planes: the weights as NNPACK wants them, channels first.
    """

    layout = torch.channels_last
    planes: Tensor

    @classmethod
    def of(
        cls, plain: nn.Conv2d, relu: bool = False, layout: torch.memory_format = torch.channels_last
    ) -> "WinogradConv2d":
        """Return a convolution with the same weights."""
        made = super().of(plain, relu)
        assert isinstance(made, cls)
        made.layout = layout
        made.register_buffer("planes", made.weight.contiguous(), persistent=False)
        if made.bias is None:
            made.bias = nn.Parameter(made.weight.new_zeros(made.out_channels), requires_grad=False)
        return made

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolve [B, C, H, W] float32, see `FusedConv2d.forward`."""
        pixels = x.shape[2] * x.shape[3]
        if pixels < LEAST_PIXELS or self.in_channels * self.out_channels * pixels < LEAST_PRODUCTS:
            return super().forward(x, residual)
        images = [
            torch._nnpack_spatial_convolution(image, self.planes, self.bias, [1, 1], [1, 1])
            for image in channels_first(x).split(1)
        ]
        result = images[0] if len(images) == 1 else torch.cat(images)
        if self.layout == torch.channels_last:
            result = channels_last(result)
        if residual is not None:
            result = residual.add_(result)
        return result.relu_() if self.relu else result


def is_available() -> bool:
    """Tell whether this torch has NNPACK and this processor what NNPACK needs; readies it if so."""
    return torch.backends.nnpack.is_available() and hasattr(torch, "_nnpack_spatial_convolution")


def use_winograd(module: nn.Module, layout: torch.memory_format) -> None:
    """Exchange the fused convolutions that may gain by it for `WinogradConv2d`, in place.

    Args:
        module: a network that `medseg.models.fused.fuse` has been through.
        layout: how the results shall lie in memory: channels last for a fused convolution, or first.
    """
    for name, child in module.named_children():
        if type(child) is FusedConv2d and _may_gain(child):
            setattr(module, name, WinogradConv2d.of(child, child.relu, layout))
        else:
            use_winograd(child, layout)


def _may_gain(layer: nn.Conv2d) -> bool:
    shape = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
    wide = min(layer.in_channels, layer.out_channels) >= LEAST_CHANNELS
    return wide and shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
