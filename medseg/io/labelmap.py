"""Label maps, one voxel one object: NIfTI written and read, NRRD and MetaImage read, with a JSON file beside them.

The JSON (``<stem>.json``) says which value is which object. Two forms are understood: medseg's, with the label table
in it, and nnDetection's ``{"instances": {"1": 0, "2": 0}}``, where class c is label c + 1. Without instances in it, or
without a JSON, the values of the map are label ids; medseg's JSON then holds the label table alone.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray

from medseg.errors import InputError, MedsegError
from medseg.io.atomic import write_json
from medseg.io.cohort_table import stem_of
from medseg.io.itk import read_itk_labels
from medseg.io.label_tables import caret_label_table
from medseg.io.nifti import NIFTI_SUFFIXES, read_nifti_labels, write_nifti
from medseg.labels import Kind, Label, LabelTable, palette_colour
from medseg.values.instances import InstanceSet, Overlap


def sidecar_of(path: Path) -> Path:
    """Return where the JSON of a label map lies: ``case.nii.gz`` has ``case.json``."""
    return path.with_name(stem_of(path) + ".json")


def write_labelmap(path: Path, instances: InstanceSet, overlap: Overlap) -> dict[int, int]:
    """Write instance ids 1..N as uint16 NIfTI on the set's grid, and the JSON beside it.

    Args:
        path: ends in .nii or .nii.gz.
        instances: the objects.
        overlap: who keeps a shared voxel (see `InstanceSet.to_labelmap`).

    Returns:
        Voxels lost to other objects, per instance id that lost any.
    """
    flat = instances.to_labelmap(overlap)
    geometry = instances.geometry
    volume = Volume(flat.array, geometry.affine, "PATIENT", frame_of_reference_uid=geometry.frame_of_reference_uid)
    write_nifti(path, volume, label_table=caret_label_table(instances))
    rows = {}
    for instance, name in zip(instances, instances.names(), strict=True):
        rows[str(instance.id)] = {
            "label": instance.label,
            "name": name,
            "score": float(instance.score),
            "voxels": instance.voxels,
            "voxels_lost_to_overlap": flat.lost_voxels.get(instance.id, 0),
            **({} if instance.source_id is None else {"source_id": instance.source_id}),
        }
    write_json(sidecar_of(path), {"instances": rows, "overlap": overlap, "labels": instances.labels.to_dict()})
    return flat.lost_voxels


def write_semantic(path: Path, instances: InstanceSet, overlap: Overlap) -> dict[int, int]:
    """Write label ids as NIfTI (uint8, or uint16 where an id is above 255), and the label table as JSON beside it.

    Args:
        path: ends in .nii or .nii.gz.
        instances: the objects; those of one label become one.
        overlap: who keeps a voxel that objects of several labels share (see `InstanceSet.to_labelmap`).

    Returns:
        Voxels lost to other labels, per instance id that lost any.
    """
    flat = instances.to_labelmap(overlap).array
    highest = max(instances.labels.ids, default=0)
    numbers = np.array([0, *(i.label for i in instances)], np.uint8 if highest <= 255 else np.uint16)
    array = numbers[flat]
    geometry = instances.geometry
    volume = Volume(array, geometry.affine, "PATIENT", frame_of_reference_uid=geometry.frame_of_reference_uid)
    write_nifti(path, volume, label_table=caret_label_table(instances.labels))
    write_json(sidecar_of(path), {"labels": instances.labels.to_dict(), "overlap": overlap})
    lost = {i.id: int(np.count_nonzero(array[i.window][i.mask] != i.label)) for i in instances}
    return {key: count for key, count in lost.items() if count}


def read_labelmap(path: Path, labels: LabelTable | None) -> InstanceSet:
    """Read a label map and its JSON.

    Args:
        path: NIfTI, NRRD or MetaImage; integers, or floats that are whole numbers.
        labels: what the values (or nnDetection's classes) mean; None: each value is one object of a label
            ``label N``. The labels of medseg's own JSON are found in it by name.

    Returns:
        The objects; what the file calls them is their ``source_id``, unless its JSON hands down an older number.

    Raises:
        InputError: values that are negative, no whole numbers or not in the table; a JSON that does not fit.
    """
    nifti = path.name.lower().endswith(NIFTI_SUFFIXES)
    volume = read_nifti_labels(path) if nifti else read_itk_labels(path)
    array = _whole_numbers(volume.array, path)
    record = _read_sidecar(sidecar_of(path))
    if record is not None:
        return _read_objects(array, volume, record, labels, path)
    own = _read_table(sidecar_of(path))
    if own is not None and labels is not None:
        array = _renumbered(array, own, labels, path)
    elif own is not None:
        labels = own
    if labels is None:
        values = {int(v) for plane in array for v in np.unique(plane)} - {0}
        try:
            labels = _numbered(sorted(values), "single")
        except MedsegError as error:
            raise InputError(f"{path}: {error}; is this an image and not a label map?") from None
    return InstanceSet.from_labelmap(array, volume, labels, source=str(path))


def _whole_numbers(array: NDArray, path: Path) -> NDArray[np.integer]:
    if array.dtype.kind == "f":
        whole = np.isfinite(array) & (array == np.rint(array))
        if not whole.all():
            odd = float(array[~whole].flat[0])
            raise InputError(f"{path}: value {odd:g} found, expected whole numbers; is this an image, not a label map?")
        array = array.astype(np.int64)
    if array.min() < 0:
        raise InputError(f"{path}: value {array.min()} found, expected labels of 0 and above; is this an image?")
    return array


def _numbered(ids: Iterable[int], kind: Kind) -> LabelTable:
    return LabelTable(Label(id=i, name=f"label {i}", colour=palette_colour(i - 1), kind=kind) for i in ids)


@dataclass(frozen=True, kw_only=True)
class _Object:
    """What the JSON says about one value of the map."""

    label: int
    score: float = 1.0
    source_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Record:
    """The JSON beside a label map; ``labels`` is None in nnDetection's form."""

    path: Path
    objects: dict[int, _Object]
    labels: LabelTable | None


def _read_sidecar(path: Path) -> _Record | None:
    """Return the JSON's content, or None where there is none or it is about something else (a BIDS sidecar)."""
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(data, dict) or not isinstance(data.get("instances"), dict):
            return None
        labels = LabelTable.from_dict(data["labels"]) if "labels" in data else None
        objects = {}
        for key, row in data["instances"].items():
            if labels is None:
                objects[int(key)] = _Object(label=int(row) + 1)
            elif isinstance(row, dict):
                source = row.get("source_id")
                number = None if source is None else int(source)
                objects[int(key)] = _Object(
                    label=int(row["label"]), score=float(row.get("score", 1.0)), source_id=number
                )
            else:
                objects[int(key)] = _Object(label=int(row))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: cannot be read as the objects of the label map beside it ({error})") from None
    return _Record(path=path, objects=objects, labels=labels)


def read_sidecar_labels(path: Path) -> LabelTable | None:
    """Return the label table in medseg's JSON beside a label map or 4-D NIfTI; None where there is none."""
    return _read_table(sidecar_of(path))


def _read_table(path: Path) -> LabelTable | None:
    """Return the label table that medseg noted beside a semantic map, None where there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return None
    if not isinstance(data, dict) or not isinstance(data.get("labels"), list):
        return None
    try:
        return LabelTable.from_dict(data["labels"])
    except MedsegError as error:
        raise InputError(f"{path}: {error}") from None


def _renumbered(array: NDArray[np.integer], own: LabelTable, labels: LabelTable, path: Path) -> NDArray[np.integer]:
    """Return the map with the label ids of another table, found in it by name."""
    highest = int(array.max())
    numbers = np.zeros(max(highest, *own.ids, 0) + 1, np.uint16)
    by_name = {label.name: label.id for label in labels}
    for label in own:
        numbers[label.id] = by_name.get(label.name, 0)
    used = [int(value) for value in np.unique(array) if value]
    lost = [own[value].name if value in own else value for value in used if not numbers[value]]
    if lost:
        raise InputError(
            f"{path}: labels {lost[:10]} are not in the label table {labels.describe()}; add or rename them"
        )
    return numbers[array]


def _read_objects(
    array: NDArray[np.integer], volume: Volume, record: _Record, labels: LabelTable | None, path: Path
) -> InstanceSet:
    try:
        table = record.labels if record.labels is not None else labels
        if table is None:
            table = _numbered(sorted({item.label for item in record.objects.values()}), "ids")
        of_value = {value: item.label for value, item in record.objects.items()}
        for label in set(of_value.values()):
            table[label]
        found = InstanceSet.from_labelmap(array, volume, table, instance_labels=of_value, source=str(path))
        detailed = []
        for instance in found:
            value = instance.source_id
            assert value is not None
            item = record.objects[value]
            older = value if item.source_id is None else item.source_id
            detailed.append(replace(instance, score=item.score, source_id=older))
    except InputError:
        raise
    except MedsegError as error:
        raise InputError(f"{record.path}: {error}") from None
    result = InstanceSet.build(detailed, volume, table)
    return result if labels is None or record.labels is None else relabelled(result, labels, path)


def relabelled(instances: InstanceSet, labels: LabelTable, path: Path) -> InstanceSet:
    """Return the objects under another label table, their labels found in it by name.

    Raises:
        InputError: an object of a label that the table does not have.
    """
    by_name = {label.name: label.id for label in labels}
    missing = sorted({instances.labels[i.label].name for i in instances} - set(by_name))
    if missing:
        raise InputError(f"{path}: labels {missing} are not in the label table {labels.describe()}; add or rename them")
    moved = [replace(i, label=by_name[instances.labels[i.label].name]) for i in instances]
    return InstanceSet.build(moved, instances.geometry, labels)
