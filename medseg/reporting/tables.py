"""Tables of results as files."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medseg.io.atomic import write_csv, write_json
from medseg.metrics.measurement import Measurement

MEASUREMENT_COLUMNS = (
    "id", "label", "name", "score", "voxels", "volume_ml",
    "slice_first", "row_first", "column_first", "slice_last", "row_last", "column_last",
    "centroid_l_mm", "centroid_p_mm", "centroid_s_mm",
    "mean", "sd", "minimum", "maximum",
    "long_axis_mm", "short_axis_mm", "axis_slice", "axis_reason",
    "max_diameter_mm", "surface_mm2", "sphericity", "touches_border",
    "overlaps_ml", "class_overlaps_ml", "lies_in",
)  # fmt: skip


def measurement_row(measurement: Measurement) -> dict[str, Any]:
    """Return one measurement as a flat row under `MEASUREMENT_COLUMNS`.

    Boxes are inclusive array indices from 0; ``overlaps_ml`` reads ``1:0.52 4:0.031`` (other id : shared ml),
    ``class_overlaps_ml`` ``liver: 0.52; spleen: 0.031`` and ``lies_in`` ``liver; left lobe``.
    """
    m = measurement
    row: dict[str, Any] = {
        "id": m.id, "label": m.label, "name": m.name, "score": m.score, "voxels": m.voxels, "volume_ml": m.volume_ml,
    }  # fmt: skip
    for end, corner in zip(("first", "last"), m.bbox, strict=True):
        row |= {f"{axis}_{end}": index for axis, index in zip(("slice", "row", "column"), corner, strict=True)}
    row |= {f"centroid_{axis}_mm": value for axis, value in zip("lps", m.centroid_mm, strict=True)}
    row |= {"mean": m.mean, "sd": m.sd, "minimum": m.minimum, "maximum": m.maximum}
    row |= {"long_axis_mm": m.long_axis_mm, "short_axis_mm": m.short_axis_mm, "axis_slice": m.axis_slice}
    row |= {"axis_reason": m.axis_reason, "max_diameter_mm": m.max_diameter_mm}
    row |= {"surface_mm2": m.surface_mm2, "sphericity": m.sphericity}
    row |= {"touches_border": "yes" if m.touches_border else "no"}
    row |= {"overlaps_ml": " ".join(f"{other}:{ml:.4g}" for other, ml in sorted(m.overlaps.items()))}
    row |= {"class_overlaps_ml": "; ".join(f"{label}: {ml:.4g}" for label, ml in m.class_overlaps.items())}
    row |= {"lies_in": "; ".join(m.lies_in)}
    return row


def measurement_dict(measurement: Measurement) -> dict[str, Any]:
    """Return one measurement as it stands in JSON: the keys of `Measurement`, units in the names.

    ``bbox`` is {first, last}, each (slice, row, column); ``overlaps_ml`` other id -> ml, ``class_overlaps_ml`` label
    name -> ml; what is undefined is null.
    """
    values = {**vars(measurement)}
    first, last = values.pop("bbox")
    overlaps, in_classes, lies_in = (values.pop(key) for key in ("overlaps", "class_overlaps", "lies_in"))
    values["bbox"] = {"first": first, "last": last}
    values["centroid_lps_mm"] = values.pop("centroid_mm")
    return values | {"overlaps_ml": overlaps, "class_overlaps_ml": in_classes, "lies_in": lies_in}


def write_measurements_csv(measurements: Iterable[Measurement], target: Path | str) -> None:
    """Write measurements, one row per instance; a header alone where there are none."""
    write_csv(target, MEASUREMENT_COLUMNS, (measurement_row(m) for m in measurements))


def write_measurements_json(measurements: Iterable[Measurement], target: Path | str) -> None:
    """Write measurements as ``{"measurements": [...]}``, one entry per instance (see `measurement_dict`)."""
    write_json(target, {"measurements": [measurement_dict(m) for m in measurements]})
