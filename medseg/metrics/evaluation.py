"""One prediction against one reference, and many cases in one summary.

Classes are matched by name. A class that a reference holds no object of has NaN for every score of that case,
counted as undefined; what was predicted of it counts as false positives.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from medseg.errors import ConfigError
from medseg.metrics.detection import DetectionScore, pooled, score_detections
from medseg.metrics.overlap import VoxelOverlap, voxel_overlap
from medseg.values.instances import InstanceSet
from medseg.values.pairs import PairTable, on_grid_of

NAN = float("nan")
#: Scores of `ClassResult` that the summary averages over cases.
VOXEL_SCORES = ("dice", "iou", "sensitivity", "precision", "volume_difference_ml", "volume_difference_percent")


@dataclass(frozen=True, kw_only=True)
class ObjectResult:
    """One matched pair, one missed or one invented object.

    Attributes:
        label: name of the class.
        status: ``matched``, ``missed`` (reference only) or ``false_positive`` (prediction only).
        reference_id, prediction_id: instance ids, None where there is none.
        iou, dice: of the matched pair; else of the best unmatched overlap with an object of the same class
            (0 where none touches).
        score: of the predicted object, NaN for a missed one.
        reference_ml, prediction_ml: volumes, NaN where there is none.
    """

    label: str
    status: Literal["matched", "missed", "false_positive"]
    reference_id: int | None
    prediction_id: int | None
    iou: float
    dice: float
    score: float
    reference_ml: float
    prediction_ml: float


@dataclass(frozen=True, kw_only=True)
class ClassResult:
    """One class of one case.

    Attributes:
        name: of the class.
        in_reference, in_prediction: whether the class is in the label table of each side.
        voxels: agreement of the unions.
        objects: agreement of the objects.
    """

    name: str
    in_reference: bool
    in_prediction: bool
    voxels: VoxelOverlap
    objects: DetectionScore


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """One case: a result per class of either label table, a row per object."""

    iou_threshold: float
    classes: tuple[ClassResult, ...]
    objects: tuple[ObjectResult, ...]

    def of(self, name: str) -> ClassResult:
        """Return the result of the class called ``name``; ConfigError where there is none."""
        for result in self.classes:
            if result.name == name:
                return result
        raise ConfigError(f"class {name!r} was not evaluated; expected one of {[c.name for c in self.classes]}")


def evaluate_case(reference: InstanceSet, prediction: InstanceSet, *, iou_threshold: float = 0.3) -> CaseResult:
    """Compare a prediction with its reference.

    Args:
        reference, prediction: objects on the same grid in world space (any axis order).
        iou_threshold: IoU at which two objects of a class match, 0..1.

    Raises:
        GeometryError: the grids differ.
        ConfigError: a threshold outside 0..1.
    """
    prediction = on_grid_of(reference, prediction)
    pairs = PairTable.between(reference, prediction)
    matched = pairs.matching(iou_threshold)
    overlap = voxel_overlap(reference, prediction)
    classes = tuple(
        ClassResult(
            name=label.name,
            in_reference=label.name in reference.labels.names,
            in_prediction=label.name in prediction.labels.names,
            voxels=overlap[label.name],
            objects=score_detections(pairs, matched, label.id),
        )
        for label in pairs.labels
    )
    return CaseResult(
        iou_threshold=iou_threshold,
        classes=classes,
        objects=tuple(_object_results(reference, prediction, pairs, matched)),
    )


def _object_results(
    reference: InstanceSet, prediction: InstanceSet, pairs: PairTable, matched: np.ndarray
) -> Iterable[ObjectResult]:
    iou, dice, same = pairs.iou(), pairs.dice(), pairs.same_label()
    match_of = {int(pairs.reference[row]): int(row) for row in matched}
    taken = {int(pairs.prediction[row]) for row in matched}

    def best(side: np.ndarray, position: int) -> tuple[float, float]:
        rows = np.flatnonzero((side == position) & same)
        return (float(iou[rows].max()), float(dice[rows].max())) if len(rows) else (0.0, 0.0)

    for i, label in enumerate(pairs.reference_labels):
        row = match_of.get(i)
        partner = None if row is None else int(pairs.prediction[row]) + 1
        agreement = best(pairs.reference, i) if row is None else (float(iou[row]), float(dice[row]))
        yield ObjectResult(
            label=pairs.labels[int(label)].name,
            status="missed" if partner is None else "matched",
            reference_id=i + 1,
            prediction_id=partner,
            iou=agreement[0],
            dice=agreement[1],
            score=NAN if partner is None else prediction[partner].score,
            reference_ml=reference.volume_ml(i + 1),
            prediction_ml=NAN if partner is None else prediction.volume_ml(partner),
        )
    for j, label in enumerate(pairs.prediction_labels):
        if j in taken:
            continue
        agreement = best(pairs.prediction, j)
        yield ObjectResult(
            label=pairs.labels[int(label)].name,
            status="false_positive",
            reference_id=None,
            prediction_id=j + 1,
            iou=agreement[0],
            dice=agreement[1],
            score=prediction[j + 1].score,
            reference_ml=NAN,
            prediction_ml=prediction.volume_ml(j + 1),
        )


def summarise(cases: Mapping[str, CaseResult]) -> dict[str, Any]:
    """Summarise a cohort.

    Args:
        cases: case name -> result, all at one IoU threshold.

    Returns:
        - ``n_cases``, ``iou_threshold``;
        - ``mean_dice``: {mean, n, n_undefined} of the classes' mean voxel Dice, each class weighted alike;
        - ``objects``: the object scores pooled over all classes (keys as below);
        - ``classes``: class name ->
            - ``in_reference``, ``in_prediction``: whether the class is in the label tables of that side;
            - ``cases_with_reference``: cases whose reference holds an object of the class;
            - ``voxels``: dice, iou, sensitivity, precision, volume_difference_ml and
              volume_difference_percent, each {mean, sd, median, min, max, n, n_undefined} over cases
              (sd of the sample; NaN below two cases);
            - ``objects``: reference, prediction, tp, fp, fn, splits, merges as totals over cases, and f1,
              sensitivity, precision, pq, sq, mean_matched_dice of those totals.

    Raises:
        ConfigError: no case, or cases at different thresholds.
    """
    thresholds = {case.iou_threshold for case in cases.values()}
    if len(thresholds) != 1:
        raise ConfigError(f"summary of {len(cases)} cases at the IoU thresholds {sorted(thresholds)}; expected one")
    by_class: dict[str, list[ClassResult]] = {}
    for case in cases.values():
        for result in case.classes:
            by_class.setdefault(result.name, []).append(result)
    classes: dict[str, dict[str, Any]] = {}
    for name, results in by_class.items():
        # A case whose tables do not know the class has no object of it, on either side.
        absent = len(cases) - len(results)
        classes[name] = {
            "in_reference": any(r.in_reference for r in results),
            "in_prediction": any(r.in_prediction for r in results),
            "cases_with_reference": sum(r.objects.reference_objects > 0 for r in results),
            "voxels": {
                score: statistics([getattr(r.voxels, score) for r in results] + [NAN] * absent)
                for score in VOXEL_SCORES
            },
            "objects": object_scores(pooled(r.objects for r in results)),
        }
    class_means = [entry["voxels"]["dice"]["mean"] for entry in classes.values()]
    mean_dice = statistics(class_means)
    return {
        "n_cases": len(cases),
        "iou_threshold": thresholds.pop(),
        "mean_dice": {key: mean_dice[key] for key in ("mean", "n", "n_undefined")},
        "objects": object_scores(pooled(r.objects for results in by_class.values() for r in results)),
        "classes": classes,
    }


def object_scores(score: DetectionScore) -> dict[str, float]:
    """Return counts and scores of one class or of several, as plain numbers."""
    return {
        "reference": score.reference_objects,
        "prediction": score.prediction_objects,
        "tp": score.tp,
        "fp": score.fp,
        "fn": score.fn,
        "f1": score.f1,
        "sensitivity": score.sensitivity,
        "precision": score.precision,
        "pq": score.pq,
        "sq": score.sq,
        "mean_matched_dice": score.mean_matched_dice,
        "splits": score.splits,
        "merges": score.merges,
    }


def statistics(values: Iterable[float]) -> dict[str, float]:
    """Return mean, sd (sample), median, min, max of what is defined, n of it, and how many are NaN."""
    given = np.array(list(values), np.float64)
    defined = given[~np.isnan(given)]
    none = not len(defined)
    return {
        "mean": NAN if none else float(defined.mean()),
        "sd": float(defined.std(ddof=1)) if len(defined) > 1 else NAN,
        "median": NAN if none else float(np.median(defined)),
        "min": NAN if none else float(defined.min()),
        "max": NAN if none else float(defined.max()),
        "n": len(defined),
        "n_undefined": len(given) - len(defined),
    }
