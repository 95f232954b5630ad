"""Train the model that the benchmarks measure: torchvision's R50-FPN Mask R-CNN, on organs of phantoms.

    python pipelines/train_benchmark_model.py -o model        # about half an hour of one core in bfloat16

The folder is a run like those of `medseg train --preset torchvision`; the names in its ``model.safetensors`` are
torchvision's, so that the same file loads into torchvision's stock model. Frozen batch normalisation cannot be trained
from nothing, and no weights are downloaded: batch normalisation learns here, its statistics are taken anew over whole
batches at the end, and then are what torchvision and medseg load as frozen ones. Most steps see coarse pixels, which
cost a seventh; the last ones those of a slice of 512 x 512. Phantoms of seeds from 1000 on are for training, the
benchmark measures on others.
"""

import argparse
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from medseg.cli import console
from medseg.cli.compute import set_up
from medseg.data.cache import CachedCase, CachedObject
from medseg.data.dataset import SliceDataset
from medseg.data.sample import Sample
from medseg.labels import LabelTable
from medseg.models.heads import Target
from medseg.models.mask_rcnn import MaskRCNN, build_mask_rcnn
from medseg.models.pretrained import preset_settings
from medseg.phantom import make_phantom, phantom_labels
from medseg.training.checkpoint import save_plan, save_weights
from medseg.training.optimizer import build_optimizer, learning_rate
from medseg.training.step import uses_bfloat16
from medseg.values.plan import InputPlan, Plan

#: A slice of 512 x 512 pixels of 0.75 mm shows all of a phantom.
FIELD_MM, DEPTH_MM, FIRST_SEED = 384.0, 300.0, 1000
ORGANS = LabelTable([label for label in phantom_labels() if label.kind == "single"])
#: Pixels of a slice's side, slices, crop, samples in a step, share of the steps, phantoms.
STAGES = ((192, 24, (128, 160), 2, 0.7, 10), (512, 16, (320, 416), 1, 0.3, 4))
SETTINGS = {"training.learning_rate": 5e-4, "training.object_fraction": 1.0, "training.box_positive_fraction": 0.4}


def benchmark_plan(steps: int) -> Plan:
    """Return torchvision's network for three intensity windows of a slice."""
    windows = ((-160.0, 240.0), (-20.0, 180.0), (-1000.0, 600.0))
    spacing = FIELD_MM / STAGES[-1][0]
    plan = Plan(labels=ORGANS, input=InputPlan(spacing_mm=(spacing, spacing), windows=windows, air_threshold=-500.0))
    return plan.with_overrides({**preset_settings("torchvision"), **SETTINGS, "training.steps": steps})


def draw_case(seed: int, side: int, slices: int) -> CachedCase:
    """Draw a phantom in so many slices of so many pixels on a side."""
    thickness, pixel = DEPTH_MM / slices, FIELD_MM / side
    phantom = make_phantom(seed=seed, shape=(slices, side, side), spacing_mm=(thickness, pixel, pixel))
    organs = [CachedObject.of(i.label, i.mask, i.offset) for i in phantom.instances if i.label in ORGANS.ids]
    return CachedCase(
        name=f"phantom_{seed}",
        array=phantom.volume.array[None],
        geometry=phantom.volume.get_geometry(),
        slice_spacing_mm=thickness,
        objects=tuple(organs),
    )


def exchange_norms(module: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    """Put layers of one kind of normalisation in place of another, with their tensors."""
    for name, child in module.named_children():
        if isinstance(child, old):
            layer = new(child.weight.numel())
            layer.load_state_dict(child.state_dict(), strict=False)
            setattr(module, name, layer)
        else:
            exchange_norms(child, old, new)


def batches(plan: Plan, steps: int, size: float = 1.0) -> Iterator[list[Sample]]:
    """Give the batches of all stages; ``size``: a share of the phantoms, for a quick look."""
    for side, slices, crop, batch, share, phantoms in STAGES:
        own = plan.with_overrides({"training.crop_size": list(crop)})
        cases = [draw_case(FIRST_SEED + n, side, slices) for n in range(math.ceil(phantoms * size))]
        count = max(1, round(steps * share))
        dataset = SliceDataset(cases, own, count * batch, seed=plan.training.seed + side)
        yield from ([dataset[step * batch + i] for i in range(batch)] for step in range(count))


def losses_of(model: MaskRCNN, samples: list[Sample], device: torch.device, half: bool) -> dict[str, torch.Tensor]:
    """Return the losses of a batch."""
    images = torch.stack([s.image for s in samples]).to(device, memory_format=torch.channels_last)
    classes = model.roi_heads.classes
    targets = [
        Target(
            boxes=torch.from_numpy(s.boxes).to(device), classes=s.classes().to(device), masks=s.masks(device),
            covered=s.covered(classes, device), seed=s.seed,
        )
        for s in samples
    ]  # fmt: skip
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        return model.losses(images, targets)


def settle_norms(model: MaskRCNN, samples: list[list[Sample]], device: torch.device) -> None:
    """Replace the running means and variances by those over some batches, in float32."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # a plain mean over the batches
    with torch.no_grad():
        for batch in samples:
            model.backbone(torch.stack([s.image for s in batch]).to(device))


def train_model(out: Path, device: torch.device, steps: int, size: float = 1.0) -> None:
    """Train and write the run."""
    plan = benchmark_plan(steps)
    torch.manual_seed(plan.training.seed)
    model = build_mask_rcnn(plan)
    exchange_norms(model, FrozenBatchNorm2d, nn.BatchNorm2d)
    model.to(device, memory_format=torch.channels_last).train()
    optimizer, half = build_optimizer(model, plan.training), uses_bfloat16(plan.training, device)
    last: list[list[Sample]] = []
    for step, samples in enumerate(batches(plan, steps, size)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(min(step, steps), plan.training)
        losses = losses_of(model, samples, device, half)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), plan.training.clip_norm)
        optimizer.step()
        last = [*last[-11:], samples]
        if step % 20 == 0:
            shown = ", ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            console.out.print(f"step {step + 1} of {steps}, {time.process_time():.0f} processor seconds: {shown}")
    settle_norms(model, last, device)
    exchange_norms(model, nn.BatchNorm2d, FrozenBatchNorm2d)
    save_plan(out, plan)
    console.wrote(save_weights(out, model.state_dict()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True, help="new folder for the run")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--steps", type=int, default=800)
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    train_model(args.out, set_up(args.device, args.threads), args.steps)
