"""`medseg plan`: what training would decide about a cohort, and why, before it does."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg.cli import console
from medseg.cli.cohort_options import COHORT, KIND, SETTINGS, SMALL

if TYPE_CHECKING:
    from medseg.values.plan import Plan

NAME = "plan"


def run(
    cohort: COHORT,
    out: Annotated[Path, typer.Option("--out", "-o", help="YAML file for the plan.")] = Path("plan.yaml"),
    settings: SETTINGS = None,
    small: SMALL = False,
    kind: KIND = None,
    fingerprint: Annotated[
        Path | None, typer.Option("--fingerprint", help="JSON file for the facts about the cohort.")
    ] = None,
) -> None:
    """Read a cohort, tell what it looks like, and write the plan that medseg train would follow."""
    from medseg.data.cohort import find_cohort, parse_kind
    from medseg.data.cohort_plan import decide_plan
    from medseg.data.fingerprint_table import describe
    from medseg.errors import InputError
    from medseg.io.atomic import check_folder, write_json, write_text
    from medseg.values.plan import check_fields, parse_setting

    chosen = dict(parse_setting(text) for text in settings or [])
    check_fields(chosen)
    for file in filter(None, (out, fingerprint)):
        if file.is_dir():
            raise InputError(f"{file}: is a folder, expected the name of a file to write")
        check_folder(file.parent)
    found = find_cohort(cohort, dict(parse_kind(text) for text in kind or []), console.track)
    plan, facts = decide_plan(found, chosen, track=console.track, small=small)
    table = describe(facts)
    show_fingerprint(table)
    show_plan(plan)
    write_text(out, plan.to_yaml())
    console.wrote(out)
    if fingerprint:
        write_json(fingerprint, table)
        console.wrote(fingerprint)


def show_fingerprint(table: dict[str, Any]) -> None:
    """Print the part of a fingerprint (`fingerprint_table.describe`) by which the plan is decided."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    spacing = " x ".join(f"{table['spacing_mm'][axis]['median']:g}" for axis in ("slice", "row", "column"))
    shape = " x ".join(f"{table['shape_voxels'][axis]['median']:g}" for axis in ("slice", "row", "column"))
    console.out.print(
        f"{table['cases']} cases, {table['slices']} slices; median {shape} voxels of {spacing} mm; channels: "
        + ", ".join(table["channels"]),
        markup=False,
    )
    shown = Table(title="objects", box=box.SIMPLE_HEAD, show_edge=False)
    shown.add_column("class", no_wrap=True, overflow="fold")
    for column in ("cases", "objects", "in a slice", "side in mm", "volume in ml", "touch-\ning", "over-\nlapped"):
        shown.add_column(column)
    for name, entry in table["classes"].items():
        shown.add_row(
            escape(name),
            str(entry["cases"]),
            str(entry["objects"]),
            f"{entry['objects_per_slice']['median']:g}, at most {entry['objects_per_slice']['max']:g}",
            _range(entry["side_mm"]),
            _range(entry["volume_ml"]),
            f"{entry['touching_own_class']['share_of_objects']:.0%}, "
            f"{entry['touching_other_classes']['share_of_objects']:.0%}",
            f"{entry['overlapped']['share_of_objects']:.0%}",
        )
    console.out.print(shown)
    console.out.print(
        "side: of the box in the largest slice; side and volume: median (10 % to 90 %); touching: share of the objects "
        "that touch another of their class, and of other classes; overlapped: that share voxels with any"
    )


def _range(spread: dict[str, float]) -> str:
    return f"{spread['median']:.3g} ({spread['p10']:.3g} to {spread['p90']:.3g})"


def show_plan(plan: "Plan") -> None:
    """Print what was decided and why."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="plan", box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("field", no_wrap=True)  # cut short, nobody could write it behind --set
    for column in ("value", "reason"):
        table.add_column(column, overflow="fold")
    data = plan.model_dump(mode="json")
    for field, reason in plan.reasons.items():
        section, _, key = field.partition(".")
        table.add_row(field, escape(str(data[section][key])), escape(reason))
    console.out.print(table)
