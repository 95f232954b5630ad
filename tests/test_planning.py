"""Fingerprint and plan: facts measured right, and choices that fit them."""

import dataclasses

import numpy as np
import pytest
from network_fixtures import HPL, LABELS, simple_case

from medseg.data.fingerprint import CaseFacts, Fingerprint, fingerprint, look_at
from medseg.data.planning import derive_plan
from medseg.errors import ConfigError, InputError
from medseg.labels import LabelTable
from medseg.models.mask_rcnn import build_mask_rcnn
from medseg.values.geometry import AxisMap, make_volume
from medseg.values.instances import InstanceSet
from medseg.values.plan import Plan, check_fields, load_plan


@pytest.fixture(scope="module")
def facts() -> Fingerprint:
    return fingerprint([look_at(*simple_case(seed), "HPL") for seed in range(3)], LABELS)


@pytest.fixture(scope="module")
def plan(facts: Fingerprint) -> Plan:
    return derive_plan(facts)


def block_case() -> tuple:
    """Two blocks in a body, sizes known by hand: 4.0 x 3.0 x 2.0 mm voxels."""
    array = np.full((6, 40, 50), -1000, np.int16)
    array[:, 10:30, 10:40] = 0
    masks = [np.zeros(array.shape, bool) for _ in range(3)]
    masks[0][1:5, 12:26, 12:30] = True
    masks[1][2, 14:18, 14:20] = masks[1][3, 14:19, 14:22] = True
    masks[2][3, 12:14, 32:36] = True
    array[masks[0]], array[masks[1]], array[masks[2]] = 100, 60, 150
    affine = np.eye(4)
    affine[:3, :3] = HPL * [4.0, 3.0, 2.0]
    volume = make_volume(array, affine, "blocks")
    labelled = [(1, masks[0]), (2, masks[1]), (2, masks[2])]
    return volume, InstanceSet.from_masks(labelled, volume, LABELS)


@pytest.mark.parametrize(
    "stored", [AxisMap(order=(0, 1, 2), flips=(False,) * 3), AxisMap(order=(2, 0, 1), flips=(True, False, True))]
)
def test_facts_are_measured_in_the_plans_orientation(stored: AxisMap) -> None:
    volume, truth = block_case()
    facts = look_at(stored.volume(volume), truth.moved(stored), "HPL")
    np.testing.assert_allclose(facts.spacing_mm, (4.0, 3.0, 2.0))
    assert facts.shape == (6, 40, 50)
    np.testing.assert_allclose(facts.body_mm, ((20 + 8) * 3.0, (30 + 8) * 2.0))  # 4 pixels of air each side
    np.testing.assert_allclose(facts.boxes_mm[1], [[14 * 3.0, 18 * 2.0]] * 4)
    np.testing.assert_allclose(facts.boxes_mm[2], [[4 * 3, 6 * 2], [5 * 3, 8 * 2], [2 * 3, 4 * 2]])
    np.testing.assert_allclose(facts.sides_mm[1], [(42 * 36) ** 0.5])
    np.testing.assert_allclose(facts.sides_mm[2], [(15 * 16) ** 0.5, (6 * 8) ** 0.5])
    assert facts.per_slice == 3 and facts.lowest == -1000
    assert set(facts.intensities) == {60.0, 100.0, 150.0}


def test_a_fingerprint_needs_every_label() -> None:
    facts = look_at(*block_case(), "HPL")
    with pytest.raises(InputError, match="no cases"):
        fingerprint([], LABELS)
    with pytest.raises(InputError, match=r"labels \['spleen'\] occur in no case"):
        fingerprint([facts], LabelTable.from_names(["organ", "lesion", "spleen"]))


def test_ct_is_known_by_its_air(facts: Fingerprint) -> None:
    assert facts.is_ct
    mr = dataclasses.replace(facts.cases[0], lowest=0.0)
    mixed = fingerprint([*facts.cases, mr], LABELS)
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
    values = np.concatenate([case.intensities for case in facts.cases])
    low, high = plan.input.windows[0]
    assert np.mean((values > low) & (values < high)) > 0.99
    assert plan.input.air_threshold is not None and plan.input.air_threshold < low


def test_small_objects_get_pixels_and_large_slices_lose_some(facts: Fingerprint) -> None:
    def with_sides(side_mm: float, spacing_mm: float, body_mm: float) -> Plan:
        case = dataclasses.replace(
            facts.cases[0],
            spacing_mm=(5.0, spacing_mm, spacing_mm),
            body_mm=(body_mm, body_mm),
            sides_mm={1: np.array([90.0]), 2: np.array([side_mm])},
        )
        return derive_plan(fingerprint([case], LABELS))

    assert with_sides(30.0, 1.0, 300.0).input.spacing_mm == (1.0, 1.0)  # as the cohort has it
    assert with_sides(30.0, 0.5, 400.0).input.spacing_mm[0] == pytest.approx(400 / 512, rel=0.01)
    small = with_sides(3.0, 1.0, 300.0)
    assert small.input.spacing_mm[0] < 1.0 and "'lesion'" in small.reasons["input.spacing_mm"]


def test_a_pixel_that_the_user_chose_is_what_everything_fits(facts: Fingerprint) -> None:
    fine, coarse = derive_plan(facts, pixel_mm=1.0), derive_plan(facts, pixel_mm=2.0)
    assert fine.input.spacing_mm == (1.0, 1.0)
    ratio = fine.model.anchor_sizes[-1][-1] / coarse.model.anchor_sizes[-1][-1]
    assert ratio == pytest.approx(2.0, rel=0.02)
    assert fine.training.crop_size[0] > coarse.training.crop_size[0]


def test_context_follows_the_slice_distance(facts: Fingerprint) -> None:
    assert derive_plan(facts).input.context_mm == (-5.0, 0.0, 5.0)
    flat = [dataclasses.replace(case, shape=(1, 60, 68)) for case in facts.cases]
    assert derive_plan(fingerprint(flat, LABELS)).input.context_mm == (0.0,)


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
    volume, truth = block_case()
    one = InstanceSet.from_masks([(2, truth.full_mask(3))], volume, LabelTable([LABELS[2]]))
    facts: CaseFacts = look_at(volume, one, "HPL")
    plan = derive_plan(fingerprint([facts], one.labels))
    assert plan.inference.detections_per_slice >= 2 and plan.labels == one.labels
