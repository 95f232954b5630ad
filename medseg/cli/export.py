"""`medseg export`: objects from one format to another: NIfTI, 3D Slicer, DICOM SEG, RTSTRUCT, label tables."""

from pathlib import Path
from typing import Annotated

import typer

from medseg.cli import console
from medseg.errors import ConfigError

NAME = "export"
FORMAT_HELP = "Where OUT's suffix is not enough: semantic or nifti4d (.nii.gz), rtstruct or seg-labelmap (.dcm)."
IMAGE_HELP = "Image the objects belong to: their grid and, for DICOM output, their patient and study."
OVERLAP_HELP = "Who keeps a shared voxel in a flat map: higher_score, smaller, later; error refuses."


def run(
    source: Annotated[Path, typer.Argument(metavar="IN", help="NIfTI, NRRD or MHA labels, .seg.nrrd, SEG, RTSTRUCT.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File to write: .nii.gz, .nii, .seg.nrrd or .dcm.")],
    form: Annotated[str | None, typer.Option("--format", metavar="FORMAT", help=FORMAT_HELP)] = None,
    image: Annotated[Path | None, typer.Option("--image", metavar="SERIES|FILE", help=IMAGE_HELP)] = None,
    series: Annotated[
        str | None, typer.Option("--series", metavar="UID", help="Series of --image, of several.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="JSON label table, where IN brings no names of its own.")
    ] = None,
    overlap: Annotated[str, typer.Option("--overlap", metavar="RULE", help=OVERLAP_HELP)] = "higher_score",
    tables: Annotated[
        bool, typer.Option("--tables", help="Beside a flat NIfTI map: tables for BIDS, ITK-SNAP and 3D Slicer.")
    ] = False,
    smooth: Annotated[bool, typer.Option("--smooth", help="Round the contours of an RTSTRUCT.")] = False,
    resample: Annotated[
        bool, typer.Option("--resample", help="Resample objects whose voxels are not those of --image.")
    ] = False,
    ignore_frame_of_reference: Annotated[
        bool, typer.Option("--ignore-frame-of-reference", help="Match DICOM objects to --image by positions alone.")
    ] = False,
) -> None:
    """Write objects in another format: the same voxels in the same place, overlaps kept where the format can."""
    from typing import get_args

    from medseg.io.cohort_table import read_label_file
    from medseg.io.export import export_instances
    from medseg.io.instances import FORMATS
    from medseg.values.instances import Overlap

    wanted = next((known for known in FORMATS if known == form), None)
    if form is not None and wanted is None:
        raise ConfigError(f"--format {form}: expected one of {', '.join(FORMATS)}")
    if overlap not in get_args(Overlap):
        raise ConfigError(f"--overlap {overlap}: expected one of {', '.join(get_args(Overlap))}")
    exported = export_instances(
        source,
        target,
        format=wanted,
        image=image,
        series=series,
        labels=read_label_file(labels) if labels is not None else None,
        overlap=next(rule for rule in get_args(Overlap) if rule == overlap),
        tables=tables,
        smooth=smooth,
        resample=resample,
        ignore_frame_of_reference=ignore_frame_of_reference,
        note=console.warn,
    )
    for file in exported.files:
        console.wrote(file)
