"""NIfTI files, and the only place where RAS exists.

NIfTI stores voxels as (i, j, k) with i fastest and its affine in RAS; in memory the same bytes are an array
(k, j, i), so the affine's columns are reversed and its first two rows negated. Header fields are named as in
the NIfTI-1 standard (nifti1.h, https://nifti.nimh.nih.gov/nifti-1).
"""

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from highdicom import Volume, VolumeGeometry
from numpy.typing import NDArray

from medseg.errors import ConfigError, GeometryError, InputError
from medseg.io.atomic import atomic_path
from medseg.io.image_values import to_file, to_image
from medseg.values.geometry import check_affine, check_volume, corners_of, make_volume

NIFTI_SUFFIXES = (".nii", ".nii.gz")
#: How far sform and qform may put a corner of the volume apart. The qform is a float32 quaternion whose
#: real part is derived: near half turns that alone moves the far corner by up to 0.25 mm.
FORMS_AGREE_MM = 0.3
#: Millimetres per unit of xyzt_units; "unknown" is what many writers leave and is taken as millimetres.
UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
#: Deflate cannot shrink data more than this (zlib's technical details), so a header that asks for more lies.
MAX_DEFLATE = 1032
CHUNK = 1 << 24


@dataclass(frozen=True, kw_only=True)
class NiftiHeader:
    """What a NIfTI header says, checked: grid in LPS mm, type, scaling (None: none), data offset, volumes in all."""

    grid: VolumeGeometry
    dtype: np.dtype
    slope: float | None
    intercept: float | None
    offset: int
    channels: int = 1


def read_nifti(path: Path, form: str | None = None) -> Volume:
    """Read an image; ``form`` says which of ``sform`` and ``qform`` to believe where they disagree.

    Returns:
        Volume (slice, row, column) = (k, j, i); int16 where the scaled values are whole numbers of an integer
        type and fit, else float32.

    Raises:
        InputError: not NIfTI, truncated, a wrong checksum, colours, several volumes, NaN or infinite values.
        GeometryError: no sform and no qform, or two that disagree; a broken affine or unit.
    """
    header, stored = _read(path, form)
    return make_volume(to_image(_scaled(stored, header), str(path)), header.grid.affine, str(path))


def read_nifti_labels(path: Path) -> Volume:
    """Read a label map or probabilities as stored: scaled, but with no type of its own (see `read_nifti`)."""
    header, stored = _read(path)
    return make_volume(_scaled(stored, header), header.grid.affine, str(path))


def read_nifti_grid(path: Path) -> VolumeGeometry:
    """Read the grid alone."""
    with _open(path) as stream:
        return _parse_header(stream, path, None).grid


def count_nifti_channels(path: Path) -> int:
    """Return how many volumes a file holds along its fourth axis."""
    with _open(path) as stream:
        return _parse_header(stream, path, None, several=True).channels


def read_nifti_channels(path: Path, form: str | None = None) -> Iterator[Volume]:
    """Yield the volumes along the fourth axis one after the other, as stored (see `read_nifti_labels`)."""
    with _open(path) as stream:
        header = _parse_header(stream, path, form, several=True)
        _seek_voxels(stream, header, path)
        for _ in range(header.channels):
            yield make_volume(_scaled(_read_next(stream, header, path), header), header.grid.affine, str(path))
        _check_rest(stream, header, path)


def read_nifti_images(path: Path, form: str | None = None) -> tuple[Volume, ...]:
    """Read every volume along the fourth axis as an image (see `read_nifti`); one where the file has three axes."""
    return tuple(
        make_volume(to_image(volume.array, str(path)), volume.affine, str(path))
        for volume in read_nifti_channels(path, form)
    )


def write_nifti(path: Path, volume: Volume, *, label_table: bytes | None = None, description: str = "") -> None:
    """Write a volume on its own grid: sform and qform with code 1 (scanner), millimetres, no scaling.

    The type is kept; booleans become uint8. The same volume gives the same bytes. With ``label_table`` (Caret XML,
    extension code 30) the file is marked as a label map (intent 1002). The header's texts are empty but for
    ``description`` (descrip, at most 80 bytes of UTF-8).

    Raises:
        InputError: a type that NIfTI lacks, a longer description, or a file that cannot be written.
    """
    import nibabel as nib

    volume = check_volume(volume, str(path))
    array = to_file(volume.array, str(path))
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine[:, [2, 1, 0, 3]]
    kind = nib.Nifti1Image if max(array.shape) <= np.iinfo(np.int16).max else nib.Nifti2Image
    image = kind(array.transpose(2, 1, 0), affine, dtype=array.dtype)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    if len(description.encode()) > 80:
        raise InputError(f"{path}: a description of {len(description.encode())} bytes, at most 80 fit a NIfTI header")
    image.header["descrip"] = description.encode()
    if label_table is not None:
        image.header.set_intent("label")
        image.header.extensions.append(nib.nifti1.Nifti1Extension(30, label_table))
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def check_nifti_size(path: Path) -> None:
    """Check that all voxels are there; a gzipped file is unpacked to its end, nothing is kept.

    Raises:
        InputError: truncated, damaged, or more voxels than the header says.
    """
    with _open(path) as stream:
        header = _parse_header(stream, path, None)
        stream.seek(0)
        _check_length(path, header, sum(len(chunk) for chunk in iter(lambda: stream.read(CHUNK), b"")))


def _check_length(path: Path, header: NiftiHeader, length: int) -> None:
    """Compare the bytes of a file with what its header asks for; a little padding is none of our business."""
    plane = int(np.prod(header.grid.spatial_shape[1:])) * header.dtype.itemsize
    needed = header.offset + plane * header.grid.spatial_shape[0] * header.channels
    if length < needed:
        raise InputError(f"{path}: truncated: {length} bytes, but its header asks for {needed}; copy the file again")
    if length >= needed + plane:
        raise InputError(
            f"{path}: {length} bytes, but its header asks for {needed}; it holds more than the header describes"
        )


def _read(path: Path, form: str | None = None) -> tuple[NiftiHeader, NDArray]:
    with _open(path) as stream:
        header = _parse_header(stream, path, form)
        _seek_voxels(stream, header, path)
        stored = _read_next(stream, header, path)
        _check_rest(stream, header, path)
    return header, stored


def _seek_voxels(stream: BinaryIO, header: NiftiHeader, path: Path) -> None:
    count = int(np.prod(header.grid.spatial_shape)) * header.channels
    _check_size(path, header.offset + count * header.dtype.itemsize)
    stream.seek(header.offset)


def _read_next(stream: BinaryIO, header: NiftiHeader, path: Path) -> NDArray:
    """Read the next volume (k, j, i) of a stream, in the machine's byte order."""
    try:
        stored = np.empty(int(np.prod(header.grid.spatial_shape)), header.dtype)
    except MemoryError:
        raise InputError(f"{path}: {header.grid.spatial_shape} voxels do not fit into memory") from None
    buffer = memoryview(stored.view(np.uint8).data)
    done = 0
    while done < len(buffer):
        got = cast(io.RawIOBase, stream).readinto(buffer[done : done + CHUNK])
        if not got:
            raise InputError(f"{path}: truncated: {done} bytes of voxels, expected {len(buffer)}; copy it again")
        done += got
    stored = stored.reshape(header.grid.spatial_shape)
    return stored if stored.dtype.isnative else stored.astype(stored.dtype.newbyteorder("="))


def _check_rest(stream: BinaryIO, header: NiftiHeader, path: Path) -> None:
    """Read to the end, where gzip keeps its checksum, and check the length."""
    position = stream.tell()
    _check_length(path, header, position + sum(len(chunk) for chunk in iter(lambda: stream.read(CHUNK), b"")))


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Open plain or gzipped by content, and turn every way a stream can be broken into one line."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if packed:
                with gzip.GzipFile(fileobj=raw) as stream:
                    yield cast(BinaryIO, stream)
            else:
                yield raw
    except EOFError:
        raise InputError(f"{path}: truncated: the compressed data ends too early; copy the file again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: the compressed data is damaged ({error}); copy the file again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def _check_size(path: Path, needed: int) -> None:
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    size = os.path.getsize(path)
    if needed > size * (MAX_DEFLATE if packed else 1):
        raise InputError(f"{path}: truncated: {size} bytes, but its header asks for {needed}; copy the file again")


def _parse_header(stream: BinaryIO, path: Path, form: str | None, several: bool = False) -> NiftiHeader:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    start = stream.read(540)
    kinds = [(Nifti1Header, 348, start[344:348] in (b"n+1\0",)), (Nifti2Header, 540, start[4:8] == b"n+2\0")]
    found = [(kind, size) for kind, size, fits in kinds if fits and len(start) >= size]
    if start[344:347] == b"ni1" or start[4:7] == b"ni2":
        raise InputError(f"{path}: half of a pair of .hdr and .img; convert it to one .nii file")
    if not found:
        raise InputError(f"{path}: not a NIfTI file ({len(start)} bytes of header read), expected .nii or .nii.gz")
    kind, size = found[0]
    try:
        raw = kind(start[:size], check=False)
        dimensions = [int(n) for n in raw["dim"]]
        slope, intercept = raw.get_slope_inter()
        dtype = raw.get_data_dtype()
        offset = int(raw["vox_offset"]) or raw.single_vox_offset  # nifti1.h: 0 means straight after the header
    except Exception as error:  # nibabel's own errors are of many kinds; all mean a broken header
        raise InputError(f"{path}: broken NIfTI header ({error})") from None
    if np.isinf(float(raw["scl_slope"])) or (slope is not None and not np.isfinite((slope, intercept or 0.0)).all()):
        raise InputError(f"{path}: scl_slope {raw['scl_slope']} and scl_inter {raw['scl_inter']}, expected numbers")
    shape, channels = _shape(dimensions, path, several)
    if dtype.fields is not None or dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise InputError(f"{path}: voxels of type {dtype} (colours or complex numbers), expected one number a voxel")
    if offset < size:
        raise InputError(f"{path}: broken NIfTI header (data at byte {offset}, inside the header)")
    affine = _affine(raw, shape, path, form)
    grid = VolumeGeometry(check_affine(affine, shape, str(path)), shape, "PATIENT")
    return NiftiHeader(grid=grid, dtype=dtype, slope=slope, intercept=intercept, offset=offset, channels=channels)


def _shape(dimensions: list[int], path: Path, several: bool) -> tuple[tuple[int, int, int], int]:
    """Return (k, j, i) from the header's dim field, and how many volumes follow along the fourth axis."""
    axes = dimensions[1 : dimensions[0] + 1] if 1 <= dimensions[0] <= 7 else []
    if len(axes) < 3 or min(axes) < 1:
        raise InputError(f"{path}: {len(axes)} axes {axes}, expected a volume with three axes")
    volumes = int(np.prod([float(n) for n in axes[3:]]))
    if volumes != 1 and not (several and volumes == axes[3]):
        raise InputError(f"{path}: {volumes} volumes {axes}, expected one; split the file")
    return (axes[2], axes[1], axes[0]), volumes


def _affine(raw: Any, shape: tuple[int, int, int], path: Path, wanted: str | None) -> NDArray[np.float64]:
    """Return the LPS affine for (k, j, i) by the rules of sform and qform, or by the one that is wanted."""
    if wanted not in (None, "sform", "qform"):
        raise ConfigError(f"nifti form {wanted!r}: expected sform or qform")
    unit = int(raw["xyzt_units"]) & 0x07
    if unit not in UNITS_MM:
        raise GeometryError(f"{path}: unknown spatial unit code {unit}, expected metres, millimetres or micrometres")
    pixdim = raw["pixdim"][1:4].astype(float)
    if not (np.isfinite(pixdim).all() and pixdim.min() > 0):
        raise GeometryError(f"{path}: voxel spacing {pixdim.tolist()} in the header, expected three positive numbers")
    forms: list[NDArray[np.float64]] = []
    if int(raw["sform_code"]) > 0 and wanted != "qform":
        forms.append(np.array(raw.get_sform(), np.float64))
    if int(raw["qform_code"]) > 0 and wanted != "sform":
        qfac = -1.0 if float(raw["pixdim"][0]) < 0 else 1.0
        forms.append(_qform(raw, pixdim, qfac, path))
    if not forms and wanted is not None:
        raise GeometryError(f"{path}: the {wanted} was asked for and is not set; leave the choice to the file")
    if not forms:
        raise GeometryError(
            f"{path}: neither sform nor qform is set, so the place in the patient is unknown; write one of them first"
        )
    scale = np.diag([-UNITS_MM[unit], -UNITS_MM[unit], UNITS_MM[unit], 1.0])
    affines = [(scale @ form)[:, [2, 1, 0, 3]] for form in forms]
    for affine in affines:
        if not np.isfinite(affine).all():
            raise GeometryError(f"{path}: sform or qform holds values that are no finite numbers")
    if len(affines) == 2:
        apart = np.linalg.norm(corners_of(affines[0], shape) - corners_of(affines[1], shape), axis=1).max()
        if apart > FORMS_AGREE_MM:
            raise GeometryError(
                f"{path}: sform and qform disagree by {apart:.2f} mm at a corner of the volume; decide which is right "
                "with --nifti-form sform or --nifti-form qform (predict, convert)"
            )
    return affines[0]


def _qform(raw: Any, pixdim: NDArray[np.float64], qfac: float, path: Path) -> NDArray[np.float64]:
    """Return the qform affine (nifti1.h, method 2); a qfac of 0 counts as 1, as the standard says."""
    from nibabel.quaternions import quat2mat

    b, c, d = (float(raw[key]) for key in ("quatern_b", "quatern_c", "quatern_d"))
    rest = 1.0 - (b * b + c * c + d * d)
    if not rest > -1e-5:
        raise GeometryError(f"{path}: the qform's quaternion ({b}, {c}, {d}) is longer than 1")
    form = np.eye(4)
    form[:3, :3] = quat2mat((np.sqrt(max(rest, 0.0)), b, c, d)) * (pixdim * (1.0, 1.0, qfac))
    form[:3, 3] = [float(raw[f"qoffset_{axis}"]) for axis in "xyz"]
    return form


def _scaled(stored: NDArray, header: NiftiHeader) -> NDArray:
    """Apply scl_slope and scl_inter; whole ones keep integers whole, identity keeps the stored type."""
    slope, intercept = header.slope, header.intercept or 0.0
    if slope is None or (slope == 1.0 and intercept == 0.0):
        return stored
    if stored.dtype.kind in "iu" and slope.is_integer() and intercept.is_integer():
        products = [int(end) * int(slope) for end in (1, stored.min(), stored.max())]
        steps = [int(stored.max()), int(intercept), *products, *(n + int(intercept) for n in products)]
        if max(map(abs, steps)) < 1 << 63:
            return stored.astype(np.int64) * int(slope) + int(intercept)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which is refused
        return (stored * np.float64(slope) + intercept).astype(np.float32)
