"""Objects from one file to another, as `medseg export` does it."""

from dataclasses import dataclass
from pathlib import Path

from highdicom import VolumeGeometry

from medseg.errors import ConfigError, InputError
from medseg.io.atomic import check_apart
from medseg.io.cohort_table import stem_of
from medseg.io.dicom_context import DicomContext, read_dicom_context
from medseg.io.instances import Format, format_of, read_instances_with_origin, write_instances
from medseg.io.itk import ITK_SUFFIXES, read_itk_grid
from medseg.io.label_tables import write_bids_table, write_itksnap_table, write_slicer_table
from medseg.io.labelmap import sidecar_of
from medseg.io.nifti import NIFTI_SUFFIXES, read_nifti_grid
from medseg.labels import LabelTable
from medseg.progress import Note, unheard
from medseg.values.geometry import spacing_of
from medseg.values.instances import InstanceSet, Overlap


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What `export_instances` wrote: the objects, and the files, the one asked for first."""

    instances: InstanceSet
    files: tuple[Path, ...]


def read_image_context(path: Path | str, series: str | None = None) -> DicomContext | VolumeGeometry:
    """Read what objects need of their image: a DICOM series' context, or the grid of a NIfTI, NRRD or MetaImage file.

    Raises:
        InputError: nothing there, several series without a choice, or a file that cannot be read.
        GeometryError: a place in the patient that is missing or broken.
    """
    path = Path(path)
    name = path.name.lower()
    if path.is_file() and name.endswith(NIFTI_SUFFIXES + ITK_SUFFIXES):
        if series is not None:
            raise ConfigError(f"{path}: a series was chosen, but only DICOM has series; leave --series away")
        return read_nifti_grid(path) if name.endswith(NIFTI_SUFFIXES) else read_itk_grid(path)
    return read_dicom_context(path, series)


def export_instances(
    source: Path | str,
    target: Path | str,
    *,
    format: Format | None = None,
    image: Path | str | None = None,
    series: str | None = None,
    labels: LabelTable | None = None,
    overlap: Overlap = "higher_score",
    tables: bool = False,
    smooth: bool = False,
    resample: bool = False,
    ignore_frame_of_reference: bool = False,
    note: Note = unheard,
) -> Exported:
    """Read objects from one file and write them to another.

    Args:
        source: what `read_instances` reads.
        target: what `write_instances` writes.
        format: where the target's suffix is not enough.
        image: the series or image file that the objects belong to. Needed to read an RTSTRUCT, and to write DICOM
            unless the source is a DICOM SEG, whose own patient, study and images are used then.
        series: SeriesInstanceUID, where ``image`` holds several.
        labels: label table of the source, where it brings none.
        overlap: who keeps a shared voxel in a flat map.
        tables: beside a flat NIfTI map, write label tables for BIDS, ITK-SNAP and 3D Slicer.
        smooth: round the contours of an RTSTRUCT.
        resample: resample the objects where the image has other voxels, which is refused otherwise.
        ignore_frame_of_reference: match DICOM objects to the image by positions alone.
        note: takes remarks, such as what the overlap cost.

    Raises:
        InputError, GeometryError: see `read_instances` and `write_instances`.
        ConfigError: options that do not go together.
    """
    source, target = Path(source), Path(target)
    form = format_of(target, format)
    _check_options(target, form, image is not None, series, tables, smooth, resample)
    for given in (source, image):
        if given is not None:
            check_apart(target, given)
    if form in ("nifti", "semantic", "nifti4d") and source.name.lower().endswith(NIFTI_SUFFIXES + ITK_SUFFIXES):
        check_apart(sidecar_of(target), sidecar_of(source))  # case.nii and case.nii.gz have one JSON between them
    partner = read_image_context(image, series) if image is not None else None
    read = read_instances_with_origin(
        source,
        labels=labels,
        image=partner,
        ignore_frame_of_reference=ignore_frame_of_reference,
        resample=resample,
        note=note,
    )
    context = partner if isinstance(partner, DicomContext) else read.context
    if form in ("seg", "seg-labelmap", "rtstruct") and context is None:
        has = "names a DICOM series" if image is None else f"is a DICOM series ({image} is not)"
        raise InputError(f"{target}: DICOM output belongs to a patient and study; see that --image {has}")
    written = write_instances(
        target,
        read.instances,
        overlap=overlap,
        format=form,
        context=context,
        algorithms=read.algorithms,
        smooth=smooth,
    )
    if written.lost_voxels:
        z, y, x = spacing_of(read.instances.geometry)
        lost_ml = sum(written.lost_voxels.values()) * z * y * x / 1000
        note(
            f"{target}: {lost_ml:.2f} ml of {len(written.lost_voxels)} objects went to overlapping ones (--overlap "
            f"{overlap}); .seg.nrrd, .dcm and --format nifti4d keep overlaps"
        )
    files = list(written.files)
    if tables:
        named = read.instances if form == "nifti" else read.instances.labels
        stem = target.with_name(stem_of(target))
        files.append(write_bids_table(f"{stem}_dseg.tsv", named))
        files.append(write_itksnap_table(f"{stem}_itksnap.txt", named))
        files.append(write_slicer_table(f"{stem}_slicer.ctbl", named))
    return Exported(instances=read.instances, files=tuple(files))


def _check_options(
    target: Path, form: Format, with_image: bool, series: str | None, tables: bool, smooth: bool, resample: bool
) -> None:
    if tables and form not in ("nifti", "semantic"):
        raise ConfigError(f"--tables: they name the numbers of a flat NIfTI map, and {target} is {form}")
    if smooth and form != "rtstruct":
        raise ConfigError(f"--smooth: rounds the contours of an RTSTRUCT, and {target} is {form}")
    if (resample or series is not None) and not with_image:
        raise ConfigError(f"{'--resample' if resample else '--series'}: name the image as well (--image)")
