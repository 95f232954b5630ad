"""What a cohort costs, from what one study costs: processors, GPUs, bytes, and what stands in the way first.

    python pipelines/scaling_model.py --write docs/scaling.md            # renews the tables of that page
    python pipelines/scaling_model.py --set gpu_s_per_slice=0.01 --set pacs_mb_per_s=50 --set slices=120

The cost of a study is read from docs/results/study_cost.json (measured on one machine); what was
not measured is an assumption and is marked as such. `--set` puts other figures in their place: your own.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from record_results import FOLDER

from medseg.io.atomic import write_text

#: Studies, and in how many days they are to be done.
COHORTS = ((10**3, 1.0), (10**5, 30.0), (10**7, 365.0))
DAY_S = 86400.0
#: The tables of a page stand between these.
MARKS = ("<!-- tables -->\n\n", "\n\n<!-- end of tables -->")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a study costs and what a site has; the first block is measured, the second assumed."""

    slices: float
    cpu_s_per_slice: float  # ResNet-50 at 512 x 512, float32, one core
    cpu_s_beside: float  # reading, linking, writing, pictures, report
    scheduler_s: float  # per case, of the one process that hands out cases
    input_mb: float  # uncompressed
    output_mb: float
    output_files: float

    gpu_s_per_slice: float = 0.02  # assumption: no GPU was measured
    archive_ratio: float = 2.5  # assumption: lossless compression on the way from the archive
    file_open_s: float = 0.002  # assumption: opening a file on a network file system that others use too
    # What a site has: assumptions, to be replaced.
    cores: float = 256
    gpus: float = 16
    disk_mb_per_s: float = 1000
    disk_opens_at_once: float = 16
    pacs_mb_per_s: float = 50


def measured() -> Figures:
    """Return the figures of docs/results/study_cost.json."""
    study = json.loads((FOLDER / "study_cost.json").read_text())["figures"]
    return Figures(
        slices=study["shape"][0],
        cpu_s_per_slice=study["resnet50_seconds_per_slice"],
        cpu_s_beside=round(sum(s for stage, s in study["seconds"].items() if stage != "network"), 2),
        scheduler_s=study["scheduler_seconds_per_case"],
        input_mb=round(study["input_bytes"] / 1e6, 1),
        output_mb=round(study["output_bytes"] / 1e6, 1),
        output_files=len(study["output_bytes_by_file"]),
    )


def needs(f: Figures, studies: int) -> dict[str, float]:
    """Return what so many studies take in all."""
    files = f.slices + f.output_files
    return {
        "core-hours without a GPU": studies * (f.slices * f.cpu_s_per_slice + f.cpu_s_beside) / 3600,
        "GPU-hours": studies * f.slices * f.gpu_s_per_slice / 3600,
        "core-hours beside a GPU": studies * f.cpu_s_beside / 3600,
        "TB out of the archive": studies * f.input_mb / f.archive_ratio / 1e6,
        "TB read and written": studies * (f.input_mb + f.output_mb) / 1e6,
        "TB of results": studies * f.output_mb / 1e6,
        "million files": studies * files / 1e6,
        "hours of the scheduler": studies * f.scheduler_s / 3600,
    }


def days(f: Figures, studies: int) -> dict[str, float]:
    """Return how many days each part of the site would be busy, were it alone in the way."""
    study_s = {
        "GPUs": f.slices * f.gpu_s_per_slice / f.gpus,
        "cores beside them": f.cpu_s_beside / f.cores,
        "cores, without GPUs": (f.slices * f.cpu_s_per_slice + f.cpu_s_beside) / f.cores,
        "disk, bytes": (f.input_mb + f.output_mb) / f.disk_mb_per_s,
        "disk, opening files": (f.slices + f.output_files) * f.file_open_s / f.disk_opens_at_once,
        "archive": (f.input_mb / f.archive_ratio + f.output_mb) / f.pacs_mb_per_s,
        "scheduler": f.scheduler_s,
    }
    return {part: studies * seconds / DAY_S for part, seconds in study_s.items()}


def gpus_until(f: Figures) -> dict[str, float]:
    """Return with how many GPUs each other part of the site is as slow as they are: from there it stands in the way."""
    alone = days(f, 1)
    return {part: f.gpus * alone["GPUs"] / alone[part] for part in alone if part not in ("GPUs", "cores, without GPUs")}


def table(head: str, columns: Mapping[str, Mapping[str, float]]) -> str:
    """Return columns of numbers, three digits each, as a table in Markdown."""
    rows = list(next(iter(columns.values())))
    lines = [f"| {head} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {row} | " + " | ".join(number(column[row]) for column in columns.values()) + " |" for row in rows]
    return "\n".join(lines)


def number(value: float) -> str:
    """Return a number in at most three digits that count."""
    if value < 0.001:
        return "< 0.001"
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def tables(f: Figures) -> str:
    """Return all that the page shows."""
    cohorts = {f"{studies:,} studies": studies for studies, _ in COHORTS}
    wanted = {f"{studies:,} in {limit:g} day{'s' * (limit > 1)}": (studies, limit) for studies, limit in COHORTS}
    share = {
        name: {part: value / limit for part, value in days(f, studies).items()}
        for name, (studies, limit) in wanted.items()
    }
    return "\n\n".join(
        [
            table("in all", {name: needs(f, studies) for name, studies in cohorts.items()}),
            table("days, each part alone", {name: days(f, studies) for name, studies in cohorts.items()}),
            table("share of the site that it takes", share),
            table("stands in the way from", {"GPUs on": gpus_until(f)}),
        ]
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], metavar="FIGURE=NUMBER", help="a figure of your own")
    figures, known = measured(), {field.name for field in fields(Figures)}
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables into a page that has marks for them")
    given = parser.parse_args()
    for text in given.set:
        name, _, value = text.partition("=")
        try:
            figures = replace(figures, **{name: float(value)})
        except (ValueError, TypeError):
            parser.error(f"--set {text}: expected a number for one of {', '.join(sorted(known))}")
    print(json.dumps(asdict(figures), indent=2), tables(figures), sep="\n\n")
    if given.write:
        before, rest = given.write.read_text(encoding="utf-8").split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        write_text(given.write, before + MARKS[0] + tables(figures) + MARKS[1] + after)


if __name__ == "__main__":
    main()
