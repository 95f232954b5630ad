"""`medseg`: the verbs, their exit codes, and errors as one line.

Exit codes: 0 done; 1 finished, but some cases failed or a check found errors; 2 bad input or usage;
130 interrupted.
"""

import os
import signal
import sys
from types import FrameType

# Idle OpenMP threads that spin make a busy two-core machine several times slower; torch reads this at import.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import typer

from medseg.cli import console
from medseg.errors import MedsegError

app = typer.Typer(
    name="medseg",
    help="One 3-D mask per object from CT and MR studies. Research use only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _register() -> None:
    from medseg.cli import convert, demo, evaluate, info, phantom, predict, train

    for verb in (demo, info, convert, train, predict, evaluate, phantom):
        app.command(verb.NAME)(verb.run)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line; the entry point of the ``medseg`` script."""
    signal.signal(signal.SIGTERM, _terminate)
    _register()
    try:
        # Outside standalone mode typer returns the code of a `typer.Exit` instead of raising it.
        result = app(standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except (typer.Abort, KeyboardInterrupt):
        console.err.print("interrupted", markup=False)
        code = 130
    except typer.TyperException as error:  # an unknown verb or option, a value of the wrong type
        message = " ".join(error.format_message().split())
        if message:  # without a verb the help has been shown and the message is empty
            console.err.print(f"error: {message} (see medseg --help)", style="red", markup=False)
        code = 2
    except MedsegError as error:
        console.err.print("error: " + " ".join(str(error).split()), style="red", markup=False)
        code = 2
    except BrokenPipeError:
        # The reader of our output went away (`medseg info | head`): nothing to tell it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)
