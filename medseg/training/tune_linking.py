"""Fit the linking of a trained run to a labelled cohort that training has not seen."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from medseg.data.cohort import find_cohort, read_cases
from medseg.data.grid import to_network_grid
from medseg.errors import InputError
from medseg.inference.predictor import Predictor
from medseg.inference.run import PLAN_FILE, load_run
from medseg.io.atomic import atomic_path, check_folder
from medseg.linking import link
from medseg.linking.scores import fit_isotonic
from medseg.linking.tuning import MATCH_IOU, Pairs, fit_weights, label_pairs, log_loss
from medseg.progress import Track, silent
from medseg.training.checkpoint import save_plan
from medseg.values.detections import Detections
from medseg.values.instances import Instance, InstanceSet
from medseg.values.linking_plan import LinkingPlan
from medseg.values.pairs import PairTable, common_labels
from medseg.values.plan import Plan

#: Fewest pairs of each kind that weights are fitted to, and fewest objects that a calibration is.
MIN_PAIRS, MIN_OBJECTS = 20, 30


@dataclass(frozen=True, kw_only=True)
class LinkingTuning:
    """What was fitted.

    Attributes:
        plan: with the new linking section.
        old_plan: where the plan before it was kept.
        cases: of the cohort.
        pairs, same: candidate pairs of detections, and how many of them show one object.
        objects, true: objects found with the new weights, and how many of them exist.
        log_loss_before, log_loss_after: mean over the pairs; NaN without any.
        warnings: what was left as it was, and why.
    """

    plan: Plan
    old_plan: Path
    cases: int
    pairs: int
    same: int
    objects: int
    true: int
    log_loss_before: float
    log_loss_after: float
    warnings: tuple[str, ...]


def tune_linking(run: Path, cohort: Path, device: torch.device, track: Track = silent) -> LinkingTuning:
    """Fit weights and calibration, and write them to the plan of the run; the plan before is kept beside it.

    Args:
        run: folder of a training run.
        cohort: labelled cases, see `find_cohort`; those the network was trained on make it look too sure.
        device: where to compute.
        track: progress over cases.

    Raises:
        InputError: too little to fit anything.
        ModelError, ConfigError: see `load_run`.
    """
    plan, model = load_run(run, device)
    check_folder(run)
    predictor = Predictor(plan, model, device)
    found: list[tuple[list[Detections], InstanceSet]] = []
    for _, volumes, truth in read_cases(find_cohort(cohort), track):
        grid = to_network_grid(volumes, plan.input)
        detections = [grid.to_source(d) for d in predictor.detect(grid)]
        found.append((detections, _under_labels(truth.moved(grid.axis_map), plan)))
    pairs = Pairs.join([label_pairs(detections, truth, plan.linking) for detections, truth in found])
    same = int(pairs.same.sum())
    warnings: list[str] = []
    config = plan.linking
    reasons: dict[str, str] = {}
    if min(same, len(pairs.same) - same) >= MIN_PAIRS:
        config = fit_weights(pairs, config)
        source = f"fitted to {len(pairs.same)} pairs of detections of {len(found)} cases"
        reasons |= {f"linking.{field}": source for field in ("weights", "link_iou", "gap_iou")}
    else:
        warnings.append(
            f"{same} pairs of detections show one object and {len(pairs.same) - same} do not, at least {MIN_PAIRS} of "
            "each are needed: weights stay as they are"
        )
    config = config.model_copy(update={"calibration": ()})
    scores, true = _objects(found, config)
    if len(scores) >= MIN_OBJECTS and 0 < sum(true) < len(true):
        config = config.model_copy(update={"calibration": fit_isotonic(scores, true)})
        reasons["linking.calibration"] = f"fitted to {len(scores)} objects of {len(found)} cases"
    else:
        config = config.model_copy(update={"calibration": plan.linking.calibration})
        warnings.append(
            f"{len(scores)} objects, {sum(true)} of them true: at least {MIN_OBJECTS} and both kinds are needed, "
            "scores stay as they are"
        )
    if not reasons:
        raise InputError(f"{cohort}: too little to tune linking: {'; '.join(warnings)}; give more cases")
    kept = {key: why for key, why in plan.reasons.items() if key not in reasons}
    tuned = Plan.model_validate(
        {**plan.model_dump(), "linking": config.model_dump(), "reasons": {**kept, **reasons}, "labels": plan.labels}
    )
    old_plan = _keep(run / PLAN_FILE)
    save_plan(run, tuned)
    return LinkingTuning(
        plan=tuned,
        old_plan=old_plan,
        cases=len(found),
        pairs=len(pairs.same),
        same=same,
        objects=len(scores),
        true=sum(true),
        log_loss_before=log_loss(pairs, plan.linking),
        log_loss_after=log_loss(pairs, config),
        warnings=tuple(warnings),
    )


def _under_labels(truth: InstanceSet, plan: Plan) -> InstanceSet:
    """Return the true objects under the plan's label ids, matched by name; others are left out."""
    _, ids = common_labels(plan.labels, truth.labels)
    known = set(plan.labels.ids)
    kept = [(ids[i.label], i) for i in truth if ids[i.label] in known]
    return InstanceSet.build(
        (Instance(id=1, label=label, mask=i.mask, offset=i.offset) for label, i in kept), truth.geometry, plan.labels
    )


def _objects(found: list[tuple[list[Detections], InstanceSet]], config: LinkingPlan) -> tuple[list[float], list[bool]]:
    """Link every case; return the score of each object and whether it matches a true one."""
    scores: list[float] = []
    true: list[bool] = []
    for detections, truth in found:
        instances = link(detections, truth.geometry, truth.labels, config)
        table = PairTable.between(truth, instances)
        hits = np.zeros(len(instances), np.bool_)
        hits[table.prediction[table.matching(MATCH_IOU)]] = True
        scores += [i.score for i in instances]
        true += hits.tolist()
    return scores, true


def _keep(path: Path) -> Path:
    """Copy a plan to the first free name of plan.1.yaml, plan.2.yaml, ..."""
    number = 1
    while (copy := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    with atomic_path(copy) as temporary:
        shutil.copyfile(path, temporary)
    return copy
