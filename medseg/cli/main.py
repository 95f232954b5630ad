"""`medseg`: the verbs, their exit codes, and errors as one line.

Exit codes: 0 done; 1 finished, but some cases failed or a check found errors; 2 bad input or usage, or what the
machine refuses (disk, memory); 128 + signal where one ended it: 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP.
"""

import atexit
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

# Idle OpenMP threads that spin make a busy two-core machine several times slower; torch reads this at import.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import typer

from medseg.cli import console
from medseg.errors import CasesError, MedsegError

app = typer.Typer(
    name="medseg",
    help="One 3-D mask per object from CT and MR studies. Research use only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _register() -> None:
    from medseg.cli import (
        check,
        convert,
        demo,
        evaluate,
        export,
        info,
        measure,
        pacs,
        phantom,
        plan,
        predict,
        prepare,
        report,
        train,
        tune_linking,
    )

    panels = {
        "Try it": (demo, phantom),
        "From labelled cases to a model": (check, plan, prepare, train, tune_linking),
        "Use a model, and judge it": (predict, evaluate, report, measure),
        "Images and masks": (info, convert, export),
    }
    for panel, verbs in panels.items():
        for verb in verbs:
            app.command(verb.NAME, rich_help_panel=panel)(verb.run)
    app.add_typer(pacs.app, name=pacs.NAME, rich_help_panel="Use a model, and judge it")


def start() -> NoReturn:
    """Run the command line as a process of its own; the entry point of the ``medseg`` script.

    What was registered for the end is done, but the interpreter is not taken apart piece by piece: with torch in it
    that takes seconds of computing, much longer on a busy machine, and torchrun kills after 30 what Ctrl-C has stopped.
    """
    try:
        main()
    except SystemExit as stop:
        atexit._run_exitfuncs()
        os._exit(stop.code if isinstance(stop.code, int) else 1)
    raise AssertionError("main ends by an exit")


def main() -> None:
    """Run the command line in this process and end it by SystemExit."""
    _fill_standard_streams()
    received = _be_orderly_when_told_to_stop()
    _register()
    try:
        # Outside standalone mode typer returns the code of a `typer.Exit`, and 130 for Ctrl-C.
        result = app(standalone_mode=False)
        code = result if isinstance(result, int) else 0
        sys.stdout.flush()
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except typer.TyperException as error:  # an unknown verb or option, a value of the wrong type
        message = " ".join(error.format_message().split())
        if message:  # without a verb the help has been shown and the message is empty
            _refuse(f"{message} (see medseg --help)")
        code = 2
    except CasesError as error:
        code = _refuse(error.headline)
        for reason in error.reasons:
            _tell("  " + " ".join(reason.split()), style="red")
    except MedsegError as error:
        code = _refuse(str(error))
    except OSError as error:
        code = _refuse(f"{error.filename or 'standard output'}: {error.strerror or error}; check disk and permissions")
    except MemoryError as error:
        code = _refuse(f"not enough memory ({error or 'an allocation failed'}); use a machine, or a limit, with more")
    if code == 130:
        _tell("interrupted")
        code = 128 + received[0] if received else 130
    _leave(code)


def _refuse(message: str) -> int:
    _tell("error: " + " ".join(message.split()), style="red")
    return 2


def _tell(line: str, style: str | None = None) -> None:
    with suppress(OSError):  # nobody can be told that standard error is full
        console.err.print(line, style=style, markup=False)


def _fill_standard_streams() -> None:
    """Open /dev/null where a standard stream was closed, or the next file opened would get what is printed."""
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _be_orderly_when_told_to_stop() -> list[int]:
    """Let SIGTERM and SIGHUP end the work as Ctrl-C does: temporary files are removed, a training saves its model.

    Returns:
        The signal, once one came.
    """
    received: list[int] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        if not received:  # a second one must not disturb the tidying up
            received.append(signum)
            raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP, and that is to stay so
            signal.signal(number, stop)
    return received


def _leave(code: int) -> NoReturn:
    """Exit; what cannot be flushed any more goes nowhere, so that Python does not complain about it at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)
