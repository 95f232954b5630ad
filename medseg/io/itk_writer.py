"""Writes NRRD and MetaImage files.

Headers and voxels are written here and not by SimpleITK, whose writers say nothing when a disk fills up (NRRD) or
print to the screen (MetaImage), and hold two more copies of the voxels. The tests read every file with SimpleITK.
Formats: https://teem.sourceforge.net/nrrd/format.html, https://itk.org/Wiki/ITK/MetaIO/Documentation.
"""

import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray

from medseg.io.atomic import atomic_path
from medseg.io.image_values import to_file
from medseg.values.geometry import check_volume

_NRRD_TYPES = {
    "i1": "int8", "u1": "uint8", "i2": "int16", "u2": "uint16", "i4": "int32", "u4": "uint32",
    "i8": "int64", "u8": "uint64", "f4": "float", "f8": "double",
}  # fmt: skip
_META_TYPES = {
    "i1": "MET_CHAR", "u1": "MET_UCHAR", "i2": "MET_SHORT", "u2": "MET_USHORT", "i4": "MET_INT", "u4": "MET_UINT",
    "i8": "MET_LONG_LONG", "u8": "MET_ULONG_LONG", "f4": "MET_FLOAT", "f8": "MET_DOUBLE",
}  # fmt: skip
_LEVEL = 4  # of zlib: a third larger files than the highest, at a tenth of the time
_GZIP, _ZLIB = zlib.MAX_WBITS | 16, zlib.MAX_WBITS  # zlib's own gzip header has neither name nor time
_SIZE_DIGITS = 20


def write_itk(path: Path, volume: Volume, description: str = "") -> None:
    """Write .nrrd or .mha on the volume's own grid, compressed; the same volume gives the same bytes.

    The type is kept; booleans become uint8. No copy of the voxels is made. ``description``, one line, is the header's
    only text (NRRD's content, MetaImage's Comment).

    Raises:
        InputError: a type that the formats lack, or a file that cannot be written.
    """
    volume = check_volume(volume, str(path))
    array = to_file(volume.array, str(path))
    if path.suffix.lower() == ".nrrd":
        _write_nrrd(path, array, volume.affine, description)
    else:
        _write_meta(path, array, volume.affine, description)


def _write_nrrd(path: Path, array: NDArray, affine: NDArray[np.float64], description: str) -> None:
    fields = {
        **({"content": description} if description else {}),
        "type": _NRRD_TYPES[array.dtype.str[1:]],
        "dimension": 3,
        "space": "left-posterior-superior",
        "sizes": _spaced(array.shape[::-1]),
        # NRRD lists axes fastest first: column, row, slice.
        "space directions": " ".join(_vector(affine[:3, axis]) for axis in (2, 1, 0)),
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "gzip",
        "space origin": _vector(affine[:3, 3]),
    }
    head = "NRRD0004\n" + "".join(f"{key}: {value}\n" for key, value in fields.items()) + "\n"
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(head.encode())
        for piece in _compressed(array, _GZIP):
            file.write(piece)


def _write_meta(path: Path, array: NDArray, affine: NDArray[np.float64], description: str) -> None:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    fields = {
        "ObjectType": "Image",
        **({"Comment": description} if description else {}),
        "NDims": 3,
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "True",
        "CompressedDataSize": " " * _SIZE_DIGITS,  # filled in at the end
        # Axis by axis, the fastest first.
        "TransformMatrix": _spaced((affine[:3, :3] / spacing)[:, ::-1].T.ravel()),
        "Offset": _spaced(affine[:3, 3]),
        "CenterOfRotation": "0 0 0",
        "ElementSpacing": _spaced(spacing[::-1]),
        "DimSize": _spaced(array.shape[::-1]),
        "ElementType": _META_TYPES[array.dtype.str[1:]],
        "ElementDataFile": "LOCAL",
    }
    head = "".join(f"{key} = {value}\n" for key, value in fields.items()).encode()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(head)
        size = sum(file.write(piece) for piece in _compressed(array, _ZLIB))
        file.seek(head.index(b" " * _SIZE_DIGITS))
        file.write(f"{size:<{_SIZE_DIGITS}d}".encode("ascii"))


def _compressed(array: NDArray, window_bits: int) -> Iterable[bytes]:
    """Yield the voxels, little-endian and slice by slice, compressed."""
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, window_bits)
    kind = array.dtype.newbyteorder("<")
    for plane in array:
        yield compressor.compress(np.ascontiguousarray(plane, kind).data)
    yield compressor.flush()


def _spaced(values: Iterable[float]) -> str:
    return " ".join(_text(v) for v in values)


def _vector(values: Iterable[float]) -> str:
    return "(" + ",".join(_text(v) for v in values) + ")"


def _text(value: float) -> str:
    """Return all digits of a number; no negative zero."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))
