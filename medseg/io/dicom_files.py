"""DICOM files: which files of a folder are slices, and what their headers say.

A file counts as a slice and must be readable if it has the DICM mark, a DICOM suffix, or the suffix (or lack
of one) that most slices of its folder have; anything else is set aside. No voxel is read here, and no
element that names the patient.
"""

import hashlib
import os
import struct
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medseg.errors import InputError
from medseg.io.atomic import is_leftover
from medseg.io.dicom_header import TAGS, Fields, Slice, read_slices, reason_aside
from medseg.io.dicom_pixels import NO_PIXELS, PixelDamageError, find_pixels, first_line
from medseg.io.series import series_name
from medseg.progress import Track, silent

DICOM_SUFFIXES = {".dcm", ".dicom", ".dic", ".ima"}


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
    """This file cannot be read as DICOM; the text says why, ``marked`` whether it has the DICM mark."""

    def __init__(self, text: str, marked: bool = False):
        super().__init__(text)
        self.marked = marked


def scan_folder(folder: Path, track: Track = silent) -> Scan:
    """Read the headers of every file under a folder, subfolders included.

    Returns:
        Scan, its files in the order of their paths.

    Raises:
        InputError: a subfolder cannot be opened.
    """
    walked = list(_walk(folder))
    unfinished = {path for path in walked if is_leftover(path.relative_to(folder))}
    paths = [path for path in walked if path not in unfinished]
    files: list[DicomFile] = []
    failed: list[tuple[Path, bool, str]] = []
    for path in track(paths, "reading headers", total=len(paths)):
        try:
            files.append(read_header(path))
        except UnreadableError as error:
            failed.append((path, error.marked, str(error)))
        except OSError as error:
            failed.append((path, False, f"cannot be opened ({error.strerror})"))
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


def first_image_file(folder: Path) -> DicomFile | None:
    """Return the first file by path under a folder that is an image's; None where there is none.

    Raises:
        InputError: a subfolder cannot be opened.
    """
    for path in _walk(folder):
        try:
            file = read_header(path)
        except (UnreadableError, OSError):
            continue
        if not file.aside:
            return file
    return None


def neutral_name(file: DicomFile) -> str:
    """Return what the series of a file is called in names of cases: folders are often named after patients."""
    if file.series_uid:
        return series_name(file.series_uid)
    return hashlib.sha256(file.path.read_bytes()).hexdigest()[:10]


def scan_files(paths: Sequence[Path], track: Track = silent) -> Scan:
    """Read the headers of files that were named one by one: each of them must be DICOM.

    Raises:
        InputError: names the first that cannot be read.
    """
    files = []
    for path in track(paths, "reading headers", total=len(paths)):
        try:
            files.append(read_header(path))
        except UnreadableError as error:
            raise InputError(f"{path}: {error}; expected a DICOM file") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be opened ({error.strerror})") from None
    return Scan(files=tuple(files), broken=(), others=())


def _walk(folder: Path) -> Iterator[Path]:
    """Yield regular files under a folder by path; links are followed, each folder once."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: the folder cannot be opened ({error.strerror})")

    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        folders[:] = [name for name in folders if name != "__MACOSX"]
        for path in (Path(parent, name) for name in sorted(names)):
            if path.is_file() or not path.exists():  # a link that leads nowhere may have been a slice
                yield path


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
                dataset = pydicom.dcmread(
                    stream, stop_before_pixels=True, force=not marked, specific_tags=list(TAGS.values())
                )
                return _describe(path, dataset, marked, stream)
        except UnreadableError:
            raise
        except Exception as error:  # pydicom raises whatever a damaged byte leads to; none of it is our fault
            raise UnreadableError(f"the DICOM header is broken ({first_line(error)})", marked) from None


def _starts_like_dicom(head: bytes) -> bool:
    """Tell whether bytes look like a data set without preamble: first element in group 0002 or 0008."""
    if len(head) < 8:
        return False
    return any(group in (2, 8) and element < 0x80
               for group, element in (struct.unpack(order + "HH", head[:4]) for order in "<>"))  # fmt: skip


def _describe(path: Path, dataset: Dataset, marked: bool, stream: BinaryIO) -> DicomFile:
    position = stream.tell()
    meta = getattr(dataset, "file_meta", None) or Dataset()
    fields = Fields(dataset)
    meta_class = str(meta.get("MediaStorageSOPClassUID") or "")
    sop_class = fields.text("SOPClassUID") or meta_class
    modality = fields.text("Modality")
    number = fields.text("SeriesNumber")
    if not sop_class and not modality:
        if not marked:
            raise UnreadableError("not a DICOM file")
        if "Rows" not in fields:
            raise UnreadableError("the DICOM header is broken (it ends before it says what the file holds)", marked)

    def made(*, aside: str = "", damage: str = "", slices: tuple[Slice, ...] = ()) -> DicomFile:
        return DicomFile(
            path=path, series_uid=fields.text("SeriesInstanceUID"), modality=modality,
            number=int(number) if number.lstrip("+-").isdecimal() else None,
            description=_description(dataset), aside=aside, damage=damage, slices=slices,
        )  # fmt: skip

    if meta_class not in ("", sop_class):
        raise UnreadableError("the DICOM header is broken (two SOP classes)", marked)
    if aside := reason_aside(fields, sop_class, modality):
        return made(aside=aside)
    frames = int(fields.number("NumberOfFrames") or 1)
    placed = len(fields.items("PerFrameFunctionalGroupsSequence"))
    if frames != 1 and frames != placed:
        return made(damage=f"{frames} frames with {placed} positions: expected one position for each frame")
    stated = str(meta.get("TransferSyntaxUID") or "")
    implicit, little = dataset.original_encoding
    bare = ExplicitVRBigEndian if little is False else ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    allocated = fields.integer("BitsAllocated")
    stored = fields.integer("BitsStored") or allocated
    try:
        layout = find_pixels(
            stream, position, UID(stated or bare), bool(stated), little is not False,
            rows=fields.integer("Rows"), columns=fields.integer("Columns"), frames=frames, bits_allocated=allocated,
            bits_stored=stored, high_bit=fields.integer("HighBit") if "HighBit" in fields else stored - 1,
            signed=fields.integer("PixelRepresentation"), padding=fields.integer("PixelPaddingValue"),
        )  # fmt: skip
    except PixelDamageError as damage:
        if str(damage) == NO_PIXELS:
            raise UnreadableError(NO_PIXELS, marked) from None  # nor can the elements before be trusted
        return made(damage=str(damage))
    return made(slices=tuple(read_slices(path, fields, frames, layout)))


def _description(dataset: Dataset) -> str:
    try:
        return str(dataset.get("SeriesDescription") or "")
    except Exception:  # a character set that is unknown, or not the one that the text is in
        return ""
