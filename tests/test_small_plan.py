"""The small plan: a narrow network and a short training, all else as it was."""

from network_fixtures import LABELS

from medseg.data.small_plan import PIXELS, WIDTHS, small_plan
from medseg.models.mask_rcnn import build_mask_rcnn
from medseg.values.plan import InputPlan, ModelPlan, Plan, TrainingPlan, check_fields


def plan_of(finest: int, steps: int, crop: tuple[int, int] = (224, 160), batch: int = 7, samples: int = 64) -> Plan:
    sizes = ((8.0,), (16.0,), (32.0,), (64.0,)) if finest == 2 else ((16.0,), (32.0,), (64.0,))
    model = ModelPlan(
        backbone="resnet50", finest_stride=2 if finest == 2 else 4, coarsest_stride=16, anchor_sizes=sizes, mask_size=56
    )
    return Plan(
        labels=LABELS,
        input=InputPlan(spacing_mm=(0.25, 0.25), context_mm=(-2.0, 0.0, 2.0)),
        model=model,
        training=TrainingPlan(steps=steps, crop_size=crop, batch_size=batch, box_samples=samples),
        reasons={"model.backbone": "many cases", "input.spacing_mm": "as it is"},
    )


def test_it_is_short_and_narrow() -> None:
    before = plan_of(4, 15100)
    after = small_plan(before)
    # 500e6 pixels of 7 crops of 224 x 160 are 1993 steps
    assert after.training.steps == 2000
    assert abs(after.training.steps * 7 * 224 * 160 / PIXELS - 1) < 0.03
    assert (after.training.box_samples, after.training.box_positive_fraction) == (32, 0.5)
    assert after.model.backbone == "resnet18"
    assert [getattr(after.model, key.split(".")[1]) for key in WIDTHS] == [128, 128, 256]
    weights = [sum(p.numel() for p in build_mask_rcnn(p).parameters()) for p in (before, after)]
    assert weights[1] < weights[0] / 4


def test_a_finest_stride_of_2_takes_twice_as_long() -> None:
    assert small_plan(plan_of(2, 3000, (256, 256), 4, 256)).training.steps == 1000
    assert small_plan(plan_of(2, 3000, (256, 256), 4, 256)).training.box_samples == 128
    assert small_plan(plan_of(4, 3000, (256, 256), 4)).training.steps == 1900


def test_it_never_trains_longer_than_the_plan_itself() -> None:
    assert small_plan(plan_of(4, 300, (64, 64))).training.steps == 300


def test_all_else_stays_and_every_change_has_a_reason() -> None:
    before = plan_of(4, 15100)
    after = small_plan(before)
    assert (after.input, after.inference, after.linking, after.labels) == (
        before.input, before.inference, before.linking, before.labels,
    )  # fmt: skip
    assert (after.model.anchor_sizes, after.model.mask_size) == (before.model.anchor_sizes, 56)
    check_fields(after.reasons)
    assert after.reasons["input.spacing_mm"] == "as it is"
    assert after.reasons["model.backbone"].startswith("small plan")
    assert "15100" in after.reasons["training.steps"]
    one, other = before.model_dump(), after.model_dump()
    changed = {f"{s}.{k}" for s in ("model", "training") for k in one[s] if one[s][k] != other[s][k]}
    assert changed - set(after.reasons) == {"model.mask_head_channels", "model.box_head_channels"}
