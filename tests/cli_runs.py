"""Runs the command line many times at the price of one start: a process that has imported everything forks for each."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

#: Reads [[arguments, file size limit or null], ...] from standard input, prints [[code, out, err], ...].
SERVER = """
import json, os, resource, sys, tempfile
import medseg.evaluation, medseg.io, nibabel
from medseg.cli import convert, evaluate, info, main

results = []
for arguments, size in json.load(sys.stdin):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            if size is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            sys.argv = ["medseg", *arguments]
            try:
                main.main()
            except SystemExit as stop:
                os._exit(stop.code)
            os._exit(99)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        results.append([code, *(os.pread(f.fileno(), 1 << 20, 0).decode() for f in (out, err))])
json.dump(results, sys.stdout)
"""


class Run(NamedTuple):
    """How a run ended and what it printed."""

    code: int
    out: str
    err: str

    def refusal(self) -> str:
        """Return the one line of an error."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        assert self.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), self
        return lines[0]


def environment() -> dict[str, str]:
    """Return an environment in which `python -m medseg` finds this checkout."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]), "COLUMNS": "200"}


def run_all(
    runs: Iterable[Sequence[object]], file_size: int | None = None, prefix: Sequence[str] = (), **options: Any
) -> list[Run]:
    """Run verbs, one after the other, each in a process of its own.

    Args:
        runs: the arguments of each.
        file_size: RLIMIT_FSIZE of each, bytes.
        prefix: what to start Python with, such as ``setpriv``.
        options: for `subprocess.run`.
    """
    jobs = [([str(argument) for argument in arguments], file_size) for arguments in runs]
    done = subprocess.run(
        [*prefix, sys.executable, "-c", SERVER],
        input=json.dumps(jobs), capture_output=True, text=True, env=environment(), timeout=600, **options,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = [Run(*result) for result in json.loads(done.stdout)]
    assert not any("Traceback" in run.err or "Exception ignored" in run.err for run in results), results
    return results
