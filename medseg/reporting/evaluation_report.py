"""The report of an evaluation, or of two that were compared, from the files that `medseg evaluate` wrote."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from medseg.errors import GeometryError, MedsegError
from medseg.evaluation import Evaluation, Source, read_evaluated
from medseg.io.atomic import atomic_path
from medseg.io.volumes import read_channels
from medseg.reporting.case_report import REPORT_FILE, read_json
from medseg.reporting.cohort_index import without_paths
from medseg.reporting.html import data_uri, number, save_page
from medseg.reporting.page_tables import Cell, Table, quantity, score, with_interval, words
from medseg.reporting.side_by_side import side_by_side
from medseg.values.instances import InstanceSet

SUMMARY_FILE = "summary.json"
COMPARISON_FILE = "comparison.json"
COMPARISON_PLOT = "comparison.png"
#: Pictures of the worst cases, in the order of ``worst_cases`` of the summary (of the first prediction).
WORST_PICTURE = "worst_{}.jpg"
WORST_PICTURES = 3
PLOTS = {
    "classes.png": "Dice and surface scores by class: a box from the first to the third quartile, whiskers from 5 to "
    "95 %, a dot for each case",
    "froc.png": "FROC: sensitivity against false positives per scan",
    "precision_recall.png": "Precision against recall, objects ranked by score",
    "size_classes.png": "Share of objects found, by size",
}


def is_evaluation(folder: Path) -> bool:
    """Tell whether `medseg evaluate` wrote a folder."""
    if (folder / COMPARISON_FILE).is_file():
        return True
    return (folder / SUMMARY_FILE).is_file() and "n_cases" in read_json(folder / SUMMARY_FILE)


def save_evaluation_report(folder: Path | str) -> Path:
    """Write report.html of an evaluation, or of a comparison of two, and return its path.

    Raises:
        InputError: files that are not there or cannot be read.
    """
    folder = Path(folder)
    if (folder / COMPARISON_FILE).is_file():
        return _save_comparison(folder)
    summary = read_json(folder / SUMMARY_FILE)
    return save_page(
        folder / REPORT_FILE,
        "evaluation.html",
        scripts=("sort.js",),
        title="Evaluation",
        lead=_lead(summary),
        cards=_cards(summary),
        tables=_tables(summary),
        plots=[{"title": "", "plots": _plots(folder)}],
        worst=_worst(folder, summary, ("reference", "prediction")),
        failures=_failures(summary),
        remarks=_remarks(summary),
    )


def clear_report(folder: Path | str, *, compared: bool) -> None:
    """Delete what an evaluation before left that does not fit the one just written.

    Args:
        folder: of the evaluation.
        compared: whether two predictions were compared; if not, an earlier comparison would pass for this one.
    """
    for name in (REPORT_FILE,) if compared else (REPORT_FILE, COMPARISON_FILE, COMPARISON_PLOT):
        (Path(folder) / name).unlink(missing_ok=True)


def save_worst_pictures(evaluations: Sequence[Evaluation], folder: Path | str) -> list[Path]:
    """Draw the worst cases of the first evaluation: the reference, and beside it the prediction of each evaluation.

    Args:
        evaluations: one, or two of the same reference.
        folder: of the report; pictures of an evaluation before are deleted.

    Returns:
        The files, in the order of ``worst_cases``. A case without an image that can be read is drawn on black.
    """
    folder = Path(folder)
    titles = ("prediction",) if len(evaluations) == 1 else ("first prediction", "second prediction")
    for number_of in range(1, WORST_PICTURES + 1):
        (folder / WORST_PICTURE.format(number_of)).unlink(missing_ok=True)
    files = []
    for number_of, case in enumerate(evaluations[0].summary["worst_cases"][:WORST_PICTURES], start=1):
        sets: dict[str, InstanceSet] = {}
        for title, evaluation in zip(titles, evaluations, strict=True):
            if source := evaluation.sources.get(case["case"]):
                sets["reference"], sets[title] = read_evaluated(source)
        files.append(folder / WORST_PICTURE.format(number_of))
        with atomic_path(files[-1]) as temporary:
            temporary.write_bytes(_drawn(evaluations[0].sources[case["case"]], sets))
    return files


def _drawn(source: Source, sets: Mapping[str, InstanceSet]) -> bytes:
    volume = None
    if source.row.images:
        with suppress(MedsegError):  # the labels alone were needed so far; their image may be gone
            volume = read_channels(source.row.images[0], series=source.row.series)[0]
    with suppress(GeometryError):
        return side_by_side(volume, sets)
    return side_by_side(None, sets)


def _save_comparison(folder: Path) -> Path:
    comparison = read_json(folder / COMPARISON_FILE)
    sides = [folder / f"prediction_{number}" for number in (1, 2)]
    summaries = [read_json(side / SUMMARY_FILE) for side in sides]
    tables = [_differences(comparison)]
    for title, summary in zip(("First", "Second"), summaries, strict=True):
        tables += [
            Table(title=f"{title} prediction: {t.title}", caption=t.caption, columns=t.columns, rows=t.rows)
            for t in _tables(summary)
        ]
    plots = [
        {"title": f"{title} prediction", "plots": _plots(side)}
        for title, side in zip(("First", "Second"), sides, strict=True)
    ]
    if (folder / COMPARISON_PLOT).is_file():
        text = "Differences with their intervals, second minus first"
        plots.insert(0, {"title": "", "plots": [_plot(folder / COMPARISON_PLOT, text)]})
    return save_page(
        folder / REPORT_FILE,
        "evaluation.html",
        scripts=("sort.js",),
        title="Two predictions compared",
        lead=_lead(summaries[0]),
        cards=_compared_cards(comparison),
        tables=tables,
        plots=plots,
        worst=_worst(folder, summaries[0], ("reference", "first prediction", "second prediction")),
        failures=_failures_of_both(*map(_failures, summaries)),
        remarks=_remarks_of_both(*map(_remarks, summaries)),
    )


def _lead(summary: Mapping[str, Any]) -> str:
    matched = f"IoU {summary['iou_threshold']:g}"
    if summary["dice_threshold"] is not None:
        matched = f"Dice {summary['dice_threshold']:g}"
    level = summary["bootstrap"]["level"]
    brackets = f"brackets are {level:.0%} intervals from resampled cases"
    cases = f"{summary['n_cases']} case{'' if summary['n_cases'] == 1 else 's'}"
    return f"{cases}; objects match at {matched}; {brackets}"


def _cards(summary: Mapping[str, Any]) -> list[tuple[str, Cell]]:
    dice, objects = summary["mean_dice"], summary["objects"]
    return [
        ("Cases", words(str(summary["n_cases"]))),
        ("Mean Dice of the classes", with_interval(dice["mean"], dice)),
        ("F1 of objects", with_interval(objects["f1"], objects["intervals"]["f1"])),
        ("Found / missed / invented", words(f"{objects['tp']} / {objects['fn']} / {objects['fp']}")),
    ]


def _compared_cards(comparison: Mapping[str, Any]) -> list[tuple[str, Cell]]:
    cards = [("Cases", words(str(comparison["n_cases"])))]
    for name, entry in (("Mean Dice", comparison["mean_dice"]), ("F1 of objects", comparison["objects"]["f1"])):
        cards.append((f"{name}, first", score(entry["first"])))
        cards.append((f"{name}, second", score(entry["second"])))
    return cards


def _tables(summary: Mapping[str, Any]) -> list[Table]:
    classes = summary["classes"]
    tables = [_voxels(summary), _objects(summary), _ranking(summary)]
    tables += [
        _sizes(name, entry) for name, entry in classes.items() if entry["objects"]["reference"] > summary["n_cases"]
    ]
    return tables


def _voxels(summary: Mapping[str, Any]) -> Table:
    surfaces = next((list(entry["surface"]) for entry in summary["classes"].values()), [])
    columns = ["Cases", "Dice", "Sensitivity", "Precision", "Volume difference, ml", *map(_surface_title, surfaces)]
    rows = []
    for name, entry in summary["classes"].items():
        voxels = entry["voxels"]
        dice = voxels["dice"]
        cells = [
            Cell(shown=f"{dice['n']} of {dice['n'] + dice['n_undefined']}", value=str(dice["n"])),
            *(with_interval(voxels[key]["mean"], voxels[key]) for key in ("dice", "sensitivity", "precision")),
            quantity(voxels["volume_difference_ml"]["mean"]),
            *(with_interval(entry["surface"][key]["mean"], entry["surface"][key]) for key in surfaces),
        ]
        rows.append((name, cells))
    caption = "Means over the cases in which a score is defined; Cases: with a defined Dice."
    return Table(title="Voxels and surfaces by class", caption=caption, columns=columns, rows=rows)


def _surface_title(key: str) -> str:
    name, _, unit = key.removeprefix("chaos_").rpartition("_")
    if key.startswith("nsd_"):
        return f"NSD at {unit.removesuffix('mm')} mm"
    return f"{name.upper()}, {unit.replace('percent', '%')}" if name else key


def _objects(summary: Mapping[str, Any]) -> Table:
    rows = []
    for name, objects in [*((n, e["objects"]) for n, e in summary["classes"].items()), ("all", summary["objects"])]:
        counts = [quantity(objects[key]) for key in ("reference", "tp", "fn", "fp")]
        scores = [
            with_interval(objects[key], objects["intervals"][key])
            for key in ("f1", "sensitivity", "precision", "pq", "lesion_dice")
        ]
        rows.append((name, [*counts, *scores, quantity(objects["splits"]), quantity(objects["merges"])]))
    return Table(
        title="Objects by class",
        caption="Splits: reference objects found in pieces; merges: predicted objects that join several.",
        columns=(
            "Objects", "Found", "Missed", "Invented", "F1", "Sensitivity", "Precision", "PQ", "Object Dice", "Splits",
            "Merges",
        ),
        rows=rows,
    )  # fmt: skip


def _ranking(summary: Mapping[str, Any]) -> Table:
    points = next((list(e["ranking"]["froc"]) for e in summary["classes"].values()), [])
    rows = []
    for name, entry in summary["classes"].items():
        ranking = entry["ranking"]
        means = [with_interval(ranking[key]["value"], ranking[key]) for key in ("ap_10_50", "ap_50_95", "cpm")]
        rows.append((name, [*means, *(score(ranking["froc"][point]) for point in points)]))
    return Table(
        title="Objects ranked by score",
        caption="AP over IoU 0.10 to 0.50 and 0.50 to 0.95; FROC: sensitivity at so many false positives per scan, "
        f"a hit at IoU {summary['froc_iou']:g}; CPM is its mean.",
        columns=("AP 10–50", "AP 50–95", "CPM", *(f"at {point}" for point in points)),
        rows=rows,
    )


def _sizes(name: str, entry: Mapping[str, Any]) -> Table:
    rows = []
    for size in entry["size_classes"]:
        title = (
            f"{size['from_mm']:g} mm and more"
            if size["to_mm"] is None
            else f"{size['from_mm']:g} to {size['to_mm']:g} mm"
        )
        counts = [quantity(size[key]) for key in ("reference", "found")]
        rows.append(
            (
                title,
                [*counts, score(size["sensitivity"]), score(size["lesion_dice"]), quantity(size["false_positives"])],
            )
        )
    return Table(
        title=f"{name} by size",
        caption="Diameter of the sphere of an object's volume; invented ones by their own.",
        columns=("Objects", "Found", "Sensitivity", "Object Dice", "Invented"),
        rows=rows,
    )


def _differences(comparison: Mapping[str, Any]) -> Table:
    pairs = {name: (e["voxels"]["dice"], e["objects"]["f1"]) for name, e in comparison["classes"].items()}
    pairs["all"] = (comparison["mean_dice"], comparison["objects"]["f1"])
    rows = [
        (
            name,
            [
                cell
                for e in both
                for cell in (score(e["first"]), score(e["second"]), with_interval(e["difference"], e, sign=True))
            ],
        )
        for name, both in pairs.items()
    ]
    return Table(
        title="Second minus first",
        caption="Both on the same resampled cases. An interval that holds 0: these cases do not tell them apart.",
        columns=("Dice, first", "second", "difference", "F1, first", "second", "difference"),
        rows=rows,
    )


def _plots(folder: Path) -> list[dict[str, str]]:
    return [_plot(folder / name, text) for name, text in PLOTS.items() if (folder / name).is_file()]


def _plot(path: Path, text: str) -> dict[str, str]:
    return {"uri": data_uri(path.read_bytes(), "png"), "text": text}


def _worst(folder: Path, summary: Mapping[str, Any], columns: tuple[str, ...]) -> dict[str, Any]:
    """Return the table of the worst cases, and the pictures of the first of them."""
    rows, pictures = [], []
    for number_of, case in enumerate(summary["worst_cases"], start=1):
        rows.append((case["case"], [score(case["mean_dice"]), score(case["f1"])]))
        path = folder / WORST_PICTURE.format(number_of)
        if path.is_file():
            caption = f"{case['case']}, mean Dice {number(case['mean_dice'])}: {', '.join(columns)}"
            pictures.append({"uri": data_uri(path.read_bytes(), "jpeg"), "text": caption})
    table = Table(
        title="Worst cases",
        caption="Lowest mean Dice of the classes first.",
        columns=("Mean Dice", "F1 of objects"),
        rows=rows,
    )
    return {"table": table, "pictures": pictures}


def _failures(summary: Mapping[str, Any]) -> dict[str, str]:
    return {case: without_paths(reason) for case, reason in summary.get("failures", {}).items()}


def _failures_of_both(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, str]:
    """Return the failures of two evaluations, and of which where they differ."""
    both = {}
    for case in {**first, **second}:
        reasons = [f"{title} prediction: {f[case]}" for title, f in (("first", first), ("second", second)) if case in f]
        both[case] = first[case] if first.get(case) == second.get(case) else "; ".join(reasons)
    return both


def _remarks_of_both(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Return the remarks on two evaluations, those on both once."""
    alone = [f"First prediction: {r}" for r in first if r not in second]
    alone += [f"Second prediction: {r}" for r in second if r not in first]
    return [r for r in first if r in second] + alone


def _remarks(summary: Mapping[str, Any]) -> list[str]:
    found = [f"{case}: {without_paths(r)}" for case, remarks in summary.get("remarks", {}).items() for r in remarks]
    if extra := summary.get("predictions_without_reference"):
        found.append(f"Predicted, but without a reference: {', '.join(extra)}")
    for side, other in (("reference", "prediction"), ("prediction", "reference")):
        only = [n for n, e in summary["classes"].items() if e[f"in_{side}"] and not e[f"in_{other}"]]
        if only:
            found.append(f"Classes of the {side} that the {other} does not name: {', '.join(only)}")
    return found
