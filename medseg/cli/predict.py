"""`medseg predict`: the objects of a study, as masks on its own grid."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg.cli import console
from medseg.cli.compute import CLUSTER, DEVICE_HELP, THREADS_HELP, set_up, workers_device
from medseg.cli.reading import KEEP_IDENTITY, NIFTI_FORM, RESAMPLE_TILT, RESAMPLE_UNEVEN, SERIES
from medseg.cluster.choice import ClusterChoice, parse_cluster
from medseg.errors import ConfigError, InputError
from medseg.io.failures import Failure, write_failures

if TYPE_CHECKING:
    from medseg.inference.cohort import Case, Job, Summary
    from medseg.inference.study import StudyPredictor

NAME = "predict"


def run(
    sources: Annotated[
        list[Path],
        typer.Option(
            "--input",
            "-i",
            help="DICOM folder or file, zip, NIfTI, NRRD, MHA; or a cohort as for training. A model of several "
            "channels (MR sequences) takes one -i for each, in the order of input.channel_names in its plan.yaml, or "
            "one 4-D NIfTI.",
        ),
    ],
    models: Annotated[
        list[Path],
        typer.Option(
            "--model",
            "-m",
            help="Folder of a training run (medseg train -o). Several -m, such as the folds of one cohort, look at the "
            "study together (an ensemble).",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results, a folder per case in it.")],
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of the case; else a hash of the series UID (DICOM) or the file's stem."),
    ] = None,
    series: SERIES = None,
    resample_uneven: RESAMPLE_UNEVEN = False,
    resample_tilt: RESAMPLE_TILT = False,
    nifti_form: NIFTI_FORM = None,
    flips: Annotated[
        bool,
        typer.Option("--flips", help="Also look at mirrored slices, as far as the model's training mirrored them."),
    ] = False,
    scales: Annotated[
        list[float] | None,
        typer.Option("--scale", help="Also look at slices enlarged by this factor, 0.5 to 2; once for each factor."),
    ] = None,
    views: Annotated[
        bool,
        typer.Option("--views", help="Also look across the slices (coronal, sagittal) to tell what belongs together."),
    ] = False,
    device: Annotated[str, typer.Option("--device", help=DEVICE_HELP)] = "auto",
    threads: Annotated[int, typer.Option("--threads", help=THREADS_HELP)] = 0,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            help="auto, float32 or bfloat16, in place of the model's inference.precision. auto is bfloat16 where the "
            "device has matrix units for it.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", help="Most slices at once, in place of inference.batch_size; fewer take less memory."
        ),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Say where the time went, also in profile.json in the folder of the case.")
    ] = False,
    keep_identity: KEEP_IDENTITY = False,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write report.html per case, and index.html of a cohort.")
    ] = True,
    cluster: CLUSTER = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Leave cases alone whose results in --out are complete and from the same study, model and options.",
        ),
    ] = False,
) -> None:
    """Find the objects of a study (or of every case of a cohort) and write masks, measurements and a picture."""
    from medseg.inference.cohort import Job
    from medseg.inference.passes import PassSettings
    from medseg.inference.study import StudyPredictor
    from medseg.io.atomic import check_apart, check_folder
    from medseg.io.dicom import keep_scans

    choice = parse_cluster(cluster) if cluster else None
    gpu_ids: list[str] | None = None
    if choice is None:
        chosen = set_up(device, threads)
    else:
        device, gpu_ids = workers_device(choice, device, threads)
        chosen = set_up("cpu", 0)  # the workers compute; here the models are only looked at
    _check_sources(sources, name)
    check_folder(out)
    passes = PassSettings(flips=flips, scales=tuple(scales or ()), views=views)
    given = {"inference.precision": precision, "inference.batch_size": batch_size}
    settings = {field: value for field, value in given.items() if value is not None}
    predictor = StudyPredictor(models, chosen, passes, settings)
    job = Job(
        models=tuple(model.absolute() for model in models),
        model_sha256=tuple(predictor.model_hashes),
        device=device,
        threads=threads,
        passes=passes,
        settings=tuple(settings.items()),
        out=out.absolute(),
        reading={
            "resample_uneven": resample_uneven,
            "resample_tilt": resample_tilt,
            "nifti_form": nifti_form,
            "keep_identity": keep_identity,
        },
        report=report,
        profile=profile,
        resume=resume,
    )
    # In this process the name of a study and its images are in the same headers.
    with keep_scans() if choice is None else nullcontext():
        cases, failures, layout = _find(sources, name, series)
        for case in cases.values():
            for image in case.study:
                check_apart(out / case.name, image)
        for broken, failure in failures.items():
            console.failed(f"{broken}: {failure.reason}")
        count = len(cases) + len(failures)
        complete = 0
        for done, outcome in _predict(predictor, job, cases, choice, gpu_ids):
            if isinstance(outcome, Failure):
                if count == 1:
                    raise InputError(outcome.reason)
                failures[done] = outcome
                console.failed(f"{done}: {outcome.reason}")
            elif outcome.complete:
                complete += 1
            else:
                show(done, outcome)
                if profile:
                    show_profile(outcome)
    if complete:
        console.out.print(f"{complete} of {count} cases were complete already")
    _finish(out, cases, failures, cohort=layout is not None, report=report)
    if failures:
        console.warn(f"{len(failures)} of {count} cases failed")
        raise typer.Exit(1)


def _check_sources(sources: Sequence[Path], name: str | None) -> None:
    for source in sources:
        if not source.exists():
            raise ConfigError(f"{source}: no such file or folder; expected a study or a cohort")
    if name is not None and (not name or "/" in name or "\\" in name or name.startswith(".")):
        raise ConfigError(f"--name {name!r}: expected a plain file name without slashes")


def _find(
    sources: Sequence[Path], name: str | None, series: str | None
) -> "tuple[dict[str, Case], dict[str, Failure], str | None]":
    """Return the cases to predict on, those that lack a file, and the layout of their cohort, None for one study."""
    from medseg.data.cohort import find_studies
    from medseg.inference.cohort import Case
    from medseg.inference.study import study_name

    source = sources[0]
    cohort = find_studies(source, console.track, single=len(sources) > 1 or bool(name or series))
    if cohort is None:
        if series and len(sources) > 1:
            raise ConfigError("--series chooses from one input (-i); give each series its own folder")
        name = name or study_name(source, series)
        study = tuple(path.absolute() for path in sources)
        return {name: Case(name=name, study=study, series=series)}, {}, None
    if len(sources) > 1:
        raise ConfigError(f"{source}: a cohort is the only input (-i), found {len(sources)} of them")
    if name or series:
        raise ConfigError(f"{source}: --name and --series are for a single study, this is a cohort")
    cases = {row.name: Case(name=row.name, study=row.images, series=row.series) for row in cohort.rows}
    failures = {case.name: Failure(stage="find", reason=case.reason) for case in cohort.broken}
    number = len(cases) + len(failures)
    console.out.print(f"{cohort.layout}, {number} case{'' if number == 1 else 's'}", markup=False)
    return cases, failures, cohort.layout


def _predict(
    predictor: "StudyPredictor",
    job: "Job",
    cases: "Mapping[str, Case]",
    choice: ClusterChoice | None,
    gpu_ids: Sequence[str] | None,
) -> "Iterator[tuple[str, Summary | Failure]]":
    """Yield what comes of each case as it gets done, under a progress bar where there are several."""
    from dataclasses import replace

    from medseg.cluster.connect import connected, usable_cores
    from medseg.cluster.run import run_cases
    from medseg.inference.cohort import predict_case, predict_on_worker

    def tracked(outcomes: Iterable[Any]) -> Iterator[Any]:
        return console.track(outcomes, "predicting", len(cases)) if len(cases) > 1 else iter(outcomes)

    if choice is None:
        here = partial(predict_case, predictor, job, track=console.track, note=console.warn, tell=console.tell)
        yield from tracked(run_cases(here, cases, None, stage="predict"))
        return
    with connected(choice, gpu_ids=gpu_ids, note=console.tell) as cluster:
        assert cluster is not None
        if choice.kind == "local" and not job.threads:
            job = replace(job, threads=max(1, usable_cores() // cluster.expected))
        there = partial(predict_on_worker, job)
        yield from tracked(run_cases(there, cases, cluster, stage="predict", note=console.warn))


def _finish(
    out: Path, cases: "Mapping[str, Case]", failures: Mapping[str, Failure], *, cohort: bool, report: bool
) -> None:
    """Write failures.csv and index.html of a cohort; of a single study strike out that it failed before."""
    from medseg.reporting.cohort_index import forget_failure, save_index, without_paths

    if not cohort:
        forget_failure(out, next(iter(cases)))
        return
    told = {}
    for case, failure in failures.items():
        paths = cases[case].study if case in cases else ()
        told[case] = Failure(stage=failure.stage, reason=without_paths(failure.reason, paths))
    table = write_failures(out, told)
    if table:
        console.wrote(table)
    if report:
        console.wrote(save_index(out))


def show_profile(summary: "Summary") -> None:
    """Print where the time of a case went."""
    from rich import box
    from rich.table import Table

    from medseg.inference.profile import profile

    table = Table(title="where the time went", box=box.SIMPLE_HEAD, show_edge=False, show_footer=True)
    table.add_column("stage", footer="all")
    table.add_column("seconds", justify="right", footer=f"{sum(summary.seconds.values()):.2f}")
    table.add_column("share", justify="right")
    for stage in profile(summary.seconds):
        table.add_row(stage.title, f"{stage.seconds:.2f}", f"{stage.share:.0%}")
    console.out.print(table)


def show(case: str, summary: "Summary") -> None:
    """Print the objects of a case as a table, its warnings, and where its files are."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    title = f"{escape(case)}: {len(summary.objects)} objects"
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False)
    for column in ("id", "object", "score", "ml"):
        table.add_column(column, justify="left" if column == "object" else "right")
    for number, label, score, volume_ml in summary.objects:
        table.add_row(str(number), escape(label), f"{score:.2f}", f"{volume_ml:.2f}")
    console.out.print(table)
    for note in summary.notes:
        console.warn(f"{case}: {note}")
    for warning in summary.warnings:
        console.warn(f"{case}: {warning}")
    if summary.lost_ml:
        console.warn(
            f"{case}: {summary.lost_ml:.2f} ml of overlap are lost in the flat label map; the .seg.nrrd keeps them"
        )
    for file in summary.files:
        console.wrote(file)
