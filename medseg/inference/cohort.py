"""One case of many, in this process or on a worker of a cluster: paths in, a summary out, no volume in either."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from medseg.cluster.connect import usable_cores
from medseg.errors import InputError, MedsegError
from medseg.inference.passes import PassSettings
from medseg.inference.predictor import Prediction
from medseg.inference.profile import profile_dict
from medseg.inference.provenance import hash_file
from medseg.inference.result import SavedPrediction
from medseg.inference.study import StudyPredictor, input_hash
from medseg.io.atomic import write_json
from medseg.io.failures import Failure
from medseg.models.mask_rcnn import choose_device
from medseg.progress import Note, Track, silent, unheard
from medseg.reporting.case_report import REPORT_FILE, RUN_FILE, read_json

PROFILE_FILE = "profile.json"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A study to predict on: its images, one per channel, and which series of DICOM is meant."""

    name: str
    study: tuple[Path, ...]
    series: str | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is the same for all cases of a run.

    Attributes:
        models: folders of training runs.
        model_sha256: of each; a worker that serves several runs opens anew what was trained anew.
        device: see `choose_device`.
        threads: of a CPU; 0: all that the process may use.
        passes, settings: see `StudyPredictor`; settings as (field, value).
        out: folder of the results.
        reading: how studies are read, and whether the identity is kept: see `StudyPredictor.settings_sha256`.
        report: write report.html of each case.
        profile: write profile.json of each case.
        resume: leave cases alone whose results are complete.
    """

    models: tuple[Path, ...]
    model_sha256: tuple[str, ...]
    device: str
    threads: int
    passes: PassSettings
    settings: tuple[tuple[str, Any], ...]
    out: Path
    reading: Mapping[str, Any]
    report: bool
    profile: bool
    resume: bool


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What came of a case; small, because it travels.

    Attributes:
        complete: it was complete already, and nothing was done; all else is empty then.
        objects: (id, name, score, volume in ml) of each.
        warnings: of the prediction.
        notes: what was amiss in the study's files.
        lost_ml: what the flat label map lost to overlaps.
        files: what was written.
        seconds: by stage.
    """

    complete: bool = False
    objects: tuple[tuple[int, str, float, float], ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    lost_ml: float = 0.0
    files: tuple[Path, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)


@lru_cache(maxsize=1)
def opened(
    models: tuple[Path, ...],
    model_sha256: tuple[str, ...],
    device: str,
    threads: int,
    passes: PassSettings,
    settings: tuple[tuple[str, Any], ...],
) -> StudyPredictor:
    """Return the models of a `Job` on their device; a process keeps those that it used last.

    Raises:
        ModelError, ConfigError: see `StudyPredictor` and `choose_device`; or other models than they were.
    """
    import torch

    torch.set_num_threads(threads or usable_cores())
    predictor = StudyPredictor(models, choose_device(device), passes, dict(settings))
    if tuple(predictor.model_hashes) != model_sha256:
        raise InputError(f"{models[0]}: was changed since this run began; start it again")
    return predictor


def predict_on_worker(job: Job, case: Case) -> Summary | Failure:
    """Predict a case on a worker of a cluster, with models that are opened once in each; see `predict_case`."""
    try:
        predictor = opened(job.models, job.model_sha256, job.device, job.threads, job.passes, job.settings)
    except MedsegError as error:
        return Failure(stage="model", reason=str(error))
    return predict_case(predictor, job, case)


def predict_case(
    predictor: StudyPredictor,
    job: Job,
    case: Case,
    track: Track = silent,
    note: Note | None = None,
    tell: Note = unheard,
) -> Summary | Failure:
    """Predict a case and write its files, its report with them.

    Args:
        predictor: the models of ``job``.
        job, case: what to do.
        track, tell: see `StudyPredictor.run`.
        note: the same; None: what it would hear is in the summary.

    Returns:
        What came of it; a `Failure` where medseg refuses the study.
    """
    stages = ["read"]
    notes: list[str] = []
    try:
        if job.resume and is_complete(predictor, job, case):
            return Summary(complete=True)
        prediction, saved = predictor.run(
            case.study,
            job.out,
            case.name,
            case.series,
            track,
            **job.reading,
            note=note or notes.append,
            tell=tell,
            stage=stages.append,
        )
        files = list(saved.files)
        stages.append("report")
        if job.report:
            start = time.perf_counter()
            files.append(saved.report())
            prediction.seconds["report"] = time.perf_counter() - start
        if job.profile:
            write_json(saved.folder / PROFILE_FILE, profile_dict(prediction.seconds))
            files.append(saved.folder / PROFILE_FILE)
    except MedsegError as error:
        return Failure(stage=stages[-1], reason=str(error))
    return summarise(prediction, saved, files, notes)


def summarise(
    prediction: Prediction, saved: SavedPrediction, files: Sequence[Path] = (), notes: Sequence[str] = ()
) -> Summary:
    """Return the summary of a case that was predicted and saved; ``files`` where more than those were written."""
    instances = prediction.instances
    return Summary(
        objects=tuple(
            (instance.id, title, instance.score, instances.volume_ml(instance.id))
            for instance, title in zip(instances, instances.names(), strict=True)
        ),
        warnings=prediction.warnings,
        notes=tuple(notes),
        lost_ml=sum(saved.lost_ml.values()),
        files=tuple(files or saved.files),
        seconds=dict(prediction.seconds),
    )


def is_complete(predictor: StudyPredictor, job: Job, case: Case) -> bool:
    """Tell whether the files of a case are whole and what ``job`` would write: by run.json and the hashes in it.

    run.json is written after the files that it lists, and the report after run.json.
    """
    folder = job.out / case.name
    try:
        run = read_json(folder / RUN_FILE)
        wanted = {"model_sha256": predictor.model_sha256, "settings_sha256": predictor.settings_sha256(**job.reading)}
        if not run["outputs"] or any(run[key] != value for key, value in wanted.items()):
            return False
        made = {RUN_FILE: None, **run["outputs"]}
        made |= {REPORT_FILE: None} if job.report else {}
        made |= {PROFILE_FILE: None} if job.profile else {}
        for name, expected in made.items():
            if not (folder / name).is_file() or expected not in (None, hash_file(folder / name)):
                return False
        return bool(run["input_sha256"] == input_hash(case.study, case.series))
    except (OSError, MedsegError, KeyError, TypeError, AttributeError):
        return False  # whatever is wrong with what is there, the case is done again, and what is wrong with it told
