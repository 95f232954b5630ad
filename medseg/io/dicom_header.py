"""DICOM headers: what one file says about its series, its planes and their place in the patient.

Values are parsed from the bytes of the elements, because pydicom raises on a number that is none and needs most of
the time that reading a series takes. No element that names the patient is read.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from medseg.io.dicom_pixels import PixelLayout

Triple = tuple[float, float, float]
NAN = float("nan")
STANDARD = "1.2.840.10008."
STORAGE = "1.2.840.10008.5.1.4.1.1"
#: Modalities whose objects carry no image of their own, or none that is a volume of intensities.
NOT_IMAGES = {
    "SEG": "segmentation", "RTSTRUCT": "structure set", "RTDOSE": "dose grid", "RTPLAN": "treatment plan",
    "SR": "report", "PR": "presentation state", "KO": "key object note", "REG": "registration", "DOC": "document",
}  # fmt: skip
#: The same by SOP class (DICOM PS3.4 B.5), for objects filed under another modality; the first that fits.
NOT_IMAGE_CLASSES = {
    "1.2.840.10008.1.3.10": "DICOM directory",
    f"{STORAGE}.7": "secondary capture",
    f"{STORAGE}.4.2": "spectroscopy",
    f"{STORAGE}.30": "parametric map",
    f"{STORAGE}.66.4": "segmentation", f"{STORAGE}.66.5": "segmentation", f"{STORAGE}.66.7": "segmentation",
    f"{STORAGE}.66.1": "registration", f"{STORAGE}.66.2": "registration", f"{STORAGE}.66.3": "registration",
    f"{STORAGE}.88": "report", f"{STORAGE}.104": "document", f"{STORAGE}.11": "presentation state",
    f"{STORAGE}.481.2": "dose grid", f"{STORAGE}.481.3": "structure set", f"{STORAGE}.481": "treatment plan",
    f"{STORAGE}.9": "waveform", f"{STORAGE}.66": "raw data", f"{STORAGE}.67": "value mapping",
    f"{STORAGE}.68": "surface", f"{STORAGE}.90": "assessment", f"{STORAGE}.91": "annotation",
    "1.2.840.10008.5.1.4.34": "treatment record", "1.2.840.10008.5.1.4.38": "hanging protocol",
}  # fmt: skip
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")

_KEYWORDS = [
    "SOPClassUID", "ImageType", "Modality", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber",
    "SeriesDescription", "SpecificCharacterSet", "SliceThickness", "SpacingBetweenSlices", "FrameOfReferenceUID",
    "AcquisitionNumber", "TemporalPositionIdentifier",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "NumberOfFrames",
    "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PixelPaddingValue", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", *_GROUPS,
]  # fmt: skip
#: Keyword -> tag of all that is read from a header.
TAGS: dict[str, int] = {}
for _keyword in _KEYWORDS:
    _tag = tag_for_keyword(_keyword)
    assert _tag is not None
    TAGS[_keyword] = _tag


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One plane: a single-frame file, or one frame of a multi-frame file.

    Numbers that the header lacks are None; numbers that cannot be parsed are NaN. Both are refused, with
    the file's name, once the plane is needed.
    """

    path: Path
    frame: int
    layout: PixelLayout
    position: Triple | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    #: SpacingBetweenSlices, else SliceThickness; used for a volume of one slice only.
    thickness: float | None
    slope: float | None
    intercept: float | None
    lookup_table: bool
    mosaic: bool
    frame_of_reference: str
    study_uid: str
    modality: str
    #: AcquisitionNumber and TemporalPositionIdentifier as written; empty where absent.
    acquisition: str
    temporal: str

    @property
    def rows(self) -> int:
        """Rows of the plane."""
        return self.layout.rows

    @property
    def columns(self) -> int:
        """Columns of the plane."""
        return self.layout.columns

    @property
    def name(self) -> str:
        """What to call this plane in a message."""
        return str(self.path) if self.frame == 0 else f"{self.path} (frame {self.frame + 1})"


class Fields:
    """The elements of a data set as text and numbers, whatever their bytes hold."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.elements = {int(element.tag): element for element in dataset.values()}  # not yet parsed

    def __contains__(self, keyword: str) -> bool:
        return TAGS[keyword] in self.elements

    def texts(self, keyword: str) -> list[str]:
        """Return the values of an element of text; empty where it is absent or empty."""
        element = self.elements.get(TAGS[keyword])
        if element is None:
            return []
        value = element.value
        if isinstance(element, RawDataElement) and isinstance(value, bytes | None):
            text = (value or b"").decode("ascii", "replace").strip("\0 ")
            return [part.strip("\0 ") for part in text.split("\\")] if text else []
        if value is None or value == "":
            return []
        return [str(v) for v in ([value] if isinstance(value, str) or not hasattr(value, "__iter__") else value)]

    def text(self, keyword: str) -> str:
        """Return the first value; empty where there is none."""
        values = self.texts(keyword)
        return values[0] if values else ""

    def integer(self, keyword: str) -> int:
        """Return a number that is stored in two bytes (VR US), 0 where absent."""
        element = self.elements.get(TAGS[keyword])
        if element is None:
            return 0
        if isinstance(element, RawDataElement) and isinstance(element.value, bytes):
            return int.from_bytes(element.value[:2], "little" if element.is_little_endian else "big")
        return int(element.value or 0)

    def number(self, keyword: str) -> float | None:
        """Return one number; None where absent, NaN where it is no number or several."""
        numbers = self.numbers(keyword, 1)
        return None if numbers is None else numbers[0]

    def numbers(self, keyword: str, count: int) -> tuple[float, ...] | None:
        """Return ``count`` numbers; None where absent, NaNs where they are not ``count`` numbers."""
        values = self.texts(keyword)
        if not values:
            return None
        if len(values) != count:
            return (NAN,) * count
        return tuple(_float(v) for v in values)

    def items(self, keyword: str) -> list["Fields"]:
        """Return the items of a sequence."""
        if keyword not in self:
            return []
        return [Fields(item) for item in self.dataset[TAGS[keyword]].value or []]


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return NAN


def reason_aside(fields: Fields, sop_class: str, modality: str) -> str:
    """Return why a data set is no slice of a volume, or an empty string."""
    if modality in NOT_IMAGES:
        return NOT_IMAGES[modality]
    for uid, reason in NOT_IMAGE_CLASSES.items():
        if sop_class == uid or sop_class.startswith(uid + "."):
            return reason
    image_type = [value.upper() for value in fields.texts("ImageType")]
    if "LOCALIZER" in image_type or "SCOUT" in image_type:
        return "localizer"
    if "SCREEN SAVE" in image_type:
        return "screen save"
    if "Rows" not in fields and re.fullmatch(r"[0-9.]+", sop_class) and not sop_class.startswith(STANDARD):
        return "private object without an image"  # what a standard class lacks, or an unreadable one, is damage
    if fields.integer("SamplesPerPixel") > 1 or "PALETTE" in fields.text("PhotometricInterpretation"):
        return "colour image"
    return ""


def read_slices(path: Path, fields: Fields, frames: int, layout: PixelLayout) -> Iterator[Slice]:
    """Yield the planes of a file; the functional groups of multi-frame files are resolved (PS3.3 C.7.6.16)."""
    shared = [item.dataset for item in fields.items("SharedFunctionalGroupsSequence")][:1]
    per_frame = [item.dataset for item in fields.items("PerFrameFunctionalGroupsSequence")]
    common = {
        "frame_of_reference": fields.text("FrameOfReferenceUID"),
        "study_uid": fields.text("StudyInstanceUID"),
        "modality": fields.text("Modality"),
        "acquisition": fields.text("AcquisitionNumber"),
        "temporal": fields.text("TemporalPositionIdentifier"),
        "lookup_table": "ModalityLUTSequence" in fields,
        "mosaic": "MOSAIC" in [value.upper() for value in fields.texts("ImageType")],
    }
    for index in range(frames):

        def group(name: str, fallback: bool, index: int = index) -> Fields:
            # A functional group is given per frame, or once for all; without any, the file is single-frame.
            for groups in [*per_frame[index : index + 1], *shared]:
                if name in groups and groups[name].value:
                    return Fields(groups[name].value[0])
            return fields if fallback or not per_frame else Fields(Dataset())

        measures = group("PixelMeasuresSequence", False)
        rescale = group("PixelValueTransformationSequence", True)
        position = group("PlanePositionSequence", False).numbers("ImagePositionPatient", 3)
        yield Slice(
            path=path,
            frame=index,
            layout=layout,
            position=(position[0], position[1], position[2]) if position else None,
            orientation=group("PlaneOrientationSequence", False).numbers("ImageOrientationPatient", 6),
            spacing=measures.numbers("PixelSpacing", 2),
            thickness=measures.number("SpacingBetweenSlices") or measures.number("SliceThickness"),
            slope=rescale.number("RescaleSlope"),
            intercept=rescale.number("RescaleIntercept"),
            **common,  # type: ignore[arg-type]
        )
