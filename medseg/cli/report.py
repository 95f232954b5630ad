"""`medseg report`: pages from the files that predict, evaluate and train left."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg.cli import console
from medseg.cli.reading import NIFTI_FORM, RESAMPLE_TILT, RESAMPLE_UNEVEN, SERIES
from medseg.errors import ConfigError, InputError, MedsegError

NAME = "report"


def run(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="RESULTS", help="Folder that predict (of one case or of a cohort), evaluate or train wrote."
        ),
    ],
    image: Annotated[
        Path | None,
        typer.Option("--image", help="Image of the case, or the cohort of the cases: adds pictures and a viewer."),
    ] = None,
    series: SERIES = None,
    resample_uneven: RESAMPLE_UNEVEN = False,
    resample_tilt: RESAMPLE_TILT = False,
    nifti_form: NIFTI_FORM = None,
) -> None:
    """Write report.html of results that are there, and index.html of a cohort's: pages that need no network."""
    from medseg.reporting.case_report import RUN_FILE, read_json
    from medseg.reporting.cohort_index import case_folders, save_index
    from medseg.reporting.evaluation_report import is_evaluation, save_evaluation_report
    from medseg.reporting.training_report import is_training, save_training_report

    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; expected one that medseg predict, evaluate or train wrote")
    options = {"resample_uneven": resample_uneven, "resample_tilt": resample_tilt, "nifti_form": nifti_form}
    if image is None and (series is not None or any(options.values())):
        raise ConfigError("--series, --resample-... and --nifti-form say how --image is read; give --image as well")
    if (folder / RUN_FILE).is_file() and "case" in read_json(folder / RUN_FILE):
        console.wrote(_report_case(folder, image, series, options))
        return
    for is_one, save in ((is_training, save_training_report), (is_evaluation, save_evaluation_report)):
        if is_one(folder):
            if image is not None:
                raise ConfigError(f"--image is for predictions, but {folder} is none; leave it out")
            console.wrote(save(folder))
            return
    cases = case_folders(folder)
    if not cases:
        raise InputError(f"{folder}: no results in it; expected a folder that medseg predict, evaluate or train wrote")
    if series is not None:
        raise ConfigError(f"--series is for one case, but {folder} has {len(cases)}; leave it out")
    failed = _report_cases(cases, image, options)
    console.wrote(save_index(folder))
    if failed:
        raise typer.Exit(1)


def _report_case(folder: Path, image: Path | None, series: str | None, options: Mapping[str, Any]) -> Path:
    from medseg.io.volumes import count_channels, read_channels, read_volume
    from medseg.reporting.case_report import read_case, save_case

    if image is None:
        volume = None
    elif count_channels(image) > 1:
        volume = read_channels(image, nifti_form=options["nifti_form"], note=console.warn)[0]
    else:
        volume = read_volume(image, series=series, track=console.track, note=console.warn, **options)
    return save_case(read_case(folder, volume), folder)


def _report_cases(folders: list[Path], image: Path | None, options: Mapping[str, Any]) -> int:
    """Write the report of each case, and return how many could not be."""
    from medseg.data.cohort import find_studies
    from medseg.reporting.case_report import REPORT_FILE

    cohort = None if image is None else find_studies(image, console.track)
    if image is not None and cohort is None:
        raise ConfigError(f"{image}: one study, but there are {len(folders)} cases; name the cohort of them")
    images = {} if cohort is None else {row.name: (row.images[0], row.series) for row in cohort.rows}
    if image is not None and (strangers := [f.name for f in folders if f.name not in images]):
        console.warn(f"{image} has no case called {', '.join(strangers)}: no image, so no pictures and no viewer")
    failed = 0
    for folder in console.track(folders, "reports"):
        # without its image, a report that has a viewer would become one that has none
        if folder.name not in images and (folder / REPORT_FILE).exists():
            continue
        source, series = images.get(folder.name, (None, None))
        try:
            console.wrote(_report_case(folder, source, series, options))
        except MedsegError as error:
            failed += 1
            console.failed(f"{folder.name}: {error}")
    return failed
