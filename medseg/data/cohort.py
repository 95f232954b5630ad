"""Labelled cohorts: find the cases, read and check each one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from highdicom import Volume, VolumeGeometry

from medseg.data.grid import stack_channels
from medseg.data.layouts import DATASET_NAMES, ONE_CHANNEL, Cohort, find_dataset, find_images
from medseg.errors import CasesError, ConfigError, GeometryError, InputError, MedsegError
from medseg.io.cohort_table import (
    LIST_SUFFIX,
    TABLE_NAME,
    CohortRow,
    names_patients,
    read_cohort_channels,
    read_cohort_labels,
    read_cohort_table,
)
from medseg.io.dicom_context import DicomContext, read_dicom_context
from medseg.io.identity import read_patient_id
from medseg.io.instances import has_segments, is_dicom, read_instances
from medseg.io.label_names import read_label_table, united_labels
from medseg.io.patient_folders import LAYOUT, BrokenCase, find_patient_cases
from medseg.io.volumes import read_channels
from medseg.labels import Kind, Label, LabelTable
from medseg.progress import Note, Track, silent, unheard
from medseg.values.geometry import describe_grid, grid_map
from medseg.values.instances import InstanceSet
from medseg.values.kinds import by_kind
from medseg.values.placement import place

#: What a table of cases ends with.
TABLE_SUFFIXES = (".csv", LIST_SUFFIX)
#: What a cohort may be, for messages.
EXPECTED = f"a folder with {TABLE_NAME} (image,label,patient), with dataset.json, or with a DICOM folder per patient"


def find_cohort(path: Path | str, kinds: Mapping[str, Kind] | None = None, track: Track = silent) -> Cohort:
    """Find the cases of a cohort by looking; no voxel is read.

    Args:
        path: a folder with ``cohort.csv`` (or a CSV of that form), with ``dataset.json`` (nnU-Net, nnDetection,
            Medical Segmentation Decathlon, see `medseg.data.layouts`), or with a folder per patient that holds DICOM
            series and a SEG or RTSTRUCT. ``labels.json`` in it is the label table and wins over every other.
        kinds: label name -> kind, which wins over the label table's.
        track: progress over folders of DICOM.

    Returns:
        The cases. Those that lack a file are in ``broken``, all of them perhaps, and `read_cases` raises them.

    Raises:
        InputError: nothing there, no or several of these layouts, or a broken table.
        ConfigError: a kind for a label that the cohort does not have.
    """
    path = Path(path)
    cohort = find_cases(path, track)
    own = read_cohort_labels(path)
    if own is not None:
        cohort = with_labels(cohort, own, path)
    elif cohort.labels is None:
        cohort = with_names(cohort, path)
    return with_kinds(cohort, kinds or {}, path)


def lists_cases(path: Path) -> bool:
    """Tell whether a path is a cohort's table, or a folder that holds one."""
    if path.is_file():
        return path.name in DATASET_NAMES or path.suffix.lower() in TABLE_SUFFIXES
    return any((path / name).is_file() for name in (TABLE_NAME, *DATASET_NAMES))


def find_cases(path: Path, track: Track = silent, *, images: bool = True, labels: bool = True) -> Cohort:
    """Find the cases of a cohort in any layout (see `find_cohort`); no label file is opened to name its labels.

    Args:
        path, track: see `find_cohort`.
        images, labels: whether a case that lacks its images, or its label, is broken: who judges predictions needs no
            images, who predicts no labels.

    Returns:
        The cases, with the labels that a ``dataset.json`` names, if there is one and labels are asked for.

    Raises:
        InputError: nothing there, no or several of the layouts, or a broken table.
    """
    if not path.exists():
        raise InputError(f"{path}: no such cohort; expected {EXPECTED}")
    if path.is_file():
        if path.name in DATASET_NAMES:
            return find_dataset(path, images=images, labels=labels)
        if path.suffix.lower() in TABLE_SUFFIXES:
            return _find_table(path, images=images, labels=labels)
        raise InputError(f"{path}: not a cohort; expected a CSV with the columns image, label, patient, or {EXPECTED}")
    found = [name for name in (TABLE_NAME, *DATASET_NAMES) if (path / name).is_file()]
    if len(found) > 1:
        raise InputError(
            f"{path}: {' and '.join(found)} found, expected one; name the one that counts, {path / found[0]}"
        )
    if found:
        find = _find_table if found[0] == TABLE_NAME else find_dataset
        return find(path / found[0], images=images, labels=labels)
    patients = find_patients(path, track)
    if patients is None:
        raise InputError(f"{path}: not a cohort; expected {EXPECTED}; found {_describe(path)}")
    return patients


def find_patients(path: Path, track: Track = silent) -> Cohort | None:
    """Return the cases of a folder that holds a folder of DICOM per patient; None where none has a SEG or RTSTRUCT."""
    patients = find_patient_cases(path, track)
    if not patients.rows and not patients.broken:
        return None
    channels = patients.modalities if len(patients.modalities) == 1 else ONE_CHANNEL
    return Cohort(rows=patients.rows, channels=channels, labels=None, layout=LAYOUT, broken=patients.broken)


def find_studies(path: Path, track: Track = silent, *, single: bool = False) -> Cohort | None:
    """Find the cases of a cohort to predict on, whose labels need not be there; None where a path is a single study.

    Args:
        path: what exists.
        track: progress over folders of DICOM.
        single: the user means a single study: only a table makes a cohort then. Without it a folder of image files is
            one (see `find_images`), and a folder of DICOM folders where at least two of these hold a segmented series;
            one may just as well be a study with a segmentation.

    Raises:
        InputError: see `find_cases`.
    """
    if lists_cases(path):
        return find_cases(path, track, labels=False)
    if single or not path.is_dir():
        return None
    images = find_images(path)
    if images is not None:
        return images
    patients = find_patients(path, track)
    return patients if patients is not None and len({row.images for row in patients.rows}) > 1 else None


def _describe(folder: Path) -> str:
    """Return what is in a folder that is no cohort, and what might be meant."""
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    for entry in entries:
        if entry.suffix.lower() == ".csv":
            return f"{entry.name}, which is taken where it is named: {entry}"
        if entry.is_dir() and any((entry / name).is_file() for name in (TABLE_NAME, *DATASET_NAMES)):
            return f"a cohort in {entry}; name that folder"
    folders = sum(entry.is_dir() for entry in entries)
    return f"{len(entries) - folders} files and {folders} folders, none with a SEG or RTSTRUCT"


def _find_table(table: Path, *, images: bool, labels: bool) -> Cohort:
    rows, broken = [], []
    for row in read_cohort_table(table, images=False, labels=False, unlabelled=not labels):
        needed = (*row.images * images, *(row.label,) * labels)
        missing = [file for file in needed if not file.exists()]
        if missing:
            broken.append(BrokenCase(name=row.name, reason=f"{missing[0]}: no such file, but {table.name} lists it"))
        else:
            rows.append(row)
    if not names_patients(table):
        rows = _patients_by_id(rows)
    names = read_cohort_channels(table)
    return Cohort(rows=tuple(rows), channels=names, labels=None, layout="table", broken=tuple(broken))


def _patients_by_id(rows: Sequence[CohortRow]) -> list[CohortRow]:
    """Return the cases, DICOM images of one PatientID as one patient; what they are called then is a number."""
    patients: dict[str, str] = {}
    grouped = []
    for row in rows:
        try:
            known = read_patient_id(row.images[0])
        except MedsegError:  # no DICOM, no PatientID, or unreadable, which reading the case will tell
            grouped.append(row)
            continue
        grouped.append(replace(row, patient=patients.setdefault(known, f"patient {len(patients) + 1}")))
    return grouped


def with_labels(cohort: Cohort, labels: LabelTable, path: Path) -> Cohort:
    """Return the cohort with another label table than its layout names.

    Raises:
        InputError: regions under other names: these are all that tells them apart.
    """
    if not cohort.regions or cohort.labels is None:
        return replace(cohort, labels=labels)
    if set(labels.names) != set(cohort.labels.names):
        raise InputError(
            f"{path}: its labels are the regions {', '.join(cohort.labels.names)}, and the label table names "
            f"{', '.join(labels.names)}; call them the same in both"
        )
    regions = {labels.by_name(label.name).id: cohort.regions[label.id] for label in cohort.labels}
    return replace(cohort, labels=labels, regions=regions)


def with_names(cohort: Cohort, path: Path) -> Cohort:
    """Return the cohort with the labels that its label files name; without a table where none of them does.

    Raises:
        InputError: some label files name their labels, and others do not; or tables that do not go together.
    """
    tables, rows, broken, nameless = [], [], list(cohort.broken), []
    for row in cohort.rows:
        try:
            table = read_label_table(row.label)
        except MedsegError as error:
            broken.append(BrokenCase(name=row.name, reason=str(error)))
            continue
        rows.append(row)
        if table is None:
            nameless.append(row)
        else:
            tables.append(table)
    if tables and nameless:
        raise InputError(
            f"{path}: {len(tables)} label files name their labels and {len(nameless)} do not ({nameless[0].label}); "
            'give the cohort one labels.json, such as [{"id": 1, "name": "liver"}]'
        )
    labels = united_labels(tables) if tables else None
    return replace(cohort, rows=tuple(rows), labels=labels, broken=tuple(broken))


def parse_kind(text: str) -> tuple[str, Kind]:
    """Read ``NAME=KIND`` as `medseg check --kind` takes it; the name may hold equal signs.

    Raises:
        ConfigError: another form, or an unknown kind.
    """
    name, _, kind = text.rpartition("=")
    for known in get_args(Kind):
        if name.strip() and kind.strip() == known:
            return name.strip(), known
    raise ConfigError(f"--kind {text!r}: expected NAME=KIND with a kind of {', '.join(get_args(Kind))}")


def with_kinds(cohort: Cohort, kinds: Mapping[str, Kind], path: Path) -> Cohort:
    """Return the cohort with other kinds for the labels named.

    Raises:
        ConfigError: a name that is no label of the cohort.
    """
    if not kinds:
        return cohort
    if cohort.labels is None and cohort.rows:
        raise ConfigError(
            f"{path}: the labels of this cohort have no names, so none can be given a kind; write labels.json beside "
            'it, such as [{"id": 1, "name": "liver", "kind": "components"}]'
        )
    if cohort.labels is None:  # no case could be read, which reading them will tell
        return cohort
    unknown = [name for name in kinds if name not in cohort.labels.names]
    if unknown:
        raise ConfigError(f"--kind {unknown[0]}: no such label in {path}; it has {', '.join(cohort.labels.names)}")
    table = LabelTable(replace(label, kind=kinds.get(label.name, label.kind)) for label in cohort.labels)
    return replace(cohort, labels=table)


def read_case(
    row: CohortRow,
    labels: LabelTable | None,
    note: Note = unheard,
    regions: Mapping[int, Sequence[int]] | None = None,
) -> tuple[tuple[Volume, ...], InstanceSet]:
    """Read the images and the label of a case, all of them in the first image's axis order.

    Args:
        row: the case.
        labels: the cohort's label table; objects are what its kinds say (see `medseg.values.kinds.by_kind`).
        note: takes what reading the label has to remark.
        regions: see `Cohort`.

    Raises:
        InputError: a file that cannot be read, or a label map without any object.
        GeometryError: images, or image and label, in different places.
    """
    try:
        volumes = _read_images(row)
        instances = _read_objects(row, volumes[0], labels, note, regions)
    except MedsegError as error:
        raise type(error)(f"case {row.name}: {error}") from None
    except OSError as error:
        raise InputError(f"case {row.name}: {error.filename}: cannot be read ({error.strerror or error})") from None
    return volumes, by_kind(instances) if labels is not None else instances


def _read_images(row: CohortRow) -> tuple[Volume, ...]:
    volumes: list[Volume] = []
    names: list[str] = []
    for image in row.images:
        found = read_channels(image, series=row.series)
        volumes += found
        names += [str(image)] * len(found)
    return stack_channels(volumes, names)


def _read_objects(
    row: CohortRow, volume: Volume, labels: LabelTable | None, note: Note, regions: Mapping[int, Sequence[int]] | None
) -> InstanceSet:
    """Read the label of a case on the grid of its image.

    DICOM need not cover all of the image, nor need a .seg.nrrd that was cut to its objects; what has the image's shape
    must lie on it.
    """
    geometry = volume.get_geometry()
    image: DicomContext | VolumeGeometry | None = None
    if row.label.is_file() and is_dicom(row.label):
        image = read_dicom_context(row.images[0], row.series) if row.images[0].is_dir() else geometry
    instances = read_instances(row.label, labels=labels, regions=regions, image=image, note=note)
    axis_map = grid_map(instances.geometry, volume)
    if axis_map is not None:
        instances = instances.moved(axis_map)
    elif has_segments(row.label) and sorted(instances.geometry.spatial_shape) != sorted(geometry.spatial_shape):
        instances = place(instances, geometry, f"{row.label}: the segmentation")
    else:
        raise GeometryError(
            f"image and label are in different places: {row.images[0]} has {describe_grid(volume)}, {row.label} has "
            f"{describe_grid(instances.geometry)}; bring the label to the image's grid"
        )
    if not len(instances):
        raise InputError(f"{row.label} is an empty label, nothing is marked; take the case out")
    return instances


def read_cohort_case(row: CohortRow, cohort: Cohort, note: Note = unheard) -> tuple[tuple[Volume, ...], InstanceSet]:
    """Read a case (see `read_case`) and check that it has the channels of its cohort.

    Raises:
        InputError: see `read_case`; or more or fewer images than the cohort has channels.
    """
    volumes, instances = read_case(row, cohort.labels, note, cohort.regions)
    if len(volumes) != len(cohort.channels):
        raise InputError(
            f"case {row.name}: {row.images[0]}: {len(volumes)} channels, expected {len(cohort.channels)} "
            f"({', '.join(cohort.channels)}); is it a series of other images?"
        )
    return volumes, instances


def broken_errors(cohort: Cohort) -> list[MedsegError]:
    """Return the errors of the cases that lack a file."""
    return [InputError(f"case {case.name}: {case.reason}") for case in cohort.broken]


def read_cases(cohort: Cohort, track: Track = silent) -> Iterator[tuple[CohortRow, tuple[Volume, ...], InstanceSet]]:
    """Read the cases of a cohort one after the other; broken ones are passed over and raised at the end.

    Raises:
        InputError, GeometryError: of the one broken case.
        CasesError: several cases are broken.
    """
    errors = broken_errors(cohort)
    for row in track(cohort.rows, "reading cases", len(cohort.rows)):
        try:
            volumes, instances = read_cohort_case(row, cohort)
        except MedsegError as error:
            errors.append(error)
            continue
        yield row, volumes, instances
    raise_broken(errors, cohort)


def raise_broken(errors: Sequence[MedsegError], cohort: Cohort) -> None:
    """Raise what is wrong with cases of a cohort, if anything is, as one error."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        cases = len(cohort.rows) + len(cohort.broken)
        headline = f"{len(errors)} of {cases} cases of the cohort cannot be used; mend them or take them out:"
        raise CasesError(headline, [str(error) for error in errors])


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
