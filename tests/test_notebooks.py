"""Every notebook runs from top to bottom, quickly, and shows a picture in each of its sections."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nbclient", reason="needs nbclient, which runs notebooks; pip install 'medseg[notebooks]'")
pytest.importorskip("ipykernel", reason="needs ipykernel, which runs notebooks; pip install 'medseg[notebooks]'")

import nbformat
from notebook_runner import FOLDER, execute

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST_BYTES = 1_500_000
#: Of a processor, for one notebook.
MOST_SECONDS = 60.0


def outputs(cells: list[Any]) -> Iterator[Any]:
    return (output for cell in cells if cell.cell_type == "code" for output in cell.outputs)


def sections_without_picture(notebook: nbformat.NotebookNode) -> list[str]:
    """Titles (``## ...``) of the sections that have code and show no PNG."""
    sections: dict[str, list[Any]] = {}
    title = None
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            title = cell.source.splitlines()[0]
        if title is not None:
            sections.setdefault(title, []).append(cell)
    assert sections
    return [
        title
        for title, cells in sections.items()
        if any(cell.cell_type == "code" for cell in cells)
        and not any("image/png" in output.get("data", {}) for output in outputs(cells))
    ]


def test_there_is_a_notebook():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path: Path, tmp_path: Path):
    before = os.times()
    assert sections_without_picture(execute(path, tmp_path)) == []
    after = os.times()
    seconds = sum(getattr(after, part) - getattr(before, part) for part in ("children_user", "children_system"))
    assert 1.0 < seconds < MOST_SECONDS
    assert list(tmp_path.iterdir()) == [], "a notebook leaves nothing in the folder where it runs"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_saved_with_its_outputs_and_nothing_else(path: Path):
    assert path.stat().st_size < LARGEST_BYTES
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert sections_without_picture(notebook) == [], "run python tests/notebook_runner.py"
    assert [cell.metadata for cell in notebook.cells if cell.metadata] == []
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    for output in outputs(notebook.cells):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
        text = output.get("text", "") + "".join(v for k, v in output.get("data", {}).items() if k.startswith("text/"))
        assert not re.search(r"(^|[\s'\"(])(/\w+/|[A-Z]:\\)", text), f"a path of one machine: {text}"
