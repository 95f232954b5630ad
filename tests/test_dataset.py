"""Training samples: chosen by (seed, number) alone, boxes around masks, augmentation of both together."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from highdicom import VolumeGeometry
from network_fixtures import one_image, tiny_plan
from torch.utils.data import DataLoader

from medseg.data.cache import CachedCase, CachedObject, load_case, prepare_case
from medseg.data.context import network_input
from medseg.data.dataset import MIN_VISIBLE_PIXELS, SOLID, SliceDataset
from medseg.data.sample import Patch, Sample
from medseg.errors import InputError
from medseg.labels import LabelTable


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[CachedCase]:
    folder = tmp_path_factory.mktemp("cases")
    for seed, shape in ((0, (14, 60, 68)), (1, (12, 70, 72))):
        prepare_case(f"case{seed}", *one_image(seed, shape), tiny_plan().input, folder)
    return [load_case(folder, f"case{seed}") for seed in (0, 1)]


def equal(a: Sample, b: Sample) -> bool:
    """Whether all bits are equal, of what the sample consists of and of what it becomes."""
    numbers = [[patch.number for patch in sample.patches] for sample in (a, b)]
    pairs = ((a.image, b.image), (a.masks(), b.masks()), (a.covered(2), b.covered(2)), (a.classes(), b.classes()))
    alike = np.array_equal(a.boxes, b.boxes) and all(torch.equal(*pair) for pair in pairs)
    return a.seed == b.seed and numbers[0] == numbers[1] and alike


def test_a_sample_depends_on_seed_and_number_alone(cases: list[CachedCase]) -> None:
    plan = tiny_plan()
    one, other = SliceDataset(cases, plan, 12, seed=3), SliceDataset(cases, plan, 500, seed=3)
    forwards = [one[i] for i in range(12)]
    assert all(equal(other[i], forwards[i]) for i in reversed(range(12)))
    assert not any(equal(SliceDataset(cases, plan, 12, seed=4)[i], forwards[i]) for i in range(12))
    assert not equal(forwards[0], forwards[1]) and len({sample.seed for sample in forwards}) == 12
    assert len(one) == 12


def test_workers_change_nothing(cases: list[CachedCase]) -> None:
    dataset = SliceDataset(cases, tiny_plan(), 6, seed=3)
    loader = DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=list)
    made = [sample for batch in loader for sample in batch]
    assert len(made) == 6 and all(equal(sample, dataset[i]) for i, sample in enumerate(made))


@pytest.mark.parametrize("augmented", [True, False])
def test_boxes_enclose_their_masks(cases: list[CachedCase], augmented: bool) -> None:
    dataset = SliceDataset(cases, tiny_plan({"training.augment": augmented}), 40, seed=0)
    objects = 0
    for i in range(40):
        sample = dataset[i]
        boxes, classes, masks, covered = sample.boxes, sample.classes(), sample.masks(), sample.covered(2)
        assert sample.image.shape == (1, 64, 64) and masks.shape == (len(boxes), 64, 64)
        assert sample.image.dtype == masks.dtype == covered.dtype == torch.float32 and classes.dtype == torch.int64
        assert boxes.dtype == np.float32 and covered.shape == (2, 64, 64) and float(covered.max()) <= 1
        for box, mask, number in zip(boxes, masks.numpy() >= SOLID / 255, classes, strict=True):
            assert (covered[number - 1].numpy() >= SOLID / 255)[mask].all()
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            assert mask.sum() >= MIN_VISIBLE_PIXELS
        assert set(classes.tolist()) <= {1, 2}
        objects += len(boxes)
    assert objects > 40


def test_without_augmentation_a_sample_is_a_crop(cases: list[CachedCase]) -> None:
    """Image, classes and masks are those of the case, cut at one place."""
    plan = tiny_plan({"training.augment": False, "training.crop_size": [32, 32]})
    dataset = SliceDataset(cases, plan, 30, seed=1)
    for i in range(30):
        sample = dataset[i]
        matches = [
            (case, z, r, c)
            for case in cases
            for z in range(case.array.shape[1])
            for r, c in windows_with(network_input(case.array, z, 5.0, plan.input), sample.image.numpy())
        ]
        assert len(matches) == 1
        case, z, r, c = matches[0]
        expected = []
        everything = np.zeros((2, 32, 32), bool)
        for item in case.objects:
            whole = np.zeros(case.array.shape[1:], bool)
            window = tuple(slice(o, o + n) for o, n in zip(item.offset, item.mask.shape, strict=True))
            whole[window] = item.mask
            part = whole[z, r : r + 32, c : c + 32]
            everything[item.label - 1] |= part
            if part.sum() >= MIN_VISIBLE_PIXELS:
                expected.append((item.label, part))
        assert sample.classes().tolist() == [label for label, _ in expected]  # ids 1, 2 are classes 1, 2
        for mask, (_, part) in zip(sample.masks().numpy(), expected, strict=True):
            np.testing.assert_array_equal(mask, part)
        np.testing.assert_array_equal(sample.covered(2).numpy(), everything)


def test_masks_are_painted_where_patches_lie_and_the_larger_share_counts() -> None:
    """Two targets that overlap, and a third object, cut off too far to be one, which counts as covered all the same."""
    first = Patch(2, np.full((2, 3), 255, np.uint8), (1, 1))
    second = Patch(2, np.full((3, 2), 51, np.uint8), (2, 3))
    other = Patch(1, np.full((1, 1), 102, np.uint8), (4, 0))
    sample = Sample(torch.zeros(3, 5, 7), np.zeros((2, 4), np.float32), (first, second, other), seed=0)
    expected = torch.zeros(2, 5, 7)
    expected[0, 1:3, 1:4], expected[1, 2:5, 3:5] = 1, 0.2
    assert torch.equal(sample.masks(), expected) and sample.classes().tolist() == [2, 2]
    covered = sample.covered(3)
    assert torch.equal(covered[1], expected.amax(0)) and covered[0].sum() == covered[0, 4, 0] == 0.4
    assert not covered[2].any()


def test_focused_crops_show_small_objects(cases: list[CachedCase]) -> None:
    """Lesions of at most 12 pixels fit a crop of 64 five times, the organ (30 rows) does not."""
    focused = tiny_plan({"training.augment": False, "training.focus_fraction": 1.0, "training.crop_size": [96, 96]})
    samples = [SliceDataset(cases, focused, 20, seed=1)[i] for i in range(20)]
    assert {tuple(sample.image.shape) for sample in samples} == {(1, 64, 64)}
    assert all(2 in sample.classes() for sample in samples)
    batches = {"training.focus_fraction": 0.4, "training.batch_size": 3}
    mixed = SliceDataset(cases, focused.with_overrides(batches), 30, seed=1)
    sides = [mixed[i].image.shape[1] for i in range(30)]
    assert sides == [side for side in (96, 96, 64, 96, 64) * 2 for _ in range(3)]


def windows_with(image: np.ndarray, crop: np.ndarray) -> list[tuple[int, int]]:
    """Return the (row, column) at which a crop lies in an image."""
    view = np.lib.stride_tricks.sliding_window_view(image[0], crop.shape[1:])
    same = (view[:, :, 0] == crop[0, 0]).all(axis=2)
    return [(r, c) for r, c in np.argwhere(same) if (view[r, c] == crop[0]).all()]


def test_slices_smaller_than_the_crop_are_padded_with_their_edge() -> None:
    array = np.arange(3 * 10 * 12, dtype=np.int16).reshape(1, 3, 10, 12)
    item = CachedObject.of(1, np.ones((3, 4, 5), bool), (0, 3, 2))
    geometry = VolumeGeometry(np.diag([5.0, 2.0, 2.0, 1.0]), array.shape[1:], "PATIENT")
    case = CachedCase(name="small", array=array, geometry=geometry, slice_spacing_mm=5.0, objects=(item,))
    plan = tiny_plan({"training.augment": False, "training.crop_size": [32, 64]}, LabelTable.from_names(["organ"]))
    sample = SliceDataset([case], plan, 5, seed=0)[0]
    image = sample.image
    top, left = (32 - 10) // 2, (64 - 12) // 2
    inside = image[0, top : top + 10, left : left + 12]
    assert any(np.array_equal(inside, network_input(array, z, 5.0, plan.input)[0]) for z in range(3))
    np.testing.assert_array_equal(image, np.pad(inside[None], ((0, 0), (top, 22 - top), (left, 52 - left)), "edge"))
    assert sample.boxes.tolist() == [[left + 2, top + 3, left + 7, top + 7]] and sample.masks().sum() == 20


def test_samples_are_drawn_as_often_as_the_plan_says(cases: list[CachedCase]) -> None:
    """Shares of focused samples, of slices and of classes against those worked out by hand from the fractions."""
    shares = {
        "training.focus_fraction": 0.2,
        "training.object_fraction": 0.5,
        "training.empty_fraction": 0.3,
        "training.class_balance": 0.0,
    }
    plan = tiny_plan({**shares, "training.crop_size": [32, 32], "training.focus_size": [64, 64]})
    # Two cases of 10 slices: the first full of its one organ, the second with two lesions in slice 4 alone.
    slab = CachedObject.of(1, np.ones((10, 40, 40), bool), (0, 0, 0))
    spots = tuple(CachedObject.of(2, np.ones((1, 4, 4), bool), (4, 20, 10 * i)) for i in (1, 2))
    array = np.zeros((1, 10, 60, 60), np.int16)
    pair = [replace(cases[0], array=array, objects=objects) for objects in ((slab,), spots)]
    dataset = SliceDataset(pair, plan, 4000, seed=5)
    assert len(dataset.small) == 2 and [len(case.empty_slices()) for case in pair] == [0, 9]
    places = [dataset._choose(i, np.random.default_rng([5, i])) for i in range(4000)]
    focused = np.array([p.size == (64, 64) for p in places])
    case = np.array([p.case for p in places])
    slices = np.array([p.slice_index for p in places])
    empty = (case == 1) & (slices != 4)
    # 0.2 focused: lesions. Of 0.8: 0.5 objects, of three one is the organ; 0.5 elsewhere, of which 0.3 in an empty
    # slice and 0.7 anywhere, half of that in the second case, of whose slices 9 of 10 are empty.
    anywhere = 0.8 * 0.5 * 0.7
    expected = {
        "focused": 0.2,
        "empty": 0.8 * 0.5 * 0.3 + anywhere / 2 * 0.9,
        "organ": 0.8 * 0.5 / 3 + anywhere / 2,
        "lesions": 0.2 + 0.8 * 0.5 * 2 / 3 + anywhere / 2 * 0.1,
    }
    found = {"focused": focused, "empty": empty, "organ": case == 0, "lesions": (case == 1) & (slices == 4)}
    for name, share in expected.items():
        deviation = (share * (1 - share) / 4000) ** 0.5
        assert abs(found[name].mean() - share) < 4 * deviation, name
    assert abs(sum(expected.values()) - 0.2 - 1) < 1e-12
    in_organ = np.bincount(slices[case == 0], minlength=10) / (case == 0).sum()
    assert abs(in_organ - 0.1).max() < 4 * (0.09 / (case == 0).sum()) ** 0.5


def test_a_cohort_without_empty_slices_is_drawn_anywhere_instead(cases: list[CachedCase]) -> None:
    settings = {"training.object_fraction": 0.0, "training.empty_fraction": 1.0}
    assert all(
        not len(s.boxes) for s in map(SliceDataset(cases, tiny_plan(settings), 20, seed=0).__getitem__, range(20))
    )
    slab = tuple(CachedObject.of(label, np.ones((14, 9, 9), bool), (0, 30, 30)) for label in (1, 2))
    full = replace(cases[0], objects=slab)
    dataset = SliceDataset([full], tiny_plan(settings), 200, seed=0)
    assert {dataset.origin(i)[1] for i in range(200)} == set(range(14))


def test_slices_without_objects_are_samples_too(cases: list[CachedCase]) -> None:
    settings = {"training.object_fraction": 0.0, "training.empty_fraction": 0.0}
    dataset = SliceDataset(cases, tiny_plan(settings), 60, seed=0)
    empty = [sample for sample in (dataset[i] for i in range(60)) if not len(sample.boxes)]
    assert 5 < len(empty) < 55  # the first and last slices hold nothing
    sample = empty[0]
    assert sample.boxes.shape == (0, 4) and sample.masks().shape == (0, 64, 64) and sample.classes().shape == (0,)


def test_classes_are_drawn_as_the_plan_balances_them(cases: list[CachedCase]) -> None:
    one_to_three = tuple(replace(o, label=2) for o in cases[0].objects)
    case = replace(cases[0], objects=(*cases[0].objects[:1], *one_to_three))
    for balance, expected in ((0.0, 0.25), (1.0, 0.5), (0.5, 1 / (1 + 3**0.5))):
        dataset = SliceDataset([case], tiny_plan({"training.class_balance": balance}), 1, seed=0)
        np.testing.assert_allclose(dataset.label_chance, [expected, 1 - expected])


def test_a_label_without_objects_is_refused(cases: list[CachedCase]) -> None:
    labels = LabelTable.from_names(["organ", "lesion", "spleen"])
    with pytest.raises(InputError, match=r"labels \['spleen'\] occur in no training case"):
        SliceDataset(cases, tiny_plan(labels=labels), 1, seed=0)
