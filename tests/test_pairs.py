"""Pairs of touching objects, and the best one-to-one matching of them."""

from itertools import combinations, permutations

import numpy as np
import pytest
from highdicom import VolumeGeometry
from scipy.spatial.transform import Rotation

from medseg.errors import ConfigError, GeometryError
from medseg.labels import LabelTable
from medseg.values.geometry import AxisMap
from medseg.values.instances import InstanceSet
from medseg.values.pairs import PairTable, common_labels

SHAPE = (5, 7, 11)
LABELS = LabelTable.from_names(["liver", "lesion"], kinds={"lesion": "ids"})


def oblique(shape: tuple[int, int, int] = SHAPE) -> VolumeGeometry:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("zyx", [20, -10, 5], degrees=True).as_matrix() * (2.5, 0.7, 0.9)
    affine[:3, 3] = (-31.5, 12.25, -104.0)
    return VolumeGeometry(affine, shape, "PATIENT")


def box(start: tuple[int, ...], stop: tuple[int, ...], shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def objects(*masks: tuple[int, np.ndarray], labels: LabelTable = LABELS) -> InstanceSet:
    shape = masks[0][1].shape if masks else SHAPE
    return InstanceSet.from_masks(masks, oblique(shape), labels)


def test_two_boxes_by_hand() -> None:
    a = objects((1, box((0, 0, 0), (2, 3, 4))))  # 24 voxels
    b = objects((2, box((1, 1, 2), (3, 4, 8))))  # 36 voxels, 1 x 2 x 2 = 4 shared
    table = PairTable.between(a, b)
    assert (table.reference_voxels, table.prediction_voxels, table.intersection) == ([24], [36], [4])
    assert table.iou()[0] == 4 / 56 and table.dice()[0] == 8 / 60
    assert not table.same_label()[0]
    assert len(table.matching(0.0)) == 0 and len(table.matching(0.0, same_label=False)) == 1


def test_boxes_that_only_share_a_face_are_no_pair() -> None:
    table = PairTable.between(objects((1, box((0, 0, 0), (2, 3, 4)))), objects((1, box((2, 0, 0), (4, 3, 4)))))
    assert len(table) == 0 and len(table.matching(0.0)) == 0


@pytest.mark.parametrize("sizes", [(0, 0), (0, 3), (3, 0)])
def test_nothing_on_either_side(sizes: tuple[int, int]) -> None:
    a, b = (objects(*[(1, box((i, 0, 0), (i + 1, 2, 2))) for i in range(n)]) for n in sizes)
    table = PairTable.between(a, b)
    assert len(table) == 0 and len(table.matching(0.3)) == 0
    assert table.iou().shape == (0,)
    assert (len(table.reference_voxels), len(table.prediction_voxels)) == sizes


def random_set(rng: np.random.Generator, count: int, shape: tuple[int, int, int]) -> InstanceSet:
    masks = []
    for _ in range(count):
        start = [int(rng.integers(0, n)) for n in shape]
        stop = [min(n, s + int(rng.integers(1, 5))) for n, s in zip(shape, start, strict=True)]
        masks.append((int(rng.integers(1, 3)), box(tuple(start), tuple(stop), shape) & (rng.random(shape) < 0.7)))
    return objects(*masks)


@pytest.mark.parametrize("shape", [(5, 7, 11), (1, 30, 30), (13, 2, 3)])
@pytest.mark.parametrize("seed", range(4))
def test_pairs_equal_brute_force(seed: int, shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(seed)
    a, b = random_set(rng, 25, shape), random_set(rng, 30, shape)
    table = PairTable.between(a, b)
    expected = {}
    for i in range(len(a)):
        for j in range(len(b)):
            shared = int((a.full_mask(i + 1) & b.full_mask(j + 1)).sum())
            if shared:
                expected[i, j] = shared
    found = {
        (int(r), int(p)): int(n) for r, p, n in zip(table.reference, table.prediction, table.intersection, strict=True)
    }
    assert found == expected
    assert list(found) == sorted(found)
    assert table.reference_voxels.tolist() == [i.voxels for i in a]


def best_by_enumeration(table: PairTable, rows: list[int], value: np.ndarray) -> tuple[int, float]:
    for count in range(len(rows), 0, -1):
        totals = [
            sum(value[list(choice)])
            for choice in combinations(rows, count)
            if len(set(table.reference[list(choice)])) == count == len(set(table.prediction[list(choice)]))
        ]
        if totals:
            return count, max(totals)
    return 0, 0.0


@pytest.mark.parametrize("measure", ["iou", "dice"])
@pytest.mark.parametrize("seed", range(6))
def test_matching_equals_enumeration(seed: int, measure: str) -> None:
    rng = np.random.default_rng(100 + seed)
    table = PairTable.between(random_set(rng, 7, SHAPE), random_set(rng, 7, SHAPE))
    value = table.iou() if measure == "iou" else table.dice()
    for threshold in (0.0, 0.1, 0.25):
        rows = [k for k in range(len(table)) if value[k] >= threshold and table.same_label()[k]]
        matched = table.matching(threshold, measure)  # type: ignore[arg-type]
        assert set(matched.tolist()) <= set(rows)
        assert len(set(table.reference[matched])) == len(matched) == len(set(table.prediction[matched]))
        count, total = best_by_enumeration(table, rows, value)
        assert len(matched) == count
        assert value[matched].sum() == pytest.approx(total, abs=1e-12)


def test_most_matches_come_before_the_largest_iou() -> None:
    # One row of voxels: reference A = 0..5, B = 5..7; prediction X = A (IoU 1, and 1/8 with B), Y = 0..1 (1/3 with A).
    # Two matches (A-Y, B-X; total 0.46) come before the one of IoU 1.
    line = (1, 1, 11)
    reference = objects((1, box((0, 0, 0), (1, 1, 6), line)), (1, box((0, 0, 5), (1, 1, 8), line)))
    prediction = objects((1, box((0, 0, 0), (1, 1, 6), line)), (1, box((0, 0, 0), (1, 1, 2), line)))
    table = PairTable.between(reference, prediction)
    rows = table.matching(0.1)
    assert list(zip(table.reference[rows], table.prediction[rows], strict=True)) == [(0, 1), (1, 0)]
    rows = table.matching(0.3)
    assert list(zip(table.reference[rows], table.prediction[rows], strict=True)) == [(0, 0)]


def test_an_iou_tie_gives_one_match_and_always_the_same() -> None:
    # The prediction covers 2 voxels of each of two references of 4: IoU 2 / 6 with both.
    line = (1, 1, 11)
    reference = objects((1, box((0, 0, 0), (1, 1, 4), line)), (1, box((0, 0, 4), (1, 1, 8), line)))
    prediction = objects((1, box((0, 0, 2), (1, 1, 6), line)))
    table = PairTable.between(reference, prediction)
    assert table.iou().tolist() == [1 / 3, 1 / 3]
    assert len({tuple(table.matching(0.3)) for _ in range(5)}) == 1
    assert len(table.matching(0.3)) == 1
    assert len(table.matching(1 / 3)) == 1  # exactly at the threshold
    assert len(table.matching(np.nextafter(1 / 3, 1))) == 0


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_permuted_and_flipped_prediction_gives_the_same_table(order: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(3)
    a, b = random_set(rng, 9, SHAPE), random_set(rng, 9, SHAPE)
    moved = b.moved(AxisMap(order=order, flips=(True, False, True)))
    expected, found = PairTable.between(a, b), PairTable.between(a, moved)
    assert found.intersection.tolist() == expected.intersection.tolist()
    assert found.reference.tolist() == expected.reference.tolist()
    assert found.prediction.tolist() == expected.prediction.tolist()


def test_another_grid_is_refused_and_both_are_named() -> None:
    a = objects((1, box((0, 0, 0), (1, 1, 1))))
    affine = a.geometry.affine.copy()
    affine[0, 3] += 0.7
    other = InstanceSet(instances=a.instances, geometry=VolumeGeometry(affine, SHAPE, "PATIENT"), labels=LABELS)
    with pytest.raises(GeometryError, match=r"-30\.8.*-31\.5"):
        PairTable.between(a, other)


def test_labels_join_by_name() -> None:
    other = LabelTable.from_names(["lesion", "spleen", "liver"])
    joint, ids = common_labels(LABELS, other)
    assert joint.names == ("liver", "lesion", "spleen") and ids == {1: 2, 2: 3, 3: 1}
    a, b = objects((1, box((0, 0, 0), (2, 2, 2)))), objects((3, box((0, 0, 0), (2, 2, 2))), labels=other)
    assert len(PairTable.between(a, b).matching(1.0)) == 1


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_threshold_out_of_range(threshold: float) -> None:
    with pytest.raises(ConfigError, match="expected 0..1"):
        PairTable.between(objects(), objects()).matching(threshold)


def test_unknown_measure() -> None:
    with pytest.raises(ConfigError, match="expected 'iou' or 'dice'"):
        PairTable.between(objects(), objects()).matching(0.5, "giou")  # type: ignore[arg-type]


def test_many_small_objects_do_not_cost_quadratically(monkeypatch: pytest.MonkeyPatch) -> None:
    # A 60 x 60 chessboard of single pixels on either side: 3600 pairs touch, 12.96 million would be all.
    array = np.zeros((1, 120, 120), np.int32)
    array[0, ::2, ::2] = np.arange(1, 3601).reshape(60, 60)
    one = InstanceSet.from_labelmap(
        array, oblique((1, 120, 120)), LABELS, instance_labels=dict.fromkeys(range(1, 3601), 2)
    )
    from medseg.values import pairs

    compared, listed = [], []
    shared, expand = pairs._shared_voxels, pairs._expand
    monkeypatch.setattr(pairs, "_shared_voxels", lambda a, b: compared.append(1) or shared(a, b))
    monkeypatch.setattr(
        pairs, "_expand", lambda low, high: listed.append(np.maximum(high - low, 0).sum()) or expand(low, high)
    )
    table = PairTable.between(one, one)
    assert len(table) == len(compared) == 3600
    assert sum(listed) == 3600 * 60  # every object with those of its own column, not with all
    assert len(table.matching(0.5)) == 3600
