"""DICOM files: which files of a folder are slices, and what their headers say.

A file counts as a slice and must be readable if it has the DICM mark, a DICOM suffix, or the suffix (or lack
of one) that most slices of its folder have; anything else is set aside. No voxel is read here, and no
element that names the patient.
"""

import os
import struct
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medseg.io.atomic import is_leftover
from medseg.progress import Track, silent

Triple = tuple[float, float, float]
NAN = float("nan")
NO_PIXELS = "truncated: the file ends before its pixel data"
DICOM_SUFFIXES = {".dcm", ".dicom", ".dic", ".ima"}
DEFLATED = "1.2.840.10008.1.2.1.99"
DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
#: Modalities whose objects carry no image of their own, or none that is a volume of intensities.
NOT_IMAGES = {
    "SEG": "segmentation", "RTSTRUCT": "structure set", "RTDOSE": "dose grid", "RTPLAN": "treatment plan",
    "SR": "report", "PR": "presentation state", "KO": "key object note", "REG": "registration", "DOC": "document",
}  # fmt: skip

_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "ImageType", "Modality", "SeriesInstanceUID", "SeriesNumber",
    "SeriesDescription", "SpecificCharacterSet", "SliceThickness", "SpacingBetweenSlices", "FrameOfReferenceUID",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "NumberOfFrames",
    "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One plane: a single-frame file, or one frame of a multi-frame file.

    Numbers that the header lacks are None; numbers that cannot be parsed are NaN. Both are refused, with
    the file's name, once the plane is needed.
    """

    path: Path
    frame: int
    rows: int
    columns: int
    position: Triple | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    #: SpacingBetweenSlices, else SliceThickness; used for a volume of one slice only.
    thickness: float | None
    slope: float | None
    intercept: float | None
    frame_of_reference: str
    #: pydicom cannot decode from the file alone: it is deflated, or does not state its transfer syntax.
    parse_first: bool

    @property
    def name(self) -> str:
        """What to call this plane in a message."""
        return str(self.path) if self.frame == 0 else f"{self.path} (frame {self.frame + 1})"


@dataclass(frozen=True, kw_only=True)
class DicomFile:
    """One readable DICOM file.

    ``aside`` says why it is no slice of a volume (empty: it is one); ``damage`` says what is wrong with a
    slice that must not be dropped.
    """

    path: Path
    series_uid: str
    modality: str
    number: int | None = None
    description: str = ""
    aside: str = ""
    damage: str = ""
    slices: tuple[Slice, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The files found under a path: readable DICOM, broken slices with the reason, all others with the reason."""

    files: tuple[DicomFile, ...]
    broken: tuple[tuple[Path, str], ...]
    others: tuple[tuple[Path, str], ...]


class UnreadableError(Exception):
    """This file cannot be read as DICOM; the text says why."""


def scan_folder(folder: Path, track: Track = silent) -> Scan:
    """Read the headers of every file under a folder, subfolders included.

    Returns:
        Scan, its files in the order of their paths.
    """
    walked = list(_walk(folder))
    unfinished = {path for path in walked if is_leftover(path.relative_to(folder))}
    paths = [path for path in walked if path not in unfinished]
    files: list[DicomFile] = []
    failed: list[tuple[Path, bool, str]] = []
    for path in track(paths, "reading headers", total=len(paths)):
        marked = False
        try:
            marked = is_marked(path)
            files.append(read_header(path))
        except (UnreadableError, OSError) as error:
            failed.append((path, marked, str(error) if isinstance(error, UnreadableError) else f"{error.strerror}"))
    usual = _usual_suffixes(files)
    broken, others = [], [(path, "unfinished output of a killed run") for path in sorted(unfinished)]
    for path, marked, reason in failed:
        hidden = path.name.startswith(".")
        expected = _suffix(path) in DICOM_SUFFIXES or _suffix(path) in usual.get(path.parent, set())
        if marked or (expected and not hidden):
            broken.append((path, reason))
        else:
            others.append((path, "not DICOM"))
    return Scan(files=tuple(files), broken=tuple(broken), others=tuple(others))


def _walk(folder: Path) -> Iterator[Path]:
    """Yield regular files under a folder by path; links are followed, each folder once."""
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        folders[:] = [name for name in folders if name != "__MACOSX"]
        yield from (path for name in sorted(names) if (path := Path(parent, name)).is_file() or path.is_symlink())


def _suffix(path: Path) -> str:
    """Return the suffix in lower case; a number (as in CT.1.2.840.7) is no suffix."""
    suffix = path.suffix.lower()
    return "" if suffix[1:].isdigit() else suffix


def _usual_suffixes(files: list[DicomFile]) -> dict[Path, set[str]]:
    counts: dict[Path, Counter[str]] = {}
    for file in files:
        if not file.aside:
            counts.setdefault(file.path.parent, Counter())[_suffix(file.path)] += 1
    return {folder: {s for s, n in count.items() if n == max(count.values())} for folder, count in counts.items()}


def is_marked(path: Path) -> bool:
    """Tell whether a file has the DICM mark of DICOM PS3.10, section 7.1."""
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def read_header(path: Path) -> DicomFile:
    """Read one file's header.

    Raises:
        UnreadableError: the file is empty, not DICOM, or its header is broken.
        OSError: the file cannot be opened.
    """
    with path.open("rb") as stream:
        head = stream.read(136)
        if not head:
            raise UnreadableError("the file is empty (0 bytes)")
        marked = head[128:132] == b"DICM"
        if not marked and not _starts_like_dicom(head):
            raise UnreadableError("not a DICOM file")
        stream.seek(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=not marked, specific_tags=_TAGS)
                pixels = stream.tell()
                file = _describe(path, dataset)
        except Exception as error:  # pydicom raises whatever a damaged byte leads to; none of it is our fault
            raise UnreadableError(f"the DICOM header is broken ({first_line(error)})") from None
        if not marked and not (dataset.get("SOPClassUID") or dataset.get("Modality")):
            raise UnreadableError("not a DICOM file")
        if file.aside or file.damage:
            return file
        damage = _pixel_damage(stream, pixels, dataset)
        if damage == NO_PIXELS:
            raise UnreadableError(damage)  # nor can the elements before be trusted to be all there
        return replace(file, damage=damage)


def _starts_like_dicom(head: bytes) -> bool:
    """Tell whether bytes look like a data set without preamble: first element in group 0002 or 0008."""
    if len(head) < 8:
        return False
    return any(group in (2, 8) and element < 0x80
               for group, element in (struct.unpack(order + "HH", head[:4]) for order in "<>"))  # fmt: skip


def _describe(path: Path, dataset: Dataset) -> DicomFile:
    meta = getattr(dataset, "file_meta", None) or Dataset()
    sop_class = str(dataset.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or "")
    modality = str(dataset.get("Modality") or "")
    number = dataset.get("SeriesNumber")
    if not sop_class and not modality and "Rows" not in dataset:
        raise EOFError("it ends before it says what the file holds")
    common = DicomFile(
        path=path,
        series_uid=str(dataset.get("SeriesInstanceUID") or ""),
        modality=modality,
        number=int(number) if number is not None and str(number).strip() else None,
        description=str(dataset.get("SeriesDescription") or ""),
    )
    if aside := _aside(dataset, sop_class, modality):
        return replace(common, aside=aside)
    frames = int(dataset.get("NumberOfFrames") or 1)
    placed = len(_values(dataset.get("PerFrameFunctionalGroupsSequence")))
    if frames != 1 and frames != placed:
        return replace(common, damage=f"{frames} frames with {placed} positions: expected one position for each frame")
    return replace(common, slices=tuple(_slices(path, dataset, frames)))


def _aside(dataset: Dataset, sop_class: str, modality: str) -> str:
    """Return why a data set is no slice of a volume, or an empty string."""
    if sop_class == DIRECTORY_CLASS:
        return "DICOM directory"
    if modality in NOT_IMAGES:
        return NOT_IMAGES[modality]
    if sop_class.startswith(SECONDARY_CAPTURE):
        return "secondary capture"
    image_type = [str(v).upper() for v in _values(dataset.get("ImageType"))]
    if sop_class == PARAMETRIC_MAP:
        return "parametric map"
    if "LOCALIZER" in image_type or "SCOUT" in image_type:
        return "localizer"
    if "SCREEN SAVE" in image_type:
        return "screen save"
    if "Rows" not in dataset and not sop_class.startswith(("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4")):
        return "object without an image"
    if int(dataset.get("SamplesPerPixel") or 1) != 1 or "PALETTE" in str(dataset.get("PhotometricInterpretation")):
        return "colour image"
    return ""


def _slices(path: Path, dataset: Dataset, frames: int) -> Iterator[Slice]:
    shared = _first(dataset.get("SharedFunctionalGroupsSequence")) or Dataset()
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for index in range(frames):
        own = per_frame[index] if index < len(per_frame) else Dataset()

        def group(name: str, own: Dataset = own) -> Dataset:
            # DICOM PS3.3 C.7.6.16: a functional group is given per frame, or once for all.
            return _first(own.get(name)) or _first(shared.get(name)) or (Dataset() if per_frame else dataset)

        measures = group("PixelMeasuresSequence")
        rescale = group("PixelValueTransformationSequence")
        position = _numbers(group("PlanePositionSequence").get("ImagePositionPatient"), 3)
        yield Slice(
            path=path,
            frame=index,
            rows=int(dataset.get("Rows") or 0),
            columns=int(dataset.get("Columns") or 0),
            position=(position[0], position[1], position[2]) if position else None,
            orientation=_numbers(group("PlaneOrientationSequence").get("ImageOrientationPatient"), 6),
            spacing=_numbers(measures.get("PixelSpacing"), 2),
            thickness=_number(measures.get("SpacingBetweenSlices")) or _number(measures.get("SliceThickness")),
            slope=NAN if "ModalityLUTSequence" in dataset else _number(rescale.get("RescaleSlope")),
            intercept=_number(rescale.get("RescaleIntercept")),
            frame_of_reference=str(dataset.get("FrameOfReferenceUID") or ""),
            parse_first=_stated_syntax(dataset) in ("", DEFLATED),
        )


def _pixel_damage(stream: BinaryIO, position: int, dataset: Dataset) -> str:
    """Return what is wrong with the pixel data at ``position``, judged without decoding it."""
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    bits = int(dataset.get("BitsAllocated") or 0)
    if not rows and not columns and not bits:
        return NO_PIXELS
    if rows < 1 or columns < 1 or bits not in (8, 16, 32):
        return f"{rows} rows, {columns} columns, {bits} bits: expected at least one row and column of 8, 16 or 32 bits"
    syntax = transfer_syntax(dataset)
    if syntax == DEFLATED:
        return ""  # the stream says nothing about the inflated data; decoding will
    order = "<" if syntax.is_little_endian else ">"
    size = stream.seek(0, os.SEEK_END)
    stream.seek(position)
    header = stream.read(12)
    if len(header) < 12 or struct.unpack(order + "HH", header[:4]) != (0x7FE0, 0x0010):
        return NO_PIXELS
    if syntax.is_compressed:
        return "" if _items_complete(stream) else "truncated: the compressed pixel data has no end"
    start = position + (8 if syntax.is_implicit_VR else 12)
    expected = rows * columns * (bits // 8) * int(dataset.get("NumberOfFrames") or 1)
    if size - start < expected:
        return f"truncated: {max(size - start, 0)} bytes of pixel data, expected {expected}"
    return ""


def _items_complete(stream: BinaryIO) -> bool:
    """Walk the fragments of encapsulated pixel data (DICOM PS3.5 A.4) to the sequence delimiter."""
    while len(item := stream.read(8)) == 8:
        group, element, length = struct.unpack("<HHI", item)
        if (group, element) == (0xFFFE, 0xE0DD):
            return True
        if (group, element) != (0xFFFE, 0xE000):
            return False
        stream.seek(length, os.SEEK_CUR)
    return False


def transfer_syntax(dataset: Dataset) -> UID:
    """Return the transfer syntax, taken from how the data set was encoded where the file meta lacks it."""
    if stated := _stated_syntax(dataset):
        return UID(stated)
    implicit, little = dataset.original_encoding
    if little is False:
        return UID("1.2.840.10008.1.2.2")
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _stated_syntax(dataset: Dataset) -> str:
    return str((getattr(dataset, "file_meta", None) or Dataset()).get("TransferSyntaxUID") or "")


def _values(value: object) -> list:
    if value is None or isinstance(value, str):
        return [] if not value else [value]
    try:
        return list(value)  # type: ignore[call-overload]
    except TypeError:
        return [value]


def _first(sequence: object) -> Dataset | None:
    items = _values(sequence)
    return items[0] if items else None


def _number(value: object) -> float | None:
    """Return one number; None where absent, NaN where it is no number."""
    if value is None or value == "":
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return NAN


def _numbers(value: object, count: int) -> tuple[float, ...] | None:
    """Return ``count`` numbers; None where absent, NaNs where they are not ``count`` numbers."""
    values = _values(value)
    if not values:
        return None
    if len(values) != count:
        return (NAN,) * count
    return tuple(NAN if (number := _number(v)) is None else number for v in values)
