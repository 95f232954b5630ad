"""`medseg predict` with several passes and several models, through the real command line."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from network_fixtures import save_run, simple_case, tiny_plan

from medseg.cli import main
from medseg.io import write_volume
from medseg.labels import LabelTable


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `a` and `b` of one cohort and `other` of another; an image of 14 slices of 5 mm, `x.nii.gz`."""
    folder = tmp_path_factory.mktemp("runs")
    quick = {"input.spacing_mm": [4.0, 4.0], "inference.score_threshold": 0.9, "inference.proposals": 5}
    plan = tiny_plan({**quick, "training.flip_columns": True})
    shutil.copytree(save_run(folder / "a", plan), folder / "b")
    save_run(folder / "other", tiny_plan({"input.spacing_mm": [4.0, 4.0]}, LabelTable.from_names(["organ", "cyst"])))
    save_run(folder / "fine", tiny_plan({"input.spacing_mm": [1.5, 1.5]}))
    write_volume(folder / "x.nii.gz", simple_case(0)[0])
    return folder


@pytest.fixture
def predict(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def go(*options: object, models: str = "a") -> tuple[int, str]:
        chosen = [part for name in models.split() for part in ("-m", runs / name)]
        command = ["medseg", "predict", "-i", runs / "x.nii.gz", *chosen, "-o", tmp_path / "out", "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", [str(part) for part in (*command, "--no-report", *options)])
        monkeypatch.setattr(main.signal, "signal", lambda *_: None)
        monkeypatch.setattr(main.app, "registered_commands", [])
        with pytest.raises(SystemExit) as exit_:
            main.main()
        return int(exit_.value.code or 0), capsys.readouterr().err

    return go


def test_cost_is_told_and_everything_is_recorded(predict, runs: Path, tmp_path: Path) -> None:
    code, err = predict("--flips", "--views", models="a b")
    assert code == 0, err
    record = json.loads((tmp_path / "out" / "x" / "run.json").read_text())
    factor = record["passes"].pop("cost_factor")
    assert f"x: 12 network passes, about {factor:.3g} times the time of one" in err.splitlines()
    assert record["passes"] == {
        "models": 2, "flips": True, "scales": [], "views": True, "view_weight": 2.0, "count": 12,
    }  # fmt: skip
    assert len(record["model_sha256"]) == 2
    code, err = predict("--scale", 0.8, "--scale", "1.25")
    # 60 x 68 pixels of 2 mm as 30 x 34, 24 x 27 and 38 x 42 (37.5 to the even number)
    assert code == 0 and "x: 3 network passes, about 3.2 times the time of one" in err.splitlines()


def test_one_plain_pass_has_nothing_to_tell(predict, tmp_path: Path) -> None:
    code, err = predict()
    assert code == 0 and "network passes" not in err
    record = json.loads((tmp_path / "out" / "x" / "run.json").read_text())
    assert "passes" not in record and isinstance(record["model_sha256"], str)


@pytest.mark.parametrize(
    ("options", "models", "text"),
    [
        (
            (),
            "a other",
            r"other: the model's labels .* 2 cyst \(single\), expected those of .*a \(1 organ \(single\), ",
        ),
        ((), "a nowhere", "nowhere: not a training run"),
        (("--flips",), "other", "flips: the model was trained without mirroring"),
        (("--scale", "3"), "a", r"scales \[3.0\]: expected different factors of 0.5 to 2"),
        (("--views",), "fine", r"views: the study has 14 slices of 5 mm, expected at least 2 of at most 4.5 mm"),
    ],
)
def test_what_does_not_go_together_is_one_line(predict, tmp_path: Path, options: tuple, models: str, text: str) -> None:
    code, err = predict(*options, models=models)
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == 2 and len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert re.search(text, lines[0]), lines[0]
    assert not (tmp_path / "out").exists()
