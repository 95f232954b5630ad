"""Builds CT series file by file with pydicom, so that every fault can be put into them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from highdicom import VolumeGeometry
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

SERIES = "1.2.826.0.1.3680043.8.498.1"
FRAME = "1.2.826.0.1.3680043.8.498.2"

Edit = Callable[[Dataset, int], None]


def ct_dataset(grid: VolumeGeometry, index: int, stored: NDArray, series: str = SERIES) -> Dataset:
    """Return slice ``index`` of a grid as a CT data set; stored values are HU + 1024."""
    step, column, row = grid.affine[:3, :3].T
    ds = Dataset()
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = f"{series}.{index + 1}"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.Modality = "CT"
    ds.PatientName = "Planted^Name"
    ds.PatientID = "PLANTED-ID"
    ds.SeriesInstanceUID = series
    ds.StudyInstanceUID = SERIES + ".9"
    ds.SeriesNumber = 3
    ds.SeriesDescription = "Thorax soft"
    ds.FrameOfReferenceUID = FRAME
    ds.InstanceNumber = 100 - index  # against the positions, to catch whoever sorts by it
    ds.SliceThickness = round(float(np.linalg.norm(step)), 6)
    ds.ImagePositionPatient = [f"{v:.9f}" for v in grid.affine[:3, 3] + index * step]
    unit = np.concatenate([row / np.linalg.norm(row), column / np.linalg.norm(column)])
    ds.ImageOrientationPatient = [f"{v:.12f}" for v in unit]
    ds.PixelSpacing = [round(float(np.linalg.norm(v)), 9) for v in (column, row)]
    ds.Rows, ds.Columns = stored.shape
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    ds.PixelRepresentation = 0
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    ds.PixelData = stored.astype("<u2").tobytes()
    return ds


def save(ds: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> None:
    """Write a data set with preamble and file meta."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


def write_series(
    folder: Path,
    grid: VolumeGeometry,
    *,
    edit: Edit | None = None,
    series: str = SERIES,
    name: str = "IM{:04d}.dcm",
    syntax: str = ExplicitVRLittleEndian,
) -> NDArray[np.int16]:
    """Write one file a slice, names against the positions; return the HU they hold (slice, row, column)."""
    n = grid.spatial_shape[0]
    stored = np.random.default_rng(5).integers(0, 4096, grid.spatial_shape).astype(np.uint16)
    for index in range(n):
        ds = ct_dataset(grid, index, stored[index], series)
        if edit:
            edit(ds, index)
        save(ds, folder / name.format((index * 3) % n), syntax)
    return stored.astype(np.int16) - 1024
