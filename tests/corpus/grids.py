"""The grid and the voxels of the corpus: odd shape, anisotropic, oblique, off the origin."""

from pathlib import Path

import numpy as np
from dicom_fixtures import Edit, write_series
from highdicom import VolumeGeometry
from pydicom.uid import ExplicitVRLittleEndian

from corpus import Exact


def _oblique() -> VolumeGeometry:
    turn, _ = np.linalg.qr(np.array([[0.9, -0.2, 0.3], [0.3, 0.9, -0.1], [-0.2, 0.2, 0.9]]))
    turn *= np.sign(np.diag(turn))
    affine = np.eye(4)
    affine[:3, :3] = turn[:, ::-1] * [3.0, 0.8, 0.7]  # slices towards the head, rows posterior, columns left
    affine[:3, 3] = (-37.25, 51.5, -813.75)
    return VolumeGeometry(affine, (5, 7, 11), "PATIENT")


OBLIQUE = _oblique()
#: What `write_series` stores, and what that is in HU.
STORED = np.random.default_rng(5).integers(0, 4096, (5, 7, 11)).astype(np.uint16)
HU = STORED.astype(np.int16) - 1024


def slice_name(index: int) -> str:
    """Return the name that `write_series` gives slice ``index`` of five."""
    return f"IM{(index * 3) % 5:04d}.dcm"


def write_ct(
    folder: Path,
    grid: VolumeGeometry = OBLIQUE,
    *,
    edit: Edit | None = None,
    name: str = "IM{:04d}.dcm",
    syntax: str = ExplicitVRLittleEndian,
) -> Exact:
    """Write the series and return that exactly this comes out."""
    hu = write_series(folder, grid, edit=edit, name=name, syntax=syntax)
    return Exact(source=folder, array=hu, affine=grid.affine)
