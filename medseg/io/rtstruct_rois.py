"""What an RT structure set (PS3.3 A.19) holds: regions of interest and their contours, in millimetres as stored.

Nothing is matched to an image here, see `medseg.io.rtstruct`.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from medseg.errors import InputError, MedsegError
from medseg.io.dicom_files import first_line
from medseg.labels import Colour, one_line

RT_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
CONTOUR_DATA = Tag(0x3006, 0x0050)
#: Contours that enclose something (PS3.3 C.8.8.6.1), and whether they combine by exclusive or.
CLOSED = {"CLOSED_PLANAR": False, "CLOSEDPLANAR_XOR": True}


@dataclass(frozen=True, kw_only=True, eq=False)
class Contour:
    """One closed contour: [n, 3] points in LPS mm, how it combines, and the image it was drawn on, where named."""

    points: NDArray[np.float64]
    exclusive: bool
    image_uid: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Roi:
    """One region of interest.

    Attributes:
        number, name: its own; the name is one line and never empty.
        colour: RGB, where stated.
        frame_of_reference_uid: empty where not stated.
        algorithm, made_by: ROIGenerationAlgorithm and its description, empty where not stated.
        contours: the closed ones.
        set_aside: what else there is and encloses nothing, with a count: points, open lines, closed contours of
            fewer than three points.
    """

    number: int
    name: str
    colour: Colour | None
    frame_of_reference_uid: str
    algorithm: str
    made_by: str
    contours: tuple[Contour, ...]
    set_aside: dict[str, int]


def is_rtstruct(dataset: Dataset) -> bool:
    """Tell whether a data set is an RT structure set."""
    return str(dataset.get("SOPClassUID") or "") == RT_STRUCTURE_SET or str(dataset.get("Modality")) == "RTSTRUCT"


def open_rtstruct(path: Path) -> Dataset:
    """Read the data set of an RT structure set.

    Raises:
        InputError: not there, damaged, or another kind of object.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = dcmread(path, force=True)
            kind = str(dataset.get("Modality") or "no modality")
            found = is_rtstruct(dataset)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror or error})") from None
    except Exception as error:  # pydicom raises whatever a damaged byte leads to
        raise InputError(f"{path}: cannot be read as DICOM ({first_line(error)}); copy the file again") from None
    if not found:
        raise InputError(f"{path}: a DICOM object of {kind}, expected an RT structure set (RTSTRUCT)")
    return dataset


def read_rois(dataset: Dataset, path: Path) -> list[Roi]:
    """Return every region of interest, those without contours too, in the order of the file.

    Raises:
        InputError: contours that cannot be read, are cut short, or belong to no region.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return list(_rois(dataset, path))
    except MedsegError:
        raise
    except (AttributeError, KeyError, IndexError, ValueError, TypeError, EOFError) as error:
        raise InputError(f"{path}: not a usable RT structure set ({first_line(error)}); export it again") from None


def referenced_series(dataset: Dataset) -> list[str]:
    """Return the SeriesInstanceUIDs that the structure set says it was drawn on."""
    return [
        str(series.get("SeriesInstanceUID") or "")
        for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []
        for study in frame.get("RTReferencedStudySequence") or []
        for series in study.get("RTReferencedSeriesSequence") or []
        if series.get("SeriesInstanceUID")
    ]


def _rois(dataset: Dataset, path: Path) -> Iterator[Roi]:
    described = {}
    for item in dataset.get("StructureSetROISequence") or []:
        number = int(item.ROINumber)
        if number in described:
            raise InputError(f"{path}: two regions of interest have the number {number}; export it again")
        described[number] = item
    drawn: dict[int, Dataset] = {}
    for item in dataset.get("ROIContourSequence") or []:
        number = int(item.ReferencedROINumber)
        if number in drawn or number not in described:
            what = "twice" if number in drawn else "but StructureSetROISequence does not describe it"
            raise InputError(f"{path}: there are contours of region {number} {what}; export it again")
        drawn[number] = item
    frames = {str(f.get("FrameOfReferenceUID") or "") for f in dataset.get("ReferencedFrameOfReferenceSequence") or []}
    usual = str(dataset.get("FrameOfReferenceUID") or "") or (frames.pop() if len(frames) == 1 else "")
    for number, item in described.items():
        name = one_line(str(item.get("ROIName") or "")).strip() or f"ROI {number}"
        contours, aside = _contours(drawn.get(number), name, path)
        yield Roi(
            number=number,
            name=name,
            colour=_colour(drawn.get(number)),
            frame_of_reference_uid=str(item.get("ReferencedFrameOfReferenceUID") or "") or usual,
            algorithm=str(item.get("ROIGenerationAlgorithm") or ""),
            made_by=one_line(str(item.get("ROIGenerationDescription") or "")).strip(),
            contours=tuple(contours),
            set_aside=dict(aside),
        )


def _colour(item: Dataset | None) -> Colour | None:
    value = item.get("ROIDisplayColor") if item is not None else None
    if value is None or isinstance(value, (int, str)) or len(value) != 3:
        return None
    r, g, b = (min(255, max(0, int(v))) for v in value)
    return r, g, b


def _contours(item: Dataset | None, name: str, path: Path) -> tuple[list[Contour], Counter[str]]:
    contours: list[Contour] = []
    aside: Counter[str] = Counter()
    for number, one in enumerate((item.get("ContourSequence") if item is not None else None) or [], 1):
        kind = str(one.get("ContourGeometricType") or "no type").strip()
        if kind not in CLOSED:
            aside[kind] += 1
            continue
        points = _points(one, f"{path}: contour {number} of {name!r}")
        if len(points) < 3:
            aside[f"{kind} of fewer than 3 points"] += 1
            continue
        images = one.get("ContourImageSequence") or []
        uid = str(images[0].get("ReferencedSOPInstanceUID") or "") if len(images) == 1 else ""
        contours.append(Contour(points=points, exclusive=CLOSED[kind], image_uid=uid))
    return contours, aside


def _points(item: Dataset, what: str) -> NDArray[np.float64]:
    """Return the [n, 3] points of a contour.

    The stored text is taken as it is: pydicom's decimal strings would cost a hundred times as much.
    """
    element = item.get_item(CONTOUR_DATA)
    value = element.value if element is not None else None
    if value is None or isinstance(value, bytes):
        texts = (value or b"").strip(b"\0 ").split(b"\\")
        try:
            numbers = np.array([float(text) for text in texts if texts != [b""]], np.float64)
        except ValueError:
            raise InputError(f"{what}: its points are no numbers; export it again") from None
    else:
        numbers = np.array(value, np.float64)
    stated = item.get("NumberOfContourPoints")
    if len(numbers) % 3 or (stated is not None and int(stated) != len(numbers) // 3):
        raise InputError(
            f"{what}: {len(numbers)} coordinates, expected 3 for each of {stated} points; was the file cut short?"
        )
    if not np.isfinite(numbers).all():
        raise InputError(f"{what}: points at NaN or infinity; export it again")
    return numbers.reshape(-1, 3)
