"""`medseg train`: from a labelled cohort to a model."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.cli import console
from medseg.cli.cohort_options import COHORT, KIND, PLAN, RUN, SETTINGS, SMALL
from medseg.cli.compute import DEVICE_HELP, THREADS_HELP, joined_processes
from medseg.cli.plan import show_plan
from medseg.errors import ConfigError

if TYPE_CHECKING:
    from medseg.models.transfer import Transfer
    from medseg.training.final_validation import FinalValidation
    from medseg.training.loop import TrainingResult

NAME = "train"


def run(
    cohort: COHORT,
    out: RUN,
    settings: SETTINGS = None,
    plan_file: PLAN = None,
    small: SMALL = False,
    kind: KIND = None,
    fold: Annotated[
        str | None,
        typer.Option(
            "--fold",
            help="Cases held out for validation: k/n (fold k from 0 of n), all (none), or auto: 0/5 from five patients "
            "on, else all.",
            show_default="auto",
        ),
    ] = None,
    pretrained: Annotated[
        Path | None,
        typer.Option("--pretrained", help="Begin with torchvision's ResNet or Mask R-CNN weights, from a file."),
    ] = None,
    init: Annotated[
        Path | None, typer.Option("--init", help="Begin with the network of a medseg run, of other labels perhaps.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="torchvision or torchvision_v2: plan fields by which the network computes what torchvision's "
            "maskrcnn_resnet50_fpn (_v2) does; --set goes before.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the training in --out, by its own plan.")
    ] = False,
    single_case: Annotated[bool, typer.Option("--single-case", help="Allow a cohort of one case.")] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write event files for TensorBoard into the run as well.")
    ] = False,
    device: Annotated[str, typer.Option("--device", help=DEVICE_HELP)] = "auto",
    threads: Annotated[int, typer.Option("--threads", help=THREADS_HELP)] = 0,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write report.html of the training and of its validation.")
    ] = True,
) -> None:
    """Check a cohort, decide the plan, and train. Ctrl-C leaves a model of the steps done so far; --resume goes on.

    Several GPUs or CPUs train one model under torchrun: torchrun --nproc-per-node 2 -m medseg train COHORT -o RUN.
    """
    from medseg.data.cohort import parse_kind
    from medseg.models.pretrained import preset_settings
    from medseg.progress import silent, unheard
    from medseg.training.cohort import train_cohort
    from medseg.training.folds import parse_fold
    from medseg.training.initial import start_from_file, start_from_run
    from medseg.values.plan import parse_setting

    chosen = {**(preset_settings(preset) if preset else {}), **dict(parse_setting(text) for text in settings or [])}
    if pretrained and init:
        raise ConfigError("--pretrained and --init: a training begins with one of them; leave out the other")
    start = start_from_file(pretrained) if pretrained else start_from_run(init) if init else None
    if plan_file and resume:
        raise ConfigError("--plan and --resume: a training goes on by its own plan; leave out --plan")
    if single_case and resume:
        raise ConfigError(
            "--single-case and --resume: a training goes on with the cases it has; leave out --single-case"
        )
    if small and (plan_file or resume or init):
        raise ConfigError("--small shapes a new plan; leave it out with --plan, --resume and --init, which have one")
    held_out = None if fold is None else parse_fold(fold)
    with joined_processes(device, threads) as (world, own_device):
        result = train_cohort(
            cohort,
            out,
            own_device,
            settings=chosen,
            plan_file=plan_file,
            small=small,
            kinds=dict(parse_kind(text) for text in kind or []),
            fold=held_out,
            start=start,
            single_case=single_case,
            resume=resume,
            tensorboard=tensorboard,
            world=world,
            on_plan=show_plan,
            on_start=show_start,
            track=console.track if world.first else silent,
            note=console.warn if world.first else unheard,
            show=console.show,
        )
    if world.first:
        _tell(result, out)
        if report:
            _report(result, out)
    if result.interrupted:
        raise typer.Exit(130)
    if result.validation and result.validation.failures:
        raise typer.Exit(1)


def show_start(taken: "Transfer") -> None:
    """Print what was taken of the weights to begin with."""
    console.out.print("\n".join(["weights to begin with", *taken.lines()]), markup=False)


def _tell(result: "TrainingResult", out: Path) -> None:
    """Print how it ended and what was written."""
    if result.interrupted:
        console.warn(
            f"stopped after {result.steps} steps; the model so far is saved, and --resume goes on from where it stopped"
        )
    else:
        last = "" if math.isnan(result.loss) else f", last loss {result.loss:.3f}"  # stopped in the final validation
        console.out.print(f"trained {result.steps} steps{last}")
    if result.best_step:
        console.out.print(
            f"best validation: {result.best_score:.3f} at step {result.best_step}, whose weights are kept"
        )
    for file in ("plan.yaml", "model.safetensors", "metrics.csv", "curves.png", "run.json"):
        if (out / file).exists():
            console.wrote(out / file)
    if result.validation:
        _tell_validation(result.validation)


def _report(result: "TrainingResult", out: Path) -> None:
    """Write the pages about the training and about its final validation."""
    from medseg.reporting.evaluation_report import save_evaluation_report, save_worst_pictures
    from medseg.reporting.training_report import save_training_report

    if result.validation and result.validation.evaluation:
        save_worst_pictures([result.validation.evaluation], out / "validation")
        save_evaluation_report(out / "validation")
    console.wrote(save_training_report(out))


def _tell_validation(found: "FinalValidation") -> None:
    """Print how the model does on the held-out cases."""
    from medseg.cli.evaluate import summary_table

    if found.evaluation:
        console.out.print(summary_table(found.evaluation.summary))
    for case, reason in found.failures.items():
        console.failed(f"{case}: {reason}")
    for file in found.files:
        console.wrote(file)
