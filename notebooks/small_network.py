"""The trained network that the notebooks look into, in one small file: plan, and weights of six bits each.

It was trained by `pipelines/train_notebook_network.py` on synthetic CTs and nothing else. A row of weights (those of an
output channel) is kept as whole numbers of -31 to 31 times a step of its own, four weights in three bytes.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from medseg.io.atomic import atomic_path
from medseg.models.mask_rcnn import MaskRCNN, build_mask_rcnn
from medseg.values.plan import Plan, parse_plan

FILE = Path(__file__).with_name("small_network.safetensors")
BITS = 6
LARGEST = 2 ** (BITS - 1) - 1
#: Largest number over the largest weight of a row: cutting off a few large weights rounds the others less.
CUTS = (1.0, 0.9, 0.8, 0.7, 0.6)
STEP = ".step"


def load_small_network(path: Path = FILE) -> tuple[Plan, MaskRCNN]:
    """Return the plan and the network, ready for inference on a CPU."""
    with safe_open(path, "pt") as file:
        plan = parse_plan(yaml.safe_load(file.metadata()["plan"]), path.name)
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    model = build_mask_rcnn(plan)
    weights = {}
    for name, value in model.state_dict().items():
        if name + STEP in stored:
            steps = stored[name + STEP].float().reshape(-1, *[1] * (value.ndim - 1))
            weights[name] = (
                torch.from_numpy(_unpacked(stored[name].numpy(), value.numel())).reshape(value.shape) * steps
            )
        else:
            weights[name] = stored[name].float()
    model.load_state_dict(weights)
    return plan, model.eval()


def save_small_network(path: Path, plan: Plan, weights: Mapping[str, Tensor]) -> None:
    """Write a plan and the weights of its network in this form."""
    stored = {}
    for name, value in weights.items():
        if value.ndim < 2:
            stored[name] = value.half()
            continue
        rows = value.reshape(len(value), -1).double()
        best = torch.full((len(rows),), torch.inf, dtype=torch.float64)
        steps = torch.ones(len(rows), dtype=torch.float64)
        for cut in CUTS:
            step = (cut * rows.abs().amax(dim=1) / LARGEST).clamp(min=1e-6).half().double()
            lost = ((_numbers(rows, step) * step[:, None] - rows) ** 2).sum(dim=1)
            steps, best = torch.where(lost < best, step, steps), torch.minimum(lost, best)
        stored[name] = torch.from_numpy(_packed(_numbers(rows, steps).numpy()))
        stored[name + STEP] = steps.half()
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(stored, {"plan": plan.to_yaml()}))


def _numbers(rows: Tensor, steps: Tensor) -> Tensor:
    """Return [R, n] whole numbers of -LARGEST to LARGEST."""
    return (rows / steps[:, None]).round().clamp(-LARGEST, LARGEST)


def _packed(numbers: NDArray[np.float64]) -> NDArray[np.uint8]:
    codes = (numbers.ravel() + LARGEST).astype(np.uint8)
    return np.packbits(np.unpackbits(codes[:, None], axis=1)[:, -BITS:])


def _unpacked(packed: NDArray[np.uint8], count: int) -> NDArray[np.float32]:
    bits = np.unpackbits(packed, count=count * BITS).reshape(count, BITS)
    codes = np.packbits(np.pad(bits, ((0, 0), (8 - BITS, 0))), axis=1)[:, 0]
    return codes.astype(np.float32) - LARGEST
