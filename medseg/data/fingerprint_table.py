"""The fingerprint of a cohort in figures that can be read: fingerprint.json, and what `medseg plan` prints.

It says nothing about single cases and names none.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medseg.data.fingerprint import ClassFacts, Fingerprint

#: What is told of a distribution, by percentile.
PERCENTILES = {"min": 0, "p5": 5, "p10": 10, "median": 50, "p90": 90, "p95": 95, "max": 100}
#: The same for intensities, whose ends matter less than their bulk.
INTENSITY_PERCENTILES = {"p0.5": 0.5, "p10": 10, "median": 50, "p90": 90, "p99.5": 99.5}


def describe(facts: Fingerprint) -> dict[str, Any]:
    """Return the fingerprint as plain data for JSON; lengths in mm, areas in mm2, volumes in ml, shares in 0..1."""
    cases = facts.cases
    per_slice = np.concatenate([case.per_slice for case in cases])
    labelled = sum(case.labelled_voxels for case in cases)
    return {
        "cases": len(cases),
        "orientation": facts.orientation,
        "channels": list(facts.channels),
        "from_dicom": sum(case.from_dicom for case in cases),
        "spacing_mm": _by_axis([case.spacing_mm for case in cases]),
        "shape_voxels": _by_axis([case.shape for case in cases]),
        "body_mm": _by_axis([case.body_mm for case in cases], ("rows", "columns")),
        "objects_per_slice": spread(per_slice),
        "slices": len(per_slice),
        "slices_without_object": int(np.count_nonzero(per_slice == 0)),
        "voxels_in_several_objects": sum(case.shared_voxels for case in cases) / labelled,
        "intensities": {
            channel: {
                "lowest": spread([case.lowest[i] for case in cases]),
                "under_masks": _intensities(facts, i, None),
                "under_masks_of": {label.name: _intensities(facts, i, label.id) for label in facts.labels},
            }
            for i, channel in enumerate(facts.channels)
        },
        "classes": {label.name: _class(facts, label.id) for label in facts.labels},
        "pairs_of_objects": _pairs(facts),
    }


def spread(values: ArrayLike, percentiles: dict[str, float] | dict[str, int] = PERCENTILES) -> dict[str, float]:
    """Return the percentiles of values by name, four digits each."""
    found = np.percentile(np.asarray(values, np.float64), list(percentiles.values()))
    return {name: float(f"{value:.4g}") for name, value in zip(percentiles, found, strict=True)}


def _by_axis(
    rows: Sequence[tuple[float, ...]], axes: tuple[str, ...] = ("slice", "row", "column")
) -> dict[str, dict[str, float]]:
    table = np.array(rows, np.float64)
    return {axis: spread(table[:, i]) for i, axis in enumerate(axes)}


def _intensities(facts: Fingerprint, channel: int, label: int | None) -> dict[str, float]:
    values = facts.values(channel, label)
    return {
        "mean": float(f"{values.mean():.4g}"),
        "sd": float(f"{values.std():.4g}"),
        **spread(values, INTENSITY_PERCENTILES),
    }


def _class(facts: Fingerprint, label: int) -> dict[str, Any]:
    found = list(facts.of(label))

    def all_of(name: str) -> np.ndarray:
        return np.concatenate([getattr(one, name) for one in found])

    touching, others, overlapped, gaps = (
        all_of(name) for name in ("touching", "touching_others", "overlapped", "gaps")
    )
    return {
        "cases": len(found),
        "objects": len(touching),
        "objects_per_case": spread([objects_in(one) for one in found]),
        "objects_per_slice": spread(all_of("per_slice")),
        "cross_sections": len(all_of("areas_mm2")),
        "volume_ml": spread(all_of("volumes_ml")),
        "side_mm": spread(all_of("sides_mm")),
        "extent_mm": _by_axis([tuple(row) for row in all_of("extents_mm")]),
        "cross_section_mm2": spread(all_of("areas_mm2")),
        "touching_own_class": _share(touching),
        "touching_other_classes": _share(others),
        "overlapped": _share(overlapped),
        "objects_with_gaps": int(np.count_nonzero(gaps)),
        "largest_gap_slices": int(gaps.max()),
    }


def objects_in(facts: ClassFacts) -> int:
    """Return how many objects of a label a case has."""
    return len(facts.volumes_ml)


def _share(values: np.ndarray) -> dict[str, float]:
    """Return how many objects a share above 0 has, and how large it is among them and over all."""
    hit = values[values > 0]
    return {
        "objects": len(hit),
        "share_of_objects": float(f"{len(hit) / len(values):.4g}"),
        "median_share_where": float(f"{np.median(hit):.4g}") if len(hit) else 0.0,
        "mean_share": float(f"{values.mean():.4g}"),
    }


def _pairs(facts: Fingerprint) -> list[dict[str, Any]]:
    """List the kinds of pairs that touch or overlap anywhere."""
    touching: Counter[tuple[int, int]] = Counter()
    overlapping: Counter[tuple[int, int]] = Counter()
    for case in facts.cases:
        touching.update(case.touching)
        overlapping.update(case.overlapping)
    return [
        {
            "classes": [facts.labels[a].name, facts.labels[b].name],
            "touching": touching[a, b],
            "overlapping": overlapping[a, b],
        }
        for a, b in sorted({*touching, *overlapping})
    ]
