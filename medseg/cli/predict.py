"""`medseg predict`: the objects of a study, as masks on its own grid."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.cli import console
from medseg.cli.compute import DEVICE_HELP, THREADS_HELP, set_up
from medseg.cli.reading import KEEP_IDENTITY, NIFTI_FORM, RESAMPLE_TILT, RESAMPLE_UNEVEN, SERIES
from medseg.errors import ConfigError, MedsegError

if TYPE_CHECKING:
    from medseg.inference.predictor import Prediction
    from medseg.inference.result import SavedPrediction

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
) -> None:
    """Find the objects of a study (or of every case of a cohort) and write masks, measurements and a picture."""
    from medseg.data.cohort import find_studies
    from medseg.inference.passes import PassSettings
    from medseg.inference.study import StudyPredictor, study_name
    from medseg.io.atomic import check_apart, check_folder
    from medseg.io.dicom import keep_scans
    from medseg.reporting.cohort_index import forget_failure, save_failures, save_index, without_paths

    chosen = set_up(device, threads)
    for source in sources:
        if not source.exists():
            raise ConfigError(f"{source}: no such file or folder; expected a study or a cohort")
    source = sources[0]
    if name is not None and (not name or "/" in name or "\\" in name or name.startswith(".")):
        raise ConfigError(f"--name {name!r}: expected a plain file name without slashes")
    check_folder(out)
    passes = PassSettings(flips=flips, scales=tuple(scales or ()), views=views)
    given = {"inference.precision": precision, "inference.batch_size": batch_size}
    settings = {field: value for field, value in given.items() if value is not None}
    predictor = StudyPredictor(models, chosen, passes, settings)
    with keep_scans():  # the name of a study and its images are in the same headers
        cohort = find_studies(source, console.track, single=len(sources) > 1 or bool(name or series))
        failures: dict[str, str] = {}
        if cohort is not None:
            studies = [(row.name, row.images, row.series) for row in cohort.rows]
            failures = {case.name: case.reason for case in cohort.broken}
            if len(sources) > 1:
                raise ConfigError(f"{source}: a cohort is the only input (-i), found {len(sources)} of them")
            if name or series:
                raise ConfigError(f"{source}: --name and --series are for a single study, this is a cohort")
            number = len(studies) + len(failures)
            console.out.print(f"{cohort.layout}, {number} case{'' if number == 1 else 's'}", markup=False)
        else:
            if series and len(sources) > 1:
                raise ConfigError("--series chooses from one input (-i); give each series its own folder")
            studies = [(name or study_name(source, series), tuple(sources), series)]
        for case, study, _ in studies:
            for image in study:
                check_apart(out / case, image)
        for case, reason in failures.items():
            console.err.print(f"failed: {case}: {reason}", style="red", markup=False)
        count = len(studies) + len(failures)
        for case, study, uid in studies:
            try:
                prediction, saved = predictor.run(
                    study,
                    out,
                    case,
                    uid,
                    console.track,
                    resample_uneven=resample_uneven,
                    resample_tilt=resample_tilt,
                    nifti_form=nifti_form,
                    keep_identity=keep_identity,
                    note=console.warn,
                    tell=console.tell,
                )
            except MedsegError as error:
                if count == 1:
                    raise
                failures[case] = str(error)
                console.err.print(f"failed: {case}: {error}", style="red", markup=False)
                continue
            show(case, prediction, saved)
            if report:
                start = time.perf_counter()
                console.wrote(saved.report())
                prediction.seconds["report"] = time.perf_counter() - start
            if profile:
                show_profile(prediction, saved)
    if cohort is None:
        forget_failure(out, studies[0][0])
    else:
        inputs = {case: images for case, images, _ in studies}
        save_failures(out, {case: without_paths(why, inputs.get(case, ())) for case, why in failures.items()})
        if report:
            console.wrote(save_index(out))
    if failures:
        console.warn(f"{len(failures)} of {count} cases failed")
        raise typer.Exit(1)


def show_profile(prediction: "Prediction", saved: "SavedPrediction") -> None:
    """Print where the time of a case went, and write it to profile.json beside its files."""
    from rich import box
    from rich.table import Table

    from medseg.inference.profile import profile, profile_dict
    from medseg.io.atomic import write_json

    table = Table(title="where the time went", box=box.SIMPLE_HEAD, show_edge=False, show_footer=True)
    table.add_column("stage", footer="all")
    table.add_column("seconds", justify="right", footer=f"{sum(prediction.seconds.values()):.2f}")
    table.add_column("share", justify="right")
    for stage in profile(prediction.seconds):
        table.add_row(stage.title, f"{stage.seconds:.2f}", f"{stage.share:.0%}")
    console.out.print(table)
    write_json(saved.folder / "profile.json", profile_dict(prediction.seconds))
    console.wrote(saved.folder / "profile.json")


def show(case: str, prediction: "Prediction", saved: "SavedPrediction") -> None:
    """Print the objects of a case as a table, its warnings, and where its files are."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    instances = prediction.instances
    table = Table(title=f"{escape(case)}: {len(instances)} objects", box=box.SIMPLE_HEAD, show_edge=False)
    for column in ("id", "object", "score", "ml"):
        table.add_column(column, justify="left" if column == "object" else "right")
    for instance, title in zip(instances, instances.names(), strict=True):
        volume = instances.volume_ml(instance.id)
        table.add_row(str(instance.id), escape(title), f"{instance.score:.2f}", f"{volume:.2f}")
    console.out.print(table)
    for warning in prediction.warnings:
        console.warn(f"{case}: {warning}")
    if saved.lost_ml:
        console.warn(
            f"{case}: {sum(saved.lost_ml.values()):.2f} ml of overlap are lost in the flat label map; "
            "the .seg.nrrd keeps them"
        )
    for file in saved.files:
        console.wrote(file)
