"""`medseg phantom`: write a synthetic CT cohort."""

from pathlib import Path
from typing import Annotated

import typer

from medseg.cli import console
from medseg.errors import ConfigError

NAME = "phantom"


def run(
    output: Annotated[Path, typer.Option("-o", "--out", help="New or empty folder for the cohort.")],
    cases: Annotated[int, typer.Option("--cases", help="How many patients.")] = 8,
    seed: Annotated[int, typer.Option("--seed", help="Same seed, same cohort.")] = 0,
    shape: Annotated[str, typer.Option("--shape", metavar="Z,Y,X", help="Slices, rows, columns.")] = "96,128,128",
    spacing: Annotated[
        str, typer.Option("--spacing", metavar="Z,Y,X", help="Slice distance and pixel size in mm.")
    ] = "3.0,2.8,2.8",
    vary_spacing: Annotated[
        bool, typer.Option("--vary-spacing", help="Draw slice distance (2.5-5 mm) and pixel size for each case.")
    ] = False,
) -> None:
    """Write a synthetic CT cohort: DICOM and NIfTI, with organs and touching, nested lesions as truth."""
    from medseg.phantom import write_cohort

    a, b, c = _three(shape, "--shape", int)
    folder = write_cohort(
        output, cases=cases, seed=seed, shape=(int(a), int(b), int(c)), spacing_mm=_three(spacing, "--spacing", float),
        vary_spacing=vary_spacing, track=console.track,
    )  # fmt: skip
    console.wrote(folder)


def _three(text: str, option: str, kind: type[int] | type[float]) -> tuple[float, float, float]:
    try:
        a, b, c = (kind(part) for part in text.split(","))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise ConfigError(f"{option} {text!r}: expected three {what} as Z,Y,X") from None
    return a, b, c
