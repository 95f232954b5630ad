"""Cohorts as an archive hands them out: a folder per patient with DICOM series and a SEG or RTSTRUCT.

The image of a segmentation is the series that it refers to (PS3.3 C.7.6.16.2.1.3 and C.8.8.5); other series in the
folder do not matter. Where that one is missing, the only one that is there has to do, if it lies in the same place.
Folders and files are often named after patients, so cases get a hash of their series' UID for a name, and patients,
told apart by their PatientID, a number.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread

from medseg.errors import InputError
from medseg.io.atomic import is_leftover
from medseg.io.cohort_table import CohortRow
from medseg.io.dicom_files import DicomFile, first_line, neutral_name, scan_folder
from medseg.io.identity import patient_id_of
from medseg.io.rtstruct_rois import referenced_series
from medseg.progress import Track, silent

#: What this layout is called.
LAYOUT = "DICOM folder per patient"
#: What an image without a modality is called.
ONE_IMAGE = "image"
#: What the scan of a folder (`scan_folder`) calls files that hold labels.
_LABELS = ("segmentation", "structure set")


@dataclass(frozen=True, kw_only=True)
class BrokenCase:
    """A case that cannot be used: what it is called, and why in one line."""

    name: str
    reason: str


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder by name, without hidden ones and what a killed run left."""
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".") and not is_leftover(path)
    )


def folder_places(folder: Path) -> dict[Path, int]:
    """Return the folders of patients in a cohort of this layout, and their places from 1."""
    return {path: place for place, path in enumerate(subfolders(folder), 1)}


def without_folders(line: str, places: Mapping[Path, int]) -> str:
    """Return a line with ``folder 3`` for the third of the folders: these are often named after patients."""
    for folder, place in places.items():
        line = re.sub(re.escape(str(folder)) + r"(?=[/:, ]|$)", f"folder {place}", line)
    return line


@dataclass(frozen=True, kw_only=True)
class PatientCases:
    """The segmented series of a cohort, what is wrong with the others, and the modalities of the images, each once."""

    rows: tuple[CohortRow, ...]
    broken: tuple[BrokenCase, ...]
    modalities: tuple[str, ...]


def find_patient_cases(folder: Path, track: Track = silent) -> PatientCases:
    """Find the segmented series in the subfolders of a folder; headers alone are read.

    Args:
        folder: holds a folder per patient, each with DICOM at any depth.
        track: progress over patients' folders.

    Returns:
        A row per segmented series, and what is wrong with the others; neither where no subfolder holds a SEG or
        RTSTRUCT. Folders without DICOM are passed over.

    Raises:
        InputError: a folder that cannot be opened.
    """
    rows: list[CohortRow] = []
    broken: list[BrokenCase] = []
    patients: dict[str, str] = {}
    modalities: dict[str, None] = {}
    labelled = False
    for number, patient in enumerate(track(subfolders(folder), "looking through folders"), 1):
        files = scan_folder(patient).files
        series = _image_series(files)
        labels = [file.path for file in files if file.aside in _LABELS]
        labelled = labelled or bool(labels)
        found, problems = _cases_of(patient, series, labels)
        broken += [BrokenCase(name=f"folder {number}", reason=problem) for problem in problems]
        for uid, label in found.items():
            modalities[series[uid][0].modality or ONE_IMAGE] = None
            known = patient_id_of(series[uid][0].path) or f"\0{number}"  # without an id, the folder is the patient
            rows.append(
                CohortRow(
                    name=neutral_name(series[uid][0]),
                    images=(patient,),
                    label=label,
                    patient=patients.setdefault(known, f"patient {len(patients) + 1}"),
                    series=uid or None,
                )
            )
    twice = {row.name for row in rows if sum(other.name == row.name for other in rows) > 1}
    broken += [
        BrokenCase(name=row.name, reason=f"{row.images[0]}: its series lies in another folder, too; take one away")
        for row in rows
        if row.name in twice
    ]
    rows = [row for row in rows if row.name not in twice]
    if not labelled:
        return PatientCases(rows=(), broken=(), modalities=())
    return PatientCases(rows=tuple(rows), broken=tuple(broken), modalities=tuple(modalities))


def _image_series(files: Sequence[DicomFile]) -> dict[str, list[DicomFile]]:
    series: dict[str, list[DicomFile]] = {}
    for file in files:
        if not file.aside:
            series.setdefault(file.series_uid, []).append(file)
    return series


def _cases_of(
    patient: Path, series: dict[str, list[DicomFile]], labels: Sequence[Path]
) -> tuple[dict[str, Path], list[str]]:
    """Return the label file of each segmented series of a patient's folder, and what is wrong with the others."""
    if not series and not labels:
        return {}, []
    if not labels:
        return {}, [f"{patient}: no SEG or RTSTRUCT among its {len(series)} image series; add one or take it out"]
    problems = []
    of_series: dict[str, list[Path]] = {}
    for label in labels:
        try:
            of_series.setdefault(_series_of(label, series), []).append(label)
        except InputError as error:
            problems.append(str(error))
    for several in of_series.values():
        if len(several) > 1:
            names = ", ".join(path.name for path in several)
            problems.append(
                f"{patient}: {len(several)} segmentations of one series ({names}), expected one; take the others "
                "away, or list image and label in a cohort.csv"
            )
    return {uid: paths[0] for uid, paths in of_series.items() if len(paths) == 1}, problems


def _series_of(label: Path, series: dict[str, list[DicomFile]]) -> str:
    """Return the UID of the series among those of a folder that a SEG or RTSTRUCT refers to.

    Raises:
        InputError: none, or several.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = dcmread(label, force=True, stop_before_pixels=True)
            named = referenced_series(dataset)
            named += [
                str(item.get("SeriesInstanceUID") or "") for item in dataset.get("ReferencedSeriesSequence") or []
            ]
    except Exception as error:  # pydicom raises whatever a damaged byte leads to
        raise InputError(f"{label}: cannot be read as DICOM ({first_line(error)}); copy the file again") from None
    named = [uid for uid in dict.fromkeys(named) if uid]
    present = [uid for uid in named if uid in series]
    if len(present) == 1:
        return present[0]
    if not present and len(series) == 1:  # de-identified one by one, perhaps; its place tells when it is read
        return next(iter(series))
    if not named:
        raise InputError(f"{label}: does not say which of {len(series)} image series it belongs to; list both in a CSV")
    if present:
        raise InputError(f"{label}: refers to {len(present)} of the series in its folder, expected one; split it")
    raise InputError(
        f"{label}: refers to series {named[0]}, which is not among the {len(series)} image series of its patient's "
        "folder; add that series"
    )
