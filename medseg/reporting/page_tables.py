"""Tables of pages: what stands in their cells."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medseg.reporting.html import amount, number


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell: what is shown, what a column is sorted by (nothing where it is undefined), whether it is text.

    An interval stands below, so that tables of many scores stay narrow.
    """

    shown: str
    value: str
    text: bool = False
    interval: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a page: the first column names the row."""

    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


def score(value: float | None, *, sign: bool = False) -> Cell:
    """Return a score with three decimals."""
    shown = number(value)
    return Cell(shown=f"+{shown}" if sign and value is not None and value > 0 else shown, value=plain(value))


def quantity(value: float | None) -> Cell:
    """Return a count or a quantity with a unit."""
    return Cell(shown=amount(value), value=plain(value))


def words(text: str) -> Cell:
    """Return text."""
    return Cell(shown=text, value=text, text=True)


def with_interval(value: float | None, entry: Mapping[str, Any], *, sign: bool = False) -> Cell:
    """Return a score with the interval ``ci_low`` to ``ci_high`` that an entry of a summary holds."""
    cell = score(value, sign=sign)
    low, high = entry["ci_low"], entry["ci_high"]
    if low is None or high is None:
        return cell
    return Cell(shown=cell.shown, value=cell.value, interval=f"[{number(low)}, {number(high)}]")


def plain(value: float | None) -> str:
    """Return what a column is sorted by: the number as it is, nothing where it is undefined."""
    return "" if value is None or value != value else repr(value)
