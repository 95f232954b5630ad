"""Labelled cohorts: find the cases, read and check each one."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from highdicom import Volume

from medseg.data.grid import stack_channels
from medseg.errors import GeometryError, InputError
from medseg.io import read_instances, read_volume
from medseg.io.cohort_table import TABLE_NAME, CohortRow, read_cohort_labels, read_cohort_table, stem_of
from medseg.labels import Label, LabelTable, palette_colour
from medseg.progress import Track, silent
from medseg.values.geometry import describe_grid, grid_map
from medseg.values.instances import InstanceSet

#: What label files of nnU-Net's and the Decathlon's folders end in.
LABEL_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Cases and what they share.

    Attributes:
        rows: the cases.
        channels: names of the images that every case has, in the order of its ``images``.
        labels: None: each label file brings its own table, and all must agree.
    """

    rows: tuple[CohortRow, ...]
    channels: tuple[str, ...]
    labels: LabelTable | None


#: What the channel of a cohort of one image per case is called, where nothing names it.
ONE_CHANNEL = ("image",)


def find_cohort(path: Path | str) -> Cohort:
    """Find the cases of a cohort by looking.

    Args:
        path: a folder with ``cohort.csv`` (or that file), or an nnU-Net / Medical Segmentation Decathlon
            folder with ``dataset.json``, ``imagesTr`` and ``labelsTr``, one channel.

    Raises:
        InputError: nothing there, none of these layouts, or a broken table.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such cohort; expected a folder with {TABLE_NAME} or dataset.json")
    if path.is_file() or (path / TABLE_NAME).exists():
        return Cohort(rows=tuple(read_cohort_table(path)), channels=ONE_CHANNEL, labels=read_cohort_labels(path))
    if (path / "dataset.json").exists():
        return _find_dataset(path)
    raise InputError(f"{path}: not a cohort; expected a folder with {TABLE_NAME} (image,label,patient) or dataset.json")


def _find_dataset(folder: Path) -> Cohort:
    """Read nnU-Net's (v1, v2) and the Decathlon's folder layout."""
    table = folder / "dataset.json"
    try:
        data = json.loads(table.read_text(encoding="utf-8-sig"))
        names = {}
        for key, value in data["labels"].items():
            number, name = (int(value), str(key)) if not str(key).isdigit() else (int(key), str(value))
            if number:
                names[number] = name
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{table}: expected JSON with 'labels' as nnU-Net writes it ({error})") from None
    images, labels = folder / "imagesTr", folder / "labelsTr"
    rows = []
    for label in sorted(p for p in labels.glob("*") if p.name.endswith(LABEL_SUFFIXES)):
        if label.name.startswith("."):  # the Decathlon's archives hold macOS' ._ files beside every label
            continue
        stem = stem_of(label)
        ending = label.name[len(stem) :]
        channels = sorted(images.glob(f"{stem}_[0-9][0-9][0-9][0-9]{ending}"))
        if len(channels) > 1:
            raise InputError(f"{channels[1]}: case {stem} has {len(channels)} channels, one is supported")
        image = channels[0] if channels else images / f"{stem}{ending}"
        if not image.exists():
            raise InputError(f"{label}: no image for this label; expected {images / f'{stem}_0000{ending}'}")
        rows.append(CohortRow(name=stem, images=(image,), label=label, patient=stem))
    if not rows:
        raise InputError(f"{labels}: no label files ({', '.join(LABEL_SUFFIXES)})")
    described = LabelTable(
        Label(id=number, name=name, colour=palette_colour(position), kind="single")
        for position, (number, name) in enumerate(sorted(names.items()))
    )
    return Cohort(rows=tuple(rows), channels=ONE_CHANNEL, labels=described)


def read_case(row: CohortRow, labels: LabelTable | None) -> tuple[tuple[Volume, ...], InstanceSet]:
    """Read the images and the label of a case, all of them in the first image's axis order.

    Raises:
        InputError: a file that cannot be read, or a label map without any object.
        GeometryError: images, or image and label, in different places.
    """
    volumes = stack_channels([read_volume(image) for image in row.images], [str(image) for image in row.images])
    instances = read_instances(row.label, labels=labels)
    axis_map = grid_map(instances.geometry, volumes[0])
    if axis_map is None:
        raise GeometryError(
            f"case {row.name}: image and label are in different places: {row.images[0]} has "
            f"{describe_grid(volumes[0])}, {row.label} has {describe_grid(instances.geometry)}; bring the label to "
            "the image's grid"
        )
    if not len(instances):
        raise InputError(f"case {row.name}: {row.label} is an empty label, nothing is marked; take the case out")
    return volumes, instances.moved(axis_map)


def read_cases(cohort: Cohort, track: Track = silent) -> Iterator[tuple[CohortRow, tuple[Volume, ...], InstanceSet]]:
    """Read the cases of a cohort one after the other; the first broken one ends it with its error."""
    for row in track(cohort.rows, "reading cases", len(cohort.rows)):
        volumes, instances = read_case(row, cohort.labels)
        yield row, volumes, instances


def common_labels(tables: Sequence[LabelTable], source: str) -> LabelTable:
    """Return the union of the cases' label tables; InputError where one id has two names."""
    merged: dict[int, Label] = {}
    for table in tables:
        for label in table:
            known = merged.setdefault(label.id, label)
            if known.name != label.name:
                raise InputError(
                    f"{source}: label {label.id} is called {known.name!r} in one case and {label.name!r} in another; "
                    "give the cohort one labels.json"
                )
    return LabelTable(merged.values())
