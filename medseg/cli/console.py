"""What every verb shares: progress bars, printing of results, paths."""

import os
import sys
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")
#: Seconds back from now that an ETA goes by. Cases may take minutes each, and rich's 30 s would see no two of them.
ETA_FROM_S = 3600.0


class _Console(Console):
    """A console whose reader may go away (``medseg info STUDY | head -1``): the work is done all the same."""

    def on_broken_pipe(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)


#: Results go to standard output, everything else (progress, warnings, errors) to standard error.
out = _Console(soft_wrap=True, highlight=False)
err = _Console(stderr=True, soft_wrap=True, highlight=False)
#: Progress bars that are up, the outermost first, and what each counts.
_bars: list[tuple[Progress, TaskID, str]] = []


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
        speed_estimate_period=ETA_FROM_S,
    ) as progress:
        task = progress.add_task(description, total=total)
        _bars.append((progress, task, description))
        try:
            yield from progress.track(items, task_id=task, total=total)
        finally:
            _bars.pop()


def show(text: str) -> None:
    """Say beside the innermost progress bar how things stand."""
    if _bars:
        progress, task, description = _bars[-1]
        progress.update(task, description=f"{description}: {text}")


def wrote(path: Path | str) -> None:
    """Print the absolute path of something written, on a line of its own."""
    out.print(str(Path(path).absolute()), markup=False)


def warn(text: str) -> None:
    """Print one warning line to standard error."""
    err.print("warning: " + " ".join(text.split()), style="yellow", markup=False)


def failed(text: str) -> None:
    """Print a line to standard error: which of several failed, and why."""
    err.print(f"failed: {text}", style="red", markup=False)


def tell(text: str) -> None:
    """Print one line about what is going on to standard error."""
    err.print(" ".join(text.split()), markup=False)
