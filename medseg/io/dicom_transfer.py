"""DICOM objects on their way from and to an archive: saved as they came, found and read to be sent.

They are passed on as they are, valid or not, patient included; nothing in them is shown.
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import MediaStorageDirectoryStorage

from medseg.errors import GeometryError, InputError
from medseg.io.atomic import is_leftover
from medseg.io.dicom import check_readable, choose_series, scan_path, stack_files

_UID_KEYWORDS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")


@dataclass(frozen=True, kw_only=True)
class ObjectUids:
    """Where an object belongs: its study, its series, itself; each empty where the object does not say."""

    study: str
    series: str
    instance: str


def uids_of(dataset: Dataset) -> ObjectUids:
    """Return the UIDs of a data set."""
    return ObjectUids(
        study=str(dataset.get("StudyInstanceUID") or ""),
        series=str(dataset.get("SeriesInstanceUID") or ""),
        instance=str(dataset.get("SOPInstanceUID") or ""),
    )


def save_received(path: Path, dataset: Dataset) -> None:
    """Write an object as it came, flushed to the disk; `atomic_folder` around a series makes it whole or absent.

    Raises:
        OSError: the file cannot be written.
    """
    with warnings.catch_warnings(), path.open("xb") as file:
        warnings.simplefilter("ignore")  # they would show values
        dataset.save_as(file, enforce_file_format=True)
        file.flush()
        os.fsync(file.fileno())


def check_series(folder: Path, *, any_geometry: bool) -> None:
    """Refuse a folder of one series with a damaged file, or whose images are no even stack.

    Objects that are no images (segmentations, reports) have no geometry to check.

    Args:
        folder: with files of one series.
        any_geometry: let uneven, tilted and several volumes pass.

    Raises:
        InputError: names the file and what is wrong with it.
        GeometryError: slices that are no even, rectangular stack.
    """
    scan = scan_path(folder)
    if scan.broken:
        path, reason = scan.broken[0]
        raise InputError(f"{path.name}: {reason}")
    if all(file.aside for file in scan.files):
        return
    try:
        files = choose_series(scan, folder, None)
        check_readable(files, scan)
        if not any_geometry:
            stack_files(files, str(folder))
    except InputError as error:
        kind = GeometryError if isinstance(error, GeometryError) else InputError
        raise kind(str(error).replace(f"{folder}{os.sep}", "").replace(str(folder), "the series")) from None


def find_objects(paths: Sequence[Path]) -> dict[Path, ObjectUids]:
    """Return the DICOM objects among files and under folders; what is no DICOM in a folder is passed over.

    Raises:
        InputError: a path that does not exist, a file named that is no DICOM, a folder without any, or an object that
            does not say which study, series and instance it is, or cannot be read.
    """
    found: dict[Path, ObjectUids] = {}
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder, expected DICOM objects")
        inside = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        named = {file: _read_uids(file) for file in inside if not is_leftover(file.relative_to(path))}
        objects = {file: uids for file, uids in named.items() if uids is not None}
        if not objects:
            raise InputError(f"{path}: no DICOM object, and only those can be sent; name a DICOM file or folder")
        for file, uids in objects.items():
            if not (uids.study and uids.series and uids.instance):
                raise InputError(f"{file}: does not say its study, series and instance UID; an archive cannot file it")
        found.update(objects)
    return found


def _read_uids(path: Path) -> ObjectUids | None:
    """Return the UIDs of a file, None where it is no DICOM object: something else, or the directory of a CD.

    Raises:
        InputError: it cannot be read, or is DICOM and damaged: what is passed over would be missing in the archive.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = dcmread(path, specific_tags=list(_UID_KEYWORDS))
    except InvalidDicomError:
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from None
    except Exception as error:  # pydicom raises whatever a damaged byte leads to
        raise InputError(f"{path}: damaged DICOM ({type(error).__name__}); copy it again") from None
    is_directory = dataset.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage
    return None if is_directory else uids_of(dataset)


def read_to_send(path: Path) -> Dataset:
    """Read a whole object.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dcmread(path)
    except Exception as error:  # pydicom raises whatever a damaged byte leads to
        raise InputError(f"{path}: cannot be read as DICOM ({type(error).__name__}); write it again") from None
