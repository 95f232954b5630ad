"""`medseg demo`: the whole road on synthetic CTs, in about five minutes on two cores."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg.cli import console
from medseg.cli.compute import DEVICE_HELP, THREADS_HELP, set_up
from medseg.cli.evaluate import summary_table
from medseg.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from medseg.evaluation import Evaluation
    from medseg.io.cohort_table import CohortRow

NAME = "demo"

TRAIN_CASES, TEST_CASES = 16, 4
NOT_ORGANS = ("lesion", "necrosis")
#: A network and a schedule for five minutes on two cores; everything else is decided from the cohort.
SETTINGS: dict[str, Any] = {
    "input.spacing_mm": [2.0, 2.0],
    "model.backbone": "resnet18",
    "model.fpn_channels": 64,
    "model.box_head_channels": 256,
    "model.mask_head_channels": 32,
    "model.mask_size": 28,
    "model.proposals_before_nms": 300,
    "training.steps": 1700,
    "training.batch_size": 2,
    "training.crop_size": [128, 160],
    "training.learning_rate": 0.0015,
    "training.proposals": 100,
    "training.class_balance": 0.0,
    "training.empty_fraction": 0.0,
    "training.focus_fraction": 0.7,  # small crops cost a fifth: more of the small objects in the same time
    "training.box_positive_iou": 0.45,
    "training.augment": False,  # a slice is seen once or twice; augmentation pays in longer trainings
    "training.ema_decay": 0.99,
    "training.workers": 1,
    "inference.proposals": 200,
    "inference.score_threshold": 0.3,
    "inference.box_refinements": 1,
    "linking.smooth_mm": 3.0,
}


def run(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything, new.")] = Path("demo-output"),
    seed: Annotated[int, typer.Option("--seed", help="Seed of patients and training.")] = 0,
    device: Annotated[str, typer.Option("--device", help=DEVICE_HELP)] = "auto",
    threads: Annotated[int, typer.Option("--threads", help=THREADS_HELP)] = 0,
) -> None:
    """Make synthetic patients, train on some, find organs and lesions in others, and evaluate."""
    from medseg.evaluation import evaluate_files
    from medseg.inference.provenance import environment
    from medseg.io.atomic import write_json
    from medseg.io.cohort_table import read_cohort_table
    from medseg.phantom import write_cohort
    from medseg.reporting.plots import save_plots
    from medseg.training.cohort import train_cohort

    chosen = set_up(device, threads)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: exists and is not empty; name a new folder with -o, or delete it")
    start = time.perf_counter()
    console.out.print(f"1/5  {TRAIN_CASES} synthetic patients to learn from, {TEST_CASES} others to judge by")
    write_cohort(out / "train", cases=TRAIN_CASES, seed=2 * seed, track=console.track)
    write_cohort(out / "test", cases=TEST_CASES, seed=2 * seed + 1, track=console.track)
    console.out.print("2/5  training a small Mask R-CNN from nothing")
    settings = {**SETTINGS, "training.seed": seed}
    # The other patients judge; all of these train.
    result = train_cohort(out / "train", out / "run", chosen, settings=settings, fold="all", track=console.track)
    if result.interrupted:
        raise KeyboardInterrupt
    console.out.print("3/5  finding organs and lesions in the others")
    pictures = _predict(read_cohort_table(out / "test"), out, chosen)
    console.out.print("4/5  evaluating")
    evaluation = evaluate_files(out / "test", out / "predictions", out / "evaluation", track=console.track)
    save_plots(evaluation, out / "evaluation")
    console.out.print("5/5  for comparison: the simplest detector, a tuned threshold and connected components")
    baseline = _baseline_f1(out)
    touching, apart = _touching(out, evaluation)
    classes = evaluation.summary["classes"]
    organs = [entry["voxels"]["dice"]["mean"] for name, entry in classes.items() if name not in NOT_ORGANS]
    summary = {
        "mean_organ_dice": sum(organs) / len(organs),
        "lesion_f1": classes["lesion"]["objects"]["f1"],
        "iou_threshold": evaluation.summary["iou_threshold"],
        "baseline_lesion_f1": baseline,
        "touching_lesions": {"pairs": touching, "found_as_two": apart},
        "test_cases": TEST_CASES,
        "training": {"cases": TRAIN_CASES, "steps": result.steps},
        "seed": seed,
        "seconds": round(time.perf_counter() - start, 1),
        "environment": environment(chosen),
        "classes": classes,
        "notice": "Synthetic patients; says nothing about real ones. Research use only.",
    }
    write_json(out / "summary.json", summary)
    console.out.print(summary_table(evaluation.summary))
    console.out.print(
        f"mean organ Dice {summary['mean_organ_dice']:.3f}; lesions: F1 {summary['lesion_f1']:.3f} at IoU "
        f"{summary['iou_threshold']:g} (threshold and components: {baseline:.3f}); "
        f"{apart} of {touching} touching pairs found as two; {summary['seconds']:.0f} s"
    )
    console.out.print("Synthetic patients; this says nothing about real ones. Research use only.")
    for path in (*pictures, out / "run", out / "predictions", out / "evaluation", out / "summary.json"):
        console.wrote(path)
    for path in _reports(out, evaluation):
        console.wrote(path)


def _predict(rows: "list[CohortRow]", out: Path, device: "torch.device") -> list[Path]:
    """Predict the test cases and draw each against its truth."""
    from medseg.inference.study import StudyPredictor
    from medseg.io import read_instances, read_volume
    from medseg.reporting.overlay import save_overlay

    predictor = StudyPredictor(out / "run", device)
    pictures = []
    for row in console.track(rows, "predicting"):
        prediction, saved = predictor.run(row.images, out / "predictions", row.name)
        saved.report()
        pictures.append(out / "predictions" / row.name / f"{row.name}_comparison.png")
        volume = read_volume(row.images[0])
        save_overlay(pictures[-1], volume, prediction.instances, reference=read_instances(row.label))
    return pictures


def _reports(out: Path, evaluation: "Evaluation") -> list[Path]:
    """Write the pages about the training, the evaluation and the cases, and return them, the cases last."""
    from medseg.reporting.cohort_index import save_index
    from medseg.reporting.evaluation_report import save_evaluation_report, save_worst_pictures
    from medseg.reporting.training_report import save_training_report

    save_worst_pictures([evaluation], out / "evaluation")
    return [
        save_training_report(out / "run"),
        save_evaluation_report(out / "evaluation"),
        save_index(out / "predictions"),
    ]


def _baseline_f1(out: Path) -> float:
    """Tune threshold and components on half of the training patients; return their lesion F1 on the test patients."""
    from medseg.baseline import IOU, tune_baseline
    from medseg.data.cohort import find_cohort, read_cases
    from medseg.metrics.evaluation import evaluate_case, summarise

    cohort = find_cohort(out / "train")
    half = replace(cohort, rows=cohort.rows[: TRAIN_CASES // 2])
    train = [(volumes[0], truth) for _, volumes, truth in read_cases(half)]
    detector = tune_baseline(train, train[0][1].labels.by_name("lesion").id, track=console.track)
    results = {
        row.name: evaluate_case(truth, detector.predict(volumes[0]), iou_threshold=IOU)
        for row, volumes, truth in read_cases(find_cohort(out / "test"))
    }
    f1: float = summarise(results)["classes"]["lesion"]["objects"]["f1"]
    return f1


def _touching(out: Path, evaluation: "Evaluation") -> tuple[int, int]:
    """Return how many pairs of lesions touch in the truth, and of how many both were found, each on its own."""
    pairs = apart = 0
    for case, result in evaluation.cases.items():
        drawn = json.loads((out / "test" / case / "phantom.json").read_text(encoding="utf-8"))
        found = {row.reference_id for row in result.objects if row.status == "matched"}
        pairs += len(drawn["touching"])
        apart += sum(1 for a, b in drawn["touching"] if a in found and b in found)
    return pairs, apart
