"""The way in and the way out of objects, by suffix, content and format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from highdicom import VolumeGeometry

from medseg.errors import ConfigError, InputError
from medseg.io.itk import ITK_SUFFIXES
from medseg.io.nifti import NIFTI_SUFFIXES
from medseg.labels import LabelTable
from medseg.progress import Note, unheard
from medseg.values.instances import InstanceSet, Overlap
from medseg.values.kinds import by_region
from medseg.values.placement import lattice_map, place
from medseg.values.resampling import resample_instances

if TYPE_CHECKING:  # pydicom and highdicom's segmentations take a while to import
    from medseg.io.dicom_context import DicomContext
    from medseg.io.dicom_seg_labels import Algorithm

#: How objects are written: one NIfTI map of instance ids or of label ids (``semantic``), NIfTI with a channel per
#: object, 3D Slicer, DICOM SEG, DICOM SEG as label map, RTSTRUCT.
Format = Literal["nifti", "semantic", "nifti4d", "seg.nrrd", "seg", "seg-labelmap", "rtstruct"]
FORMATS: tuple[Format, ...] = get_args(Format)

SEG_NRRD_SUFFIX = ".seg.nrrd"
DICOM_SUFFIX = ".dcm"
READABLE = (SEG_NRRD_SUFFIX, *NIFTI_SUFFIXES, *ITK_SUFFIXES, DICOM_SUFFIX)
WRITABLE = (SEG_NRRD_SUFFIX, *NIFTI_SUFFIXES, DICOM_SUFFIX)
_SUFFIXES: dict[Format, tuple[str, ...]] = {
    "nifti": NIFTI_SUFFIXES,
    "semantic": NIFTI_SUFFIXES,
    "nifti4d": NIFTI_SUFFIXES,
    "seg.nrrd": (SEG_NRRD_SUFFIX,),
    "seg": (DICOM_SUFFIX,),
    "seg-labelmap": (DICOM_SUFFIX,),
    "rtstruct": (DICOM_SUFFIX,),
}


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


@dataclass(frozen=True, kw_only=True)
class ReadInstances:
    """Objects with what their file says besides.

    Attributes:
        instances: the objects.
        context: the series that a DICOM SEG refers to, on the SEG's own grid; None for other files.
        algorithms: how each instance came about, in order; None where the file has no place for it.
    """

    instances: InstanceSet
    context: "DicomContext | None" = None
    algorithms: "tuple[Algorithm, ...] | None" = None


def format_of(path: Path | str, wanted: Format | None = None) -> Format:
    """Return the format a path is written in: by its suffix, or the one wanted if it has such a suffix.

    Raises:
        InputError: another suffix.
        ConfigError: a format that does not exist.
    """
    name = Path(path).name.lower()
    if wanted is not None:
        if wanted not in FORMATS:
            raise ConfigError(f"format {wanted!r}: expected one of {', '.join(FORMATS)}")
        if not name.endswith(_SUFFIXES[wanted]):
            raise InputError(f"{path}: format {wanted} is written to {' or '.join(_SUFFIXES[wanted])}; rename the file")
        return wanted
    for form in FORMATS:  # the first of each suffix is its default
        if name.endswith(_SUFFIXES[form]):
            return form
    raise InputError(f"{path}: objects cannot be written in this format, expected one of {', '.join(WRITABLE)}")


def write_instances(
    path: Path | str,
    instances: InstanceSet,
    *,
    overlap: Overlap = "higher_score",
    format: Format | None = None,
    context: "DicomContext | None" = None,
    algorithms: "Sequence[Algorithm] | None" = None,
    smooth: bool = False,
) -> WrittenInstances:
    """Write objects; the suffix says how, or the format. The same objects give the same bytes.

    Args:
        path: ``.nii.gz`` / ``.nii`` (by default uint16 instance ids, one voxel one object), ``.seg.nrrd`` (3D Slicer,
            overlaps kept) or ``.dcm`` (by default DICOM SEG, overlaps kept). NIfTI files get a ``.json`` of the same
            stem with labels, names and scores.
        instances: the objects; none is fine.
        overlap: who keeps a voxel that several objects claim, where the format holds one number per voxel
            (see `InstanceSet.to_labelmap`).
        format: where the suffix is not enough; see `Format`.
        context: the series that DICOM output belongs to (`medseg.io.dicom_context`).
        algorithms: how each object came about, for DICOM; None: not known, which is never written as AUTOMATIC.
        smooth: round the contours of an RTSTRUCT, which then no longer give the masks back exactly.

    Raises:
        InputError: another suffix, DICOM without a context or with one that lacks UIDs, more than 65535 objects,
            overlaps with ``overlap="error"``, or a file that cannot be written.
        GeometryError: DICOM output of objects on another grid than the series.
        ConfigError: a format that does not exist.
    """
    path = Path(path)
    form = format_of(path, format)
    if form in ("nifti", "semantic"):
        from medseg.io.labelmap import sidecar_of, write_labelmap, write_semantic

        lost = (write_labelmap if form == "nifti" else write_semantic)(path, instances, overlap)
        return WrittenInstances(files=(path, sidecar_of(path)), lost_voxels=lost)
    if form == "nifti4d":
        from medseg.io.labelmap import sidecar_of
        from medseg.io.nifti4d import write_nifti4d

        write_nifti4d(path, instances)
        return WrittenInstances(files=(path, sidecar_of(path)), lost_voxels={})
    if form == "seg.nrrd":
        from medseg.io.seg_nrrd import write_seg_nrrd

        write_seg_nrrd(path, instances)
        return WrittenInstances(files=(path,), lost_voxels={})
    if context is None:
        raise InputError(f"{path}: DICOM output belongs to a series; name it (--image SERIES)")
    if form == "rtstruct":
        from medseg.io.rtstruct_writer import write_rtstruct

        write_rtstruct(path, instances, context, algorithms=algorithms, smooth=smooth)
    else:
        from medseg.io.dicom_seg_writer import write_dicom_seg

        write_dicom_seg(path, instances, context, algorithms=algorithms, labelmap=form == "seg-labelmap")
    return WrittenInstances(files=(path,), lost_voxels={})


def read_instances(
    path: Path | str,
    *,
    labels: LabelTable | None = None,
    regions: Mapping[int, Sequence[int]] | None = None,
    image: "DicomContext | VolumeGeometry | None" = None,
    ignore_frame_of_reference: bool = False,
    note: Note = unheard,
) -> InstanceSet:
    """Read objects from a segmentation (3D Slicer, DICOM SEG, RTSTRUCT), a label map or 4-D NIfTI.

    A label map (NIfTI, NRRD, MetaImage) holds instance ids where a ``.json`` of the same stem says so (medseg's or
    nnDetection's), else label ids, whose objects follow from the labels' ``kind``. A 4-D NIfTI file holds an object
    per channel.

    Args:
        path: the file.
        labels: the label table wanted. Segmentations and JSON files that bring their own table are matched to it by
            name, everything else by id. None: the file's own table, else one object of label ``label N`` for value N.
        regions: label id -> values of a label map, where a label of ``labels`` is the union of several (see
            `medseg.values.kinds.by_region`).
        image: the series (`medseg.io.dicom_context.read_dicom_context`) or the grid that the objects belong to; they
            are placed on its grid, which must have their voxels. An RTSTRUCT needs it.
        ignore_frame_of_reference: match DICOM objects to their image by positions alone.
        note: takes remarks, such as that a SEG was made on another series with the same grid.

    Raises:
        InputError: not there, unreadable, or values and labels that do not fit.
        GeometryError: a place in the patient that is missing or broken, or that does not match the image.
    """
    wanted = None if regions else labels
    found = read_instances_with_origin(
        path, labels=wanted, image=image, ignore_frame_of_reference=ignore_frame_of_reference, note=note
    ).instances
    if not regions or labels is None:
        return found
    if has_segments(Path(path)):
        raise InputError(f"{path}: holds segments, expected a label map with the values of the regions")
    try:
        return by_region(found, regions, labels)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read_instances_with_origin(
    path: Path | str,
    *,
    labels: LabelTable | None = None,
    image: "DicomContext | VolumeGeometry | None" = None,
    ignore_frame_of_reference: bool = False,
    resample: bool = False,
    note: Note = unheard,
) -> ReadInstances:
    """Read objects as `read_instances` does, with the DICOM context and algorithms that their file names.

    With ``resample`` objects whose grid has other voxels than the image are resampled and not refused.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {what}, expected a file of {', '.join(READABLE)}")
    if is_dicom(path):
        return _read_dicom(path, labels, image, ignore_frame_of_reference, resample, note)
    found = _read_file(path, labels)
    grid = image if image is None or isinstance(image, VolumeGeometry) else image.geometry
    if grid is not None and resample and lattice_map(found.geometry, grid) is None:
        found = resample_instances(found, grid).instances
    elif grid is not None:
        found = place(found, grid, f"{path}: the label map")
    return ReadInstances(instances=found)


def _read_file(path: Path, labels: LabelTable | None) -> InstanceSet:
    name = path.name.lower()
    if has_segments(path):
        from medseg.io.labelmap import relabelled
        from medseg.io.seg_nrrd import read_seg_nrrd

        found = read_seg_nrrd(path)
        return relabelled(found, labels, path) if labels is not None else found
    if name.endswith(NIFTI_SUFFIXES) and _has_channels(path):
        from medseg.io.labelmap import relabelled
        from medseg.io.nifti4d import read_nifti4d

        found = read_nifti4d(path)
        return relabelled(found, labels, path) if labels is not None else found
    if name.endswith(NIFTI_SUFFIXES + ITK_SUFFIXES):
        from medseg.io.labelmap import read_labelmap

        return read_labelmap(path, labels)
    raise InputError(f"{path}: objects cannot be read from this format, expected one of {', '.join(READABLE)}")


def _read_dicom(
    path: Path,
    labels: LabelTable | None,
    image: "DicomContext | VolumeGeometry | None",
    ignore_frame_of_reference: bool,
    resample: bool,
    note: Note,
) -> ReadInstances:
    from medseg.io.dicom_context import dicom_kind
    from medseg.io.labelmap import relabelled

    if dicom_kind(path) == "RTSTRUCT":
        from medseg.io.rtstruct import read_rtstruct

        if image is None:
            raise InputError(f"{path}: an RTSTRUCT has no grid of its own; name the series it was drawn on (--image)")
        structures = read_rtstruct(path, image, ignore_frame_of_reference=ignore_frame_of_reference)
        found, algorithms, context, remarks = structures.instances, structures.algorithms, None, structures.warnings
    else:
        from medseg.io.dicom_seg import read_dicom_seg

        seg = read_dicom_seg(path, image, ignore_frame_of_reference=ignore_frame_of_reference, resample=resample)
        found, algorithms, context, remarks = seg.instances, seg.algorithms, seg.context, seg.warnings
    for remark in remarks:
        note(remark)
    if labels is not None:
        found = relabelled(found, labels, path)
    return ReadInstances(instances=found, context=context, algorithms=algorithms)


def is_dicom(path: Path) -> bool:
    """Tell whether a file has a DICOM suffix or the DICM mark of DICOM PS3.10, section 7.1."""
    if path.name.lower().endswith(DICOM_SUFFIX):
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _has_channels(path: Path) -> bool:
    """Tell whether a NIfTI file holds an object per channel: several volumes, or one that its JSON calls a channel."""
    from medseg.io.nifti import count_nifti_channels
    from medseg.io.nifti4d import channels_record

    return count_nifti_channels(path) > 1 or channels_record(path) is not None


def has_segments(path: Path) -> bool:
    """Tell whether a file is a 3D Slicer segmentation: a .seg.nrrd, or a plain .nrrd that its header calls one."""
    if path.name.lower().endswith(SEG_NRRD_SUFFIX):
        return True
    if path.suffix.lower() != ".nrrd":
        return False
    with path.open("rb") as file:
        return b"\nSegment0_" in file.read(1 << 16).split(b"\n\n")[0]
