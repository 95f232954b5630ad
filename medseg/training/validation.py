"""Validation while training: whole volumes through the averaged network and the linker, scored by object.

It reads prepared cases, on the network's own grid: no image file is opened. What a user gets on the images themselves
is measured once, at the end (`medseg.training.final_validation`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from highdicom import Volume
from torch import Tensor

from medseg.data.cache import CachedCase
from medseg.data.grid import NetworkGrid
from medseg.errors import InputError
from medseg.inference.predictor import Predictor
from medseg.inference.result import display_window
from medseg.io.atomic import write_csv
from medseg.linking import link
from medseg.metrics.detection import pooled
from medseg.metrics.evaluation import CaseResult, class_values, evaluate_case, statistics
from medseg.models.mask_rcnn import build_mask_rcnn
from medseg.progress import Track, silent
from medseg.reporting.curves import read_columns
from medseg.reporting.overlay import save_overlay
from medseg.values.geometry import IDENTITY, spacing_of
from medseg.values.instances import Instance, InstanceSet
from medseg.values.plan import Plan

VALIDATION_FILE = "validation.csv"
LATEST_PICTURE, BEST_PICTURE = "validation_latest.png", "validation_best.png"
#: Slices in a picture, side by side.
PICTURE_COLUMNS = 3


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One class over the cases of a validation; NaN where none of them holds an object of it.

    Attributes:
        f1: of objects, from the counts of all cases, matched at ``training.validation_iou``.
        dice: of voxels, the mean over the cases whose reference holds the class.
    """

    f1: float
    dice: float


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What one validation found.

    Attributes:
        step: training steps done.
        score: the mean of F1 and Dice over the classes, what the best checkpoint is chosen by; six decimals.
        classes: name -> its scores, all classes of the plan.
        cases: how many were predicted.
        undefined: how many classes none of them holds; these are left out of ``score``, which is NaN without any other.
        is_best: whether no validation before scored as high.
        stop: whether the best one is ``training.patience`` validations ago.
    """

    step: int
    score: float
    classes: Mapping[str, ClassScore]
    cases: int
    undefined: int
    is_best: bool
    stop: bool


class Validator:
    """Scores weights on held-out cases and keeps validation.csv and the pictures of a run.

    It has a network of its own: the one in training, its mode, and the states of all random generators stay as they
    are, so a run with validation and one without train alike to the bit.

    Args:
        cases: the held-out cases; `choose_cases` takes ``training.validation_cases`` of them.
        plan: decides network, linking and scores.
        run: folder that gets validation.csv (one row per validation; rows of this step and later ones, from a run that
            was killed and resumed, are replaced), validation_latest.png and validation_best.png.
        device: where to compute.

    Raises:
        InputError: no cases.
    """

    def __init__(self, cases: Sequence[CachedCase], plan: Plan, run: Path, device: torch.device):
        if not cases:
            raise InputError("validation without cases; choose another fold, or train on everything (--fold all)")
        self.plan = plan
        self.run = run
        self.cases = choose_cases(cases, plan.training.validation_cases, plan.training.seed)
        # The picture is always of the same case, one that shows many classes.
        self.shown = max(range(len(self.cases)), key=lambda i: len({o.label for o in self.cases[i].objects}))
        with torch.random.fork_rng(devices=[]):  # building draws weights, which are replaced
            self.model = build_mask_rcnn(plan)
        self.device = device

    def __call__(self, weights: Mapping[str, Tensor], step: int, track: Track = silent) -> Validation:
        """Predict and score the cases, add a row to validation.csv, and renew the pictures.

        Args:
            weights: of the plan's network, by name; they are copied.
            step: training steps done.
            track: progress over cases.
        """
        self.model.load_state_dict(weights)
        predictor = Predictor(self.plan, self.model, self.device)
        results: list[CaseResult] = []
        pictures: list[tuple[InstanceSet, InstanceSet]] = []
        for position, case in enumerate(track(self.cases, "validating", len(self.cases))):
            reference = _reference(case, self.plan)
            found = link(predictor.detect(_grid(case)), case.geometry, self.plan.labels, self.plan.linking)
            threshold = self.plan.training.validation_iou
            results.append(evaluate_case(reference, found, iou_threshold=threshold, surface=None))
            if position == self.shown:
                pictures.append((reference, found))
        classes = {name: _class_score(results, name) for name in self.plan.labels.names}
        values = [v for score in classes.values() for v in (score.f1, score.dice) if not math.isnan(v)]
        # Rounded as validation.csv holds it: a resumed run compares the same numbers.
        score = round(sum(values) / len(values), 6) if values else math.nan
        scores = self._write(step, score, classes)
        best, last, patience = best_of(scores), len(scores) - 1, self.plan.training.patience
        for reference, found in pictures:
            self._draw(reference, found, best == last)
        return Validation(
            step=step,
            score=score,
            classes=classes,
            cases=len(results),
            undefined=sum(math.isnan(score.f1) for score in classes.values()),
            is_best=best == last,
            stop=best is not None and 0 < patience <= last - best,
        )

    def _write(self, step: int, score: float, classes: Mapping[str, ClassScore]) -> list[float]:
        """Add a row to validation.csv; return the scores of all rows, this one last."""
        path = self.run / VALIDATION_FILE
        row = {"step": step, "score": score}
        for name, of_class in classes.items():
            row |= {f"f1 {name}": of_class.f1, f"dice {name}": of_class.dice}
        before = read_columns(path) if path.exists() else {}
        kept = [
            {key: int(values[i]) if key == "step" else float(values[i]) for key, values in before.items()}
            for i, at in enumerate(before.get("step", ()))
            if at < step
        ]
        write_csv(path, list(row), [*kept, row])
        return [*(float(r["score"]) for r in kept), score]

    def _draw(self, reference: InstanceSet, found: InstanceSet, best: bool) -> None:
        case = self.cases[self.shown]
        image = Volume(np.asarray(case.array[0]), case.geometry.affine, "PATIENT")
        for name in (LATEST_PICTURE, BEST_PICTURE) if best else (LATEST_PICTURE,):
            save_overlay(
                self.run / name,
                image,
                found,
                reference=reference,
                window=display_window(self.plan),
                columns=PICTURE_COLUMNS,
            )


def best_of(scores: Sequence[float]) -> int | None:
    """Return the position of the highest score, the first of equal ones; None where none is defined."""
    defined = [i for i, score in enumerate(scores) if not math.isnan(score)]
    return max(defined, key=lambda i: scores[i], default=None)


def choose_cases(cases: Sequence[CachedCase], limit: int, seed: int) -> list[CachedCase]:
    """Choose at most ``limit`` cases (0: all), evenly from little to much to find, the same under one seed.

    Sorted by the volume of their objects, the cases are cut into ``limit`` groups of nearly equal size, each of which
    gives one: a random one of those with the most classes that no other group gave so far.
    """
    if limit == 0 or len(cases) <= limit:
        return list(cases)
    rng = np.random.default_rng(seed)
    ordered = sorted(cases, key=lambda case: (_volume_mm3(case), case.name))
    chosen: list[CachedCase] = []
    seen: set[int] = set()
    for group in np.array_split(np.arange(len(ordered)), limit):
        members = [ordered[i] for i in rng.permutation(group)]
        chosen.append(max(members, key=lambda case: len({o.label for o in case.objects} - seen)))
        seen |= {o.label for o in chosen[-1].objects}
    return chosen


def _volume_mm3(case: CachedCase) -> float:
    """Return the volume of a case's objects in mm^3."""
    return sum(int(o.areas.sum()) for o in case.objects) * float(np.prod(spacing_of(case.geometry)))


def _grid(case: CachedCase) -> NetworkGrid:
    """Return a prepared case as the network's grid of itself."""
    rows, columns = case.array.shape[2:]
    return NetworkGrid(
        array=case.array,
        slice_spacing_mm=case.slice_spacing_mm,
        axis_map=IDENTITY,
        geometry=case.geometry,
        rows=(0, rows),
        columns=(0, columns),
        size=(rows, columns),
    )


def _reference(case: CachedCase, plan: Plan) -> InstanceSet:
    instances = (Instance(id=1, label=o.label, mask=o.mask, offset=o.offset) for o in case.objects)
    return InstanceSet.build(instances, case.geometry, plan.labels)


def _class_score(results: Sequence[CaseResult], name: str) -> ClassScore:
    return ClassScore(
        f1=pooled(case.of(name).objects for case in results).f1,
        dice=statistics(class_values(results, name)["voxels"]["dice"])["mean"],
    )
