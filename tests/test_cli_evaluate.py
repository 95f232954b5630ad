"""`medseg evaluate` and `evaluate_files`: layouts, pairing, failures, and what is written."""

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from highdicom import VolumeGeometry
from typer.testing import CliRunner

from medseg.cli import evaluate
from medseg.errors import ConfigError, InputError
from medseg.evaluation import Settings, compare_files, evaluate_files
from medseg.io import write_instances
from medseg.io.atomic import write_json
from medseg.io.case_files import label_files
from medseg.labels import LabelTable
from medseg.metrics.rows import PER_CASE_COLUMNS, PER_INSTANCE_COLUMNS
from medseg.values.geometry import AxisMap
from medseg.values.instances import InstanceSet

SHAPE = (3, 5, 40)
LABELS = LabelTable.from_names(["liver", "lesion"], kinds={"lesion": "ids"})
SURFACES = ("nsd_1mm", "nsd_2mm", "hd95_mm", "assd_mm")
PREDICTED = LabelTable.from_names(["lesion", "spleen", "liver"])


def runs(grid: VolumeGeometry, *objects: tuple[str, int, int], labels: LabelTable = LABELS) -> InstanceSet:
    """Build objects that are runs of voxels along one line: (class, first, end)."""
    masks = []
    for name, start, stop in objects:
        mask = np.zeros(SHAPE, bool)
        mask[1, 2, start:stop] = True
        masks.append((labels.by_name(name).id, mask))
    return InstanceSet.from_masks(masks, grid, labels)


@pytest.fixture
def grid(oblique_geometry: VolumeGeometry) -> VolumeGeometry:
    return VolumeGeometry(oblique_geometry.affine, SHAPE, "PATIENT")


@pytest.fixture
def cohort(tmp_path: Path, grid: VolumeGeometry) -> tuple[Path, Path]:
    """Three cases: a reference with DICOM folders, and predictions as `medseg predict` writes them."""
    reference, prediction = tmp_path / "ref", tmp_path / "pred"
    rows = ["image,label,case"]
    for name, shift in (("case_0", 0), ("case_1", 1), ("case_2", 2)):
        write_instances(reference / name / "label.seg.nrrd", runs(grid, ("liver", 0, 20), ("lesion", 2, 8)))
        # The lesion lies in the liver: a flat map would lose voxels of the liver, the segmentation keeps them.
        found = runs(grid, ("lesion", 2 + shift, 8 + shift), ("liver", 0, 20), labels=PREDICTED)
        found = found.moved(AxisMap(order=(2, 0, 1), flips=(True, False, False)))
        write_instances(prediction / name / f"{name}.seg.nrrd", found)
        write_instances(prediction / name / f"{name}_instances.nii.gz", found)
        rows.append(f"{name}/dicom,{name}/label.seg.nrrd,{name}")
    (reference / "cohort.csv").write_text("\n".join(rows) + "\n")
    write_json(reference / "labels.json", LABELS.to_dict())
    return reference, prediction


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def command(*arguments: Path | str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(evaluate.run)
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_a_cohort(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    code, output = command("-r", cohort[0], "-p", cohort[1], "-o", tmp_path / "out")
    assert code == 0
    for name in ("per_instance.csv", "per_case.csv", "summary.json"):
        assert str(tmp_path / "out" / name) in output.replace("\n", "")
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    # Lesions of 6 voxels shifted by 0, 1, 2: Dice 1, 10/12, 8/12.
    lesion = summary["classes"]["lesion"]
    assert lesion["voxels"]["dice"]["mean"] == pytest.approx((1 + 10 / 12 + 8 / 12) / 3)
    assert lesion["objects"]["tp"] == 3 and lesion["objects"]["f1"] == 1.0
    assert summary["classes"]["liver"]["voxels"]["dice"]["mean"] == 1.0  # overlaps are kept
    spleen = summary["classes"]["spleen"]
    assert spleen["voxels"]["dice"]["mean"] is None and spleen["voxels"]["dice"]["n_undefined"] == 3
    assert summary["labels"]["liver"] == {"reference": 1, "prediction": 3}
    assert summary["labels"]["spleen"] == {"reference": None, "prediction": 2}
    assert summary["failures"] == {} and summary["predictions_without_reference"] == []
    rows = table(tmp_path / "out/per_instance.csv")
    assert tuple(rows[0]) == (*PER_INSTANCE_COLUMNS, *SURFACES) and len(rows) == 6
    assert {row["status"] for row in rows} == {"matched"}
    rows = table(tmp_path / "out/per_case.csv")
    assert tuple(rows[0]) == (*PER_CASE_COLUMNS, *SURFACES) and len(rows) == 9
    assert [row["dice"] for row in rows if row["label"] == "spleen"] == ["nan"] * 3


def test_the_table_shows_classes_and_what_is_undefined(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    from rich.console import Console

    result = evaluate_files(*cohort, tmp_path / "out")
    console = Console(width=80, file=io.StringIO())
    console.print(evaluate.summary_table(result.summary))
    lines = console.file.getvalue().splitlines()
    spleen = next(line for line in lines if "spleen" in line)
    assert spleen.split() == ["spleen", "n/a", "0/3", "0", "0", "0", "n/a", "n/a", "0", "0"]
    lesion = next(line for line in lines if "lesion" in line)
    assert lesion.split() == ["lesion", "0.833", "3/3", "3", "0", "0", "1.000", "0.738", "0", "0"]
    assert max(map(len, lines)) <= 80


def test_without_the_segmentation_the_label_map_is_read(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    for file in cohort[1].glob("*/*.seg.nrrd"):
        file.unlink()
    result = evaluate_files(*cohort, tmp_path / "out")
    # One voxel holds one object: at equal scores the smaller one, so the liver loses the 6 voxels of the lesion.
    dice = result.summary["classes"]["liver"]["voxels"]["dice"]["mean"]
    assert dice == pytest.approx(2 * 14 / 34)


def test_bad_cases_are_reported_and_the_rest_is_evaluated(
    cohort: tuple[Path, Path], tmp_path: Path, grid: VolumeGeometry
) -> None:
    (cohort[1] / "case_0/case_0.seg.nrrd").write_bytes(b"NRRD0004\nnonsense\n")
    shutil.rmtree(cohort[1] / "case_1")
    write_instances(cohort[1] / "other/other.seg.nrrd", runs(grid))
    code, output = command("-r", cohort[0], "-p", cohort[1], "-o", tmp_path / "out")
    assert code == 1
    assert "failed: case_0" in output and "failed: case_1: no prediction" in output and "other" in output
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["n_cases"] == 1 and set(summary["failures"]) == {"case_0", "case_1"}
    assert summary["predictions_without_reference"] == ["other"]
    assert {row["case"] for row in table(tmp_path / "out/per_case.csv")} == {"case_2"}


def test_another_grid_fails_the_case_alone(cohort: tuple[Path, Path], tmp_path: Path, grid: VolumeGeometry) -> None:
    affine = grid.affine.copy()
    affine[0, 3] += 5
    shifted = runs(VolumeGeometry(affine, SHAPE, "PATIENT"), ("liver", 0, 20))
    write_instances(cohort[1] / "case_1/case_1.seg.nrrd", shifted)
    result = evaluate_files(*cohort, tmp_path / "out")
    assert set(result.failures) == {"case_1"} and "another grid" in result.failures["case_1"]


def test_one_file_against_one_prediction_whatever_they_are_called(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    reference = cohort[0] / "case_1/label.seg.nrrd"
    for prediction in (cohort[1] / "case_1/case_1.seg.nrrd", cohort[1] / "case_1"):
        result = evaluate_files(reference, prediction, tmp_path / "out", settings=Settings(iou_threshold=0.8))
        assert list(result.cases) == ["label"]
        assert result.cases["label"].of("lesion").objects.fn == 1  # IoU 5 / 7


def test_flat_folders(tmp_path: Path, grid: VolumeGeometry) -> None:
    truth = runs(grid, ("liver", 0, 10), ("lesion", 20, 24))
    for name in ("b", "a"):
        write_instances(tmp_path / f"ref/{name}.nii.gz", truth)
        write_instances(tmp_path / f"pred/{name}_instances.nii.gz", truth)
    (tmp_path / "pred/notes.txt").touch()
    assert list(label_files(tmp_path / "ref")) == ["a", "b"]
    result = evaluate_files(tmp_path / "ref", tmp_path / "pred", tmp_path / "out")
    assert result.summary["mean_dice"] == {"mean": 1.0, "n": 2, "n_undefined": 0, "ci_low": 1.0, "ci_high": 1.0}


def test_empty_prediction_and_empty_reference(tmp_path: Path, grid: VolumeGeometry) -> None:
    for name, reference, prediction in (
        ("missed", [("liver", 0, 5)], []),
        ("invented", [], [("liver", 0, 5)]),
        ("nothing", [], []),
    ):
        write_instances(tmp_path / f"ref/{name}.seg.nrrd", runs(grid, *reference))
        write_instances(tmp_path / f"pred/{name}/{name}.seg.nrrd", runs(grid, *prediction))
    liver = evaluate_files(tmp_path / "ref", tmp_path / "pred", tmp_path / "out").summary["classes"]["liver"]
    dice = {k: v for k, v in liver["voxels"]["dice"].items() if k not in ("sd", "ci_low", "ci_high")}
    assert dice == {"mean": 0.0, "median": 0.0, "min": 0.0, "max": 0.0, "n": 1, "n_undefined": 2}
    assert all(np.isnan(liver["voxels"]["dice"][key]) for key in ("sd", "ci_low", "ci_high"))  # one case
    assert (liver["objects"]["tp"], liver["objects"]["fp"], liver["objects"]["fn"]) == (0, 1, 1)


def test_names_have_to_meet(tmp_path: Path, grid: VolumeGeometry) -> None:
    # A bare map has "label 1"; with --labels it has the names of the prediction.
    truth = runs(grid, ("liver", 0, 10))
    write_instances(tmp_path / "ref.nii.gz", truth)
    (tmp_path / "ref.json").unlink()
    write_instances(tmp_path / "pred.seg.nrrd", truth)
    with pytest.raises(InputError, match="no class in common.*--labels"):
        evaluate_files(tmp_path / "ref.nii.gz", tmp_path / "pred.seg.nrrd", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write_json(tmp_path / "names.json", LABELS.to_dict())
    arguments = ["-r", tmp_path / "ref.nii.gz", "-p", tmp_path / "pred.seg.nrrd", "-o", tmp_path / "out"]
    assert command(*arguments, "--labels", tmp_path / "names.json")[0] == 0


@pytest.mark.parametrize("side", [0, 1])
def test_missing_and_empty_folders(cohort: tuple[Path, Path], tmp_path: Path, side: int) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "nnunet" / "labelsTr").mkdir(parents=True)
    for path, message in (
        (tmp_path / "nowhere", "no such file or folder"),
        (tmp_path / "empty", "no label files found; expected"),
        (tmp_path / "nnunet", "no label files found in it, but in .*labelsTr; .*--labels"),
    ):
        paths = list(cohort)
        paths[side] = path
        with pytest.raises(InputError, match=message):
            evaluate_files(*paths, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("side", [0, 1])
def test_results_have_a_folder_of_their_own(cohort: tuple[Path, Path], side: int) -> None:
    reference, prediction = cohort
    for given in (reference, reference / "cohort.csv"):
        with pytest.raises(InputError, match="name another folder"):
            evaluate_files(given, prediction, cohort[side])
    with pytest.raises(InputError, match="name another folder"):
        compare_files(reference, (prediction, prediction), cohort[side])
    assert not (cohort[side] / "summary.json").exists() and not (cohort[side] / "prediction_1").exists()
    assert evaluate_files(reference, prediction, prediction / "scores").cases
    assert evaluate_files(reference, prediction, prediction / "scores").extra == ()  # and is no case


def test_a_second_prediction_that_is_not_there_is_told_first(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        compare_files(cohort[0], (cohort[1], tmp_path / "nowhere"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_case_in_common(cohort: tuple[Path, Path], tmp_path: Path, grid: VolumeGeometry) -> None:
    for name in ("x", "y"):
        write_instances(tmp_path / f"p/{name}.seg.nrrd", runs(grid))
    with pytest.raises(InputError, match=r"case_0, case_1, case_2.*x, y"):
        evaluate_files(cohort[0], tmp_path / "p", tmp_path / "out")


def test_threshold_out_of_range(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected 0..1"):
        evaluate_files(*cohort, tmp_path / "out", settings=Settings(iou_threshold=1.5))
    assert not (tmp_path / "out").exists()


def test_evaluation_starts_without_torch() -> None:
    code = "import sys, medseg.cli.evaluate, medseg.evaluation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_two_predictions_are_compared(cohort: tuple[Path, Path], tmp_path: Path, grid: VolumeGeometry) -> None:
    for k in range(3):  # found exactly, but one case is missing its lesion
        objects = [("liver", 0, 20), ("lesion", 2, 8)][: 1 if k == 1 else 2]
        write_instances(tmp_path / f"better/case_{k}.seg.nrrd", runs(grid, *objects))
    code, output = command(
        "-r", cohort[0], "-p", cohort[1], "-p", tmp_path / "better", "-o", tmp_path / "out", "--resamples", 50
    )
    assert code == 0 and "second minus first, 3 cases" in output
    assert output.index("first prediction:") < output.index("second prediction:") < output.index("second minus first")
    comparison = json.loads((tmp_path / "out/comparison.json").read_text())
    dice = comparison["classes"]["lesion"]["voxels"]["dice"]
    # Dice 1, 10/12, 8/12 against 1, 0, 1.
    assert (dice["first"], dice["second"]) == pytest.approx((2.5 / 3, 2 / 3))
    assert dice["difference"] == pytest.approx(2 / 3 - 2.5 / 3) and dice["ci_low"] < 0 < dice["ci_high"]
    assert comparison["classes"]["lesion"]["objects"]["f1"]["second"] == pytest.approx(4 / 5)
    for number, file in ((1, "summary.json"), (2, "per_case.csv"), (2, "froc.png")):
        assert (tmp_path / f"out/prediction_{number}/{file}").exists()
    assert (tmp_path / "out/comparison.png").exists()


def test_the_scores_of_chaos(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = ["-r", cohort[0], "-p", cohort[1], "-o", tmp_path / "out", "--metrics", "chaos"]
    code, output = command(*arguments)
    assert code == 0 and "CHAOS" in output and "ravd %" in output
    rows = [row for row in table(tmp_path / "out/per_case.csv") if row["label"] == "lesion"]
    # A run of 6 voxels shifted by 0, 1, 2: one or two of 12 border voxels are that many columns off.
    columns = ("chaos_dice", "chaos_ravd_percent", "chaos_assd_mm", "chaos_mssd_mm")
    pixel = 0.7
    expected = [(1, 0, 0, 0), (10 / 12, 0, 2 * pixel / 12, pixel), (8 / 12, 0, 2 * 3 * pixel / 12, 2 * pixel)]
    for row, values in zip(rows, expected, strict=True):
        assert [float(row[c]) for c in columns] == pytest.approx(values, rel=1e-5)
    assert json.loads((tmp_path / "out/summary.json").read_text())["surface"] == "chaos"
    with pytest.raises(ConfigError, match="leave out --surface"):
        command(*arguments, "--surface", "border")


def test_options_reach_the_summary(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    code, _ = command(
        *("-r", cohort[0], "-p", cohort[1], "-o", tmp_path / "out", "--dice", "0.9", "--surface", "border"),
        *("--tolerance", "0.5", "--tolerance", "3", "--slices", "--froc-iou", "0.2", "--size-edge", "7"),
        *("--resamples", "10", "--seed", "3"),
    )
    assert code == 0
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["dice_threshold"], summary["surface"], summary["tolerances_mm"]) == (0.9, "border", [0.5, 3])
    assert (summary["froc_iou"], summary["size_edges_mm"]) == (0.2, [7])
    assert summary["bootstrap"] == {"resamples": 10, "seed": 3, "level": 0.95}
    lesion = summary["classes"]["lesion"]
    assert lesion["objects"]["tp"] == 1  # Dice 1, 0.83, 0.67
    assert set(lesion["surface"]) == {"nsd_0.5mm", "nsd_3mm", "hd95_mm", "assd_mm"}
    # Each case has one slice: IoU 1, 5/7, 4/8 at equal scores; at 0.5 all are hits, at 0.75 one of three.
    assert lesion["coco_slices"]["ap_50"] == 1 and 0 < lesion["coco_slices"]["ap_75"] < 0.5


def test_surfaces_can_be_left_out(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = ["-r", cohort[0], "-p", cohort[1], "-o", tmp_path / "out", "--surface", "none"]
    assert command(*arguments)[0] == 0
    assert tuple(table(tmp_path / "out/per_case.csv")[0]) == PER_CASE_COLUMNS
    assert tuple(table(tmp_path / "out/per_instance.csv")[0]) == PER_INSTANCE_COLUMNS


def test_plots_are_written_and_named(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    code, output = command("-r", cohort[0], "-p", cohort[1], "-o", tmp_path / "out")
    for name in ("froc.png", "precision_recall.png", "classes.png", "size_classes.png"):
        assert str(tmp_path / "out" / name) in output.replace("\n", "")
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    assert code == 0 and "classes of the prediction that the reference does not name: spleen" in output


def test_processes_change_nothing(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    (cohort[1] / "case_0/case_0.seg.nrrd").write_bytes(b"NRRD0004\nnonsense\n")
    for workers in (1, 2):
        result = evaluate_files(*cohort, tmp_path / f"out_{workers}", workers=workers)
        assert set(result.failures) == {"case_0"}
    for name in ("per_instance.csv", "per_case.csv", "summary.json"):
        assert (tmp_path / "out_1" / name).read_bytes() == (tmp_path / "out_2" / name).read_bytes()


def test_arguments_that_make_no_sense(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="workers 0"):
        evaluate_files(*cohort, tmp_path / "out", workers=0)
    with pytest.raises(ConfigError, match="3 predictions"):
        command("-r", cohort[0], *(["-p", cohort[1]] * 3), "-o", tmp_path / "out")
    for settings in ({"seed": -1}, {"tolerances_mm": ()}, {"froc_iou": 2.0}):
        with pytest.raises(ConfigError):
            Settings(**settings)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="not a writable folder"):
        evaluate_files(*cohort, tmp_path / "file")
