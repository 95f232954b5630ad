"""Fingerprint and plan: facts measured right, and choices that fit them."""

import dataclasses

import numpy as np
import pytest
from highdicom import Volume
from network_fixtures import LABELS, simple_case

from medseg.data.fingerprint import CaseFacts, Fingerprint, fingerprint, look_at
from medseg.data.planning import derive_plan
from medseg.errors import ConfigError
from medseg.labels import LabelTable
from medseg.models.mask_rcnn import build_mask_rcnn
from medseg.values.instances import InstanceSet
from medseg.values.plan import Plan, check_fields, load_plan


def look_at_one(volume: Volume, truth: InstanceSet) -> CaseFacts:
    return look_at((volume,), truth, "HPL")


def together(cases: list[CaseFacts], labels: LabelTable = LABELS) -> Fingerprint:
    return fingerprint(cases, labels, ("image",), "HPL")


@pytest.fixture(scope="module")
def facts() -> Fingerprint:
    return together([look_at_one(*simple_case(seed)) for seed in range(3)])


@pytest.fixture(scope="module")
def plan(facts: Fingerprint) -> Plan:
    return derive_plan(facts)


def test_ct_is_known_by_its_air(facts: Fingerprint) -> None:
    assert facts.is_ct
    mr = dataclasses.replace(facts.cases[0], lowest=(0.0,))
    mixed = together([*facts.cases, mr])
    assert not mixed.is_ct
    plan = derive_plan(mixed)
    assert plan.input.intensity == "zscore" and plan.input.air_threshold is None
    assert "not CT" in plan.reasons["input.intensity"]


def test_every_reason_names_a_field_and_every_field_of_the_input_has_one(plan: Plan) -> None:
    check_fields(plan.reasons)
    assert all(reason and "\n" not in reason for reason in plan.reasons.values())
    for field in ("input.spacing_mm", "input.windows", "input.context_mm", "model.anchor_sizes", "training.crop_size"):
        assert field in plan.reasons


def test_anchors_cover_the_boxes(plan: Plan, facts: Fingerprint) -> None:
    """For 19 of 20 boxes of the cohort some anchor, laid over its centre, has IoU 0.6 or more."""
    pixel = plan.input.spacing_mm[0]
    sizes = np.array([s for level in plan.model.anchor_sizes for s in level])
    ratios = np.array(plan.model.anchor_ratios)
    heights, widths = (np.outer(sizes, f).ravel() for f in (np.sqrt(ratios), 1 / np.sqrt(ratios)))
    for label in LABELS:
        h, w = (facts.boxes_mm(label.id) / pixel).T
        shared = np.minimum(h[:, None], heights) * np.minimum(w[:, None], widths)
        iou = shared / ((h * w)[:, None] + heights * widths - shared)
        assert np.mean(iou.max(axis=1) > 0.6) > 0.95, label.name
    assert sizes.tolist() == sorted(sizes)


def test_the_windows_show_what_is_under_the_masks(plan: Plan, facts: Fingerprint) -> None:
    values = facts.values(0)
    low, high = plan.input.windows[0]
    assert np.mean((values > low) & (values < high)) > 0.99
    assert plan.input.air_threshold is not None and plan.input.air_threshold < low


def with_sizes(
    facts: Fingerprint, side_mm: float, spacing_mm: float, body_mm: float, shape: tuple[int, int, int] = (14, 60, 68)
) -> Fingerprint:
    """The first case with other figures: all lesions of one side, boxes of 90 mm at most, square pixels and bodies."""
    first = facts.cases[0]
    lesion = dataclasses.replace(first.classes[2], sides_mm=np.array([side_mm]), boxes_mm=np.array([[side_mm] * 2]))
    case = dataclasses.replace(
        first,
        shape=shape,
        spacing_mm=(5.0, spacing_mm, spacing_mm),
        body_mm=(body_mm, body_mm),
        classes={1: dataclasses.replace(first.classes[1], sides_mm=np.array([90.0])), 2: lesion},
    )
    return together([case])


@pytest.mark.parametrize(
    ("side_mm", "spacing_mm", "body_mm", "expected_mm", "why"),
    [
        (30.0, 1.0, 300.0, 1.0, "the median pixel of the cohort, 1 mm"),  # 30 pixels are enough
        (30.0, 0.5, 400.0, 400 / 512, "slices of 400 mm a side on average in 512 pixels"),
        (12.0, 1.0, 300.0, 12 / 14, "7 cells of stride 2"),  # 12 pixels become 14
        (7.0, 1.0, 400.0, 400 / 512, "slices stay at 512 pixels"),  # 14 would make 800 pixels a side
        (3.0, 1.0, 400.0, 3 / 6, "6 pixels at least"),  # whatever it costs
        (1.0, 1.0, 400.0, 1 / 4, "4 times finer is the most"),
        (14.0, 1.0, 40.0, 1 / 4, "14 cells of stride 4"),  # a small slice: 14 mm become 56 pixels
        (14.0, 1.0, 100.0, 100 / 224, "slices stay at 224 pixels"),
    ],
)
def test_the_pixel_by_what_small_objects_need_and_slices_cost(
    facts: Fingerprint, side_mm: float, spacing_mm: float, body_mm: float, expected_mm: float, why: str
) -> None:
    plan = derive_plan(with_sizes(facts, side_mm, spacing_mm, body_mm))
    assert plan.input.spacing_mm[0] == pytest.approx(expected_mm, rel=0.01)
    assert why in plan.reasons["input.spacing_mm"]


def test_what_follows_from_the_pixels_of_objects_and_slices(facts: Fingerprint) -> None:
    large = derive_plan(with_sizes(facts, 60.0, 1.0, 400.0))
    assert (large.model.finest_stride, large.model.stem) == (4, "conv7")
    assert large.training.crop_size == (256, 256) and "crops" in large.reasons["training.crop_size"]
    small = derive_plan(with_sizes(facts, 12.0, 1.0, 300.0))
    assert (small.model.finest_stride, small.model.stem) == (2, "deep")
    assert small.training.focus_fraction == 0.4 and small.training.focus_size == (64, 64)
    whole = derive_plan(with_sizes(facts, 14.0, 1.0, 40.0))
    assert whole.training.crop_size == (160, 160) and "whole slices" in whole.reasons["training.crop_size"]
    assert whole.model.coarsest_stride == 16 and whole.model.roi_canonical_size == 224


def test_a_pixel_that_the_user_chose_is_what_everything_fits(facts: Fingerprint) -> None:
    fine, coarse = derive_plan(facts, pixel_mm=1.0), derive_plan(facts, pixel_mm=2.0)
    assert fine.input.spacing_mm == (1.0, 1.0)
    ratio = fine.model.anchor_sizes[-1][-1] / coarse.model.anchor_sizes[-1][-1]
    assert ratio == pytest.approx(2.0, rel=0.02)
    assert fine.training.crop_size[0] > coarse.training.crop_size[0]


def test_context_follows_the_slice_distance(facts: Fingerprint) -> None:
    assert derive_plan(facts).input.context_mm == (-5.0, 0.0, 5.0)
    flat = [dataclasses.replace(case, shape=(1, 60, 68)) for case in facts.cases]
    assert derive_plan(together(flat)).input.context_mm == (0.0,)


def test_a_derived_plan_builds_and_survives_its_file(plan: Plan, tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "plan.yaml").write_text(plan.to_yaml(), encoding="utf-8")
    assert load_plan(tmp_path / "plan.yaml") == plan
    small = plan.with_overrides({"model.fpn_channels": 32, "model.box_head_channels": 32})
    assert build_mask_rcnn(small).channels == plan.input.channels


def test_settings_that_no_plan_has_are_refused() -> None:
    check_fields(["model.backbone", "input.spacing_mm", "training.steps"])
    for key in ("model.backbon", "backbone", "model.backbone.depth", "", "training."):
        with pytest.raises(ConfigError, match="is unknown; the fields are those of plan.yaml"):
            check_fields(["training.seed", key])


def test_one_case_of_one_object_makes_a_plan() -> None:
    volume, truth = simple_case(0)
    one = InstanceSet.from_masks([(2, truth.full_mask(3))], volume, LabelTable([LABELS[2]]))
    plan = derive_plan(together([look_at_one(volume, one)], one.labels))
    assert plan.inference.detections_per_slice >= 2 and plan.labels == one.labels
