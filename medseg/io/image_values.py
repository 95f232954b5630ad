"""Voxel values: as images hold them (int16 where whole numbers fit, else finite float32), and as files do."""

import numpy as np
from numpy.typing import NDArray

from medseg.errors import InputError

#: What NIfTI, NRRD and MetaImage can all hold.
FILE_TYPES = tuple(np.dtype(kind) for kind in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"))

#: Every whole number up to here is a float32.
EXACT = 1 << 24


def to_file(values: NDArray, target: str) -> NDArray:
    """Return values in a type that image files hold, booleans as uint8; nothing else is converted.

    Raises:
        InputError: another type.
    """
    values = values.view(np.uint8) if values.dtype == bool else values
    if values.dtype not in FILE_TYPES:
        raise InputError(f"{target}: cannot hold values of type {values.dtype}; convert them to int16 or float32")
    return values


def check_whole(values: NDArray, source: str) -> None:
    """Refuse whole numbers that float32 would round.

    Raises:
        InputError: names the largest.
    """
    largest = max(int(values.max()), -int(values.min()))
    if largest <= EXACT:
        return
    with np.errstate(invalid="ignore"):
        rounded = values.astype(np.float32).astype(values.dtype)
    if not np.array_equal(rounded, values):
        raise InputError(
            f"{source}: values up to {largest}, of which float32 holds only those to {EXACT} exactly; "
            "scale or renumber them first"
        )


def to_image(values: NDArray, source: str) -> NDArray[np.int16] | NDArray[np.float32]:
    """Bring values (slice, row, column) to int16 where they are of an integer type and fit, else to float32.

    Raises:
        InputError: NaN or infinite values, values beyond float32, or whole numbers that it would round.
    """
    if values.dtype.kind in "iu":
        limits = np.iinfo(np.int16)
        if np.can_cast(values.dtype, np.int16) or (values.min() >= limits.min and values.max() <= limits.max):
            return values.astype(np.int16, copy=False)
        check_whole(values, source)
        return values.astype(np.float32)
    with np.errstate(over="ignore"):
        converted = values.astype(np.float32, copy=False)
    if bad := sum(int(plane.size - np.isfinite(plane).sum()) for plane in converted):
        raise InputError(f"{source}: {bad} voxels are NaN or infinite, expected numbers; repair the image first")
    return converted
