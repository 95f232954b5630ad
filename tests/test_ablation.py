"""pipelines/ablation*.py: the grid, what is reused, what a failed run costs, the arithmetic of tables and scores."""

import csv
import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from network_fixtures import LABELS, TINY, prepared_cases, tiny_plan, write_simple_cohort

from medseg.errors import ConfigError
from medseg.io.atomic import write_json
from medseg.values.detections import Detections

CPU = torch.device("cpu")


def pipeline(name: str) -> ModuleType:
    sys.path.insert(0, str(Path(__file__).parents[1] / "pipelines"))
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    return pipeline("ablation")


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
    record = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert [r["setting"] for r in record["figures"]["rows"]] == [r["setting"] for r in rows]
    assert record["seed"] == [4]

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
    # Student's t with one degree of freedom: 12.706 standard errors of 0.03
    assert (second["low"], second["high"]) == (pytest.approx(0.07 - 0.3812, abs=1e-4), pytest.approx(0.4512, abs=1e-4))


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


def test_slices_are_scored_by_boxes_and_masks() -> None:
    parts = pipeline("ablation_parts")
    plan = tiny_plan()
    masks = np.zeros((2, 40, 44), np.bool_)
    masks[0, 4:20, 6:30] = True  # fills its box
    masks[1, 22:38, 10:26] = np.tri(16, dtype=np.bool_)  # half of it, the diagonal besides
    truth = parts.SliceTruth(
        np.array([1, 2]), masks, np.array([[6, 4, 30, 20], [10, 22, 26, 38]], np.float32)
    )  # fmt: skip
    own = np.stack([np.ones((16, 16)), np.tri(16)]).astype(np.float32)
    found = Detections(
        slice_index=0, boxes=truth.boxes, scores=np.array([0.9, 0.8], np.float32), labels=np.array([1, 2]), masks=own
    )
    exact, boxes = parts.SliceScores(plan, 2.0), parts.SliceScores(plan, 2.0, rectangles=True)
    for scores in (exact, boxes):
        scores.add(truth, found, own)
        scores.add(truth, found[np.array([0])], own)  # of the second class one is missed
    names = ("organ", "lesion", "mean of classes")
    figures, cut = exact.figures(), boxes.figures()
    # COCO's 101 recalls: those up to 0.5 have precision 1, the other 50 have 0.
    assert [figures[name, "box_ap"] for name in names] == pytest.approx([1, 51 / 101, 76 / 101])
    assert [figures[name, "mask_ap"] for name in names] == pytest.approx([1, 51 / 101, 76 / 101])
    assert figures["mean of classes", "dice_in_true_box"] == figures["mean of classes", "nsd_in_true_box"] == 1
    assert cut["lesion", "box_ap"] == pytest.approx(51 / 101)
    # The triangle is 136 of 256 pixels: IoU 0.531 is reached at 0.5 only, one of ten thresholds.
    assert (cut["lesion", "mask_ap"], cut["lesion", "mask_ap50"]) == pytest.approx((5.1 / 101, 51 / 101))
    assert cut["lesion", "dice_in_true_box"] == pytest.approx(2 * 136 / (136 + 256))
    assert cut["organ", "nsd_in_true_box"] == 1 and cut["lesion", "nsd_in_true_box"] < 0.8


def test_truth_of_a_slice_and_a_look_at_it(tmp_path: Path) -> None:
    parts = pipeline("ablation_parts")
    case = prepared_cases(tmp_path)[0]
    truth = parts.truth_of(case, 7, LABELS)
    assert truth.classes.tolist() == [1, 2, 2] and truth.masks.shape[1:] == case.array.shape[2:]
    for mask, box in zip(truth.masks, truth.boxes, strict=True):
        x0, y0, x1, y1 = box.astype(int)
        assert mask[y0:y1, x0:x1].sum() == mask.sum() and mask[y0].any() and mask[:, x1 - 1].any()
    assert len(parts.truth_of(case, 0, LABELS).classes) == 0
    start = {}
    for masks in (True, False):
        plan = tiny_plan({"training.steps": 1, "inference.score_threshold": 0.0})
        model = parts.train_plainly([case], plan, masks=masks)
        start[masks] = [model.roi_heads.mask_predictor.mask_fcn_logits.bias.clone(), model.rpn.head.conv[0][0].weight]
        found, own = parts.look(model, plan, case, 7, truth)
        assert len(found) and own.shape == (3, plan.model.mask_size, plan.model.mask_size)
    torch.manual_seed(0)
    untrained = parts.build_mask_rcnn(tiny_plan()).roi_heads.mask_predictor.mask_fcn_logits.bias
    assert torch.equal(start[False][0], untrained) and not torch.equal(start[True][0], untrained)
    assert not torch.equal(start[False][1], start[True][1])  # what masks teach the rest


def test_a_question_is_trained_once_and_tabulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = pipeline("ablation_questions")
    thick = questions.context(1, 9.0)
    done = questions.run(thick, seed=1, steps=1, train=range(1, 3), test=range(3, 4))
    assert done["cross_sections"] > 5 and done["processor_seconds"]["training"] > 0
    assert ["mean of classes", "dice_in_true_box"] in [row[:2] for row in done["figures"]]
    names = {questions.key_of(s, 5) for settings in questions.QUESTIONS.values() for s in settings.values()}
    every = [s for settings in questions.QUESTIONS.values() for s in settings.values()]
    assert questions.key_of(questions.pooled("align", 4), 5) == questions.key_of(questions.BASE, 5)
    assert len(names) == len({(str(s.plan(0, 5)), s.slice_mm, s.masks) for s in every})

    asked = []

    def stand_in(setting: object, seed: int, steps: int) -> dict:
        asked.append(setting)
        value = 0.1 * seed + (0.05 if setting is questions.BASE else 0)
        return {**done, "plan_sha256": questions.hash_text(setting.plan(seed, steps).to_yaml()),
                "figures": [["mean of classes", "mask_ap", value], ["liver", "mask_ap", None]]}  # fmt: skip

    monkeypatch.setattr(questions, "run", stand_in)
    words = ["-o", str(tmp_path / "a.json"), "--runs", str(tmp_path / "runs"), "--seeds", "0,1,2", "--steps", "5"]
    for _ in range(2):
        questions.main([*words, "--question", "boxes_only", "--question", "roi_align_stride_4"])
    assert len(asked) == 9  # of two questions with one setting in common, three seeds
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["seed"] == [0, 1, 2] and record["figures"]["steps"] == 5
    first, second = record["figures"]["questions"]["boxes_only"]
    assert (first["mean"], first["difference"]) == (pytest.approx(0.1), None)
    assert (second["mean"], second["difference"], second["pairs"]) == (0.15, 0.05, 3)
    assert second["low"] == second["high"] == 0.05
    asked_for = {"boxes_only", "roi_align_stride_4"}
    assert {*record["figures"]["unfinished"]} == {*questions.QUESTIONS} - asked_for
    questions.main([*words, "--question", "boxes_only", "--question", "context_thin", "--tabulate"])
    figures = json.loads((tmp_path / "a.json").read_text())["figures"]
    assert [*figures["questions"]] == ["boxes_only"] and "context_thin" in figures["unfinished"]
    assert len(asked) == 9
    monkeypatch.setitem(questions.SETTINGS, "training.learning_rate", 1e-4)
    with pytest.raises(ConfigError, match="by another plan"):
        questions.main([*words, "--question", "boxes_only"])
