"""The cohort table: which image belongs to which label file and patient.

A cohort is a folder with ``cohort.csv`` (columns image, label and, if wanted, patient and case; paths relative to the
table) and, beside it, ``labels.json`` with the label table. Cases with several images have a column ``image:NAME`` per
channel in place of ``image``, such as ``image:T1,image:T2``. Training, prediction and evaluation read it here, so that
they give a case the same name. Prediction needs no column ``label``; a text file with an image in each line is such a
table, too.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import InputError, MedsegError
from medseg.io.dicom_files import first_image_file, neutral_name
from medseg.labels import LabelTable

COLUMNS = ("image", "label", "patient")
#: What a list of images, one in each line, ends with.
LIST_SUFFIX = ".txt"
#: The column that names the cases, where it is there.
CASE_COLUMN = "case"
TABLE_NAME = "cohort.csv"
LABELS_NAME = "labels.json"
#: What the column of a channel begins with, where there are several; the rest is its name.
CHANNEL_PREFIX = "image:"

#: Endings that are taken off a file name to get its stem, longest first.
_SUFFIXES = (".seg.nrrd", ".seg.nhdr", ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".zip")


@dataclass(frozen=True, kw_only=True)
class CohortRow:
    """One case of a cohort.

    Attributes:
        name: the case's name, unique in its table: that of its column ``case``, else `case_name`.
        images: absolute paths of the images, a file or a DICOM folder each; one per channel, in the cohort's order.
        label: absolute path of the label file.
        patient: whose image it is; cases of one patient are never split between training and validation.
        series: SeriesInstanceUID of the image, where its DICOM folder may hold several; None elsewhere.
    """

    name: str
    images: tuple[Path, ...]
    label: Path
    patient: str
    series: str | None = None


def stem_of(path: Path) -> str:
    """Return the file name without its image suffix (``a.b.nii.gz`` gives ``a.b``), a folder's name as it is."""
    lower = path.name.lower()
    for suffix in _SUFFIXES:
        if lower.endswith(suffix) and len(lower) > len(suffix):
            return path.name[: -len(suffix)]
    return path.name


def case_name(image: Path, line: int) -> str:
    """Return what a case is called that its table does not name: the stem of a file, a hash of a folder's series.

    DICOM folders are often named after patients; one that is not there, or holds no image, is called by its row.
    """
    if not image.is_dir():
        return stem_of(image) if image.exists() or image.name.lower().endswith(_SUFFIXES) else f"row {line}"
    first = first_image_file(image)
    return f"row {line}" if first is None else neutral_name(first)


def table_path(path: Path | str) -> Path:
    """Return the table that a path means: the file itself, or ``cohort.csv`` in the folder."""
    path = Path(path)
    return path / TABLE_NAME if path.is_dir() else path


def read_cohort_table(
    path: Path | str, *, images: bool = True, labels: bool = True, unlabelled: bool = False
) -> list[CohortRow]:
    """Read a cohort table.

    Args:
        path: the table, or the folder that holds ``cohort.csv``.
        images: whether the images must be there; evaluation reads the label files alone.
        labels: whether the label files must be there.
        unlabelled: whether the column ``label`` may be missing; the cases then have label files that are not there.

    Returns:
        The cases in the order of the table, at least one. Without a column ``patient`` each is a patient of its own.

    Raises:
        InputError: no table, not a CSV, a column missing, no rows, an empty cell, a file that is not
            there (row named; the header is row 1), or two rows of one name.
    """
    table = table_path(path)
    header, entries = _read_csv(table, unlabelled=unlabelled)
    columns = [*_image_columns(header, table).values(), *(c for c in ("label", "patient", CASE_COLUMN) if c in header)]
    rows: list[CohortRow] = []
    first_line: dict[str, int] = {}
    for line, entry in entries:
        row = _read_row(entry, columns, table, line)
        for column, file in (*(("image", image) for image in row.images), ("label", row.label)):
            if not file.exists() and (labels if column == "label" else images):
                raise InputError(f"{table}, row {line}: {column} {file.name!r} does not exist (looked for {file})")
        if row.name in first_line:
            raise InputError(
                f"{table}, rows {first_line[row.name]} and {line}: two cases are called {row.name!r}; name each "
                "in a column case"
            )
        first_line[row.name] = line
        rows.append(row)
    return rows


def read_cohort_channels(path: Path | str) -> tuple[str, ...]:
    """Return what the images of a cohort table are called, in the order of its columns: ``image`` for one.

    Raises:
        InputError: see `read_cohort_table`.
    """
    table = table_path(path)
    return tuple(_image_columns(_read_csv(table, unlabelled=True)[0], table))


def names_patients(path: Path | str) -> bool:
    """Tell whether a cohort table has a column ``patient``."""
    return "patient" in _read_csv(table_path(path), unlabelled=True)[0]


def _read_csv(table: Path, *, unlabelled: bool) -> tuple[list[str], list[tuple[int, dict[str, str | None]]]]:
    """Return the header of a table, and its rows with the number of their last line."""
    if not table.exists():
        raise InputError(f"{table}: no such cohort table; expected a CSV with the columns {', '.join(COLUMNS)}")
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            if table.suffix.lower() == LIST_SUFFIX:
                header = ["image"]
                entries: list[tuple[int, dict[str, str | None]]]
                entries = [(number, {"image": line}) for number, line in enumerate(file, start=1) if line.strip()]
            else:
                reader = csv.DictReader(file, strict=True)
                header = [str(column).strip() for column in reader.fieldnames or ()]
                reader.fieldnames = header
                entries = [(reader.line_num, entry) for entry in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: not a readable UTF-8 CSV file ({error})") from None
    missing = [] if any(c == "image" or c.startswith(CHANNEL_PREFIX) for c in header) else ["image"]
    missing += [] if "label" in header or unlabelled else ["label"]
    if missing:
        raise InputError(f"{table}: columns {missing} are missing (found {header}); expected {', '.join(COLUMNS)}")
    if not entries:
        raise InputError(f"{table}: no cases below the header; add a row per case")
    return header, entries


def _image_columns(header: list[str], table: Path) -> dict[str, str]:
    """Return the column of each channel."""
    channels = [column for column in header if column.startswith(CHANNEL_PREFIX)]
    if not channels:
        return {"image": "image"}
    names = [column.removeprefix(CHANNEL_PREFIX).strip() for column in channels]
    if "image" in header or len(set(names)) != len(names) or not all(names):
        raise InputError(
            f"{table}: columns {['image'] * ('image' in header) + channels}; expected one column image, or one per "
            "channel, each with a name of its own (image:T1,image:T2)"
        )
    return dict(zip(names, channels, strict=True))


def _read_row(entry: dict[str, str | None], columns: list[str], table: Path, line: int) -> CohortRow:
    cells = {column: (entry.get(column) or "").strip() for column in columns}
    empty = [column for column in columns if not cells[column]]
    if empty:
        raise InputError(f"{table}, row {line}: {' and '.join(empty)} empty; fill in every column")
    names = {column: cells.pop(column) for column in ("patient", CASE_COLUMN) if column in cells}
    files = {column: table.parent.absolute() / cell for column, cell in cells.items()}
    label = files.pop("label", None)
    images = tuple(files.values())
    name = names.get(CASE_COLUMN) or case_name(images[0], line)
    if "/" in name or "\\" in name or name.startswith("."):
        raise InputError(f"{table}, row {line}: case {name!r}, expected a plain file name without slashes")
    label = label or table.parent.absolute() / "labels" / name
    return CohortRow(name=name, images=images, label=label, patient=names.get("patient", name))


def read_cohort_labels(path: Path | str) -> LabelTable | None:
    """Read ``labels.json`` beside a cohort table or in a folder; None where there is none.

    Raises:
        InputError: the file is there and is not a label table.
    """
    path = Path(path)
    file = (path if path.is_dir() else path.parent) / LABELS_NAME
    return read_label_file(file) if file.exists() else None


def read_label_file(path: Path | str) -> LabelTable:
    """Read a JSON label table (a list of `LabelTable.to_dict` entries).

    Raises:
        InputError: missing, not JSON, or not a list of labels.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such label table; expected JSON, a list of labels with id and name") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable JSON file ({error})") from None
    if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
        raise InputError(f'{path}: expected a list of labels, for example [{{"id": 1, "name": "liver"}}]')
    try:
        return LabelTable.from_dict(data)
    except MedsegError as error:
        raise InputError(f"{path}: {error}") from None
