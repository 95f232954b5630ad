"""`medseg prepare`: all of a training that comes before its first step."""

from typing import Annotated

import typer

from medseg.cli import console
from medseg.cli.cohort_options import COHORT, KIND, PLAN, RUN, SETTINGS, SMALL
from medseg.cli.compute import CLUSTER
from medseg.cli.plan import show_plan
from medseg.cluster.choice import parse_cluster
from medseg.errors import ConfigError

NAME = "prepare"


def run(
    cohort: COHORT,
    out: RUN,
    settings: SETTINGS = None,
    plan_file: PLAN = None,
    small: SMALL = False,
    kind: KIND = None,
    fold: Annotated[
        str | None, typer.Option("--fold", help="Cases held out for validation, as for train.", show_default="auto")
    ] = None,
    single_case: Annotated[bool, typer.Option("--single-case", help="Allow a cohort of one case.")] = False,
    cluster: CLUSTER = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in --out, by its own plan: cases that are prepared are left alone.")
    ] = False,
) -> None:
    """Check a cohort, decide the plan and bring every case to its grid; medseg train --resume goes on from there.

    Several machines may prepare what one with a GPU trains on: medseg prepare COHORT -o RUN --cluster slurm, then
    medseg train COHORT -o RUN --resume.
    """
    from medseg.cluster.connect import connected
    from medseg.data.cohort import parse_kind
    from medseg.training.cohort import prepare_cohort
    from medseg.training.folds import parse_fold
    from medseg.values.plan import parse_setting

    choice = parse_cluster(cluster) if cluster else None
    if plan_file and resume:
        raise ConfigError("--plan and --resume: a run goes on by its own plan; leave out --plan")
    if small and (plan_file or resume):
        raise ConfigError("--small shapes a new plan; leave it out with --plan and --resume, which have one")
    # Before workers are waited for, which may take hours.
    given = dict(parse_setting(text) for text in settings or [])
    kinds = dict(parse_kind(text) for text in kind or [])
    held_out = None if fold is None else parse_fold(fold)
    with connected(choice, note=console.tell) as workers:
        prepare_cohort(
            cohort,
            out,
            settings=given,
            plan_file=plan_file,
            small=small,
            kinds=kinds,
            fold=held_out,
            single_case=single_case,
            resume=resume,
            cluster=workers,
            on_plan=show_plan,
            track=console.track,
            note=console.warn,
        )
    for file in ("plan.yaml", "fingerprint.json", "run.json"):
        console.wrote(out / file)
