"""`medseg tune-linking`: fit how slices are linked to a labelled cohort."""

from pathlib import Path
from typing import Annotated

import typer

from medseg.cli import console
from medseg.cli.compute import DEVICE_HELP, THREADS_HELP, set_up

NAME = "tune-linking"


def run(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a training run; its plan is changed.")],
    cohort: Annotated[
        Path, typer.Argument(metavar="COHORT", help="Labelled cases that training has not seen (cohort.csv).")
    ],
    device: Annotated[str, typer.Option("--device", help=DEVICE_HELP)] = "auto",
    threads: Annotated[int, typer.Option("--threads", help=THREADS_HELP)] = 0,
) -> None:
    """Fit the weights of linking and the meaning of scores to a cohort; the old plan is kept as plan.1.yaml."""
    from medseg.training.tune_linking import tune_linking

    tuned = tune_linking(run_folder, cohort, set_up(device, threads), console.track)
    config = tuned.plan.linking
    console.out.print(
        f"{tuned.cases} cases: {tuned.pairs} pairs of detections, {tuned.same} of one object; log loss "
        f"{tuned.log_loss_before:.3f} before, {tuned.log_loss_after:.3f} after"
    )
    weights = ", ".join(f"{name} {value:g}" for name, value in config.weights.model_dump().items())
    console.out.print(f"link_iou {config.link_iou:g}, gap_iou {config.gap_iou:g}; weights: {weights}")
    console.out.print(f"{tuned.objects} objects, {tuned.true} true; calibration: {len(config.calibration)} knots")
    for warning in tuned.warnings:
        console.warn(warning)
    console.wrote(tuned.old_plan)
    console.wrote(run_folder / "plan.yaml")
