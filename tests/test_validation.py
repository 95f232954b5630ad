"""Validation while training: scores from closed forms, the best of several, and nothing else disturbed."""

import csv
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from highdicom import VolumeGeometry
from matplotlib.image import imread
from network_fixtures import LABELS, simple_case, tiny_plan

from medseg.data.cache import CachedCase, CachedObject, load_case, prepare_case
from medseg.data.grid import NetworkGrid
from medseg.errors import InputError
from medseg.inference.predictor import Predictor
from medseg.labels import LabelTable
from medseg.linking import link
from medseg.metrics.evaluation import evaluate_case
from medseg.models.mask_rcnn import build_mask_rcnn
from medseg.progress import Track, silent
from medseg.training import validation as module
from medseg.training.validation import Validator, best_of, choose_cases
from medseg.values.detections import Detections

CPU = torch.device("cpu")
#: Found wherever it is looked for: every detection is one slice of one object.
PLAN = tiny_plan({"linking.min_score": 0.0, "linking.waist_ratio": 0.0})


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[CachedCase]:
    folder = tmp_path_factory.mktemp("cases")
    for seed in range(2):
        volume, truth = simple_case(seed)
        prepare_case(f"case{seed}", (volume,), truth, PLAN.input, folder)
    return [load_case(folder, f"case{seed}") for seed in range(2)]


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return build_mask_rcnn(PLAN).state_dict()


class Detector:
    """Stands in for the network: finds the objects of the cases, all but those that are hidden."""

    def __init__(self, cases: list[CachedCase]):
        self.cases = cases
        self.hidden: set[tuple[str, int]] = set()

    def __call__(self, predictor: Predictor, grid: NetworkGrid, track: Track = silent) -> list[Detections]:
        case = next(c for c in self.cases if c.array is grid.array)
        shown = [o for i, o in enumerate(case.objects) if (case.name, i) not in self.hidden]
        return [self._slice(z, shown) for z in range(grid.array.shape[1])]

    @staticmethod
    def _slice(index: int, objects: list[CachedObject]) -> Detections:
        boxes, masks, labels = [], [], []
        for item in objects:
            if index not in item.slices():
                continue
            plane = item.mask[index - item.offset[0]]
            rows, columns = (np.flatnonzero(plane.any(axis)) for axis in (1, 0))
            cut = plane[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            picked = (np.arange(56)[:, None] * cut.shape[0] // 56, np.arange(56) * cut.shape[1] // 56)
            masks.append(cut[picked].astype(np.float32))
            top, left = item.offset[1] + rows[0], item.offset[2] + columns[0]
            boxes.append([left, top, left + cut.shape[1], top + cut.shape[0]])
            labels.append(item.label)
        return Detections(
            slice_index=index,
            boxes=np.array(boxes, np.float32).reshape(-1, 4),
            scores=np.full(len(boxes), 0.9, np.float32),
            labels=np.array(labels, np.int64),
            masks=np.array(masks, np.float32).reshape(-1, 56, 56),
        )


@pytest.fixture
def detector(cases: list[CachedCase], monkeypatch: pytest.MonkeyPatch) -> Detector:
    found = Detector(cases)
    monkeypatch.setattr(Predictor, "detect", lambda *arguments: found(*arguments))
    return found


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "save_overlay", lambda *_, **__: None)


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "validation.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("without_pictures")
def test_what_is_found_is_scored(
    cases: list[CachedCase], weights: dict[str, torch.Tensor], detector: Detector, tmp_path: Path
) -> None:
    """Of four lesions three are found: F1 = 6/7; the Dice of a class is a mean over cases, 0 where nothing is found."""
    validator = Validator(cases, PLAN, tmp_path, CPU)
    result = validator(weights, 10)
    assert (result.step, result.cases, result.undefined, result.is_best, result.stop) == (10, 2, 0, True, False)
    assert result.classes["organ"].f1 == result.classes["lesion"].f1 == 1
    full = {name: score.dice for name, score in result.classes.items()}
    assert min(full.values()) > 0.97  # masks of 56 x 56 follow these small objects nearly to the pixel
    assert result.score == pytest.approx((2 + sum(full.values())) / 4, abs=1e-6)

    detector.hidden = {("case0", 0), ("case1", 2)}
    second = validator(weights, 20)
    assert second.classes["lesion"].f1 == pytest.approx(6 / 7) and second.classes["organ"].f1 == pytest.approx(2 / 3)
    assert second.classes["organ"].dice == pytest.approx(full["organ"] / 2, abs=0.01)
    assert not second.is_best

    rows = rows_of(tmp_path)
    assert list(rows[0]) == ["step", "score", "f1 organ", "dice organ", "f1 lesion", "dice lesion"]
    assert [row["step"] for row in rows] == ["10", "20"]
    assert [float(row["score"]) for row in rows] == [result.score, second.score]  # to the last digit
    assert float(rows[1]["f1 lesion"]) == pytest.approx(6 / 7, abs=1e-5)


@pytest.mark.usefixtures("without_pictures")
def test_the_threshold_is_the_plans(
    cases: list[CachedCase], weights: dict[str, torch.Tensor], detector: Detector, tmp_path: Path
) -> None:
    strict = PLAN.with_overrides({"training.validation_iou": 1.0})
    result = Validator(cases, strict, tmp_path, CPU)(weights, 1)
    assert result.classes["organ"].f1 < 1  # no mask is right to the last voxel in both cases


def test_pictures_show_the_latest_and_the_best(
    cases: list[CachedCase], weights: dict[str, torch.Tensor], detector: Detector, tmp_path: Path
) -> None:
    validator = Validator(cases, PLAN, tmp_path, CPU)
    validator(weights, 1)
    best, latest = (imread(tmp_path / f"validation_{name}.png") for name in ("best", "latest"))
    np.testing.assert_array_equal(best, latest)
    detector.hidden = {(case.name, i) for case in cases for i in range(3)}
    assert validator(weights, 2).score == 0
    np.testing.assert_array_equal(imread(tmp_path / "validation_best.png"), best)
    changed = imread(tmp_path / "validation_latest.png")
    assert changed.shape != best.shape or not np.array_equal(changed, best)


@pytest.mark.usefixtures("without_pictures")
def test_a_class_that_no_case_holds_is_left_out_and_counted(
    cases: list[CachedCase], detector: Detector, tmp_path: Path
) -> None:
    labels = LabelTable.from_names(["organ", "lesion", "spleen"], kinds={"lesion": "ids"})
    plan = tiny_plan({"linking.min_score": 0.0, "linking.waist_ratio": 0.0}, labels)
    weights = build_mask_rcnn(plan).state_dict()
    result = Validator(cases, plan, tmp_path, CPU)(weights, 1)
    assert math.isnan(result.classes["spleen"].f1) and math.isnan(result.classes["spleen"].dice)
    assert result.undefined == 1 and result.score > 0.98
    assert rows_of(tmp_path)[0]["f1 spleen"] == "nan"

    nothing = [replace(cases[0], objects=())]
    detector.cases = nothing
    result = Validator(nothing, plan, tmp_path / "nothing", CPU)(weights, 1)
    assert math.isnan(result.score) and result.undefined == 3 and not result.is_best and not result.stop
    with pytest.raises(InputError, match=r"validation without cases; .*--fold all"):
        Validator([], plan, tmp_path, CPU)


@pytest.mark.usefixtures("without_pictures")
def test_patience_counts_from_the_best_and_a_resumed_run_goes_on_with_it(
    cases: list[CachedCase], weights: dict[str, torch.Tensor], detector: Detector, tmp_path: Path
) -> None:
    plan = PLAN.with_overrides({"training.patience": 2})
    everything = {(case.name, i) for case in cases for i in range(3)}
    validator = Validator(cases, plan, tmp_path, CPU)
    seen = []
    for step, hidden in ((1, everything), (2, set()), (3, set()), (4, everything)):
        detector.hidden = hidden
        result = validator(weights, step)
        seen.append((result.is_best, result.stop))
    assert seen == [(True, False), (True, False), (False, False), (False, True)]

    # killed and gone on with from step 2: what came after it is found anew
    detector.hidden = set()
    again = Validator(cases, plan, tmp_path, CPU)
    assert [(r.is_best, r.stop) for r in (again(weights, step) for step in (3, 4))] == [(False, False), (False, True)]
    assert [row["step"] for row in rows_of(tmp_path)] == ["1", "2", "3", "4"]
    assert float(rows_of(tmp_path)[3]["score"]) > 0.9


def test_nothing_else_is_disturbed(cases: list[CachedCase], weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Generators, threads, gradients and the weights given are as before, with the network itself at work."""
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate(), torch.get_num_threads()  # type: ignore[index]
    copies = {name: value.clone() for name, value in weights.items()}
    Validator(cases, PLAN.with_overrides({"training.validation_cases": 1}), tmp_path, CPU)(weights, 1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]
    assert (random.getstate(), torch.get_num_threads()) == before[2:] and torch.is_grad_enabled()
    assert all(torch.equal(value, copies[name]) for name, value in weights.items())


@pytest.mark.usefixtures("without_pictures")
def test_scores_are_those_of_the_prediction_on_the_image(tmp_path: Path) -> None:
    """Where the network's grid is the image's, both ways give the same numbers, whatever an untrained network finds."""
    settings = {"inference.score_threshold": 0.3, "inference.detections_per_slice": 5, "linking.single_min_score": 0.0}
    plan = PLAN.with_overrides(settings)
    volume, truth = simple_case(4)
    prepare_case("a", (volume,), truth, plan.input, tmp_path)
    torch.manual_seed(1)
    model = build_mask_rcnn(plan)
    result = Validator([load_case(tmp_path, "a")], plan, tmp_path, CPU)(model.state_dict(), 1)
    found = Predictor(plan, model, CPU).predict((volume,)).instances
    expected = evaluate_case(truth, found, iou_threshold=0.5, surface=None)
    assert len(found) > 0 and sum(expected.of(name).voxels.dice for name in LABELS.names) > 0
    for name in LABELS.names:
        assert result.classes[name].dice == pytest.approx(expected.of(name).voxels.dice)
        assert result.classes[name].f1 == pytest.approx(expected.of(name).objects.f1)


@pytest.mark.usefixtures("without_pictures")
def test_linking_is_part_of_it(
    cases: list[CachedCase], weights: dict[str, torch.Tensor], detector: Detector, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    seen = []
    monkeypatch.setattr(module, "link", lambda *a: (seen.append(a[3]), link(*a))[1])
    Validator(cases, PLAN, tmp_path, CPU)(weights, 1)
    assert seen == [PLAN.linking] * 2


def test_the_best_is_the_first_of_the_highest() -> None:
    nan = math.nan
    assert best_of([]) is None and best_of([nan, nan]) is None
    assert best_of([nan, 0.2, 0.5, nan, 0.5]) == 2
    assert best_of([0.0, 0.0]) == 0


def made_up(name: str, sides: list[tuple[int, int]]) -> CachedCase:
    """A case whose objects are cubes: (label, side)."""
    geometry = VolumeGeometry(np.eye(4), (9, 9, 9), "PATIENT")
    objects = tuple(CachedObject.of(label, np.ones((side,) * 3, np.bool_), (0, 0, 0)) for label, side in sides)
    return CachedCase(
        name=name, array=np.zeros((1, 9, 9, 9), np.int16), geometry=geometry, slice_spacing_mm=1.0, objects=objects
    )


def test_cases_are_chosen_evenly_with_all_classes() -> None:
    many = [made_up(f"c{i:02d}", [(1, 1 + i % 8)]) for i in range(24)]
    rare = made_up("rare", [(1, 4), (2, 1)])
    chosen = choose_cases([*many, rare], 5, seed=0)
    volumes = [int(sum(o.areas.sum() for o in case.objects)) for case in chosen]
    assert volumes == sorted(volumes) and volumes[0] < 30 and volumes[-1] > 200 and len(set(volumes)) == 5
    assert rare in chosen
    assert [c.name for c in choose_cases([rare, *many[::-1]], 5, seed=0)] == [c.name for c in chosen]
    others = {tuple(c.name for c in choose_cases([*many, rare], 5, seed=seed)) for seed in range(5)}
    assert len(others) > 1 and all("rare" in names for names in others)
    assert choose_cases(many, 0, seed=0) == choose_cases(many, 24, seed=0) == many
