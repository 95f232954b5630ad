"""Several processes that are told to stop end after the same step, whichever of them heard it, and when.

Ctrl-C, SIGTERM and SIGHUP reach processes one after the other, and perhaps not all. One that left at once would leave
the others in the middle of an exchange with it: an error at best, and with NCCL they would wait until they are killed,
the first one without having saved.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from medseg.training.distributed import World

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopping:
    """Orders to stop, kept until all processes heed them together. A process that is alone heeds them at once.

    Args:
        world: which of several processes this is.
    """

    def __init__(self, world: World):
        self._world = world
        self._told = False
        self._handlers: dict[int, Any] = {}

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep orders in mind, in place of the KeyboardInterrupt that they would be."""
        # Only the main thread may say what a signal does.
        if self._world.size > 1 and threading.current_thread() is threading.main_thread():
            before = {number: signal.getsignal(number) for number in SIGNALS}
            self._handlers = {n: handler for n, handler in before.items() if handler not in (signal.SIG_IGN, None)}
            self._listen()
        try:
            yield
        finally:
            self._restore()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within `kept`: let orders interrupt what takes long and has no steps; one that came before does so now."""
        self._restore()
        try:
            if self._told:
                raise KeyboardInterrupt
            yield
        finally:
            self._listen()

    def heed(self, device: torch.device) -> None:
        """Raise KeyboardInterrupt in every process where one was told to stop; all call it at the same step."""
        if self._world.size > 1 and float(self._world.add_up(torch.tensor(float(self._told), device=device))):
            raise KeyboardInterrupt

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._told = True

    def _listen(self) -> None:
        for number in self._handlers:
            signal.signal(number, self._hear)

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
