"""Studies of several images, from a cohort table to masks: stacked in the plan's order, however each is stored."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import typer
from network_fixtures import LABELS, TINY, simple_case, tiny_plan, two_images
from typer.testing import CliRunner

from medseg.cli import predict
from medseg.data.cache import load_case, prepare_case
from medseg.data.context import network_input
from medseg.data.grid import to_network_grid
from medseg.errors import ConfigError, GeometryError, InputError
from medseg.inference.predictor import Predictor
from medseg.inference.run import load_run
from medseg.inference.study import StudyPredictor, study_name
from medseg.io import read_instances, write_instances, write_volume
from medseg.io.atomic import write_json
from medseg.training.cohort import train_cohort
from medseg.values.geometry import AxisMap, grid_map, make_volume
from medseg.values.plan import InputPlan, load_plan

CPU = torch.device("cpu")
NAMES = ("T1", "T2")
TURNED = AxisMap(order=(2, 0, 1), flips=(True, False, True))
SCORES = InputPlan(spacing_mm=(2.0, 2.0), intensity="zscore", channel_names=NAMES)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two patients with two images each, the second image of the second one stored in another axis order."""
    folder = tmp_path_factory.mktemp("cohort")
    rows = ["image:T1,image:T2,label,patient"]
    for seed in range(2):
        (first, second), truth = two_images(seed)
        write_volume(folder / f"t1_{seed}.nii.gz", first)
        write_volume(folder / f"t2_{seed}.nii.gz", TURNED.volume(second) if seed else second)
        write_instances(folder / f"lab_{seed}.seg.nrrd", truth)
        rows.append(f"t1_{seed}.nii.gz,t2_{seed}.nii.gz,lab_{seed}.seg.nrrd,p{seed}")
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n")
    write_json(folder / "labels.json", LABELS.to_dict())
    few = {"training.steps": 3, "training.augment": True, "model.stem": "conv7", "model.finest_stride": 4}
    settings = {
        **TINY,
        **few,
        "model.coarsest_stride": 32,
        "input.spacing_mm": [2.0, 2.0],
        "input.context_mm": [-5.0, 0.0, 5.0],
        "inference.score_threshold": 0.0,
        "linking.min_score": 0.0,
    }
    train_cohort(folder, folder / "run", CPU, settings=settings)
    return folder / "run"


def test_a_cohort_of_two_images_is_trained_on(run: Path) -> None:
    plan = load_plan(run / "plan.yaml")
    assert plan.input.channel_names == NAMES and plan.input.intensity == "zscore" and plan.input.channels == 6
    _, model = load_run(run, CPU)
    assert next(model.backbone.body.parameters()).shape[1] == 6


def test_how_the_images_are_stored_changes_nothing(run: Path) -> None:
    predictor = Predictor(*load_run(run, CPU), CPU)
    (first, second), _ = two_images(7)
    expected = predictor.predict((first, second)).instances
    assert len(expected)
    for stored in ((first, TURNED.volume(second)), (TURNED.volume(first), second)):
        found = predictor.predict(stored).instances
        back = grid_map(found.geometry, first)
        assert back is not None and grid_map(found.geometry, stored[0]) == AxisMap(
            order=(0, 1, 2), flips=(False, False, False)
        )
        moved = found.moved(back)
        assert [i.label for i in moved] == [i.label for i in expected]
        for a, b in zip(moved, expected, strict=True):
            np.testing.assert_array_equal(moved.full_mask(a.id), expected.full_mask(b.id))
    swapped = predictor.detect(to_network_grid((second, first), predictor.plan.input))
    kept = predictor.detect(to_network_grid((first, second), predictor.plan.input))
    assert any(a.scores.tolist() != b.scores.tolist() for a, b in zip(swapped, kept, strict=True))


def test_the_volumes_of_one_file_are_the_images(run: Path, tmp_path: Path) -> None:
    """As the Decathlon stores them; one file of as many volumes as the plan has channels gives what the files give."""
    (first, second), _ = two_images(7)
    write_volume(tmp_path / "one.nii.gz", first)
    header = nib.load(tmp_path / "one.nii.gz")
    for name, images in (("both", (first, second)), ("three", (first, second, first))):
        stacked = np.stack([image.array.transpose(2, 1, 0) for image in images], axis=3)
        nib.save(nib.Nifti1Image(stacked, header.affine, header.header), tmp_path / f"{name}.nii.gz")
    study = [tmp_path / "both.nii.gz"]
    assert study_name(study[0]) == "both"
    found, saved = StudyPredictor(run, CPU).run(study, tmp_path / "out", "both")
    expected = Predictor(*load_run(run, CPU), CPU).predict((first, second))
    assert len(found.instances) and found.warnings == expected.warnings
    for ours, theirs in zip(found.instances, expected.instances, strict=True):
        np.testing.assert_array_equal(ours.mask, theirs.mask)
    assert all(file.exists() for file in saved.files)
    with pytest.raises(InputError, match="3 images of a study given, expected 2: give T1, T2"):
        StudyPredictor(run, CPU).run([tmp_path / "three.nii.gz"], tmp_path / "out", "three")


def test_channels_are_images_then_planes() -> None:
    """Every image has mean 0 and SD 1 of its own; its context planes stand together."""
    (first, second), _ = two_images(3)
    plan = SCORES.model_copy(update={"context_mm": (-5.0, 0.0, 5.0)})
    grid = to_network_grid((first, second), plan)
    assert grid.array.shape == (2, *first.array.shape) and grid.array.dtype == np.float32
    for image, source in zip(grid.array, (first.array, second.array), strict=True):
        values = source.astype(np.float64)
        np.testing.assert_allclose(image, (values - values.mean()) / values.std(), atol=1e-4)
    channels = network_input(grid.array, 4, 5.0, plan)
    np.testing.assert_array_equal(channels, np.concatenate([grid.array[0, 3:6], grid.array[1, 3:6]]))


def test_windows_stand_within_an_image() -> None:
    array = np.stack([np.full((3, 1, 1), value, np.int16) for value in (0, 50)])
    plan = InputPlan(spacing_mm=(1, 1), channel_names=NAMES, windows=((0.0, 100.0), (-50.0, 50.0)), context_mm=(0.0,))
    assert network_input(array, 1, 1.0, plan).ravel().tolist() == [-1.0, 0.0, 0.0, 1.0]


def test_the_patient_is_what_any_image_shows() -> None:
    """Two images of which one shows the upper and one the lower half: the window holds both."""
    affine = simple_case(0)[0].affine
    halves = []
    for rows in (slice(10, 20), slice(30, 45)):
        array = np.full((3, 60, 50), -1000, np.int16)
        array[:, rows, 12:40] = 0
        halves.append(make_volume(array, affine, "half"))
    plan = InputPlan(spacing_mm=(2.0, 2.0), channel_names=NAMES, air_threshold=-300.0)
    grid = to_network_grid(halves, plan)
    assert (grid.rows, grid.columns) == ((6, 49), (8, 44))


def test_prepared_cases_hold_all_images(tmp_path: Path) -> None:
    (first, second), truth = two_images(2)
    prepare_case("a", (first, second), truth, SCORES, tmp_path)
    prepare_case("b", (first, TURNED.volume(second)), truth, SCORES, tmp_path)
    a, b = load_case(tmp_path, "a"), load_case(tmp_path, "b")
    np.testing.assert_array_equal(a.array, to_network_grid((first, second), SCORES).array)
    np.testing.assert_array_equal(a.array, b.array)


def test_another_grid_is_refused_by_name(tmp_path: Path) -> None:
    (first, second), truth = two_images(2)
    affine = second.affine.copy()
    affine[2, 3] += 2.5
    moved = make_volume(second.array, affine, "moved")
    expected = r"T2: not on the grid of T1: it has 14 x 60 x 68 .*814\.0.*, expected 14 x 60 x 68 .*811\.5.*; register"
    with pytest.raises(GeometryError, match=expected):
        to_network_grid((first, moved), SCORES)
    with pytest.raises(GeometryError, match="T2: not on the grid of T1"):
        prepare_case("a", (first, moved), truth, SCORES, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_images_is_refused(count: int) -> None:
    (first, _), _ = two_images(2)
    with pytest.raises(InputError, match=rf"{count} images? of a study given, expected 2: give T1, T2, in this order"):
        to_network_grid((first,) * count, SCORES)


def test_names_of_channels_are_checked_and_old_plans_have_one() -> None:
    assert tiny_plan().input.channel_names == ("image",)
    for names in ([], ["T1", "T1"], [""]):
        with pytest.raises(ConfigError, match=r"input(\.channel_names)?"):
            tiny_plan({"input.channel_names": names})


def test_predict_takes_one_input_a_channel(run: Path, tmp_path: Path) -> None:
    (first, second), _ = two_images(7)
    for name, volume in (("one", first), ("two", TURNED.volume(second)), ("three", first[:, :, 1:])):
        write_volume(tmp_path / f"{name}.nii.gz", volume)
    app = typer.Typer()
    app.command()(predict.run)

    def call(*names: str, out: str) -> object:
        inputs = [a for name in names for a in ("-i", str(tmp_path / f"{name}.nii.gz"))]
        result = CliRunner().invoke(app, [*inputs, "-m", str(run), "-o", str(tmp_path / out), "--device", "cpu"])
        return result.exception if result.exception else result.exit_code

    assert call("one", "two", out="a") == 0
    found = read_instances(tmp_path / "a" / "one" / "one.seg.nrrd")
    assert (
        found.geometry.spatial_shape
        == read_instances(tmp_path / "a" / "one" / "one_instances.nii.gz").geometry.spatial_shape
    )
    expected = Predictor(*load_run(run, CPU), CPU).predict((first, second)).instances
    assert len(found) == len(expected)
    wrong = call("one", out="b")
    assert isinstance(wrong, InputError) and "expected 2: give T1, T2, in this order" in str(wrong)
    shifted = call("one", "three", out="c")
    assert isinstance(shifted, InputError) and "three.nii.gz: not on the grid of" in str(shifted)
    assert not (tmp_path / "b").exists() and not (tmp_path / "c").exists()
