"""The training loop: plain PyTorch, read from top to bottom.

On a CPU a run is bit-exact under its seed at the same thread count, resumed or not: samples are a function of
(seed, number), so are the proposals drawn for their losses, the weights start from the seed, and a checkpoint holds
whatever else there is.
"""

import math
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from medseg.data.cache import CachedCase
from medseg.data.dataset import SliceDataset
from medseg.errors import ConfigError, ModelError
from medseg.models.mask_rcnn import MaskRCNN
from medseg.progress import Note, Track, silent, unheard
from medseg.training.checkpoint import load_checkpoint, save_plan
from medseg.training.distributed import ALONE, World
from medseg.training.final_validation import FinalValidation
from medseg.training.outputs import Outputs
from medseg.training.state import TrainingState
from medseg.training.step import Stepper
from medseg.training.stopping import Stopping
from medseg.training.validation import Validator
from medseg.values.plan import Plan, TrainingPlan


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        steps: steps done, those before a resume included.
        interrupted: whether it was stopped before its end and can be resumed.
        loss: of the last step; NaN where this process made none.
        best_step, best_score: of the best validation, whose weights are kept; 0 and NaN without validation.
        seconds: time in training and its validations, that before a resume included.
        validation: what the finished model does on the held-out cases, where `train_cohort` had any.
    """

    steps: int
    interrupted: bool
    loss: float
    best_step: int
    best_score: float
    seconds: float
    validation: FinalValidation | None = None


def train(
    cases: Sequence[CachedCase],
    plan: Plan,
    run: Path,
    device: torch.device,
    track: Track = silent,
    *,
    validator: Validator | None = None,
    initialise: Callable[[MaskRCNN], object] | None = None,
    world: World = ALONE,
    resume: bool = False,
    tensorboard: bool = False,
    note: Note = unheard,
    show: Note = unheard,
) -> TrainingResult:
    """Train a plan's network on prepared cases.

    Args:
        cases: from `medseg.data.cache.load_case`.
        plan: decides everything, the seed included.
        run: folder that gets plan.yaml, model.safetensors (the exponential average of the weights, the best validated
            one where there is validation), metrics.csv, curves.png and checkpoints/. Every process sees it; the first
            one writes.
        device: where to compute.
        track: progress over steps.
        validator: scores the average; None: no validation. Only the first process has one.
        initialise: puts weights into the network that training is to begin with, in every process alike; not called
            where a checkpoint is gone on from.
        world: which of several processes this is.
        resume: go on from the last whole checkpoint in ``run``, from the start where there is none.
        tensorboard: write event files as well.
        note: hears of damaged checkpoints.
        show: hears after each step how training stands.

    Returns:
        How it ended. KeyboardInterrupt (Ctrl-C, SIGTERM) leaves a model and a checkpoint and ends the run early.

    Raises:
        ModelError: losses or gradients are no longer finite (the last checkpoint stays), memory is short, a checkpoint
            of another plan, or another process was lost.
        ConfigError: more processes than samples in a batch.
    """
    settings = plan.training
    if settings.batch_size < world.size:
        raise ConfigError(
            f"training.batch_size {settings.batch_size}: expected at least one sample for each of {world.size} "
            "processes; start fewer, or raise it"
        )
    checkpoint = load_checkpoint(run, note) if resume else None
    state = TrainingState(plan, device, None if checkpoint else initialise)
    if checkpoint:
        state.restore(checkpoint)
    elif world.first:
        save_plan(run, plan)
    (validating,) = world.tell([validator is not None])

    def validate_if_due() -> bool:
        due = state.step % settings.validate_every == 0 or state.step == settings.steps
        if not validating or not due or state.validated == state.step:
            return False
        with stopping.at_once():
            found = validator(state.average.values, state.step, track) if validator else None
            if found:
                outputs.add_validation(found)
            state.judge(*world.tell([found.score, found.is_best, found.stop] if found else [math.nan, 0, 0]))
            outputs.save_checkpoint()
        return True

    dataset = SliceDataset(cases, plan, settings.steps * settings.batch_size, settings.seed)
    loader = _loader(dataset, state, settings, world, device)
    stepper = Stepper(state.model, settings, device, world)
    stopping = Stopping(world)
    loss, interrupted = math.nan, False
    with Outputs(run, state, world, tensorboard) as outputs, stopping.kept():
        try:
            if initialise and not checkpoint:
                outputs.save_checkpoint()  # a resumed run needs no weights to begin with
            validate_if_due()  # where a run was killed in the middle of it
            for share in track(loader, "training", len(loader)):
                losses, norm = stepper.gradients(share)
                loss = sum(losses.values())
                if not math.isfinite(loss + norm):
                    raise ModelError(_not_finite(losses, norm, stepper, share, dataset, state, world))
                with state.changing():
                    rate = state.learning_rate
                    state.advance()
                    outputs.add_row([state.step, rate, loss, *losses.values()])
                show(_standing(state, loss))
                stopping.heed(device)
                if not validate_if_due() and state.step % settings.checkpoint_every == 0:
                    outputs.save_checkpoint()
                if state.finished:
                    break
        except KeyboardInterrupt:
            interrupted = True
        except RuntimeError as error:
            raise _short_of_memory(error, state.step + 1) or error from None
        finally:
            stepper.close()
        outputs.finish()
    return TrainingResult(
        steps=state.step,
        interrupted=interrupted,
        loss=loss,
        best_step=state.best_step,
        best_score=state.best_score,
        seconds=state.seconds,
    )


def _loader(
    dataset: SliceDataset, state: TrainingState, settings: TrainingPlan, world: World, device: torch.device
) -> DataLoader:
    """Return a loader of this process's share of every batch that is still to come."""
    last = state.step if state.finished else settings.steps
    starts = range(state.step * settings.batch_size, last * settings.batch_size, settings.batch_size)
    return DataLoader(
        dataset,
        batch_sampler=[list(world.share(range(start, start + settings.batch_size))) for start in starts],
        num_workers=settings.workers,
        collate_fn=list,
        pin_memory=device.type == "cuda",
        worker_init_fn=_set_up_worker,
        generator=torch.Generator(),  # torch's own would be drawn from, once more in a resumed run
    )


def _set_up_worker(worker: int) -> None:
    """Compute on one thread, and leave being told to stop to the process that trains, which then ends its workers.

    A terminal's Ctrl-C and Slurm's signals reach all processes; a worker that goes first is an error to torch.
    """
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _short_of_memory(error: RuntimeError, step: int) -> ModelError | None:
    """Return what to tell where the device's memory, or that of the loader's workers, was not enough; else None."""
    if isinstance(error, torch.OutOfMemoryError):
        return ModelError(
            f"step {step}: the memory of the device is not enough; start a new run with more training.accumulate, or a "
            "smaller training.batch_size or training.crop_size (--set)"
        )
    if "DataLoader worker" in str(error) and "killed" in str(error):
        return ModelError(
            f"step {step}: the system ended a process that prepares samples, as it does where memory (or /dev/shm) is "
            "short; make room and go on with --resume, or start a new run with fewer training.workers"
        )
    return None


def _standing(state: TrainingState, loss: float) -> str:
    """Say in a few words how training stands."""
    best = f", best {state.best_score:.3f} at step {state.best_step}" if state.best_step else ""
    return f"loss {loss:.3f}{best}"


def _not_finite(
    losses: dict[str, float],
    norm: float,
    stepper: Stepper,
    share: list,
    dataset: SliceDataset,
    state: TrainingState,
    world: World,
) -> str:
    """Say what is not finite and which slices of which cases it comes from."""
    batch = range(dataset.plan.training.batch_size)
    culprits = stepper.find_culprits(share, world.share(batch).start)
    origins = [dataset.origin(state.step * len(batch) + place) for place in culprits]
    named = ", ".join(f"case {case} slice {index}" for case, index in origins) or "no single slice"
    rounded = {name: round(value, 3) for name, value in losses.items()}
    return (
        f"step {state.step + 1}: losses {rounded} with a gradient of {norm:.3g} are not finite, from {named}; look for "
        "extreme intensities there, or lower training.learning_rate"
    )
