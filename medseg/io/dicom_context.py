"""What a DICOM series hands down to the objects found in it: patient, study, frame of reference, image UIDs.

DICOM SEG and RTSTRUCT (PS3.3 A.51 and A.19) belong to the study they were drawn in and refer to its images by UID;
a series without those UIDs can be read, but nothing that refers to it can be written.
"""

import hashlib
import re
import uuid
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from highdicom import VolumeGeometry
from pydicom import dcmread
from pydicom.dataset import Dataset

from medseg.errors import InputError
from medseg.io.archive import unpacked
from medseg.io.dicom import check_readable, choose_series, scan_path, stack_files
from medseg.progress import Track, silent
from medseg.values.instances import InstanceSet

_NAMESPACE = uuid.UUID("0c6a3f0e-7c55-5d0b-9b0e-52f3c1a4d6e9")
#: Attributes of the Patient, Clinical Trial Subject, General Study, Patient Study and Frame of Reference modules
#: that every object of a study shares (PS3.3 C.7.1 to C.7.4).
SHARED_ATTRIBUTES = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize",
    "PatientWeight", "PatientIdentityRemoved", "DeidentificationMethod", "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID", "ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
    "ReferringPhysicianName", "StudyDescription", "FrameOfReferenceUID", "PositionReferenceIndicator",
)  # fmt: skip
#: Those that are there, if empty, even where the source does not say (type 2).
REQUIRED_EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator",
)  # fmt: skip
_SERIES_ATTRIBUTES = (
    "Modality", "SeriesInstanceUID", "ContentDate", "ContentTime", "AcquisitionDate", "AcquisitionTime", "SeriesDate",
    "SeriesTime", "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ImageReference:
    """The image of one slice: SOP class and instance UID, and the frame (1-based) where the file has several."""

    sop_class_uid: str
    sop_instance_uid: str
    frame: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class DicomContext:
    """What is needed of a series to read and write objects that refer to it.

    Attributes:
        source: what to call the series in messages.
        geometry: the grid (slice, row, column) of its images, slices ascending along their normal; it carries the
            frame of reference.
        header: text values of the attributes that its objects share (`SHARED_ATTRIBUTES`) and of its series;
            decoded, so that they can be written in another character set. It names the patient: never print it.
        images: one per slice, None where the image of a slice is not known (a context taken from a segmentation).
        others: further images of the series, whose slice is not known.
    """

    source: str
    geometry: VolumeGeometry
    header: Dataset
    images: tuple[ImageReference | None, ...]
    others: tuple[ImageReference, ...] = ()

    @property
    def study_uid(self) -> str:
        """StudyInstanceUID, empty where the source has none."""
        return str(self.header.get("StudyInstanceUID") or "")

    @property
    def series_uid(self) -> str:
        """SeriesInstanceUID of the images, empty where the source has none."""
        return str(self.header.get("SeriesInstanceUID") or "")

    @property
    def frame_of_reference_uid(self) -> str:
        """FrameOfReferenceUID, empty where the source has none."""
        return str(self.header.get("FrameOfReferenceUID") or "")

    @property
    def missing(self) -> tuple[str, ...]:
        """UIDs that the series lacks and that written DICOM has to refer to."""
        missing = [
            name
            for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
            if not self.header.get(name)
        ]
        known = [image for image in self.images if image is not None]
        for name, uids in (
            ("SOPClassUID", [image.sop_class_uid for image in known]),
            ("SOPInstanceUID", [image.sop_instance_uid for image in known]),
        ):
            absent = sum(not uid for uid in uids)
            if absent:
                missing.append(f"{name} (in {absent} of {len(uids)} slices)")
        return tuple(missing)

    def check_complete(self) -> None:
        """Refuse a series that lacks a UID that written DICOM has to refer to.

        Raises:
            InputError: names what is missing.
        """
        if self.missing:
            raise InputError(
                f"{self.source}: has no {', no '.join(self.missing)}, which DICOM objects must refer to; "
                "take the series from the archive again, or write .nii.gz or .seg.nrrd instead"
            )


def read_dicom_context(path: Path | str, series: str | None = None, track: Track = silent) -> DicomContext:
    """Read grid and UIDs of an image series; no voxel is read, and missing UIDs are no error yet.

    Args:
        path: a DICOM folder (searched with its subfolders), file or zip.
        series: SeriesInstanceUID, needed where there are several image series.
        track: progress over headers.

    Raises:
        InputError: no image series, several without a choice, or a slice that cannot be read.
        GeometryError: slices that are no even, rectangular stack.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder, expected a DICOM series")
    if path.suffix.lower() == ".zip":
        with unpacked(path) as folder:
            return _read(folder, str(path), series, track)
    return _read(path, str(path), series, track)


def _read(path: Path, source: str, series: str | None, track: Track) -> DicomContext:
    scan = scan_path(path, track)
    files = choose_series(scan, path, series)
    check_readable(files, scan)
    stack = stack_files(files, source)
    headers: dict[Path, Dataset] = {}
    for item in stack.slices:
        if item.path not in headers:
            headers[item.path] = _header_of(item.path, everything=not headers)
    images = []
    for item in stack.slices:
        header = headers[item.path]
        images.append(
            ImageReference(
                sop_class_uid=str(header.get("SOPClassUID") or ""),
                sop_instance_uid=str(header.get("SOPInstanceUID") or ""),
                frame=item.frame + 1 if int(header.get("NumberOfFrames") or 1) > 1 else None,
            )
        )
    return DicomContext(
        source=source,
        geometry=stack.grid,
        header=shared_header(headers[stack.slices[0].path]),
        images=tuple(images),
    )


def _header_of(path: Path, everything: bool) -> Dataset:
    """Read a header that was read without fault before; of all files but the first only the UIDs are of interest."""
    tags = None if everything else ["SOPClassUID", "SOPInstanceUID", "NumberOfFrames"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dcmread(path, stop_before_pixels=True, force=True, specific_tags=tags)


def dicom_kind(path: Path) -> str:
    """Return the modality of a file (``SEG``, ``RTSTRUCT`` ...), empty where it says none or is no DICOM."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return str(dcmread(path, force=True, specific_tags=["Modality"]).get("Modality") or "")
    except Exception:  # whoever reads the file in earnest says what is wrong with it
        return ""


def shared_header(dataset: Dataset) -> Dataset:
    """Return the attributes of a data set that others of its study share, as decoded text."""
    header = Dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unknown character sets and odd values stay as well as they can
        for keyword in SHARED_ATTRIBUTES + _SERIES_ATTRIBUTES:
            value = dataset.get(keyword)
            if value is None:
                continue
            several = isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue"
            with suppress(ValueError, TypeError, OverflowError):  # a weight that is no number is no weight
                setattr(header, keyword, [str(v) for v in value] if several else str(value))
    return header


def add_shared(dataset: Dataset, header: Dataset) -> None:
    """Put patient, study and frame of reference of a source (see `shared_header`) into a new object.

    What the source does not say, but every object must have (type 2), is there and empty.
    """
    for keyword in SHARED_ATTRIBUTES:
        if keyword in header:
            dataset.add(header[keyword])
        elif keyword in REQUIRED_EMPTY:
            setattr(dataset, keyword, "")


def content_date(header: Dataset) -> tuple[str, str]:
    """Return date and time of a source, so that writing an object of it again gives the same file."""
    for kind in ("Content", "Acquisition", "Series", "Study"):
        date, time = str(header.get(f"{kind}Date") or ""), str(header.get(f"{kind}Time") or "")
        if re.fullmatch(r"\d{8}", date):
            with suppress(ValueError):  # 31 February
                datetime.strptime(date, "%Y%m%d")
                return date, time if re.fullmatch(r"([01]\d|2[0-3])[0-5]\d[0-5]\d(\.\d{1,6})?", time) else "000000"
    return "20000101", "000000"


def derive_uid(*parts: str) -> str:
    """Return a UID that follows from the parts: UUID-derived, root 2.25 (PS3.5 B.2). Same parts, same UID."""
    text = "\x1f".join(parts)
    return f"2.25.{uuid.uuid5(_NAMESPACE, hashlib.sha256(text.encode()).hexdigest()).int}"


def content_hash(instances: InstanceSet) -> str:
    """Return a SHA-256 over the grid and every object's label, score and voxels."""
    digest = hashlib.sha256(instances.geometry.affine.round(6).tobytes())
    digest.update(repr((tuple(instances.geometry.spatial_shape), instances.labels.to_dict())).encode())
    for instance in instances:
        place = (instance.label, float(instance.score), instance.source_id, instance.offset, instance.mask.shape)
        digest.update(repr(place).encode())
        digest.update(instance.mask.tobytes())
    return digest.hexdigest()


def tracking_ids(instances: InstanceSet, context: DicomContext) -> list[tuple[str, str]]:
    """Return (TrackingID, TrackingUID) per instance, the same in every DICOM object written of it.

    The identifier is the label's name and the number the object had where it came from, else its own.
    """
    content = content_hash(instances)
    return [(text, derive_uid("tracking", context.series_uid, content, text)) for text in _numbered(instances)]


def _numbered(instances: InstanceSet) -> Iterable[str]:
    texts: dict[str, None] = {}
    for instance in instances:
        number = instance.id if instance.source_id is None else instance.source_id
        text = f"{instances.labels[instance.label].name} #{number}"
        # parts of one source object (components of a semantic map) share its number
        texts[text if text not in texts else f"{text} part {instance.id}"] = None
    return texts
