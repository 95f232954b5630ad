"""Prepared cases: what goes in comes out, objects on the network's grid."""

from pathlib import Path

import numpy as np
import pytest
from network_fixtures import HPL, LABELS, one_image, simple_case

from medseg.data.cache import load_case, prepare_case
from medseg.data.grid import to_network_grid
from medseg.errors import GeometryError, InputError
from medseg.values.geometry import IDENTITY, AxisMap, grid_map, make_volume
from medseg.values.instances import InstanceSet
from medseg.values.plan import InputPlan

AS_IT_IS = InputPlan(spacing_mm=(2.0, 2.0))
RESAMPLED = InputPlan(spacing_mm=(1.3, 3.1), air_threshold=-300.0)


def full(mask: np.ndarray, offset: tuple[int, int, int], shape: tuple[int, ...]) -> np.ndarray:
    out = np.zeros(shape, bool)
    out[tuple(slice(o, o + n) for o, n in zip(offset, mask.shape, strict=True))] = mask
    return out


def test_on_its_own_grid_a_case_is_kept_voxel_by_voxel(tmp_path: Path) -> None:
    volume, truth = simple_case(1)
    prepare_case("a", (volume,), truth, AS_IT_IS, tmp_path)
    case = load_case(tmp_path, "a")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.masks.npy", "a.npy"]
    np.testing.assert_array_equal(case.array, volume.array[None])
    assert isinstance(case.array, np.memmap) and case.slice_spacing_mm == 5.0 and case.name == "a"
    assert grid_map(case.geometry, volume) == IDENTITY
    assert [o.label for o in case.objects] == [1, 2, 2]
    for found, instance in zip(case.objects, truth, strict=True):
        np.testing.assert_array_equal(found.mask, instance.mask)
        assert found.offset == instance.offset
        expected = np.flatnonzero(truth.full_mask(instance.id).any(axis=(1, 2)))
        np.testing.assert_array_equal(found.slices(), expected)


def test_objects_follow_the_image_onto_the_grid(tmp_path: Path) -> None:
    """Cropped to the body and resampled, every object covers the pixels whose values are its own."""
    volume, truth = simple_case(1)
    prepare_case("a", (volume,), truth, RESAMPLED, tmp_path)
    case = load_case(tmp_path, "a")
    grid = to_network_grid((volume,), RESAMPLED)
    np.testing.assert_array_equal(case.array, grid.array)
    np.testing.assert_array_equal(case.geometry.affine, grid.array_geometry.affine)
    # Half way from the water around to the object's own value lies its edge.
    for found, instance, low, high in zip(case.objects, truth, (50, 125, 125), (150, 400, 400), strict=True):
        mask = full(found.mask, found.offset, case.array.shape[1:])
        seen = (case.array[0] > low) & (case.array[0] < high)
        assert (mask & seen).sum() / mask.sum() > 0.95
        ml = mask.sum() * 5.0 * 1.3 * 3.1 / 1000
        expected = truth.volume_ml(instance.id)
        assert abs(ml - expected) < 0.1 * expected


@pytest.mark.parametrize("plan", [AS_IT_IS, RESAMPLED], ids=["as it is", "resampled"])
def test_axis_orders_of_image_and_label_do_not_matter(tmp_path: Path, plan: InputPlan) -> None:
    volume, truth = simple_case(2)
    prepare_case("plain", (volume,), truth, plan, tmp_path)
    image_map = AxisMap(order=(2, 0, 1), flips=(False, True, True))
    label_map = AxisMap(order=(1, 2, 0), flips=(True, False, False))
    prepare_case("moved", (image_map.volume(volume),), truth.moved(label_map), plan, tmp_path)
    a, b = load_case(tmp_path, "plain"), load_case(tmp_path, "moved")
    np.testing.assert_array_equal(a.array, b.array)
    for one, other in zip(a.objects, b.objects, strict=True):
        assert (one.label, one.offset) == (other.label, other.offset)
        np.testing.assert_array_equal(one.mask, other.mask)


def test_overlaps_stay_and_what_lies_in_the_air_is_cut(tmp_path: Path) -> None:
    array = np.full((3, 40, 50), -1000, np.int16)
    array[:, 10:30, 10:40] = 40
    affine = np.eye(4)
    affine[:3, :3] = HPL * [4.0, 2.0, 2.0]
    volume = make_volume(array, affine, "block")
    inner, outer, beside, half = (np.zeros(array.shape, bool) for _ in range(4))
    inner[1, 15:20, 15:20] = outer[:, 12:28, 12:38] = beside[:, 0:4, 0:4] = half[1, 20:24, 40:50] = True
    truth = InstanceSet.from_masks([(1, outer), (2, inner), (2, beside), (2, half)], volume, LABELS)
    prepare_case("a", (volume,), truth, InputPlan(spacing_mm=(2.0, 2.0), air_threshold=-300.0), tmp_path)
    case = load_case(tmp_path, "a")
    assert case.array.shape == (1, 3, 28, 38)  # the block and 4 pixels around it
    assert [(o.label, o.offset, o.mask.shape) for o in case.objects] == [
        (1, (0, 6, 6), (3, 16, 26)),
        (2, (1, 9, 9), (1, 5, 5)),
        (2, (1, 14, 34), (1, 4, 4)),  # of the half in the air, the part within the margin
    ]


def test_an_object_smaller_than_half_a_pixel_is_left_out(tmp_path: Path) -> None:
    volume, truth = simple_case(1)
    speck = np.zeros(volume.array.shape, bool)
    speck[3, 30, 30] = True
    both = InstanceSet.from_masks([(2, speck), (1, truth.full_mask(1))], volume, LABELS)
    prepare_case("a", (volume,), both, InputPlan(spacing_mm=(6.0, 6.0)), tmp_path)
    assert [o.label for o in load_case(tmp_path, "a").objects] == [1]


def test_another_place_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    volume, truth = simple_case(1)
    affine = volume.affine.copy()
    affine[:3, 3] += 0.5
    elsewhere = make_volume(volume.array, affine, "moved")
    with pytest.raises(GeometryError, match="case a: image and label are in different places"):
        prepare_case("a", (elsewhere,), truth, AS_IT_IS, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("victim", ["a.json", "a.masks.npy", "a.npy"])
@pytest.mark.parametrize("fault", ["missing", "cut", "empty"])
def test_a_case_that_is_not_whole_is_refused(tmp_path: Path, victim: str, fault: str) -> None:
    prepare_case("a", *one_image(1), AS_IT_IS, tmp_path)
    path = tmp_path / victim
    data = path.read_bytes()
    path.unlink()
    if fault != "missing":
        path.write_bytes(data[: len(data) // 2] if fault == "cut" else b"")
    with pytest.raises(InputError, match="a: not a readable prepared case"):
        load_case(tmp_path, "a")


def test_a_record_without_its_keys_is_refused(tmp_path: Path) -> None:
    prepare_case("a", *one_image(1), AS_IT_IS, tmp_path)
    for text in ("{}", "[]", '{"slice_spacing_mm": 5, "objects": [{}]}', '{"slice_spacing_mm": null, "objects": []}'):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(InputError, match="not a readable prepared case"):
            load_case(tmp_path, "a")
