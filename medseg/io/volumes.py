"""The way in and the way out of volumes, by suffix and content."""

import zipfile
from dataclasses import replace
from pathlib import Path

from highdicom import Volume

from medseg.errors import InputError
from medseg.io.archive import unpacked
from medseg.io.dicom import list_dicom, read_dicom
from medseg.io.itk import ITK_SUFFIXES, read_itk, read_itk_grid
from medseg.io.itk_writer import write_itk
from medseg.io.nifti import NIFTI_SUFFIXES, read_nifti, read_nifti_grid, write_nifti
from medseg.io.series import SeriesInfo, grid_fields
from medseg.progress import Track, silent

#: One file each; .nhdr and .mhd keep their voxels in a second file and cannot appear whole or not at all.
WRITABLE_SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd", ".mha")


def read_volume(path: Path | str, *, series: str | None = None, track: Track = silent) -> Volume:
    """Read an image: a DICOM folder or file, a zip of one, NIfTI, NRRD or MetaImage.

    Args:
        path: a folder is searched with its subfolders; a single DICOM file is read alone.
        series: SeriesInstanceUID, needed where a DICOM folder holds several image series.
        track: wraps the loops over headers and slices.

    Returns:
        highdicom Volume, array (slice, row, column), world LPS in mm; CT in HU, int16 where the values are whole
        numbers that fit, else float32. DICOM slices ascend along their normal; other files keep their axes.

    Raises:
        InputError: nothing there, no image, several series without a choice, a damaged or truncated file, other
            than three axes, NaN or infinite values.
        GeometryError: a position in the patient that is missing, broken, uneven, tilted or contradictory.

    Example:
        >>> volume = read_volume("study/")  # doctest: +SKIP
        >>> volume.array.shape, volume.spacing  # doctest: +SKIP
        ((20, 512, 512), (2.0, 0.9765625, 0.9765625))
    """
    path = _existing(path)
    kind = _kind(path)
    if series is not None and kind not in ("dicom", "zip"):
        raise InputError(f"{path}: a series was chosen, but only DICOM has series; leave --series away")
    if kind == "nifti":
        return read_nifti(path)
    if kind == "itk":
        return read_itk(path)
    if kind == "zip":
        with unpacked(path) as folder:
            return read_dicom(folder, series, track)
    return read_dicom(path, series, track)


def list_series(path: Path | str, *, track: Track = silent) -> list[SeriesInfo]:
    """Describe every series of a DICOM folder, file or zip, or the one image of another file; no voxel is read.

    A series whose geometry is refused is listed with its ``problem``.

    Raises:
        InputError: nothing there, or nothing that is known.
    """
    path = _existing(path)
    kind = _kind(path)
    if kind == "nifti":
        return [SeriesInfo(uid="", modality="NIfTI", files=(path,), **grid_fields(read_nifti_grid(path)))]
    if kind == "itk":
        name = "NRRD" if path.suffix.lower() in (".nrrd", ".nhdr") else "MetaImage"
        return [SeriesInfo(uid="", modality=name, files=(path,), **grid_fields(read_itk_grid(path)))]
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
    return list_dicom(path, track)


def write_volume(path: Path | str, volume: Volume) -> None:
    """Write a volume on its own grid; .nii, .nii.gz, .nrrd or .mha by the suffix.

    The file appears whole or not at all.

    Raises:
        InputError: another suffix, a type the format lacks, or a place that cannot be written.
        GeometryError: a broken affine.
    """
    path = Path(path)
    check_output(path)
    if _has_suffix(path, NIFTI_SUFFIXES):
        write_nifti(path, volume)
    else:
        write_itk(path, volume)


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


def _existing(path: Path | str) -> Path:
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    return path


def _kind(path: Path) -> str:
    if path.is_dir():
        return "dicom"
    if _has_suffix(path, NIFTI_SUFFIXES):
        return "nifti"
    if _has_suffix(path, ITK_SUFFIXES):
        return "itk"
    return "zip" if path.suffix.lower() == ".zip" or zipfile.is_zipfile(path) else "dicom"
