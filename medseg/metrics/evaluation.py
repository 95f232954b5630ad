"""A cohort in one summary, with intervals; and, from `medseg.metrics.case`, one case.

Every mean and every pooled score comes with a percentile interval from resampled cases
(`medseg.metrics.bootstrap`).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import ConfigError
from medseg.metrics.bootstrap import LEVEL, case_weights, interval, weighted_means
from medseg.metrics.case import CaseResult, ClassResult, ObjectResult, evaluate_case
from medseg.metrics.coco_slices import coco_slice_ap
from medseg.metrics.detection import DetectionScore, pooled
from medseg.metrics.ranking import (
    AP_LOOSE,
    AP_STRICT,
    FROC_POINTS,
    froc_sensitivities,
    mean_average_precision,
    rank,
)

__all__ = [
    "VOXEL_SCORES",
    "CaseResult",
    "ClassResult",
    "ObjectResult",
    "class_names",
    "class_values",
    "evaluate_case",
    "object_scores",
    "pooled_scores",
    "ranking_scores",
    "statistics",
    "summarise",
]

NAN = float("nan")
#: Scores of `VoxelOverlap` that the summary averages over cases.
VOXEL_SCORES = ("dice", "iou", "sensitivity", "precision", "volume_difference_ml", "volume_difference_percent")
#: Scores of `DetectionScore`; what else it has are counts.
OBJECT_SCORES = (
    "f1", "jaccard_detection", "sensitivity", "precision", "pq", "sq", "lesion_dice", "mean_matched_dice",
)  # fmt: skip
#: Ends of the size classes in mm: below 5, 5 to 10, 10 to 20, 20 and more.
SIZE_EDGES_MM = (5.0, 10.0, 20.0)
FROC_IOU = 0.1
RESAMPLES = 1000
#: How many of the worst cases are listed.
WORST = 5


def summarise(
    cases: Mapping[str, CaseResult],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    froc_iou: float = FROC_IOU,
    size_edges_mm: Sequence[float] = SIZE_EDGES_MM,
) -> dict[str, Any]:
    """Summarise a cohort.

    Args:
        cases: case name -> result, all under the same settings.
        resamples: of the bootstrap; 0 leaves the intervals NaN.
        seed: of the bootstrap.
        froc_iou: IoU of a hit in FROC, 0..1.
        size_edges_mm: where size classes end, rising, mm: the diameter of the sphere of a reference object's volume.

    Returns:
        In what follows, an *interval* is ``ci_low`` and ``ci_high``; NaN where fewer than two cases decide it.

        - ``n_cases``; ``iou_threshold``, ``dice_threshold``, ``surface``, ``tolerances_mm``, ``froc_iou``,
          ``size_edges_mm``: the settings; ``bootstrap``: {resamples, seed, level};
        - ``mean_dice``: {mean, n, n_undefined, interval} of the classes' mean voxel Dice, each class weighted alike;
        - ``objects``: the object scores pooled over all classes (keys as below);
        - ``worst_cases``: up to 5 {case, mean_dice, f1}, lowest mean Dice of the classes first, without undefined ones;
        - ``classes``: class name ->
            - ``in_reference``, ``in_prediction``: whether the class is in the label tables of that side;
            - ``cases_with_reference``: cases whose reference holds an object of the class;
            - ``voxels``: dice, iou, sensitivity, precision, volume_difference_ml and
              volume_difference_percent, each {mean, sd, median, min, max, n, n_undefined, interval of the mean}
              over cases (sd of the sample; NaN below two cases);
            - ``surface``: the same of nsd_<t>mm, hd95_mm, assd_mm, or of the four CHAOS scores
              (`medseg.metrics.case.surface_scores`);
            - ``objects``: reference, prediction, tp, fp, fn, splits, merges as totals over cases; f1,
              jaccard_detection, sensitivity, precision, pq, sq, lesion_dice, mean_matched_dice of those totals;
              ``intervals``: score -> interval;
            - ``matched``: the surface scores over all matched objects of all cases, each object weighted alike
              ({mean, sd, median, min, max, n, n_undefined});
            - ``ranking``: ap_10_50, ap_50_95 (AP in 3-D, mean over IoU 0.10 to 0.50 and 0.50 to 0.95 in steps of
              0.05), cpm, each {value, interval}; ``froc``: false positives per scan -> sensitivity;
            - ``size_classes``: smallest first, {from_mm, to_mm (None: no end), reference, found, sensitivity,
              lesion_dice, false_positives (by their own diameter)};
            - ``coco_slices``: ap_50_95, ap_50, ap_75 with slices as images, where asked for;
            - ``worst_cases``: up to 5 {case, dice}, lowest first.

    Raises:
        ConfigError: no case, cases under different settings, or settings out of range.
    """
    check_summary_settings(froc_iou, size_edges_mm)
    results = list(cases.values())
    settings = settings_of(results)
    weights = case_weights(len(results), resamples=resamples, seed=seed)
    names = class_names(results)
    sliced = [c.slices for c in results if c.slices is not None]
    coco = coco_slice_ap(sliced, names) if sliced else {}
    classes: dict[str, dict[str, Any]] = {}
    for name in names:
        known = [c.of(name) for c in results if name in {r.name for r in c.classes}]
        values = class_values(results, name)
        entry: dict[str, Any] = {
            "in_reference": any(r.in_reference for r in known),
            "in_prediction": any(r.in_prediction for r in known),
            "cases_with_reference": cases_with_reference(results, [name]),
        }
        for group, scores in values.items():
            entry[group] = {key: _with_interval(of_case, weights) for key, of_case in scores.items()}
        entry["objects"] = _objects(results, [name], weights)
        entry["matched"] = _matched_surfaces(results, name)
        entry["ranking"] = _ranking(results, name, weights, froc_iou)
        entry["size_classes"] = _size_classes(results, name, size_edges_mm)
        if sliced:
            entry["coco_slices"] = coco[name]
        entry["worst_cases"] = _worst(list(cases), {"dice": values["voxels"]["dice"]})
        classes[name] = entry
    dice = np.array([class_values(results, name)["voxels"]["dice"] for name in names]).reshape(len(names), -1)
    means = np.array([weighted_means(row, weights) for row in dice]).reshape(len(names), -1)
    mean_dice = statistics(means[:, 0])
    f1 = np.array([pooled(r.objects for r in case.classes).f1 for case in results])
    return {
        "n_cases": len(cases),
        **settings,
        "froc_iou": froc_iou,
        "size_edges_mm": list(size_edges_mm),
        "bootstrap": {"resamples": resamples, "seed": seed, "level": LEVEL},
        "mean_dice": {key: mean_dice[key] for key in ("mean", "n", "n_undefined")}
        | ends(defined_mean(means), cases_with_reference(results, names)),
        "objects": _objects(results, names, weights),
        "worst_cases": _worst(list(cases), {"mean_dice": defined_mean(dice), "f1": f1}),
        "classes": classes,
    }


def settings_of(cases: Sequence[CaseResult]) -> dict[str, Any]:
    """Return iou_threshold, dice_threshold, surface and tolerances_mm of all cases.

    Raises:
        ConfigError: no case, or cases under different settings.
    """
    found = {(c.iou_threshold, c.dice_threshold, c.surface, c.tolerances_mm) for c in cases}
    if len(found) != 1:
        thresholds = sorted({case.iou_threshold for case in cases})
        raise ConfigError(f"{len(cases)} cases under {len(found)} settings (IoU {thresholds}); expected one for all")
    iou_threshold, dice_threshold, surface, tolerances_mm = found.pop()
    return {
        "iou_threshold": iou_threshold,
        "dice_threshold": dice_threshold,
        "surface": surface,
        "tolerances_mm": list(tolerances_mm),
    }


def check_summary_settings(froc_iou: float, size_edges_mm: Sequence[float]) -> None:
    """Refuse (ConfigError) an IoU outside 0..1, or size classes whose ends do not rise from above 0."""
    if not 0 <= froc_iou <= 1:
        raise ConfigError(f"IoU of a hit in FROC {froc_iou}: expected 0..1")
    edges = np.asarray(size_edges_mm, np.float64)
    if not (np.isfinite(edges).all() and (np.diff(edges, prepend=0) > 0).all()):
        raise ConfigError(f"ends of the size classes {list(size_edges_mm)} mm: expected numbers above 0 that rise")


def class_names(cases: Iterable[CaseResult]) -> list[str]:
    """Return the classes of all cases in the order in which they appear."""
    return list(dict.fromkeys(result.name for case in cases for result in case.classes))


def cases_with_reference(cases: Iterable[CaseResult], names: Sequence[str]) -> int:
    """Return how many cases have a reference object of any of the classes."""
    return sum(any(r.objects.reference_objects and r.name in names for r in case.classes) for case in cases)


def class_values(cases: Sequence[CaseResult], name: str) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return ``voxels`` and ``surface``, each score -> [C] its values by case; NaN where it is undefined.

    A case whose tables do not know the class has no object of it, on either side.
    """
    found = [next((r for r in case.classes if r.name == name), None) for case in cases]
    surfaces = next((tuple(r.surface) for r in found if r is not None), ())
    return {
        "voxels": {k: np.array([NAN if r is None else getattr(r.voxels, k) for r in found]) for k in VOXEL_SCORES},
        "surface": {k: np.array([NAN if r is None else r.surface[k] for r in found]) for k in surfaces},
    }


def pooled_scores(
    cases: Sequence[CaseResult], names: Iterable[str], weights: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """Return each of ``OBJECT_SCORES`` [W] from the counts of all cases and the classes named, under each weighting."""
    chosen = set(names)
    keys = list(DetectionScore.__dataclass_fields__)
    counts = np.array([
        [getattr(pooled(r.objects for r in case.classes if r.name in chosen), key) for key in keys] for case in cases
    ])  # fmt: skip
    totals = [DetectionScore(**dict(zip(keys, row, strict=True))) for row in weights @ counts]
    return {key: np.array([getattr(total, key) for total in totals]) for key in OBJECT_SCORES}


def ranking_scores(
    cases: Sequence[CaseResult], name: str, weights: NDArray[np.int64], froc_iou: float
) -> dict[str, NDArray[np.float64]]:
    """Return ap_10_50, ap_50_95 and cpm of one class, [W] each, and froc [W, 7]."""
    tables = [case.pairs for case in cases]
    froc = froc_sensitivities(rank(tables, name, froc_iou), weights)
    return {
        "ap_10_50": mean_average_precision(tables, name, AP_LOOSE, weights),
        "ap_50_95": mean_average_precision(tables, name, AP_STRICT, weights),
        "cpm": froc.mean(axis=1),
        "froc": froc,
    }


def object_scores(score: DetectionScore) -> dict[str, float]:
    """Return counts and scores of one class or of several, as plain numbers."""
    return {
        "reference": score.reference_objects,
        "prediction": score.prediction_objects,
        "tp": score.tp,
        "fp": score.fp,
        "fn": score.fn,
        **{key: getattr(score, key) for key in OBJECT_SCORES},
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


def defined_mean(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of what is defined in each column of [N, C]; NaN where nothing is."""
    defined = ~np.isnan(rows)
    count = defined.sum(axis=0)
    total = np.where(defined, rows, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(rows.shape[1], NAN), where=count > 0)


def ends(scores: NDArray[np.float64], cases: int) -> dict[str, float]:
    """Return the interval of a score [W] as ``ci_low`` and ``ci_high``; NaN where fewer than two cases decide it."""
    low, high = interval(scores) if cases > 1 else (NAN, NAN)
    return {"ci_low": low, "ci_high": high}


def _with_interval(values: NDArray[np.float64], weights: NDArray[np.int64]) -> dict[str, float]:
    described = statistics(values)
    return described | ends(weighted_means(values, weights), int(described["n"]))


def _objects(cases: Sequence[CaseResult], names: Sequence[str], weights: NDArray[np.int64]) -> dict[str, Any]:
    total = pooled(r.objects for case in cases for r in case.classes if r.name in names)
    holding = cases_with_reference(cases, names)
    intervals = {key: ends(scores, holding) for key, scores in pooled_scores(cases, names, weights).items()}
    return object_scores(total) | {"intervals": intervals}


def _matched_surfaces(cases: Sequence[CaseResult], name: str) -> dict[str, dict[str, float]]:
    rows = [o.surface for case in cases for o in case.objects if o.label == name and o.status == "matched"]
    keys = next((tuple(o.surface) for case in cases for o in case.objects), ())
    return {key: statistics(row[key] for row in rows) for key in keys}


def _ranking(cases: Sequence[CaseResult], name: str, weights: NDArray[np.int64], froc_iou: float) -> dict[str, Any]:
    scores = ranking_scores(cases, name, weights, froc_iou)
    froc = scores.pop("froc")
    holding = cases_with_reference(cases, [name])
    entry: dict[str, Any] = {key: {"value": float(values[0])} | ends(values, holding) for key, values in scores.items()}
    return entry | {"froc": {f"{point:g}": float(s) for point, s in zip(FROC_POINTS, froc[0], strict=True)}}


def _size_classes(cases: Sequence[CaseResult], name: str, edges_mm: Sequence[float]) -> list[dict[str, Any]]:
    objects = [o for case in cases for o in case.objects if o.label == name]
    entries = []
    for low, high in zip([0.0, *edges_mm], [*edges_mm, np.inf], strict=True):
        inside = [o for o in objects if low <= o.reference_diameter_mm < high]
        found = [o for o in inside if o.status == "matched"]
        invented = [o for o in objects if o.status == "false_positive" and low <= o.prediction_diameter_mm < high]
        entries.append({
            "from_mm": low,
            "to_mm": None if high == np.inf else high,
            "reference": len(inside),
            "found": len(found),
            "sensitivity": len(found) / len(inside) if inside else NAN,
            "lesion_dice": sum(o.dice for o in found) / len(inside) if inside else NAN,
            "false_positives": len(invented),
        })  # fmt: skip
    return entries


def _worst(names: Sequence[str], columns: Mapping[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    """Return the cases with the lowest values of the first column, undefined ones left out."""
    first = next(iter(columns.values()))
    order = [i for i in np.argsort(first, kind="stable") if not np.isnan(first[i])][:WORST]
    return [{"case": names[i]} | {key: float(values[i]) for key, values in columns.items()} for i in order]
