"""`medseg convert`: a study or image to one NIfTI, NRRD or MetaImage file on the same grid."""

from pathlib import Path
from typing import Annotated

import typer

from medseg.cli import console

NAME = "convert"


def run(
    source: Annotated[Path, typer.Argument(metavar="IN", help="DICOM folder or file, zip, NIfTI, NRRD or MHA.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File to write: .nii, .nii.gz, .nrrd or .mha.")],
    series: Annotated[str | None, typer.Option("--series", metavar="UID", help="Series to read of several.")] = None,
) -> None:
    """Convert a study or image to one file; voxels and their place in the patient stay the same."""
    from medseg.io.atomic import check_apart
    from medseg.io.volumes import check_output, read_volume, write_volume

    check_output(target)
    check_apart(target, source)
    write_volume(target, read_volume(source, series=series, track=console.track))
    console.wrote(target)
