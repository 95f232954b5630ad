"""How library functions report progress and remarks without printing.

A function that takes long accepts ``track``, wraps its loop in it, and stays silent by default.
The command line passes a rich progress bar (`medseg.cli.console.track`). A function that has something to
remark that is no error accepts ``note``; the command line prints it as a warning.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")
#: Takes a remark of one line.
Note = Callable[[str], None]


class Track(Protocol):
    """Wraps an iterable and reports every item that passes."""

    def __call__(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Yield every item and report it; ``total`` where the iterable has no length."""
        ...


def silent(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Pass items through and report nothing."""
    yield from items


def unheard(text: str) -> None:
    """Let a remark pass."""
