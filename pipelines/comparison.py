"""Why not semantic segmentation, why not YOLO? One table, every system trained within the same processor seconds.

    python pipelines/comparison.py -o docs/results/comparison.json --data DATA --yolo-python ENV/bin/python

1. What each form of a result can hold: the truth of phantoms, of touching lesions and of dcmqi's overlapping segments
   is put into the form and taken out again; no network, the most that any could reach.
2. Networks trained on touching lesions in an organ, scored on others: a U-Net with connected components and with a
   watershed, a one-stage model (skipped without --yolo-python) whose masks medseg's linker joins, medseg.

Processor seconds of one thread, of training and per volume of 16 slices of 96 x 96.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

import torch
from comparison_cases import Case, as_one_label, draw_phantom, draw_touching, read_overlaps
from comparison_forms import best_depth, forms, measure
from comparison_systems import Trained, train_medseg, train_unet, train_yolo
from record_results import write_record

from medseg.cli import console
from medseg.errors import MedsegError
from medseg.values.instances import InstanceSet

TRAIN, TEST, PHANTOMS = range(100, 112), range(900, 912), range(5000, 5003)


def hold(depth_mm: float, touching: list[Case], phantoms: list[Case], overlaps: Case | None) -> dict[str, Any]:
    """Return what each form gives back of the truth of each kind of case."""
    kinds = {"touching lesions": [t for _, t in touching], "medseg's phantoms": [t for _, t in phantoms]}
    if overlaps:
        kinds["dcmqi, five labels"] = [overlaps[1]]
        kinds["dcmqi, five objects of one label"] = [as_one_label(overlaps[1])]
    table: dict[str, Any] = {
        name: {form: measure([(t, back(t)) for t in truths]).plain() for form, back in forms(depth_mm).items()}
        for name, truths in kinds.items()
    }
    return table if overlaps else {**table, "dcmqi": "skipped: no --data with dicom_seg/dcmqi"}


def judge(trained: Trained, cases: list[Case]) -> dict[str, Any]:
    """Return the scores of a trained system by way of finding objects."""
    empty = [InstanceSet.build([], truth.geometry, truth.labels) for _, truth in cases]
    found = trained.find([volume for volume, _ in cases], empty)
    rows = {}
    for name in found[0]:
        results = [(truth, f[name][0]) for (_, truth), f in zip(cases, found, strict=True)]
        seconds = {"training_seconds": round(trained.seconds, 1), "samples": trained.samples}
        each = round(statistics.median(f[name][1] for f in found), 3)
        rows[name] = {**measure(results).plain(), **seconds, "seconds_per_volume": each}
    return rows


def mean_and_spread(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean, least and most of every figure over seeds; None where undefined in one of them."""
    table: dict[str, Any] = {}
    for figure in runs[0]:
        values = [run[figure] for run in runs]
        defined = None not in values
        table[figure] = (
            {"mean": round(statistics.fmean(values), 4), "least": min(values), "most": max(values)} if defined else None
        )
    return table


def main(words: list[str]) -> None:
    """Make the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True, help="JSON file to write, after every seed")
    parser.add_argument("--data", type=Path, help="folder with dicom_seg/dcmqi")
    parser.add_argument("--seconds", type=float, default=40.0, help="processor seconds of a training")
    parser.add_argument("--seeds", default=[0, 1, 2], type=lambda text: [int(seed) for seed in text.split(",")])
    parser.add_argument("--yolo-python", type=Path, help="Python of an environment that has ultralytics")
    parser.add_argument("--yolo-model", default="yolo11n-seg.yaml")
    parser.add_argument("--yolo-side", type=int, default=128, help="pixels to which it scales the slices")
    parser.add_argument("--cases", type=int, default=len(TRAIN), help="of training and of testing, each")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    cases, others = ([draw_touching(seed) for seed in seeds[: args.cases]] for seeds in (TRAIN, TEST))
    depth = best_depth([truth for _, truth in cases[:6]])
    phantoms = [draw_phantom(seed) for seed in PHANTOMS[: args.cases]]
    figures: dict[str, Any] = {
        "watershed_depth_mm": depth,
        "cases": {"training": len(cases), "test": len(others), "phantoms": len(phantoms)},
        "seconds": args.seconds,
        "what_forms_hold": hold(depth, others, phantoms, read_overlaps(args.data) if args.data else None),
        "trained": {},
    }
    systems: dict[str, Callable[..., Trained]] = {"U-Net": partial(train_unet, depth_mm=depth), "medseg": train_medseg}
    if args.yolo_python:
        options = {"python": args.yolo_python, "model": args.yolo_model, "side": args.yolo_side}
        systems["YOLO"] = partial(train_yolo, **options)
    else:
        figures["YOLO"] = "skipped: no --yolo-python"
    runs: dict[str, list[dict[str, Any]]] = {}
    for done, seed in enumerate(args.seeds, 1):
        for name, train in systems.items():
            for way, row in judge(train(cases, seed, args.seconds), others).items():
                runs.setdefault(way, []).append(row)
            console.out.print(f"{name}, seed {seed}", markup=False)
        figures["trained"] = {way: {"seeds": rows, **mean_and_spread(rows)} for way, rows in runs.items()}
        write_record(args.out, figures, seed=args.seeds[:done])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except MedsegError as error:
        console.err.print(f"error: {error}", style="red", markup=False)
        sys.exit(2)
