"""The report of one case: pictures, warnings, measurements, and a viewer, in one file that needs nothing beside it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from highdicom import Volume

from medseg.errors import InputError
from medseg.io import read_instances
from medseg.io.atomic import atomic_path, write_text
from medseg.metrics.measurement import measure
from medseg.reporting.html import amount, data_uri, for_script, niivue, number, packed, render
from medseg.reporting.page_tables import Cell, plain, words
from medseg.reporting.pictures import Picture, plane_pictures, slice_pictures
from medseg.reporting.tables import measurement_dict
from medseg.reporting.tiles import Window
from medseg.reporting.viewer import viewer_data
from medseg.values.geometry import describe_grid
from medseg.values.instances import InstanceSet

REPORT_FILE = "report.html"
RUN_FILE = "run.json"
#: The picture of a case in the index of its cohort is called NAME and this.
THUMBNAIL_ENDING = "_thumbnail.jpg"
#: The structured report of its measurements, where one is written, NAME and this.
SR_ENDING = "_sr.dcm"
#: Axial pictures of a report.
PICTURES = 6
#: Doubtful joins that are told one by one.
MAX_JOINS = 8
#: Entries of the legend below the pictures; the table has all objects.
MAX_LEGEND = 24


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseReport:
    """What a case's report shows.

    Attributes:
        name: of the case; never that of a patient.
        instances: the objects.
        volume: the image they were found in, or None: no viewer then, and ``overlay`` is the picture.
        window: HU of the pictures' black and white, so the image is a CT; None where its unit is not known.
        measurements: as `medseg.reporting.tables.measurement_dict` gives them.
        run: what run.json holds: warnings, doubtful joins, versions; {} where there is none.
        overlay: a PNG to show where there is no image.
    """

    name: str
    instances: InstanceSet
    volume: Volume | None
    window: Window | None
    measurements: Sequence[Mapping[str, Any]]
    run: Mapping[str, Any] = field(default_factory=dict)
    overlay: bytes | None = None

    def save(self, path: Path | str) -> Path:
        """Write the page, whole or not at all, and return its path."""
        write_text(path, self.html())
        return Path(path)

    def html(self) -> str:
        """Return the page."""
        viewer = None if self.volume is None else viewer_data(self.volume, self.instances, self.window)
        names, colours = self.instances.names(), self.instances.colours()
        joins = self.run.get("linking", {}).get("doubtful_joins", [])
        ct = self.window is not None
        return render(
            "case.html",
            scripts=("sort.js",) if viewer is None else ("sort.js", "viewer.js"),
            allowed=() if viewer is None else (niivue(),),
            title=self.name,
            lead=f"{_count(len(names), 'object')} in {describe_grid(self.instances.geometry)}",
            warnings=case_warnings(self.instances, self.measurements, self.run),
            joins=[_join(join, names) for join in joins[:MAX_JOINS]],
            more_joins=max(0, len(joins) - MAX_JOINS),
            pictures=self.pictures(PICTURES),
            overlay=None if self.overlay is None else data_uri(self.overlay, "png"),
            legend=[{"name": n, "colour": c} for n, c in list(zip(names, colours, strict=True))[:MAX_LEGEND]],
            viewer=None if viewer is None else for_script(viewer),
            factors=None if viewer is None else viewer["factors"],
            niivue="" if viewer is None else packed(niivue().encode()),
            caption="Long and short axis are measured in slices of the acquisition, edge to edge of outer pixels.",
            columns=_columns(ct),
            rows=[
                {"id": m["id"], "name": m["name"], "colour": colours[m["id"] - 1], "cells": _cells(m)}
                for m in self.measurements
            ],
            facts=_facts(self.run),
        )

    def pictures(self, count: int) -> list[Picture]:
        """Return pictures of the objects, up to ``count`` axial ones; none without an image."""
        if self.volume is None:
            return []
        return slice_pictures(self.volume, self.instances, window=self.window, count=count)

    def _repr_html_(self) -> str:
        """Show pictures and a table of the objects in a notebook."""
        names, colours = self.instances.names(), self.instances.colours()
        return render(
            "notebook.html",
            title=f"{self.name}: {_count(len(names), 'object')}",
            warnings=case_warnings(self.instances, self.measurements, self.run),
            pictures=self.pictures(3),
            rows=[
                {
                    "name": m["name"],
                    "colour": colours[m["id"] - 1],
                    "score": number(m["score"], 2),
                    "volume": amount(m["volume_ml"]),
                }
                for m in self.measurements
            ],
        )


def describe_case(
    name: str, volume: Volume, instances: InstanceSet, window: Window | None, run: Mapping[str, Any] | None = None
) -> CaseReport:
    """Measure the objects of an image and return their report.

    Raises:
        GeometryError: the objects lie on another grid.
    """
    measurements = [measurement_dict(m) for m in measure(instances, volume)]
    return CaseReport(
        name=name, instances=instances, volume=volume, window=window, measurements=measurements, run=run or {}
    )


def save_case(case: CaseReport, folder: Path) -> Path:
    """Write a case's report.html and, where there is an image, the thumbnail of it; return the report's path."""
    if case.volume is not None:
        picture = plane_pictures(case.volume, case.instances, plane="axial", window=case.window, count=1)[0]
        with atomic_path(folder / f"{case.name}{THUMBNAIL_ENDING}") as temporary:
            temporary.write_bytes(picture.jpeg)
    return case.save(folder / REPORT_FILE)


def read_case(folder: Path | str, volume: Volume | None = None) -> CaseReport:
    """Read the report of a case from the files that `medseg predict` wrote.

    Args:
        folder: of the case.
        volume: the image; without it the report shows the overlay picture that was saved.

    Raises:
        InputError: no such files, or they cannot be read.
        GeometryError: the image is not that of the objects.
    """
    folder = Path(folder)
    run = read_json(folder / RUN_FILE)
    name = run.get("case")
    if not isinstance(name, str) or Path(name).name != name:
        raise InputError(f"{folder / RUN_FILE}: names no case; expected a folder of a case that medseg predict wrote")
    measurements = read_json(folder / f"{name}_measurements.json").get("measurements", [])
    instances = read_instances(folder / f"{name}.seg.nrrd")
    if [m.get("id") for m in measurements] != [i.id for i in instances]:
        raise InputError(f"{folder / f'{name}_measurements.json'}: is not about the objects of {name}.seg.nrrd")
    overlay = folder / f"{name}_overlay.png"
    window = run.get("display_window")
    return CaseReport(
        name=name,
        instances=instances,
        volume=volume,
        window=None if window is None else (float(window[0]), float(window[1])),
        measurements=measurements,
        run=run,
        overlay=overlay.read_bytes() if volume is None and overlay.is_file() else None,
    )


def case_warnings(
    instances: InstanceSet, measurements: Sequence[Mapping[str, Any]], run: Mapping[str, Any]
) -> list[str]:
    """Return what a reader of the objects should know, one line each; doubtful joins are told apart."""
    warnings = [w[:1].upper() + w[1:] for w in run.get("warnings", [])]
    if not len(instances) and not any(w.lower() == "nothing found" for w in warnings):
        warnings.append("Nothing found")
    cut = [m["name"] for m in measurements if m["touches_border"]]
    if cut:
        shown = ", ".join(cut[:8]) + (f" and {len(cut) - 8} more" if len(cut) > 8 else "")
        verb = "reaches" if len(cut) == 1 else "reach"
        warnings.append(
            f"Cut by the field of view, perhaps: {shown} {verb} the edge of the image; sizes may be too small"
        )
    return warnings


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a result.

    Raises:
        InputError: not there, or not readable as such.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: not there; expected a folder that medseg predict wrote") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); predict the case anew") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(data).__name__}; predict the case anew")
    return data


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _join(join: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    left, posterior, head = join["point_lps_mm"]
    return {
        "id": join["instance"],
        "name": names[join["instance"] - 1],
        "place": f"{_towards(left, 'LR')}, {_towards(posterior, 'PA')}, {_towards(head, 'HF')} mm",
        "point": json.dumps([-left, -posterior, head]),
        "confidence": f"{join['confidence']:.2f}",
    }


def _towards(mm: float, letters: str) -> str:
    return f"{letters[mm < 0]} {abs(mm):.0f}"


def _columns(ct: bool) -> list[dict[str, Any]]:
    mean = "Mean, HU" if ct else "Mean"
    titles = ("Score", "Volume, ml", "Long axis, mm", "Short axis, mm", "Diameter, mm", mean, "SD", "Lies in", "Notes")
    return [{"title": title, "text": title in ("Lies in", "Notes")} for title in titles]


def _cells(m: Mapping[str, Any]) -> list[Cell]:
    values = [("score", number(m["score"], 2))]
    for key in ("volume_ml", "long_axis_mm", "short_axis_mm", "max_diameter_mm", "mean", "sd"):
        values.append((key, amount(m[key])))
    cells = [Cell(shown=shown, value=plain(m[key])) for key, shown in values]
    texts = (", ".join(m["lies_in"]), "at the edge" if m["touches_border"] else "")
    return [*cells, *map(words, texts)]


def _facts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    titles = {
        "date": "date", "seed": "seed of training", "model_sha256": "model, SHA-256", "input_sha256": "input, SHA-256",
    }  # fmt: skip
    facts = [(title, str(run[key])) for key, title in titles.items() if key in run]
    facts += [(key, str(value)) for key, value in run.get("environment", {}).items()]
    if seconds := run.get("seconds"):
        facts.append(("seconds", ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items())))
    return facts
