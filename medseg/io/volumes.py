"""The way in and the way out of volumes, by suffix and content."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from highdicom import Volume

from medseg.errors import GeometryError, InputError
from medseg.io.archive import unpacked
from medseg.io.dicom import list_dicom, read_dicom
from medseg.io.itk import ITK_SUFFIXES, read_itk, read_itk_grid
from medseg.io.itk_header import read_header
from medseg.io.itk_writer import write_itk
from medseg.io.nifti import (
    NIFTI_SUFFIXES,
    check_nifti_size,
    count_nifti_channels,
    read_nifti,
    read_nifti_grid,
    read_nifti_images,
    write_nifti,
)
from medseg.io.series import SeriesInfo, grid_fields
from medseg.progress import Note, Track, silent, unheard

#: One file each; .nhdr and .mhd keep their voxels in a second file and cannot appear whole or not at all.
WRITABLE_SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd", ".mha")


def read_volume(
    path: Path | str | Sequence[Path | str],
    *,
    series: str | None = None,
    resample_uneven: bool = False,
    resample_tilt: bool = False,
    nifti_form: str | None = None,
    track: Track = silent,
    note: Note = unheard,
) -> Volume:
    """Read an image: a DICOM folder, file, list of files or zip, NIfTI, NRRD or MetaImage.

    Args:
        path: a folder is searched with its subfolders; a single DICOM file is read alone.
        series: SeriesInstanceUID, needed where a DICOM folder holds several image series.
        resample_uneven: bring unevenly spaced DICOM slices to an even grid by linear interpolation between their true
            positions, instead of refusing them; an even series is returned as it is.
        resample_tilt: the same for slices that a tilted gantry has shifted against each other.
        nifti_form: ``sform`` or ``qform``, needed where the two disagree.
        track: wraps the loops over headers and slices.
        note: told in one line a time what was set aside, by name.

    Returns:
        highdicom Volume, array (slice, row, column), world LPS in mm; CT in HU, int16 where the values are whole
        numbers that fit, else float32. DICOM slices ascend along their normal; other files keep their axes.

    Raises:
        InputError: nothing there, no image, several series without a choice, a damaged or truncated file, other
            than three axes, NaN or infinite values, an option that does not fit the format.
        GeometryError: a position in the patient that is missing, broken, uneven, tilted or contradictory.

    Example:
        >>> volume = read_volume("study/")  # doctest: +SKIP
        >>> volume.array.shape, volume.spacing  # doctest: +SKIP
        ((20, 512, 512), (2.0, 0.9765625, 0.9765625))
    """
    paths = _existing(path)
    kind = _kind(paths)
    if kind not in ("dicom", "zip") and (series is not None or resample_uneven or resample_tilt):
        given, option = "a series was chosen", "--series"
        if series is None:
            given, option = "resampling was asked for", "--resample-uneven and --resample-tilt"
        raise InputError(f"{paths[0]}: {given}, but only DICOM has series; leave {option} away")
    if kind != "nifti" and nifti_form is not None:
        raise InputError(f"{paths[0]}: no NIfTI file, so it has no sform and qform; leave --nifti-form away")
    if kind == "nifti":
        return read_nifti(paths[0], nifti_form)
    if kind == "itk":
        return read_itk(paths[0])
    if kind == "zip":
        with unpacked(paths[0]) as folder:
            return read_dicom(
                folder, series, track, resample_uneven=resample_uneven, resample_tilt=resample_tilt, note=note
            )
    source = paths if len(paths) > 1 else paths[0]
    return read_dicom(source, series, track, resample_uneven=resample_uneven, resample_tilt=resample_tilt, note=note)


def read_channels(
    path: Path | str, *, series: str | None = None, nifti_form: str | None = None, note: Note = unheard
) -> tuple[Volume, ...]:
    """Read an image that may hold several channels: each volume of a 4-D NIfTI file is one, as in the Decathlon.

    Args:
        path: see `read_volume`; files of other formats hold one channel.
        series: SeriesInstanceUID, needed where a DICOM folder holds several image series.
        nifti_form: see `read_volume`.
        note: told what was set aside.

    Returns:
        A volume per channel, in the order of the file, all on one grid.

    Raises:
        InputError, GeometryError: see `read_volume`.
    """
    paths = _existing(path)
    if _kind(paths) == "nifti":
        return read_nifti_images(paths[0], nifti_form)
    return (read_volume(path, series=series, nifti_form=nifti_form, note=note),)


def count_channels(path: Path | str) -> int:
    """Return how many channels `read_channels` finds in an image: those of a 4-D NIfTI file, else one."""
    paths = _existing(path)
    return count_nifti_channels(paths[0]) if _kind(paths) == "nifti" else 1


def list_series(path: Path | str | Sequence[Path | str], *, track: Track = silent) -> list[SeriesInfo]:
    """Describe every series of a DICOM folder, file or zip, or the one image of another file; no voxel is kept.

    Whether the voxels are all there is checked. A series whose geometry is refused is listed with its ``problem``.

    Raises:
        InputError: nothing there, or nothing that is known.
    """
    paths = _existing(path)
    kind, path = _kind(paths), paths[0]
    if kind in ("nifti", "itk"):
        return [_list_file(path, kind)]
    if kind == "zip":
        with unpacked(path) as folder:
            return [
                replace(
                    info,
                    files=tuple(path / file.relative_to(folder) for file in info.files),
                    problem=info.problem.replace(str(folder), str(path)),
                )
                for info in list_dicom(folder, track)
            ]
    return list_dicom(paths if len(paths) > 1 else path, track)


def _list_file(path: Path, kind: str) -> SeriesInfo:
    name = "NIfTI" if kind == "nifti" else ("NRRD" if read_header(path).nrrd else "MetaImage")
    try:
        if kind == "nifti":
            check_nifti_size(path)
        fields = grid_fields(read_nifti_grid(path) if kind == "nifti" else read_itk_grid(path))
    except GeometryError as error:
        return SeriesInfo(uid="", modality=name, problem=str(error), files=(path,))
    return SeriesInfo(uid="", modality=name, files=(path,), **fields)


def write_volume(path: Path | str, volume: Volume, *, description: str = "") -> None:
    """Write a volume on its own grid; .nii, .nii.gz, .nrrd or .mha by the suffix.

    The file appears whole or not at all. ``description`` is the only text in its header.

    Raises:
        InputError: another suffix, a type the format lacks, or a place that cannot be written.
        GeometryError: a broken affine.
    """
    path = Path(path)
    check_output(path)
    if _has_suffix(path, NIFTI_SUFFIXES):
        write_nifti(path, volume, description=description)
    else:
        write_itk(path, volume, description)


def check_output(path: Path) -> None:
    """Refuse a path that `write_volume` could not write, before time is spent on reading.

    Raises:
        InputError: another suffix, or a folder of that name.
    """
    if not _has_suffix(path, WRITABLE_SUFFIXES):
        raise InputError(f"{path}: cannot write this format, expected one of {', '.join(WRITABLE_SUFFIXES)}")
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected the name of a file to write")


def _has_suffix(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.name.lower().endswith(suffixes)


def _existing(path: Path | str | Sequence[Path | str]) -> list[Path]:
    """Return what was given as paths to files and at most one folder.

    Raises:
        InputError: nothing there, no file or folder, or several that are not all files.
    """
    paths = [Path(path)] if isinstance(path, Path | str) else [Path(item) for item in path]
    if not paths:
        raise InputError("no input: expected at least one file or folder")
    for item in paths:
        if not item.exists():
            raise InputError(f"{item}: no such file or folder")
        if not (item.is_file() or (item.is_dir() and len(paths) == 1)):
            raise InputError(f"{item}: no regular file; expected one folder, or one or more files")
    return paths


def _kind(paths: list[Path]) -> str:
    """Return ``dicom``, ``zip``, ``nifti`` or ``itk`` by the suffix, and by the content where it tells nothing."""
    path = paths[0]
    if path.is_dir() or len(paths) > 1:
        return "dicom"
    if _has_suffix(path, NIFTI_SUFFIXES):
        return "nifti"
    if _has_suffix(path, ITK_SUFFIXES):
        return "itk"
    if path.suffix.lower() == ".zip":
        return "zip"
    try:
        with path.open("rb") as stream:
            start = stream.read(352)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror})") from None
    if start.startswith(b"PK\3\4"):
        return "zip"
    if start.startswith(b"NRRD0") or start.startswith((b"ObjectType", b"NDims")):
        return "itk"
    if start[344:347] in (b"n+1", b"ni1") or start[4:7] in (b"n+2", b"ni2"):
        return "nifti"
    return "dicom"
