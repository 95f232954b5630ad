"""Several processes that train one model together: each computes its share of every batch.

Every process holds the whole model. The gradients of its share are added up over the processes in one go, after
which all make the same step; `DistributedDataParallel` would hide some of that time behind computing, but hooks into
one backward pass per step, and here every part of a batch has a pass of its own (`medseg.training.step`). Samples are
numbered through the run, and a batch is the same whichever processes compute it: a run does not depend on their
number, rounding aside.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from medseg.errors import ModelError

T = TypeVar("T")
#: How long processes wait for each other; the first one reads the cohort and validates in the meantime. One that
#: ended is noticed by whoever started it (torchrun) long before.
PATIENCE = timedelta(days=2)


@dataclass(frozen=True, kw_only=True)
class World:
    """Which of how many processes this is.

    Attributes:
        rank: 0 is the first: it alone reads the cohort, validates and writes.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, numbers: range) -> range:
        """Return this process's part of a batch, as even as can be and in order."""
        start, stop = (len(numbers) * r // self.size for r in (self.rank, self.rank + 1))
        return numbers[start:stop]

    def add_up(self, tensor: Tensor) -> Tensor:
        """Add a tensor up over the processes, in place; every process gets the same bits."""
        if self.size > 1:
            with _told_in_one_line(self.rank):
                dist.all_reduce(tensor)
        return tensor

    def tell(self, values: Sequence[float]) -> list[float]:
        """Return the first process's values to every process, which wait for it."""
        if self.size == 1:
            return list(values)
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        told = torch.tensor(values, dtype=torch.float64, device=device)
        with _told_in_one_line(self.rank):
            dist.broadcast(told, src=0)
        return [float(value) for value in told.tolist()]


#: The only process.
ALONE = World()


@contextmanager
def join(rank: int, size: int, address: str, port: int, device: torch.device) -> Iterator[World]:
    """Meet the other processes at ``address:port`` and give this one's `World`.

    NCCL connects GPUs, gloo CPUs.

    Raises:
        ModelError: they cannot be met.
    """
    if size == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"tcp://{address}:{port}",
            rank=rank,
            world_size=size,
            timeout=PATIENCE,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"process {rank} of {size} cannot meet the others at {address}:{port} ({reason}); start them with torchrun"
        ) from None
    yield World(rank=rank, size=size)
    dist.destroy_process_group()  # after an error others may wait in an exchange, and this would wait for them


def first_does(world: World, work: Callable[[], T]) -> T | None:
    """Let the first process do something while the others wait; these get None.

    Raises:
        ModelError: in the others, where it failed in the first.
    """
    if not world.first:
        (done,) = world.tell([0])
        if not done:
            raise ModelError(f"process {world.rank}: the first process failed; its own message says why")
        return None
    try:
        result = work()
    except BaseException:
        world.tell([0])
        raise
    world.tell([1])
    return result


@contextmanager
def _told_in_one_line(rank: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"process {rank}: lost another process of this training, whose own message says why ({reason}); go on with "
            "--resume"
        ) from None
