"""Voxel values as images hold them: int16 where whole numbers fit, else finite float32."""

import numpy as np
from numpy.typing import NDArray

from medseg.errors import InputError


def to_image(values: NDArray, source: str) -> NDArray[np.int16] | NDArray[np.float32]:
    """Bring values (slice, row, column) to int16 where they are of an integer type and fit, else to float32.

    Raises:
        InputError: NaN or infinite values, or values beyond float32.
    """
    if values.dtype.kind in "iu":
        limits = np.iinfo(np.int16)
        if np.can_cast(values.dtype, np.int16) or (values.min() >= limits.min and values.max() <= limits.max):
            return values.astype(np.int16, copy=False)
        return values.astype(np.float32)
    with np.errstate(over="ignore"):
        converted = values.astype(np.float32, copy=False)
    if bad := sum(int(plane.size - np.isfinite(plane).sum()) for plane in converted):
        raise InputError(f"{source}: {bad} voxels are NaN or infinite, expected numbers; repair the image first")
    return converted
