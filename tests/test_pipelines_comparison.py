"""pipelines/comparison*.py: what forms lose of a truth worked out by hand, and the way from cases to the table."""

import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from medseg.values.geometry import make_volume
from medseg.values.instances import InstanceSet

AFFINE = np.array([[0, 0, 2.0, -7], [0, 2.0, 0, 5], [3.0, 0, 0, 11], [0, 0, 0, 1]])


def pipeline(name: str) -> ModuleType:
    sys.path.insert(0, str(Path(__file__).parents[1] / "pipelines"))
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def truth() -> InstanceSet:
    """Return an organ and in it three lesions: two balls cut flat where they meet, and one alone."""
    shape = (9, 30, 44)
    organ = np.zeros(shape, np.bool_)
    organ[1:8, 2:28, 2:42] = True
    z, y, x = np.indices(shape)
    left, right = (((z - 4) / 3) ** 2 + ((y - 12) / 6) ** 2 + ((x - at) / 6) ** 2 < 1 for at in (10, 19))
    left, right = left & (x < 15), right & (x >= 15)
    third = np.zeros(shape, np.bool_)
    third[3:6, 20:25, 30:38] = True
    volume = make_volume(np.zeros(shape, np.int16), AFFINE, "truth")
    return InstanceSet.from_masks(
        [(1, organ), (2, left), (2, right), (2, third)], volume, pipeline("comparison_cases").LABELS
    )  # fmt: skip


def test_what_forms_hold_of_a_truth(truth: InstanceSet) -> None:
    comparison = pipeline("comparison_forms")
    depth = comparison.best_depth([truth])
    scores = {name: comparison.measure([(truth, back(truth))]) for name, back in comparison.forms(depth).items()}
    flat, plain, cut, boxes = scores.values()
    # The two that touch are one component, which matches the larger of them: 2 of 3 objects by 2 components.
    assert flat.f1 == plain.f1 == pytest.approx(2 * 2 / (3 + 2))
    assert (plain.merges, plain.separated, plain.pairs) == (1, 0, 1)
    assert (flat.overlap_kept, plain.overlap_kept, boxes.overlap_kept) == (0, 1, 1)
    for whole in (cut, boxes):
        assert (whole.f1, whole.separated, whole.splits, whole.merges) == (1, 1, 0, 0)
    assert flat.nsd < plain.nsd == 1  # holes where the lesions are
    nothing = InstanceSet.build([], truth.geometry, truth.labels)
    none = comparison.measure([(truth, nothing)])
    assert (none.f1, none.overlap_kept, none.nsd, none.separated) == (0, 0, 0, 0)
    assert comparison.measure([(nothing, nothing)]).plain()["overlap_kept"] is None


def test_overlap_is_kept_where_as_many_objects_of_each_label_are(truth: InstanceSet) -> None:
    comparison = pipeline("comparison_forms")
    lesions = sum(i.voxels for i in truth if i.label == 2)
    assert comparison.overlap_kept(truth, truth) == (lesions, lesions)
    without = InstanceSet.build([i for i in truth if i.id != 4], truth.geometry, truth.labels)
    assert comparison.overlap_kept(truth, without) == (lesions, lesions - truth[4].voxels)
    twice = pipeline("comparison_cases").as_one_label(truth)  # two of one label in one voxel
    assert comparison.overlap_kept(twice, twice) == (lesions, lesions)
    one = InstanceSet.build([i for i in twice if i.id == 1], twice.geometry, twice.labels)
    assert comparison.overlap_kept(twice, one) == (lesions, 0)


def test_pairs_touch_by_a_face(truth: InstanceSet) -> None:
    comparison = pipeline("comparison_forms")
    assert comparison.touching_pairs(truth) == [(2, 3)]
    shape = (2, 5, 7)
    masks = [np.zeros(shape, np.bool_) for _ in range(3)]
    masks[0][0, :2, :2] = masks[1][0, 2:4, 2:4] = masks[2][1, 2:4, 3:5] = True  # by an edge; over the slices
    volume = make_volume(np.zeros(shape, np.int16), AFFINE, "pairs")
    found = InstanceSet.from_masks([(2, m) for m in masks], volume, truth.labels)
    assert comparison.touching_pairs(found) == [(2, 3)]


def test_the_cases_that_are_drawn() -> None:
    cases, comparison = pipeline("comparison_cases"), pipeline("comparison_forms")
    volume, drawn = cases.draw_touching(7)
    again, same = cases.draw_touching(7)
    assert np.array_equal(volume.array, again.array) and [i.voxels for i in drawn] == [i.voxels for i in same]
    lesions = [drawn.full_mask(i.id) for i in drawn if i.label == 2]
    assert len(lesions) >= 4 and not (np.sum(lesions, axis=0) > 1).any()
    assert not (np.any(lesions, axis=0) & ~drawn.full_mask(1)).any()
    assert (2, 3) in comparison.touching_pairs(drawn)
    inside = volume.array[np.any(lesions, axis=0)].mean()
    assert inside < volume.array[drawn.full_mask(1) & ~np.any(lesions, axis=0)].mean() - 25


def test_dcmqi_s_overlaps_in_each_form(data_dir: Path) -> None:
    cases, comparison = pipeline("comparison_cases"), pipeline("comparison_forms")
    found = cases.read_overlaps(data_dir)
    if found is None:
        pytest.skip("no dicom_seg/dcmqi in MEDSEG_DATA")
    held = {name: comparison.measure([(found[1], back(found[1]))]) for name, back in comparison.forms(1.0).items()}
    flat, plain, _, boxes = held.values()
    assert (flat.overlap_kept, plain.overlap_kept) == (0, 1) and boxes.overlap_kept > 0.98
    assert math.isnan(flat.f1)  # five labels of one object each
    assert cases.read_overlaps(data_dir / "nowhere") is None


def test_every_system_is_trained_and_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison, systems = pipeline("comparison"), pipeline("comparison_systems")
    monkeypatch.setattr(comparison, "draw_phantom", comparison.draw_touching)
    # A network that has seen one batch finds hundreds of things, which take the linker long.
    plan_for = systems.plan_for
    sure = {"inference.score_threshold": 0.99}
    monkeypatch.setattr(systems, "plan_for", lambda cases, seed: plan_for(cases, seed).with_overrides(sure))
    comparison.main(["-o", str(tmp_path / "c.json"), "--seconds", "0.01", "--seeds", "3", "--cases", "1"])
    record = json.loads((tmp_path / "c.json").read_text())
    figures = record["figures"]
    assert record["seed"] == [3] and figures["YOLO"] == "skipped: no --yolo-python"
    assert figures["what_forms_hold"]["dcmqi"].startswith("skipped")
    assert len(figures["trained"]) == 4 and "medseg" in figures["trained"]
    for row in figures["trained"].values():
        assert row["samples"]["mean"] in (2, 8) and row["seconds_per_volume"]["mean"] > 0 and row["pairs"]["mean"] >= 1


def test_yolo_is_given_outlines_and_its_failure_is_told(tmp_path: Path, truth: InstanceSet) -> None:
    systems = pipeline("comparison_systems")
    volume = make_volume(np.zeros(truth.geometry.spatial_shape, np.int16), AFFINE, "outlines")
    plan = systems.plan_for([(volume, truth)], 0)
    systems._write_slices(tmp_path, "a", volume, truth, plan)
    lines = (tmp_path / "labels" / "a_004.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "1", "1"]
    outline = np.array(lines[3].split()[1:], float).reshape(-1, 2) * [44, 30]
    assert outline.min(axis=0) == pytest.approx([30, 20], abs=0.01)  # x, y: edges of pixels
    assert outline.max(axis=0) == pytest.approx([38, 25], abs=0.01)
    assert (tmp_path / "labels" / "a_000.txt").read_text() == ""
    assert np.load(tmp_path / "a.npy").shape == (9, 30, 44, 3)
    masks = np.stack([truth.full_mask(i.id)[4] for i in truth if i.label == 2])
    boxes = np.array([[4, 6, 15, 19], [15, 6, 25, 19], [30, 20, 38, 25]], float)
    scores, where = np.array([0.5, 0.6, 0.7], np.float32), np.array([4, 4, 5])
    np.savez(tmp_path / "f.npz", boxes=boxes, classes=np.ones(3, int), masks=masks, slices=where, scores=scores)
    found = systems._read_found(tmp_path / "f.npz", truth)
    assert [len(d) for d in found] == [0, 0, 0, 0, 2, 1, 0, 0, 0] and found[5].labels.tolist() == [2]
    assert (
        found[4].scores.tolist() == pytest.approx([0.5, 0.6]) and found[5].masks[0, 6:-6, 6:-6].min() == 1
    )  # it fills its box
    with pytest.raises(RuntimeError, match="the YOLO program failed"):
        systems._run_yolo(Path(sys.executable), ["find", str(tmp_path), "none.pt", "64", "1"], {})
