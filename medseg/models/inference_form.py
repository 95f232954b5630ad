"""A network as it is applied: the same weights, laid out for speed.

Everything here changes results by rounding alone: normalisation whose numbers are fixed is multiplied into the
convolution before it, arrays lie channels last (which the convolutions of CPUs and GPUs alike want), weights may be in
bfloat16, and on a CPU in float32 wide convolutions are Winograd's, the others of such a network oneDNN's fused ones.
"""

import copy
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d

from medseg.models import fused, winograd
from medseg.models.mask_rcnn import MaskRCNN
from medseg.values.plan import Precision

#: Channels of the pyramid from which Winograd's and fused convolutions gain; a narrow ResNet-18 is as quick without.
WIDE = 128


def choose_precision(wanted: Precision, device: torch.device) -> torch.dtype:
    """Return what convolutions and linear layers compute in: as told, or for ``auto`` bfloat16 where that is worth it.

    That is where the device has matrix units for it: GPUs from compute capability 8 on, CPUs with AMX, several times
    quicker than float32. A CPU that only has AVX-512 BF16 is 1.6 to 2 times quicker, for which objects at the threshold
    are not put at stake (docs/inference.md). On a torch that cannot tell what a CPU has, ``auto`` is float32.
    """
    if wanted != "auto":
        return torch.bfloat16 if wanted == "bfloat16" else torch.float32
    if device.type == "cuda":
        units = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        units = bool(capabilities.get("amx_bf16"))
    return torch.bfloat16 if units else torch.float32


def exact_float32(dtype: torch.dtype) -> AbstractContextManager[None]:
    """Keep GPUs from rounding to TF32 (10 bits) while they compute in float32, so that float32 is what is said."""
    if dtype != torch.float32:
        return nullcontext()
    kept = torch.backends.cudnn
    return kept.flags(enabled=True, benchmark=kept.benchmark, deterministic=kept.deterministic, allow_tf32=False)


def for_inference(model: MaskRCNN, dtype: torch.dtype) -> MaskRCNN:
    """Return a copy of a network in evaluation mode that computes in ``dtype``; the network itself stays as it is.

    What scores, boxes and masks are read from (the last layers of box and mask head) stays in float32: eight bits
    would be seen in them. Boxes, pooling and non-maximum suppression are in float32 whatever ``dtype``.
    """
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    _fold(copied)
    copied.to(dtype)
    heads = copied.roi_heads
    exact_on_cpu = dtype == torch.float32 and next(copied.parameters()).device.type == "cpu"
    if exact_on_cpu and copied.backbone.out_channels >= WIDE and fused.is_available() and winograd.is_available():
        _fuse(copied)
    else:
        copied.to(memory_format=torch.channels_last)
    _take_as(copied.backbone, dtype, torch.channels_last)
    for part in (heads.box_head, heads.mask_head):
        _take_as(part, dtype)
    for last in (heads.box_predictor, heads.mask_predictor.get_submodule("mask_fcn_logits")):
        _take_as(last.to(torch.float32), torch.float32)
    return copied


def _fuse(model: MaskRCNN) -> None:
    """Lay out for float32 on a CPU: oneDNN's convolutions are channels last, NNPACK's and what reads them first."""
    for part in (model.backbone, model.roi_heads, model.rpn.head.conv):
        part.to(memory_format=torch.channels_last)
        fused.fuse(part)
    winograd.use_winograd(model.backbone.get_submodule("body"), torch.channels_last)
    for part in (model.backbone.get_submodule("fpn"), model.rpn.head.conv):
        winograd.use_winograd(part, torch.contiguous_format)


def _take_as(module: nn.Module, dtype: torch.dtype, layout: torch.memory_format = torch.preserve_format) -> None:
    """Have a module take its input in ``dtype`` and ``layout``, whatever it is given."""
    module.register_forward_pre_hook(lambda _, given: (given[0].to(dtype, memory_format=layout),))


def _fold(module: nn.Module) -> None:
    """Multiply each frozen batch normalisation into the convolution before it."""
    children = list(module.named_children())
    for _, child in children:
        _fold(child)
    for (_, before), (name, norm) in zip(children, children[1:], strict=False):
        last = before[-1] if isinstance(before, nn.Sequential) else before  # a deep stem ends in its convolution
        if isinstance(last, nn.Conv2d) and isinstance(norm, FrozenBatchNorm2d):
            _fold_into(last, norm)
            setattr(module, name, nn.Identity())


def _fold_into(convolution: nn.Conv2d, norm: FrozenBatchNorm2d) -> None:
    mean, variance, weight, bias = (_buffer(norm, n) for n in ("running_mean", "running_var", "weight", "bias"))
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, mean, variance, norm.eps, weight, bias
    )


def _buffer(norm: FrozenBatchNorm2d, name: str) -> Tensor:
    value = norm.get_buffer(name)
    assert value is not None
    return value
