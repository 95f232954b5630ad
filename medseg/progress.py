"""How long-running library functions report progress without printing.

A function that takes long accepts ``track``, wraps its loop in it, and stays silent by default.
The command line passes a rich progress bar (`medseg.cli.console.track`).
"""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Track(Protocol):
    """Wraps an iterable and reports every item that passes."""

    def __call__(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Yield every item and report it; ``total`` where the iterable has no length."""
        ...


def silent(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Pass items through and report nothing."""
    yield from items
