"""Cases that failed, in a table beside the results of the others: failures.csv with case, stage and reason."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import InputError
from medseg.io.atomic import write_csv

FAILURES_FILE = "failures.csv"
COLUMNS = ("case", "stage", "reason")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a case has no result.

    Attributes:
        stage: what was being done: find, read, predict, write, evaluate, ...; ``worker`` where the process was lost.
        reason: one line.
    """

    stage: str
    reason: str


def write_failures(folder: Path | str, failures: Mapping[str, Failure]) -> Path | None:
    """Write failures.csv of a folder of results and return its path; without any, delete it and return None."""
    path = Path(folder) / FAILURES_FILE
    if not failures:
        path.unlink(missing_ok=True)
        return None
    rows = [{"case": case, "stage": found.stage, "reason": found.reason} for case, found in failures.items()]
    write_csv(path, COLUMNS, rows)
    return path


def read_failures(folder: Path | str) -> dict[str, Failure]:
    """Read failures.csv of a folder of results, case by case; empty where there is none.

    Raises:
        InputError: it cannot be read, or has other columns.
    """
    path = Path(folder) / FAILURES_FILE
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {row["case"]: Failure(stage=row["stage"], reason=row["reason"]) for row in csv.DictReader(file)}
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected the columns {', '.join(COLUMNS)}") from None
