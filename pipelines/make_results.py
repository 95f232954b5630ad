"""Write docs/results.md and docs/results/*.md from their templates and from the figures in docs/results/*.json.

    make results            (python pipelines/make_results.py)

A template (`results.md.in`, `results/*.md.in`) is Jinja2: prose by hand, every table from records. A record is a JSON
file with command, seed, commit, hardware, date and figures, as pipelines and record_results.py write it; in a template
it is the variable of its file's name. `source(record)` writes its commands and where the figures are; filters: `f(3)`
digits, `signed(3)`, `count` thousands apart, `interval(3)` a value with its interval, `seeds`; what is undefined is a
dash.
"""

import json
import re
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, TemplateError, TemplateSyntaxError
from record_results import ROOT

from medseg.errors import InputError, MedsegError
from medseg.io.atomic import write_text

DOCS = ROOT / "docs"
HEAD = "<!-- Written by `make results` from {name}.in and results/*.json: change those, not this page. -->\n\n"
#: What a record has, and what each of it may be.
FIELDS: dict[str, Callable[[Any], bool]] = {
    "command": lambda v: bool(v) and all(isinstance(line, str) for line in ([v] if isinstance(v, str) else v)),
    "seed": lambda v: v is None or isinstance(v, (int, list)),
    "commit": lambda v: v is None or isinstance(v, str),
    "hardware": lambda v: isinstance(v, str) and bool(v),
    "date": lambda v: isinstance(v, str) and bool(date.fromisoformat(v)),
    "figures": lambda v: isinstance(v, (dict, list)) and bool(v),
}
Record = dict[str, Any]


def load_records(folder: Path) -> dict[str, Record]:
    """Return the records of a folder by name.

    Raises:
        InputError: a file is no JSON, or lacks something that a record has.
    """
    records = {}
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            faults = [key for key, fits in FIELDS.items() if key not in record or not fits(record[key])]
        except (ValueError, TypeError) as error:
            raise InputError(f"{path.name}: is no record of results ({error}); record_results.py writes them") from None
        if faults:
            raise InputError(
                f"{path.name}: {', '.join(faults)} missing or of another kind; expected {', '.join(FIELDS)} as "
                "pipelines/record_results.py writes them"
            )
        records[path.stem] = {**record, "name": path.stem}
    return records


def render_pages(docs: Path) -> dict[Path, str]:
    """Return the text of every page that has a template below a folder, by the page's path.

    Raises:
        InputError: a record or template is at fault.
    """
    records = load_records(docs / "results")
    usual = Counter(record["hardware"] for record in records.values()).most_common(1)
    pages = {}
    for template in sorted([docs / "results.md.in", *(docs / "results").glob("*.md.in")]):
        page = template.with_suffix("")
        environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        environment.filters |= {"f": number, "signed": signed, "count": count, "interval": interval, "seeds": seeds}
        prefix = "results/" if page.parent == docs else ""
        known = {"records": records, "usual_hardware": usual[0][0] if usual else ""}
        environment.globals |= known | {"source": lambda r, p=prefix, u=known["usual_hardware"]: source(r, p, u)}
        try:
            text = environment.from_string(template.read_text(encoding="utf-8")).render(records)
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            place = f"{template.relative_to(docs)}: line {_line(error)}"
            raise InputError(f"{place}: {error}; compare it with the records that it shows") from None
        text = re.sub(r"\n{3,}", "\n\n", text).strip()
        pages[page] = HEAD.format(name=page.name) + text + "\n"
    return pages


def _line(error: Exception) -> int:
    """Return the line of a template where an error arose."""
    if isinstance(error, TemplateSyntaxError):
        return error.lineno
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == "<template>" and f.lineno]
    return lines[-1] if lines else 1


def source(record: Record, prefix: str, usual: str) -> str:
    """Return the commands of a record as code, and below them where, when and from what the figures are."""
    commands = [record["command"]] if isinstance(record["command"], str) else record["command"]
    parts = [f"[{record['name']}.json]({prefix}{record['name']}.json): {record['date']}"]
    if record["seed"] is not None:
        several = isinstance(record["seed"], list) and len(record["seed"]) > 1
        parts.append(f"seed{'s' * several} {seeds(record['seed'])}")
    if record["commit"]:
        parts.append(f"commit {record['commit']}")
    parts += [record["hardware"]] if record["hardware"] != usual else []
    parts += [record["recorded"]] if "recorded" in record else []
    return "".join(f"    {line}\n" for line in commands) + f"\n{'; '.join(parts)}."


def seeds(value: int | list[int] | None) -> str:
    """Return seeds in words: 0, or 0 to 49, or one by one."""
    if not isinstance(value, list):
        return "" if value is None else str(value)
    if len(value) > 2 and value == list(range(value[0], value[0] + len(value))):
        return f"{value[0]} to {value[-1]}"
    return ", ".join(map(str, value))


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many digits after the point."""
    return "-" if value is None else f"{float(value):.{digits}f}"


def signed(value: float | None, digits: int = 3) -> str:
    """Return a difference with its sign."""
    return "-" if value is None else f"{float(value):+.{digits}f}"


def count(value: int | None) -> str:
    """Return a whole number, thousands apart."""
    return "-" if value is None else f"{int(value):,}"


def interval(value: Mapping[str, float | None], digits: int = 3) -> str:
    """Return a value of an evaluation's summary with its interval: 0.881 (0.874 to 0.889)."""
    middle = value.get("mean", value.get("value"))
    return f"{number(middle, digits)} ({number(value['ci_low'], digits)} to {number(value['ci_high'], digits)})"


def main() -> None:
    """Write every page."""
    for page, text in render_pages(DOCS).items():
        same = page.exists() and page.read_text(encoding="utf-8") == text
        if not same:
            write_text(page, text)
        print(f"{page.relative_to(ROOT)}: {'as it was' if same else 'written'}")


if __name__ == "__main__":
    try:
        main()
    except MedsegError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
