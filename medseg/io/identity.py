"""The patient's id: for those who ask that it be kept (``--keep-identity``), and to tell which cases are one patient's.

Nothing else that medseg writes names the patient, DICOM objects aside: those belong to the patient's study and carry
its header.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

from pydicom import dcmread

from medseg.errors import InputError
from medseg.io.archive import unpacked
from medseg.io.dicom import choose_series, scan_path
from medseg.io.itk import ITK_SUFFIXES
from medseg.io.nifti import NIFTI_SUFFIXES


def read_patient_id(path: Path | str | Sequence[Path | str], series: str | None = None) -> str:
    """Return the PatientID of a DICOM series, as its first file says it.

    Args:
        path: a folder, file, list of files or zip.
        series: SeriesInstanceUID, needed where there are several image series.

    Raises:
        InputError: no DICOM, no such series, or a series without a PatientID.
    """
    paths = [Path(path)] if isinstance(path, (str, Path)) else [Path(each) for each in path]
    if paths[0].name.lower().endswith(NIFTI_SUFFIXES + ITK_SUFFIXES):
        raise InputError(f"{paths[0]}: only DICOM has a PatientID to keep; leave --keep-identity away")
    if paths[0].suffix.lower() == ".zip":
        with unpacked(paths[0]) as folder:
            found = _patient_id([folder], series)
    else:
        found = _patient_id(paths, series)
    if not found:
        raise InputError(f"{paths[0]}: the series has no PatientID to keep; leave --keep-identity away")
    return found


def _patient_id(paths: list[Path], series: str | None) -> str:
    scan = scan_path(paths if len(paths) > 1 else paths[0])
    return patient_id_of(choose_series(scan, paths[0], series)[0].path)


def patient_id_of(file: Path) -> str:
    """Return the PatientID of a DICOM file, empty where it has none. It names the patient: never print or write it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = dcmread(file, force=True, specific_tags=["PatientID", "SpecificCharacterSet"])
        return " ".join(str(header.get("PatientID") or "").split())
