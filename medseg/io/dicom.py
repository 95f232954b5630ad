"""DICOM series to volumes: choose the series, stack its slices, decode and rescale each once.

The loader is ours because every reader tried drops an unreadable last slice in silence, and several sort by
InstanceNumber or invert MONOCHROME1; pydicom parses the files and decodes the pixels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray

from medseg.errors import InputError
from medseg.io.dicom_files import DicomFile, Scan, scan_files, scan_folder
from medseg.io.dicom_header import Slice
from medseg.io.dicom_pixels import decode
from medseg.io.dicom_resampling import resample_planes
from medseg.io.dicom_stack import Stack, stack_slices
from medseg.io.image_values import check_whole
from medseg.io.series import SeriesInfo, count_kinds, grid_fields
from medseg.progress import Note, Track, silent, unheard
from medseg.values.geometry import make_volume

INT16 = np.iinfo(np.int16)
#: How many files of one reason a remark names.
NAMED = 20
#: Paths whose headers `keep_scans` keeps.
KEPT_SCANS = 4
_SeriesKey = tuple[str, str]


def read_dicom(
    path: Path | Sequence[Path],
    series: str | None = None,
    track: Track = silent,
    *,
    resample_uneven: bool = False,
    resample_tilt: bool = False,
    note: Note = unheard,
) -> Volume:
    """Read one DICOM series: every slice under a folder, or the files given.

    Args:
        path: a folder (searched with its subfolders), a DICOM file, or several files.
        series: SeriesInstanceUID, needed where there are several image series.
        track: progress over headers and slices.
        resample_uneven: bring unevenly spaced slices to an even grid (see `dicom_resampling`).
        resample_tilt: straighten a stack that is sheared by a tilted gantry.
        note: told what was set aside, by name.

    Returns:
        Volume (slice, row, column), slices ascending along the normal; values after the modality rescale,
        int16 where they are whole numbers that fit, else float32. Padding is rescaled like any value.

    Raises:
        InputError: no image series, several without a choice, or a slice that cannot be read.
        GeometryError: slices that are no even, rectangular stack.
    """
    scan = scan_path(path, track)
    source = source_name(path)
    files = choose_series(scan, source, series)
    check_readable(files, scan)
    _tell_aside(scan, note)
    if any(item.mosaic for file in files for item in file.slices):
        note(f"{source}: a mosaic shows a whole volume as tiles of one plane; it is read as that plane")
    stack = stack_files(files, source, resample_uneven=resample_uneven, resample_tilt=resample_tilt)
    array: NDArray = read_pixels(stack, track)
    if stack.resampling is not None:
        array = resample_planes(array, stack.resampling)
    return make_volume(array, stack.grid.affine, source, stack.grid.frame_of_reference_uid)


def source_name(path: Path | Sequence[Path]) -> str:
    """Return what to call the input in a message."""
    return str(path) if isinstance(path, Path) else f"{path[0]} and {len(path) - 1} more files"


def _tell_aside(scan: Scan, note: Note) -> None:
    """Name the files set aside, one remark a reason; the broken ones are of other series (`check_readable`)."""
    aside = [(file.path, file.aside) for file in scan.files if file.aside]
    broken = [(path, f"{reason}; beside another series") for path, reason in scan.broken]
    for reason, paths in group_by_reason([*aside, *scan.others, *broken]).items():
        names = ", ".join(path.name for path in paths[:NAMED])
        more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
        note(f"set aside: {names}{more} ({reason})")


def group_by_reason(files: Sequence[tuple[Path, str]]) -> dict[str, list[Path]]:
    """Gather paths by why they were set aside."""
    groups: dict[str, list[Path]] = {}
    for path, reason in files:
        groups.setdefault(reason, []).append(path)
    return groups


def list_dicom(path: Path | Sequence[Path], track: Track = silent) -> list[SeriesInfo]:
    """Describe every series under a folder, or in one file, images first; no voxel is read.

    Raises:
        InputError: no DICOM at all.
    """
    scan = scan_path(path, track)
    if not scan.files and not scan.broken:
        raise _nothing_found(scan, source_name(path))
    infos = []
    for key, files in _by_series(scan.files).items():
        images = [file for file in files if not file.aside]
        if images:
            infos.append(_describe_images(images, scan, source_name(path)))
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
    for reason, paths in group_by_reason(scan.others).items():
        infos.append(SeriesInfo(uid="", modality="", is_image=False, problem=reason, files=tuple(paths)))
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


_kept: ContextVar[dict[tuple[Path, ...], Scan] | None] = ContextVar("_kept", default=None)


@contextmanager
def keep_scans() -> Iterator[None]:
    """Read the headers of a path once within this block, however many functions ask for them.

    The last few paths are kept, so a block around a cohort does not grow. The files must not change meanwhile. A block
    within a block is part of it.
    """
    token = _kept.set({}) if _kept.get() is None else None
    try:
        yield
    finally:
        if token is not None:
            _kept.reset(token)


def scan_path(path: Path | Sequence[Path], track: Track = silent) -> Scan:
    """Read the headers of a folder, or of the files given; within `keep_scans` only the first time.

    Raises:
        InputError: a file that was named cannot be read as DICOM.
    """
    kept, key = _kept.get(), (path,) if isinstance(path, Path) else tuple(path)
    if kept is not None and key in kept:
        return kept[key]
    if not isinstance(path, Path):
        scan = scan_files(path, track)
    else:
        scan = scan_folder(path, track) if path.is_dir() else scan_files([path], track)
    if kept is not None:
        kept[key] = scan
        if len(kept) > KEPT_SCANS:
            del kept[next(iter(kept))]
    return scan


def _by_series(files: Sequence[DicomFile]) -> dict[_SeriesKey, list[DicomFile]]:
    """Group files by SeriesInstanceUID; files without one belong to their folder's."""
    groups: dict[_SeriesKey, list[DicomFile]] = {}
    for file in files:
        key = (file.series_uid, "" if file.series_uid else str(file.path.parent))
        groups.setdefault(key, []).append(file)
    return groups


def choose_series(scan: Scan, source: str | Path, series: str | None) -> list[DicomFile]:
    """Return the image files of the one series wanted.

    Raises:
        InputError: there is none, or several and ``series`` names none of them.
    """
    groups = _by_series([file for file in scan.files if not file.aside])
    if not groups:
        raise _nothing_found(scan, source)
    listing = "; ".join(_headline(key, files) for key, files in groups.items())
    if series is not None:
        chosen = [files for (uid, _), files in groups.items() if uid == series]
        if not chosen:
            raise InputError(f"{source}: no image series {series}; it holds {listing}")
        return chosen[0]
    if len(groups) > 1:
        raise InputError(
            f"{source}: {len(groups)} image series, expected one; give each a folder of its own, or choose with "
            f"--series UID where there is that option: {listing}"
        )
    return next(iter(groups.values()))


def _headline(key: _SeriesKey, files: list[DicomFile]) -> str:
    uid, folder = key
    number = "" if files[0].number is None else f" number {files[0].number},"
    return f"{uid or 'no UID, in ' + folder} ({files[0].modality or 'no modality'},{number} {len(files)} files)"


def _nothing_found(scan: Scan, source: str | Path) -> InputError:
    if scan.broken:
        return InputError(f"{scan.broken[0][0]}: {scan.broken[0][1]}; {source} holds no readable image series")
    aside = [file.aside for file in scan.files] + [reason for _, reason in scan.others]
    if not aside:
        return InputError(f"{source}: the folder is empty, expected DICOM files")
    first = [file.path for file in scan.files] + [path for path, _ in scan.others]
    return InputError(
        f"{source}: no DICOM image series among {len(aside)} files ({count_kinds(aside)}), the first is {first[0].name}"
    )


def check_readable(files: Sequence[DicomFile], scan: Scan) -> None:
    """Refuse a series with a damaged slice, or with a broken file beside its slices that may be one.

    A broken file in a folder that holds slices of other series only belongs to those.

    Raises:
        InputError: names the file and what is wrong with it.
    """
    for file in files:
        if file.damage:
            raise InputError(f"{file.path}: {file.damage}; copy the file again, a series is read whole or not at all")
    ours = {file.path.parent for file in files}
    elsewhere = {file.path.parent for file in scan.files if not file.aside} - ours
    for path, reason in scan.broken:
        if path.parent not in elsewhere:
            raise InputError(f"{path}: {reason}; copy the file again or remove it if it is no slice of this series")


def stack_files(
    files: Sequence[DicomFile], source: str, *, resample_uneven: bool = False, resample_tilt: bool = False
) -> Stack:
    """Stack the slices of one series (see `stack_slices`)."""
    slices = [item for file in files for item in file.slices]
    return stack_slices(slices, source, _same_content, resample_uneven=resample_uneven, resample_tilt=resample_tilt)


def _same_content(a: Slice, b: Slice) -> bool:
    if (a.slope, a.intercept) != (b.slope, b.intercept):
        return False
    if a.frame == b.frame and a.path.read_bytes() == b.path.read_bytes():
        return True
    one, other = (next(decode(item.path, item.layout, [item.frame])) for item in (a, b))
    return bool(np.array_equal(one, other))


def read_pixels(stack: Stack, track: Track = silent) -> NDArray[np.int16] | NDArray[np.float32]:
    """Decode every slice of a stack once, into its place in one array (slice, row, column)."""
    whole = all(float(n or 0).is_integer() for item in stack.slices for n in (item.slope, item.intercept))
    shape = (len(stack.slices), stack.slices[0].rows, stack.slices[0].columns)
    try:
        array: NDArray = np.empty(shape, np.int16 if whole else np.float32)
    except MemoryError:
        raise InputError(f"{stack.slices[0].path}: a volume of {shape} voxels does not fit into memory") from None
    places: dict[Path, list[int]] = {}
    for index, item in enumerate(stack.slices):
        places.setdefault(item.path, []).append(index)

    def planes() -> Iterator[tuple[int, NDArray]]:
        for path, indices in places.items():
            frames = [stack.slices[i].frame for i in indices]
            yield from zip(indices, decode(path, stack.slices[indices[0]].layout, frames), strict=True)

    for index, stored in track(planes(), "reading slices", total=len(stack.slices)):
        item = stack.slices[index]
        if not whole:
            array[index] = stored.astype(np.float64) * (item.slope or 1.0) + (item.intercept or 0.0)
            continue
        slope, intercept = int(item.slope or 1), int(item.intercept or 0)
        if array.dtype == np.int16 and _fits_int16(item, stored, slope, intercept):
            # Modulo 2**16, which changes nothing because the results fit.
            values = stored.astype(np.int16, copy=False)
            np.add(values if slope == 1 else values * np.int16(slope), np.int16(intercept), out=array[index])
            continue
        if array.dtype == np.int16:
            array = array.astype(np.float32)  # rare: 16 bits unsigned and full; float32 holds them exactly
        wide = stored.astype(np.int64) * slope + intercept
        check_whole(wide, item.name)
        array[index] = wide
    return array


def _fits_int16(item: Slice, stored: NDArray, slope: int, intercept: int) -> bool:
    """Tell whether rescaled values fit: whatever the stored bits hold, else what they do hold."""

    def fits(limits: tuple[int, int]) -> bool:
        ends = [value * slope + intercept for value in limits]
        return min(ends) >= INT16.min and max(ends) <= INT16.max

    if max(abs(slope), abs(intercept)) > INT16.max:
        return False
    return fits(item.layout.limits) or fits((int(stored.min()), int(stored.max())))
