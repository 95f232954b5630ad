import numpy as np
import pytest
from highdicom import VolumeGeometry
from matplotlib.collections import LineCollection
from matplotlib.image import imread

from medseg.errors import ConfigError, GeometryError
from medseg.labels import Label, LabelTable
from medseg.reporting.overlay import (
    compare_montage,
    overlay_montage,
    save_overlay,
)
from medseg.reporting.slices import choose_slices
from medseg.reporting.tiles import outlines
from medseg.values.geometry import AxisMap, make_volume
from medseg.values.instances import InstanceSet

HARD_NAME = r"_lesion <b> & $x_1^2 \frac{$"
ORANGE = (230, 159, 0)


@pytest.fixture
def labels():
    return LabelTable(
        [Label(id=1, name="organ", colour=ORANGE), Label(id=2, name=HARD_NAME, colour=(86, 180, 233), kind="ids")]
    )


@pytest.fixture
def volume(oblique_geometry, rng):
    array = rng.normal(40, 60, oblique_geometry.spatial_shape).astype(np.float32)
    return make_volume(array, oblique_geometry.affine, "volume")


@pytest.fixture
def instances(volume, labels):
    masks = np.zeros((3, 5, 7, 11), bool)
    masks[0, 0:4, 1:6, 1:9] = True
    masks[1, 1, 2:4, 2:4] = True
    masks[2, 4, 5:7, 8:11] = True
    return InstanceSet.from_masks(zip((1, 2, 2), masks, strict=True), volume, labels)


def pixels(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)


def texts(figure):
    return [t.get_text() for t in figure.texts] + [t.get_text() for axes in figure.axes for t in axes.texts]


def area(line):
    """Shoelace formula."""
    row, column = line[:-1].T
    return 0.5 * abs(np.dot(row, np.roll(column, 1)) - np.dot(column, np.roll(row, 1)))


def test_outline_runs_half_way_between_pixel_centres():
    line, *rest = outlines(np.ones((3, 5), bool), (4, 7))
    assert not rest
    assert np.array_equal(line[0], line[-1])
    # Pixels 4..6 cover [4, 7), 7..11 cover [7, 12); level 0.5 cuts an eighth of a pixel off each corner.
    assert np.array_equal(line.min(axis=0), (4, 7))
    assert np.array_equal(line.max(axis=0), (7, 12))
    assert area(line) == pytest.approx(3 * 5 - 4 / 8)


def test_outline_of_a_ring_has_two_lines():
    ring = np.ones((5, 6), bool)
    ring[2, 2:4] = False
    assert len(outlines(ring, (0, 0))) == 2


def test_slices_show_every_object_and_the_largest_section(instances):
    # Object 2 is only in slice 1, object 3 only in slice 4; object 1 is equally large in 0..3.
    assert choose_slices([instances], 8) == [1, 4]
    assert choose_slices([instances], 1) == [1]


def test_slices_prefer_the_largest_section(volume, labels):
    mask = np.zeros((5, 7, 11), bool)
    for index, rows in enumerate((1, 2, 5, 6, 3)):
        mask[index, :rows] = True
    assert choose_slices([InstanceSet.from_masks([(1, mask)], volume, labels)], 4) == [3]


def test_slices_weigh_small_objects_like_large_ones(volume, labels):
    large, small = np.zeros((2, 5, 7, 11), bool)
    large[0, :2, :10] = large[2, :3, :10] = True  # 20 and 30 pixels
    small[0, 5, :8] = small[2, 5, :1] = True  # 8 and 1: slice 0 shows 2/3 and 1/1 of the largest, slice 2 1/1 and 1/8
    assert choose_slices([InstanceSet.from_masks([(1, large), (2, small)], volume, labels)], 1) == [0]


def test_slices_without_objects_are_spread(volume, labels):
    nothing = InstanceSet.build([], volume, labels)
    assert choose_slices([nothing], 8) == [0, 1, 2, 3, 4]
    assert choose_slices([nothing], 2) == [1, 3]
    assert choose_slices([nothing], 1) == [2]


def test_objects_are_drawn_in_their_own_colours(volume, instances):
    axes = overlay_montage(volume, instances, slices=[1]).axes[0]
    drawn = [tuple(int(round(255 * v)) for v in c.get_colors()[0][:3]) for c in axes.collections]
    assert drawn == list(instances.colours()[:2])  # object 3 is not in slice 1


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(True, False, True), (False, True, False)])
def test_stored_axis_order_does_not_change_the_picture(volume, instances, order, flips):
    expected = pixels(overlay_montage(volume, instances))
    axis_map = AxisMap(order=order, flips=flips)
    moved = axis_map.volume(volume)
    assert np.array_equal(pixels(overlay_montage(moved, instances.moved(axis_map))), expected)
    assert np.array_equal(pixels(overlay_montage(moved, instances)), expected)


def test_radiological_display(labels):
    """A bright corner at the patient's right, anterior and feet is at the left and top of the lowest slice."""
    # Stored from head to feet, rows towards anterior, columns towards the right; 2 x 3 mm pixels.
    affine = np.array([[0, 0, -3.0, 50], [0, -2.0, 0, 60], [-4.0, 0, 0, 700], [0, 0, 0, 1]])
    array = np.zeros((5, 7, 11), np.float32)
    array[-1, -1, -1] = 100
    volume = make_volume(array, affine, "volume")
    nothing = InstanceSet.build([], volume, labels)
    axes = overlay_montage(volume, nothing, slices=[0], window=(0, 100)).axes[0]
    shown = axes.images[0]
    assert shown.get_array()[0, 0] == 100
    assert shown.get_extent() == [0, 33, 14, 0]  # 11 columns of 3 mm, 7 rows of 2 mm
    assert axes.get_aspect() == 1
    assert {t.get_text(): t.get_position()[0] < 0.5 for t in axes.texts if t.get_text() in "RL"} == {
        "R": True,
        "L": False,
    }
    assert {t.get_text(): t.get_position()[1] > 0.5 for t in axes.texts if t.get_text() in "AP"} == {
        "A": True,
        "P": False,
    }
    assert any("z 684.0 mm" in t.get_text() for t in axes.texts)


def test_outlines_lie_on_the_object_in_mm(labels):
    affine = np.array([[0, 0, 3.0, 0], [0, 2.0, 0, 0], [4.0, 0, 0, 0], [0, 0, 0, 1]])
    volume = make_volume(np.zeros((5, 7, 11), np.float32), affine, "volume")
    mask = np.zeros((5, 7, 11), bool)
    mask[2, 3:5, 6:10] = True
    axes = overlay_montage(volume, InstanceSet.from_masks([(1, mask)], volume, labels)).axes[0]
    (lines,) = [c for c in axes.collections if isinstance(c, LineCollection)]
    (line,) = lines.get_segments()
    assert line.min(axis=0).tolist() == [18, 6]
    assert line.max(axis=0).tolist() == [30, 10]


def test_legend_has_names_as_they_are_and_volumes(volume, instances):
    figure = overlay_montage(volume, instances)
    pixels(figure)  # mathtext would fail while drawing
    shown = texts(figure)
    voxel_ml = 3.0 * 0.8 * 0.7 / 1000
    assert f"organ  {160 * voxel_ml:.3g} ml" in shown
    assert f"{HARD_NAME} 1  {4 * voxel_ml:.3g} ml" in shown
    assert f"{HARD_NAME} 2  {6 * voxel_ml:.3g} ml" in shown
    assert "Research use only" in shown
    assert any(text.endswith(" mm") and text[0].isdigit() for text in shown), "no scale bar"


def test_many_objects_are_summed_by_label(volume, labels):
    mask = np.zeros((40, 5, 7, 11), bool)
    for index in range(40):
        mask[index, index % 5, index % 7, index % 11] = True
    figure = overlay_montage(volume, InstanceSet.from_masks([(2, m) for m in mask], volume, labels))
    assert any(text.startswith(f"{HARD_NAME} (40 objects)") for text in texts(figure))


def test_comparison_draws_the_reference_dashed(volume, instances, labels):
    prediction = InstanceSet.from_masks([(1, instances.full_mask(1))], volume, labels)
    figure = compare_montage(volume, instances, prediction, slices=[1])
    styles = [c.get_linestyles()[0] for c in figure.axes[0].collections]
    assert [style[1] is None for style in styles] == [True, False, False]  # one solid, two dashed
    assert "reference (3 objects)" in texts(figure)
    # The slices are those of both: object 3 is only in the reference.
    assert len(compare_montage(volume, instances, prediction).axes) == 2


@pytest.mark.parametrize("shape", [(1, 7, 11), (5, 1, 11), (5, 7, 1), (1, 1, 1)])
def test_nothing_found_on_odd_shapes(tmp_path, shape, oblique_geometry, labels):
    volume = make_volume(np.zeros(shape, np.int16), oblique_geometry.affine, "volume")
    nothing = InstanceSet.build([], VolumeGeometry(volume.affine, shape, "PATIENT"), labels)
    assert "nothing found" in texts(overlay_montage(volume, nothing, window=None))
    save_overlay(tmp_path / "new" / "nothing.png", volume, nothing)
    image = imread(tmp_path / "new" / "nothing.png")
    assert image.ndim == 3
    assert image.shape[1] > 100


def test_save_with_a_reference(tmp_path, volume, instances):
    save_overlay(tmp_path / "plain.png", volume, instances)
    save_overlay(tmp_path / "both.png", volume, instances, reference=instances)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["both.png", "plain.png"]
    assert not np.array_equal(imread(tmp_path / "plain.png"), imread(tmp_path / "both.png"))


def test_refusals(volume, instances):
    elsewhere = make_volume(volume.array, volume.affine + np.array([[0, 0, 0, 1.0]] + [[0] * 4] * 3), "volume")
    with pytest.raises(GeometryError, match="another grid"):
        overlay_montage(elsewhere, instances)
    with pytest.raises(ConfigError, match=r"0\.\.4"):
        overlay_montage(volume, instances, slices=[5])
    with pytest.raises(ConfigError, match="window"):
        overlay_montage(volume, instances, window=(10, 10))
    with pytest.raises(ConfigError, match="columns"):
        overlay_montage(volume, instances, columns=0)


def test_real_ct_shows_the_liver_at_the_left_of_the_picture(data_dir):
    nibabel = pytest.importorskip("nibabel")
    folder = data_dir / "ct_torso_3mm"
    image, organs = (nibabel.load(folder / name) for name in ("ct.nii.gz", "organs.nii.gz"))
    affine = np.diag([-1.0, -1, 1, 1]) @ image.affine  # RAS -> LPS, indices still (x, y, z)
    volume = make_volume(np.asarray(image.dataobj).astype(np.int16), affine, "ct")
    table = LabelTable.from_names([f"organ {i}" for i in range(1, 6)])  # 1 spleen, 5 liver
    organs = np.asarray(organs.dataobj)
    found = InstanceSet.from_labelmap(np.where((organs == 1) | (organs == 5), organs, 0), volume, table)
    axes = overlay_montage(volume, found).axes[-1]
    spleen, liver = (np.concatenate(c.get_segments()).mean(axis=0) for c in axes.collections)
    assert liver[0] < axes.get_xlim()[1] / 2 < spleen[0]
