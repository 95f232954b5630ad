"""Runs the command line many times at the price of one start: a process that has imported everything forks for each.

`run_here` runs it once, in this process.
"""

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

#: Per line of standard input, [[arguments, file size limit or null], ...], prints a line of [[code, out, err], ...].
SERVER = """
import json, os, resource, sys, tempfile
import medseg.evaluation, medseg.io.export, nibabel
from medseg.cli import convert, evaluate, export, info, main


def run(arguments, size):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            for number, stream in enumerate((open(os.devnull), out, err)):
                os.dup2(stream.fileno(), number)
            if size is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            sys.argv = ["medseg", *arguments]
            try:
                main.main()
            except SystemExit as stop:
                os._exit(stop.code)
            os._exit(99)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return [code, *(os.pread(stream.fileno(), 1 << 20, 0).decode() for stream in (out, err))]


for line in sys.stdin:
    print(json.dumps([run(*job) for job in json.loads(line)]), flush=True)
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


def run_all(runs: Iterable[Sequence[object]], file_size: int | None = None, prefix: Sequence[str] = ()) -> list[Run]:
    """Run verbs, one after the other, each in a process of its own.

    Args:
        runs: the arguments of each.
        file_size: RLIMIT_FSIZE of each, bytes.
        prefix: what to start Python with, such as ``setpriv``.
    """
    jobs = json.dumps([([str(argument) for argument in arguments], file_size) for arguments in runs])
    if prefix:
        done = subprocess.run([*prefix, sys.executable, "-c", SERVER], input=jobs, capture_output=True, text=True,
                              env=environment(), timeout=600)  # fmt: skip
        assert done.returncode == 0, done.stderr
        answer = done.stdout
    else:
        server = _server()
        assert server.stdin is not None and server.stdout is not None
        print(jobs, file=server.stdin, flush=True)
        answer = server.stdout.readline()
    results = [Run(*result) for result in json.loads(answer)]
    assert not any("Traceback" in run.err or "Exception ignored" in run.err for run in results), results
    return results


@cache
def _server() -> subprocess.Popen[str]:
    """Return a process that serves all tests of this session."""
    pipe = subprocess.PIPE
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=pipe, stdout=pipe, text=True, env=environment())
    atexit.register(server.kill)
    return server


def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: object) -> Run:
    """Run a verb in this process, where what it needs may be imported already."""
    from medseg.cli import main

    monkeypatch.setattr(sys, "argv", ["medseg", *map(str, arguments)])
    monkeypatch.setattr(main.signal, "signal", lambda *_: None)
    monkeypatch.setattr(main.app, "registered_commands", [])
    monkeypatch.setattr(main.app, "registered_groups", [])
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main.main()
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return Run(int(end.value.code or 0), out, err)
