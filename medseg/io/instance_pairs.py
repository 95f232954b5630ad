"""Two files of objects, read onto one grid where a DICOM file leaves the grid open.

A file with a grid of its own (label maps, .seg.nrrd) keeps it, and two such files may lie on different grids:
that is for whoever compares them to refuse. A DICOM segmentation holds only the slices in which something is,
an RTSTRUCT no grid at all; they are read onto the grid of the other file. Two DICOM segmentations go onto the
smallest grid that holds both, an RTSTRUCT and another DICOM file onto that of their image, which has to be named: what
is drawn in an RTSTRUCT may lie outside a segmentation's slices.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from highdicom import VolumeGeometry

from medseg.errors import GeometryError, InputError
from medseg.io.dicom_context import DicomContext, dicom_kind
from medseg.io.export import read_image_context
from medseg.io.instances import DICOM_SUFFIX, read_instances
from medseg.labels import LabelTable
from medseg.progress import Note, unheard
from medseg.values.geometry import describe_grid
from medseg.values.instances import InstanceSet
from medseg.values.placement import lattice_map, place

Regions = Mapping[int, Sequence[int]] | None


def read_pair(
    first: Path,
    second: Path,
    *,
    labels: tuple[LabelTable | None, LabelTable | None] = (None, None),
    regions: tuple[Regions, Regions] = (None, None),
    image: Path | None = None,
    series: str | None = None,
    note: Note = unheard,
) -> tuple[InstanceSet, InstanceSet]:
    """Read two files of objects.

    Args:
        first, second: the files, any format that `read_instances` takes.
        labels, regions: the label table wanted of each, and what values its labels are (see `read_instances`).
        image: the image of both, a DICOM folder or a file; read only where neither file leads to a grid.
        series: SeriesInstanceUID of the image, where its folder holds several.
        note: takes the remarks of `read_instances`.

    Raises:
        InputError: see `read_instances`; or an RTSTRUCT, no file with a grid and no image.
        GeometryError: see `read_instances`; or two DICOM segmentations of different voxels.
    """
    files = (first, second)

    def read(which: int, image: DicomContext | VolumeGeometry | None = None) -> InstanceSet:
        return read_instances(files[which], labels=labels[which], regions=regions[which], image=image, note=note)

    kinds = [_kind(file) for file in files]
    loose = [kind in ("SEG", "RTSTRUCT") for kind in kinds]
    if all(loose) and "RTSTRUCT" in kinds:
        if image is None:
            raise InputError(
                f"{first} and {second}: neither holds the grid of its image; name the image (--image), or evaluate "
                "a cohort that has it"
            )
        context = read_image_context(image, series)
        return read(0, context), read(1, context)
    leading, other = (1, 0) if loose[0] else (0, 1)
    found = {leading: read(leading)}
    if all(loose):
        found[other] = read(other)
        grid = _joint_grid(found[0].geometry, found[1].geometry)
        if grid is None:
            raise GeometryError(
                f"{second} has other voxels ({describe_grid(found[1].geometry)}) than {first} "
                f"({describe_grid(found[0].geometry)}); compare segmentations of one series"
            )
        return place(found[0], grid, str(first)), place(found[1], grid, str(second))
    found[other] = read(other, found[leading].geometry if loose[other] else None)
    return found[0], found[1]


def _kind(file: Path) -> str:
    """Return the modality of a DICOM file, empty for any other."""
    if not file.is_file():
        return ""
    with file.open("rb") as stream:
        marked = stream.read(132)[128:] == b"DICM"
    return dicom_kind(file) if marked or file.suffix.lower() == DICOM_SUFFIX else ""


def _joint_grid(a: VolumeGeometry, b: VolumeGeometry) -> VolumeGeometry | None:
    """Return the smallest grid, in the axis order of a, that has the voxels of both; None where voxels differ."""
    found = lattice_map(b, a)
    if found is None:
        return None
    axis_map, shift = found
    low = np.minimum(0, shift)
    high = np.maximum(a.spatial_shape, np.add(shift, axis_map.shape(b.spatial_shape)))
    affine = a.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ low
    shape = tuple(int(n) for n in high - low)
    return VolumeGeometry(affine, shape, "PATIENT", frame_of_reference_uid=a.frame_of_reference_uid)
