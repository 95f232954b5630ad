"""Options of every verb that reads an image."""

from pathlib import Path
from typing import Annotated

import typer

SERIES = Annotated[str | None, typer.Option("--series", metavar="UID", help="Series to read of several.")]
RESAMPLE_UNEVEN = Annotated[
    bool, typer.Option("--resample-uneven", help="Resample unevenly spaced DICOM slices instead of refusing them.")
]
RESAMPLE_TILT = Annotated[
    bool, typer.Option("--resample-tilt", help="Straighten DICOM slices of a tilted gantry instead of refusing them.")
]
NIFTI_FORM = Annotated[
    str | None, typer.Option("--nifti-form", metavar="sform|qform", help="Which to believe where the two disagree.")
]
INPUTS = Annotated[
    list[Path], typer.Argument(metavar="IN...", help="DICOM folder, file or files, zip, NIfTI, NRRD or MHA.")
]
KEEP_IDENTITY = Annotated[
    bool, typer.Option("--keep-identity", help="Write the PatientID, which is left out otherwise, into the result.")
]
