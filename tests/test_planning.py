"""Fingerprint and plan: facts measured right, and choices that fit them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from highdicom import Volume
from network_fixtures import LABELS, simple_case

from medseg.data.anchor_fit import best_iou, fit_anchors
from medseg.data.ceiling import mask_ceiling
from medseg.data.cohort import find_cohort
from medseg.data.cohort_plan import check_plan_fits, plan_cohort
from medseg.data.fingerprint import CaseMeasures, Fingerprint, Outline, fingerprint, look_at
from medseg.data.memory import sample_bytes
from medseg.data.planning import derive_plan
from medseg.errors import ConfigError
from medseg.labels import LabelTable
from medseg.models.heads import Target
from medseg.models.mask_rcnn import build_mask_rcnn
from medseg.values.instances import InstanceSet
from medseg.values.plan import InputPlan, ModelPlan, Plan, check_fields, load_plan


def look_at_one(volume: Volume, truth: InstanceSet) -> CaseMeasures:
    return look_at((volume,), truth, "HPL")


def together(cases: list[CaseMeasures], labels: LabelTable = LABELS) -> Fingerprint:
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
    assert derive_plan(together(flat)).training.slice_spacing_mm is None
    thin = dataclasses.replace(facts.cases[0], spacing_mm=(1.25, *facts.cases[0].spacing_mm[1:]))
    assert derive_plan(together([*facts.cases, thin, *flat])).training.slice_spacing_mm == (1.25, 5.0)


def test_a_derived_plan_builds_and_survives_its_file(plan: Plan, tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "plan.yaml").write_text(plan.to_yaml(), encoding="utf-8")
    assert load_plan(tmp_path / "plan.yaml") == plan
    small = plan.with_overrides({"model.fpn_channels": 32, "model.box_head_channels": 32})
    assert build_mask_rcnn(small).channels == plan.input.channels


def test_settings_that_no_plan_has_are_refused() -> None:
    check_fields(["model.backbone", "input.spacing_mm", "training.steps"])
    for key in ("model.backbon", "backbone", "model.backbone.depth", "", "training."):
        with pytest.raises(ConfigError, match="is unknown.*; the fields are those of plan.yaml"):
            check_fields(["training.seed", key])


def flat(facts: Fingerprint, kind: str, from_dicom: bool = False, slices: int = 1) -> Plan:
    cases = [dataclasses.replace(case, shape=(slices, 60, 68), from_dicom=from_dicom) for case in facts.cases]
    labels = LabelTable(dataclasses.replace(label, kind=kind) for label in LABELS)
    return derive_plan(together(cases, labels))


def test_only_what_has_no_way_up_is_mirrored_and_turned(facts: Fingerprint) -> None:
    cells = flat(facts, "ids").training
    assert (cells.flip_columns, cells.flip_rows, cells.rotate_degrees) == (True, True, 180)
    for other, why in (
        (flat(facts, "single"), "labels of one object each"),  # an X-ray, perhaps
        (flat(facts, "ids", from_dicom=True), "DICOM"),
        (flat(facts, "ids", slices=2), "several slices"),
    ):
        assert (other.training.flip_columns, other.training.flip_rows) == (False, False)
        assert why in other.reasons["training.flip_columns"]


def test_limits_follow_the_counts(facts: Fingerprint) -> None:
    crowd = [dataclasses.replace(case, per_slice=np.array([0, 40, 200])) for case in facts.cases]
    many, few = derive_plan(together(crowd)), derive_plan(facts)
    assert (many.inference.detections_per_slice, many.inference.proposals) == (410, 1600)
    assert (few.inference.detections_per_slice, few.inference.proposals) == (16, 100)
    assert many.training.box_samples == 256 and few.training.box_samples == 64
    assert many.model.proposals_before_nms == 2000 and few.model.proposals_before_nms == 1000


def test_a_batch_fits_into_memory() -> None:
    model = ModelPlan(backbone="resnet50", finest_stride=2, anchor_sizes=((8.0,),) * 5, mask_size=56)
    # the figures of the module for 512 x 512 pixels and 100 proposals
    assert sample_bytes(model, (512, 512), 100) == 512 * 512 * (2230 + 1960) + int(126 * 2**20)


@pytest.mark.parametrize("finest", [2, 4])
def test_the_memory_of_a_sample_is_what_autograd_keeps(finest: int) -> None:
    """Two sizes of crop give the bytes per pixel and, at size 0, those of the proposals."""
    found = [kept_for_gradients(finest, side) for side in (64, 96)]
    per_pixel = (found[1] - found[0]) / (96**2 - 64**2)
    model = network(finest, 64).model
    stated = [sample_bytes(model, (side, side), 16) for side in (64, 96)]
    assert per_pixel == pytest.approx((stated[1] - stated[0]) / (96**2 - 64**2), rel=0.05)
    assert found[0] - per_pixel * 64**2 == pytest.approx(sample_bytes(model, (0, 0), 16), rel=0.25)


def network(finest: int, side: int) -> Plan:
    strides = [s for s in (2, 4, 8, 16, 32) if s >= finest]
    three_planes = InputPlan(spacing_mm=(1, 1), context_mm=(-1, 0, 1), intensity="zscore")
    return Plan(labels=LABELS, input=three_planes).with_overrides(
        {
            "model.backbone": "resnet18",
            "model.finest_stride": finest,
            "model.stem": "deep" if finest == 2 else "conv7",
            "model.fpn_norm": "group",
            "model.semantic_head": True,
            "model.anchor_sizes": [[4.0 * s] for s in strides],
            "training.box_samples": 16,
            "training.proposals": 30,
        }
    )  # fmt: skip


def kept_for_gradients(finest: int, side: int) -> int:
    """Return the bytes of the tensors that autograd saves for one sample, parameters apart."""
    model = build_mask_rcnn(network(finest, side)).train()
    box = torch.tensor([[10.0, 12.0, 40.0, 50.0]])
    mask = torch.zeros((1, side, side))
    mask[:, 12:50, 10:40] = 1
    target = Target(boxes=box, classes=torch.tensor([1]), masks=mask, covered=torch.cat([mask, 0 * mask]))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = model.losses(torch.zeros((1, 3, side, side)), [target])
    assert losses
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights)


def test_anchors_a_quarter_of_a_stride_off() -> None:
    """A box of 10 x 10 and its equal at stride 8, 2 pixels beside it each way: 8 x 8 of 2 x 100 - 64."""
    assert best_iou(np.array([[10.0, 10.0]]), ((10.0,),), (1.0,), (8,))[0] == pytest.approx(64 / 136)
    assert best_iou(np.array([[3.0, 3.0]]), ((3.0,),), (1.0,), (16,))[0] == 0  # 4 pixels off: nothing is shared
    # inside a larger one nothing is lost by the shift
    assert best_iou(np.array([[4.0, 9.0]]), ((16.0,),), (1.0,), (4,))[0] == pytest.approx(36 / 256)


def test_anchors_go_where_the_boxes_are(rng: np.random.Generator) -> None:
    sides = np.concatenate([rng.normal(12, 1, 300), rng.normal(90, 5, 300)])
    fit, plain = fit_anchors(np.stack([sides, sides], axis=1), (4, 8), 2, 9.0, 102.0)
    assert fit.rule == "k-means" and fit.mean_iou > plain.mean_iou + 0.05
    sizes = np.array(fit.sizes).ravel()
    assert np.count_nonzero(sizes < 20) == 2 and np.count_nonzero(sizes > 70) == 2  # none where there are no boxes
    assert fit.recall == 1 and list(sizes) == sorted(sizes)
    one, plain = fit_anchors(np.full((50, 2), 20.0), (4, 8), 2, 20.0, 20.0)
    assert one == plain and one.rule == "equal ratios"


def test_the_ceiling_of_masks() -> None:
    whole = np.ones((28, 14), bool)
    assert mask_ceiling(whole, (1, 1), (1, 1), 28, 0.0) == 1  # cells of whole and half pixels
    y, x = np.indices((61, 61)) - 30
    disc = y**2 + x**2 <= 30**2
    ceilings = [mask_ceiling(disc, (1, 1), (1, 1), size, 0.1) for size in (7, 14, 28, 56)]
    assert ceilings == sorted(ceilings) and ceilings[0] < 0.99 < ceilings[2] < ceilings[3] <= 1
    coarse = mask_ceiling(disc, (1, 1), (8, 8), 28, 0.1)
    assert coarse < ceilings[0] < mask_ceiling(disc, (1, 1), (0.5, 0.5), 28, 0.1) + 0.02
    assert mask_ceiling(np.ones((1, 1), bool), (1, 1), (4, 4), 28, 0.1) == 0  # lost between the pixels


def test_larger_masks_for_outlines_that_need_them(facts: Fingerprint) -> None:
    """Combs of one-pixel teeth over 100 pixels: 28 cells cannot show them."""
    comb = np.zeros((100, 100), bool)
    comb[::2], comb[:, 0] = True, True
    outline = Outline(np.packbits(comb), (100, 100), (2.0, 2.0))
    combs = []
    for case in facts.cases:
        classes = {k: dataclasses.replace(v, outlines=(outline,)) for k, v in case.classes.items()}
        combs.append(dataclasses.replace(case, classes=classes))
    assert derive_plan(facts).model.mask_size == 28
    plan = derive_plan(together(combs), pixel_mm=2.0)
    assert plan.model.mask_size == 112 and "at 112" in plan.reasons["model.mask_size"]


def test_a_plan_for_other_labels_or_channels_is_refused(facts: Fingerprint) -> None:
    plan = derive_plan(facts)
    check_plan_fits(plan, facts, "plan.yaml")
    renamed = dataclasses.replace(facts, labels=LabelTable.from_names(["organ", "cyst"], kinds={"cyst": "ids"}))
    with pytest.raises(
        ConfigError, match=r"^plan.yaml: the plan is for the labels .*'lesion' \(ids\), the cohort has .*'cyst'"
    ):
        check_plan_fits(plan, renamed, "plan.yaml")
    two = dataclasses.replace(facts, channels=("T1", "T2"))
    with pytest.raises(ConfigError, match="for the channels image, the cohort has T1, T2; make a plan"):
        check_plan_fits(plan, two, "plan.yaml")


@pytest.mark.parametrize("name", ["mr_hippocampus", "nuclei"])
def test_the_committed_plans_are_what_the_rules_give(name: str, data_dir: Path, repository: Path) -> None:
    committed = load_plan(repository / "docs" / "plans" / f"{name}.yaml").model_dump(mode="json")
    derived = plan_cohort(find_cohort(data_dir / name), {}).model_dump(mode="json")
    assert derived.pop("reasons").keys() == committed.pop("reasons").keys()
    assert_close(derived, committed, "")


def assert_close(found: object, expected: object, place: str) -> None:
    """Compare plain data, numbers to a hundredth."""
    if isinstance(expected, dict):
        assert isinstance(found, dict) and found.keys() == expected.keys(), place
        for key, value in expected.items():
            assert_close(found[key], value, f"{place}.{key}")
    elif isinstance(expected, list):
        assert isinstance(found, list) and len(found) == len(expected), place
        for i, value in enumerate(expected):
            assert_close(found[i], value, f"{place}[{i}]")
    else:
        assert found == (pytest.approx(expected, rel=0.01) if isinstance(expected, float) else expected), place


def test_one_case_of_one_object_makes_a_plan() -> None:
    volume, truth = simple_case(0)
    one = InstanceSet.from_masks([(2, truth.full_mask(3))], volume, LabelTable([LABELS[2]]))
    plan = derive_plan(together([look_at_one(volume, one)], one.labels))
    assert plan.inference.detections_per_slice >= 2 and plan.labels == one.labels
