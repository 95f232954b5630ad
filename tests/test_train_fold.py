"""`medseg train COHORT -o RUN --fold 0/5` from end to end, and the final validation by itself."""

import csv
import io
import json
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from network_fixtures import LABELS, TINY, simple_case, tiny_plan
from safetensors.torch import load_file

from medseg.cli import main
from medseg.data.cache import load_case, prepare_case
from medseg.data.cohort import Cohort, find_cohort
from medseg.errors import InputError
from medseg.io import read_instances, write_instances, write_volume
from medseg.io.atomic import write_json
from medseg.io.patient_folders import LAYOUT
from medseg.models.mask_rcnn import build_mask_rcnn
from medseg.training.checkpoint import save_plan, save_weights
from medseg.training.cohort import train_cohort
from medseg.training.final_validation import validate_run
from medseg.training.folds import split_folds
from medseg.training.validation import Validator, best_of
from medseg.values.geometry import AxisMap
from medseg.values.plan import load_plan

CPU = torch.device("cpu")
SETTINGS = {
    **TINY,
    "input.windows": [[-100.0, 300.0]],
    "model.finest_stride": 4,
    "model.fpn_channels": 16,
    "training.steps": 5,
    "training.validate_every": 2,
    "training.crop_size": [32, 32],
    "inference.score_threshold": 0.3,
    "inference.detections_per_slice": 3,
    "linking.min_score": 0.0,
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five patients; the third is stored with its axes in another order."""
    folder = tmp_path_factory.mktemp("cohort")
    rows = ["image,label,patient"]
    for number in range(5):
        volume, truth = simple_case(number)
        if number == 2:
            turned = AxisMap(order=(2, 0, 1), flips=(True, False, True))
            volume, truth = turned.volume(volume), truth.moved(turned)
        write_volume(folder / f"case_{number}.nii.gz", volume)
        write_instances(folder / "labels" / f"case_{number}.seg.nrrd", truth)
        rows.append(f"case_{number}.nii.gz,labels/case_{number}.seg.nrrd,patient {number}")
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n")
    write_json(folder / "labels.json", LABELS.to_dict())
    return folder


def medseg(*arguments: object) -> tuple[int, str, str]:
    """Run the command line in this process; return exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["medseg", *map(str, arguments)])
        patch.setattr(main.signal, "signal", lambda *_: None)
        patch.setattr(main.app, "registered_commands", [])
        with pytest.raises(SystemExit) as exit_:
            main.main()
    assert "Traceback" not in out.getvalue() + err.getvalue()
    return int(exit_.value.code or 0), out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def trained(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of five steps, validated after 2, 4 and 5, and what the command printed."""
    run = tmp_path_factory.mktemp("trained") / "run"
    chosen = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    code, out, err = medseg("train", cohort, "-o", run, "--fold", "0/5", "--device", "cpu", *chosen)
    assert code == 0, err
    return run, out


def validations(run: Path) -> list[dict[str, float]]:
    with (run / "validation.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_the_run_folder_holds_what_it_should(trained: tuple[Path, str]) -> None:
    run, _ = trained
    names = {path.name for path in run.iterdir()}
    assert names >= {"plan.yaml", "model.safetensors", "metrics.csv", "validation.csv", "curves.png", "run.json"}
    assert names >= {"validation_latest.png", "validation_best.png", "validation"} and "cases" not in names
    assert imread(run / "curves.png").shape[0] > 400
    assert [row["step"] for row in validations(run)] == [2, 4, 5]
    assert load_plan(run / "plan.yaml").training.validate_every == 2


def test_the_weights_kept_are_those_of_the_best_validation(
    trained: tuple[Path, str], cohort: Path, tmp_path: Path
) -> None:
    """Scored again, the held-out case (nnU-Net's fold 0 of five: the first) has the score of the best row."""
    run, _ = trained
    rows = validations(run)
    best = best_of([row["score"] for row in rows])
    assert best is not None
    record = json.loads((run / "run.json").read_text())
    assert (record["best_step"], record["best_score"]) == (rows[best]["step"], rows[best]["score"])
    assert record["cases"] == {"training": 4, "validation": 1}
    plan = load_plan(run / "plan.yaml")
    volume, truth = simple_case(0)
    prepare_case("case_0", (volume,), truth, plan.input, tmp_path)
    validator = Validator([load_case(tmp_path, "case_0")], plan, tmp_path, CPU)
    assert validator(load_file(run / "model.safetensors"), 1).score == rows[best]["score"]


def test_the_final_validation_is_what_predict_and_evaluate_give(trained: tuple[Path, str], tmp_path: Path) -> None:
    run, out = trained
    folder = run / "validation"
    assert [path.name for path in (folder / "predictions").iterdir()] == ["case_0"]
    assert imread(folder / "predictions" / "case_0" / "case_0_comparison.png").shape[0] > 100
    code, table, err = medseg(
        "evaluate", "-r", folder / "reference", "-p", folder / "predictions", "-o", tmp_path / "scores"
    )
    assert code == 0, err
    for name in ("summary.json", "per_case.csv", "per_instance.csv"):
        assert (tmp_path / "scores" / name).read_bytes() == (folder / name).read_bytes()
    summary = json.loads((folder / "summary.json").read_text())
    figures = json.loads((run / "run.json").read_text())["validation"]
    assert figures["cases"] == summary["n_cases"] == 1 and figures["failures"] == []
    assert figures["mean_dice"] == summary["mean_dice"]["mean"]
    assert set(figures["classes"]) == {"organ", "lesion"}
    heading = next(line for line in table.splitlines() if "objects matched at" in line)
    assert heading.strip() in out and str(folder / "summary.json") in out.splitlines()


def test_training_on_everything_validates_nothing(cohort: Path, tmp_path: Path) -> None:
    chosen = {**SETTINGS, "training.steps": 1}
    arguments = [part for key, value in chosen.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    code, _, err = medseg("train", cohort, "-o", tmp_path / "run", "--fold", "all", "--device", "cpu", *arguments)
    assert code == 0, err
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert "curves.png" in names and not {n for n in names if n.startswith("validation")}


def test_more_folds_than_patients_are_refused_at_once(cohort: Path, tmp_path: Path) -> None:
    code, _, err = medseg("train", cohort, "-o", tmp_path / "run", "--fold", "0/6", "--device", "cpu")
    assert code == 2 and "has 5 patients, expected at least 6 for 6 folds" in err
    assert not (tmp_path / "run").exists()


def test_a_run_among_folders_of_patients_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The DICOM SEGs predicted at its end would make it another patient."""
    found = Cohort(rows=(), channels=("CT",), labels=None, layout=LAYOUT)
    monkeypatch.setattr("medseg.training.cohort.find_cohort", lambda *_: found)
    with pytest.raises(InputError, match="lies in the input folder .*; move it out"):
        train_cohort(tmp_path, tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()


def test_one_failing_case_does_not_stop_the_final_validation(cohort: Path, tmp_path: Path) -> None:
    """Of three held-out cases one has lost its image; the others are predicted and evaluated, on their own grids."""
    broken = tmp_path / "cohort"
    shutil.copytree(cohort, broken)
    found = find_cohort(broken)
    rows = [row for row in found.rows if row.name in ("case_1", "case_2", "case_3")]
    (broken / "case_1.nii.gz").write_bytes((cohort / "case_1.nii.gz").read_bytes()[:3000])
    plan = tiny_plan({"inference.score_threshold": 0.3, "inference.detections_per_slice": 3, "linking.min_score": 0.0})
    save_plan(tmp_path / "run", plan)
    torch.manual_seed(1)
    save_weights(tmp_path / "run", build_mask_rcnn(plan).state_dict())
    result = validate_run(tmp_path / "run", replace(found, rows=rows), CPU)
    assert list(result.failures) == ["case_1"] and "case_1.nii.gz" in result.failures["case_1"]
    assert "\n" not in result.failures["case_1"]
    folder = tmp_path / "run" / "validation"
    assert {path.name for path in (folder / "predictions").iterdir()} == {"case_2", "case_3"}
    assert result.figures()["cases"] == 2 and result.figures()["failures"] == ["case_1"]
    assert all(path.exists() for path in result.files)
    turned = read_instances(folder / "predictions" / "case_2" / "case_2_instances.nii.gz")
    assert sorted(turned.geometry.spatial_shape) == [14, 60, 68]
    truth = read_instances(folder / "reference" / "case_2.seg.nrrd")
    np.testing.assert_allclose([i.voxels for i in truth], [i.voxels for i in simple_case(2)[1]])

    (broken / "case_2.nii.gz").unlink()
    nothing = validate_run(tmp_path / "run", replace(found, rows=rows[:2]), CPU)
    assert nothing.evaluation is None and set(nothing.failures) == {"case_1", "case_2"}
    assert nothing.figures() == {"cases": 0, "failures": ["case_1", "case_2"]}
    assert not folder.exists()  # nothing of the run before is left to be taken for its result


def test_the_split_is_that_of_the_folds(cohort: Path) -> None:
    training, held_out = split_folds(find_cohort(cohort).rows, 0, 5)
    assert [row.name for row in held_out] == ["case_0"] and len(training) == 4
