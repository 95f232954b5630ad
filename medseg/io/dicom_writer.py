"""Writes a volume as a series of DICOM CT images (CT Image IOD, DICOM PS3.3 A.3).

Made for synthetic data: the patient is called PHANTOM, dates are fixed and every UID follows from the seed and
the content, so that the same call writes the same bytes.
"""

import filecmp
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pydicom.valuerep import DSfloat

from medseg.errors import InputError
from medseg.io.atomic import atomic_folder
from medseg.values.geometry import check_volume, spacing_of

#: Stored value 0 is this many Hounsfield units (air and a margin), as most scanners write it.
INTERCEPT_HU = -1024
_NAMESPACE = uuid.UUID("6f0e2a4c-6f0b-5d4e-9d0e-0d1f5a3c7b21")
_DATE, _TIME = "20000101", "120000"


def write_ct_series(folder: Path | str, volume: Volume, *, seed: int, description: str, series_number: int = 1) -> Path:
    """Write one CT image file per slice into a new folder, all of them or none.

    Files are called 0001.dcm, 0002.dcm ... in an order that has nothing to do with their position, as in many
    archives; InstanceNumber counts along the slice axis. Series of one seed belong to one study and, where the
    volume names no frame of reference, to one frame.

    Args:
        folder: where the files go; must not exist, be empty, or hold exactly these files already.
        volume: (slice, row, column) integers in HU, -1024 or above.
        seed: 0 or more; decides UIDs and file order.
        description: SeriesDescription, at most 64 characters of ASCII, no backslash.
        series_number: SeriesNumber, told apart within the study.

    Returns:
        The folder.

    Raises:
        InputError: values, description or folder that cannot be used; a disk that cannot be written.
        GeometryError: an affine that is broken or sheared.
    """
    folder = Path(folder)
    volume = check_volume(volume, "volume")
    stored, bits = _stored_values(volume.array)
    if not description.isascii() or not description.isprintable() or "\\" in description or len(description) > 64:
        raise InputError(f"description {description!r}: expected at most 64 printable ASCII characters, no backslash")
    content = hashlib.sha256(stored.tobytes() + volume.affine.tobytes() + repr(stored.shape).encode()).hexdigest()
    series = f"{seed}/{series_number}/{description}/{content}"
    common = _common(volume, bits, seed, series, description, series_number)
    order = np.random.default_rng(seed).permutation(len(stored))
    if len(order) > 1 and (order == np.arange(len(order))).all():
        order = order[::-1]
    with _new_folder(folder) as temporary:
        for name, index in enumerate(order, start=1):
            image = _slice(common, volume, stored[index], int(index), series)
            with (temporary / f"{name:04d}.dcm").open("wb") as file:
                image.save_as(file, enforce_file_format=True)
                file.flush()
                os.fsync(file.fileno())
    return folder


def _stored_values(array: NDArray) -> tuple[NDArray[np.uint16], int]:
    """Return HU as stored pixel values and how many bits they take (12 or 16)."""
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"volume: values of type {array.dtype}, expected integers (HU); round them first")
    low, high = int(array.min()), int(array.max())
    if low < INTERCEPT_HU or high - INTERCEPT_HU > 65535:
        raise InputError(f"volume: values {low}..{high} HU, expected {INTERCEPT_HU}..{65535 + INTERCEPT_HU}; clip them")
    stored = (array.astype(np.int32) - INTERCEPT_HU).astype("<u2")
    return stored, 12 if high - INTERCEPT_HU < 4096 else 16


def _uid(*parts: str) -> str:
    """Return a valid UID that follows from the parts (UUID-derived, PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, '|'.join(parts)).int}"


def _common(volume: Volume, bits: int, seed: int, series: str, description: str, series_number: int) -> Dataset:
    """Return everything that the slices of the series share."""
    slice_mm, row_mm, column_mm = spacing_of(volume)
    down, across = volume.affine[:3, 1] / row_mm, volume.affine[:3, 2] / column_mm
    data = Dataset()
    data.SpecificCharacterSet = "ISO_IR 100"
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.SOPClassUID = CTImageStorage
    data.PatientName = data.PatientID = "PHANTOM"
    data.PatientBirthDate = data.PatientSex = ""
    data.PatientIdentityRemoved = "YES"
    data.DeidentificationMethod = "Synthetic data, no patient"
    data.StudyInstanceUID = _uid("study", str(seed))
    data.StudyDate = data.SeriesDate = data.AcquisitionDate = data.ContentDate = _DATE
    data.StudyTime = data.SeriesTime = data.AcquisitionTime = data.ContentTime = _TIME
    data.ReferringPhysicianName = data.AccessionNumber = ""
    data.StudyID = str(seed)[:16]
    data.StudyDescription = "Synthetic CT"
    data.Modality = "CT"
    data.SeriesInstanceUID = _uid("series", series)
    data.SeriesNumber = series_number
    data.SeriesDescription = description
    data.PatientPosition = "HFS"
    data.Laterality = ""
    data.FrameOfReferenceUID = volume.frame_of_reference_uid or _uid("frame", str(seed))
    data.PositionReferenceIndicator = ""
    data.Manufacturer = data.ManufacturerModelName = "medseg"
    data.BurnedInAnnotation = "NO"
    data.AcquisitionNumber = 1
    data.KVP = None
    data.ImageOrientationPatient = [_decimal(v) for v in (*across, *down)]
    data.PixelSpacing = [_decimal(row_mm), _decimal(column_mm)]
    data.SliceThickness = data.SpacingBetweenSlices = _decimal(slice_mm)
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.Rows, data.Columns = volume.array.shape[1:]
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, bits, bits - 1
    data.PixelRepresentation = 0
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = INTERCEPT_HU, 1, "HU"
    data.WindowCenter, data.WindowWidth = 40, 400
    return data


def _slice(common: Dataset, volume: Volume, pixels: NDArray[np.uint16], index: int, series: str) -> Dataset:
    """Return the image of one slice."""
    data = Dataset()
    data.update(common)
    data.SOPInstanceUID = _uid("image", series, str(index))
    data.InstanceNumber = index + 1
    position = volume.affine[:3, 3] + index * volume.affine[:3, 0]
    data.ImagePositionPatient = [_decimal(v) for v in position]
    normal = np.cross(volume.affine[:3, 2], volume.affine[:3, 1])
    data.SliceLocation = _decimal(position @ normal / np.linalg.norm(normal))
    data.add_new("PixelData", "OW", pixels.tobytes())
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return data


def _decimal(value: float) -> DSfloat:
    """Return a decimal string of at most 16 characters (PS3.5 6.2); no negative zero."""
    return DSfloat(float(value) + 0.0, auto_format=True)


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder that appears whole; one that holds the same files already stays as it is."""
    with atomic_folder(folder) as temporary:
        yield temporary
        if folder.is_dir() and any(folder.iterdir()):
            if not _same_files(temporary, folder):
                raise InputError(f"{folder}: holds other files already; name a new or an empty folder")
            shutil.rmtree(temporary)


def _same_files(a: Path, b: Path) -> bool:
    names = sorted(path.name for path in a.iterdir())
    if names != sorted(path.name for path in b.iterdir()):
        return False
    return filecmp.cmpfiles(a, b, names, shallow=False)[0] == names
