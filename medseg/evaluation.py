"""Predictions in files against references in files: reading, tables and summary.

`medseg.data.label_cases` says which layouts are understood, for the reference and the prediction alike. Cases are
paired by name, classes by name.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from signal import SIG_IGN, SIGINT, signal
from typing import Any

from medseg.cluster.connect import Cluster
from medseg.cluster.run import run_cases
from medseg.data.cohort import lists_cases
from medseg.data.label_cases import find_label_cases
from medseg.errors import ConfigError, InputError, MedsegError
from medseg.io.atomic import check_folder, write_csv, write_json
from medseg.io.cohort_table import CohortRow, read_label_file
from medseg.io.failures import Failure, write_failures
from medseg.io.instance_pairs import read_pair
from medseg.io.patient_folders import LAYOUT, folder_places, without_folders
from medseg.labels import Colour, Kind, LabelTable
from medseg.metrics.case import TOLERANCES_MM, check_settings
from medseg.metrics.comparison import compare
from medseg.metrics.evaluation import (
    FROC_IOU,
    RESAMPLES,
    SIZE_EDGES_MM,
    CaseResult,
    check_summary_settings,
    evaluate_case,
    summarise,
)
from medseg.metrics.rows import PER_CASE_COLUMNS, PER_INSTANCE_COLUMNS, case_rows, instance_rows, surface_columns
from medseg.metrics.surface import Surface
from medseg.progress import Note, Track, silent, unheard
from medseg.values.instances import InstanceSet
from medseg.values.kinds import by_kind


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How predictions are judged; saved in summary.json.

    Attributes:
        iou_threshold, dice_threshold, surface, tolerances_mm, coco_slices: see `evaluate_case`.
        resamples, seed, froc_iou, size_edges_mm: see `summarise`.

    Raises:
        ConfigError: a value out of range.
    """

    iou_threshold: float = 0.3
    dice_threshold: float | None = None
    surface: Surface | None = "subvoxel"
    tolerances_mm: tuple[float, ...] = TOLERANCES_MM
    coco_slices: bool = False
    resamples: int = RESAMPLES
    seed: int = 0
    froc_iou: float = FROC_IOU
    size_edges_mm: tuple[float, ...] = SIZE_EDGES_MM

    def __post_init__(self) -> None:
        check_settings(self.iou_threshold, self.dice_threshold, self.tolerances_mm)
        check_summary_settings(self.froc_iou, self.size_edges_mm)
        if self.resamples < 0 or self.seed < 0:
            raise ConfigError(f"bootstrap: {self.resamples} resamples and seed {self.seed}; expected both 0 or more")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate_files` found.

    Attributes:
        settings: how it was judged.
        cases: case name -> result of every case that could be evaluated.
        failures: case name -> why it could not be, one line.
        extra: names of predicted cases that the reference lacks; they are left out.
        summary: what summary.json holds: `medseg.metrics.evaluation.summarise` and ``failures``,
            ``predictions_without_reference``, ``labels`` (per class name, its ids in the label tables of
            the first case evaluated: {"reference": 1, "prediction": 2}, null where a table lacks it), ``colours``
            (per class name RGB 0..255, the reference's where it has the class),
            ``remarks`` (per case, what its files were read with); folders of DICOM patients are numbered in it.
        files: what was written, absolute.
        sources: case name -> where it was read from; `read_evaluated` reads it again.
    """

    settings: Settings
    cases: Mapping[str, CaseResult]
    failures: Mapping[str, str]
    extra: tuple[str, ...]
    summary: Mapping[str, Any]
    files: tuple[Path, ...]
    sources: Mapping[str, "Source"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `compare_files` found.

    Attributes:
        evaluations: of the first and of the second prediction.
        summary: what comparison.json holds (`medseg.metrics.comparison.compare`).
        files: what was written, absolute.
    """

    evaluations: tuple[Evaluation, Evaluation]
    summary: Mapping[str, Any]
    files: tuple[Path, ...]


def evaluate_files(
    reference: Path | str,
    prediction: Path | str,
    out: Path | str,
    *,
    settings: Settings | None = None,
    labels: Path | str | None = None,
    kinds: Mapping[str, Kind] | None = None,
    image: Path | str | None = None,
    workers: int = 1,
    cluster: Cluster | None = None,
    track: Track = silent,
) -> Evaluation:
    """Evaluate every case of a reference and write per_instance.csv, per_case.csv and summary.json.

    Where cases fail there is a failures.csv as well (`medseg.io.failures`).

    Args:
        reference, prediction: a label file, a folder of them, or a cohort (`medseg.data.label_cases`).
        out: folder for the results, made where missing; not that of the reference or the prediction.
        settings: how to judge; None is `Settings()`.
        labels: JSON label table of the reference; without it the labels.json beside the reference, else what its
            dataset.json or the label files say. The prediction's is found in the same way.
        kinds: label name -> what its objects are in the reference, which wins over the label table's.
        image: the image of the only case, read where neither of its files has a grid (`medseg.io.instance_pairs`);
            in a cohort each case has its own.
        workers: processes that evaluate cases, 1 or more; the results do not depend on it. A script that asks for
            more than one guards its own start with ``if __name__ == "__main__"``.
        cluster: evaluates cases in place of them (`medseg.cluster.connect.connected`).
        track: reports progress over cases.

    Returns:
        The results; a case that is missing or cannot be read is in ``failures`` and the rest is evaluated.

    Raises:
        ConfigError: workers below 1, or an image and several cases.
        InputError: no reference, no prediction, no case in common, not one case could be evaluated, or results that
            would lie among the files they are about.

    Example:
        >>> found = evaluate_files("cohort", "results", "scores")  # doctest: +SKIP
        >>> found.summary["classes"]["lesion"]["objects"]["f1"]  # doctest: +SKIP
    """
    settings = settings or Settings()
    reference, prediction, out = Path(reference).absolute(), Path(prediction).absolute(), Path(out).absolute()
    if workers < 1:
        raise ConfigError(f"workers {workers}: expected 1 or more")
    _check_apart(out, reference, prediction)
    table = read_label_file(labels) if labels is not None else None
    known = find_label_cases(reference, labels=table, kinds=kinds)
    found = find_label_cases(prediction)
    references = {row.name: row for row in known.rows}
    predictions = {row.name: row.label for row in found.rows}
    if not known.layout and reference.is_file() and len(predictions) == 1:
        # One file against one prediction: what the case is called does not matter.
        predictions = {name: file for name in references for file in predictions.values()}
    if not references.keys() & predictions.keys():
        raise InputError(
            f"{prediction}: no case of {reference} was predicted; the reference has {_some(references)}, "
            f"the predictions are {_some(predictions)}"
        )
    check_folder(out)
    if image is not None and len(references) > 1:
        raise ConfigError(
            f"{image} is one image, but {reference} has {len(references)} cases; list their images in a cohort.csv"
        )
    jobs = [
        Source(
            row=row if image is None else replace(row, images=(Path(image).absolute(),), series=None),
            prediction=predictions[name], labels=(known.labels, found.labels), regions=(known.regions, found.regions),
            by_kind=bool(known.layout or kinds), settings=settings,
        )
        for name, row in references.items()
        if name in predictions
    ]  # fmt: skip
    failed = {name: f"no prediction in {prediction}" for name in references if name not in predictions}
    failed |= {case.name: case.reason for case in found.broken if case.name in references}
    failed |= {case.name: case.reason for case in known.broken}
    failures = {name: Failure(stage="find", reason=reason) for name, reason in failed.items()}
    cases: dict[str, CaseResult] = {}
    remarks: dict[str, tuple[str, ...]] = {}
    ids: dict[str, dict[str, int | None]] = {}
    colours: dict[str, Colour] = {}
    outcomes = dict(track(_evaluate_all(jobs, workers, cluster), "evaluating", len(jobs)))
    for job in jobs:  # in their order, whichever was done first
        done = outcomes[job.row.name]
        if isinstance(done, Failure):
            failures[job.row.name] = done
        else:
            cases[job.row.name] = done.result
            ids, colours = ids or done.ids, colours or done.colours
            if done.remarks:
                remarks[job.row.name] = done.remarks
    if not cases:
        name, failure = next(iter(failures.items()))
        raise InputError(f"none of {len(failures)} cases could be evaluated; the first, {name}: {failure.reason}")
    folders = {
        folder: place
        for cohort, path in ((known, reference), (found, prediction))
        if cohort.layout == LAYOUT
        for folder, place in folder_places(path).items()
    }
    told = {
        name: replace(failure, reason=without_folders(failure.reason, folders)) for name, failure in failures.items()
    }
    extra = tuple(sorted(predictions.keys() - references.keys() - failures.keys()))
    summary = summarise(
        cases,
        resamples=settings.resamples,
        seed=settings.seed,
        froc_iou=settings.froc_iou,
        size_edges_mm=settings.size_edges_mm,
    ) | {
        "failures": {name: failure.reason for name, failure in told.items()},
        "predictions_without_reference": list(extra),
        "labels": ids,
        "colours": colours,
        "remarks": {name: tuple(without_folders(line, folders) for line in lines) for name, lines in remarks.items()},
    }
    files = [out / "per_instance.csv", out / "per_case.csv", out / "summary.json"]
    surfaces = surface_columns(cases)
    write_csv(files[0], (*PER_INSTANCE_COLUMNS, *surfaces[1]), instance_rows(cases))
    write_csv(files[1], (*PER_CASE_COLUMNS, *surfaces[0]), case_rows(cases))
    write_json(files[2], summary)
    failure_table = write_failures(out, told)
    return Evaluation(
        settings=settings, cases=cases, failures={name: failure.reason for name, failure in failures.items()},
        extra=extra, summary=summary, files=(*files, *([failure_table] if failure_table else [])),
        sources={job.row.name: job for job in jobs if job.row.name in cases},
    )  # fmt: skip


def compare_files(
    reference: Path | str,
    predictions: tuple[Path | str, Path | str],
    out: Path | str,
    *,
    settings: Settings | None = None,
    labels: Path | str | None = None,
    kinds: Mapping[str, Kind] | None = None,
    image: Path | str | None = None,
    workers: int = 1,
    cluster: Cluster | None = None,
    track: Track = silent,
) -> Comparison:
    """Evaluate two predictions of the same cases and compare them in pairs.

    Writes the files of `evaluate_files` into ``prediction_1`` and ``prediction_2``, in the order given, and
    comparison.json beside them.

    Args:
        reference, out, settings, labels, kinds, image, workers, cluster, track: see `evaluate_files`.
        predictions: the two.

    Raises:
        ConfigError, InputError: see `evaluate_files`; or no case that both could be evaluated on.
    """
    settings = settings or Settings()
    out = Path(out).absolute()
    for prediction in predictions:  # both, before the first takes its time
        _check_apart(out, Path(reference), Path(prediction))
        find_label_cases(Path(prediction))
    first, second = (
        evaluate_files(
            reference, prediction, out / f"prediction_{number}",
            settings=settings, labels=labels, kinds=kinds, image=image, workers=workers, cluster=cluster, track=track,
        )
        for number, prediction in enumerate(predictions, start=1)
    )  # fmt: skip
    summary = compare(
        first.cases, second.cases, resamples=settings.resamples, seed=settings.seed, froc_iou=settings.froc_iou
    )
    write_json(out / "comparison.json", summary)
    return Comparison(
        evaluations=(first, second), summary=summary, files=(*first.files, *second.files, out / "comparison.json")
    )


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a case is read from, and how its labels are taken."""

    row: CohortRow
    prediction: Path
    labels: tuple[LabelTable | None, LabelTable | None]
    regions: tuple[Mapping[int, Sequence[int]], Mapping[int, Sequence[int]]]
    by_kind: bool
    settings: Settings


@dataclass(frozen=True, kw_only=True)
class _Done:
    result: CaseResult
    ids: dict[str, dict[str, int | None]]
    colours: dict[str, Colour]
    remarks: tuple[str, ...]


def _evaluate_all(
    jobs: Sequence[Source], workers: int, cluster: Cluster | None
) -> Iterator[tuple[str, _Done | Failure]]:
    """Yield the name of each case with its result, or with why there is none; as they get done."""
    cases = {job.row.name: job for job in jobs}
    workers = min(workers, len(jobs))
    if workers < 2 or cluster is not None:
        yield from run_cases(_evaluate, cases, cluster, stage="evaluate")
        return
    # Fresh processes: a fork of a process with threads may hang. Ctrl-C is the parent's affair.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=signal, initargs=(SIGINT, SIG_IGN))
    try:
        yield from zip(cases, pool.map(_evaluate, jobs), strict=True)
    except BrokenExecutor:
        raise InputError("a worker process died, perhaps for lack of memory; evaluate with fewer workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


def read_evaluated(source: Source, note: Note = unheard) -> tuple[InstanceSet, InstanceSet]:
    """Return the objects of a case's reference and of its prediction, on one grid, as they are evaluated.

    Args:
        source: one of an `Evaluation`.
        note: told what is amiss in a file.

    Raises:
        InputError, GeometryError: see `medseg.io.instance_pairs.read_pair`.
    """
    row = source.row
    expected, found = read_pair(
        row.label,
        source.prediction,
        labels=source.labels,
        regions=source.regions,
        image=row.images[0] if row.images else None,
        series=row.series,
        note=note,
    )
    if source.by_kind and source.labels[0] is not None:  # as training has them
        expected = by_kind(expected)
    return expected, found


def _evaluate(job: Source) -> _Done | Failure:
    settings = job.settings
    remarks: list[str] = []
    try:
        expected, found = read_evaluated(job, remarks.append)
        _check_common_class(expected.labels, found.labels)
        result = evaluate_case(
            expected,
            found,
            iou_threshold=settings.iou_threshold,
            dice_threshold=settings.dice_threshold,
            surface=settings.surface,
            tolerances_mm=settings.tolerances_mm,
            coco_slices=settings.coco_slices,
        )
    except MedsegError as error:
        return Failure(stage="evaluate", reason=" ".join(str(error).split()))
    colours = {label.name: label.colour for table in (found.labels, expected.labels) for label in table}
    return _Done(result=result, ids=_label_ids(expected, found), colours=colours, remarks=tuple(remarks))


def _check_apart(out: Path, *inputs: Path) -> None:
    """Refuse results that would lie among the files they are about."""
    for given in inputs:
        folder = given.parent if given.is_file() and lists_cases(given) else given
        if folder.is_dir() and folder.resolve() == out.resolve():
            raise InputError(f"{out}: holds files to be evaluated, results would mix with them; name another folder")


def _check_common_class(reference: LabelTable, prediction: LabelTable) -> None:
    if len(reference) and len(prediction) and not set(reference.names) & set(prediction.names):
        raise InputError(
            f"reference and prediction have no class in common ({reference.describe()} and {prediction.describe()}); "
            "name the reference's labels in a labels.json beside it or with --labels"
        )


def _some(cases: Iterable[str]) -> str:
    names = sorted(cases)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _label_ids(reference: InstanceSet, prediction: InstanceSet) -> dict[str, dict[str, int | None]]:
    def ids(table: LabelTable) -> dict[str, int]:
        return {label.name: label.id for label in table}

    left, right = ids(reference.labels), ids(prediction.labels)
    return {name: {"reference": left.get(name), "prediction": right.get(name)} for name in left | right}
