"""The Plan: everything decided before training, in one readable YAML file saved with the model.

Training and inference read the same Plan, so they cannot drift apart. It is frozen; `Plan.with_overrides`
returns a changed copy. ``reasons`` says, for the fields that were derived from a cohort, why they have
their value.
"""

import difflib
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError, model_validator

from medseg.errors import ConfigError
from medseg.labels import LabelTable
from medseg.values.augmentation import AugmentationPlan
from medseg.values.geometry import check_orientation
from medseg.values.linking_plan import LinkingPlan
from medseg.values.section import Section

Backbone = Literal["resnet18", "resnet34", "resnet50", "resnet101"]
#: Normalisation of a part of the network that may have none.
PartNorm = Literal["none", "group", "frozen_batch"]
#: Plans of earlier versions have true or false for the pyramid.
PyramidNorm = Annotated[PartNorm, BeforeValidator(lambda v: ("none", "group")[v] if isinstance(v, bool) else v)]

#: What the network computes in; ``auto`` is bfloat16 where the device has units for it (in training and inference by
#: rules of their own).
Precision = Literal["auto", "float32", "bfloat16"]

Labels = Annotated[
    LabelTable,
    BeforeValidator(lambda v: v if isinstance(v, LabelTable) else LabelTable.from_dict(v)),
    PlainSerializer(lambda v: v.to_dict()),
]


class InputPlan(Section):
    """How a volume becomes the network's input; the same in training and inference."""

    orientation: str = "HPL"
    #: What each image of a study is called (the MR sequences), in the order in which they are stacked.
    channel_names: tuple[Annotated[str, Field(min_length=1)], ...] = Field(("image",), min_length=1)
    #: (row, column) size in mm of the pixels that the network sees; slices stay as they are.
    spacing_mm: tuple[float, float]
    #: Where the context planes of a slice lie, mm along the slice axis, ascending; (0.0,) is slice-wise.
    context_mm: tuple[float, ...] = (0.0,)
    #: ``window``: each (low, high) of ``windows`` is mapped to -1..1 and is one channel per image and plane;
    #: ``zscore``: one channel per image and plane, each image of mean 0 and SD 1 (MR).
    intensity: Literal["window", "zscore"] = "window"
    windows: tuple[tuple[float, float], ...] = ((-160.0, 240.0),)
    #: Everything at or below this value all around the patient is left out before the network; None: nothing is.
    air_threshold: float | None = None

    @model_validator(mode="after")
    def _check(self) -> "InputPlan":
        check_orientation(self.orientation)
        if min(self.spacing_mm) <= 0:
            raise ValueError(f"spacing_mm {self.spacing_mm}: expected more than 0")
        if 0.0 not in self.context_mm or list(self.context_mm) != sorted(set(self.context_mm)):
            raise ValueError(f"context_mm {self.context_mm}: expected ascending offsets that include 0")
        if self.intensity == "window" and (not self.windows or any(low >= high for low, high in self.windows)):
            raise ValueError(f"windows {self.windows}: expected (low, high) pairs with low < high")
        if len(set(self.channel_names)) != len(self.channel_names):
            raise ValueError(f"channel_names {self.channel_names}: expected each name once")
        return self

    @property
    def channels(self) -> int:
        """Input channels C: images x windows x planes."""
        windows = len(self.windows) if self.intensity == "window" else 1
        return len(self.channel_names) * windows * len(self.context_mm)


class ModelPlan(Section):
    """The network."""

    backbone: Backbone = "resnet50"
    norm: Literal["group", "frozen_batch"] = "group"
    #: ``conv7``: one convolution of 7 x 7 with stride 2, as published; ``deep``: three of 3 x 3, the first two in full
    #: resolution, for objects of a few pixels.
    stem: Literal["conv7", "deep"] = "conv7"
    #: Channels of the deep stem before its last convolution.
    stem_channels: int = Field(24, ge=3, multiple_of=3)
    fpn_channels: int = Field(256, ge=8)
    #: Normalisation in the pyramid: ``group`` (Wu and He 2018) helps where nothing is pretrained, ``frozen_batch`` is
    #: for torchvision's second Mask R-CNN.
    fpn_norm: PyramidNorm = "none"
    #: Stride in pixels of the pyramid's finest level: 4 as published, 2 adds a level from the stem for objects of
    #: a few pixels, at a third of the cost of sampling the image up by two.
    finest_stride: Literal[2, 4] = 4
    #: Classify the pixels of the finest level beside the objects and tell the other heads (`models.semantic`).
    semantic_head: bool = False
    #: Stride of the coarsest ResNet stage: 32 as published; 16 leaves out the last stage, which for slices of some
    #: 200 pixels is two thirds of the weights and a third of the time for a dozen cells.
    coarsest_stride: Literal[16, 32] = 32
    #: Anchor side (square root of area) in pixels, one tuple per pyramid level from the finest to the coarsest
    #: (or one of twice its stride besides).
    anchor_sizes: tuple[tuple[float, ...], ...] = ((16.0,), (32.0,), (64.0,), (128.0,), (256.0,))
    #: Height / width of anchors.
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    #: ``exact``: as large as said, in the middle of the feature cells; ``torchvision``: as its weights learnt them,
    #: sides rounded to even pixels, on the cells' upper left corners.
    anchor_grid: Literal["exact", "torchvision"] = "exact"
    #: Convolutions of 3 x 3 that the proposals are read from.
    rpn_convolutions: int = Field(1, ge=1)
    roi_op: Literal["align", "pool"] = "align"
    #: Half-pixel correction of ROI Align; off only for weights that were trained without (torchvision's).
    roi_aligned: bool = True
    roi_sampling_ratio: int = Field(2, ge=1)
    #: Side in pixels of the object that is pooled from the stride-16 level (FPN paper, eq. 1).
    roi_canonical_size: float = Field(224.0, gt=0)
    box_roi_size: int = Field(7, ge=1)
    box_head_channels: int = Field(1024, ge=8)
    #: 0: two linear layers, as published; n: n convolutions of 3 x 3 with the pyramid's width and one linear layer
    #: (Wu and He 2018; torchvision's second Mask R-CNN has 4).
    box_head_convolutions: int = Field(0, ge=0)
    #: Normalisation after the convolutions of box and mask head.
    head_norm: PartNorm = "none"
    mask_roi_size: int = Field(14, ge=2)
    #: Side M of the predicted masks; mask_roi_size times a power of two.
    mask_size: int = Field(28, ge=4)
    mask_head_channels: int = Field(256, ge=8)
    #: Convolutions of 3 x 3 before the mask is enlarged.
    mask_head_convolutions: int = Field(4, ge=1)
    #: Masks reach beyond the detected box by this share of its size on every side, so that a box a little too small
    #: does not cut the object straight.
    mask_margin: float = Field(0.0, ge=0, le=0.5)
    mask_head: Literal["class_specific", "class_agnostic"] = "class_specific"
    mask_loss: Literal["sigmoid", "softmax"] = "sigmoid"
    #: Non-maximum suppression and number of proposals.
    rpn_nms_iou: float = Field(0.7, gt=0, le=1)
    proposals_before_nms: int = Field(1000, ge=1)
    proposals: int = Field(200, ge=1)

    @model_validator(mode="after")
    def _check(self) -> "ModelPlan":
        factor = self.mask_size / self.mask_roi_size
        if factor < 1 or factor != int(factor) or int(factor) & (int(factor) - 1):
            raise ValueError(
                f"mask_size {self.mask_size}: expected mask_roi_size {self.mask_roi_size} times 1, 2, 4 or 8"
            )
        if len(self.anchor_sizes) - len(self.strides) not in (0, 1):
            raise ValueError(
                f"anchor_sizes has {len(self.anchor_sizes)} levels, expected {len(self.strides)} (strides "
                f"{self.finest_stride} to {self.coarsest_stride}) or one more ({2 * self.coarsest_stride})"
            )
        if len({len(level) for level in self.anchor_sizes}) != 1 or any(s <= 0 for lv in self.anchor_sizes for s in lv):
            raise ValueError("anchor_sizes: expected the same number of positive sizes on every level")
        if self.mask_head == "class_agnostic" and self.mask_loss == "softmax":
            raise ValueError("mask_loss softmax compares classes; it needs mask_head class_specific")
        return self

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the pyramid levels from which ROIs are pooled, finest first."""
        return tuple(s for s in (2, 4, 8, 16, 32) if self.finest_stride <= s <= self.coarsest_stride)


class TrainingPlan(Section):
    """The optimisation."""

    seed: int = 0
    #: Least and largest distance of slices in the cohort, mm; predictions tell what is far from it. None: cases of a
    #: single slice, or a plan of an earlier version.
    slice_spacing_mm: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | None = None
    steps: int = Field(10000, ge=1)
    #: Slices that one step learns from, over all processes together.
    batch_size: int = Field(4, ge=1)
    #: In how many parts, one after the other, a GPU computes its share of them: less memory, the same step. (A CPU
    #: takes the slices one by one whatever this says.)
    accumulate: int = Field(1, ge=1)
    #: Steps between checkpoints, from which a killed run can go on; there is one at every validation as well.
    checkpoint_every: int = Field(500, ge=1)
    #: (rows, columns) of the training crop in pixels, a multiple of 32.
    crop_size: tuple[Annotated[int, Field(ge=32, multiple_of=32)], Annotated[int, Field(ge=32, multiple_of=32)]] = (
        256,
        256,
    )
    #: In this share of the batches each sample is a crop of this size in pixels around a small object (a third of it at
    #: most): more of them are seen in the same time where they cover little of a slice.
    focus_fraction: float = Field(0.0, ge=0, le=1)
    focus_size: tuple[Annotated[int, Field(ge=32, multiple_of=32)], Annotated[int, Field(ge=32, multiple_of=32)]] = (
        64,
        64,
    )
    #: ``adamw`` (Loshchilov and Hutter 2019) or ``sgd``, which wants a learning rate some ten times higher and a
    #: weight decay of 1e-4.
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    #: Of ``sgd``.
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    clip_norm: float = Field(5.0, gt=0)
    ema_decay: float = Field(0.998, ge=0, lt=1)
    #: IoU with an object from which an anchor is positive, below which it is negative, and the same for proposals.
    rpn_positive_iou: float = Field(0.5, gt=0, le=1)
    rpn_negative_iou: float = Field(0.3, gt=0, le=1)
    box_positive_iou: float = Field(0.5, gt=0, le=1)
    #: Proposals between the two are not learnt from: around a small object they would outnumber the good ones and
    #: teach that what is there is background.
    box_negative_iou: float = Field(0.5, gt=0, le=1)
    #: Masks are learnt in boxes of at least this IoU with their object: at inference they are cut from corrected boxes.
    mask_positive_iou: float = Field(0.5, gt=0, le=1)
    #: Samples per cell and direction when mask targets are cut; 4 follows the area that a cell covers to 1/16.
    mask_target_sampling: int = Field(4, ge=1)
    #: Weight of positives and focusing exponent of the proposals' objectness (`models.proposals`).
    focal_alpha: float = Field(0.5, gt=0, lt=1)
    focal_gamma: float = Field(2.0, ge=0)
    #: Factor of the proposals' box loss.
    rpn_box_weight: float = Field(1.0, gt=0)
    #: Factor of the per-pixel loss of the semantic head.
    semantic_weight: float = Field(0.5, ge=0)
    #: A class that covers fewer cells than this weighs less in it: a slice without the class teaches little about it.
    semantic_min_cells: float = Field(50.0, gt=0)
    #: Shifted and scaled copies of each object's box that join the proposals, so that box and mask head learn to
    #: correct boxes before the proposals are any good; with none, an early head only sees exact boxes.
    jittered_boxes: int = Field(4, ge=0)
    #: Standard deviation of their shift, in sides of the box, and of the logarithm of their scale.
    jitter_shift: float = Field(0.12, ge=0)
    jitter_scale: float = Field(0.15, ge=0)
    box_samples: int = Field(64, ge=2)
    #: Largest share of positives among the sampled proposals.
    box_positive_fraction: float = Field(0.25, gt=0, le=1)
    proposals: int = Field(400, ge=1)
    #: Share of samples drawn around an object; of the rest, ``empty_fraction`` in slices without any, and what then
    #: remains anywhere (`medseg.data.dataset`).
    object_fraction: float = Field(0.85, ge=0, le=1)
    empty_fraction: float = Field(0.5, ge=0, le=1)
    #: 0: every object of the cohort is drawn alike; 1: every class is, however many objects it has.
    class_balance: float = Field(0.5, ge=0, le=1)
    #: ``auto``: bfloat16 for convolutions where the device computes in it, else float32.
    precision: Precision = "auto"
    #: Steps from one validation to the next; the last step validates too.
    validate_every: int = Field(500, ge=1)
    #: At most so many of the held-out cases are in a validation during training, chosen evenly from little to much to
    #: find; 0: all. At the end, all of them are predicted.
    validation_cases: int = Field(12, ge=0)
    #: IoU at which objects match in the F1 of a validation.
    validation_iou: float = Field(0.5, gt=0, le=1)
    #: Training ends after so many validations without a better one; 0: never. As the learning rate falls to 0 at the
    #: last step, the best one is usually late.
    patience: int = Field(0, ge=0)
    workers: int = Field(2, ge=0)
    augment: bool = True
    augmentation: AugmentationPlan = AugmentationPlan()
    #: Mirroring is off by default: a mirrored patient has the liver on the left. Where nothing has a right way up, as
    #: with cells under a microscope, mirror both and rotate by 180.
    flip_columns: bool = False
    flip_rows: bool = False
    #: Samples are rotated in the plane of the slice by up to this, either way.
    rotate_degrees: float = Field(10.0, ge=0, le=180)


class InferencePlan(Section):
    """From network output to detections per slice."""

    score_threshold: float = Field(0.2, ge=0, le=1)
    nms_iou: float = Field(0.5, gt=0, le=1)
    detections_per_slice: int = Field(50, ge=1)
    proposals: int = Field(200, ge=1)
    #: How often the box head looks again at what it found: edges are moved once more, and the lower of both scores
    #: counts. A few boxes per slice, so it costs little; pays where large boxes come out too small.
    box_refinements: int = Field(0, ge=0, le=3)
    #: How much of a mask is what the semantic head says about its pixels (`model.semantic_head`); the rest is the mask
    #: head's. Only for labels of kind `single`: of others, a neighbour of the same class would be mixed in.
    semantic_share: float = Field(0.0, ge=0, le=1)
    #: Most slices that go through the network at once (a CPU takes fewer of large ones); changes memory and speed, not
    #: results.
    batch_size: int = Field(8, ge=1)
    #: ``auto``: bfloat16 where the device has matrix units for it, else float32; boxes and scores are float32 always.
    precision: Precision = "auto"


class Plan(Section):
    """Everything decided from the cohort and by the user; see the module text."""

    version: Literal[1] = 1
    labels: Labels
    input: InputPlan
    model: ModelPlan = ModelPlan()
    training: TrainingPlan = TrainingPlan()
    inference: InferencePlan = InferencePlan()
    linking: LinkingPlan = LinkingPlan()
    reasons: dict[str, str] = {}

    def with_overrides(self, settings: dict[str, Any]) -> "Plan":
        """Return a copy with dotted fields replaced, e.g. ``{"model.backbone": "resnet18"}``.

        Raises:
            ConfigError: an unknown field or a value out of range.
        """
        data = self.model_dump(mode="json")
        for key, value in settings.items():
            section, field = _place_of(data, key)
            section[field] = value
            # why the plan had another value is no reason for this one
            data["reasons"] = {k: why for k, why in data["reasons"].items() if not f"{k}.".startswith(f"{key}.")}
        return parse_plan(data, "settings")

    def to_yaml(self) -> str:
        """Return the plan as YAML, the reason beside each derived field."""
        lines = []
        section = ""
        data = self.model_dump(mode="json")
        reasons = {"reasons": data.pop("reasons")}
        for line in yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=110).splitlines():
            if line and not line.startswith((" ", "-")):
                section = line.split(":")[0]
            field = line.strip().split(":")[0]
            reason = self.reasons.get(f"{section}.{field}")
            if reason and line.startswith("  "):
                lines += textwrap.wrap(" ".join(reason.split()), 110, initial_indent="  # ", subsequent_indent="  # ")
            lines.append(line)
        return "\n".join(lines) + "\n" + yaml.safe_dump(reasons, sort_keys=False, default_flow_style=False, width=110)


class _Dumper(yaml.SafeDumper):
    """Writes a line for each field, where a reason can stand above it, and short lists in one line."""


def _represent_list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.SequenceNode:
    short = not any(isinstance(value, list | dict) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=short)


_Dumper.add_representer(list, _represent_list)


def _place_of(data: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    *path, field = key.split(".")
    section: Any = data
    for part in path:
        section = section.get(part) if isinstance(section, dict) else None
    if not isinstance(section, dict) or field not in section:
        near = difflib.get_close_matches(key, list(_keys(data)), n=1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(f"setting {key!r} is unknown{meant}; the fields are those of plan.yaml, as section.field")
    return section, field


def _keys(data: dict[str, Any], path: str = "") -> Iterator[str]:
    """Yield the dotted names of all fields, those of sections in sections included."""
    for name, value in data.items():
        if isinstance(value, dict) and value and name != "reasons":
            yield from _keys(value, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def check_fields(keys: Iterable[str]) -> None:
    """Refuse (ConfigError) keys that no plan has, before time is spent on making one."""
    data = Plan(labels=LabelTable(()), input=InputPlan(spacing_mm=(1.0, 1.0))).model_dump(mode="json")
    for key in keys:
        _place_of(data, key)


def parse_plan(data: Any, source: str) -> Plan:
    """Validate plain data as a Plan; ``source`` names it in the ConfigError."""
    try:
        return Plan.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"]) or "the plan"
        problem = "unknown field" if first["type"] == "extra_forbidden" else first["msg"]
        found = first.get("input")
        shown = "" if isinstance(found, dict) else f" (found {str(found)[:80]!r})"
        raise ConfigError(f"{source}: {place}: {problem.removeprefix('Value error, ')}{shown}") from None


def load_plan(path: Path) -> Plan:
    """Read a plan.yaml; ConfigError names the file and the field."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such plan; a training run folder holds plan.yaml") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not a readable YAML file ({str(error).splitlines()[0]})") from None
    return parse_plan(data, str(path))


def parse_setting(text: str) -> tuple[str, Any]:
    """Split ``section.field=value`` (value in YAML) as `medseg train --set` takes it."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {text!r}: expected section.field=value, for example model.backbone=resnet18")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {text!r}: the value is not YAML") from None
