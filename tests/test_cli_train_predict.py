"""`medseg train`, `predict` and `evaluate` on a tiny cohort through the real command line."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from network_fixtures import LABELS, TINY, simple_case

from medseg.cli import main
from medseg.io import read_instances, write_ct_series, write_instances, write_volume
from medseg.io.atomic import write_json
from medseg.io.dicom_context import read_dicom_context
from medseg.training.step import Stepper
from medseg.values.geometry import make_volume

Run = Callable[..., tuple[int, str, str]]
SETTINGS = {
    **TINY,
    "model.finest_stride": 4,
    "model.fpn_channels": 16,
    "training.steps": 3,
    "training.crop_size": [32, 32],
    "inference.score_threshold": 0.9,
}


def medseg(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    """Run the command line in this process; return exit code, standard output and standard error."""
    monkeypatch.setattr(sys, "argv", ["medseg", *map(str, arguments)])
    monkeypatch.setattr(main.signal, "signal", lambda *_: None)
    monkeypatch.setattr(main.app, "registered_commands", [])
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main.main()
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return int(exit_.value.code or 0), out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Run:
    return lambda *arguments: medseg(monkeypatch, capsys, *arguments)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cases, one of them DICOM, with cohort.csv and labels.json."""
    folder = tmp_path_factory.mktemp("cohort")
    for seed in range(2):
        volume, truth = simple_case(seed)
        if seed:
            write_ct_series(folder / f"case_{seed}" / "dicom", volume, seed=seed, description="case")
        else:
            write_volume(folder / "case_0.nii.gz", volume)
        write_instances(folder / f"case_{seed}" / "label.seg.nrrd", truth)
    rows = ["image,label,patient,case", "case_0.nii.gz,case_0/label.seg.nrrd,a,case_0"]
    rows.append("case_1/dicom,case_1/label.seg.nrrd,b,case_1")
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n")
    write_json(folder / "labels.json", LABELS.to_dict())
    return folder


@pytest.fixture(scope="module")
def settings() -> list[str]:
    """--set for every field of the tiny plan."""
    return [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={json.dumps(value)}")]


@pytest.fixture(scope="module")
def trained(cohort: Path, settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps, made by the command line."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["medseg", "train", str(cohort), "-o", str(folder), "--device", "cpu", *settings])
        patch.setattr(main.signal, "signal", lambda *_: None)
        patch.setattr(main.app, "registered_commands", [])
        with pytest.raises(SystemExit) as exit_:
            main.main()
    assert exit_.value.code == 0
    return folder


def one_line(err: str) -> str:
    """Return the one error line there is."""
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


def test_train_predict_evaluate(run: Run, cohort: Path, trained: Path, tmp_path: Path) -> None:
    assert sorted(p.name for p in trained.iterdir()) == [  # two patients: no validation
        "checkpoints", "curves.png", "fingerprint.json", "metrics.csv", "model.safetensors", "plan.yaml",
        "report.html", "run.json",
    ]  # fmt: skip
    record = json.loads((trained / "run.json").read_text())
    assert (record["steps"], record["status"], record["fold"]) == (3, "finished", "all")
    assert record["cases"] == {"training": 2, "validation": 0} and record["validation"] is None

    code, out, err = run("predict", "-i", cohort, "-m", trained, "-o", tmp_path / "pred", "--device", "cpu")
    assert code == 0, err
    for name in ("case_0", "case_1"):
        folder = tmp_path / "pred" / name
        assert str(folder / "run.json") in out.splitlines()
        found = read_instances(folder / f"{name}.seg.nrrd")
        assert found.labels == LABELS
        flat = nib.load(folder / f"{name}_instances.nii.gz")
        assert flat.get_data_dtype() == np.uint16 and sorted(flat.shape) == [14, 60, 68]

    code, out, err = run("evaluate", "-r", cohort, "-p", tmp_path / "pred", "-o", tmp_path / "eval")
    assert code == 0, err
    assert "lesion" in out and json.loads((tmp_path / "eval" / "summary.json").read_text())["n_cases"] == 2
    index = (tmp_path / "pred" / "index.html").read_text()
    for name in ("case_0", "case_1"):
        assert f'href="{name}/report.html"' in index and (tmp_path / "pred" / name / "report.html").is_file()
    page = tmp_path / "pred" / "case_0" / "report.html"
    before = page.read_bytes()
    assert run("report", tmp_path / "pred" / "case_0", "--image", cohort / "case_0.nii.gz")[0] == 0
    assert page.read_bytes() == before
    assert "give --image as well" in one_line(run("report", tmp_path / "pred" / "case_0", "--series", "1.2")[2])
    several = ("report", tmp_path / "pred", "--image", cohort, "--series", "1.2")
    assert "--series is for one case" in one_line(run(*several)[2])
    again = ("predict", "-i", cohort / "case_0.nii.gz", "-m", trained, "-o", tmp_path / "pred", "--no-report")
    assert run(*again, "--device", "cpu")[0] == 0 and not page.exists()  # it was about other results
    assert len(list((tmp_path / "eval").glob("worst_*.jpg"))) == 2 and (tmp_path / "eval" / "report.html").is_file()


def test_train_shows_its_plan_and_its_files(run: Run, cohort: Path, settings: list[str], tmp_path: Path) -> None:
    code, out, _ = run("train", cohort, "-o", tmp_path / "run", "--device", "cpu", "--threads", 1, *settings)
    assert code == 0 and "trained 3 steps" in out and "input.windows" in out
    files = ("plan.yaml", "model.safetensors", "metrics.csv", "curves.png", "run.json", "report.html")
    assert out.splitlines()[-6:] == [str(tmp_path / "run" / name) for name in files]


def test_train_follows_a_plan_from_a_file(run: Run, cohort: Path, trained: Path, tmp_path: Path) -> None:
    plan = (trained / "plan.yaml").read_text(encoding="utf-8")
    code, _, err = run("train", cohort, "-o", tmp_path / "run", "--device", "cpu", "--plan", trained / "plan.yaml")
    assert code == 0, err
    assert (tmp_path / "run" / "plan.yaml").read_text(encoding="utf-8") == plan
    other = tmp_path / "other.yaml"
    other.write_text(plan.replace("name: lesion", "name: cyst"), encoding="utf-8")
    code, _, err = run("train", cohort, "-o", tmp_path / "new", "--device", "cpu", "--plan", other)
    assert code == 2 and re.search(r"other\.yaml: the plan is for the labels .*cyst.*the cohort has", one_line(err))
    assert not (tmp_path / "new").exists()
    code, _, err = run("train", cohort, "-o", trained, "--device", "cpu", "--plan", other, "--resume")
    assert code == 2 and "--plan and --resume" in one_line(err)
    code, _, err = run("train", cohort, "-o", trained, "--device", "cpu", "--single-case", "--resume")
    assert code == 2 and "--single-case and --resume" in one_line(err)


def test_an_interrupted_training_exits_with_130(
    run: Run, cohort: Path, settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Stepper, "gradients", interrupt)
    code, out, err = run("train", cohort, "-o", tmp_path / "run", "--device", "cpu", *settings)
    assert code == 130 and "stopped after 0 steps; the model so far is saved" in err
    assert (tmp_path / "run" / "model.safetensors").exists() and not list((tmp_path / "run").glob(".*"))


def test_a_broken_case_of_a_cohort_fails_alone(run: Run, cohort: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(cohort, tmp_path / "cohort")
    image = tmp_path / "cohort" / "case_0.nii.gz"
    image.write_bytes(image.read_bytes()[:3000])
    code, out, err = run("predict", "-i", tmp_path / "cohort", "-m", trained, "-o", tmp_path / "out", "--device", "cpu")
    assert code == 1
    assert "failed: case_0: " in err and "warning: 1 of 2 cases failed" in err
    assert [p.name for p in (tmp_path / "out").iterdir() if p.is_dir()] == ["case_1"]
    assert (tmp_path / "out" / "case_1" / "run.json").exists()
    index = (tmp_path / "out" / "index.html").read_text()
    assert "<b>case_0</b>: (file): " in index and tmp_path.name not in index


def test_cohorts_of_other_layouts(run: Run, cohort: Path, trained: Path, tmp_path: Path) -> None:
    """nnU-Net's with a case that lacks its image, and a folder of DICOM per patient, from prediction to scores."""
    table = {"labels": {"organ": 1, "lesion": 2}, "channel_names": {"0": "CT"}}
    folder = tmp_path / "nnunet"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(table))
    shutil.copy(cohort / "case_0.nii.gz", folder / "imagesTr" / "a_0000.nii.gz")
    truth = read_instances(cohort / "case_0" / "label.seg.nrrd")
    for name in ("a", "b"):
        write_instances(folder / "labelsTr" / f"{name}.nii.gz", truth, format="semantic")
        (folder / "labelsTr" / f"{name}.json").unlink()
    arguments = ("-m", trained, "-o", tmp_path / "pred", "--device", "cpu", "--no-report")
    code, out, err = run("predict", "-i", folder, *arguments)
    assert code == 1 and "nnU-Net, 2 cases" in out
    assert re.search(r"failed: b: .*labelsTr/b\.nii\.gz: no image for this label", " ".join(err.split()))
    assert "warning: 1 of 2 cases failed" in err
    assert [path.name for path in (tmp_path / "pred").iterdir() if path.is_dir()] == ["a"]
    arguments = ("-r", folder, "-p", tmp_path / "pred", "-o", tmp_path / "eval", "--surface", "none", "--no-report")
    code, out, err = run("evaluate", *arguments)
    assert code == 1 and "failed: b: no prediction in" in err
    summary = json.loads((tmp_path / "eval" / "summary.json").read_text())
    assert summary["classes"]["lesion"]["objects"]["reference"] == 1  # both lesions have one value
    run("evaluate", *arguments, "--kind", "lesion=components")
    summary = json.loads((tmp_path / "eval" / "summary.json").read_text())
    assert summary["classes"]["lesion"]["objects"]["reference"] == 2

    for number, patient in enumerate(("Doe", "Roe")):
        volume, _ = simple_case(number)
        write_ct_series(tmp_path / "dicom" / patient / "ct", volume, seed=number, description="case")
        context = read_dicom_context(tmp_path / "dicom" / patient / "ct")
        write_instances(tmp_path / "dicom" / patient / "seg.dcm", truth, context=context)
    arguments = ("-m", trained, "-o", tmp_path / "found", "--device", "cpu", "--no-report")
    code, out, err = run("predict", "-i", tmp_path / "dicom", *arguments)
    assert code == 0 and "DICOM folder per patient, 2 cases" in out, err
    scores = ("-o", tmp_path / "scores", "--surface", "none", "--no-report")
    code, out, err = run("evaluate", "-r", tmp_path / "dicom", "-p", tmp_path / "found", *scores)
    assert code == 0, err
    summary = json.loads((tmp_path / "scores" / "summary.json").read_text())
    assert summary["n_cases"] == 2 and summary["classes"]["organ"]["objects"]["reference"] == 2
    assert not any("Doe" in str(path) for path in (tmp_path / "found").rglob("*"))


def test_a_single_study_has_its_name(run: Run, cohort: Path, trained: Path, tmp_path: Path) -> None:
    arguments = ("predict", "-m", trained, "-o", tmp_path / "out", "--device", "cpu", "--no-report", "-i")
    assert run(*arguments, cohort / "case_0.nii.gz", "--name", "mine")[0] == 0
    assert run(*arguments, cohort / "case_1")[0] == 0
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert len(names) == 2 and "mine" in names and "case_1" not in names  # DICOM: a hash of the series UID


# -- bad input: one line, exit code 2, nothing written ---------------------------------------------------------


def test_bad_studies(run: Run, cohort: Path, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "notes.txt").write_text("hello")
    for number in range(2):
        volume, _ = simple_case(number)
        write_ct_series(tmp_path / "two" / str(number), volume, seed=number, description="series")
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes((cohort / "case_0.nii.gz").read_bytes()[:3000])
    nib.save(nib.Nifti1Image(np.zeros((5, 7), np.int16), np.eye(4)), tmp_path / "flat.nii")
    expected = {
        "missing": "missing: no such file or folder",
        "empty": "empty: ",
        "words": "words: ",
        "two": "several|2 image series|--series",
        "cut.nii.gz": "cut.nii.gz: ",
        "flat.nii": "flat.nii: ",
    }
    for name, text in expected.items():
        code, _, err = run("predict", "-i", tmp_path / name, "-m", trained, "-o", tmp_path / "out", "--device", "cpu")
        assert code == 2, (name, err)
        assert any(part in one_line(err) for part in text.split("|")), (name, err)
    assert not (tmp_path / "out").exists()


def test_bad_arguments_of_predict(run: Run, cohort: Path, trained: Path, tmp_path: Path) -> None:
    image = cohort / "case_0.nii.gz"
    for arguments, text in (
        (("-i", image, "-m", tmp_path, "--device", "cpu"), "not a training run; expected a folder with plan.yaml"),
        (("-i", image, "-m", trained, "--device", "banana"), "device 'banana' is unknown"),
        (("-i", image, "-m", trained, "--threads", "-1"), "--threads -1: expected 0"),
        (("-i", image, "-m", trained, "--name", "../up"), "--name '../up': expected a plain file name"),
        (("-i", image, "-m", trained, "--name", ""), "--name '': expected a plain file name"),
        (("-i", cohort, "-m", trained, "--name", "x"), "--name and --series are for a single study"),
        (("-i", image, "-m", trained, "--series", "1.2"), "only DICOM has series"),
        (("-i", image), "Missing option"),
    ):
        code, _, err = run("predict", *arguments, "-o", tmp_path / "out")
        assert code == 2 and text in one_line(err), err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_cuda_is_an_error(run: Run, cohort: Path, trained: Path, tmp_path: Path) -> None:
    for arguments in (("train", cohort), ("predict", "-i", cohort, "-m", trained), ("demo",)):
        code, _, err = run(*arguments, "-o", tmp_path / "out", "--device", "cuda")
        assert code == 2 and "device 'cuda' cannot be used" in one_line(err)
    assert not (tmp_path / "out").exists()


def test_bad_cohorts(run: Run, cohort: Path, settings: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copytree(cohort, tmp_path / "elsewhere")
    volume, _ = simple_case(0)
    affine = volume.affine.copy()
    affine[1, 3] += 2
    write_volume(tmp_path / "elsewhere" / "case_0.nii.gz", make_volume(volume.array, affine, "moved"))
    shutil.copytree(cohort, tmp_path / "one")
    table = (cohort / "cohort.csv").read_text().splitlines()
    (tmp_path / "one" / "cohort.csv").write_text("\n".join(table[:2]) + "\n")
    shutil.copytree(cohort, tmp_path / "nothing")
    empty = make_volume(np.zeros(volume.array.shape, np.uint8), volume.affine, "empty")
    write_volume(tmp_path / "nothing" / "empty.nii.gz", empty)
    text = (cohort / "cohort.csv").read_text().replace("case_0/label.seg.nrrd", "empty.nii.gz")
    (tmp_path / "nothing" / "cohort.csv").write_text(text)
    shutil.copytree(cohort, tmp_path / "unknown")
    strange = make_volume(np.full(volume.array.shape, 7, np.uint8), volume.affine, "sevens")
    write_volume(tmp_path / "unknown" / "empty.nii.gz", strange)
    (tmp_path / "unknown" / "cohort.csv").write_text(text)
    for name, message in (
        ("missing", "missing: no such cohort"),
        ("empty", "empty: not a cohort; expected a folder with cohort.csv"),
        ("elsewhere", "case case_0: image and label are in different places"),
        ("one", "the cohort has one case, expected at least two"),
        ("nothing", "empty.nii.gz is an empty label"),
        ("unknown", "values [7] are not in the table"),
    ):
        code, _, err = run("train", tmp_path / name, "-o", tmp_path / "out", "--device", "cpu", *settings)
        assert code == 2 and message in one_line(err), err
    assert not (tmp_path / "out").exists()


def test_bad_settings_and_folders(run: Run, cohort: Path, trained: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (("--set", "model.backbon=resnet18"), "setting 'model.backbon' is unknown"),
        (("--set", "model.backbone=vgg16"), "model.backbone"),
        (("--set", "model.backbone"), "expected section.field=value"),
        (("--set", "training.steps=-3"), "training.steps"),
        (("--device", "banana"), "device 'banana' is unknown"),
    ):
        code, _, err = run("train", cohort, "-o", tmp_path / "out", *arguments)
        assert code == 2 and message in one_line(err), err
    assert not (tmp_path / "out").exists()
    before = sorted((p.name, p.stat().st_mtime_ns) for p in trained.iterdir())
    code, _, err = run("train", cohort, "-o", trained, "--device", "cpu")
    assert code == 2 and "exists and is not an empty folder" in one_line(err)
    assert before == sorted((p.name, p.stat().st_mtime_ns) for p in trained.iterdir())
    code, _, err = run("demo", "-o", trained, "--device", "cpu")
    assert code == 2 and "exists and is not empty" in one_line(err)
