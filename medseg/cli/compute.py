"""Device, threads and processes for the verbs that compute."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.cluster.choice import ClusterChoice
from medseg.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from medseg.training.distributed import World

#: What torchrun tells each process it starts.
LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

DEVICE_HELP = "auto, cpu, cuda or cuda:N. An unusable device is an error."
THREADS_HELP = "CPU threads; 0 lets torch choose."
CLUSTER = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="WHERE",
        help="Work on several cases at once by Dask: local or local:N (processes here), slurm or slurm:PROFILE, or "
        "tcp://HOST:PORT of a Dask scheduler (docs/cluster.md).",
        show_default="in this process",
    ),
]


def set_up(device: str, threads: int) -> "torch.device":
    """Set the thread count and return the device, or refuse it."""
    import torch

    from medseg.models.mask_rcnn import choose_device

    check_threads(threads)
    if threads:
        torch.set_num_threads(threads)
    return choose_device(device)


def check_threads(threads: int) -> None:
    """Refuse a number of threads that is none."""
    if threads < 0:
        raise ConfigError(f"--threads {threads}: expected 0 (torch chooses) or more")


@contextmanager
def joined_processes(device: str, threads: int) -> "Iterator[tuple[World, torch.device]]":
    """Meet the other processes of this run, where torchrun started several; give which one this is, and its device.

    Raises:
        ConfigError: half of what torchrun sets is there, or one device is named for several processes.
    """
    from medseg.training.distributed import join

    found = {name: os.environ[name] for name in LAUNCH_VARIABLES if name in os.environ}
    if "RANK" not in found and "WORLD_SIZE" not in found:
        found = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "", "MASTER_PORT": "0"}
    missing = [name for name in LAUNCH_VARIABLES if name not in found]
    numbers = [found[name] for name in LAUNCH_VARIABLES if name in found and name != "MASTER_ADDR"]
    if missing or not all(number.isdigit() for number in numbers):
        raise ConfigError(
            "RANK and WORLD_SIZE are set as if torchrun had started this, but "
            f"{', '.join(missing) or 'some'} {'missing' if missing else 'not as numbers'}; start with torchrun, or "
            "unset them"
        )
    rank, size, local_rank, port = map(int, numbers)
    if size > 1 and ":" in device:
        raise ConfigError(f"--device {device}: {size} processes cannot share one; leave it out, each takes its own")
    chosen = set_up(device, threads)
    if size > 1 and chosen.type == "cuda":
        chosen = set_up(f"cuda:{local_rank}", threads)
    with join(rank, size, found["MASTER_ADDR"], port, chosen) as world:
        yield world, chosen


def workers_device(choice: ClusterChoice, device: str, threads: int) -> tuple[str, list[str] | None]:
    """Return on what device the workers of a cluster compute, and the GPUs that workers on this machine share out.

    Args:
        choice: of a cluster.
        device, threads: the options.

    Returns:
        ``auto``, ``cpu`` or ``cuda``, and what `medseg.cluster.connect.connected` wants to know of GPUs.

    Raises:
        ConfigError, ModelError: an option that makes no sense for workers, or a device that is not here.
    """
    if ":" in device:
        raise ConfigError(f"--device {device}: every worker of --cluster has a GPU of its own; say --device cuda")
    if choice.kind != "local":
        check_threads(threads)
        return device, [] if device == "cuda" else None
    import torch

    chosen = set_up(device, threads).type
    if chosen != "cuda":
        return chosen, None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return chosen, visible.split(",") if visible else [str(n) for n in range(torch.cuda.device_count())]
