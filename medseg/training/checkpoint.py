"""What a training run leaves behind: plan.yaml and model.safetensors, each whole or not there."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from medseg.inference.run import PLAN_FILE, WEIGHTS_FILE
from medseg.io.atomic import atomic_path, write_text
from medseg.values.plan import Plan


def save_plan(run: Path, plan: Plan) -> Path:
    """Write the plan, its reasons as comments."""
    write_text(run / PLAN_FILE, plan.to_yaml())
    return run / PLAN_FILE


def save_weights(run: Path, weights: Mapping[str, Tensor]) -> Path:
    """Write weights as safetensors (no pickle)."""
    with atomic_path(run / WEIGHTS_FILE) as temporary:
        # Not save_file: a full disk is an OSError here, which atomic_path tells in one line.
        temporary.write_bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}))
    return run / WEIGHTS_FILE
