"""A training that was killed, stopped or damaged goes on to the very same weights."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_runs import environment
from network_fixtures import (
    TINY,
    interrupting,
    prepared_cases,
    quick_curves,
    tiny_plan,
    write_simple_cohort,
)
from safetensors.torch import load_file

import medseg.training.outputs as outputs
import medseg.training.prepared as prepared
from medseg.data.cache import CachedCase, prepare_case
from medseg.data.cohort import find_cohort
from medseg.errors import ConfigError, InputError, ModelError
from medseg.io.atomic import write_json
from medseg.training.checkpoint import find_checkpoints
from medseg.training.cohort import prepare_cohort, train_cohort
from medseg.training.folds import Fold
from medseg.training.loop import TrainingResult, train
from medseg.training.prepared import load_cases, prepare_cases

CPU = torch.device("cpu")
SMALL = {
    **TINY,
    "model.fpn_channels": 16,
    "model.finest_stride": 4,
    "model.coarsest_stride": 16,
    "model.anchor_sizes": [[8.0], [14.0], [24.0]],
    "training.crop_size": [32, 32],
}
#: Augmentation and two workers on; a validation in between and one at the end.
SETTINGS = {
    **SMALL,
    "training.steps": 10,
    "training.workers": 2,
    "training.augment": True,
    "training.checkpoint_every": 3,
    "training.validate_every": 5,
    "inference.score_threshold": 0.5,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Runs are bit-exact at one thread count, whatever this machine has; and no time goes into drawing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs, "save_curves", quick_curves)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients."""
    return write_simple_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[CachedCase]:
    return prepared_cases(tmp_path_factory.mktemp("cases"))


def assert_same_run(a: Path, b: Path) -> None:
    """Weights, last checkpoint (model, average, optimiser, generator) and tables are equal to the bit."""
    last = [find_checkpoints(run)[0] for run in (a, b)]
    assert last[0].name == last[1].name
    for files in ([a / "model.safetensors", b / "model.safetensors"], last):
        first, second = map(load_file, files)
        assert set(first) == set(second)
        assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []
    for name in ("metrics.csv", "validation.csv"):
        assert (a / name).exists() == (b / name).exists()
        assert not (a / name).exists() or (a / name).read_bytes() == (b / name).read_bytes()


def rows_of(run: Path) -> int:
    path = run / "metrics.csv"
    return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0


def test_killed_in_the_middle_of_an_epoch(cohort: Path, tmp_path: Path) -> None:
    """SIGKILL after some step beyond the first checkpoint, augmentation and two workers on, then --resume."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    fold = Fold(number=0, count=2)
    train_cohort(cohort, whole, CPU, settings=SETTINGS, fold=fold)
    chosen = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    command = [sys.executable, "-m", "medseg", "train", cohort, "-o", killed, "--fold", "0/2", "--threads", "1",
               "--device", "cpu", *chosen]  # fmt: skip
    with subprocess.Popen(
        command, env=environment(), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        patience = time.monotonic() + 300
        while rows_of(killed) < 5 and process.poll() is None and time.monotonic() < patience:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)  # its workers too: on a machine that loses power none is left
        assert process.wait() == -signal.SIGKILL, process.stderr and process.stderr.read()
    assert 5 <= rows_of(killed) < 10 and find_checkpoints(killed) and not (killed / "validation").exists()
    assert json.loads((killed / "run.json").read_text())["status"] == "running"
    result = train_cohort(cohort, killed, CPU, resume=True)
    assert (result.steps, result.interrupted) == (10, False)
    assert_same_run(whole, killed)
    record = json.loads((killed / "run.json").read_text())
    assert record["status"] == "finished" and record["validation"]["cases"] == 1
    assert not (killed / "cases").exists()


def test_a_prepared_run_trains_as_one_that_was_not(cohort: Path, tmp_path: Path) -> None:
    whole, prepared = tmp_path / "whole", tmp_path / "prepared"
    settings = SETTINGS | {"training.steps": 2}
    train_cohort(cohort, whole, CPU, settings=settings, fold="all")
    prepare_cohort(cohort, prepared, settings=settings, fold="all")
    with pytest.raises(ConfigError, match="exists and is not an empty folder"):
        prepare_cohort(cohort, prepared, settings=settings, fold="all")
    train_cohort(cohort, prepared, CPU, resume=True)
    assert_same_run(whole, prepared)
    first, second = (json.loads((run / "run.json").read_text()) for run in (whole, prepared))
    assert first.pop("seconds") and second.pop("seconds") and first == second
    with pytest.raises(ConfigError, match="its training has begun, and is prepared"):
        prepare_cohort(cohort, prepared, resume=True)


@pytest.mark.parametrize(
    ("optimizer", "stop", "error"),
    [("sgd", 4, KeyboardInterrupt), ("adamw", 5, ZeroDivisionError), ("adamw", 1, ZeroDivisionError)],
    ids=["ctrl-c", "crash", "before-the-first-checkpoint"],
)
def test_stopped_and_gone_on_with(
    cases: list[CachedCase], tmp_path: Path, optimizer: str, stop: int, error: type[BaseException]
) -> None:
    plan = tiny_plan({**SMALL, "training.steps": 7, "training.checkpoint_every": 3, "training.optimizer": optimizer})
    train(cases, plan, tmp_path / "whole", CPU)
    run = tmp_path / "stopped"
    if error is KeyboardInterrupt:
        assert train(cases, plan, run, CPU, interrupting(stop)).interrupted
        assert find_checkpoints(run)[0].name == f"step_{stop:08d}.safetensors"  # nothing is lost
    else:
        with pytest.raises(error):
            train(cases, plan, run, CPU, interrupting(stop, error))
        assert [p.name for p in find_checkpoints(run)] == (["step_00000003.safetensors"] if stop > 3 else [])
    torch.manual_seed(99)  # another process would not have this generator's state
    result = train(cases, plan, run, CPU, resume=True, note=pytest.fail)
    assert result.steps == 7 and result.seconds > 0
    assert_same_run(tmp_path / "whole", run)


def test_killed_between_a_checkpoint_and_its_weights(
    cases: list[CachedCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last checkpoint is there, model.safetensors is of the one before: --resume has no step left to make."""
    plan = tiny_plan({**SMALL, "training.steps": 3, "training.checkpoint_every": 2})
    train(cases, plan, tmp_path / "whole", CPU)
    save, run = outputs.save_weights, tmp_path / "killed"

    def killed(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
        if find_checkpoints(run)[0].name == "step_00000003.safetensors":
            raise ZeroDivisionError
        return save(folder, weights)

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(outputs, "save_weights", killed)
        train(cases, plan, run, CPU)
    assert train(cases, plan, run, CPU, resume=True).steps == 3
    assert_same_run(tmp_path / "whole", run)


def test_a_damaged_checkpoint_costs_steps_and_no_more(cases: list[CachedCase], tmp_path: Path) -> None:
    plan = tiny_plan({**SMALL, "training.steps": 5, "training.checkpoint_every": 2})
    train(cases, plan, tmp_path / "whole", CPU)
    run = tmp_path / "damaged"
    with pytest.raises(ZeroDivisionError):
        train(cases, plan, run, CPU, interrupting(4, ZeroDivisionError))
    last, before = find_checkpoints(run)
    last.write_bytes(last.read_bytes()[:100_000])
    notes: list[str] = []
    train(cases, plan, run, CPU, resume=True, note=notes.append)
    assert len(notes) == 1 and notes[0].startswith(f"{last}: damaged") and before.name == "step_00000002.safetensors"
    assert_same_run(tmp_path / "whole", run)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried"),
            "step 1: the memory of the device is not enough; start a",
        ),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "step 1: the system ended a process"),
    ],
)
def test_short_memory_is_told_in_one_line(
    cases: list[CachedCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError, message: str
) -> None:
    monkeypatch.setattr("medseg.training.step.Stepper.gradients", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(ModelError, match=message):
        train(cases, tiny_plan({**SMALL, "training.steps": 1}), tmp_path, CPU)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="a fault of medseg"):
        fault = RuntimeError("a fault of medseg")
        patch.setattr("medseg.training.step.Stepper.gradients", lambda *_: (_ for _ in ()).throw(fault))
        train(cases, tiny_plan({**SMALL, "training.steps": 1}), tmp_path, CPU)


def test_a_step_that_was_half_made_is_not_saved(
    cases: list[CachedCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between the optimiser and the average: the checkpoint before it stays the last."""
    plan = tiny_plan({**SMALL, "training.steps": 4, "training.checkpoint_every": 2})
    train(cases, plan, tmp_path / "whole", CPU)
    from medseg.training.optimizer import Average

    update = Average.update

    def interrupted(self: Average, model: torch.nn.Module) -> None:
        if self.updates == 2:
            raise KeyboardInterrupt
        update(self, model)

    run = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(Average, "update", interrupted)
        assert train(cases, plan, run, CPU).interrupted
    assert [p.name for p in find_checkpoints(run)] == ["step_00000002.safetensors"]
    train(cases, plan, run, CPU, resume=True)
    assert_same_run(tmp_path / "whole", run)


# -- cohorts --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that Ctrl-C stopped after two steps."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    settings = {**SMALL, "training.steps": 3}
    result = train_cohort(cohort, run, CPU, settings=settings, fold="all", track=interrupting(2))
    assert (result.steps, result.interrupted) == (2, True)
    return run


def test_what_differs_from_the_run_is_refused_by_name(cohort: Path, stopped: Path, tmp_path: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in stopped.rglob("*")}
    for settings, fold, message in (
        ({"training.steps": 4}, None, r"setting training.steps=4 is not that of .*plan\.yaml"),
        ({"training.stepz": 4}, None, "setting 'training.stepz' is unknown"),
        ({}, Fold(number=1, count=2), "--fold 1/2: the run was begun with all"),
    ):
        with pytest.raises(ConfigError, match=message):
            train_cohort(cohort, stopped, CPU, settings=settings, fold=fold, resume=True)
    one = tmp_path / "one.csv"
    one.write_text(f"image,label,patient\n{cohort}/img_0.nii.gz,{cohort}/lab_0.seg.nrrd,p0\n")
    with pytest.raises(ConfigError, match="was begun with other cases"):
        train_cohort(one, stopped, CPU, resume=True)
    lost = tmp_path / "lost.csv"
    lost.write_text(
        f"image,label,patient\n{cohort}/img_0.nii.gz,{cohort}/lab_0.seg.nrrd,p0\nnone.nii.gz,none.nrrd,p1\n"
    )
    with pytest.raises(InputError, match=r"case none: .*none\.nii\.gz: no such file"):
        train_cohort(lost, stopped, CPU, resume=True)
    others = Path(shutil.copytree(cohort, tmp_path / "others"))
    (others / "labels.json").write_text((cohort / "labels.json").read_text().replace('"lesion"', '"cyst"'))
    with pytest.raises(ConfigError, match=r"begun with the labels .*'lesion'.*, the cohort has .*'cyst'"):
        train_cohort(others, stopped, CPU, resume=True)
    changed = Path(shutil.copytree(stopped, tmp_path / "changed"))
    (changed / "plan.yaml").write_text((changed / "plan.yaml").read_text().replace("steps: 3", "steps: 9"))
    with pytest.raises(ConfigError, match=r"plan\.yaml: was changed since the training began"):
        train_cohort(cohort, changed, CPU, resume=True)
    record = json.loads((stopped / "run.json").read_text()) | {"start": {"from": "--pretrained x.pth"}}
    begun = Path(shutil.copytree(stopped, tmp_path / "begun"))
    write_json(begun / "run.json", record)
    for file in find_checkpoints(begun):
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="has no whole checkpoint with the weights it began with"):
        train_cohort(cohort, begun, CPU, resume=True)
    with pytest.raises(ConfigError, match="not an empty folder; .* goes on with --resume"):
        train_cohort(cohort, stopped, CPU)
    with pytest.raises(ConfigError, match=r"no training to go on with \(no plan.yaml there\); leave out --resume"):
        train_cohort(cohort, tmp_path / "nothing", CPU, resume=True)
    assert before == {p: p.stat().st_mtime_ns for p in stopped.rglob("*")} and not (tmp_path / "nothing").exists()


def test_a_stopped_run_keeps_its_cases_and_a_finished_one_does_not(
    cohort: Path, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sorted(p.name for p in stopped.iterdir() if p.is_dir()) == ["cases", "checkpoints"]
    monkeypatch.setattr(prepared, "prepare_case", lambda *_: pytest.fail("was prepared already"))
    same = {"training.steps": 3, "model.fpn_channels": 16}  # settings as they are may be given again
    result: TrainingResult = train_cohort(cohort, stopped, CPU, settings=same, resume=True)
    assert result.steps == 3
    assert [p.name for p in stopped.iterdir() if p.is_dir()] == ["checkpoints"]
    assert [p.name for p in find_checkpoints(stopped)] == ["step_00000003.safetensors"]
    with pytest.raises(ConfigError, match=r"this training is finished \(3 steps\); name a new folder"):
        train_cohort(cohort, stopped, CPU, resume=True)


def test_prepared_cases_are_made_anew_only_where_needed(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def counting(name: str, *rest: object) -> None:
        made.append(name)
        prepare_case(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(prepared, "prepare_case", counting)
    cohort = Path(shutil.copytree(cohort, tmp_path / "cohort"))
    found = find_cohort(cohort)

    def prepare(spacing: float = 2.0) -> list[str]:
        made.clear()
        prepare_cases(found, ["img_1"], tiny_plan({"input.spacing_mm": [spacing, spacing]}), tmp_path)
        return list(made)

    assert prepare() == ["img_0", "img_1"] and prepare() == []
    training, held_out = load_cases(tmp_path)
    assert [c.name for c in training] == ["img_1"] and [c.name for c in held_out] == ["img_0"]
    array = np.array(training[0].array)
    (tmp_path / "cases" / "img_1.npy").write_bytes((tmp_path / "cases" / "img_1.npy").read_bytes()[:-40])
    with pytest.raises(InputError, match="img_1"):
        load_cases(tmp_path)
    assert prepare() == ["img_1"]
    np.testing.assert_array_equal(load_cases(tmp_path)[0][0].array, array)
    os.utime(cohort / "lab_0.seg.nrrd", ns=(1, 1))  # another label file of the same name
    assert prepare() == ["img_0"]
    assert prepare(4.0) == ["img_0", "img_1"] and prepare(4.0) == []
    assert load_cases(tmp_path)[0][0].array.shape[-1] < array.shape[-1]
