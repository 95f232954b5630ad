"""The layouts in which labelled cohorts lie on disk: nnU-Net, nnDetection, Medical Segmentation Decathlon.

All three have a ``dataset.json`` (nnDetection also ``dataset.yaml``) beside ``imagesTr`` and ``labelsTr``:

- nnU-Net 1 (Isensee et al., Nature Methods 18, 2021): labels ``{"1": "liver"}``, images ``<case>_0000.nii.gz``;
- nnU-Net 2: labels ``{"liver": 1}``, one image file per channel (``_0000``, ``_0001``), any file ending;
- nnDetection (Baumgartner et al., MICCAI 2021): folders in ``raw_splitted``, label maps of object ids with
  ``<case>.json`` beside them, classes numbered from 0; class c becomes label c + 1;
- Medical Segmentation Decathlon (Antonelli et al., Nature Communications 13, 2022): images without channel number,
  several channels as the volumes of one 4-D file.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from medseg.errors import InputError, MedsegError
from medseg.io.cohort_table import CohortRow, stem_of
from medseg.io.labelmap import sidecar_of
from medseg.io.patient_folders import BrokenCase
from medseg.labels import Kind, Label, LabelTable, palette_colour

#: What label files of these layouts end in.
LABEL_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
DATASET_NAMES = ("dataset.json", "dataset.yaml", "dataset.yml")
#: What the channel of a cohort of one image per case is called, where nothing names it.
ONE_CHANNEL = ("image",)


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Cases and what they share.

    Attributes:
        rows: the cases; without images where these were not asked for (see `medseg.data.cohort.find_cases`).
        channels: names of the images that every case has, in the order of its ``images``.
        labels: None: each label file holds numbers without names.
        layout: how the cohort lies on disk, in words.
        broken: cases that lack a file, besides ``rows``.
        regions: label id -> values of the label maps whose voxels it has, where labels are regions of several values;
            empty: each label has its own value.
    """

    rows: tuple[CohortRow, ...]
    channels: tuple[str, ...]
    labels: LabelTable | None
    layout: str = ""
    broken: tuple[BrokenCase, ...] = ()
    regions: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


def find_dataset(table: Path, *, images: bool = True, labels: bool = True) -> Cohort:
    """Read a cohort that a ``dataset.json`` or ``dataset.yaml`` describes.

    Args:
        table: the file.
        images, labels: whether a case that lacks its images, or its label, is broken.

    Raises:
        InputError: a table that cannot be read, or no label files.
        ConfigError: labels of one name or number.
    """
    data = _read_table(table)
    base = next((f for f in (table.parent / "raw_splitted", table.parent) if (f / "labelsTr").is_dir()), table.parent)
    pairs = _listed(data, table, base) or _labels_in(base / "labelsTr")
    objects = any(_counts_objects(sidecar_of(label)) for _, label in pairs)
    channels = _channels(data, table)
    rows, broken, stacked = [], [], False
    for named, label in pairs:
        case = stem_of(label)
        try:
            if labels:
                _check_label(label, objects)
            found = _images(named, label, base / "imagesTr", channels) if images else ()
        except InputError as error:
            broken.append(BrokenCase(name=case, reason=str(error)))
            continue
        stacked = stacked or bool(found) and not found[0].name.startswith(f"{case}_0000.")
        rows.append(CohortRow(name=case, images=found, label=label, patient=case))
    if channels is None:
        counts = {len(row.images) for row in rows}
        channels = ONE_CHANNEL if counts <= {1} else tuple(f"channel {k + 1}" for k in range(max(counts)))
    regions = _regions(data["labels"], table) if labels and not objects else {}
    numbered = {name: number for number, name in enumerate(regions, 1)} or data["labels"]
    return Cohort(
        rows=tuple(rows),
        channels=channels,
        labels=_label_table(numbered, table, "ids" if objects else "single", int(objects)) if labels else None,
        layout="nnDetection" if objects else "Medical Segmentation Decathlon" if stacked else "nnU-Net",
        broken=tuple(broken),
        regions=dict(enumerate(regions.values(), 1)),
    )


def find_images(folder: Path) -> Cohort | None:
    """Return the image files of a folder as cases to predict on, such as nnU-Net's ``imagesTs``.

    Where all files are numbered as nnU-Net numbers channels (``a_0000``, ``a_0001``), a case is the files of one name;
    else every file is one. Labels are where nnU-Net has them (``labelsTs``), there or not.

    Returns:
        The cases; None where there is anything beside images and their JSON: a DICOM study may hold a NIfTI file, too.
    """
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    files = [entry.absolute() for entry in entries if entry.is_file() and entry.name.endswith(LABEL_SUFFIXES)]
    if not files or any(entry.is_dir() or not entry.name.endswith((*LABEL_SUFFIXES, ".json")) for entry in entries):
        return None
    cases: dict[str, list[Path]] = {}
    for file in files:
        cases.setdefault(re.sub(r"_\d{4}$", "", stem_of(file)), []).append(file)
    expected = {f"{name}_{k:04d}" for name, images in cases.items() for k in range(len(images))}
    if expected != {stem_of(file) for file in files}:
        cases = {stem_of(file): [file] for file in files}
    labels = folder.absolute().with_name("labels" + folder.name.removeprefix("images"))
    rows = tuple(
        CohortRow(name=name, images=tuple(images), label=labels / f"{name}{images[0].name[len(stem_of(images[0])) :]}",
                  patient=name)
        for name, images in cases.items()
    )  # fmt: skip
    return Cohort(rows=rows, channels=ONE_CHANNEL, labels=None, layout="folder of images")


def _read_table(table: Path) -> dict[str, Any]:
    try:
        text = table.read_text(encoding="utf-8-sig")
        data = json.loads(text) if table.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{table}: expected JSON with 'labels' as nnU-Net writes it ({reason})") from None
    if not isinstance(data, dict) or not isinstance(data.get("labels"), dict):
        raise InputError(f"{table}: expected JSON with 'labels' as nnU-Net writes it, a table of names and numbers")
    return data


def _regions(labels: Mapping[str, Any], table: Path) -> dict[str, tuple[int, ...]]:
    """Return the values of each label where some are lists of values (nnU-Net 2); nothing where none is.

    ``regions_class_order`` is for predictions in which a voxel has one value, and does not matter where overlaps stay.
    """
    if not any(isinstance(value, (list, tuple)) for value in labels.values()):
        return {}
    regions = {}
    for name, value in labels.items():
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        if not values or not all(isinstance(v, int) and v >= 0 for v in values):
            raise InputError(f"{table}: region {name!r} has the values {values}, expected whole numbers above 0")
        if values == [0]:  # the background
            continue
        if 0 in values:
            raise InputError(f"{table}: region {name!r} has the values {values}; 0 is the background")
        regions[str(name)] = tuple(sorted(set(values)))
    return regions


def _label_table(labels: Mapping[str, Any], table: Path, kind: Kind, first: int) -> LabelTable:
    """Return the labels: ``{name: number}`` or ``{number: name}``; ``first`` is added to every number."""
    names: dict[int, str] = {}
    for key, value in labels.items():
        if isinstance(value, (list, tuple)):
            raise InputError(
                f"{table}: label {key!r} has the values {list(value)}, but numbered objects have one class"
            )
        turned = isinstance(value, str) and str(key).isdigit()
        try:
            number, name = (int(key), value) if turned else (int(value), str(key))
        except (ValueError, TypeError):
            raise InputError(
                f"{table}: expected JSON with 'labels' as nnU-Net writes it (label {key!r} has the number {value!r})"
            ) from None
        if name.lower() == "ignore":
            raise InputError(f"{table}: label {name!r} marks voxels without annotation, which is not supported")
        if number in names:
            raise InputError(f"{table}: label {number} is called {names[number]!r} and {name!r}; give each a number")
        names[number] = name
    if first and names.get(0, "").lower() == "background":
        raise InputError(
            f"{table}: calls 0 the background, but the .json beside the label maps counts classes from 0 as "
            "nnDetection does; number the labels from 0 without the background"
        )
    numbers = {number + first: name for number, name in names.items() if number + first > 0}
    try:
        return LabelTable(
            Label(id=number, name=name, colour=palette_colour(position), kind=kind)
            for position, (number, name) in enumerate(sorted(numbers.items()))
        )
    except MedsegError as error:
        raise type(error)(f"{table}: {error}") from None


def _channels(data: Mapping[str, Any], table: Path) -> tuple[str, ...] | None:
    """Return the names of the channels in their order, each different; None where the table names none."""
    named = next((data[key] for key in ("channel_names", "modality", "modalities") if data.get(key)), None)
    if named is None:
        return None
    try:
        names = (
            [str(named[key]) for key in sorted(named, key=int)] if isinstance(named, dict) else list(map(str, named))
        )
    except (ValueError, TypeError):
        raise InputError(f"{table}: channels {named!r}, expected names by number, such as {{'0': 'T1'}}") from None
    often = {name for name in names if names.count(name) > 1}
    return tuple(f"{name} {k}" if name in often else name for k, name in enumerate(names))


def _listed(data: Mapping[str, Any], table: Path, base: Path) -> list[tuple[tuple[Path, ...], Path]]:
    """Return the images and the label of every case that the table lists; none where it lists none."""
    try:
        if isinstance(data.get("dataset"), dict):  # nnU-Net 2
            entries = [(case["images"], case["label"]) for case in data["dataset"].values()]
        else:  # nnU-Net 1, the Decathlon
            entries = [([case["image"]], case["label"]) for case in data.get("training") or []]
        return [(tuple(_inside(base, image) for image in images), _inside(base, label)) for images, label in entries]
    except (TypeError, KeyError):
        raise InputError(
            f"{table}: expected a list of cases with image and label in 'training', as nnU-Net 1 writes it"
        ) from None


def _inside(base: Path, name: str) -> Path:
    return (base / name).absolute()


def _labels_in(folder: Path) -> list[tuple[tuple[Path, ...], Path]]:
    """Return the label files of a folder, without images."""
    labels = sorted(
        p.absolute() for p in folder.glob("*") if p.name.endswith(LABEL_SUFFIXES) and not p.name.startswith(".")
    )  # the Decathlon's archives hold macOS' ._ files beside every label
    if not labels:
        raise InputError(f"{folder}: no label files ({', '.join(LABEL_SUFFIXES)})")
    return [((), label) for label in labels]


def _check_label(label: Path, objects: bool) -> None:
    """Refuse a label file that is not there, or lacks nnDetection's JSON."""
    if not label.is_file():
        raise InputError(f"{label}: no such file, but the table lists it")
    if objects and not sidecar_of(label).is_file():
        raise InputError(f"{label}: no {sidecar_of(label).name} beside it, which says which object is what")


def _images(named: Sequence[Path], label: Path, folder: Path, channels: Sequence[str] | None) -> tuple[Path, ...]:
    """Return the image files of a case: those that are named and there, else by nnU-Net's rule or the label's name."""
    if named and all(image.is_file() for image in named):
        return tuple(named)
    case = stem_of(label)
    ending = label.name[len(case) :]
    numbered = sorted(p.absolute() for p in folder.glob(f"{_literal(case)}_[0-9][0-9][0-9][0-9]{_literal(ending)}"))
    expected = [folder.absolute() / f"{case}_{k:04d}{ending}" for k in range(len(channels or numbered))]
    if numbered and numbered == expected:
        return tuple(numbered)
    if numbered:
        found = ", ".join(path.name[len(case) + 1 : len(path.name) - len(ending)] for path in numbered)
        raise InputError(
            f"{label}: {len(numbered)} channels ({found}) of this case in {folder}, expected {len(expected)} numbered "
            "from 0000, as the table says"
        )
    whole = folder.absolute() / label.name
    if not whole.is_file():
        choice = " or ".join(str(p) for p in (*named[:1], folder.absolute() / f"{case}_0000{ending}"))
        raise InputError(f"{label}: no image for this label; expected {choice}")
    return (whole,)


def _literal(text: str) -> str:
    """Return text that a glob pattern takes as it is."""
    return "".join(f"[{c}]" if c in "[*?" else c for c in text)


def _counts_objects(sidecar: Path) -> bool:
    """Tell whether a file is nnDetection's ``{"instances": {"1": 0}}``."""
    if not sidecar.is_file():
        return False
    try:
        data = json.loads(sidecar.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and isinstance(data.get("instances"), dict) and "labels" not in data
