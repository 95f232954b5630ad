"""Weights of one network into another: what fits is taken, the rest stays as it was drawn."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medseg.errors import ModelError
from medseg.labels import LabelTable
from medseg.models.mask_rcnn import MaskRCNN
from medseg.models.pretrained import BODY, Pretrained
from medseg.values.plan import Plan

#: Names in a message before it only counts.
SHOWN = 4

_PARTS = {
    BODY: "backbone",
    "backbone.fpn.": "pyramid",
    "rpn.": "proposals",
    "roi_heads.box_": "box head",
    "roi_heads.mask_": "mask head",
    "semantic.": "semantic head",
}
#: First convolution of either stem.
_STEMS = (f"{BODY}conv1.weight", f"{BODY}conv1.0.weight")
#: What the semantic head tells the pyramid about each class.
_EMBEDDING = "semantic.embedding.weight"
#: Tensors with a row (or four, or a column) per class: axis, rows per class, whether the background has one.
_CLASS_AXES = {
    "roi_heads.box_predictor.cls_score.weight": (0, 1, True),
    "roi_heads.box_predictor.cls_score.bias": (0, 1, True),
    "roi_heads.box_predictor.bbox_pred.weight": (0, 4, True),
    "roi_heads.box_predictor.bbox_pred.bias": (0, 4, True),
    "roi_heads.mask_predictor.mask_fcn_logits.weight": (0, 1, True),
    "roi_heads.mask_predictor.mask_fcn_logits.bias": (0, 1, True),
    "semantic.logits.weight": (0, 1, False),
    "semantic.logits.bias": (0, 1, False),
    _EMBEDDING: (1, 1, False),
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """What became of the tensors of one part of the network, by their names.

    loaded: taken whole; adapted: taken for other input channels or for the classes that both have; fresh: not taken.
    """

    name: str
    loaded: tuple[str, ...]
    adapted: tuple[str, ...]
    fresh: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What was taken over: per part of the network, for which classes, and the source's names that were left out."""

    parts: tuple[Part, ...]
    classes: tuple[str, ...]
    unused: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return it in words, a line per part."""
        text = []
        for part in self.parts:
            taken = len(part.loaded) + len(part.adapted)
            line = f"{part.name}: {taken} of {taken + len(part.fresh)} tensors loaded"
            if part.adapted:
                line += f"; adapted: {_shown(part.adapted)}"
            if part.fresh and taken:
                line += f"; new: {_shown(part.fresh)}"
            text.append(line)
        text.append(f"classes: {', '.join(self.classes) or 'none taken over, all new'}")
        if self.unused:
            text.append(f"left out: {_shown(self.unused)}")
        return text

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and dicts for JSON."""
        parts = {p.name: {"loaded": len(p.loaded), "adapted": [*p.adapted], "new": [*p.fresh]} for p in self.parts}
        return {"parts": parts, "classes": [*self.classes], "left_out": [*self.unused]}


def inflated(weight: Tensor, channels: int) -> Tensor:
    """Return a first convolution for another number of input channels.

    Every new channel gets the mean over the old ones, times old / new channels, so that one picture copied into all
    channels gives the response that it gave before (Carreira and Zisserman 2017, arXiv 1705.07750, section 2.4.1,
    inflate so along time). With as many channels as before nothing changes.

    Args:
        weight: [F, C, h, w].
        channels: the new C.

    Returns:
        [F, channels, h, w].
    """
    before = weight.shape[1]
    if before == channels:
        return weight
    return weight.mean(dim=1, keepdim=True).expand(-1, channels, -1, -1) * (before / channels)


def load_pretrained(model: MaskRCNN, plan: Plan, source: Pretrained) -> Transfer:
    """Put torchvision's weights into a network, whose plan has `Pretrained.settings`.

    What belongs to the source's classes is left out: its file has no names for them. Anchors of another number leave
    the layers that predict per anchor new.

    Raises:
        ModelError: nothing fits, or weights that are not finite.
    """
    levels = int(math.log2(4 / plan.model.finest_stride))  # the file's pyramid begins at stride 4
    moved = {_level_moved(name, levels): value for name, value in source.weights.items()}
    return _load(model, moved, {k: v for k, v in moved.items() if k not in _CLASS_AXES}, (), source.name)


def load_trained(model: MaskRCNN, plan: Plan, weights: Mapping[str, Tensor], trained: Plan, source: str) -> Transfer:
    """Put the weights of a medseg network into another one; what belongs to a class goes to the class of its name.

    Args:
        model: built by `plan`.
        plan: with the architecture of `trained` as far as weights are to be taken over.
        weights: state dict of a network built by `trained`.
        trained: its plan.
        source: what to call it in messages.

    Raises:
        ModelError: nothing fits, or weights that are not finite.
    """
    levels = int(math.log2(trained.model.finest_stride / plan.model.finest_stride))
    moved = {_level_moved(name, levels): value for name, value in weights.items()}
    pairs = _same_names(trained.labels, plan.labels)
    agnostic = "class_agnostic" in (plan.model.mask_head, trained.model.mask_head)
    axes = {k: axes for k, axes in _CLASS_AXES.items() if not (agnostic and "mask_fcn_logits" in k)}
    usable, state = dict(moved), model.state_dict()
    for name in axes.keys() & moved.keys() & state.keys():
        # What a new class would tell the pyramid is nothing yet, see `_quieten`.
        new = torch.zeros_like(state[name]) if name == _EMBEDDING else state[name]
        usable[name] = _by_class(moved[name], new, pairs, *axes[name])
    return _load(model, moved, usable, tuple(plan.labels.names[j - 1] for _, j in pairs), source)


def _same_names(before: LabelTable, after: LabelTable) -> list[tuple[int, int]]:
    """Return (position before, position after), from 1, of the labels in both."""
    return [(before.names.index(name) + 1, i + 1) for i, name in enumerate(after.names) if name in before.names]


def _by_class(
    value: Tensor, target: Tensor, pairs: list[tuple[int, int]], axis: int, rows: int, background: bool
) -> Tensor:
    """Return the target with the source's rows in place of those of the classes that both have."""
    if value.shape == target.shape and pairs == [(i, i) for i in range(1, target.shape[axis] // rows + 1 - background)]:
        return value
    source, out = value.movedim(axis, 0), target.detach().clone().movedim(axis, 0)
    if not pairs or source.shape[1:] != out.shape[1:]:
        return value.new_empty(0)  # fits nothing
    first = 0 if background else 1
    for i, j in [(0, 0)] * background + pairs:
        out[(j - first) * rows : (j - first + 1) * rows] = source[(i - first) * rows : (i - first + 1) * rows]
    return out.movedim(0, axis)


def _level_moved(name: str, levels: int) -> str:
    """Return the name of a pyramid's tensor where the pyramid has so many more (or less) fine levels."""
    return re.sub(r"(?<=^backbone\.fpn\.(?:inner|layer)_blocks\.)\d+", lambda m: str(int(m[0]) + levels), name)


def _load(
    model: MaskRCNN,
    source: Mapping[str, Tensor],
    usable: Mapping[str, Tensor],
    classes: tuple[str, ...],
    title: str,
) -> Transfer:
    """Copy what fits.

    Args:
        model: gets the weights.
        source: all tensors of the source, by their names in the model.
        usable: those that may be taken, rows of other classes already exchanged for the model's own.
        classes: names of the classes taken over.
        title: of the source, for messages.
    """
    state = model.state_dict()
    found: dict[str, tuple[list[str], list[str], list[str]]] = {part: ([], [], []) for part in _PARTS.values()}
    for name, target in state.items():
        value = usable.get(name)
        if name in _STEMS and value is not None and value.ndim == 4:
            value = inflated(value, target.shape[1])
        loaded, adapted, fresh = found[next(part for prefix, part in _PARTS.items() if name.startswith(prefix))]
        if value is None or value.shape != target.shape:
            fresh.append(name)
            continue
        if not torch.isfinite(value).all():
            raise ModelError(f"{title}: {name} has values that are not finite; use another file")
        (loaded if value is source[name] else adapted).append(name)
        with torch.no_grad():
            target.copy_(value)
    parts = [Part(name=part, loaded=(*a,), adapted=(*b,), fresh=(*c,)) for part, (a, b, c) in found.items()]
    taken = {name for part in parts for name in part.loaded + part.adapted}
    if not taken:
        raise ModelError(f"{title}: no tensor fits the network; it must be of the same architecture")
    _quieten(model, taken)
    return Transfer(
        parts=tuple(p for p in parts if p.loaded or p.adapted or p.fresh),
        classes=classes,
        unused=tuple(sorted(source.keys() - taken)),
    )


def _quieten(model: MaskRCNN, taken: set[str]) -> None:
    """Let a new semantic head say nothing at first to a pyramid that other layers have learnt to read."""
    if model.semantic is None or not any(name.startswith("backbone.fpn.") for name in taken):
        return
    for name, parameter in model.named_parameters():
        if name in (_EMBEDDING, "semantic.embedding.bias") and name not in taken:
            torch.nn.init.zeros_(parameter)


def _shown(names: tuple[str, ...]) -> str:
    """Return the first names, and how many more there are."""
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
