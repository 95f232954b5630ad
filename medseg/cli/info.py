"""`medseg info`: what a folder or file holds: series, geometry, and what was set aside."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg.cli import console

if TYPE_CHECKING:
    from medseg.io.series import SeriesInfo

NAME = "info"


def run(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="DICOM folder or file, zip, NIfTI, NRRD or MHA.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the series of a study or the geometry of an image; no voxel is read."""
    from medseg.io.volumes import list_series

    infos = list_series(path, track=console.track)
    if as_json:
        console.out.print_json(json.dumps({"path": str(path.absolute()), "series": [_row(info) for info in infos]}))
    else:
        _print_table(infos)


def _row(info: "SeriesInfo") -> dict[str, Any]:
    return {
        "uid": info.uid,
        "modality": info.modality,
        "number": info.number,
        "description": info.description,
        "n_slices": info.n_slices,
        "shape": info.shape,
        "spacing_mm": info.spacing_mm,
        "orientation": info.orientation,
        "is_image": info.is_image,
        "problem": info.problem,
        "files": [str(file) for file in info.files],
    }


def _print_table(infos: list["SeriesInfo"]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "kind", "number", "slices", "shape", "spacing mm", "axes", "description")
    for position, info in enumerate(infos, start=1):
        table.add_row(
            str(position),
            escape(info.modality or "-"),
            "-" if info.number is None else str(info.number),
            str(info.n_slices),
            " x ".join(str(n) for n in info.shape) if info.shape else "-",
            " x ".join(f"{s:.4g}" for s in info.spacing_mm) if info.spacing_mm else "-",
            info.orientation or "-",
            escape(info.description or "-"),
            style=None if info.is_image else "dim",
        )
    console.out.print(table)
    for position, info in enumerate(infos, start=1):
        state = "" if not info.problem else (": not usable: " if info.is_image else ": set aside: ") + info.problem
        # On lines of their own: the UID is what --series takes, and a table would cut it.
        name = f"series {info.uid}" if info.uid else ", ".join(file.name for file in info.files[:5])
        console.out.print(f"{position}. {name} ({len(info.files)} files){state}", markup=False)
