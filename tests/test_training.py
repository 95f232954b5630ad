"""Training: bit-exact under a seed, usable when interrupted, nothing half-written."""

import csv
import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from network_fixtures import (
    LABELS,
    TINY,
    interrupting,
    prepared_cases,
    quick_curves,
    simple_case,
    tiny_plan,
    write_simple_cohort,
)
from safetensors.torch import load_file

import medseg.training.outputs as outputs
from medseg.data.cache import CachedCase
from medseg.data.dataset import SliceDataset
from medseg.errors import ConfigError, GeometryError, InputError, ModelError
from medseg.inference.run import load_run
from medseg.io import write_volume
from medseg.models.mask_rcnn import build_mask_rcnn
from medseg.training.checkpoint import find_checkpoints, save_weights
from medseg.training.cohort import train_cohort
from medseg.training.loop import train
from medseg.training.optimizer import Average
from medseg.training.step import LOSSES, Stepper
from medseg.values.geometry import make_volume

CPU = torch.device("cpu")
SMALL = {"training.crop_size": [32, 32], "model.fpn_channels": 16, "training.steps": 3}

#: What a training leaves.
FILES = ["checkpoints", "curves.png", "metrics.csv", "model.safetensors", "plan.yaml"]


@pytest.fixture(autouse=True, scope="module")
def no_drawing() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs, "save_curves", quick_curves)
        yield


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[CachedCase]:
    return prepared_cases(tmp_path_factory.mktemp("cases"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of two cases on disk."""
    return write_simple_cohort(tmp_path_factory.mktemp("cohort"))


def test_two_runs_under_one_seed_are_equal_to_the_bit(cases: list[CachedCase], tmp_path: Path) -> None:
    """20 steps, augmentation and two workers on, two runs at one thread count; another seed gives other weights."""
    settings = {**SMALL, "training.steps": 20, "training.workers": 2, "training.augment": True}
    runs = {}
    for name, seed, steps in (("a", 7, 20), ("b", 7, 20), ("c", 8, 1)):
        torch.manual_seed(ord(name))  # what was drawn before does not matter
        plan = tiny_plan({**settings, "training.seed": seed, "training.steps": steps})
        assert train(cases, plan, tmp_path / name, CPU).steps == steps
        runs[name] = load_file(tmp_path / name / "model.safetensors")
    assert all(torch.equal(value, runs["b"][name]) for name, value in runs["a"].items())
    assert not torch.equal(runs["a"]["backbone.body.conv1.weight"], runs["c"]["backbone.body.conv1.weight"])
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == (tmp_path / "b" / "metrics.csv").read_bytes()


def test_metrics_tell_every_step(cases: list[CachedCase], tmp_path: Path) -> None:
    plan = tiny_plan({**SMALL, "training.steps": 10, "training.warmup_fraction": 0.2, "training.learning_rate": 0.001})
    result = train(cases, plan, tmp_path, CPU)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "learning_rate", "loss", *LOSSES]
    assert [int(row["step"]) for row in rows] == list(range(1, 11))
    rates = [0.0005, 0.001, *(0.0005 * (1 + math.cos(math.pi * i / 8)) for i in range(8))]
    np.testing.assert_allclose([float(row["learning_rate"]) for row in rows], rates, rtol=1e-5)
    for row in rows:
        assert float(row["loss"]) == pytest.approx(sum(float(row[name]) for name in LOSSES), rel=1e-4)
    assert (result.steps, result.interrupted) == (10, False)
    assert result.loss == pytest.approx(float(rows[-1]["loss"]), rel=1e-4)


def test_an_interrupted_run_leaves_a_model(cases: list[CachedCase], tmp_path: Path) -> None:
    plan = tiny_plan({**SMALL, "training.steps": 10, "training.workers": 1})
    result = train(cases, plan, tmp_path, CPU, interrupting(2))
    assert (result.steps, result.interrupted) == (2, True) and math.isfinite(result.loss)
    loaded, model = load_run(tmp_path, CPU)
    assert loaded == plan and not model.training
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES
    assert [p.name for p in find_checkpoints(tmp_path)] == ["step_00000002.safetensors"]


def test_weights_are_saved_on_the_way(cases: list[CachedCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    keep = outputs.save_weights
    monkeypatch.setattr(outputs, "save_weights", lambda run, weights: (saved.append(1), keep(run, weights))[1])
    train(cases, tiny_plan({**SMALL, "training.steps": 3, "training.checkpoint_every": 2}), tmp_path, CPU)
    assert len(saved) == 2  # after step 2 and at the end


def test_a_loss_that_is_not_finite_ends_the_run(cases: list[CachedCase], tmp_path: Path) -> None:
    array = np.asarray(cases[0].array, np.float32).copy()
    array[...] = np.nan
    broken = replace(cases[0], name="nan", array=array)
    plan = tiny_plan({**SMALL, "training.augment": False})
    slices = [SliceDataset([broken], plan, 2, plan.training.seed).origin(n)[1] for n in range(2)]
    named = ", ".join(f"case nan slice {index}" for index in slices)
    with pytest.raises(ModelError, match=rf"step 1: losses .*nan.* not finite, from {named}; look for extreme intens"):
        train([broken], plan, tmp_path, CPU)


def test_only_the_case_that_is_not_finite_is_named(cases: list[CachedCase], tmp_path: Path) -> None:
    """The last checkpoint from before it stays."""
    array = np.asarray(cases[1].array).copy().astype(np.float32)
    broken = replace(cases[1], name="broken", array=array)
    plan = tiny_plan({**SMALL, "training.checkpoint_every": 1, "training.steps": 40})
    dataset = SliceDataset([cases[0], broken], plan, 80, plan.training.seed)
    origins = [dataset.origin(n) for n in range(80)]
    chosen = next(origin for origin in origins if origin[0] == "broken" and origin not in origins[:2])
    array[:, chosen[1]] = np.nan
    step = origins.index(chosen) // 2
    named = ", ".join(f"case broken slice {chosen[1]}" for n in (2 * step, 2 * step + 1) if origins[n] == chosen)
    with pytest.raises(ModelError, match=rf"step {step + 1}: .* not finite, from {named}; "):
        train([cases[0], broken], plan, tmp_path, CPU)
    assert find_checkpoints(tmp_path)[0].name == f"step_{step:08d}.safetensors"
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + step


def test_the_average_is_what_is_saved(cases: list[CachedCase], tmp_path: Path) -> None:
    """After one step the average is 2 / 11 the start and the rest the trained weights."""
    plan = tiny_plan({**SMALL, "training.steps": 1})
    torch.manual_seed(plan.training.seed)
    start = build_mask_rcnn(plan).state_dict()
    average = Average(build_mask_rcnn(plan), 0.998)
    average.values = {name: value.clone() for name, value in start.items()}
    trained = build_mask_rcnn(plan)
    average.update(trained)
    for name, value in trained.state_dict().items():
        expected = (2 * start[name] + 9 * value) / 11 if value.is_floating_point() else value
        torch.testing.assert_close(average.values[name], expected)
    shorter = Average(trained, 0.1)
    shorter.updates = 100
    shorter.values = {name: value.clone() for name, value in start.items()}
    shorter.update(trained)
    name = "backbone.body.conv1.weight"
    torch.testing.assert_close(shorter.values[name], 0.1 * start[name] + 0.9 * trained.state_dict()[name])


def test_weights_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be written"):
        save_weights(tmp_path / "file", {"a": torch.zeros(3)})


# -- cohorts --------------------------------------------------------------------------------------------------

SETTINGS = {**TINY, **SMALL, "model.anchor_sizes": [[8.0], [14.0], [24.0], [40.0]], "model.finest_stride": 4}


def test_a_cohort_becomes_a_run(folder: Path, tmp_path: Path) -> None:
    plans = []
    result = train_cohort(folder, tmp_path / "run", CPU, settings=SETTINGS, on_plan=plans.append)
    assert result.steps == 3 and len(plans) == 1
    names = sorted(p.name for p in (tmp_path / "run").iterdir())  # the prepared cases are gone
    assert names == sorted([*FILES, "fingerprint.json", "run.json"])
    loaded, _ = load_run(tmp_path / "run", CPU)
    assert loaded == plans[0] and loaded.labels == LABELS and loaded.model.fpn_channels == 16
    with pytest.raises(ConfigError, match="run: exists and is not an empty folder; name a new one"):
        train_cohort(folder, tmp_path / "run", CPU, settings=SETTINGS)


def test_a_folder_of_the_user_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "mine").touch()
    with pytest.raises(ConfigError, match="not an empty folder"):
        train_cohort(folder, tmp_path, CPU, settings=SETTINGS)
    with pytest.raises(ConfigError, match="not an empty folder"):
        train_cohort(folder, tmp_path / "cache" / "mine", CPU, settings=SETTINGS)
    assert (tmp_path / "cache" / "mine").exists()
    with pytest.raises(InputError, match="cannot be written"):
        train_cohort(folder, tmp_path / "cache" / "mine" / "run", CPU, settings=SETTINGS)


def test_an_interrupted_cohort_says_so(folder: Path, tmp_path: Path) -> None:
    import json

    result = train_cohort(folder, tmp_path / "run", CPU, settings=SETTINGS, track=interrupting(1))
    assert result.interrupted
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    load_run(tmp_path / "run", CPU)


def test_nothing_is_written_when_a_case_is_broken(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "cohort"
    broken.mkdir()
    for file in folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    volume, _ = simple_case(1)
    affine = volume.affine.copy()
    affine[2, 3] += 30
    write_volume(broken / "img_1.nii.gz", make_volume(volume.array, affine, "moved"))
    with pytest.raises(GeometryError, match="case img_1: image and label are in different places"):
        train_cohort(broken, tmp_path / "run", CPU, settings=SETTINGS)
    (broken / "img_1.nii.gz").write_bytes((folder / "img_1.nii.gz").read_bytes()[:5000])
    with pytest.raises(InputError, match=r"img_1\.nii\.gz"):
        train_cohort(broken, tmp_path / "run", CPU, settings=SETTINGS)
    assert not (tmp_path / "run").exists()


def test_one_case_needs_to_be_allowed(folder: Path, tmp_path: Path) -> None:
    lines = (folder / "cohort.csv").read_text().splitlines()[:2]
    one = tmp_path / "one.csv"
    one.write_text("\n".join([lines[0], f"{folder}/img_0.nii.gz,{folder}/lab_0.seg.nrrd,p0"]) + "\n")
    with pytest.raises(InputError, match=r"the cohort has one case, expected at least two; .*--single-case"):
        train_cohort(one, tmp_path / "run", CPU, settings=SETTINGS)
    assert not (tmp_path / "run").exists()
    settings = {**SETTINGS, "training.steps": 1}
    assert train_cohort(one, tmp_path / "run", CPU, settings=settings, single_case=True).steps == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model.backbon": "resnet18"}, "setting 'model.backbon' is unknown"),
        ({"model.backbone": "vgg"}, "settings: model.backbone"),
        ({"input.spacing_mm": ["a", "b"]}, "settings: input.spacing_mm"),
        ({"input.spacing_mm": 2}, "settings: input.spacing_mm"),
        ({"input.orientation": "XYZ"}, "orientation 'XYZ'"),
    ],
)
def test_bad_settings_are_refused(folder: Path, tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_cohort(folder, tmp_path / "run", CPU, settings=settings)
    assert not (tmp_path / "run").exists()


def test_threads_do_not_disturb_each_other_s_casts(cases: list[CachedCase]) -> None:
    """Another thread that empties the process-wide cache of bfloat16 casts changes no gradient."""
    plan = tiny_plan({**SMALL, "training.precision": "bfloat16"})
    torch.manual_seed(0)
    model = build_mask_rcnn(plan).train()
    stepper = Stepper(model, plan.training, CPU)
    sample = SliceDataset(cases, plan, 1, 0)[0]
    alone = stepper._compute([sample]).gradients
    stop = threading.Event()

    def clear() -> None:
        while not stop.is_set():
            torch.clear_autocast_cache()

    other = threading.Thread(target=clear)
    other.start()
    try:
        disturbed = stepper._compute([sample]).gradients
    finally:
        stop.set()
        other.join()
        stepper.close()
    for a, b in zip(alone, disturbed, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
