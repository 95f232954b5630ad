"""pipelines/ablation.py: the grid, what is reused, what a failed run costs, and the arithmetic of its table."""

import csv
import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType

import pytest
from network_fixtures import TINY, write_simple_cohort

from medseg.errors import ConfigError
from medseg.io.atomic import write_json

PIPELINE = Path(__file__).parents[1] / "pipelines" / "ablation.py"


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ablation", PIPELINE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_simple_cohort(tmp_path_factory.mktemp("cohort"), 3, (6, 60, 68))


SETTINGS = {
    **TINY,
    "input.spacing_mm": [2.0, 2.0],
    "model.finest_stride": 4,
    "model.coarsest_stride": 32,
    "model.stem": "conv7",
    "model.fpn_norm": "none",
    "training.crop_size": [32, 32],
    "training.focus_fraction": 0.0,
    "training.steps": 2,
}


def test_a_grid_is_trained_kept_and_tabulated(
    ablation: ModuleType, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [str(cohort), "-o", str(tmp_path / "out"), "--fold", "0/3", "--seeds", "4", "--device", "cpu"]
    words += [w for key, value in SETTINGS.items() for w in ("--set", f"{key}={json.dumps(value)}")]
    grid = ["--grid", "model.roi_op=align,pool"]
    assert ablation.main([*words, *grid]) == 0
    for value in ("align", "pool"):
        run = tmp_path / "out" / f"roi_op={value}_seed4"
        assert f"roi_op: {value}" in (run / "plan.yaml").read_text()
        assert json.loads((run / "run.json").read_text())["status"] == "finished"
    with (tmp_path / "out" / "ablation.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = ("organ", "lesion", "mean of classes")
    assert [(r["setting"], r["class"], r["figure"]) for r in rows] == [
        (f"roi_op={value}", name, figure)
        for value in ("align", "pool")
        for name, figure in [*((n, f) for n in names[:2] for f in ("f1", "dice")), ("mean of classes", "f1"),
                             ("mean of classes", "dice")]
    ]  # fmt: skip
    assert {r["n"] for r in rows} == {"1"} and {r["pairs"] for r in rows} == {"", "1"}
    assert "| roi_op=pool | organ | f1 | " in (tmp_path / "out" / "ablation.md").read_text()

    trained = []
    monkeypatch.setattr(ablation, "train_cohort", lambda *a, **k: trained.append(a))
    assert ablation.main([*words, *grid]) == 0  # everything is there
    assert trained == []
    assert ablation.main([*words, *grid, "--set", "training.steps=3"]) == 1  # runs of another plan are in the way
    assert trained == []


def test_a_bad_run_does_not_stop_the_grid(
    ablation: ModuleType, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(path: Path, run: Path, *, settings: dict, **rest: object) -> object:
        if settings["training.seed"] == 1:
            raise RuntimeError("out of memory\nand more")
        classes = {"organ": {"f1": 0.5, "dice": None if settings["model.roi_op"] == "pool" else 0.25}}
        run.mkdir(parents=True)
        write_json(run / "run.json", {"validation": {"classes": classes}})
        return type("Result", (), {"interrupted": False})

    monkeypatch.setattr(ablation, "train_cohort", train)
    words = [str(cohort), "-o", str(tmp_path), "--fold", "0/3", "--seeds", "0,1", "--device", "cpu"]
    assert ablation.main([*words, "--grid", "model.roi_op=align,pool"]) == 1
    text = (tmp_path / "ablation.md").read_text()
    assert "failed: roi_op=align, seed 1: out of memory and more\n" in text and "roi_op=pool, seed 1" in text
    assert "| roi_op=align | organ | dice | 0.250 ± nan (1) |  |" in text
    assert "| roi_op=pool | organ | dice | nan ± nan (0) | +nan ± nan (0) |" in text
    assert "| roi_op=pool | organ | f1 | 0.500 ± nan (1) | +0.000 ± nan (1) |" in text
    with pytest.raises(ConfigError, match="needs held-out cases"):
        ablation.main([*words, "--fold", "all", "--grid", "model.roi_op=align"])
    with pytest.raises(ConfigError, match="setting 'model.roi' is unknown"):
        ablation.main([*words, "--grid", "model.roi=align"])


def test_mean_spread_and_paired_differences(ablation: ModuleType) -> None:
    key = ("organ", "f1")
    results = {
        "a": {0: {key: 0.5}, 1: {key: 0.7}, 2: {key: 0.9}},
        "b": {0: {key: 0.6}, 1: {key: math.nan}, 2: {key: 0.94}, 3: {key: 0.2}},
    }
    first, second = ablation.tabulate(results)
    assert (first["mean"], first["sd"], first["n"]) == (pytest.approx(0.7), pytest.approx(0.2), 3)
    assert first["difference"] is first["pairs"] is None
    assert (second["mean"], second["n"]) == (pytest.approx(0.58), 3)
    # seeds 0 and 2 only: +0.10 and +0.04
    assert second["difference"] == pytest.approx(0.07) and second["pairs"] == 2
    assert second["difference_sd"] == pytest.approx(0.03 * math.sqrt(2))


def test_the_grid_is_every_combination_of_yaml_values(ablation: ModuleType) -> None:
    found = ablation.parse_grid(["model.roi_op=align, pool", "input.context_mm=[0],[-2.5,0,2.5]"])
    assert [*found] == [
        "roi_op=align, context_mm=[0]",
        "roi_op=align, context_mm=[-2.5, 0, 2.5]",
        "roi_op=pool, context_mm=[0]",
        "roi_op=pool, context_mm=[-2.5, 0, 2.5]",
    ]
    assert found["roi_op=pool, context_mm=[0]"] == {"model.roi_op": "pool", "input.context_mm": [0]}
    with pytest.raises(ConfigError, match="expected section"):
        ablation.parse_grid(["model.roi_op="])
