"""Mirrored and scaled looks, views across the slices, ensembles: with networks that know where a block is."""

from dataclasses import replace

import numpy as np
import pytest
from network_fixtures import HPL, tiny_plan

from medseg.data.grid import place_grid, to_network_grid
from medseg.errors import ConfigError, GeometryError, ModelError
from medseg.inference.ensemble import Ensemble, check_alike
from medseg.inference.passes import Look, PassSettings
from medseg.inference.views import cross_views
from medseg.labels import LabelTable
from medseg.values.detections import Detections
from medseg.values.geometry import AxisMap, grid_map, make_volume
from medseg.values.pasting import paste_mask
from medseg.values.plan import Plan

# -- geometry ---------------------------------------------------------------------------------------------------


def detections(boxes, masks, slice_index=0):
    n = len(boxes)
    return Detections(
        slice_index=slice_index,
        boxes=np.array(boxes, np.float32).reshape(n, 4),
        scores=np.full(n, 0.9, np.float32),
        labels=np.full(n, 2, np.int64),  # a lesion
        masks=np.array(masks, np.float32),
    )


@pytest.mark.parametrize(("rows", "columns"), [(True, False), (False, True), (True, True)])
def test_a_mirrored_detection_pastes_as_the_mirrored_slice(rows, columns):
    """To the half pixel: a mask at fractions of pixels, pasted and mirrored, is the mirrored one pasted."""
    mask = np.random.default_rng(0).random((1, 5, 5))
    there = detections([[2.3, 1.6, 8.9, 5.25]], mask)
    mirrored = there.mirrored((7, 11), rows=rows, columns=columns)
    x1, y1, x2, y2 = 2.3, 1.6, 8.9, 5.25
    wanted = [11 - x2 if columns else x1, 7 - y2 if rows else y1, 11 - x1 if columns else x2, 7 - y1 if rows else y2]
    np.testing.assert_allclose(mirrored.boxes, [wanted], atol=1e-6)
    canvas = [np.zeros((7, 11)), np.zeros((7, 11))]
    for slice_, found in zip(canvas, (there, mirrored), strict=True):
        pasted, row, column = paste_mask(found.masks[0], found.boxes[0], (7, 11))
        slice_[row : row + pasted.shape[0], column : column + pasted.shape[1]] = pasted
    turned = canvas[0][:: -1 if rows else 1, :: -1 if columns else 1]
    np.testing.assert_allclose(canvas[1], turned, atol=1e-5)
    back = mirrored.mirrored((7, 11), rows=rows, columns=columns)
    np.testing.assert_allclose(back.boxes, there.boxes, atol=1e-6)
    np.testing.assert_array_equal(back.masks, there.masks)


class Bright:
    """Stands in for a network: in each slice, the box of what is above 50 to the half pixel, and its mask."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.seen: list[tuple[int, ...]] = []

    def detect(self, grid, track=None):
        self.seen.append(grid.array.shape)
        return [self._in_slice(k, plane.astype(float)) for k, plane in enumerate(grid.array[0])]

    def _in_slice(self, index, plane):
        weight = np.clip(plane / 100, 0, 1)
        if weight.max() < 0.5:
            return Detections.empty(index, 4)
        rows, columns = weight.max(axis=1), weight.max(axis=0)
        # Edges where the profile passes 0.5; pixel i has its centre at i + 0.5.
        (y1, y2), (x1, x2) = (self._edges(profile) for profile in (rows, columns))
        return detections([[x1, y1, x2, y2]], np.ones((1, 4, 4)), index)

    @staticmethod
    def _edges(profile):
        inside = np.flatnonzero(profile >= 0.5)
        padded = np.concatenate([[0.0], profile, [0.0]])
        first, last = inside[0] + 1, inside[-1] + 1
        before = (padded[first] - 0.5) / (padded[first] - padded[first - 1])
        after = (padded[last] - 0.5) / (padded[last] - padded[last + 1])
        return first - 1 + 0.5 - before, last - 1 + 0.5 + after


#: An axis order other than the plan's.
STORED = AxisMap(order=(2, 0, 1), flips=(False, True, True))


def block(shape=(6, 40, 52), spacing=(3.0, 2.0, 2.0)):
    """A block of 100 in water, rows 10 to 21, columns 17 to 38, slices 1 to 4; the plan's orientation."""
    array = np.zeros(shape, np.int16)
    array[1:5, 10:22, 17:39] = 100
    affine = np.eye(4)
    affine[:3, :3] = HPL * spacing
    affine[:3, 3] = (-31.3, 40.9, 811.5)
    return make_volume(array, affine, "block")


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("flips", [{}, {"flip_rows": True}, {"flip_columns": True}])
def test_what_a_look_finds_lies_where_it_was(scale, flips):
    volume, plan = block(), tiny_plan().input
    look = Look(scale=scale, **flips)
    grid = to_network_grid((volume,), look.input_plan(plan))
    assert grid.size == (40 * scale, 52 * scale)
    found = Bright(tiny_plan()).detect(look.mirror(grid))[2]
    back = grid.to_source(look.unmirror(found, grid))
    # A resampled edge passes half its height where it was.
    np.testing.assert_allclose(back.boxes, [[17, 10, 39, 22]], atol=0.02 if scale >= 1 else 0.3)


def test_settings_and_looks():
    plan = tiny_plan({"training.flip_columns": True})
    plain, mirrored = Look(), Look(flip_columns=True)
    assert PassSettings().looks(plan) == (plain,)
    assert PassSettings(flips=True).looks(plan) == (plain, mirrored)
    both = plan.with_overrides({"training.flip_rows": True})
    assert len(PassSettings(flips=True, scales=(0.8, 1.25)).looks(both)) == 12
    assert PassSettings(scales=(0.8,)).looks(plan) == (plain, Look(scale=0.8))
    with pytest.raises(ConfigError, match="flips: the model was trained without mirroring"):
        PassSettings(flips=True).looks(tiny_plan())
    for wrong in ((1.0,), (0.8, 0.8), (0.4,), (2.1,), (float("nan"),)):
        with pytest.raises(ConfigError, match="expected different factors of 0.5 to 2 other than 1"):
            PassSettings(scales=wrong)


# -- views across the slices ------------------------------------------------------------------------------------


def test_cross_views_hold_the_same_voxels():
    volume = block()
    place = place_grid((volume,), tiny_plan().input)
    for view, axis, extent in zip(cross_views((volume,), place, tiny_plan().input), (1, 2), (40, 52), strict=True):
        # Slices of 3 mm and pixels of 2 mm: every second row (1.5 rounds to 2), beginning with the second.
        assert view.taken.tolist() == list(range(1, extent, 2))
        axis_map = grid_map(view.geometry, volume)
        assert axis_map is not None and axis_map.order.index(0) == axis
        (turned,) = view.volumes
        index = np.array([3, 2, 5, 1.0])
        where = np.linalg.inv(volume.affine) @ turned.affine @ index
        k, i, j = np.rint(where[:3]).astype(int)
        np.testing.assert_allclose(where[:3], [k, i, j], atol=1e-9)
        assert (i if axis == 1 else j) == view.taken[3] and turned.array[3, 2, 5] == volume.array[k, i, j]
        spread = view.spread([detections([[k, 0, k + 1, 1]], np.ones((1, 4, 4)), k) for k in range(len(view.taken))])
        assert [d.slice_index for d in spread] == list(range(1, view.taken[-1] + 1))
        assert all(abs(view.taken[int(d.boxes[0, 0])] - d.slice_index) <= 1 for d in spread)


def test_views_of_thick_slices_are_refused():
    volume, plan = block(spacing=(6.1, 2.0, 2.0)), tiny_plan().input
    with pytest.raises(GeometryError, match=r"6 slices of 6.1 mm, expected at least 2 of at most 6 mm \(3 times"):
        cross_views((volume,), place_grid((volume,), plan), plan)
    one = block(shape=(1, 40, 52))
    with pytest.raises(GeometryError, match="1 slices of 3 mm"):
        cross_views((one,), place_grid((one,), plan), plan)


def test_views_join_what_they_see_as_one():
    """Two stacks that overlap too little to be one: a crosswise look that sees the whole block joins them."""
    plan = tiny_plan(
        {"linking.min_score": 0.1, "linking.merged_prior": 0.0, "linking.split_prior": 0.0, "linking.link_iou": 0.3}
    )

    class TwoStacks(Bright):
        def _in_slice(self, index, plane):
            found = super()._in_slice(index, plane)
            if plane.shape == (40, 52) and len(found):  # of 22 columns, the lower two slices show 14, the upper two 12
                half = [17, 10, 31, 22] if index < 3 else [27, 10, 39, 22]
                return replace(found, boxes=np.array([half], np.float32))
            return found

    volume = STORED.volume(block())
    alone = Ensemble([TwoStacks(plan)]).predict((volume,))
    assert len(alone.instances) == 2
    model = TwoStacks(plan)
    joined = Ensemble([model], PassSettings(views=True))
    assert len(joined.predict((volume,)).instances) == 1
    # Rows and columns 1 to 20 and so on of every second: slices of 3 mm as 2 mm pixels.
    assert model.seen == [(1, 6, 40, 52), (1, 20, 9, 52), (1, 26, 9, 40)]
    cost = joined.cost((volume,))
    assert cost.passes == 3
    assert cost.factor == pytest.approx((6 * 40 * 52 + 20 * 9 * 52 + 26 * 9 * 40) / (6 * 40 * 52))


# -- ensembles --------------------------------------------------------------------------------------------------


def test_several_passes_agree_on_a_block():
    """Each pass finds the block where it is, however it is stored; fused they find it there, with its score."""
    volume = STORED.volume(block())
    plan = tiny_plan({"training.flip_rows": True, "linking.min_score": 0.1, "linking.length_ratio": 0.0})
    finer = Bright(plan.with_overrides({"input.spacing_mm": [1.0, 1.0]}))
    model = Bright(plan)
    ensemble = Ensemble([model, finer], PassSettings(flips=True, scales=(1.5,)))
    prediction = ensemble.predict((volume,))
    assert model.seen == [(1, 6, 40, 52)] * 2 + [(1, 6, 60, 78)] * 2
    assert finer.seen == [(1, 6, 80, 104)] * 2 + [(1, 6, 120, 156)] * 2
    (instance,) = prediction.instances
    wanted = volume.array == 100
    np.testing.assert_array_equal(prediction.instances.full_mask(1), wanted)
    assert instance.score == pytest.approx(0.9, abs=1e-6)
    assert set(prediction.seconds) == {"grid", "network", "fusion", "linking"}
    cost = ensemble.cost((volume,))
    assert cost.passes == 8 and cost.factor == pytest.approx(2 * (1 + 1.5**2) * (1 + 4))
    assert str(cost) == "8 network passes, about 32.5 times the time of one"


def test_models_of_three_directions_agree_on_a_block():
    """Each is linked along its own slices; together they find the block where it is, however it is stored."""
    volume = STORED.volume(block())
    plan = tiny_plan({"linking.min_score": 0.1, "linking.length_ratio": 0.0})
    models = [Bright(plan.with_overrides({"input.orientation": o})) for o in ("HPL", "PFL", "LFP")]
    ensemble = Ensemble(models)
    prediction = ensemble.predict((volume,))
    assert [model.seen for model in models] == [[(1, 6, 40, 52)], [(1, 40, 9, 52)], [(1, 52, 9, 40)]]
    np.testing.assert_array_equal(prediction.instances.full_mask(1), volume.array == 100)
    assert [i.score for i in prediction.instances] == pytest.approx([0.9])
    assert set(prediction.seconds) == {"grid", "network", "fusion", "linking"}
    cost = ensemble.cost((volume,))
    assert cost.passes == 3 and cost.factor == pytest.approx(1 + (40 * 9 * 52 + 52 * 9 * 40) / (6 * 40 * 52))
    with pytest.raises(ConfigError, match="views: models of several directions"):
        Ensemble(models, PassSettings(views=True))


def test_the_model_that_cannot_be_mirrored_is_named():
    plan = tiny_plan({"training.flip_rows": True})
    with pytest.raises(ConfigError, match="flips: model 2 was trained without mirroring"):
        Ensemble([Bright(plan), Bright(tiny_plan())], PassSettings(flips=True))


def test_what_one_of_two_passes_sees_has_half_its_score():
    class Blind(Bright):
        def _in_slice(self, index, plane):
            return Detections.empty(index, 4)

    plan = tiny_plan({"linking.min_score": 0.1, "linking.length_ratio": 0.0})
    prediction = Ensemble([Bright(plan), Blind(plan)]).predict((block(),))
    assert [i.score for i in prediction.instances] == pytest.approx([0.45])
    none = Ensemble([Blind(plan), Blind(plan)]).predict((block(),))
    assert len(none.instances) == 0 and none.warnings == ("nothing found",)


def test_models_that_do_not_go_together_are_refused() -> None:
    plan = tiny_plan()
    names = ("a/run", "b/run")
    check_alike([plan, plan.with_overrides({"input.spacing_mm": [1.0, 1.0], "model.mask_size": 28})], names)
    other = LabelTable.from_names(["organ", "cyst"], kinds={"cyst": "ids"})
    for changed, text in (
        (
            tiny_plan(labels=other),
            r"b/run: the model's labels 1 organ \(single\), 2 cyst \(ids\), expected those of a/run",
        ),
        (plan.with_overrides({"input.channel_names": ["T2"]}), r"channels T2, expected those of a/run \(image\)"),
    ):
        with pytest.raises(ModelError, match=text):
            check_alike([plan, changed], names)
