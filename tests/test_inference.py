"""A trained model on volumes: the right objects, however they are stored, and files that give nobody away."""

import csv
import gzip
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
import typer
from highdicom import Volume
from network_fixtures import empty_volume, one_image, simple_case, tiny_plan
from numpy.typing import NDArray
from typer.testing import CliRunner

from medseg.cli import predict
from medseg.data.cache import load_case, prepare_case
from medseg.errors import ConfigError, InputError, ModelError
from medseg.inference.ensemble import Ensemble
from medseg.inference.passes import PassSettings
from medseg.inference.predictor import Prediction, Predictor
from medseg.inference.provenance import hash_files
from medseg.inference.result import display_window, save_prediction
from medseg.inference.run import load_run
from medseg.inference.study import StudyPredictor, study_name
from medseg.io import read_instances, read_volume, write_ct_series, write_volume
from medseg.labels import Label, LabelTable
from medseg.training.loop import train
from medseg.values.geometry import AxisMap, grid_map, make_volume
from medseg.values.instances import InstanceSet
from medseg.values.plan import InputPlan

CPU = torch.device("cpu")
SETTINGS = {
    "input.air_threshold": -300.0,
    "training.augment": False,
    "training.steps": 100,
    "training.batch_size": 3,
    "training.learning_rate": 0.0015,
    "training.jittered_boxes": 8,
    "training.ema_decay": 0.9,
    "training.box_positive_fraction": 0.5,
    "training.box_samples": 64,
    "linking.min_score": 0.5,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that knows `simple_case`, trained on three of them."""
    folder = tmp_path_factory.mktemp("run")
    plan = tiny_plan(SETTINGS)
    for seed in range(3):
        prepare_case(f"case{seed}", *one_image(seed), plan.input, folder)
    cases = [load_case(folder, f"case{seed}") for seed in range(3)]
    train(cases, plan, folder / "run", CPU)
    return folder / "run"


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    return Predictor(*load_run(run, CPU), CPU)


@pytest.fixture(scope="module")
def case() -> tuple[Volume, InstanceSet]:
    """A case that training has not seen."""
    return simple_case(9)


@pytest.fixture(scope="module")
def prediction(predictor: Predictor, case: tuple[Volume, InstanceSet]) -> Prediction:
    return predictor.predict(case[:1])


def masks_on(found: InstanceSet, volume: Volume) -> list[tuple[int, float, NDArray[np.bool_]]]:
    """Return label, score and mask of each object in the axis order of a volume, in a fixed order."""
    axis_map = grid_map(found.geometry, volume)
    assert axis_map is not None
    moved = found.moved(axis_map)
    return sorted(
        ((i.label, i.score, moved.full_mask(i.id)) for i in moved), key=lambda x: (x[0], int(np.argmax(x[2])))
    )


def assert_same(found: InstanceSet, expected: InstanceSet, volume: Volume) -> None:
    pairs = list(zip(masks_on(found, volume), masks_on(expected, volume), strict=True))
    for (label, score, mask), (wanted, wanted_score, wanted_mask) in pairs:
        assert label == wanted and score == pytest.approx(wanted_score, abs=1e-6)
        np.testing.assert_array_equal(mask, wanted_mask)


def test_the_right_objects_are_found(prediction: Prediction, case: tuple[Volume, InstanceSet]) -> None:
    volume, truth = case
    found = prediction.instances
    assert [i.label for i in found] == [1, 2, 2]
    np.testing.assert_array_equal(found.geometry.affine, volume.affine)
    for instance in truth:
        mask = truth.full_mask(instance.id)
        dice = [
            2 * (mask & found.full_mask(i.id)).sum() / (mask.sum() + i.voxels)
            for i in found
            if i.label == instance.label
        ]
        assert max(dice) > 0.6  # 0.81 and 0.82 after 100 steps
    assert prediction.warnings == () and set(prediction.seconds) == {"grid", "network", "linking"}


@pytest.mark.parametrize("stored", [AxisMap(order=(2, 0, 1), flips=(False, True, True)),
                                    AxisMap(order=(1, 2, 0), flips=(True, True, False))])  # fmt: skip
def test_permuted_axes_give_the_same_masks(
    stored: AxisMap, predictor: Predictor, prediction: Prediction, case: tuple[Volume, InstanceSet]
) -> None:
    volume = stored.volume(case[0])
    found = predictor.predict((volume,)).instances
    np.testing.assert_array_equal(found.geometry.affine, volume.affine)
    assert_same(found, prediction.instances, case[0])


def test_ras_nifti_and_dicom_give_the_same_masks(
    predictor: Predictor, prediction: Prediction, case: tuple[Volume, InstanceSet], tmp_path: Path
) -> None:
    volume, _ = case
    stored = volume.array.transpose(2, 1, 0)[::-1, ::-1]  # towards right, anterior, head
    a = volume.affine
    affine = np.eye(4)
    affine[:3, :3] = np.stack([-a[:3, 2], -a[:3, 1], a[:3, 0]], axis=1)
    affine[:3, 3] = a[:3, 3] + a[:3, 2] * (volume.array.shape[2] - 1) + a[:3, 1] * (volume.array.shape[1] - 1)
    nifti = nib.Nifti1Image(stored, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)
    assert nib.aff2axcodes(nifti.affine) == ("R", "A", "S")
    nib.save(nifti, tmp_path / "ras.nii.gz")
    write_ct_series(tmp_path / "dicom", volume, seed=1, description="case")
    for path in (tmp_path / "ras.nii.gz", tmp_path / "dicom"):
        image = read_volume(path)
        found = predictor.predict((image,)).instances
        assert_same(found, prediction.instances, volume)


def test_the_batch_size_changes_nothing(run: Path, case: tuple[Volume, InstanceSet]) -> None:
    plan, model = load_run(run, CPU)
    found = [
        Predictor(plan.with_overrides({"inference.batch_size": n, "inference.precision": "float32"}), model, CPU)
        for n in (1, 8)
    ]
    alone, together = (masks_on(predictor.predict(case[:1]).instances, case[0]) for predictor in found)
    pairs = zip(alone, together, strict=True)
    for (label, score, mask), (wanted, wanted_score, wanted_mask) in pairs:
        assert label == wanted and score == pytest.approx(wanted_score, abs=1e-5)
        assert (mask ^ wanted_mask).sum() <= 2  # a pixel at 0.5 may fall to either side of the rounding


def test_bfloat16_finds_the_same_objects(run: Path, case: tuple[Volume, InstanceSet]) -> None:
    plan, model = load_run(run, CPU)
    half, whole = (
        masks_on(
            Predictor(plan.with_overrides({"inference.precision": precision}), model, CPU).predict(case[:1]).instances,
            case[0],
        )
        for precision in ("bfloat16", "float32")
    )
    for (label, score, mask), (wanted, wanted_score, wanted_mask) in zip(half, whole, strict=True):
        assert label == wanted and score == pytest.approx(wanted_score, abs=0.02)
        assert 2 * (mask & wanted_mask).sum() / (mask.sum() + wanted_mask.sum()) > 0.98


@pytest.mark.parametrize("shape", [(5, 37, 41), (1, 8, 9), (2, 32, 33), (1, 1, 1)])
def test_any_shape_goes_through_and_an_empty_volume_is_empty(predictor: Predictor, shape: tuple) -> None:
    prediction = predictor.predict((empty_volume(shape),))
    assert len(prediction.instances) == 0 and prediction.warnings == ("nothing found",)


def test_pixels_much_coarser_than_in_training_are_told(predictor: Predictor) -> None:
    """A cohort's own pixels may be sampled up four times, which is no news."""
    acquisition = Predictor(predictor.plan.with_overrides({"input.orientation": "acquisition"}), predictor.model, CPU)
    told = []
    for pixel in (8.0, 9.0):
        coarse = make_volume(np.zeros((2, 9, 9), np.int16), np.diag([5.0, pixel, pixel, 1.0]), "coarse")
        told.append([line for line in acquisition.predict((coarse,)).warnings if "coarser" in line])
    assert told == [[], ["pixels of 9 mm are much coarser than the 2 mm of training"]]


@pytest.mark.parametrize(("trained", "far"), [(None, []), ((2.0, 5.0), [1.3, 7.6]), ((5.0, 5.0), [1.3, 1.4, 7.6])])
def test_slices_far_from_those_of_training_are_told(predictor: Predictor, trained: tuple | None, far: list) -> None:
    settings = {"input.orientation": "acquisition", "training.slice_spacing_mm": trained}
    acquisition = Predictor(predictor.plan.with_overrides(settings), predictor.model, CPU)
    told = []
    for spacing in (1.3, 1.4, 7.4, 7.6):
        volume = make_volume(np.zeros((2, 9, 9), np.int16), np.diag([spacing, 2.0, 2.0, 1.0]), "slices")
        told += [(spacing, w) for w in acquisition.predict((volume,)).warnings if "apart" in w]
    assert [spacing for spacing, _ in told] == far
    if far:
        seen = "5 mm" if trained == (5.0, 5.0) else "2 to 5 mm"
        assert told[-1][1] == f"slices 7.6 mm apart are far from the {seen} of training"
    single = make_volume(np.zeros((1, 9, 9), np.int16), np.diag([30.0, 2.0, 2.0, 1.0]), "single")
    assert not any("apart" in w for w in acquisition.predict((single,)).warnings)


# -- runs -----------------------------------------------------------------------------------------------------


def test_a_run_that_is_not_whole_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere: not a training run; expected a folder with plan.yaml and model"):
        load_run(tmp_path / "nowhere", CPU)
    plan, weights = (run / "plan.yaml").read_text(), (run / "model.safetensors").read_bytes()
    (tmp_path / "plan.yaml").write_text(plan)
    with pytest.raises(ModelError, match="not a training run"):
        load_run(tmp_path, CPU)
    for data in (weights[: len(weights) // 2], weights[:5], b"", b"no weights at all"):
        (tmp_path / "model.safetensors").write_bytes(data)
        with pytest.raises(ModelError, match=r"model\.safetensors: not readable weights .*; copy the run anew"):
            load_run(tmp_path, CPU)
    (tmp_path / "model.safetensors").write_bytes(weights)
    for old, new in (("fpn_channels: 32", "fpn_channels: 64"), ("backbone: resnet18", "backbone: resnet34")):
        assert old in plan
        (tmp_path / "plan.yaml").write_text(plan.replace(old, new))
        with pytest.raises(ModelError, match=r"does not fit plan\.yaml \(\d+ tensors differ, first '"):
            load_run(tmp_path, CPU)
    (tmp_path / "plan.yaml").write_text(plan.replace("seed:", "sead:"))
    with pytest.raises(ConfigError, match=r"plan\.yaml: training\.sead: unknown field"):
        load_run(tmp_path, CPU)


# -- files ----------------------------------------------------------------------------------------------------


def test_files_of_a_case(prediction: Prediction, case: tuple[Volume, InstanceSet], run: Path, tmp_path: Path) -> None:
    plan, _ = load_run(run, CPU)
    saved = save_prediction(tmp_path / "new" / "x", "x", case[0], prediction, plan, {"input_sha256": "abc"})
    names = ["x.seg.nrrd", "x_dseg.tsv", "x_instances.json", "x_instances.nii.gz", "x_itksnap.txt",
             "x_measurements.csv", "x_measurements.json", "x_overlay.png", "run.json"]  # fmt: skip
    assert sorted(saved.files) == sorted(tmp_path / "new" / "x" / name for name in names)
    assert sorted(p.name for p in (tmp_path / "new" / "x").iterdir()) == sorted(names)
    for name in ("x.seg.nrrd", "x_instances.nii.gz"):
        back = read_instances(tmp_path / "new" / "x" / name)
        axis_map = grid_map(back.geometry, case[0])
        assert axis_map is not None
        assert [(i.label, i.voxels) for i in back] == [(i.label, i.voxels) for i in prediction.instances]
    with (tmp_path / "new" / "x" / "x_measurements.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3
    record = json.loads((tmp_path / "new" / "x" / "run.json").read_text())
    assert record["instances"] == 3 and record["input_sha256"] == "abc" and record["overlap_lost_ml"] == {}


def test_what_overlaps_lose_in_the_flat_map_is_told(
    case: tuple[Volume, InstanceSet], run: Path, tmp_path: Path
) -> None:
    volume, truth = case
    inner = np.zeros(volume.array.shape, bool)
    inner[6:8, 28:32, 22:26] = True  # 32 voxels of 20 mm3 in the organ
    both = InstanceSet.from_masks([(1, truth.full_mask(1)), (2, inner)], volume, truth.labels)
    found = Prediction(instances=both, warnings=("look",), seconds={})
    saved = save_prediction(tmp_path, "x", volume, found, load_run(run, CPU)[0], {})
    assert saved.lost_ml == {1: pytest.approx(0.64)}
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["overlap_lost_ml"] == {"1": pytest.approx(0.64)}
    assert record["warnings"][0] == "look" and "0.64 ml of 1 objects are covered" in record["warnings"][1]
    assert [i.voxels for i in read_instances(tmp_path / "x.seg.nrrd")] == [i.voxels for i in both]


def test_a_notebook_shows_a_prediction_as_a_table(case: tuple[Volume, InstanceSet]) -> None:
    hard = LabelTable([Label(id=1, name="<script>x</script>", colour=(230, 159, 0))])
    mask = np.zeros(case[0].array.shape, bool)
    mask[2:7, 3:13, 4:14] = True  # 500 voxels of 20 mm3
    found = InstanceSet.from_masks([(1, mask)], case[0], hard)
    text = Prediction(instances=found, warnings=("a < b",), seconds={})._repr_html_()
    assert "Prediction: 1 object<" in text and "a &lt; b" in text and "rgb(230, 159, 0)" in text
    assert "<script" not in text and "&lt;script&gt;" in text and ">10<" in text


def test_the_display_window_is_the_widest() -> None:
    plan = tiny_plan({"input.windows": [[0.0, 100.0], [-200.0, 300.0], [20.0, 60.0]]})
    assert display_window(plan) == (-200.0, 300.0)
    assert display_window(plan.model_copy(update={"input": InputPlan(spacing_mm=(1, 1), intensity="zscore")})) is None


def test_hashes_do_not_depend_on_names_or_order(tmp_path: Path) -> None:
    for name, text in (("a", "1"), ("b", "2"), ("c", "1"), ("d", "3")):
        (tmp_path / name).write_text(text)
    a, b, c, d = (tmp_path / name for name in "abcd")
    assert hash_files([a, b]) == hash_files([b, c]) != hash_files([a, d])
    assert hash_files([a]) != hash_files([a, c])


# -- studies --------------------------------------------------------------------------------------------------


@pytest.fixture
def study(case: tuple[Volume, InstanceSet], tmp_path: Path) -> Path:
    """A DICOM study with a patient's name in it and on its folder."""
    folder = write_ct_series(tmp_path / "Planted_Name" / "dicom", case[0], seed=1, description="Planted words")
    for file in folder.iterdir():
        data = pydicom.dcmread(file)
        data.PatientName, data.PatientID, data.AccessionNumber = "Planted^Name", "PLANTED-ID", "PLANTED-7"
        data.save_as(file)
    return tmp_path / "Planted_Name"


def test_names_of_folders_and_patients_stay_out(study: Path, run: Path, tmp_path: Path) -> None:
    name = study_name(study)
    assert len(name) == 10 and set(name) <= set("0123456789abcdef")
    assert study_name(study / "dicom") == study_name(next((study / "dicom").iterdir())) == name
    (tmp_path / "out").mkdir()
    _, saved = StudyPredictor(run, CPU).run((study,), tmp_path / "out", name)
    found = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert sorted(found) == sorted(saved.files)
    for path in found:
        data = path.read_bytes()
        if path.suffix == ".dcm":  # belongs to the patient's study and carries its header
            continue
        if path.suffix == ".gz":
            data += gzip.decompress(data)
        assert b"planted" not in data.lower() and "planted" not in str(path.relative_to(tmp_path / "out")).lower()
    record = json.loads((tmp_path / "out" / name / "run.json").read_text())
    assert record["environment"]["threads"] == torch.get_num_threads() and record["seed"] == 0
    assert set(record["seconds"]) == {"read", "grid", "network", "linking", "record", "write", "overlay"}


def test_other_files_lend_their_stem(case: tuple[Volume, InstanceSet], tmp_path: Path) -> None:
    write_volume(tmp_path / "scan.7.nii.gz", case[0])
    assert study_name(tmp_path / "scan.7.nii.gz") == "scan.7"
    with pytest.raises(InputError, match="gone"):
        study_name(tmp_path / "gone.nii.gz")


def test_predict_of_an_empty_volume_ends_well(run: Path, tmp_path: Path) -> None:
    """Zero instances, every file there and readable, exit code 0."""
    write_volume(tmp_path / "empty.nii.gz", empty_volume())
    app = typer.Typer()
    app.command()(predict.run)
    arguments = ["-i", tmp_path / "empty.nii.gz", "-m", run, "-o", tmp_path / "out", "--device", "cpu"]
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert (result.exit_code, result.exception) == (0, None), result.output
    assert "empty: 0 objects" in result.output and "warning: empty: nothing found" in result.output
    folder = tmp_path / "out" / "empty"
    for name in ("empty.seg.nrrd", "empty_instances.nii.gz"):
        back = read_instances(folder / name)
        assert len(back) == 0 and back.geometry.spatial_shape == empty_volume().array.shape
    assert not np.asarray(nib.load(folder / "empty_instances.nii.gz").dataobj).any()
    assert json.loads((folder / "run.json").read_text())["warnings"] == ["nothing found"]
    assert len((folder / "empty_measurements.csv").read_text().splitlines()) == 1


# -- several passes ---------------------------------------------------------------------------------------------


def test_one_plain_pass_and_a_run_with_itself_change_nothing(
    predictor: Predictor, prediction: Prediction, case: tuple[Volume, InstanceSet]
) -> None:
    for models in ([predictor], [predictor, predictor]):
        found = Ensemble(models).predict(case[:1]).instances
        assert len(found) == len(prediction.instances)
        for one, other in zip(found, prediction.instances, strict=True):
            assert (one.label, one.score, one.offset) == (other.label, other.score, other.offset)
            np.testing.assert_array_equal(one.mask, other.mask)


def test_the_record_tells_the_passes(run: Path, case: tuple[Volume, InstanceSet], tmp_path: Path) -> None:
    """A real network goes through every kind of pass; what it finds then is no matter after seconds of training."""
    shutil.copytree(run, tmp_path / "second")
    plan = (run / "plan.yaml").read_text().replace("flip_columns: false", "flip_columns: true")
    (tmp_path / "second" / "plan.yaml").write_text(plan)
    write_volume(tmp_path / "x.nii.gz", case[0])
    heard: list[str] = []
    settings = PassSettings(scales=(0.9,), views=True)
    predictor = StudyPredictor([run, tmp_path / "second"], CPU, settings)
    prediction, _ = predictor.run([tmp_path / "x.nii.gz"], tmp_path, "x", tell=heard.append)
    record = json.loads((tmp_path / "x" / "run.json").read_text())
    hashes = [hash_files([folder / "plan.yaml", folder / "model.safetensors"]) for folder in (run, tmp_path / "second")]
    assert record["model_sha256"] == hashes and hashes[0] != hashes[1]
    factor = record["passes"].pop("cost_factor")
    assert record["passes"] == {
        "models": 2, "flips": False, "scales": [0.9], "views": True, "view_weight": 2.0, "count": 12,
    }  # fmt: skip
    assert heard == [f"x: 12 network passes, about {factor:.3g} times the time of one"]
    assert {"read", "grid", "network", "fusion", "linking"} <= set(record["seconds"])
    assert {i.label for i in prediction.instances} <= {1, 2}
    mirrored = StudyPredictor([tmp_path / "second"], CPU, PassSettings(flips=True)).predictor
    assert isinstance(mirrored, Ensemble) and mirrored.cost(case[:1]).passes == 2
    assert {i.label for i in mirrored.predict(case[:1]).instances} <= {1, 2}
    with pytest.raises(ConfigError, match="flips: the model was trained without mirroring"):
        StudyPredictor([run], CPU, PassSettings(flips=True))
