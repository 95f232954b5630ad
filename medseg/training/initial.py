"""Where a training may begin: at torchvision's weights, or at a trained medseg network.

Both need some fields of the new plan to be as they were where the weights come from; `Start.adapted` sets them, with
the reason, unless the user has decided otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medseg.errors import ConfigError
from medseg.inference.provenance import hash_file
from medseg.inference.run import WEIGHTS_FILE, load_run
from medseg.models.mask_rcnn import MaskRCNN
from medseg.models.pretrained import Pretrained, read_pretrained
from medseg.models.transfer import Transfer, load_pretrained, load_trained
from medseg.values.plan import ModelPlan, Plan

#: Fields without which the weights of a medseg network mean nothing; a user who sets another value is refused.
_BOUND = ("backbone", "norm", "stem", "fpn_channels", "fpn_norm", "head_norm")
#: Fields of the network that a new cohort decides: its anchors where they have the same number, and speed limits.
_ANCHORS = ("anchor_sizes", "anchor_ratios")
_FREE = ("rpn_nms_iou", "proposals_before_nms")


@dataclass(frozen=True, kw_only=True)
class Start:
    """Weights to begin with; see `start_from_file` and `start_from_run`.

    Attributes:
        option: what the user said, for messages: ``--pretrained resnet50.pth``.
        sha256: of the file of weights.
        pretrained: torchvision's weights, or None.
        trained: plan and network of a medseg run, or None.
    """

    option: str
    sha256: str
    pretrained: Pretrained | None = None
    trained: tuple[Plan, MaskRCNN] | None = None

    def adapted(self, plan: Plan, settings: Mapping[str, Any]) -> Plan:
        """Return the plan with the fields that the weights need, and why.

        Args:
            plan: of the cohort, the user's settings in it.
            settings: what the user decided, dotted; kept.

        Raises:
            ConfigError: the user decided what the weights cannot do.
        """
        needed, why, bound = self._needed(plan)
        data = plan.model_dump(mode="json")
        changes = {}
        for key, value in needed.items():
            section, _, field = key.partition(".")
            if data[section][field] == value:
                continue
            if key not in settings:
                changes[key] = value
            elif key in bound:
                raise ConfigError(
                    f"{self.option}: needs {key} {value}, but --set gives {data[section][field]}; leave out one of them"
                )
        adapted = plan.with_overrides(changes)
        return adapted.model_copy(update={"reasons": {**adapted.reasons, **dict.fromkeys(changes, why)}})

    def load_into(self, model: MaskRCNN, plan: Plan) -> Transfer:
        """Put the weights into the network of an adapted plan; ModelError where nothing fits."""
        if self.pretrained is not None:
            return load_pretrained(model, plan, self.pretrained)
        assert self.trained is not None
        trained, network = self.trained
        return load_trained(model, plan, network.state_dict(), trained, self.option)

    def _needed(self, plan: Plan) -> tuple[dict[str, Any], str, set[str]]:
        """Return fields and their values, the reason, and which of the fields the user cannot decide."""
        if self.pretrained is not None:
            needed = self.pretrained.settings
            return needed, f"the weights of {self.pretrained.name} are those of a {self.pretrained.title}", set(needed)
        assert self.trained is not None
        model = self.trained[0].model
        keep = {*_FREE, *(_ANCHORS if _same_anchors(plan.model, model) else ())}
        fields = {k: v for k, v in model.model_dump(mode="json").items() if k not in keep}
        needed = {f"model.{k}": v for k, v in fields.items()}
        return needed, f"as in the run that the weights come from ({self.option})", {f"model.{k}" for k in _BOUND}


def start_from_file(path: Path | str) -> Start:
    """Begin with torchvision's weights; ModelError where the file has none that medseg can use."""
    path = Path(path)
    source = read_pretrained(path)
    return Start(option=f"--pretrained {path.name}", sha256=hash_file(path), pretrained=source)


def start_from_run(run: Path | str) -> Start:
    """Begin with the network of a training run, which may have had other labels and channels.

    Raises:
        ModelError, ConfigError: see `load_run`.
    """
    run = Path(run)
    trained = load_run(run, torch.device("cpu"))
    return Start(option=f"--init {run.name}", sha256=hash_file(run / WEIGHTS_FILE), trained=trained)


def _same_anchors(new: ModelPlan, old: ModelPlan) -> bool:
    """Tell whether the new plan's anchors are as many per cell, on levels of the same strides."""

    def counts(plan: ModelPlan) -> tuple[object, ...]:
        return plan.strides, [len(level) for level in plan.anchor_sizes], len(plan.anchor_ratios)

    return counts(new) == counts(old)
