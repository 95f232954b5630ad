"""What the tests of `medseg.cluster` have workers do; a module of its own, which workers can import without torch."""

import os
import signal
import time
from pathlib import Path

from medseg.errors import InputError
from medseg.io.failures import Failure


def work(how: str) -> str | Failure:
    """Do what a case says, and how often it was begun is written down where it names a file."""
    kind, _, place = how.partition(" ")
    if place:
        with Path(place).open("a") as file:
            file.write("x")
    if kind == "kill":
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "first":  # fails the first time only
        return Failure(stage="read", reason="busy") if Path(place).stat().st_size == 1 else "second"
    if kind == "raise":
        raise KeyError("what")
    if kind == "refuse":
        raise InputError("no\nslices")
    return kind
