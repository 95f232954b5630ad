"""`medseg pacs`: studies from an archive (DICOMweb) and results back to it."""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.cli import console
from medseg.cli.compute import DEVICE_HELP, THREADS_HELP, set_up
from medseg.cli.pacs_options import (
    CA_BUNDLE,
    CLIENT_CERT,
    CLIENT_KEY,
    CREDENTIALS,
    DESCRIPTION,
    DRY_RUN,
    MIN_SLICES,
    MODALITY,
    RETRIES,
    SINCE,
    STUDY,
    TIMEOUT,
    UNTIL,
    URL,
    open_archive,
    read_rules,
)
from medseg.errors import ConfigError, InputError, MedsegError, UnreachableError

if TYPE_CHECKING:
    from medseg.inference.study import StudyPredictor
    from medseg.pacs.connection import Archive
    from medseg.pacs.search import SeriesEntry, StudyEntry

NAME = "pacs"
HELP = "Studies from a PACS (DICOMweb) and results back to it."
app = typer.Typer(help=HELP, no_args_is_help=True)

MODELS = Annotated[
    list[Path],
    typer.Option("--model", "-m", help="Folder of a training run; several -m look at the series together."),
]
RESULTS = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results, a folder per series in it.")]
DEVICE = Annotated[str, typer.Option("--device", help=DEVICE_HELP)]
THREADS = Annotated[int, typer.Option("--threads", help=THREADS_HELP)]
SR = Annotated[bool, typer.Option("--sr", help="Send the measurements too, as a DICOM structured report.")]
REPORT = Annotated[bool, typer.Option("--report/--no-report", help="Write report.html per series.")]


@app.command()
def query(
    url: URL,
    study: STUDY = None,
    modality: MODALITY = "",
    description: DESCRIPTION = "",
    since: SINCE = None,
    until: UNTIL = None,
    min_slices: MIN_SLICES = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    credentials: CREDENTIALS = None,
    ca_bundle: CA_BUNDLE = None,
    client_cert: CLIENT_CERT = None,
    client_key: CLIENT_KEY = None,
    timeout: TIMEOUT = 60.0,
    retries: RETRIES = 4,
) -> None:
    """List studies and series by date, modality and description; no patient is named."""
    from medseg.pacs.search import find_wanted

    rules = read_rules(study, modality, description, since, until, min_slices)
    archive = open_archive(url, credentials, ca_bundle, client_cert, client_key, timeout, retries)
    found = list(find_wanted(archive, rules, console.track))
    if as_json:
        console.out.print_json(json.dumps({"studies": [_study_row(*row) for row in found]}))
    else:
        _print_series(found)


def _study_row(study: "StudyEntry", wanted: Sequence["SeriesEntry"]) -> dict:
    return {
        "uid": study.uid,
        "date": study.date.isoformat() if study.date else None,
        "description": study.description,
        "modalities": list(study.modalities),
        "series": [
            {
                "uid": series.uid,
                "modality": series.modality,
                "number": series.number,
                "description": series.description,
                "n_instances": series.n_instances,
            }
            for series in wanted
        ],
    }


def _print_series(found: Sequence[tuple["StudyEntry", list["SeriesEntry"]]]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        "", "date", "study", "modality", "number", "instances", "series", box=box.SIMPLE_HEAD, show_edge=False
    )
    uids: list[str] = []
    for study, wanted in found:
        for series in wanted:
            uids.append(f"{len(uids) + 1}. --study {study.uid} --series {series.uid}")
            table.add_row(
                str(len(uids)),
                study.date.isoformat() if study.date else "-",
                escape(study.description or "-"),
                escape(series.modality or "-"),
                "-" if series.number is None else str(series.number),
                "-" if series.n_instances is None else str(series.n_instances),
                escape(series.description or "-"),
            )
    if uids:
        console.out.print(table)
    for line in uids:  # on lines of their own: a table would cut them
        console.out.print(line, markup=False)
    console.tell(f"{len(uids)} series in {len(found)} {'study' if len(found) == 1 else 'studies'}")


@app.command()
def fetch(
    url: URL,
    series: Annotated[str, typer.Option("--series", metavar="UID", help="SeriesInstanceUID.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the files; new, or empty.")],
    study: STUDY = None,
    any_geometry: Annotated[
        bool, typer.Option("--any-geometry", help="Keep images too that are no even stack of slices.")
    ] = False,
    dry_run: DRY_RUN = False,
    credentials: CREDENTIALS = None,
    ca_bundle: CA_BUNDLE = None,
    client_cert: CLIENT_CERT = None,
    client_key: CLIENT_KEY = None,
    timeout: TIMEOUT = 60.0,
    retries: RETRIES = 4,
) -> None:
    """Fetch a series into a folder, checked by count and geometry, whole or not at all."""
    from medseg.io.atomic import check_folder
    from medseg.pacs.search import find_one_series, list_instances
    from medseg.pacs.transfer import fetch_series

    check_folder(out)
    archive = open_archive(url, credentials, ca_bundle, client_cert, client_key, timeout, retries)
    entry = find_one_series(archive, series, study)
    if dry_run:
        number = len(list_instances(archive, entry))
        console.out.print(f"would fetch {number} instances ({entry.modality}) to {out.absolute()}", markup=False)
        return
    fetch_series(archive, entry, out, any_geometry=any_geometry, track=console.track)
    console.wrote(out)


@app.command()
def predict(
    url: URL,
    series: Annotated[
        list[str], typer.Option("--series", metavar="UID", help="SeriesInstanceUID; several one by one.")
    ],
    models: MODELS,
    out: RESULTS,
    study: STUDY = None,
    send_back: Annotated[
        bool, typer.Option("--send/--no-send", help="Store the DICOM SEG in the archive, and see that it is there.")
    ] = True,
    sr: SR = False,
    report: REPORT = True,
    device: DEVICE = "auto",
    threads: THREADS = 0,
    dry_run: DRY_RUN = False,
    credentials: CREDENTIALS = None,
    ca_bundle: CA_BUNDLE = None,
    client_cert: CLIENT_CERT = None,
    client_key: CLIENT_KEY = None,
    timeout: TIMEOUT = 60.0,
    retries: RETRIES = 4,
) -> None:
    """Fetch series, find their objects, and send them back as DICOM SEG."""
    from medseg.io.atomic import check_folder
    from medseg.pacs.search import check_uid, find_one_series, list_instances

    for uid in series:
        check_uid(uid, "--series")
    check_folder(out)
    archive = open_archive(url, credentials, ca_bundle, client_cert, client_key, timeout, retries)
    predictor = _open_predictor(models, device, threads)
    failed = 0
    for uid in dict.fromkeys(series):
        try:
            entry = find_one_series(archive, uid, study)
            if dry_run:
                number = len(list_instances(archive, entry))
                console.out.print(f"would predict series {uid} ({entry.modality}, {number} instances)", markup=False)
            else:
                _predict_one(archive, predictor, entry, out, send_back=send_back, sr=sr, report=report)
        except UnreachableError:
            raise
        except MedsegError as error:
            if len(set(series)) == 1:
                raise
            failed += 1
            console.failed(" ".join(str(error).split()))
    _end(failed, len(set(series)), "series")


def _end(failed: int, count: int, things: str) -> None:
    if failed:
        console.warn(f"{failed} of {count} {things} failed")
        raise typer.Exit(1)


def _open_predictor(models: Sequence[Path], device: str, threads: int) -> "StudyPredictor":
    from medseg.inference.study import StudyPredictor

    chosen = set_up(device, threads)
    predictor = StudyPredictor(models, chosen)
    images = len(predictor.plan.input.channel_names)
    if images != 1:
        raise ConfigError(
            f"{models[0]}: the model takes {images} images and a series is one; fetch each series, then medseg predict"
        )
    return predictor


def _predict_one(
    archive: "Archive",
    predictor: "StudyPredictor",
    entry: "SeriesEntry",
    out: Path,
    *,
    send_back: bool,
    sr: bool,
    report: bool,
) -> None:
    """Fetch, predict and send back one series; its images are gone afterwards."""
    from medseg.cli.predict import show
    from medseg.inference.cohort import summarise
    from medseg.io.series import series_name
    from medseg.pacs.transfer import fetch_series, send_object, verify_sent
    from medseg.reporting.case_report import SR_ENDING
    from medseg.reporting.structured_report import write_measurements_sr

    name = series_name(entry.uid)
    try:
        temporary_folder = tempfile.TemporaryDirectory(prefix="medseg-")
    except OSError as error:  # a watch goes on, and tries again when there is room
        raise InputError(
            f"series {entry.uid}: no temporary folder for its images ({error.strerror or error}); make room, or set "
            "TMPDIR"
        ) from None
    with temporary_folder as temporary:
        folder = Path(temporary) / "series"
        fetch_series(archive, entry, folder, track=console.track)
        try:
            prediction, saved = predictor.run(
                (folder,), out, name, track=console.track, note=console.warn, tell=console.tell
            )
        except MedsegError as error:
            told = str(error).replace(f"{folder}{os.sep}", "").replace(str(folder), "its images")
            raise type(error)(f"series {entry.uid}: {told}") from None
    show(name, summarise(prediction, saved))
    if report:
        console.wrote(saved.report())
    seg = out / name / f"{name}_seg.dcm"
    files = [seg]
    if seg not in saved.files:
        raise InputError(f"series {entry.uid}: {'; '.join(prediction.warnings) or 'no DICOM SEG was written'}")
    if sr and not len(prediction.instances):
        console.tell(f"series {entry.uid}: no objects, so no structured report")
    elif sr:
        # Before the segmentation: once that is in the archive, the series counts as done.
        files.insert(0, out / name / f"{name}{SR_ENDING}")
        write_measurements_sr(list(saved.measurements), seg, files[0])
        console.wrote(files[0])
    if send_back:
        verify_sent(archive, [send_object(archive, file) for file in files])
        console.tell(f"series {entry.uid}: {len(files)} objects stored and found again")


@app.command()
def send(
    url: URL,
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="DICOM files; of a folder all that is DICOM in it.")
    ],
    dry_run: DRY_RUN = False,
    credentials: CREDENTIALS = None,
    ca_bundle: CA_BUNDLE = None,
    client_cert: CLIENT_CERT = None,
    client_key: CLIENT_KEY = None,
    timeout: TIMEOUT = 60.0,
    retries: RETRIES = 4,
) -> None:
    """Store DICOM objects (SEG, SR, RTSTRUCT, images) in the archive, and see that they are there."""
    from medseg.io.dicom_transfer import find_objects
    from medseg.pacs.transfer import send_object, verify_sent

    objects = find_objects(paths)
    archive = open_archive(url, credentials, ca_bundle, client_cert, client_key, timeout, retries)
    number = f"{len(objects)} object{'' if len(objects) == 1 else 's'}"
    if dry_run:
        console.out.print(f"would store {number} in {len({uids.series for uids in objects.values()})} series")
        return
    sent, failed = [], 0
    for path in console.track(objects, "storing", total=len(objects)):
        try:
            sent.append(send_object(archive, path))
        except InputError as error:
            if len(objects) == 1:
                raise
            failed += 1
            console.failed(str(error))
    verify_sent(archive, sent)
    console.out.print(f"{len(sent)} of {number} stored and found again")
    _end(failed, len(objects), "objects")


@app.command()
def watch(
    url: URL,
    models: MODELS,
    out: RESULTS,
    modality: Annotated[str, typer.Option("--modality", help="Series of this modality.")] = "CT",
    description: DESCRIPTION = "",
    min_slices: MIN_SLICES = 10,
    since: SINCE = None,
    until: UNTIL = None,
    days: Annotated[
        int | None, typer.Option("--days", help="Only studies of the last so many days, today included.")
    ] = None,
    interval: Annotated[float, typer.Option("--interval", help="Seconds between two looks.")] = 60.0,
    once: Annotated[
        bool, typer.Option("--once", help="Look once, take series as they are, and end; for cron and the like.")
    ] = False,
    sr: SR = False,
    report: REPORT = True,
    device: DEVICE = "auto",
    threads: THREADS = 0,
    dry_run: DRY_RUN = False,
    credentials: CREDENTIALS = None,
    ca_bundle: CA_BUNDLE = None,
    client_cert: CLIENT_CERT = None,
    client_key: CLIENT_KEY = None,
    timeout: TIMEOUT = 60.0,
    retries: RETRIES = 4,
) -> None:
    """Predict every new series that matches, until Ctrl-C; what this model version has segmented is skipped."""
    from medseg.io.atomic import check_folder
    from medseg.pacs.watch import Watch

    if not 0 < interval <= 86400:
        raise ConfigError(f"--interval {interval:g}: expected seconds, more than 0 and at most 86400")
    rules = read_rules(None, modality, description, since, until, min_slices)
    check_folder(out)
    archive = open_archive(url, credentials, ca_bundle, client_cert, client_key, timeout, retries)
    predictor = _open_predictor(models, device, threads)

    def process(entry: "SeriesEntry") -> None:
        if dry_run:
            text = f"would predict series {entry.uid} ({entry.modality}, {entry.n_instances} instances)"
            console.out.print(text, markup=False)
        else:
            _predict_one(archive, predictor, entry, out, send_back=True, sr=sr, report=report)

    watching = Watch(
        archive=archive,
        rules=rules,
        version=predictor.version,
        process=process,
        days=days,
        tell=console.tell,
    )
    if once:
        watching.look(settled=False)
    else:
        console.tell(f"watching {archive.connection.place} every {interval:g} s; Ctrl-C ends it")
        watching.forever(interval)
    done = "would be predicted" if dry_run else "predicted"
    console.tell(f"{watching.processed} series {done}, {watching.skipped} skipped")
    count = watching.processed + len(watching.failures)
    _end(len(watching.failures), count, "series")
