"""Open a trained model: the folder that training wrote."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from medseg.errors import ModelError
from medseg.models.mask_rcnn import MaskRCNN, build_mask_rcnn
from medseg.values.plan import Plan, load_plan

PLAN_FILE = "plan.yaml"
WEIGHTS_FILE = "model.safetensors"


def load_run(run: Path | str, device: torch.device) -> tuple[Plan, MaskRCNN]:
    """Load plan and network of a training run, ready for inference.

    Raises:
        ModelError: no run there, or weights that do not fit the plan.
        ConfigError: a plan that cannot be read.
    """
    run = Path(run)
    if not (run / PLAN_FILE).is_file() or not (run / WEIGHTS_FILE).is_file():
        raise ModelError(f"{run}: not a training run; expected a folder with {PLAN_FILE} and {WEIGHTS_FILE}")
    plan = load_plan(run / PLAN_FILE)
    model = build_mask_rcnn(plan)
    try:
        weights = load_file(run / WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{run / WEIGHTS_FILE}: not readable weights ({error}); copy the run anew") from None
    wanted = model.state_dict()
    wrong = sorted(set(wanted) ^ set(weights)) or [k for k, v in wanted.items() if v.shape != weights[k].shape]
    if wrong:
        raise ModelError(
            f"{run / WEIGHTS_FILE}: does not fit {PLAN_FILE} ({len(wrong)} tensors differ, first {wrong[0]!r}); "
            "plan and weights must come from the same training"
        )
    model.load_state_dict(weights)
    return plan, model.to(device).eval()
