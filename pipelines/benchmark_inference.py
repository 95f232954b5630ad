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
import time
from collections.abc import Callable, Sequence
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
    conditions,
    counted,
    floor_seconds,
    measure_ceilings,
    median_ratio,
    peak_mib,
    staged,
    timed,
)
from benchmark_references import UNet, Yolo
from highdicom import Volume
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN as StockMaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.transform import resize_boxes

from medseg.cli import console
from medseg.cli.compute import set_up
from medseg.data.context import network_input
from medseg.data.grid import NetworkGrid, to_network_grid
from medseg.inference.predictor import Predictor
from medseg.inference.run import load_run
from medseg.io.atomic import write_json
from medseg.linking import link
from medseg.metrics.overlap import voxel_overlap
from medseg.models.mask_rcnn import MaskRCNN, build_mask_rcnn
from medseg.phantom import make_phantom
from medseg.values.detections import Detections
from medseg.values.instances import InstanceSet
from medseg.values.pairs import PairTable
from medseg.values.plan import Plan

SIDE, PIXEL_MM, SLICE_MM = 512, 0.75, 5.0
#: To which torchvision resizes the shorter side, unless told otherwise.
RESIZED = 800
#: What medseg looks at where a slice holds six organs; everything else is as torchvision has it.
LIMITS = {"inference.proposals": 100, "inference.detections_per_slice": 20}
STOCK, STOCK_RESIZED, OURS = "torchvision at 512", "torchvision at 800", "medseg"


class Pasting(nn.Module):
    """torchvision's last step; keeps what was found before masks are pasted into the slice, for the linker."""

    def __init__(self, paste: Callable[..., Any]):
        super().__init__()
        self.paste = paste
        self.found: list[dict[str, Tensor]] = []

    def forward(self, results: list, resized: list, sizes: list) -> Any:
        """Return the results with pasted masks."""
        for found, small, size in zip(results, resized, sizes, strict=True):
            self.found.append({**found, "boxes": resize_boxes(found["boxes"], small, size)})
        return self.paste(results, resized, sizes)


class Stock:
    """torchvision's Mask R-CNN with frozen batch normalisation, as its published weights have it.

    Args:
        model: whose weights, by torchvision's names, are loaded.
        size: to which slices are resized: their own side, or `RESIZED`.
        device: where to compute.
    """

    def __init__(self, model: MaskRCNN, size: int, device: torch.device):
        classes = model.roi_heads.classes + 1
        self.model = StockMaskRCNN(
            resnet_fpn_backbone(backbone_name="resnet50", weights=None), classes,
            min_size=size, max_size=1333,
            image_mean=[0.0] * 3, image_std=[1.0] * 3,  # the windows are the normalisation
        )  # fmt: skip
        self.model.load_state_dict(model.state_dict())
        self.model.to(device).eval()
        self.pasting = Pasting(self.model.transform.postprocess)
        self.model.transform.__dict__["postprocess"] = self.pasting

    def __call__(self, images: Tensor) -> Any:
        """Run the slices [B, 3, H, W] of a batch."""
        with torch.inference_mode():
            return self.model(list(images))

    def detections(self, labels: Sequence[int]) -> list[Detections]:
        """Return what was found since the last call, slice by slice, and forget it."""
        ids, found, self.pasting.found = np.array((0, *labels)), self.pasting.found, []
        return [
            Detections(
                slice_index=index,
                boxes=part["boxes"].cpu().numpy(),
                scores=part["scores"].cpu().numpy(),
                labels=ids[part["labels"].cpu().numpy()],
                masks=part["masks"][:, 0].cpu().numpy(),
            )
            for index, part in enumerate(found)
        ]


def draw(slices: int, plan: Plan) -> tuple[Volume, InstanceSet]:
    """Return a phantom that no training saw, and its organs."""
    phantom = make_phantom(seed=1, shape=(slices, SIDE, SIDE), spacing_mm=(SLICE_MM, PIXEL_MM, PIXEL_MM))
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


def in_turns(systems: dict[str, Callable[[range], Any]], chunks: list[range], device: torch.device) -> dict[str, Any]:
    """Run every system on every chunk, one after the other; return per system what came out and what it took."""
    out: dict[str, Any] = {name: ([], []) for name in systems}
    for number, chunk in enumerate(chunks):
        console.out.print(f"slices {chunk[0]} to {chunk[-1]}, {number + 1} of {len(chunks)}")
        for name, system in systems.items():
            result, spent = timed(partial(system, chunk), device)
            out[name][0].append(result)
            out[name][1].append(Spent(spent.wall / len(chunk), spent.processor / len(chunk)))
    return out


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


def medians(spent: list[Spent]) -> dict[str, Any]:
    """Return the median seconds of a slice, by both clocks."""
    return {"seconds_per_slice": {f: round(statistics.median(getattr(s, f) for s in spent), 4) for f in Spent._fields}}


def describe(
    name: str, action: Callable[[], Any], spent: list[Spent], slices: int, ceilings: dict[str, float],
    device: torch.device, dtype: str = "float32",
) -> dict[str, Any]:  # fmt: skip
    """Run a system again on so many slices: its memory, its stages, its work; with its times, all per slice."""
    console.out.print(f"memory, stages and work of {name}")
    own = medians(spent)["seconds_per_slice"]["wall" if device.type == "cuda" else "processor"]
    memory = peak_mib(action, device)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    with staged(device, clock) as stages:
        _, once = timed(action, device)
    total = once.wall if device.type == "cuda" else once.processor
    shares = {stage: round(seconds / total, 3) for stage, seconds in stages.most_common()}
    flops, moved = (amount / slices for amount in counted(action))
    floor = floor_seconds(flops, moved, ceilings, dtype)
    return {
        **medians(spent),
        "slices_per_second": round(1 / own, 3),
        "peak_mib": memory,
        "share_of_stages": {**shares, "other": round(1 - sum(shares.values()), 3)},
        "gflop_per_slice": round(flops / 1e9, 1),
        "gib_moved_per_slice": round(moved / 2**30, 2),
        "times_the_floor": round(own / floor, 2),
        "precision": dtype,
    }


def on_images(network: Callable[[Tensor], Any], images: Tensor, slices: range) -> Any:
    """Run a network on some slices of [Z, 3, H, W]."""
    return network(images[slices[0] : slices[-1] + 1])


def link_all(parts: list[list[Detections]], grid: NetworkGrid, plan: Plan) -> tuple[InstanceSet, float]:
    """Return the objects of all slices, and how many detections a slice has."""
    found = [d for part in parts for d in part]
    return link(found, grid.geometry, plan.labels, plan.linking), sum(map(len, found)) / len(found)


def benchmark(args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything; see the text on top."""
    device = set_up(args.device, args.threads)
    trained, model = load_run(args.model, device)
    own = {"inference.precision": "float32", "inference.batch_size": args.batch}
    plans = {
        OURS: trained.with_overrides({**own, **LIMITS}),
        f"{OURS}, torchvision's limits": trained.with_overrides(own),
    }
    plan = plans[OURS]
    automatic = plan.with_overrides({"inference.precision": "auto"})
    if Predictor(automatic, model, device).dtype != torch.float32:
        plans[f"{OURS}, bfloat16"] = automatic
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

    console.out.print("warming up and measuring what the device reaches")
    for system in (*systems.values(), *([yolo] if yolo else [])):
        system(middle)
    ceilings = measure_ceilings(device)
    forget = [stock.detections(plan.labels.ids) for stock in stocks.values()]
    del forget
    predictors = {name: ours[name].predictor for name in plans if "limits" not in name}
    whole: dict[str, list[tuple[Any, Spent]]] = {name: [] for name in predictors}
    for turn in range(2):  # before and after the network's turns
        for name, predictor in predictors.items():
            whole[name].append(timed(partial(predictor.predict, [volume]), device))
        if not turn:
            runs = in_turns({**systems, **({"YOLO": yolo} if yolo else {})}, chunks, device)
    if yolo:
        yolo.close()
        runs["YOLO"] = (None, runs["YOLO"][0])  # by its own clocks
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
        rows["YOLO"] = {"weights": "random", "model": args.yolo_model, **yolo.about, **medians(runs["YOLO"][1])}
    volumes = {}
    for name, found in whole.items():
        prediction, spent = found[-1][0], [s for _, s in found]
        total = Spent(*(sum(getattr(s, f) for s in runs[STOCK_RESIZED][1]) for f in Spent._fields))
        # per slice of a chunk, each chunk having args.batch of them but the last
        seconds = [Spent(s.wall / args.slices, s.processor / args.slices) for s in spent]
        stock = [Spent(total.wall / len(chunks), total.processor / len(chunks))] * len(seconds)
        volumes[name] = {
            "ratio": median_ratio(stock, seconds),
            **medians(seconds),
            "seconds_of_stages": {k: round(v, 3) for k, v in prediction.seconds.items()},
            "peak_mib": peak_mib(partial(predictors[name].predict, [volume]), device),
            "against_truth": compare(truth, prediction.instances),
            "against_torchvision": compare(objects[STOCK_RESIZED][0], prediction.instances),
        }
    return {
        **conditions(device),
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
    parser.add_argument("--slices", type=int, default=60)
    parser.add_argument("--batch", type=int, default=0, help="slices at once; 0: 1 on a CPU, 8 on a GPU")
    parser.add_argument("--yolo-python", type=Path, help="Python of an environment that has ultralytics")
    parser.add_argument("--yolo-model", default="yolo11l-seg.yaml")
    args = parser.parse_args()
    args.batch = args.batch or (8 if args.device.startswith("cuda") else 1)
    result = benchmark(args)
    write_json(args.out, result)
    console.out.print_json(data=result)
