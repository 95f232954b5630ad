"""SeriesInfo: what a file or folder holds, told without voxels and without the patient."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from highdicom import VolumeGeometry

from medseg.values.geometry import spacing_of


@dataclass(frozen=True, kw_only=True)
class SeriesInfo:
    """One series of a DICOM study, or one image file.

    Attributes:
        uid: SeriesInstanceUID; empty for NIfTI, NRRD and MHA, and for DICOM without one.
        modality: DICOM modality (``CT``), or the file format for other files (``NIfTI``).
        number: SeriesNumber, where there is one.
        description: SeriesDescription as the scanner wrote it; no other text of the header is kept.
        n_slices: slices that make the volume (frames count each, the same slice twice counts once where
            the geometry could be read).
        shape: (slices, rows, columns), None where the series is no volume.
        spacing_mm: along (slice, row, column), None where the series is no volume.
        orientation: where slices, rows and columns increase towards, such as ``HPL``.
        is_image: False for reports, segmentations, localizers and the like.
        problem: why this is no image, or why its geometry is refused; empty where all is well.
        files: the files, in slice order where that is known; for an archive, paths inside it.
    """

    uid: str
    modality: str
    number: int | None = None
    description: str = ""
    n_slices: int = 0
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    orientation: str | None = None
    is_image: bool = True
    problem: str = ""
    files: tuple[Path, ...] = ()


def series_name(uid: str) -> str:
    """Return what a DICOM series is called in names of cases and files: folders are often named after patients."""
    return hashlib.sha256(uid.encode()).hexdigest()[:10]


def grid_fields(grid: VolumeGeometry) -> dict:
    """Return the SeriesInfo fields that a grid decides."""
    slices, rows, columns = (int(n) for n in grid.spatial_shape)
    return {
        "n_slices": slices,
        "shape": (slices, rows, columns),
        "spacing_mm": spacing_of(grid),
        "orientation": "".join(letter.value for letter in grid.get_closest_patient_orientation()),
    }


def count_kinds(reasons: Iterable[str]) -> str:
    """Return ``3 not DICOM, 1 localizer`` for a list of reasons, in the order first met."""
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    return ", ".join(f"{n} {reason}" for reason, n in counts.items())
