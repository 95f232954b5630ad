"""Predictions in files against references in files: pairing, reading, tables and summary.

Layouts that are understood, for the reference and the prediction alike:

- one label file;
- a cohort: ``cohort.csv`` or the folder that holds it (`medseg.io.cohort_table`), ``labels.json`` beside it;
- a folder as `medseg predict` writes it: ``<case>/<case>.seg.nrrd`` (preferred, it keeps overlaps) or
  ``<case>/<case>_instances.nii.gz``;
- a folder of label files: ``<case>.seg.nrrd``, ``<case>_instances.nii.gz``, ``<case>.nii.gz`` ...

Cases are paired by name, classes by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.errors import ConfigError, InputError, MedsegError
from medseg.io import read_instances
from medseg.io.atomic import write_csv, write_json
from medseg.io.cohort_table import TABLE_NAME, read_cohort_labels, read_cohort_table, read_label_file, stem_of
from medseg.labels import LabelTable
from medseg.metrics.detection import DetectionScore
from medseg.metrics.evaluation import (
    VOXEL_SCORES,
    CaseResult,
    ObjectResult,
    evaluate_case,
    object_scores,
    summarise,
)
from medseg.progress import Track, silent
from medseg.values.instances import InstanceSet

#: Endings of label files in the order of preference: the first keeps overlaps.
ENDINGS = (".seg.nrrd", "_instances.nii.gz", ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
#: Endings of what `medseg predict` writes beside the instances, which is no label file.
_NOT_LABELS = ("_semantic.nii.gz", "_probabilities.nii.gz")

PER_CASE_COLUMNS = (
    "case", "label", "reference_ml", "prediction_ml",
    *VOXEL_SCORES, *(f"objects_{key}" for key in object_scores(DetectionScore())),
)  # fmt: skip
PER_INSTANCE_COLUMNS = ("case", *ObjectResult.__annotations__)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate_files` found.

    Attributes:
        cases: case name -> result of every case that could be evaluated.
        failures: case name -> why it could not be, one line.
        extra: names of predicted cases that the reference lacks; they are left out.
        summary: what summary.json holds: `medseg.metrics.evaluation.summarise` and ``failures``,
            ``predictions_without_reference``, ``labels`` (per class name, its ids in the label tables of
            the first case evaluated: {"reference": 1, "prediction": 2}, null where a table lacks it).
        files: what was written, absolute.
    """

    cases: Mapping[str, CaseResult]
    failures: Mapping[str, str]
    extra: tuple[str, ...]
    summary: Mapping[str, Any]
    files: tuple[Path, ...]


def evaluate_files(
    reference: Path | str,
    prediction: Path | str,
    out: Path | str,
    *,
    labels: Path | str | None = None,
    iou_threshold: float = 0.3,
    track: Track = silent,
) -> Evaluation:
    """Evaluate every case of a reference and write per_instance.csv, per_case.csv and summary.json.

    Args:
        reference, prediction: see the module text.
        out: folder for the results, made where missing.
        labels: JSON label table of the reference; without it the labels.json beside the reference, else
            what the label files bring themselves. The prediction's is the labels.json beside it, else its own.
        iou_threshold: IoU at which two objects of a class match, 0..1.
        track: reports progress over cases.

    Returns:
        The results; a case that is missing or cannot be read is in ``failures`` and the rest is evaluated.

    Raises:
        ConfigError: a threshold outside 0..1.
        InputError: no reference, no prediction, no case in common, or not one case could be evaluated.
    """
    if not 0 <= iou_threshold <= 1:
        raise ConfigError(f"IoU threshold {iou_threshold}: expected 0..1")
    reference, prediction, out = Path(reference).absolute(), Path(prediction).absolute(), Path(out).absolute()
    table = read_label_file(labels) if labels is not None else read_cohort_labels(reference)
    predicted_table = read_cohort_labels(prediction)
    references = label_files(reference)
    predictions = label_files(prediction)
    if reference.is_file() and reference.name != TABLE_NAME and len(predictions) == 1:
        # One file against one prediction: what the case is called does not matter.
        predictions = {name: file for name in references for file in predictions.values()}
    if not references.keys() & predictions.keys():
        raise InputError(
            f"{prediction}: no case of {reference} was predicted; the reference has {_some(references)}, "
            f"the predictions are {_some(predictions)}"
        )
    cases: dict[str, CaseResult] = {}
    failures: dict[str, str] = {}
    ids: dict[str, dict[str, int | None]] = {}
    for name, file in track(list(references.items()), "evaluating"):
        try:
            if name not in predictions:
                raise InputError(f"no prediction in {prediction}")
            expected = read_instances(file, labels=table)
            found = read_instances(predictions[name], labels=predicted_table)
            _check_common_class(expected.labels, found.labels)
            cases[name] = evaluate_case(expected, found, iou_threshold=iou_threshold)
            ids = ids or _label_ids(expected, found)
        except MedsegError as error:
            failures[name] = " ".join(str(error).split())
    if not cases:
        name, reason = next(iter(failures.items()))
        raise InputError(f"none of {len(failures)} cases could be evaluated; the first, {name}: {reason}")
    extra = tuple(sorted(predictions.keys() - references.keys()))
    summary = summarise(cases) | {
        "failures": failures,
        "predictions_without_reference": list(extra),
        "labels": ids,
    }
    files = (out / "per_instance.csv", out / "per_case.csv", out / "summary.json")
    write_csv(files[0], PER_INSTANCE_COLUMNS, _instance_rows(cases))
    write_csv(files[1], PER_CASE_COLUMNS, _case_rows(cases))
    write_json(files[2], summary)
    return Evaluation(cases=cases, failures=failures, extra=extra, summary=summary, files=files)


def label_files(path: Path) -> dict[str, Path]:
    """Return the label file of each case in one of the layouts of the module text, by case name.

    Raises:
        InputError: nothing there, no label file in the folder, or a broken cohort table.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; expected label files or a cohort")
    if path.name == TABLE_NAME or (path / TABLE_NAME).exists():
        return {row.name: row.label for row in read_cohort_table(path, images=False)}
    if path.is_file():
        return {_case_of(path): path}
    found: dict[str, tuple[int, Path]] = {}
    for file in sorted(path.iterdir()):
        name = file.name
        # In a case's own folder only files named after the case count; overlays and other outputs lie there too.
        inside = [file / f"{name}{ending}" for ending in ENDINGS] if file.is_dir() else [file]
        for candidate in inside:
            rank = _rank(candidate)
            if rank is None or not candidate.is_file():
                continue
            case = name if file.is_dir() else _case_of(candidate)
            if case not in found or rank < found[case][0]:
                found[case] = (rank, candidate)
    if not found:
        raise InputError(
            f"{path}: no label files found; expected {TABLE_NAME}, <case>/<case>.seg.nrrd, "
            f"<case>/<case>_instances.nii.gz or label files such as <case>.nii.gz"
        )
    return {name: file for name, (_, file) in found.items()}


def _check_common_class(reference: LabelTable, prediction: LabelTable) -> None:
    if len(reference) and len(prediction) and not set(reference.names) & set(prediction.names):
        raise InputError(
            f"reference and prediction have no class in common ({reference.describe()} and {prediction.describe()}); "
            "name the reference's labels in a labels.json beside it or with --labels"
        )


def _rank(file: Path) -> int | None:
    """Return how much a file is preferred as its case's label file (0 most), None where it is no label file."""
    name = file.name.lower()
    if name.startswith(".") or name.endswith(_NOT_LABELS):
        return None
    return next((rank for rank, ending in enumerate(ENDINGS) if name.endswith(ending)), None)


def _case_of(file: Path) -> str:
    ending = "_instances.nii.gz"
    return file.name[: -len(ending)] if file.name.lower().endswith(ending) else stem_of(file)


def _some(cases: Mapping[str, Path]) -> str:
    names = sorted(cases)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _label_ids(reference: InstanceSet, prediction: InstanceSet) -> dict[str, dict[str, int | None]]:
    def ids(table: LabelTable) -> dict[str, int]:
        return {label.name: label.id for label in table}

    left, right = ids(reference.labels), ids(prediction.labels)
    return {name: {"reference": left.get(name), "prediction": right.get(name)} for name in left | right}


def _instance_rows(cases: Mapping[str, CaseResult]) -> list[dict[str, Any]]:
    return [{"case": name} | vars(row) for name, case in cases.items() for row in case.objects]


def _case_rows(cases: Mapping[str, CaseResult]) -> list[dict[str, Any]]:
    rows = []
    for name, case in cases.items():
        for result in case.classes:
            row: dict[str, Any] = {"case": name, "label": result.name}
            row |= {"reference_ml": result.voxels.reference_ml, "prediction_ml": result.voxels.prediction_ml}
            row |= {score: getattr(result.voxels, score) for score in VOXEL_SCORES}
            row |= {f"objects_{key}": value for key, value in object_scores(result.objects).items()}
            rows.append(row)
    return rows
