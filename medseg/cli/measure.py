"""`medseg measure`: volumes, intensities, diameters and neighbours of the objects of a mask."""

from pathlib import Path
from typing import Annotated

import typer

from medseg.cli import console

NAME = "measure"


def run(
    instances: Annotated[Path, typer.Argument(metavar="INSTANCES", help="Objects: any format `evaluate` reads.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for measurements.csv and measurements.json.")],
    image: Annotated[
        Path | None,
        typer.Option("--image", help="Image of the objects: adds intensities; its slices are those measured in."),
    ] = None,
    labels: Annotated[Path | None, typer.Option("--labels", help="JSON label table that names the labels.")] = None,
    series: Annotated[str | None, typer.Option("--series", metavar="UID", help="Series of --image of several.")] = None,
    report: Annotated[
        bool,
        typer.Option("--sr", help="Also measurements.dcm, a DICOM report on the segments; INSTANCES is a DICOM SEG."),
    ] = False,
) -> None:
    """Measure every object of a mask: volume, place, intensities, long and short axis, surface, overlaps."""
    from medseg.errors import ConfigError
    from medseg.io import read_instances, read_volume
    from medseg.io.atomic import check_folder
    from medseg.io.cohort_table import read_label_file
    from medseg.io.export import read_image_context
    from medseg.io.itk import ITK_SUFFIXES
    from medseg.io.nifti import NIFTI_SUFFIXES
    from medseg.metrics.measurement import measure
    from medseg.reporting.tables import write_measurements_csv, write_measurements_json

    if series is not None and image is None:
        raise ConfigError("--series chooses a series of --image; give --image as well")
    check_folder(out)
    # A DICOM SEG lacks slices without objects, an RTSTRUCT has no grid at all; other files bring theirs.
    gridless = not instances.name.lower().endswith(NIFTI_SUFFIXES + ITK_SUFFIXES)
    partner = read_image_context(image, series) if image is not None and gridless else None
    table = None if labels is None else read_label_file(labels)
    found = read_instances(instances, labels=table, image=partner, note=console.warn)
    volume = None if image is None else read_volume(image, series=series, track=console.track)
    measurements = measure(found, volume, track=console.track)
    if measurements and measurements[0].axis_reason:
        console.warn(f"no long and short axis: {measurements[0].axis_reason}")
    files = [out / "measurements.csv", out / "measurements.json"]
    if report:  # first, because it may be refused
        from medseg.reporting.structured_report import write_measurements_sr

        files.append(out / "measurements.dcm")
        write_measurements_sr(measurements, instances, files[-1])
    write_measurements_csv(measurements, files[0])
    write_measurements_json(measurements, files[1])
    console.out.print(f"{len(measurements)} objects")
    for file in files:
        console.wrote(file)
