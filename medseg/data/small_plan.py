"""A plan's small sibling: what two CPU cores can train in about an hour."""

from medseg.values.plan import Plan

#: Pixels of training crops in all; half as many where the pyramid starts at stride 2, which takes about twice as long.
PIXELS = 500e6
#: The network's widths: a quarter of the multiplications of the published ones, and as good where classes are few.
WIDTHS = {"model.fpn_channels": 128, "model.mask_head_channels": 128, "model.box_head_channels": 256}
#: Proposals per sample; half of them positive, so that the mask head learns from as many as in the large plan.
MOST_BOX_SAMPLES, POSITIVE = 128, 0.5


def small_plan(plan: Plan) -> Plan:
    """Return the plan with a narrow network, a short training and an average of the weights that fits it.

    What the network sees, its anchors and masks, and all limits stay.
    """
    training = plan.training
    pixels = PIXELS / (2 if plan.model.finest_stride == 2 else 1)
    each = training.crop_size[0] * training.crop_size[1] * training.batch_size
    steps = min(training.steps, max(500, round(pixels / each / 100) * 100))
    small = {
        **WIDTHS,
        "model.backbone": "resnet18",
        "training.box_samples": min(MOST_BOX_SAMPLES, training.box_samples // 2),
        "training.box_positive_fraction": POSITIVE,
        "training.steps": steps,
        "training.ema_decay": 0.995,
    }
    reasons = {
        "model.backbone": "small plan: the smallest",
        "model.fpn_channels": "small plan: half the published width, as in the heads",
        "training.box_samples": f"small plan: half of {training.box_samples}, at most {MOST_BOX_SAMPLES}",
        "training.box_positive_fraction": "small plan: as many positives among fewer proposals",
        "training.steps": f"small plan: {pixels / 1e6:.0f} million pixels of crops in place of {training.steps} steps",
        "training.ema_decay": "small plan: weights are averaged over fewer steps",
    }
    changed = plan.with_overrides(small)
    return changed.model_copy(update={"reasons": {**changed.reasons, **reasons}})
