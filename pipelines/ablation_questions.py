"""The questions that Mask R-CNN answers, asked again with small trainings on phantoms.

    python pipelines/ablation_questions.py -o docs/results/ablations.json --runs ablation-runs --seeds 0,1,2

Every setting is trained from nothing under several seeds and scored on slices of other phantoms: COCO's AP of boxes
and masks, and Dice and NSD of the masks in the true boxes, which no detection blurs. A run is a small file in --runs;
started again, the command keeps those that are there. Differences are seed by seed from the first setting of a
question; their 95 % interval says what is inside the noise. One thread; a run takes about half a minute of a core.
"""

import argparse
import json
import math
import os
import re
import statistics
import sys
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

import torch
from ablation_parts import ORGANS, Figures, draw_case, score, tabulate, train_plainly
from record_results import write_record

from medseg.cli import console
from medseg.data.cache import CachedCase
from medseg.errors import ConfigError, MedsegError
from medseg.inference.provenance import hash_text
from medseg.io.atomic import write_json
from medseg.values.plan import InputPlan, Plan

PIXEL_MM, SIDE, DEPTH_MM = 2.8, 128, 192.0
TRAIN, TEST = range(3000, 3016), range(4000, 4008)
#: Distance in mm of the slices that are scored, whatever the phantoms' own.
SCORED_MM = 27.0
SETTINGS: dict[str, Any] = {
    "model.backbone": "resnet18",
    "model.coarsest_stride": 16,
    "model.fpn_channels": 64,
    "model.fpn_norm": "group",
    "model.anchor_sizes": [[6.0, 10.0], [16.0, 24.0], [36.0, 60.0]],
    "model.anchor_ratios": [0.7, 1.4],
    "model.box_head_channels": 256,
    "model.mask_head_channels": 32,
    "model.mask_head_convolutions": 2,
    "model.proposals_before_nms": 150,
    "training.batch_size": 2,
    "training.crop_size": [96, 96],
    "training.learning_rate": 1.5e-3,
    "training.proposals": 50,
    "training.box_samples": 24,
    "training.box_positive_fraction": 0.5,
    "training.class_balance": 0.0,
    "training.empty_fraction": 0.0,
    "training.augment": False,
    "training.ema_decay": 0.99,
    "training.precision": "auto",
    "inference.proposals": 100,
    "inference.score_threshold": 0.05,
}
#: Side of the objects that are pooled from stride 16: every object from the finest level, or from the coarsest.
STRIDE = {4: 1e6, 16: 1.0}
SMALL_MASK = {"model.mask_roi_size": 7, "model.mask_size": 14}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One network: what differs from SETTINGS, the phantoms' slice distance, and whether masks are learnt."""

    changes: dict[str, Any] = field(default_factory=dict)
    slice_mm: float = 3.0
    masks: bool = True

    def plan(self, seed: int, steps: int) -> Plan:
        """Return the plan of one training."""
        windows = ((-160.0, 240.0), (-20.0, 180.0))
        plan = Plan(labels=ORGANS, input=InputPlan(spacing_mm=(PIXEL_MM, PIXEL_MM), windows=windows))
        own = {"training.seed": seed, "training.steps": steps, "model.roi_canonical_size": STRIDE[4]}
        return plan.with_overrides({**SETTINGS, **own, **self.changes})


def pooled(op: str, stride: int, **more: Any) -> Setting:
    """Return the setting that pools every object with an operation from the level of a stride."""
    return Setting(changes={"model.roi_op": op, "model.roi_canonical_size": STRIDE[stride], **more})


def context(planes: int, slice_mm: float) -> Setting:
    """Return the setting that sees so many neighbouring slices on each side."""
    return Setting(changes={"input.context_mm": [slice_mm * n for n in range(-planes, planes + 1)]}, slice_mm=slice_mm)


BASE = Setting()
#: Question -> settings by name; differences are from the first.
QUESTIONS: dict[str, dict[str, Setting]] = {
    "roi_align_stride_4": {"pool": pooled("pool", 4), "align": BASE},
    "roi_align_stride_16": {"pool": pooled("pool", 16), "align": pooled("align", 16)},
    "boxes_only": {"without mask head": Setting(masks=False), "with mask head": BASE},
    "masks_and_classes": {
        "softmax over classes": Setting(changes={"model.mask_loss": "softmax"}),
        "sigmoid per class": BASE,
        "one mask for all classes": Setting(changes={"model.mask_head": "class_agnostic"}),
    },
    "context_thin": {"0 planes": BASE, **{f"{n} planes a side": context(n, 3.0) for n in (1, 2)}},
    "context_thick": {"0 planes": context(0, 9.0), **{f"{n} planes a side": context(n, 9.0) for n in (1, 2)}},
    "roi_align_stride_4_mask_14": {"pool": pooled("pool", 4, **SMALL_MASK), "align": pooled("align", 4, **SMALL_MASK)},
    "roi_align_stride_16_mask_14": {
        "pool": pooled("pool", 16, **SMALL_MASK),
        "align": pooled("align", 16, **SMALL_MASK),
    },
}  # fmt: skip


@cache
def phantoms(seeds: range, slice_mm: float) -> list[CachedCase]:
    """Draw phantoms whose slices lie so far apart."""
    return [
        draw_case(s, (round(DEPTH_MM / slice_mm), SIDE, SIDE), (slice_mm, PIXEL_MM, PIXEL_MM), ORGANS) for s in seeds
    ]


def run(setting: Setting, seed: int, steps: int, train: range = TRAIN, test: range = TEST) -> dict[str, Any]:
    """Train and score one network; return plain data."""
    plan = setting.plan(seed, steps)
    cases, others = phantoms(train, setting.slice_mm), phantoms(test, setting.slice_mm)
    start = time.process_time()
    model = train_plainly(cases, plan, masks=setting.masks)
    trained = time.process_time() - start
    every = round(SCORED_MM / setting.slice_mm)
    found, sections, scored = score(model, plan, others, every, rectangles=not setting.masks)
    rows = [[name, figure, None if math.isnan(value) else value] for (name, figure), value in found.items()]
    seconds = {"training": round(trained, 1), "scoring": round(scored, 1)}
    about = {"plan_sha256": hash_text(plan.to_yaml()), "processor_seconds": seconds}
    return {**about, "cross_sections": sections, "figures": rows}


def key_of(setting: Setting, steps: int) -> str:
    """Return the file name, less the seed, of a setting's runs: settings that agree share their runs."""
    differing = {
        k: v for k, v in setting.changes.items() if BASE.plan(0, steps).with_overrides({k: v}) != BASE.plan(0, steps)
    }
    words = [f"{k.partition('.')[2]}={v}" for k, v in differing.items()]
    words += [f"slices={setting.slice_mm:g}mm"] + ([] if setting.masks else ["boxes_only"]) + [f"steps={steps}"]
    return re.sub(r"[^A-Za-z0-9.=+-]+", "_", "_".join(words))


def is_done(path: Path, plan: Plan) -> bool:
    """Tell whether a run is there; ConfigError where it was made by another plan."""
    if path.is_file() and json.loads(path.read_text(encoding="utf-8"))["plan_sha256"] != hash_text(plan.to_yaml()):
        raise ConfigError(f"{path}: was made by another plan; delete it, or name another --runs")
    return path.is_file()


def read_figures(path: Path) -> Figures:
    """Return the figures of a run's file."""
    rows = json.loads(path.read_text(encoding="utf-8"))["figures"]
    return {(name, figure): math.nan if value is None else value for name, figure, value in rows}


def summarise(folder: Path, questions: list[str], seeds: list[int], steps: int) -> dict[str, Any]:
    """Return per question the rows of the means of classes; one that lacks a run is left out and named below."""
    tables: dict[str, Any] = {}
    runs: dict[str, Any] = {}
    for question in questions:
        found: dict[str, dict[int, Figures]] = {}
        for name, setting in QUESTIONS[question].items():
            files = {seed: folder / f"{key_of(setting, steps)}_seed{seed}.json" for seed in seeds}
            there = {seed: path for seed, path in files.items() if path.is_file()}
            runs |= {path.name: json.loads(path.read_text(encoding="utf-8")) for path in there.values()}
            found[name] = {seed: read_figures(path) for seed, path in there.items()}
        if any(len(by_seed) < len(seeds) for by_seed in found.values()):
            continue
        tables[question] = [
            {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
            for row in tabulate(found)
            if row["class"] == "mean of classes"
        ]
    spent = [run["processor_seconds"]["training"] for run in runs.values()]
    return {
        "phantoms": {"training": len(TRAIN), "test": len(TEST), "pixel_mm": PIXEL_MM, "scored_slices_mm": SCORED_MM},
        "cross_sections": sorted({run["cross_sections"] for run in runs.values()}),
        "steps": steps,
        "processor_seconds_of_a_training": {"median": statistics.median(spent), "most": max(spent)},
        "questions": tables,
        "unfinished": [question for question in QUESTIONS if question not in tables],
    }


def main(words: list[str]) -> None:
    """Make the runs that are missing, seed by seed, and write the tables after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--question", action="append", choices=[*QUESTIONS], help="default: all")
    parser.add_argument("--seeds", default=[0, 1, 2], type=lambda text: [int(seed) for seed in text.split(",")])
    parser.add_argument("--tabulate", action="store_true", help="make no runs, show those that are there")
    parser.add_argument("--steps", type=int, default=150)
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    questions = args.question or [*QUESTIONS]
    for seed in () if args.tabulate else args.seeds:
        for question in questions:
            for name, setting in QUESTIONS[question].items():
                path = args.runs / f"{key_of(setting, args.steps)}_seed{seed}.json"
                if not is_done(path, setting.plan(seed, args.steps)):
                    done = run(setting, seed, args.steps)
                    write_json(path, done)
                    console.out.print(f"{question}, {name}, seed {seed}: {done['processor_seconds']}", markup=False)
    write_record(args.out, summarise(args.runs, questions, args.seeds, args.steps), seed=args.seeds)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except MedsegError as error:
        console.err.print(f"error: {error}", style="red", markup=False)
        sys.exit(2)
