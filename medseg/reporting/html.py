"""Pages that need nothing beside them: templates, what is embedded in them, and what they may load (nothing).

Every page says in its head (Content-Security-Policy) which scripts may run, by their hashes, and that nothing may be
fetched. So a name that holds markup could not run even where escaping failed; jinja2 escapes everything besides,
but for our own style and scripts, and what `for_script` made safe.
"""

import base64
import gzip
import hashlib
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import medseg
from medseg.io.atomic import write_text

FOLDER = Path(__file__).parent
#: Where a browser's own parser of HTML could leave a script, or its parser of JavaScript a line.
_DANGEROUS = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def save_page(path: Path | str, template: str, *, scripts: tuple[str, ...] = (), **values: Any) -> Path:
    """Write a page, whole or not at all.

    Args:
        path: of the page.
        template: its name in ``templates``.
        scripts: names of scripts in ``templates`` that it runs, in this order.
        values: for the template; text is escaped.

    Returns:
        The path.
    """
    write_text(path, render(template, scripts=scripts, **values))
    return Path(path)


def render(template: str, *, scripts: tuple[str, ...] = (), allowed: tuple[str, ...] = (), **values: Any) -> str:
    """Return a page as text (see `save_page`).

    Args:
        template, scripts, values: see `save_page`.
        allowed: the text of scripts that the page's own scripts may add to it.
    """
    texts = [_read(f"templates/{name}") for name in scripts]
    hashes = [f"'sha256-{_hash(text)}'" for text in (*texts, *allowed)]
    return (
        _environment()
        .get_template(template)
        .render(
            style=_read("templates/style.css"),
            scripts=texts,
            policy=" ".join(hashes) or "'none'",
            version=medseg.__version__,
            **values,
        )
    )


def niivue() -> str:
    """Return the viewer's library, as vendored (BSD-2, see ``vendor/niivue``)."""
    return _read("vendor/niivue/niivue.umd.js")


def for_script(data: Any) -> str:
    """Return JSON that may stand unescaped in a ``<script type="application/json">``; NaN is null."""
    text = json.dumps(_without_nan(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter, escaped in _DANGEROUS.items():
        text = text.replace(letter, escaped)
    return text


def packed(data: bytes) -> str:
    """Return bytes as base64 of gzip, which pages unpack (``unpack`` in viewer.js); the same bytes each time."""
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode("ascii")


def data_uri(data: bytes, kind: str) -> str:
    """Return a picture (``kind`` png or jpeg) as a URI that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["amount"] = amount
    return environment


@cache
def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def number(value: float | None, digits: int = 3) -> str:
    """Return a score with fixed decimals, or a dash for what is undefined."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def amount(value: float | None) -> str:
    """Return a quantity to three significant digits, large ones whole, or a dash for what is undefined."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _without_nan(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_nan(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_without_nan(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
