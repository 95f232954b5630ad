"""What every verb shares: progress bars, printing of results, paths."""

import sys
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

#: Results go to standard output, everything else (progress, warnings, errors) to standard error.
out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Pass items through under a progress bar with count, elapsed time and ETA."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=not sys.stderr.isatty(),
        disable=not sys.stderr.isatty(),
    ) as progress:
        yield from progress.track(items, description=description, total=total)


def wrote(path: Path | str) -> None:
    """Print the absolute path of something written, on a line of its own."""
    out.print(str(Path(path).absolute()), markup=False)


def warn(text: str) -> None:
    """Print one warning line to standard error."""
    err.print("warning: " + " ".join(text.split()), style="yellow", markup=False)
