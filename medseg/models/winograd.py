"""Wide 3 x 3 convolutions on a CPU in float32 by Winograd's minimal filtering.

Lavin and Gray 2016 (arXiv 1509.09308): tiles of 6 x 6 results take 64 multiplications per pair of channels in place of
324. torch carries NNPACK, which has it for one image, but calls it of its own accord only where oneDNN is switched
off and for 16 images or more. Results differ from the plain sum by rounding, about 1e-4 of the features' spread at
worst; an image's do not depend on others in its batch, as each is computed by itself.
"""

import torch
from torch import Tensor, nn

#: Below, the tiles' edges and transforms cost more than is gained: (measured) pixels, and products of input channels,
#: output channels and pixels.
LEAST_PIXELS, LEAST_PRODUCTS = 900, 2**25
#: Of input or output; narrower layers have too few products in any slice.
LEAST_CHANNELS = 64


class WinogradConv2d(nn.Conv2d):
    """A 3 x 3 convolution of stride 1 with a border of one pixel; small images go the plain way."""

    @classmethod
    def of(cls, plain: nn.Conv2d) -> "WinogradConv2d":
        """Return a convolution with the same weights, for inference."""
        made = cls(plain.in_channels, plain.out_channels, 3, padding=1, device="meta")
        made.weight = plain.weight
        made.bias = nn.Parameter(plain.weight.new_zeros(plain.out_channels)) if plain.bias is None else plain.bias
        return made.requires_grad_(False).train(plain.training)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [B, C, H, W] float32."""
        pixels = x.shape[2] * x.shape[3]
        if pixels < LEAST_PIXELS or self.in_channels * self.out_channels * pixels < LEAST_PRODUCTS:
            return super().forward(x)
        assert self.bias is not None
        images = [
            torch._nnpack_spatial_convolution(image, self.weight, self.bias, [1, 1], [1, 1])
            for image in x.contiguous().split(1)
        ]
        return images[0] if len(images) == 1 else torch.cat(images)


def is_available() -> bool:
    """Tell whether this torch has NNPACK and this processor what NNPACK needs; readies it if so."""
    return torch.backends.nnpack.is_available() and hasattr(torch, "_nnpack_spatial_convolution")


def use_winograd(module: nn.Module) -> None:
    """Exchange the convolutions that may gain by it for `WinogradConv2d`, in place."""
    for name, child in module.named_children():
        if type(child) is nn.Conv2d and _may_gain(child):
            setattr(module, name, WinogradConv2d.of(child))
        else:
            use_winograd(child)


def _may_gain(layer: nn.Conv2d) -> bool:
    shape = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
    wide = min(layer.in_channels, layer.out_channels) >= LEAST_CHANNELS
    return wide and shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1) and layer.padding_mode == "zeros"
