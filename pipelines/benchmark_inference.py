"""medseg against torchvision's stock Mask R-CNN: the same weights, the same volume, taking turns. Writes JSON.

    python pipelines/train_benchmark_model.py -o model
    python pipelines/benchmark_inference.py model -o inference.json --threads 1          # --slices 8 for a quick look
    python -m venv yolo && yolo/bin/pip install ultralytics    # AGPL: only run as a program, by --yolo-python

The volume is a phantom of 512 x 512 pixels. (a) network alone: the same tensor in, no crop, torchvision at equal input
size with its own limits (1000 proposals, 100 detections, masks pasted into the slice), medseg with `LIMITS`. (b) whole
volume: medseg's body crop, limits, batches, precision, and linking to objects, against torchvision as its documentation
shows it (resized to 800; what comes out is not linked within its time). Systems take turns chunk by chunk; figures are
medians. Ratios compare within this run only. On a busy CPU use the processor seconds; with --threads 1 they are what
an idle machine would need. Objects of all come from one linker, torchvision's with its masks before pasting.
"""

import argparse
import os
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

import numpy as np
import torch
from benchmark_parts import (
    Spent,
    arguments,
    counted,
    describe,
    in_turns,
    measure_ceilings,
    median_ratio,
    medians,
    peak_mib,
    timed,
)
from benchmark_references import Stock, UNet, Yolo
from highdicom import Volume
from record_results import write_record
from torch import Tensor

from medseg.cli import console
from medseg.cli.compute import set_up
from medseg.data.context import network_input
from medseg.data.grid import NetworkGrid, to_network_grid
from medseg.inference.predictor import Predictor
from medseg.inference.provenance import environment
from medseg.inference.run import load_run
from medseg.linking import link
from medseg.metrics.overlap import voxel_overlap
from medseg.models.mask_rcnn import MaskRCNN, build_mask_rcnn
from medseg.phantom import make_phantom
from medseg.values.detections import Detections
from medseg.values.instances import InstanceSet
from medseg.values.pairs import PairTable
from medseg.values.plan import Plan

SIDE, PIXEL_MM, SLICE_MM, PATIENT = 512, 0.75, 5.0, 1
#: To which torchvision resizes the shorter side, unless told otherwise.
RESIZED = 800
#: What medseg looks at where a slice holds six organs, and its default score threshold; else it is as torchvision.
LIMITS = {"inference.proposals": 100, "inference.detections_per_slice": 20, "inference.score_threshold": 0.2}
STOCK, STOCK_RESIZED, OURS = "torchvision at 512", "torchvision at 800", "medseg"


def draw(slices: int, plan: Plan) -> tuple[Volume, InstanceSet]:
    """Return a phantom that no training saw, and its organs."""
    phantom = make_phantom(seed=PATIENT, shape=(slices, SIDE, SIDE), spacing_mm=(SLICE_MM, PIXEL_MM, PIXEL_MM))
    organs = [i for i in phantom.instances if i.label in plan.labels.ids]
    return phantom.volume, InstanceSet.build(organs, phantom.volume.get_geometry(), plan.labels)


def compare(reference: InstanceSet, found: InstanceSet) -> dict[str, Any]:
    """Return which objects two sets share (IoU from 0.5) and the Dice of the classes' voxels."""
    pairs = PairTable.between(reference, found)
    matched = pairs.matching(0.5)
    dice = {name: overlap.dice for name, overlap in voxel_overlap(reference, found).items()}
    defined = [value for value in dice.values() if not np.isnan(value)]
    return {
        "objects": [len(reference), len(found)],
        "matched": len(matched),
        "dice_of_matched": round(float(np.mean(pairs.dice()[matched])), 5) if len(matched) else None,
        "dice": {name: None if np.isnan(value) else round(value, 5) for name, value in dice.items()},
        "mean_dice": round(statistics.fmean(defined), 5) if defined else None,
    }


class Medseg:
    """A medseg predictor that takes the slices of a grid as they are, no crop."""

    def __init__(self, plan: Plan, model: MaskRCNN, grid: NetworkGrid, device: torch.device):
        self.predictor = Predictor(plan, model, device)
        self.grid = grid

    def __call__(self, slices: range) -> list[Detections]:
        """Return what is found in some slices."""
        part = replace(self.grid, array=self.grid.array[:, slices[0] : slices[-1] + 1])
        return [replace(d, slice_index=slices[0] + d.slice_index) for d in self.predictor.detect(part)]


def with_limits(model: MaskRCNN, plan: Plan) -> MaskRCNN:
    """Return the same weights under the limits of a plan."""
    limited = build_mask_rcnn(plan)
    limited.load_state_dict(model.state_dict())
    return limited


def on_images(network: Callable[[Tensor], Any], images: Tensor, slices: range) -> Any:
    """Run a network on some slices of [Z, 3, H, W]."""
    return network(images[slices[0] : slices[-1] + 1])


def link_all(parts: list[list[Detections]], grid: NetworkGrid, plan: Plan) -> tuple[InstanceSet, float]:
    """Return the objects of all slices, and how many detections a slice has."""
    found = [d for part in parts for d in part]
    return link(found, grid.geometry, plan.labels, plan.linking), sum(map(len, found)) / len(found)


def plans_of(trained: Plan, model: MaskRCNN, batch: int, device: torch.device) -> dict[str, Plan]:
    """Return the plans that medseg is measured with, by the names in the tables."""
    exact = {"inference.precision": "float32", "inference.batch_size": batch}
    limited = trained.with_overrides({**exact, **LIMITS})
    plans = {OURS: limited, f"{OURS}, torchvision's limits": trained.with_overrides(exact)}
    automatic = limited.with_overrides({"inference.precision": "auto"})
    if Predictor(automatic, model, device).dtype != torch.float32:
        plans[f"{OURS}, bfloat16"] = automatic
    return plans


def whole_volumes(
    predictors: dict[str, Predictor], volume: Volume, truth: InstanceSet, stock: InstanceSet, per_slice: list[Spent],
    turns: dict[str, list[tuple[Any, Spent]]], device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """Return (b): what whole volumes took against torchvision's slices at its defaults, and what was found."""
    slices = volume.spatial_shape[0]
    mean = Spent(*(statistics.fmean(getattr(s, clock) for s in per_slice) for clock in Spent._fields))
    rows = {}
    for name, found in turns.items():
        prediction = found[-1][0]
        seconds = [Spent(s.wall / slices, s.processor / slices) for _, s in found]
        rows[name] = {
            "ratio": median_ratio([mean] * len(seconds), seconds),
            **medians(seconds),
            "seconds_of_stages": {k: round(v, 3) for k, v in prediction.seconds.items()},
            "peak_mib": peak_mib(partial(predictors[name].predict, [volume]), device),
            "against_truth": compare(truth, prediction.instances),
            "against_torchvision": compare(stock, prediction.instances),
        }
    return rows


def benchmark(args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything; see the text on top."""
    device = set_up(args.device, args.threads)
    trained, model = load_run(args.model, device)
    plans = plans_of(trained, model, args.batch, device)
    plan = plans[OURS]
    volume, truth = draw(args.slices, plan)
    grid = to_network_grid([volume], plan.input.model_copy(update={"air_threshold": None}))
    planes = [network_input(grid.array, i, grid.slice_spacing_mm, plan.input) for i in range(args.slices)]
    images = torch.from_numpy(np.stack(planes)).to(device)
    chunks = [range(i, min(i + args.batch, args.slices)) for i in range(0, args.slices, args.batch)]
    middle = chunks[len(chunks) // 2]  # where most organs are

    stocks = {STOCK: Stock(model, SIDE, device), STOCK_RESIZED: Stock(model, RESIZED, device)}
    limited = {name: with_limits(model, p) for name, p in plans.items()}
    ours = {name: Medseg(p, limited[name], grid, device) for name, p in plans.items()}
    with torch.no_grad():
        flops, _ = counted(lambda: limited[OURS](images[:1]))
    unet = UNet(flops, len(plan.labels) + 1, device, SIDE)
    systems: dict[str, Callable[[range], Any]] = {
        **{name: partial(on_images, stock, images) for name, stock in stocks.items()},
        **ours,
        "MONAI U-Net": partial(on_images, unet, images),
    }
    yolo = Yolo(args.yolo_python, args.yolo_model, device, SIDE) if args.yolo_python else None
    in_all: dict[str, Callable[[range], Any]] = {**systems, **({"YOLO": yolo} if yolo else {})}

    console.out.print("warming up and measuring what the device reaches")
    for system in in_all.values():
        system(middle)
    ceilings = measure_ceilings(device)
    for stock in stocks.values():
        stock.detections(plan.labels.ids)  # of warming up; forgotten
    predictors = {name: ours[name].predictor for name in plans if "limits" not in name}
    whole: dict[str, list[tuple[Any, Spent]]] = {name: [] for name in predictors}
    for turn in range(2):  # before and after the network's turns
        for name, predictor in predictors.items():
            whole[name].append(timed(partial(predictor.predict, [volume]), device))
        if not turn:
            runs = in_turns(in_all, chunks, device)
    objects = {name: link_all(runs[name][0], grid, plan) for name in ours}
    objects |= {name: link_all([stock.detections(plan.labels.ids)], grid, plan) for name, stock in stocks.items()}

    rows = {
        name: describe(
            name, partial(system, middle), runs[name][1], len(middle), ceilings, device,
            "bfloat16" if "bfloat16" in name else "float32",
        )
        for name, system in systems.items()
    }  # fmt: skip
    for name, (found, count) in objects.items():
        rows[name] |= {"detections_per_slice": round(count, 1), "against_truth": compare(truth, found)}
        if name in ours:
            rows[name]["against_torchvision"] = compare(objects[STOCK][0], found)
    rows["MONAI U-Net"] |= {"weights": "random", "width": unet.width}
    if yolo:
        yolo.close()
        own_clocks = runs["YOLO"][0]
        rows["YOLO"] = {"weights": "random", "model": args.yolo_model, **yolo.about, **medians(own_clocks)}
    volumes = whole_volumes(
        predictors, volume, truth, objects[STOCK_RESIZED][0], runs[STOCK_RESIZED][1], whole, device
    )  # fmt: skip
    return {
        "versions": environment(device),
        "volume": [args.slices, SIDE, SIDE],
        "batch": args.batch,
        "limits": LIMITS,
        "ceilings": {name: float(f"{value:.4g}") for name, value in ceilings.items()},
        "a_network_at_equal_input": {name: median_ratio(runs[STOCK][1], runs[name][1]) for name in ours},
        "b_whole_volume": volumes,
        "systems": rows,
        **({} if yolo else {"YOLO": "not measured: no --yolo-python"}),
    }


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--slices", type=int, default=60, help="of the phantom, at least 8")
    parser.add_argument("--batch", type=int, default=0, help="slices at once; 0: 1 on a CPU, 8 on a GPU")
    parser.add_argument("--yolo-python", type=Path, help="Python of an environment that has ultralytics")
    parser.add_argument("--yolo-model", default="yolo11l-seg.yaml")
    args = parser.parse_args()
    args.batch = args.batch or (8 if args.device.startswith("cuda") else 1)
    write_record(args.out, benchmark(args), seed=PATIENT, device=args.device)
