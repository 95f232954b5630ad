"""Which labels a label file names, from its header or its JSON; no voxel is read."""

import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from pydicom import dcmread

from medseg.errors import InputError, MedsegError
from medseg.io.dicom_context import dicom_kind
from medseg.io.dicom_files import first_line
from medseg.io.dicom_seg import is_dicom_seg
from medseg.io.dicom_seg_labels import segment_labels
from medseg.io.instances import has_segments, is_dicom
from medseg.io.labelmap import read_sidecar_labels
from medseg.io.rtstruct import roi_labels
from medseg.io.rtstruct_rois import open_rtstruct, read_rois
from medseg.io.seg_nrrd import read_seg_nrrd_labels
from medseg.labels import Label, LabelTable, palette_colour


def read_label_table(path: Path) -> LabelTable | None:
    """Return the labels that a file names: DICOM SEG, RTSTRUCT, .seg.nrrd, or a file with medseg's JSON beside it.

    Returns:
        The table; None for plain label maps, whose values have no names.

    Raises:
        InputError: not there, or unreadable.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected a label file")
    if has_segments(path):
        return read_seg_nrrd_labels(path)
    if not is_dicom(path):
        return read_sidecar_labels(path)
    try:
        if dicom_kind(path) == "RTSTRUCT":
            dataset = open_rtstruct(path)
            return roi_labels(read_rois(dataset, path), dataset)[1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = dcmread(path, stop_before_pixels=True)
            if not is_dicom_seg(dataset):
                raise InputError(
                    f"{path}: a DICOM object of {dataset.get('Modality') or 'no modality'}, expected a SEG"
                )
            return segment_labels(dataset, [item for item in dataset.SegmentSequence if int(item.SegmentNumber)])[1]
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror or error})") from None
    except Exception as error:  # pydicom raises whatever a damaged byte leads to
        raise InputError(f"{path}: its labels cannot be read ({first_line(error)}); export it again") from None


def united_labels(tables: Iterable[LabelTable]) -> LabelTable:
    """Return one table of several, labels of one name being one label.

    Ids stay where the tables agree on them; else labels are numbered from 1 in the order in which they are met, as
    every DICOM file numbers its own. A label is of kind ``ids`` where any table says so, else as the first says.
    """
    tables = list(tables)
    merged: dict[str, Label] = {}
    for table in tables:
        for label in table:
            known = merged.setdefault(label.name, label)
            if label.kind == "ids":
                merged[label.name] = replace(known, kind="ids")
    agreed = all(merged[label.name].id == label.id for table in tables for label in table)
    if agreed and len({label.id for label in merged.values()}) == len(merged):
        return LabelTable(merged.values())
    numbered = enumerate(merged.values(), 1)
    try:
        return LabelTable(replace(label, id=k, colour=_own_colour(label, k)) for k, label in numbered)
    except MedsegError as error:
        raise InputError(f"the labels of the cohort: {error}") from None


def _own_colour(label: Label, number: int) -> tuple[int, int, int]:
    """Return the colour for a new number: the palette's where the old one was the palette's too."""
    return palette_colour(number - 1) if label.colour == palette_colour(label.id - 1) else label.colour
