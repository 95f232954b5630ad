"""Rows of the tables of an evaluation: one per object, and one per class and case."""

from collections.abc import Mapping
from typing import Any

from medseg.metrics.detection import DetectionScore
from medseg.metrics.evaluation import VOXEL_SCORES, CaseResult, ObjectResult, object_scores

#: Columns of the tables; those of the surface scores, which depend on the settings, follow.
PER_CASE_COLUMNS = (
    "case", "label", "reference_ml", "prediction_ml",
    *VOXEL_SCORES, *(f"objects_{key}" for key in object_scores(DetectionScore())),
)  # fmt: skip
PER_INSTANCE_COLUMNS = ("case", *(name for name in ObjectResult.__annotations__ if name != "surface"))


def surface_columns(cases: Mapping[str, CaseResult]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the surface scores of classes and of objects."""
    classes = next((tuple(r.surface) for case in cases.values() for r in case.classes), ())
    return classes, next((tuple(r.surface) for case in cases.values() for r in case.objects), ())


def instance_rows(cases: Mapping[str, CaseResult]) -> list[dict[str, Any]]:
    """Return the rows of per_instance.csv: one for each object, matched, missed or invented."""
    return [
        {"case": name} | {key: value for key, value in vars(row).items() if key != "surface"} | dict(row.surface)
        for name, case in cases.items()
        for row in case.objects
    ]


def case_rows(cases: Mapping[str, CaseResult]) -> list[dict[str, Any]]:
    """Return the rows of per_case.csv: one for each class of each case."""
    rows = []
    for name, case in cases.items():
        for result in case.classes:
            row: dict[str, Any] = {"case": name, "label": result.name}
            row |= {"reference_ml": result.voxels.reference_ml, "prediction_ml": result.voxels.prediction_ml}
            row |= {score: getattr(result.voxels, score) for score in VOXEL_SCORES}
            row |= {f"objects_{key}": value for key, value in object_scores(result.objects).items()}
            rows.append(row | dict(result.surface))
    return rows
