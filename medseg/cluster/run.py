"""Apply a function to many cases, here or on the workers of a cluster, and say of each what came of it.

Paths and small values go to the workers and small results come back, never volumes. What a worker needs for all of its
cases, such as a model, the function keeps itself, in a cache of the process (`functools.lru_cache`).
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from medseg.cluster.connect import Cluster
from medseg.errors import ClusterError, MedsegError
from medseg.io.failures import Failure
from medseg.progress import Note, unheard

if TYPE_CHECKING:
    from distributed import Client, Future

T = TypeVar("T")
R = TypeVar("R")
#: How often a case is tried on a cluster before its failure counts.
TRIES = 2
#: How often where its worker was lost, and it cannot have been its own doing.
TRIES_WHILE_WAITING = 5
#: The scheduler's log of cases that were begun, and of those that ended.
BEGUN, ENDED = "medseg-begun", "medseg-ended"
#: Seconds after which it is looked why nothing comes back.
PATIENCE_S = 60.0


def run_cases(
    function: Callable[[T], R | Failure],
    cases: Mapping[str, T],
    cluster: Cluster | None,
    *,
    stage: str,
    note: Note = unheard,
) -> Iterator[tuple[str, R | Failure]]:
    """Yield each case's name with its result, or with why there is none: as they get done.

    Without a cluster they run in this process, in their order, and what the function raises is raised here. On a
    cluster a case that failed runs once more, and then its failure is yielded: what the function returned or raised, or
    that its worker process was lost. A case is held to have lost its workers when it was begun twice and never ended;
    those that merely waited for the same worker run again.

    Args:
        function: of a module, so that a worker can import it, or a `functools.partial` of one; what it takes and
            returns is pickled by Dask. It may return a `Failure`.
        cases: name -> its argument.
        cluster: see `medseg.cluster.connect.connected`.
        stage: what the function does, for failures that it did not foresee.
        note: hears when no worker is left, which is waited for.

    Raises:
        ClusterError: the scheduler is gone.
    """
    if cluster is None:
        for name, case in cases.items():
            yield name, function(case)
        return
    client = cluster.client
    run = uuid4().hex[:8]  # other programs may use the scheduler too
    numbers = {name: f"{stage}-{run}-{number}" for number, name in enumerate(cases)}
    waiting = deque(cases)
    tries: Counter[str] = Counter()
    running: dict[Future, str] = {}
    try:
        while waiting or running:
            # No more than there are workers for: a case that waits for a worker is lost with it.
            room = max(cluster.expected, len(client.nthreads())) - len(running)
            for _ in range(min(room, len(waiting))):
                name = waiting.popleft()
                tries[name] += 1
                future = client.submit(
                    _attempt, function, cases[name], numbers[name], stage,
                    key=f"{numbers[name]}-{tries[name]}", pure=False, resources=dict(cluster.resources) or None,
                )  # fmt: skip
                running[future] = name
            future = _first_done(client, running, note)
            name = running.pop(future)
            outcome, allowed = _outcome(client, future, numbers[name])
            if isinstance(outcome, Failure) and tries[name] < allowed:
                waiting.append(name)
            else:
                yield name, outcome
    except (OSError, CancelledError) as error:
        raise ClusterError(
            f"the Dask scheduler is gone ({type(error).__name__}); start again; predict and prepare with --resume "
            "keep what is done"
        ) from None
    finally:
        if running and client.status == "running":
            client.cancel(list(running), force=True)


def in_order(outcomes: Iterator[tuple[str, R]], names: Iterable[str]) -> Iterator[R]:
    """Yield what `run_cases` yields in the order of ``names``, each as soon as it and all before it are there."""
    early: dict[str, R] = {}
    for name in names:
        while name not in early:
            done, outcome = next(outcomes)
            early[done] = outcome
        yield early.pop(name)


def _attempt(function: Callable[[T], R | Failure], case: T, number: str, stage: str) -> R | Failure:
    """Run on a worker: errors come back as a `Failure`, because not every exception survives being pickled."""
    from distributed import get_worker

    worker = get_worker()
    worker.log_event(BEGUN, number)
    try:
        return function(case)
    except Exception as error:
        return Failure(stage=stage, reason=_describe(error))
    finally:
        worker.log_event(ENDED, number)


def _describe(error: BaseException) -> str:
    """Return an error in one line; one that is no `MedsegError` with its type and where it was raised."""
    text = " ".join(str(error).split())
    if isinstance(error, MedsegError):
        return text
    frames = extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{place}"


def _first_done(client: "Client", running: "Mapping[Future, str]", note: Note) -> "Future":
    """Wait for one of several cases; where nothing comes for long, look whether a worker is left."""
    from distributed import as_completed

    warned = False
    while True:
        try:
            return next(as_completed(running, loop=client.loop, timeout=PATIENCE_S))
        except TimeoutError:
            if not client.nthreads() and not warned:
                note("no worker of the cluster is left; waiting for one")
                warned = True


def _outcome(client: "Client", future: "Future", number: str) -> tuple[Any, int]:
    """Return what came of a case, and after how many tries a failure of that kind counts."""
    from distributed import KilledWorker

    try:
        return future.result(), TRIES
    except KilledWorker:
        begun, ended = (sum(event[-1] == number for event in client.get_events(log)) for log in (BEGUN, ENDED))
        reason = "the worker process was lost each time: it crashed, was killed, or took too much memory"
        return Failure(stage="worker", reason=reason), 0 if begun - ended >= TRIES else TRIES_WHILE_WAITING
    except (OSError, CancelledError):
        raise
    except Exception as error:  # of Dask's: the function cannot be imported there, say
        return Failure(stage="worker", reason=_describe(error)), TRIES
