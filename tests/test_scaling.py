"""pipelines/scaling_model.py: the arithmetic, by hand, and that the page shows what the model gives."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "pipelines"))
import scaling_model as model

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
#: A study of 100 slices: 360 s on a core, 36 s beside the network; 10 s on a GPU; 250 MB in, 50 MB out, 20 files.
FIGURES = model.Figures(
    slices=100, cpu_s_per_slice=3.24, cpu_s_beside=36, scheduler_s=0.01, input_mb=250, output_mb=50,
    output_files=20, gpu_s_per_slice=0.1, archive_ratio=2.5, file_open_s=0.01, cores=36, gpus=10, disk_mb_per_s=100,
    disk_opens_at_once=12, pacs_mb_per_s=15,
)  # fmt: skip


def test_what_a_thousand_studies_take() -> None:
    assert model.needs(FIGURES, 1000) == pytest.approx({
        "core-hours without a GPU": 100.0,
        "GPU-hours": 10 / 3.6,
        "core-hours beside a GPU": 10.0,
        "TB out of the archive": 0.1,
        "TB read and written": 0.3,
        "TB of results": 0.05,
        "million files": 0.12,
        "hours of the scheduler": 10 / 3600,
    })  # fmt: skip


def test_each_part_alone_and_what_stands_in_the_way() -> None:
    seconds = {part: days * 86400 for part, days in model.days(FIGURES, 1).items()}
    assert seconds == pytest.approx({
        "GPUs": 1.0, "cores beside them": 1.0, "cores, without GPUs": 10.0, "disk, bytes": 3.0,
        "disk, opening files": 0.1, "archive": 10.0, "scheduler": 0.01,
    })  # fmt: skip
    # The archive is ten times as slow as ten GPUs: one GPU keeps it busy.
    assert model.gpus_until(FIGURES) == pytest.approx(
        {
            "cores beside them": 10.0,
            "disk, bytes": 10 / 3,
            "disk, opening files": 100.0,
            "archive": 1.0,
            "scheduler": 1000,
        }
    )
    assert model.gpus_until(replace(FIGURES, gpus=40)) == pytest.approx(model.gpus_until(FIGURES))


def test_numbers_have_three_digits() -> None:
    assert [model.number(v) for v in (0.0004, 0.01234, 1.5, 99.96, 123.4, 1234567.0)] == [
        "< 0.001",
        "0.0123",
        "1.5",
        "100",
        "123",
        "1,230,000",
    ]


def test_the_page_shows_the_tables_of_the_measured_figures() -> None:
    tables = model.tables(model.measured())
    assert PAGE.read_text(encoding="utf-8").split(model.MARKS[0])[1].split(model.MARKS[1])[0] == tables, (
        "run python pipelines/scaling_model.py --write docs/scaling.md"
    )
