"""ResNet with a feature pyramid, for any number of input channels."""

import math
from collections.abc import Callable

import torchvision.models.resnet as resnet
from torch import nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from medseg.values.plan import ModelPlan, PartNorm

BUILDERS: dict[str, Callable[..., resnet.ResNet]] = {
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet101": resnet.resnet101,
}


def norm_layer(kind: PartNorm) -> Callable[[int], nn.Module] | None:
    """Return what makes the normalisation of so many channels.

    GroupNorm has 32 groups where that divides the channels, but none of a single channel: where the coarsest level of
    a small crop is one pixel, that would be its own mean, which torch refuses.
    """
    if kind == "none":
        return None
    return FrozenBatchNorm2d if kind == "frozen_batch" else lambda n: nn.GroupNorm(_groups(n), n)


def _groups(channels: int) -> int:
    groups = math.gcd(channels, 32)
    return groups if groups < channels else max(1, channels // 2)


class _NoExtraLevel(LastLevelMaxPool):
    """Ends the pyramid at the backbone's last stage."""

    def forward(self, x, y, names):  # type: ignore[no-untyped-def]
        return x, names


def _deep_stem(in_channels: int, width: int) -> nn.Sequential:
    """Three 3 x 3 convolutions in place of one of 7 x 7 (He et al. 2019, arXiv 1812.01187, "ResNet-C").

    Only the last has stride 2, so that what is a few pixels large is first looked at in full resolution.
    """
    layers: list[nn.Module] = []
    for before in (in_channels, width):
        layers += [
            nn.Conv2d(before, width, 3, padding=1, bias=False),
            nn.GroupNorm(width // 3, width),
            nn.ReLU(inplace=True),
        ]
    layers.append(nn.Conv2d(width, 64, 3, stride=2, padding=1, bias=False))
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(*layers)


def build_backbone(plan: ModelPlan, in_channels: int) -> BackboneWithFPN:
    """Build the backbone (He et al. 2016) and its pyramid (Lin et al. 2017).

    Args:
        plan: names the ResNet, its normalisation, the pyramid's width and strides; one level of anchors more
            than strides adds twice the coarsest.
        in_channels: C of the input.

    Returns:
        A module from [B, C, H, W] to a dict of [B, fpn_channels, H/s, W/s] for s in ``plan.strides``,
        its parameters named as in torchvision's Mask R-CNN unless the stem is deep.
    """
    body = BUILDERS[plan.backbone](weights=None, norm_layer=norm_layer(plan.norm))
    if plan.stem == "deep":
        body.conv1 = _deep_stem(in_channels, plan.stem_channels)
    elif in_channels != 3:
        body.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
    width = body.inplanes // 8
    stages = 4 if plan.coarsest_stride == 32 else 3
    layers = {f"layer{i}": width * 2 ** (i - 1) for i in range(1, stages + 1)}
    if plan.finest_stride == 2:
        layers = {"relu": 64, **layers}  # the stem before its pooling
    return BackboneWithFPN(
        body,
        return_layers={name: str(i) for i, name in enumerate(layers)},
        in_channels_list=list(layers.values()),
        out_channels=plan.fpn_channels,
        extra_blocks=LastLevelMaxPool() if len(plan.anchor_sizes) > len(plan.strides) else _NoExtraLevel(),
        norm_layer=norm_layer(plan.fpn_norm),
    )
