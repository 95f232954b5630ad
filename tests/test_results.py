"""docs/results: pages are what their records and templates give; records hold figures and where they are from."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from medseg.errors import InputError
from medseg.io.atomic import write_json

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [DOCS / "results.md", *sorted((DOCS / "results").glob("*.md"))]
TEMPLATES = [DOCS / "results.md.in", *sorted((DOCS / "results").glob("*.md.in"))]
RECORD = {
    "command": "medseg demo -o demo-output",
    "seed": 0,
    "commit": "abc1234",
    "hardware": "one core of a Z80, no GPU",
    "date": "2026-11-22",
    "figures": {"dice": 0.87654, "none": None, "objects": 12345},
}


@pytest.fixture(scope="module")
def make() -> ModuleType:
    sys.path.insert(0, str(ROOT / "pipelines"))
    return importlib.import_module("make_results")


@pytest.fixture(scope="module")
def keep() -> ModuleType:
    sys.path.insert(0, str(ROOT / "pipelines"))
    return importlib.import_module("record_results")


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    write_json(tmp_path / "results" / "demo.json", RECORD)
    return tmp_path


def render(make: ModuleType, docs: Path, template: str) -> str:
    """The page of a template, without the line that says where it comes from."""
    (docs / "results.md.in").write_text(template, encoding="utf-8")
    return make.render_pages(docs)[docs / "results.md"].partition("-->\n\n")[2]


def test_pages_are_what_records_and_templates_give(make: ModuleType) -> None:
    rendered = make.render_pages(DOCS)
    assert sorted(rendered) == sorted(PAGES), "a page without a template, or one not written yet: run make results"
    stale = [str(page.relative_to(ROOT)) for page, text in rendered.items() if page.read_text(encoding="utf-8") != text]
    assert not stale, f"{', '.join(stale)}: not what the records in docs/results give; run make results"


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_tables_draw_on_records(template: Path) -> None:
    lines = template.read_text(encoding="utf-8").splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("|") and not line.startswith("|--") and not following.startswith("|--"):
            assert "{{" in line, f"{template.name}: a row of figures by hand: {line}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda path: path.name)
def test_links_of_the_pages_lead_somewhere(page: Path) -> None:
    for target, _, anchor in re.findall(r"\]\((?!https?://)([^)#]*)(#([^)]*))?\)", page.read_text(encoding="utf-8")):
        path = page.parent / target if target else page
        assert path.exists(), f"{page.name} links {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_a_template_gets_figures_and_where_they_are_from(make: ModuleType, docs: Path) -> None:
    other = {
        **RECORD,
        "command": ["a", "b --c"],
        "seed": [4, 5, 6],
        "commit": None,
        "hardware": "a GPU",
        "recorded": "x",
    }
    write_json(docs / "results" / "other.json", other)
    write_json(docs / "results" / "third.json", RECORD)
    assert render(make, docs, "{{ demo.figures.dice | f }} {{ demo.figures.none | f }}") == "0.877 -\n"
    assert render(make, docs, "{{ 0.5 | signed(1) }} {{ demo.figures.objects | count }}") == "+0.5 12,345\n"
    values = '{{ {"mean": 1, "ci_low": 0.25, "ci_high": none} | interval(2) }}'
    assert render(make, docs, values) == "1.00 (0.25 to -)\n"
    assert render(make, docs, "{{ source(demo) }}") == (
        "medseg demo -o demo-output\n\n[demo.json](results/demo.json): 2026-11-22; seed 0; commit abc1234.\n"
    )
    assert render(make, docs, "x\n\n{{ source(other) }}") == (
        "x\n\n    a\n    b --c\n\n[other.json](results/other.json): 2026-11-22; seeds 4 to 6; a GPU; x.\n"
    )


def test_figures_that_are_not_there_are_one_line(make: ModuleType, docs: Path) -> None:
    with pytest.raises(InputError, match=r"^results.md.in: line 2: .*'iou'.*compare"):
        render(make, docs, "x\n{{ demo.figures.iou | f }}")
    with pytest.raises(InputError, match=r"^results.md.in: line 1: .*compare"):
        render(make, docs, "{% for %}")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seed": "0"}, "seed missing or of another kind"),
        ({"command": [], "hardware": ""}, "command, hardware missing or of another kind"),
        ({"date": "22.11.2026"}, "is no record"),
        ({"figures": {}}, "figures missing"),
    ],
)
def test_a_bad_record_is_one_line(make: ModuleType, docs: Path, change: dict[str, Any], expected: str) -> None:
    write_json(docs / "results" / "bad.json", {**RECORD, **change})
    with pytest.raises(InputError, match=rf"^bad.json: {expected}"):
        make.load_records(docs / "results")


def test_a_record_without_a_commit_is_one_line(make: ModuleType, docs: Path) -> None:
    write_json(docs / "results" / "bad.json", {key: value for key, value in RECORD.items() if key != "commit"})
    with pytest.raises(InputError, match=r"^bad.json: commit missing"):
        make.load_records(docs / "results")


def test_no_json_is_one_line(make: ModuleType, docs: Path) -> None:
    (docs / "results" / "bad.json").write_text("{")
    with pytest.raises(InputError, match=r"^bad.json: is no record of results"):
        make.load_records(docs / "results")


def test_a_record_keeps_what_is_asked_for(keep: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep, "FOLDER", tmp_path / "results")
    summary = {"n": 2, "classes": {"a": {"dice": 0.5, "iou": 0.4}, "b": {"dice": 0.7, "iou": 0.6}}}
    write_json(tmp_path / "summary.json", summary)
    words = ["mine", str(tmp_path / "summary.json"), "--command", "medseg evaluate", "--seed", "3"]
    keep.main([*words, "--keep", "classes.*.dice", "--keep", "n", "--date", "2026-11-21", "--commit", "abc"])
    record = json.loads((tmp_path / "results" / "mine.json").read_text())
    assert record["figures"] == {"n": 2, "classes": {"a": {"dice": 0.5}, "b": {"dice": 0.7}}}
    assert [record[key] for key in ("command", "seed", "commit", "date")] == ["medseg evaluate", 3, "abc", "2026-11-21"]
    assert re.match(r"\w+ cores? of an? .*, no GPU$", record["hardware"])
    keep.main([*words, "--seed", "4", "--command", "second"])
    record = json.loads((tmp_path / "results" / "mine.json").read_text())
    assert record["figures"] == summary and record["seed"] == [3, 4]
    assert record["command"] == ["medseg evaluate", "second"]
    with pytest.raises(InputError, match="'dise' is not in the file; at that place there is dice, iou"):
        keep.main([*words, "--keep", "classes.*.dise"])
    with pytest.raises(InputError, match=r"expected a name of letters"):
        keep.main(["../x", *words[1:]])
    with pytest.raises(InputError, match=r"none.json: is no JSON file"):
        keep.main(["mine", str(tmp_path / "none.json"), "--command", "x"])


def test_a_command_names_no_folder_of_the_machine(
    keep: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSEG_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    words = [str(tmp_path / "x.py"), str(tmp_path / "data" / "mr"), "-o", str(tmp_path / "out.json"), "/home/me/a b"]
    monkeypatch.setattr(sys, "argv", words)
    assert keep.own_command() == "python pipelines/x.py DATA/mr -o out.json 'a b'"


def test_a_commit_tells_of_changes(keep: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert keep.checked_out() is None
    (tmp_path / "medseg").mkdir()
    (tmp_path / "medseg" / "x.py").write_text("1")
    for words in ("init -q", "add medseg", "-c user.name=a -c user.email=b commit -q -m c"):
        subprocess.run(["git", "-C", str(tmp_path), *words.split()], check=True)
    commit = keep.checked_out()
    assert re.fullmatch("[0-9a-f]{7,}", commit)
    (tmp_path / "medseg" / "x.py").write_text("2")
    assert keep.checked_out() == f"{commit} with changes"
