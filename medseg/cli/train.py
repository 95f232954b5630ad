"""`medseg train`: from a labelled cohort to a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.cli import console
from medseg.cli.compute import DEVICE_HELP, THREADS_HELP, set_up

if TYPE_CHECKING:
    from medseg.values.plan import Plan

NAME = "train"


def run(
    cohort: Annotated[
        Path, typer.Argument(metavar="COHORT", help="Folder with cohort.csv (image,label,patient) or dataset.json.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the run, new.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Plan field, e.g. --set model.backbone=resnet34; repeatable."),
    ] = None,
    single_case: Annotated[bool, typer.Option("--single-case", help="Allow a cohort of one case.")] = False,
    device: Annotated[str, typer.Option("--device", help=DEVICE_HELP)] = "auto",
    threads: Annotated[int, typer.Option("--threads", help=THREADS_HELP)] = 0,
) -> None:
    """Check a cohort, decide the plan, and train. Ctrl-C leaves a model of the steps done so far."""
    from medseg.training.cohort import train_cohort
    from medseg.values.plan import parse_setting

    chosen = dict(parse_setting(text) for text in settings or [])
    result = train_cohort(
        cohort,
        out,
        set_up(device, threads),
        settings=chosen,
        single_case=single_case,
        on_plan=show_plan,
        track=console.track,
    )
    if result.interrupted:
        console.warn(f"stopped after {result.steps} steps; the model so far is saved")
    else:
        console.out.print(f"trained {result.steps} steps, last loss {result.loss:.3f}")
    for file in ("plan.yaml", "model.safetensors", "metrics.csv", "run.json"):
        console.wrote(out / file)
    if result.interrupted:
        raise typer.Exit(130)


def show_plan(plan: "Plan") -> None:
    """Print what was decided and why."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="plan", box=box.SIMPLE_HEAD, show_edge=False)
    for column in ("field", "value", "reason"):
        table.add_column(column)
    data = plan.model_dump(mode="json")
    for field, reason in plan.reasons.items():
        section, _, key = field.partition(".")
        table.add_row(field, escape(str(data[section][key])), escape(reason))
    console.out.print(table)
