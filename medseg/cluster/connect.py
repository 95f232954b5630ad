"""Start or find a Dask cluster for the cases of a cohort.

The same code runs on all of them; they differ in who starts the worker processes: this program (`start_local`),
Slurm (`medseg.cluster.slurm`), or whoever started the scheduler at an address.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from medseg.cluster.choice import ClusterChoice
from medseg.errors import ClusterError, ConfigError
from medseg.progress import Note, unheard

if TYPE_CHECKING:
    from distributed import Client, SpecCluster
    from distributed.deploy.cluster import Cluster as DaskCluster

#: Dask's settings where we start the scheduler. A case that takes its worker with it is tried on one other, no more.
#: What goes through Dask is small, so there is nothing to spill, and a worker that pauses would never go on.
SETTINGS: Mapping[str, Any] = {
    "distributed.scheduler.allowed-failures": 1,
    # A worker that was killed starts again, which takes long on a busy machine; Dask would give it up after 15 seconds.
    "distributed.deploy.lost-worker-timeout": "1 hour",
    "distributed.worker.profile.enabled": False,
    # On a machine that is busy with cases an answer may take its time; a process that died is seen at once anyway.
    "distributed.comm.timeouts.connect": "60s",
    "distributed.comm.timeouts.tcp": "120s",
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "logging": {"distributed": "critical", "tornado": "critical"},
}
#: Where the processes of a local cluster listen; Dask's pages (any free port) without their dashboard.
LOOPBACK = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}
#: `--cluster local` without a number: a worker for this many cores, because a case takes memory as well.
CORES_PER_WORKER = 4
#: Seconds until a scheduler has to answer.
ANSWER_S = 20.0
#: How often the thread of Dask's event loop may miss the ten seconds that Dask gives it to start.
STARTS = 6
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Worker processes that take cases.

    Attributes:
        client: Dask's.
        expected: how many workers there will be; some may not have come yet, more may come.
        resources: what a case needs of a worker, such as {"GPU": 1}.
    """

    client: "Client"
    expected: int
    resources: Mapping[str, float] = field(default_factory=dict)


@contextmanager
def connected(
    choice: ClusterChoice | None, *, gpu_ids: Sequence[str] | None = None, note: Note = unheard
) -> Iterator[Cluster | None]:
    """Give a cluster, and close what was started for it at the end; None, without a look at Dask, for None.

    Args:
        choice: see `parse_cluster`.
        gpu_ids: every case needs a GPU. ``local`` starts one worker on each of these (as CUDA_VISIBLE_DEVICES has
            them); of other clusters, whose workers have GPUs of their own, only workers that offer the resource GPU
            get cases. None: no case needs one.
        note: hears what is being waited for.

    Raises:
        ConfigError: Dask is not installed, or has no certificates for TLS; more workers than GPUs, or workers that
            cannot take cases.
        ClusterError: no scheduler answers.
    """
    if choice is None:
        yield None
        return
    try:
        import dask
        from distributed import Client
    except ImportError:
        raise ConfigError("--cluster needs Dask, which is not installed; pip install 'medseg[cluster]'") from None
    for name in ("distributed", "distributed.client"):  # what matters to a user is told by `run_cases`
        logging.getLogger(name).setLevel(logging.CRITICAL)
    resources = {} if gpu_ids is None else {"GPU": 1.0}
    with ExitStack() as stack, dask.config.set(SETTINGS):
        if choice.kind == "scheduler":
            assert choice.address is not None
            try:
                address = choice.address
                client = stack.enter_context(patiently(lambda: Client(address, timeout=ANSWER_S, set_as_default=False)))
            except (OSError, ValueError) as error:
                raise ClusterError(
                    f"{choice.address}: no Dask scheduler answers ({type(error).__name__}); is it running, and may "
                    "this machine reach it?"
                ) from None
            except TypeError:  # what Dask raises where it has no certificates
                if not choice.address.startswith("tls:"):
                    raise
                raise ConfigError(
                    f"{choice.address}: Dask's settings here name no certificates for TLS; set distributed.comm.tls "
                    "(docs/cluster.md)"
                ) from None
            expected = 1
        else:
            started: DaskCluster
            if choice.kind == "local":
                started, expected = start_local(choice.workers, gpu_ids)
            else:
                from medseg.cluster.slurm import start_slurm

                started, expected = start_slurm(choice.profile, gpu=gpu_ids is not None, note=note)
            stack.enter_context(started)
            client = stack.enter_context(patiently(lambda: Client(started, timeout=ANSWER_S, set_as_default=False)))
        cluster = Cluster(client=client, expected=expected, resources=resources)
        _wait_for_one(cluster, note)
        yield cluster


def start_local(workers: int | None, gpu_ids: Sequence[str] | None) -> "tuple[SpecCluster, int]":
    """Start a scheduler and worker processes on this machine, reachable from it only.

    Each has one thread, so that it works on one case at a time, and an equal part of the memory; one that takes more is
    killed and started again. With GPUs each worker sees one of them.

    Args:
        workers: how many; None: one for each GPU, or for every `CORES_PER_WORKER` cores.
        gpu_ids: see `connected`.

    Returns:
        The cluster, and how many workers it has.

    Raises:
        ConfigError: more workers than GPUs.
    """
    from distributed import Nanny, Scheduler, SpecCluster
    from distributed.system import MEMORY_LIMIT

    if gpu_ids is not None and (workers or 1) > len(gpu_ids):
        raise ConfigError(f"--cluster local:{workers}: there are {len(gpu_ids)} GPUs, and each takes one worker")
    number = workers or (len(gpu_ids) if gpu_ids is not None else max(1, usable_cores() // CORES_PER_WORKER))
    common = {
        "nthreads": 1,
        **LOOPBACK,
        "memory_limit": MEMORY_LIMIT // number,
        "silence_logs": logging.CRITICAL,
    }
    specs = {}
    for index in range(number):
        own: dict[str, Any] = {}
        if gpu_ids is not None:
            own = {"resources": {"GPU": 1}, "env": {"CUDA_VISIBLE_DEVICES": gpu_ids[index]}}
        specs[index] = {"cls": Nanny, "options": {**common, **own}}
    scheduler = {"cls": Scheduler, "options": {**LOOPBACK, "port": 0}}
    make = partial(SpecCluster, workers=specs, scheduler=scheduler, silence_logs=logging.CRITICAL)
    return patiently(make), number


def patiently(start: Callable[[], T]) -> T:
    """Make what has an event loop of Dask, again where a machine that is busy or swaps was too slow for Dask."""
    for _ in range(STARTS - 1):
        try:
            return start()
        except AssertionError:  # `LoopRunner.start` after ten seconds
            continue
    return start()


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def _wait_for_one(cluster: Cluster, note: Note) -> None:
    """Wait for the first worker, and refuse those that cannot take cases as they are.

    Raises:
        ConfigError: workers of several threads, or none with a GPU.
    """
    client = cluster.client
    if not client.nthreads():
        note("waiting for a worker of the cluster")
    client.wait_for_workers(1)
    most = max(client.nthreads().values())
    if most > 1:
        raise ConfigError(
            f"the workers of {client.scheduler.address} have up to {most} threads, expected one, for one case at a "
            "time; start them with: dask worker --nthreads 1"
        )
    offered = [info["resources"] for info in client.scheduler_info(n_workers=-1)["workers"].values()]
    for name, amount in cluster.resources.items():
        if not any(worker.get(name, 0) >= amount for worker in offered):
            raise ConfigError(
                f"no worker of {client.scheduler.address} offers the resource {name}={amount:g}; start one for each "
                f"GPU with: dask worker --nthreads 1 --resources {name}={amount:g}"
            )
