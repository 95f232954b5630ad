"""Options of the verbs that read a labelled cohort."""

from pathlib import Path
from typing import Annotated

import typer

COHORT = Annotated[
    Path,
    typer.Argument(metavar="COHORT", help="Folder with cohort.csv or dataset.json, or a DICOM folder per patient."),
]
RUN = Annotated[Path, typer.Option("--out", "-o", help="Folder for the run, new.")]
SETTINGS = Annotated[
    list[str] | None,
    typer.Option("--set", help="Plan field, e.g. --set model.backbone=resnet34; repeatable."),
]
PLAN = Annotated[
    Path | None, typer.Option("--plan", help="Plan to follow, as medseg plan writes it, but for what --set says.")
]
SMALL = Annotated[
    bool, typer.Option("--small", help="A narrow network and a short training: about an hour on two CPU cores.")
]
KIND = Annotated[
    list[str] | None,
    typer.Option(
        "--kind",
        metavar="NAME=KIND",
        help="What a label's voxels are as objects: single, components or ids; repeatable.",
    ),
]
