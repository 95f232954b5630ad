"""Training throughput: medseg's step against the loop of torchvision's reference scripts. Writes JSON.

    python pipelines/train_benchmark_model.py -o model
    python pipelines/benchmark_training.py model -o training.json --threads 1

The same R50-FPN network and weights, the same slices of phantoms, SGD with momentum, float32. torchvision's loop is
what its references/detection do with a batch: losses of the model in training mode, a look at their sum, gradients, a
step. ``torchvision's sampling`` gives medseg as many proposals and samples per image (2000 and 512); ``medseg`` has its
own defaults; ``bfloat16`` is there where the plan's automatic precision would take it. The variants take turns, figures
are medians; a learning rate of next to nothing keeps the network, and so the work, the same. With its loader, slices
are cut out and augmented as in `medseg train`, and the time to wait for them counts. On a busy CPU use --threads 1:
images a second are then of processor time (a GPU: of wall time).
"""

import argparse
import os
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

import torch
from benchmark_parts import Spent, arguments, median_ratio, peak_mib, timed
from record_results import write_record
from torch.utils.data import DataLoader
from torchvision.models.detection import MaskRCNN as StockMaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from train_benchmark_model import draw_case

from medseg.cli import console
from medseg.cli.compute import set_up
from medseg.data.dataset import SliceDataset
from medseg.data.sample import Sample
from medseg.inference.provenance import environment
from medseg.inference.run import load_run
from medseg.models.mask_rcnn import MaskRCNN, build_mask_rcnn
from medseg.training.optimizer import build_optimizer
from medseg.training.step import Stepper, uses_bfloat16
from medseg.values.plan import Plan

SEEDS, SLICES, RATE = (2000, 2001), 16, 1e-7
#: As torchvision samples: proposals before and after suppression, samples per image, a quarter of them positive.
SAMPLING = {
    "model.proposals_before_nms": 2000,
    "training.proposals": 2000,
    "training.box_samples": 512,
    "training.box_positive_fraction": 0.25,
    "training.jittered_boxes": 0,
}
SGD = {"training.optimizer": "sgd", "training.nesterov": False, "training.weight_decay": 1e-4}
LOOP = "torchvision's loop"


class Reference:
    """torchvision's model and the loop of its reference scripts."""

    def __init__(self, model: MaskRCNN, samples: list[Sample], device: torch.device):
        backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=5)
        side = samples[0].image.shape[-1]
        self.model = StockMaskRCNN(
            backbone, model.roi_heads.classes + 1,
            min_size=side, max_size=side, image_mean=[0.0] * 3, image_std=[1.0] * 3,
        )  # fmt: skip
        self.model.load_state_dict(model.state_dict())
        self.model.to(device).train()
        self.device = device
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(parameters, lr=RATE, momentum=0.9, weight_decay=1e-4)
        self.images = [s.image for s in samples]
        self.targets = [
            {
                "boxes": torch.from_numpy(s.boxes),
                "labels": s.classes(),
                "masks": (s.masks() >= 0.5).to(torch.uint8),
            }
            for s in samples
        ]

    def __call__(self) -> float:
        """Train one step; return the loss."""
        images = [image.to(self.device) for image in self.images]
        targets = [{name: value.to(self.device) for name, value in t.items()} for t in self.targets]
        loss = torch.stack(list(self.model(images, targets).values())).sum()
        value = loss.item()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return value


class Ours:
    """medseg's network and step, on the same samples again and again or on those of a loader."""

    def __init__(self, plan: Plan, model: MaskRCNN, device: torch.device, batches: Callable[[], list[Sample]]):
        self.model = build_mask_rcnn(plan)
        self.model.load_state_dict(model.state_dict())
        self.model.to(device).train()
        self.stepper = Stepper(self.model, plan.training, device)
        self.optimizer = build_optimizer(self.model, plan.training)
        self.batches = batches

    def __call__(self) -> float:
        """Train one step; return the loss."""
        losses, _ = self.stepper.gradients(self.batches())
        self.optimizer.step()
        return sum(losses.values())


def benchmark(args: argparse.Namespace) -> dict[str, Any]:
    """Measure all variants; see the text on top."""
    device = set_up(args.device, args.threads)
    trained, model = load_run(args.model, device)
    size = {"training.crop_size": [args.side] * 2, "training.batch_size": args.batch, "training.workers": args.workers}
    exact = {"training.precision": "float32", "training.learning_rate": RATE, **SGD, **size}
    plan = trained.with_overrides(exact)
    cases = [draw_case(seed, args.side, SLICES) for seed in SEEDS]
    dataset = SliceDataset(cases, plan, (args.turns + 2) * args.batch, seed=0)
    samples = [dataset[i] for i in range(args.batch)]
    batches = [range(i, i + args.batch) for i in range(0, len(dataset), args.batch)]
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=args.workers, collate_fn=list)
    drawn = iter(loader)

    def same() -> list[Sample]:
        return samples

    steps: dict[str, Callable[[], float]] = {
        LOOP: Reference(model, samples, device),
        "medseg, torchvision's sampling": Ours(plan.with_overrides(SAMPLING), model, device, same),
        "medseg": Ours(plan, model, device, same),
        "medseg with its loader": Ours(plan, model, device, partial(next, drawn)),
    }
    automatic = plan.with_overrides({"training.precision": "auto"})
    if uses_bfloat16(automatic.training, device):
        steps["medseg, bfloat16"] = Ours(automatic, model, device, same)
    for step in steps.values():
        step()
    spent: dict[str, list[Spent]] = {name: [] for name in steps}
    for turn in range(args.turns):
        console.out.print(f"turn {turn + 1} of {args.turns}")
        for name, step in steps.items():
            spent[name].append(timed(step, device)[1])
    clock = "wall" if device.type == "cuda" else "processor"
    seconds = {name: statistics.median(getattr(s, clock) for s in found) for name, found in spent.items()}
    memory = {name: peak_mib(step, device) for name, step in steps.items() if "loader" not in name}
    for step in steps.values():
        if isinstance(step, Ours):
            step.stepper.close()
    return {
        "versions": environment(device),
        "batch": args.batch,
        "side": args.side,
        "objects_per_image": sum(len(s.boxes) for s in samples) / len(samples),
        "workers": args.workers,
        "clock": clock,
        "images_per_second": {name: float(f"{args.batch / value:.4g}") for name, value in seconds.items()},
        "ratio_to_torchvision": {name: median_ratio(spent[LOOP], spent[name]) for name in steps if name != LOOP},
        "peak_mib": memory,
    }


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--side", type=int, default=512, help="of the slices, pixels, a multiple of 32")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0, help="of the loader")
    args = parser.parse_args()
    write_record(args.out, benchmark(args), seed=SEEDS, device=args.device)
