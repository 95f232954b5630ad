"""The way in and the way out of objects, by suffix."""

from dataclasses import dataclass
from pathlib import Path

from medseg.errors import InputError
from medseg.io.itk import ITK_SUFFIXES
from medseg.io.nifti import NIFTI_SUFFIXES
from medseg.labels import LabelTable
from medseg.values.instances import InstanceSet, Overlap

SEG_NRRD_SUFFIX = ".seg.nrrd"
READABLE = (SEG_NRRD_SUFFIX, *NIFTI_SUFFIXES, *ITK_SUFFIXES)
WRITABLE = (SEG_NRRD_SUFFIX, *NIFTI_SUFFIXES)


@dataclass(frozen=True, kw_only=True)
class WrittenInstances:
    """What `write_instances` did.

    Attributes:
        files: the files, the one asked for first.
        lost_voxels: per instance id that lost any, voxels that went to an overlapping object; empty for formats
            that keep overlaps.
    """

    files: tuple[Path, ...]
    lost_voxels: dict[int, int]


def write_instances(path: Path | str, instances: InstanceSet, *, overlap: Overlap = "higher_score") -> WrittenInstances:
    """Write objects; the suffix says how. The same objects give the same bytes.

    Args:
        path: ``.seg.nrrd`` (3D Slicer, overlaps kept) or ``.nii.gz`` / ``.nii`` (uint16 instance ids, one voxel one
            object, and a ``.json`` of the same stem with labels, names and scores).
        instances: the objects; none is fine.
        overlap: who keeps a voxel that several objects claim, where the format holds one object per voxel
            (see `InstanceSet.to_labelmap`).

    Raises:
        InputError: another suffix, more than 65535 objects, overlaps with ``overlap="error"``, or a file that
            cannot be written.
    """
    path = Path(path)
    name = path.name.lower()
    if name.endswith(SEG_NRRD_SUFFIX):
        from medseg.io.seg_nrrd import write_seg_nrrd

        write_seg_nrrd(path, instances)
        return WrittenInstances(files=(path,), lost_voxels={})
    if name.endswith(NIFTI_SUFFIXES):
        from medseg.io.labelmap import sidecar_of, write_labelmap

        lost = write_labelmap(path, instances, overlap)
        return WrittenInstances(files=(path, sidecar_of(path)), lost_voxels=lost)
    raise InputError(f"{path}: objects cannot be written in this format, expected one of {', '.join(WRITABLE)}")


def read_instances(path: Path | str, *, labels: LabelTable | None = None) -> InstanceSet:
    """Read objects from a 3D Slicer segmentation or a label map.

    A label map (NIfTI, NRRD, MetaImage) holds instance ids where a ``.json`` of the same stem says so (medseg's or
    nnDetection's), else label ids, whose objects follow from the labels' ``kind``.

    Args:
        path: the file.
        labels: the label table wanted. Segmentations and JSON files that bring their own table are matched to it by
            name, everything else by id. None: the file's own table, else one object of label ``label N`` for value N.

    Raises:
        InputError: not there, unreadable, or values and labels that do not fit.
        GeometryError: a place in the patient that is missing or broken.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {what}, expected a file of {', '.join(READABLE)}")
    name = path.name.lower()
    if name.endswith(SEG_NRRD_SUFFIX) or _has_segments(path):
        from medseg.io.labelmap import relabelled
        from medseg.io.seg_nrrd import read_seg_nrrd

        found = read_seg_nrrd(path)
        return relabelled(found, labels, path) if labels is not None else found
    if name.endswith(NIFTI_SUFFIXES + ITK_SUFFIXES):
        from medseg.io.labelmap import read_labelmap

        return read_labelmap(path, labels)
    raise InputError(f"{path}: objects cannot be read from this format, expected one of {', '.join(READABLE)}")


def _has_segments(path: Path) -> bool:
    """Tell whether a plain .nrrd is a 3D Slicer segmentation, by its header."""
    if path.suffix.lower() != ".nrrd":
        return False
    with path.open("rb") as file:
        return b"\nSegment0_" in file.read(1 << 16).split(b"\n\n")[0]
