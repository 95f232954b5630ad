"""From a labelled cohort to a trained run: check every case, decide the plan, prepare, train."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from medseg.cluster.connect import Cluster
from medseg.data.cohort import Cohort, broken_errors, find_cohort, raise_broken, with_kinds
from medseg.data.cohort_plan import decide_plan
from medseg.data.fingerprint_table import describe
from medseg.errors import ConfigError, InputError, MedsegError
from medseg.inference.provenance import environment, hash_file, hash_text
from medseg.inference.run import PLAN_FILE
from medseg.io.atomic import check_apart, check_folder, write_json
from medseg.io.cohort_table import CohortRow
from medseg.io.patient_folders import LAYOUT
from medseg.labels import Kind
from medseg.models.mask_rcnn import MaskRCNN
from medseg.models.transfer import Transfer
from medseg.progress import Note, Track, silent, unheard
from medseg.training.checkpoint import drop_all_but_last, find_checkpoints, save_plan
from medseg.training.distributed import ALONE, World, first_does
from medseg.training.final_validation import validate_run
from medseg.training.folds import AUTO_FOLDS, Fold, choose_fold, patients_of, split_folds
from medseg.training.initial import Start
from medseg.training.loop import TrainingResult, train
from medseg.training.prepared import drop_cases, load_cases, prepare_cases
from medseg.training.tensorboard import check_tensorboard
from medseg.training.validation import Validator
from medseg.values.plan import Plan, check_fields, load_plan

RECORD_FILE = "run.json"
FINGERPRINT_FILE = "fingerprint.json"
#: Status in run.json: no step was made, nor is one being made.
PREPARED = "prepared"
Rows = Sequence[CohortRow]


def prepare_run(
    path: Path | str,
    run: Path,
    device: torch.device,
    *,
    settings: Mapping[str, Any] | None = None,
    plan_file: Path | None = None,
    small: bool = False,
    kinds: Mapping[str, Kind] | None = None,
    fold: Fold | Literal["auto", "all"] | None = None,
    start: Start | None = None,
    single_case: bool = False,
    resume: bool = False,
    world: World = ALONE,
    cluster: Cluster | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    track: Track = silent,
    note: Note = unheard,
) -> Cohort:
    """Do all of a training that comes before its first step: check the cases, decide the plan, bring them to its grid.

    Args:
        cluster: reads the cases and brings them to the plan's grid (`medseg.cluster.connect.connected`); None: this
            process does.
        path, run, device, settings, plan_file, small, kinds, fold, start, single_case, resume, world, on_plan, track,
            note: see `train_cohort`.

    Returns:
        The cases held out for validation, perhaps none, as a cohort.

    Raises:
        InputError, ConfigError: see `train_cohort`.
    """
    check_fields(settings or {})
    cohort = _find(path, run, kinds or {}, single_case, resume, start)
    if resume:
        chosen = _check_same(run, cohort, settings or {}, fold)
        plan = load_plan(run / PLAN_FILE)
        record = _read_record(run)
        if record["status"] == PREPARED:  # perhaps on another machine
            record |= {"environment": environment(device), "processes": world.size}
        _write_record(run, record | {"status": "running"})
    else:
        chosen = choose_fold(fold or "auto", cohort.rows)
        plan, facts = decide_plan(cohort, settings or {}, plan_file, track, small=small, cluster=cluster)
        plan = start.adapted(plan, settings or {}) if start else plan
    training, validation = _split(cohort.rows, chosen)
    if on_plan:
        on_plan(plan)
    if not resume:
        if chosen is None and fold != "all":
            note(f"fewer than {AUTO_FOLDS} patients: all are trained on, and nothing tells how good the model is")
        save_plan(run, plan)
        write_json(run / FINGERPRINT_FILE, describe(facts))
        about = _about(cohort, chosen, training, validation, plan, device, world)
        _write_record(run, about | {"start": {"from": start.option, "sha256": start.sha256} if start else None})
    prepare_cases(cohort, [row.name for row in training], plan, run, track, cluster)
    return replace(cohort, rows=tuple(validation))


def prepare_cohort(
    path: Path | str,
    run: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    plan_file: Path | None = None,
    small: bool = False,
    kinds: Mapping[str, Kind] | None = None,
    fold: Fold | Literal["auto", "all"] | None = None,
    single_case: bool = False,
    resume: bool = False,
    cluster: Cluster | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    track: Track = silent,
    note: Note = unheard,
) -> None:
    """Make a run that `train_cohort` goes on with by ``resume``, here or elsewhere; see `prepare_run` for the rest.

    Raises:
        ConfigError: a training has begun in the folder; or see `train_cohort`.
    """
    if resume and find_checkpoints(run):
        raise ConfigError(f"{run}: its training has begun, and is prepared; go on with: medseg train --resume")
    prepare_run(
        path, run, torch.device("cpu"), settings=settings, plan_file=plan_file, small=small, kinds=kinds, fold=fold,
        single_case=single_case, resume=resume, cluster=cluster, on_plan=on_plan, track=track, note=note,
    )  # fmt: skip
    _write_record(run, _read_record(run) | {"status": PREPARED})


def train_cohort(
    path: Path | str,
    run: Path,
    device: torch.device,
    *,
    settings: Mapping[str, Any] | None = None,
    plan_file: Path | None = None,
    small: bool = False,
    kinds: Mapping[str, Kind] | None = None,
    fold: Fold | Literal["auto", "all"] | None = None,
    start: Start | None = None,
    single_case: bool = False,
    resume: bool = False,
    world: World = ALONE,
    tensorboard: bool = False,
    on_plan: Callable[[Plan], None] | None = None,
    on_start: Callable[[Transfer], None] = lambda taken: None,
    track: Track = silent,
    note: Note = unheard,
    show: Note = unheard,
) -> TrainingResult:
    """Train on a cohort; nothing is written before every case has been read and checked.

    Args:
        path: see `find_cohort`.
        run: new or empty folder for plan.yaml, fingerprint.json, model.safetensors, metrics.csv, curves.png, run.json,
            checkpoints/ and, with validation, validation.csv, pictures and validation/; the prepared cases lie in it
            until training is done.
        device: where to compute.
        settings: plan fields that override what the cohort suggests, or the plan file says.
        plan_file: a plan to take as it is otherwise; None: by rule.
        small: whether the plan by rule is the small one (`medseg.data.small_plan`).
        kinds: label name -> kind, see `find_cohort`.
        fold: which cases are held out for validation (see `choose_fold`); None: those of the run that is resumed,
            else ``auto``.
        start: weights to begin with; they decide some of the plan.
        single_case: allow a cohort of one case (which says nothing about any other patient).
        resume: go on with the training in ``run``, by its own plan.
        world: which of several processes this is; all of them call this.
        tensorboard: write event files for TensorBoard as well.
        on_plan: called with the plan before training.
        on_start: called, in the first process, with what was taken of ``start``.
        track: progress.
        note: hears of what is no error.
        show: hears after each step how training stands.

    Raises:
        InputError: a broken case, or one case without ``single_case``.
        ConfigError: the folder is not empty, nothing to go on with there, or a bad setting.
        ModelError: see `train`.
    """

    def initialise(model: MaskRCNN) -> None:
        assert start is not None
        taken = start.load_into(model, plan)
        if world.first:
            begun = {"from": start.option, "sha256": start.sha256, **taken.to_dict()}
            _write_record(run, _read_record(run) | {"start": begun})
            on_start(taken)

    def lost(model: MaskRCNN) -> None:  # called where there is no checkpoint: weights would be drawn at random
        raise ConfigError(f"{run}: has no whole checkpoint with the weights it began with; start a new run with them")

    if tensorboard:
        check_tensorboard()
    prepare = partial(
        prepare_run,
        path, run, device, settings=settings, plan_file=plan_file, small=small, kinds=kinds, fold=fold, start=start,
        single_case=single_case, resume=resume, world=world, on_plan=on_plan, track=track, note=note,
    )  # fmt: skip
    validation = first_does(world, prepare)
    plan = load_plan(run / PLAN_FILE)
    cases, held_out = load_cases(run)
    validator = Validator(held_out, plan, run, device) if held_out and world.first else None
    begun = lost if resume and _read_record(run)["start"] else None
    try:
        result = train(
            cases, plan, run, device, track,
            validator=validator, initialise=initialise if start else begun, world=world, resume=resume, note=note,
            tensorboard=tensorboard, show=show,
        )  # fmt: skip
    except MedsegError:
        if not resume and world.size == 1 and not find_checkpoints(run):
            shutil.rmtree(run, ignore_errors=True)  # nothing came of it: the folder can be used again
        raise

    def finish() -> TrainingResult:
        done = result
        if validation and validation.rows and not result.interrupted:
            done = replace(done, validation=validate_run(run, validation, device, track))
        _finish(run, done)
        return done

    if result.interrupted:  # the others may be gone: nothing is told any more
        return finish() if world.first else result
    return first_does(world, finish) or result


def _find(
    path: Path | str, run: Path, kinds: Mapping[str, Kind], single_case: bool, resume: bool, start: Start | None
) -> Cohort:
    """Find the cohort, after a look at the folder that is to be written."""
    if resume and not (run / PLAN_FILE).is_file():
        raise ConfigError(f"{run}: no training to go on with (no {PLAN_FILE} there); leave out --resume to start one")
    if start and resume:
        raise ConfigError(f"{start.option}: a run that goes on has its weights; leave it out, or start a new run")
    if not resume and run.exists() and (not run.is_dir() or any(run.iterdir())):
        begun = (run / PLAN_FILE).is_file() and (run / RECORD_FILE).is_file()
        hint = ", or delete it; a training that was stopped goes on with --resume" if begun else ""
        raise ConfigError(f"{run}: exists and is not an empty folder; name a new one{hint}")
    check_folder(run)
    if resume and kinds:
        raise ConfigError("--kind and --resume: a training goes on with the kinds of its own plan; leave out --kind")
    cohort = find_cohort(path, kinds)
    if cohort.layout == LAYOUT and not resume:
        check_apart(run, path)  # what is predicted in it at the end would be taken for another patient
    if resume:
        own = {label.name: label.kind for label in load_plan(run / PLAN_FILE).labels}
        known = cohort.labels.names if cohort.labels else ()
        cohort = with_kinds(cohort, {name: kind for name, kind in own.items() if name in known}, Path(path))
    if len(cohort.rows) + len(cohort.broken) == 1 and not single_case and not resume:
        raise InputError(
            f"{path}: the cohort has one case, expected at least two; a model of one patient says nothing about "
            "others (--single-case trains it all the same)"
        )
    return cohort


def _check_same(
    run: Path, cohort: Cohort, settings: Mapping[str, Any], fold: Fold | Literal["auto", "all"] | None
) -> Fold | None:
    """Return the fold of the run to go on with; refuse (ConfigError) what is not as it was when it began."""
    record = _read_record(run)
    if record["status"] == "finished":
        raise ConfigError(f"{run}: this training is finished ({record['steps']} steps); name a new folder for another")
    plan = load_plan(run / PLAN_FILE)
    if record["plan_sha256"] != hash_file(run / PLAN_FILE):
        raise ConfigError(
            f"{run / PLAN_FILE}: was changed since the training began, which goes on by the plan that it began with; "
            "undo that, or start a new run with --plan"
        )
    for key, value in settings.items():
        if plan.with_overrides({key: value}).model_dump(exclude={"reasons"}) != plan.model_dump(exclude={"reasons"}):
            raise ConfigError(
                f"setting {key}={value} is not that of {run / PLAN_FILE}, by which the run goes on; leave it out, or "
                "start a new run"
            )
    raise_broken(broken_errors(cohort), cohort)
    if record["cohort"] != _hash_names(cohort):
        raise ConfigError(
            f"{run}: was begun with other cases ({sum(record['cases'].values())} then, {len(cohort.rows)} now, or of "
            "other names); give the same cohort, or start a new run"
        )
    begun = None if record["fold"] == "all" else Fold(**record["fold"])
    names = {label.id: label.name for label in plan.labels}
    now = {label.id: label.name for label in cohort.labels or plan.labels}
    if now != names:
        raise ConfigError(
            f"{run}: was begun with the labels {names}, the cohort has {now}; undo that, or start a new run"
        )
    if fold is not None and choose_fold(fold, cohort.rows) != begun:
        raise ConfigError(f"--fold {fold}: the run was begun with {begun or 'all'}; leave it out, or start a new run")
    return begun


def _split(rows: Rows, fold: Fold | None) -> tuple[Rows, Rows]:
    return (rows, ()) if fold is None else split_folds(rows, fold.number, fold.count)


def _hash_names(cohort: Cohort) -> str:
    return hash_text("\n".join(sorted(row.name for row in cohort.rows)))


def _about(
    cohort: Cohort, fold: Fold | None, training: Rows, validation: Rows, plan: Plan, device: torch.device, world: World
) -> dict[str, Any]:
    """Return what run.json tells from the start."""
    return {
        "status": "running",
        "environment": environment(device),
        "processes": world.size,
        "cohort": _hash_names(cohort),
        "cases": {"training": len(training), "validation": len(validation)},
        "patients": {"training": patients_of(training), "validation": patients_of(validation)},
        "fold": "all" if fold is None else {"number": fold.number, "count": fold.count},
        "seed": plan.training.seed,
        "plan_sha256": hash_text(plan.to_yaml()),
    }


def _write_record(run: Path, record: Mapping[str, Any]) -> None:
    write_json(run / RECORD_FILE, record)


def _read_record(run: Path) -> dict[str, Any]:
    try:
        found = json.loads((run / RECORD_FILE).read_text(encoding="utf-8"))
        return {key: found[key] for key in ("status", "cohort", "cases", "fold", "start", "plan_sha256")} | found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{run / RECORD_FILE}: not the record of a training ({error}); start a new run in another folder"
        ) from None


def _finish(run: Path, result: TrainingResult) -> None:
    """Complete run.json; what a resume would need goes where training is done."""
    record = {
        **_read_record(run),
        "status": "interrupted" if result.interrupted else "finished",
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "best_step": result.best_step,
        "best_score": result.best_score,
        "last_loss": result.loss,
        "validation": result.validation.figures() if result.validation else None,
    }
    _write_record(run, record)
    if not result.interrupted:
        drop_all_but_last(run)
        drop_cases(run)
