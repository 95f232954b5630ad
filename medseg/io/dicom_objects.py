"""What every DICOM object that medseg writes of a series goes through: its objects' place, its dates, its file."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from pydicom.dataset import Dataset

from medseg.errors import InputError
from medseg.io.atomic import atomic_path
from medseg.io.dicom_context import DicomContext
from medseg.values.instances import InstanceSet
from medseg.values.placement import place


def placed_objects(path: Path, instances: InstanceSet, context: DicomContext, least: str) -> InstanceSet:
    """Return the objects on the grid of the series that they are written for.

    Args:
        path: of the file to write, for messages.
        instances: the objects.
        context: the series.
        least: what a file has at least one of, e.g. ``a DICOM SEG has at least one segment``.

    Raises:
        InputError: the series lacks UIDs, or there are neither objects nor labels.
        GeometryError: objects on another grid than the series.
    """
    context.check_complete()
    instances = place(instances, context.geometry, f"{path}: the objects")
    if not len(instances) and not len(instances.labels):
        raise InputError(f"{path}: neither objects nor labels, and {least}")
    return instances


def forget_writing_time(dataset: Dataset) -> None:
    """Take out the hour of writing, which stands in three places: the same input gives the same bytes."""
    for item in (dataset, *(dataset.get("ContributingEquipmentSequence") or [])):
        for keyword in ("InstanceCreationDate", "InstanceCreationTime", "ContributionDateTime"):
            if keyword in item:
                delattr(item, keyword)


def save_dataset(path: Path, dataset: Dataset, append: Callable[[BinaryIO], None] | None = None) -> None:
    """Write a data set, whole or not at all.

    Args:
        path: the file.
        dataset: with its file meta information.
        append: writes further elements behind those of the data set.

    Raises:
        InputError: the file cannot be written.
    """
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # patient attributes are passed on as they are, valid or not
        dataset.save_as(temporary, enforce_file_format=True)
        if append:
            with temporary.open("ab") as file:
                append(file)
