"""`medseg train --pretrained` and `--init` through the real command line."""

import json
import sys
from pathlib import Path

import pytest
import torch
import torchvision.models.resnet as resnet
from network_fixtures import LABELS, TINY, write_simple_cohort
from safetensors.torch import load_file

from medseg.cli import main
from medseg.labels import Label, LabelTable
from medseg.values.plan import load_plan

SETTINGS = {
    **{k: v for k, v in TINY.items() if k != "model.backbone"},
    "input.spacing_mm": [2.0, 2.0],
    "model.finest_stride": 4,
    "model.coarsest_stride": 32,
    "model.fpn_norm": "none",
    "training.crop_size": [32, 32],
    "training.focus_fraction": 0.0,
    "training.steps": 1,
}


def medseg(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *words: object) -> tuple[int, str, str]:
    """Run the command line in this process; return exit code, standard output and standard error."""
    monkeypatch.setattr(sys, "argv", ["medseg", *map(str, words)])
    monkeypatch.setattr(main.signal, "signal", lambda *_: None)
    monkeypatch.setattr(main.app, "registered_commands", [])
    with pytest.raises(SystemExit) as exit_:
        main.main()
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return int(exit_.value.code or 0), out, err


def settings(values: dict[str, object]) -> list[str]:
    return [word for key, value in values.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def test_from_a_downloaded_backbone_to_a_run_and_on_to_other_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    torch.manual_seed(0)
    torch.save(resnet.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    first = write_simple_cohort(tmp_path / "first", 2, (6, 60, 68), LABELS)
    common = ("--fold", "all", "--device", "cpu")
    words = ("train", first, "-o", tmp_path / "a", "--pretrained", tmp_path / "resnet18.pth", *common)
    code, _, err = medseg(monkeypatch, capsys, *words, *settings(SETTINGS | {"model.norm": "group"}))
    assert code == 2 and "--pretrained resnet18.pth: needs model.norm frozen_batch, but --set gives group" in err
    assert not (tmp_path / "a").exists()
    code, out, err = medseg(monkeypatch, capsys, *words, *settings(SETTINGS))
    assert code == 0, err
    assert "backbone: 100 of 100 tensors loaded" in out and "left out: fc.bias, fc.weight" in out
    plan = load_plan(tmp_path / "a" / "plan.yaml")
    assert (plan.model.norm, plan.model.stem, plan.model.backbone) == ("frozen_batch", "conv7", "resnet18")
    why = "the weights of resnet18.pth are those of a resnet18 (classifier)"
    assert plan.reasons["model.norm"] == why and f"# {why}" in (tmp_path / "a" / "plan.yaml").read_text()
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert record["start"]["from"] == "--pretrained resnet18.pth" and len(record["start"]["sha256"]) == 64
    assert record["start"]["parts"]["backbone"]["loaded"] + len(record["start"]["parts"]["backbone"]["adapted"]) == 100
    assert record["start"]["left_out"] == ["fc.bias", "fc.weight"]
    trained = load_file(tmp_path / "a" / "model.safetensors")
    running = "backbone.body.layer2.0.bn1.running_var"
    torch.testing.assert_close(trained[running], torch.ones(128))

    other = LabelTable(
        [Label(id=1, name="organ", colour=(1, 2, 3)), Label(id=2, name="cyst", colour=(4, 5, 6), kind="ids")]
    )
    second = write_simple_cohort(tmp_path / "second", 2, (6, 60, 68), other)
    words = ("train", second, "-o", tmp_path / "b", "--init", tmp_path / "a", *common, "--set", "training.steps=1")
    code, out, err = medseg(monkeypatch, capsys, *words, "--set", "training.crop_size=[32,32]")
    assert code == 0, err
    assert "classes: organ" in out and "adapted: roi_heads.box_predictor.cls_score.weight" in out
    plan = load_plan(tmp_path / "b" / "plan.yaml")
    assert plan.labels.names == ("organ", "cyst") and plan.model.fpn_channels == 32
    assert plan.reasons["model.fpn_channels"] == "as in the run that the weights come from (--init a)"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--pretrained", "none.pth"), "none.pth: no such file; expected a state dict in torchvision's layout"),
        (("--init", "none"), "none: not a training run"),
        (("--init", "none", "--pretrained", "none.pth"), "--pretrained and --init: a training begins with one"),
        (("--preset", "detectron"), "preset 'detectron' is unknown; expected one of torchvision, torchvision_v2"),
    ],
)
def test_what_is_no_start_is_refused(
    words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    code, _, err = medseg(monkeypatch, capsys, "train", tmp_path, "-o", tmp_path / "run", *words)
    assert code == 2 and message in err
    assert not (tmp_path / "run").exists()
