"""`medseg convert`: a study or image to one NIfTI, NRRD or MetaImage file on the same grid."""

from pathlib import Path
from typing import Annotated

import typer

from medseg.cli import console
from medseg.cli.reading import INPUTS, KEEP_IDENTITY, NIFTI_FORM, RESAMPLE_TILT, RESAMPLE_UNEVEN, SERIES

NAME = "convert"


def run(
    sources: INPUTS,
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File to write: .nii, .nii.gz, .nrrd or .mha.")],
    series: SERIES = None,
    resample_uneven: RESAMPLE_UNEVEN = False,
    resample_tilt: RESAMPLE_TILT = False,
    nifti_form: NIFTI_FORM = None,
    keep_identity: KEEP_IDENTITY = False,
) -> None:
    """Convert a study or image to one file; voxels and their place in the patient stay the same."""
    from medseg.io.atomic import check_apart
    from medseg.io.identity import read_patient_id
    from medseg.io.volumes import check_output, read_volume, write_volume

    check_output(target)
    for source in sources:
        check_apart(target, source)
    description = f"PatientID {read_patient_id(sources, series)}" if keep_identity else ""
    volume = read_volume(
        sources,
        series=series,
        resample_uneven=resample_uneven,
        resample_tilt=resample_tilt,
        nifti_form=nifti_form,
        track=console.track,
        note=console.warn,
    )
    write_volume(target, volume, description=description)
    console.wrote(target)
