"""The report of a training, from the files of its run folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg.errors import InputError
from medseg.reporting.case_report import REPORT_FILE, RUN_FILE, read_json
from medseg.reporting.curves import CURVES_FILE
from medseg.reporting.html import amount, data_uri, number, save_page
from medseg.reporting.page_tables import Cell, Table, score, words
from medseg.values.plan import Plan, load_plan

PLAN_FILE = "plan.yaml"
METRICS_FILE = "metrics.csv"
PICTURES = {
    CURVES_FILE: "Losses, learning rate, and what the validations found",
    "validation_best.png": "A held-out case at the best validation: prediction in colours, reference dashed in white",
    "validation_latest.png": "The same case at the last validation",
}


def is_training(folder: Path) -> bool:
    """Tell whether `medseg train` wrote a folder."""
    return (folder / PLAN_FILE).is_file() and (folder / METRICS_FILE).is_file()


def save_training_report(folder: Path | str) -> Path:
    """Write report.html of a training's run folder, and return its path.

    Raises:
        InputError, ConfigError: files that are not there or cannot be read.
    """
    folder = Path(folder)
    plan = load_plan(folder / PLAN_FILE)
    run = read_json(folder / RUN_FILE) if (folder / RUN_FILE).is_file() else {}
    validation = folder / "validation" / REPORT_FILE
    tables = [_reasons(plan)]
    if classes := (run.get("validation") or {}).get("classes"):
        tables.insert(0, _validation(run["validation"], classes))
    return save_page(
        folder / REPORT_FILE,
        "training.html",
        scripts=("sort.js",),
        title="Training",
        lead=f"{plan.model.backbone} for {', '.join(plan.labels.names)}",
        cards=_cards(run),
        pictures=_pictures(folder),
        tables=tables,
        validation=validation.relative_to(folder).as_posix() if validation.is_file() and classes else None,
        plan=_read_text(folder / PLAN_FILE),
        facts=_facts(run),
    )


def _cards(run: Mapping[str, Any]) -> list[tuple[str, Cell]]:
    cards = [("Status", str(run.get("status", "unknown")))]
    if "steps" in run:
        cards.append(("Steps", str(run["steps"])))
    if run.get("best_step"):
        cards.append(("Best validation", f"{number(run['best_score'])} at step {run['best_step']}"))
    if cases := run.get("cases"):
        cards.append(("Cases, training / held out", f"{cases.get('training', 0)} / {cases.get('validation', 0)}"))
    if "seconds" in run:
        cards.append(("Time", f"{run['seconds'] / 60:.0f} min" if run["seconds"] >= 90 else f"{run['seconds']:.0f} s"))
    return [(name, words(text)) for name, text in cards]


def _pictures(folder: Path) -> list[dict[str, Any]]:
    return [
        {"text": text, "uri": data_uri((folder / name).read_bytes(), "png"), "plot": name == CURVES_FILE}
        for name, text in PICTURES.items()
        if (folder / name).is_file()
    ]


def _validation(found: Mapping[str, Any], classes: Mapping[str, Mapping[str, float | None]]) -> Table:
    return Table(
        title="The finished model on the held-out cases",
        caption=f"{found['cases']} cases, on their own grids; objects match at IoU {amount(found.get('iou_threshold'))}"
        ". The weights were chosen on (some of) them, which flatters a little.",
        columns=("Dice", "F1 of objects", "PQ"),
        rows=[(name, [score(entry.get(key)) for key in ("dice", "f1", "pq")]) for name, entry in classes.items()],
    )


def _reasons(plan: Plan) -> Table:
    values = plan.model_dump(mode="json")
    rows = []
    for key, reason in plan.reasons.items():
        value: Any = values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        rows.append((key, [words(json.dumps(value, ensure_ascii=False)), words(" ".join(reason.split()))]))
    return Table(
        title="What was decided from the cohort, and why",
        caption="Fields of the plan; the others keep their defaults or were set by the user.",
        columns=("Value", "Reason"),
        rows=rows,
    )


def _facts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [(key, str(run[key])) for key in ("seed", "processes", "plan_sha256") if key in run]
    if fold := run.get("fold"):
        facts.append(("fold", f"{fold['number']} of {fold['count']}" if isinstance(fold, dict) else str(fold)))
    return facts + [(key, str(value)) for key, value in run.get("environment", {}).items()]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as text ({error})") from None
