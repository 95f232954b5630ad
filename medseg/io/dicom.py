"""DICOM series to volumes: choose the series, stack its slices, decode and rescale each once.

The loader is ours because every reader tried drops an unreadable last slice in silence, and several sort by
InstanceNumber or invert MONOCHROME1; pydicom parses the files and decodes the pixels.
"""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import iter_pixels

from medseg.errors import InputError
from medseg.io.dicom_files import (
    DicomFile,
    Scan,
    Slice,
    UnreadableError,
    first_line,
    read_header,
    scan_folder,
    transfer_syntax,
)
from medseg.io.dicom_stack import Stack, stack_slices
from medseg.io.series import SeriesInfo, count_kinds, grid_fields
from medseg.progress import Track, silent
from medseg.values.geometry import make_volume

INT16 = np.iinfo(np.int16)
_SeriesKey = tuple[str, str]


def read_dicom(path: Path, series: str | None = None, track: Track = silent) -> Volume:
    """Read one DICOM series: every slice under a folder, or the one file given.

    Args:
        path: a folder (searched with its subfolders) or a DICOM file.
        series: SeriesInstanceUID, needed where a folder holds several image series.
        track: progress over headers and slices.

    Returns:
        Volume (slice, row, column), slices ascending along the normal; values after the modality rescale,
        int16 where they are whole numbers that fit, else float32. Padding stays as stored.

    Raises:
        InputError: no image series, several without a choice, or a slice that cannot be read.
        GeometryError: slices that are no even, rectangular stack.
    """
    scan = scan_path(path, track)
    files = choose_series(scan, path, series)
    check_readable(files, scan)
    stack = stack_files(files, str(path))
    array = read_pixels(stack, track)
    return make_volume(array, stack.grid.affine, str(path), stack.grid.frame_of_reference_uid)


def list_dicom(path: Path, track: Track = silent) -> list[SeriesInfo]:
    """Describe every series under a folder, or in one file, images first; no voxel is read.

    Raises:
        InputError: no DICOM at all.
    """
    scan = scan_path(path, track)
    if not scan.files and not scan.broken:
        raise _nothing_found(scan, path)
    infos = []
    for key, files in _by_series(scan.files).items():
        images = [file for file in files if not file.aside]
        if images:
            infos.append(_describe_images(images, scan, str(path)))
        for reason in dict.fromkeys(file.aside for file in files if file.aside):
            aside = [file for file in files if file.aside == reason]
            infos.append(
                SeriesInfo(
                    uid=key[0],
                    modality=aside[0].modality,
                    number=aside[0].number,
                    description=aside[0].description,
                    n_slices=len(aside),
                    is_image=False,
                    problem=reason,
                    files=tuple(file.path for file in aside),
                )
            )
    known = {p for info in infos if info.is_image for p in info.files}
    lost = [entry for entry in scan.broken if not any(p.parent == entry[0].parent for p in known)]
    infos += [SeriesInfo(uid="", modality="", is_image=False, problem=reason, files=(p,)) for p, reason in lost]
    for reason in dict.fromkeys(reason for _, reason in scan.others):
        paths = tuple(p for p, why in scan.others if why == reason)
        infos.append(SeriesInfo(uid="", modality="", is_image=False, problem=reason, files=paths))
    return sorted(infos, key=lambda info: not info.is_image)


def _describe_images(files: list[DicomFile], scan: Scan, source: str) -> SeriesInfo:
    fields: dict = {"n_slices": sum(max(len(file.slices), 1) for file in files)}
    paths = tuple(file.path for file in files)
    problem = ""
    try:
        check_readable(files, scan)
        stack = stack_files(files, source)
        fields = grid_fields(stack.grid)
        paths = tuple(dict.fromkeys(item.path for item in stack.slices))
    except InputError as error:
        problem = str(error)
    first = files[0]
    return SeriesInfo(
        uid=first.series_uid, modality=first.modality, number=first.number, description=first.description,
        problem=problem, files=paths, **fields,
    )  # fmt: skip


def scan_path(path: Path, track: Track = silent) -> Scan:
    """Read the headers of a folder, or of one file.

    Raises:
        InputError: the one file cannot be read as DICOM.
    """
    if path.is_dir():
        return scan_folder(path, track)
    try:
        return Scan(files=(read_header(path),), broken=(), others=())
    except UnreadableError as error:
        raise InputError(f"{path}: {error}; expected a DICOM file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror})") from None


def _by_series(files: Sequence[DicomFile]) -> dict[_SeriesKey, list[DicomFile]]:
    """Group files by SeriesInstanceUID; files without one belong to their folder's."""
    groups: dict[_SeriesKey, list[DicomFile]] = {}
    for file in files:
        key = (file.series_uid, "" if file.series_uid else str(file.path.parent))
        groups.setdefault(key, []).append(file)
    return groups


def choose_series(scan: Scan, path: Path, series: str | None) -> list[DicomFile]:
    """Return the image files of the one series wanted.

    Raises:
        InputError: there is none, or several and ``series`` names none of them.
    """
    groups = _by_series([file for file in scan.files if not file.aside])
    if not groups:
        raise _nothing_found(scan, path)
    listing = "; ".join(_headline(key, files) for key, files in groups.items())
    if series is not None:
        chosen = [files for (uid, _), files in groups.items() if uid == series]
        if not chosen:
            raise InputError(f"{path}: no image series {series}; it holds {listing}")
        return chosen[0]
    if len(groups) > 1:
        raise InputError(f"{path}: {len(groups)} image series, expected one; choose with --series UID: {listing}")
    return next(iter(groups.values()))


def _headline(key: _SeriesKey, files: list[DicomFile]) -> str:
    uid, folder = key
    number = "" if files[0].number is None else f" number {files[0].number},"
    return f"{uid or 'no UID, in ' + folder} ({files[0].modality or 'no modality'},{number} {len(files)} files)"


def _nothing_found(scan: Scan, path: Path) -> InputError:
    if scan.broken:
        return InputError(f"{scan.broken[0][0]}: {scan.broken[0][1]}; {path} holds no readable image series")
    aside = [file.aside for file in scan.files] + [reason for _, reason in scan.others]
    if not aside:
        return InputError(f"{path}: the folder is empty, expected DICOM files")
    return InputError(f"{path}: no DICOM image series among {len(aside)} files ({count_kinds(aside)})")


def check_readable(files: Sequence[DicomFile], scan: Scan) -> None:
    """Refuse a series with a damaged slice, or with a broken file beside its slices that may be one.

    A broken file in a folder that holds other series only belongs to those.

    Raises:
        InputError: names the file and what is wrong with it.
    """
    for file in files:
        if file.damage:
            raise InputError(f"{file.path}: {file.damage}; copy the file again, a series is read whole or not at all")
    ours = {file.path.parent for file in files}
    elsewhere = {file.path.parent for file in scan.files} - ours
    for path, reason in scan.broken:
        if path.parent not in elsewhere:
            raise InputError(f"{path}: {reason}; copy the file again or remove it if it is no slice of this series")


def stack_files(files: Sequence[DicomFile], source: str) -> Stack:
    """Stack the slices of one series (see `stack_slices`)."""
    return stack_slices([item for file in files for item in file.slices], source, _same_content)


def _same_content(a: Slice, b: Slice) -> bool:
    if (a.slope, a.intercept) != (b.slope, b.intercept):
        return False
    if a.frame == b.frame and a.path.read_bytes() == b.path.read_bytes():
        return True
    return bool(np.array_equal(next(decode([a])), next(decode([b]))))


def read_pixels(stack: Stack, track: Track = silent) -> NDArray[np.int16] | NDArray[np.float32]:
    """Decode every slice of a stack once, into its place in one array (slice, row, column)."""
    whole = all(float(n or 0).is_integer() for item in stack.slices for n in (item.slope, item.intercept))
    shape = stack.grid.spatial_shape
    try:
        array: NDArray = np.empty(shape, np.int16 if whole else np.float32)
    except MemoryError:
        raise InputError(f"{stack.slices[0].path}: a volume of {shape} voxels does not fit into memory") from None
    places: dict[Path, list[int]] = {}
    for index, item in enumerate(stack.slices):
        places.setdefault(item.path, []).append(index)

    def planes() -> Iterator[tuple[int, NDArray]]:
        for indices in places.values():
            yield from zip(indices, decode([stack.slices[i] for i in indices]), strict=True)

    for index, stored in track(planes(), "reading slices", total=len(stack.slices)):
        item = stack.slices[index]
        if stored.shape != (item.rows, item.columns):
            raise InputError(f"{item.name}: pixels {stored.shape}, the header says {(item.rows, item.columns)}")
        if array.dtype == np.int16:
            wide: type[np.signedinteger] = np.int64 if stored.dtype.itemsize > 2 else np.int32
            values = stored.astype(wide) * int(item.slope or 1) + int(item.intercept or 0)
            if values.min() < INT16.min or values.max() > INT16.max:
                array = array.astype(np.float32)  # rare: 16 bits unsigned and full; float32 holds them exactly
            array[index] = values
        else:
            array[index] = stored.astype(np.float64) * (item.slope or 1.0) + (item.intercept or 0.0)
    return array


def decode(planes: Sequence[Slice]) -> Iterator[NDArray]:
    """Yield the stored values [rows, columns] of planes of one file.

    Raises:
        InputError: the pixel data is broken, too short, or in a syntax that cannot be decoded.
    """
    path, parse_first, frames = planes[0].path, planes[0].parse_first, [item.frame for item in planes]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source: Path | Dataset = path
            if parse_first:
                source = dcmread(path, force=True)
                syntax = transfer_syntax(source)
                source.file_meta = FileMetaDataset()
                source.file_meta.TransferSyntaxUID = syntax
            yield from iter_pixels(source, indices=frames, raw=True)
    except Exception as error:  # decoders raise whatever a damaged byte leads to
        raise InputError(f"{path}: the pixel data cannot be decoded ({first_line(error)})") from None
