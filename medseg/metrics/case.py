"""One prediction against one reference: classes and objects.

Classes are matched by name, never by number. A class that a reference holds no object of has NaN for every
score of that case, counted as undefined; what was predicted of it counts as false positives.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medseg.errors import ConfigError
from medseg.metrics.chaos import chaos_scores
from medseg.metrics.coco_slices import SliceObjects, slice_objects
from medseg.metrics.detection import DetectionScore, score_detections
from medseg.metrics.overlap import VoxelOverlap, voxel_overlap
from medseg.metrics.surface import Surface, SurfaceDistances, class_surface_distances, pair_surface_distances
from medseg.values.instances import InstanceSet
from medseg.values.pairs import PairTable, on_grid_of

NAN = float("nan")
#: Tolerances of NSD in mm where none are given.
TOLERANCES_MM = (1.0, 2.0)


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
        reference_diameter_mm, prediction_diameter_mm: of the sphere of the same volume, NaN where there is none.
        surface: surface scores of the matched pair by name (see `surface_scores`), NaN for unmatched objects.
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
    reference_diameter_mm: float
    prediction_diameter_mm: float
    surface: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class ClassResult:
    """One class of one case.

    Attributes:
        name: of the class.
        in_reference, in_prediction: whether the class is in the label table of each side.
        voxels: agreement of the unions.
        surface: surface scores of the unions by name (see `surface_scores`); empty where none were asked for.
        objects: agreement of the objects.
    """

    name: str
    in_reference: bool
    in_prediction: bool
    voxels: VoxelOverlap
    surface: Mapping[str, float]
    objects: DetectionScore


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """One case: a result per class of either label table, a row per object.

    Attributes:
        iou_threshold: IoU at which objects matched.
        dice_threshold: the Dice that was asked for instead, else None.
        surface: how surfaces were measured, None where they were not.
        tolerances_mm: of NSD.
        classes: in the order of the reference's table, then those that only the prediction has.
        objects: matched and missed objects in the reference's order, then the false positives.
        pairs: the touching objects, from which rankings over a cohort are made.
        slices: the objects slice by slice for slice-wise COCO scores, None where these were not asked for.
    """

    iou_threshold: float
    dice_threshold: float | None
    surface: Surface | None
    tolerances_mm: tuple[float, ...]
    classes: tuple[ClassResult, ...]
    objects: tuple[ObjectResult, ...]
    pairs: PairTable = field(compare=False, repr=False)
    slices: SliceObjects | None = field(compare=False, repr=False)

    def of(self, name: str) -> ClassResult:
        """Return the result of the class called ``name``; ConfigError where there is none."""
        for result in self.classes:
            if result.name == name:
                return result
        raise ConfigError(f"class {name!r} was not evaluated; expected one of {[c.name for c in self.classes]}")


def evaluate_case(
    reference: InstanceSet,
    prediction: InstanceSet,
    *,
    iou_threshold: float = 0.3,
    dice_threshold: float | None = None,
    surface: Surface | None = "subvoxel",
    tolerances_mm: Sequence[float] = TOLERANCES_MM,
    coco_slices: bool = False,
) -> CaseResult:
    """Compare a prediction with its reference.

    Args:
        reference, prediction: objects on the same grid in world space (any axis order).
        iou_threshold: IoU at which two objects of a class match, 0..1.
        dice_threshold: match by Dice instead: the threshold is this, and the total that is maximised that of Dice.
            Since Dice = 2 IoU / (1 + IoU), ``iou_threshold`` of the result then is Dice / (2 - Dice).
        surface: what a surface is (`medseg.metrics.surface`): ``subvoxel``, ``border``, or ``chaos`` for the four
            scores of the CHAOS challenge; None leaves surface scores out.
        tolerances_mm: of NSD, mm, one or more.
        coco_slices: keep the objects slice by slice, for slice-wise COCO scores of the cohort.

    Raises:
        GeometryError: the grids differ.
        ConfigError: a threshold outside 0..1, an unknown surface, or a tolerance that is no distance.

    Example:
        >>> result = evaluate_case(truth, found, iou_threshold=0.5)  # doctest: +SKIP
        >>> result.of("liver").voxels.dice, result.of("lesion").objects.f1  # doctest: +SKIP
    """
    check_settings(iou_threshold, dice_threshold, tolerances_mm)
    prediction = on_grid_of(reference, prediction)
    pairs = PairTable.between(reference, prediction)
    if dice_threshold is None:
        matched = pairs.matching(iou_threshold)
    else:
        matched = pairs.matching(dice_threshold, "dice")
        iou_threshold = dice_threshold / (2 - dice_threshold)
    overlap = voxel_overlap(reference, prediction)
    surfaces = _class_surfaces(reference, prediction, surface, tolerances_mm)
    classes = tuple(
        ClassResult(
            name=label.name,
            in_reference=label.name in reference.labels.names,
            in_prediction=label.name in prediction.labels.names,
            voxels=overlap[label.name],
            surface=surfaces[label.name],
            objects=score_detections(pairs, matched, label.id),
        )
        for label in pairs.labels
    )
    agreement = _pair_surfaces(reference, prediction, pairs, matched, surface, tolerances_mm)
    undefined = surface_scores(None, surface, tolerances_mm)
    return CaseResult(
        iou_threshold=iou_threshold,
        dice_threshold=dice_threshold,
        surface=surface,
        tolerances_mm=tuple(tolerances_mm),
        classes=classes,
        objects=tuple(_object_results(reference, prediction, pairs, agreement, undefined)),
        pairs=pairs,
        slices=slice_objects(reference, prediction) if coco_slices else None,
    )


def check_settings(iou_threshold: float, dice_threshold: float | None, tolerances_mm: Sequence[float]) -> None:
    """Refuse (ConfigError) thresholds outside 0..1, no tolerances, or ones that are not finite and 0 or more."""
    for what, threshold in (("IoU", iou_threshold), ("Dice", dice_threshold)):
        if threshold is not None and not 0 <= threshold <= 1:
            raise ConfigError(f"{what} threshold {threshold}: expected 0..1")
    if not len(tolerances_mm) or not all(0 <= t < np.inf for t in tolerances_mm):
        raise ConfigError(f"surface tolerances {list(tolerances_mm)} mm: expected finite numbers, 0 or more")


def _class_surfaces(
    reference: InstanceSet, prediction: InstanceSet, surface: Surface | None, tolerances_mm: Sequence[float]
) -> dict[str, dict[str, float]]:
    if surface is None:
        return dict.fromkeys((*reference.labels.names, *prediction.labels.names), {})
    if surface == "chaos":
        return {
            name: {f"chaos_{key}": value for key, value in vars(score).items()}
            for name, score in chaos_scores(reference, prediction).items()
        }
    distances = class_surface_distances(reference, prediction, surface=surface)
    return {name: surface_scores(d, surface, tolerances_mm) for name, d in distances.items()}


def _pair_surfaces(
    reference: InstanceSet,
    prediction: InstanceSet,
    pairs: PairTable,
    matched: NDArray[np.int64],
    surface: Surface | None,
    tolerances_mm: Sequence[float],
) -> dict[int, dict[str, float]]:
    if surface is None:
        return {int(row): {} for row in matched}
    distances = pair_surface_distances(reference, prediction, pairs, matched, surface=surface)
    return {int(r): surface_scores(d, surface, tolerances_mm) for r, d in zip(matched, distances, strict=True)}


def surface_scores(
    distances: SurfaceDistances | None, surface: Surface | None, tolerances_mm: Sequence[float]
) -> dict[str, float]:
    """Return the scores that follow from distances, by name; all NaN for None, which is no pair.

    ``nsd_<t>mm`` per tolerance (0 where nothing was predicted, as its definition gives), ``hd95_mm`` and
    ``assd_mm`` (NaN there, with nothing to measure to). For ``chaos``: ``chaos_assd_mm`` and ``chaos_mssd_mm``; for
    classes also ``chaos_dice`` and ``chaos_ravd_percent`` (`medseg.metrics.chaos`).
    """
    scores: dict[str, Callable[[SurfaceDistances], float]] = {}
    if surface == "chaos":
        scores = {"chaos_assd_mm": lambda d: d.assd(), "chaos_mssd_mm": lambda d: d.hd(100)}
    elif surface is not None:
        scores = {f"nsd_{t:g}mm": partial(SurfaceDistances.nsd, tolerance_mm=t) for t in tolerances_mm}
        scores |= {"hd95_mm": lambda d: d.hd(95), "assd_mm": lambda d: d.assd()}
    return {name: NAN if distances is None else score(distances) for name, score in scores.items()}


def _object_results(
    reference: InstanceSet,
    prediction: InstanceSet,
    pairs: PairTable,
    agreement: Mapping[int, Mapping[str, float]],
    undefined: Mapping[str, float],
) -> Iterable[ObjectResult]:
    iou, dice = pairs.iou(), pairs.dice()
    row_of = {int(pairs.reference[row]): row for row in agreement}
    taken = {int(pairs.prediction[row]) for row in agreement}
    best = {
        side: (_best(owner, iou, pairs, count), _best(owner, dice, pairs, count))
        for side, owner, count in (
            ("reference", pairs.reference, len(reference)),
            ("prediction", pairs.prediction, len(prediction)),
        )
    }
    for i, label in enumerate(pairs.reference_labels):
        row = row_of.get(i)
        partner = None if row is None else int(pairs.prediction[row]) + 1
        own, other = reference.volume_ml(i + 1), NAN if partner is None else prediction.volume_ml(partner)
        yield ObjectResult(
            label=pairs.labels[int(label)].name,
            status="missed" if partner is None else "matched",
            reference_id=i + 1,
            prediction_id=partner,
            iou=float(best["reference"][0][i] if row is None else iou[row]),
            dice=float(best["reference"][1][i] if row is None else dice[row]),
            score=NAN if partner is None else prediction[partner].score,
            reference_ml=own,
            prediction_ml=other,
            reference_diameter_mm=diameter_mm(own),
            prediction_diameter_mm=diameter_mm(other),
            surface=undefined if row is None else agreement[row],
        )
    for j, label in enumerate(pairs.prediction_labels):
        if j in taken:
            continue
        volume = prediction.volume_ml(j + 1)
        yield ObjectResult(
            label=pairs.labels[int(label)].name,
            status="false_positive",
            reference_id=None,
            prediction_id=j + 1,
            iou=float(best["prediction"][0][j]),
            dice=float(best["prediction"][1][j]),
            score=prediction[j + 1].score,
            reference_ml=NAN,
            prediction_ml=volume,
            reference_diameter_mm=NAN,
            prediction_diameter_mm=diameter_mm(volume),
            surface=undefined,
        )


def _best(owner: NDArray[np.int64], value: NDArray[np.float64], pairs: PairTable, count: int) -> NDArray[np.float64]:
    """Return [count] the largest value of each object with any of its class."""
    best = np.zeros(count)
    same = pairs.same_label()
    np.maximum.at(best, owner[same], value[same])
    return best


def diameter_mm(volume_ml: float) -> float:
    """Return the diameter of the sphere of this volume in mm."""
    return float(np.cbrt(6000 * volume_ml / np.pi))
