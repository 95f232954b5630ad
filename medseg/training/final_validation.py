"""The finished model on every held-out case: predicted as `medseg predict` does, judged as `medseg evaluate` does.

Predictions and references lie on the grids of the images, in files that viewers open; nothing here is on the network's
grid, so the figures are those that a user gets.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medseg.data.cohort import read_cohort_case
from medseg.data.layouts import Cohort
from medseg.errors import InputError, MedsegError
from medseg.evaluation import Evaluation, evaluate_files
from medseg.inference.result import display_window
from medseg.inference.study import StudyPredictor
from medseg.io import write_instances
from medseg.io.cohort_table import CohortRow
from medseg.progress import Track, silent
from medseg.reporting.overlay import save_overlay
from medseg.reporting.plots import save_plots

FOLDER = "validation"
PREDICTIONS, REFERENCE = "predictions", "reference"


@dataclass(frozen=True, kw_only=True)
class FinalValidation:
    """What the finished model does on the held-out cases.

    Attributes:
        evaluation: of the cases that could be predicted; None without any.
        failures: case name -> why it could not be, one line.
        files: the tables and plots, absolute.
    """

    evaluation: Evaluation | None
    failures: Mapping[str, str]
    files: tuple[Path, ...]

    def figures(self) -> dict[str, Any]:
        """Return what run.json tells of it: the means, and Dice and F1 by class (NaN where undefined).

        Of failures only the cases: the reasons name files, whose folders may be called after patients.
        """
        if self.evaluation is None:
            return {"cases": 0, "failures": [*self.failures]}
        summary = self.evaluation.summary
        return {
            "cases": summary["n_cases"],
            "failures": [*self.failures],
            "iou_threshold": summary["iou_threshold"],
            "mean_dice": summary["mean_dice"]["mean"],
            "classes": {
                name: {
                    "dice": entry["voxels"]["dice"]["mean"],
                    "f1": entry["objects"]["f1"],
                    "pq": entry["objects"]["pq"],
                }
                for name, entry in summary["classes"].items()
            },
        }


def validate_run(run: Path, held_out: Cohort, device: torch.device, track: Track = silent) -> FinalValidation:
    """Predict and evaluate held-out cases with the model of a run; one that fails does not stop the others.

    In ``run/validation``, made anew: ``predictions/CASE/`` with the files of `medseg predict` and CASE_comparison.png
    (prediction in colours, reference dashed), ``reference/CASE.seg.nrrd``, and what `medseg evaluate` writes on both.

    Args:
        run: folder of the training.
        held_out: the cases.
        device: where to compute.
        track: progress over cases.

    Raises:
        ModelError, ConfigError: see `load_run`.
    """
    folder = (run / FOLDER).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    predictor = StudyPredictor(run, device)
    failures: dict[str, str] = {}
    for row in track(held_out.rows, "final validation", len(held_out.rows)):
        try:
            _predict(row, held_out, predictor, folder)
        except (MedsegError, OSError, MemoryError, torch.OutOfMemoryError) as error:
            failures[row.name] = " ".join(str(error).split()) or type(error).__name__
    if len(failures) == len(held_out.rows):
        return FinalValidation(evaluation=None, failures=failures, files=())
    try:
        evaluation = evaluate_files(folder / REFERENCE, folder / PREDICTIONS, folder, track=track)
    except InputError as error:
        return FinalValidation(evaluation=None, failures={**failures, "evaluation": str(error)}, files=())
    plots = save_plots(evaluation, folder)
    return FinalValidation(
        evaluation=evaluation, failures={**evaluation.failures, **failures}, files=(*evaluation.files, *plots)
    )


def _predict(row: CohortRow, cohort: Cohort, predictor: StudyPredictor, folder: Path) -> None:
    volumes, truth = read_cohort_case(row, cohort)
    write_instances(folder / REFERENCE / f"{row.name}.seg.nrrd", truth)
    prediction, _ = predictor.run(row.images, folder / PREDICTIONS, row.name, row.series)
    save_overlay(
        folder / PREDICTIONS / row.name / f"{row.name}_comparison.png",
        volumes[0],
        prediction.instances,
        reference=truth,
        window=display_window(predictor.plan),
    )
