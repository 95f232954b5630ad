"""Weights that others trained: files with state dicts of torchvision's ResNets and Mask R-CNNs.

The user downloads them; nothing here does. `read_pretrained` tells what a file is, `Pretrained.settings` which fields
of the plan have to fit it, `medseg.models.transfer` puts the weights into a network.
"""

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torchvision.models.resnet as resnet
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from medseg.errors import ConfigError, ModelError
from medseg.values.plan import Backbone

#: Layout of a file: a classifier, torchvision's ``maskrcnn_resnet50_fpn`` (or Faster R-CNN), or the same ``_v2``.
Layout = Literal["classifier", "mask_rcnn", "mask_rcnn_v2"]

BODY = "backbone.body."
_TITLES: dict[Layout, str] = {
    "classifier": "classifier",
    "mask_rcnn": "Mask R-CNN",
    "mask_rcnn_v2": "Mask R-CNN, second version",
}
_EXPECTED = (
    "expected a state dict in torchvision's layout: resnet18, 34, 50 or 101, maskrcnn_resnet50_fpn or "
    "maskrcnn_resnet50_fpn_v2"
)
#: Names in files of torchvision before 0.13 (its published Mask R-CNN is one), and what they are called since.
_RENAMED = (
    (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2"),
    (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
    (r"^roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)$", lambda m: _mask_layer(int(m[1]), m[2])),
)
#: Other ResNets of torchvision, to say what a file is that cannot be used.
_OTHERS = (
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)

_BODY_SETTINGS: dict[str, Any] = {"model.norm": "frozen_batch", "model.stem": "conv7"}
_DETECTOR_SETTINGS: dict[Layout, dict[str, Any]] = {
    "classifier": {},
    "mask_rcnn": {
        "model.fpn_channels": 256,
        "model.fpn_norm": "none",
        "model.rpn_convolutions": 1,
        "model.box_head_convolutions": 0,
        "model.head_norm": "none",
    },
    "mask_rcnn_v2": {
        "model.fpn_channels": 256,
        "model.fpn_norm": "frozen_batch",
        "model.rpn_convolutions": 2,
        "model.box_head_convolutions": 4,
        "model.head_norm": "frozen_batch",
    },
}
_TORCHVISION: dict[str, Any] = {
    "model.backbone": "resnet50",
    **_BODY_SETTINGS,
    "model.finest_stride": 4,
    "model.coarsest_stride": 32,
    "model.semantic_head": False,
    "model.anchor_sizes": [[32.0], [64.0], [128.0], [256.0], [512.0]],
    "model.anchor_ratios": [0.5, 1.0, 2.0],
    "model.anchor_grid": "torchvision",
    "model.roi_op": "align",
    "model.roi_aligned": False,
    "model.roi_sampling_ratio": 2,
    "model.roi_canonical_size": 224.0,
    "model.box_roi_size": 7,
    "model.box_head_channels": 1024,
    "model.mask_roi_size": 14,
    "model.mask_size": 28,
    "model.mask_head_channels": 256,
    "model.mask_margin": 0.0,
    "model.mask_head": "class_specific",
    "model.mask_loss": "sigmoid",
    "model.rpn_nms_iou": 0.7,
    "model.proposals_before_nms": 1000,
    "inference.proposals": 1000,
    "inference.score_threshold": 0.05,
    "inference.nms_iou": 0.5,
    "inference.detections_per_slice": 100,
}
#: Plan fields that make the network compute what torchvision's Mask R-CNNs compute (without their resizing and
#: normalising): their state dicts then load key by key. `FrozenBatchNorm2d` adds 1e-5 to the variance, as torchvision
#: does except for its published ``maskrcnn_resnet50_fpn``, where it adds nothing.
PRESETS: dict[str, dict[str, Any]] = {
    "torchvision": {**_TORCHVISION, **_DETECTOR_SETTINGS["mask_rcnn"]},
    "torchvision_v2": {**_TORCHVISION, **_DETECTOR_SETTINGS["mask_rcnn_v2"]},
}


def preset_settings(name: str) -> dict[str, Any]:
    """Return the plan fields of a preset; ConfigError for a name that is none."""
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is unknown; expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """What a file of weights holds.

    Attributes:
        name: the file's name, for messages.
        layout: see `Layout`.
        backbone: which ResNet.
        weights: tensors by the names that they have in a `MaskRCNN` of stride 4 to 32; a classifier's own last
            layer keeps its name (``fc.weight``).
    """

    name: str
    layout: Layout
    backbone: Backbone
    weights: Mapping[str, Tensor]

    @property
    def title(self) -> str:
        """Return what it is, in words: ``resnet50 (classifier)``."""
        return f"{self.backbone} ({_TITLES[self.layout]})"

    @property
    def settings(self) -> dict[str, Any]:
        """Return the plan's fields that must have these values for the weights to mean what they meant."""
        return {"model.backbone": self.backbone, **_BODY_SETTINGS, **_DETECTOR_SETTINGS[self.layout]}


def read_pretrained(path: Path | str) -> Pretrained:
    """Read weights in torchvision's layout.

    Args:
        path: ``.safetensors``, or what ``torch.save`` wrote of a state dict (``.pth``); nothing in it is executed.

    Raises:
        ModelError: not readable, not a state dict, or of a network that medseg has not.
    """
    path = Path(path)
    tensors = _read(path)
    weights = {_renamed(name): value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    if "conv1.weight" in weights:
        layout: Layout = "classifier"
        weights = {(k if k.startswith("fc.") else BODY + k): v for k, v in weights.items()}
    elif f"{BODY}conv1.weight" in weights and any(k.startswith("roi_heads.") for k in weights):
        layout = "mask_rcnn_v2" if "backbone.fpn.inner_blocks.0.1.weight" in weights else "mask_rcnn"
    else:
        raise ModelError(f"{path}: {len(tensors)} tensors, the first {next(iter(tensors), None)!r}; {_EXPECTED}")
    shapes = {k.removeprefix(BODY): tuple(v.shape) for k, v in weights.items() if k.startswith(BODY)}
    return Pretrained(name=path.name, layout=layout, backbone=_backbone(shapes, path), weights=weights)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"{path}: no such file; {_EXPECTED}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Files of before 2020 are no zip archives and cannot be mapped into memory.
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except SafetensorError as error:
        raise ModelError(f"{path}: not a safetensors file ({error}); download it anew") from None
    except Exception as error:  # torch.load raises many kinds for files that are cut, foreign or want to run code
        reason = str(error).partition("\n")[0].partition(". ")[0][:120]
        raise ModelError(f"{path}: not a file of weights that can be read safely ({reason}); {_EXPECTED}") from None
    if not isinstance(data, Mapping) or not data or not all(isinstance(v, Tensor) for v in data.values()):
        held = ", ".join(map(repr, list(data)[:3])) if isinstance(data, Mapping) else type(data).__name__
        raise ModelError(f"{path}: holds {held or 'nothing'}, not tensors by name; {_EXPECTED}")
    return dict(data)


def _mask_layer(number: int, kind: str) -> str:
    return f"roi_heads.mask_head.{number - 1}.0.{kind}"


def _renamed(name: str) -> str:
    for pattern, new in _RENAMED:
        name = re.sub(pattern, new, name)
    return name


def _backbone(shapes: Mapping[str, tuple[int, ...]], path: Path) -> Backbone:
    """Return the ResNet whose tensors have these shapes, the stem's channels aside."""
    for name in get_args(Backbone):
        if _resnet_shapes(name) == {**shapes, "conv1.weight": (64, 3, 7, 7)}:
            found: Backbone = name
            return found
    blocks = [len({k.split(".")[1] for k in shapes if k.startswith(f"layer{i}.")}) for i in range(1, 5)]
    like = next((n for n in _OTHERS if _resnet_shapes(n) == shapes), None)
    said = (
        f"the backbone is {like}" if like else f"a backbone with {', '.join(map(str, blocks))} blocks of other shapes"
    )
    raise ModelError(f"{path}: {said}, which medseg has not; {_EXPECTED}")


@cache
def _resnet_shapes(name: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        tensors = getattr(resnet, name)(weights=None).state_dict()
    return {k: tuple(v.shape) for k, v in tensors.items() if not k.startswith("fc.") and "num_batches" not in k}
