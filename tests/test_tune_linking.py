"""`medseg tune-linking` with a stand-in for the network: what it writes, keeps and refuses."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from linking_simulation import Noise, random_ellipsoids, simulate
from network_fixtures import tiny_plan
from test_linking import LABELS, LESION, grid

from medseg.cli import main
from medseg.io import write_instances, write_volume
from medseg.io.atomic import write_json
from medseg.training import tune_linking as module
from medseg.training.checkpoint import save_plan
from medseg.training.tune_linking import tune_linking
from medseg.values.geometry import make_volume
from medseg.values.instances import InstanceSet
from medseg.values.plan import Plan, load_plan

CPU = torch.device("cpu")
NOISE = Noise(jitter=0.8, misses=0.05, false_positives=0.5)


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Two cases of lesions, nothing to see in the images."""
    folder = tmp_path / "validation"
    geometry = grid((24, 130, 150), (3.0, 0.8, 0.7))
    rows = ["image,label,patient"]
    for seed in range(2):
        rng = np.random.default_rng(seed)
        objects = random_ellipsoids(rng, geometry, LESION, 12, (5.0, 8.0))
        truth = InstanceSet.from_masks([(LESION, thing.mask(geometry)) for thing in objects], geometry, LABELS)
        volume = make_volume(np.full(geometry.spatial_shape, seed, np.int16), geometry.affine, "image")
        write_volume(folder / f"{seed}.nii.gz", volume)
        write_instances(folder / f"{seed}.seg.nrrd", truth)
        rows.append(f"{seed}.nii.gz,{seed}.seg.nrrd,p{seed}")
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n")
    write_json(folder / "labels.json", LABELS.to_dict())
    return folder


@pytest.fixture
def plan() -> Plan:
    return tiny_plan(
        {"input.orientation": "acquisition", "input.spacing_mm": [0.8, 0.7], "linking.link_iou": 0.3}, labels=LABELS
    )


@pytest.fixture
def run_folder(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose network reports the lesions of the cohort, more or less."""

    class Stand:
        def __init__(self, plan: Plan, model: None, device: torch.device):
            pass

        def detect(self, found):
            seed = int(found.array.max())  # the image says which case it is
            rng = np.random.default_rng(seed)
            geometry = grid((24, 130, 150), (3.0, 0.8, 0.7))
            objects = random_ellipsoids(rng, geometry, LESION, 12, (5.0, 8.0))
            # In the pixels of the array, which is the source's with the grid's own rounding.
            return [part.scaled(*found.factors) for part in simulate(rng, geometry, objects, NOISE)]

    monkeypatch.setattr(module, "load_run", lambda run, device: (load_plan(run / "plan.yaml"), None))
    monkeypatch.setattr(module, "Predictor", Stand)
    save_plan(tmp_path / "run", plan)
    return tmp_path / "run"


def test_weights_are_fitted_and_the_old_plan_is_kept(run_folder: Path, cohort: Path, plan: Plan) -> None:
    before = (run_folder / "plan.yaml").read_bytes()
    tuned = tune_linking(run_folder, cohort, CPU)
    assert load_plan(run_folder / "plan.yaml") == tuned.plan
    assert tuned.old_plan == run_folder / "plan.1.yaml" and tuned.old_plan.read_bytes() == before
    assert (tuned.cases, tuned.warnings) == (2, ()) or "objects" in tuned.warnings[0]
    assert tuned.pairs > tuned.same > 100
    assert tuned.log_loss_after < tuned.log_loss_before
    assert tuned.plan.linking.weights != plan.linking.weights
    assert tuned.plan.reasons["linking.weights"] == f"fitted to {tuned.pairs} pairs of detections of 2 cases"
    # Nothing else has changed.
    fitted = {"weights", "link_iou", "gap_iou", "calibration"}
    assert tuned.plan.linking.model_dump(exclude=fitted) == plan.linking.model_dump(exclude=fitted)
    assert tuned.plan.model_dump(exclude={"linking", "reasons"}) == plan.model_dump(exclude={"linking", "reasons"})
    # Again: two runs are identical, and another old plan is kept.
    save_plan(run_folder, plan)
    again = tune_linking(run_folder, cohort, CPU)
    assert again.plan == tuned.plan and again.old_plan.name == "plan.2.yaml"


def test_too_little_to_fit_is_told_and_changes_nothing(
    run_folder: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(module, "MIN_PAIRS", 10**6)
    monkeypatch.setattr(module, "MIN_OBJECTS", 10**6)
    before = (run_folder / "plan.yaml").read_bytes()
    monkeypatch.setattr(sys, "argv", ["medseg", "tune-linking", str(run_folder), str(cohort), "--device", "cpu"])
    monkeypatch.setattr(main.signal, "signal", lambda *_: None)
    monkeypatch.setattr(main.app, "registered_commands", [])
    with pytest.raises(SystemExit) as stop:
        main.main()
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert "too little to tune linking" in err
    assert (run_folder / "plan.yaml").read_bytes() == before
    assert not list(run_folder.glob("plan.1*"))


def test_the_command_says_what_it_fitted(
    run_folder: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(module, "MIN_OBJECTS", 10**6)
    monkeypatch.setattr(sys, "argv", ["medseg", "tune-linking", str(run_folder), str(cohort), "--device", "cpu"])
    monkeypatch.setattr(main.signal, "signal", lambda *_: None)
    monkeypatch.setattr(main.app, "registered_commands", [])
    with pytest.raises(SystemExit) as stop:
        main.main()
    out, err = capsys.readouterr()
    assert not stop.value.code
    assert "2 cases" in out and "link_iou" in out and "plan.1.yaml" in out
    assert "scores stay as they are" in err


def test_a_broken_cohort_leaves_the_plan(run_folder: Path, cohort: Path) -> None:
    before = (run_folder / "plan.yaml").read_bytes()
    (cohort / "cohort.csv").unlink()
    with pytest.raises(module.InputError):
        tune_linking(run_folder, cohort, CPU)
    assert (run_folder / "plan.yaml").read_bytes() == before
