"""Which files of a folder are objects to send."""

from pathlib import Path

import pytest
from dicom_fixtures import write_series
from highdicom import VolumeGeometry
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from medseg.errors import InputError
from medseg.io.dicom_transfer import find_objects


def test_what_is_sent_of_a_folder(oblique_geometry: VolumeGeometry, tmp_path: Path) -> None:
    """A CD's directory and notes are passed over; a damaged image is not, or the archive would lack it unnoticed."""
    inside = tmp_path / "cd"
    write_series(inside, oblique_geometry)
    (inside / "notes.txt").write_text("hello")
    directory, meta = Dataset(), FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = MediaStorageDirectoryStorage, ExplicitVRLittleEndian
    directory.FileSetID, directory.file_meta, directory.preamble = "CD", meta, bytes(128)
    directory.save_as(inside / "DICOMDIR", enforce_file_format=False)
    images = sorted(inside.glob("*.dcm"))
    assert len(images) == 5 and list(find_objects([inside])) == images
    with pytest.raises(InputError, match="DICOMDIR: no DICOM object"):
        find_objects([inside / "DICOMDIR"])
    images[1].write_bytes(images[1].read_bytes()[:150])
    with pytest.raises(InputError, match="IM0001.dcm: "):
        find_objects([inside])
