"""From a fingerprint to a Plan: each choice by a rule, with its reason in words."""

import math

import numpy as np

from medseg.data.fingerprint import CT_AIR, Fingerprint
from medseg.values.plan import InferencePlan, InputPlan, LinkingPlan, ModelPlan, Plan, TrainingPlan

#: Pixels that the side of the small objects (10 % of a class, each in its largest slice) should cover.
SMALL_OBJECT_PIXELS = 6.0
#: Slices larger than this (pixels a side) are sampled down, unless small objects forbid it.
LARGEST_SIDE = 512
#: What the narrow HU window shows beyond the bulk of the values under the masks.
NARROW_MARGIN_HU = 30.0
#: Pixels of the side of the small objects below which the pyramid starts at stride 2.
FINE_STRIDE_BELOW = 12.0
#: Largest side of a slice in pixels below which the pyramid ends at stride 16.
COARSE_STRIDE_BELOW = 224.0
#: A second context plane each side is taken where it lies within this distance, mm: noise averages out, and a small
#: lesion has ended while a vessel goes on.
CONTEXT_MM = 8.0
#: Anchor sizes per pyramid level.
SIZES_PER_LEVEL = 3


def derive_plan(facts: Fingerprint, *, orientation: str = "HPL", pixel_mm: float | None = None) -> Plan:
    """Decide everything from a cohort's fingerprint.

    Args:
        facts: of the cohort, taken in ``orientation``.
        orientation: the plan's.
        pixel_mm: the pixel that the user decided on, to which everything in pixels then fits; None: by rule.
    """
    reasons: dict[str, str] = {}
    pixel = _pixel_mm(facts, reasons) if pixel_mm is None else pixel_mm
    return Plan(
        labels=facts.labels,
        input=_input(facts, orientation, pixel, reasons),
        model=_model(facts, pixel, reasons),
        training=_training(facts, pixel, reasons),
        inference=_inference(facts, reasons),
        linking=_linking(facts, reasons),
        reasons=reasons,
    )


def _median(values: list[float]) -> float:
    return float(np.median(values))


def _pixel_mm(facts: Fingerprint, reasons: dict[str, str]) -> float:
    native = _median([min(case.spacing_mm[1:]) for case in facts.cases])
    side = max(max(case.body_mm) for case in facts.cases)
    pixel, reason = native, f"the median pixel of the cohort, {native:.3g} mm"
    if side / pixel > LARGEST_SIDE:
        pixel = side / LARGEST_SIDE
        reason = f"slices of up to {side:.0f} mm in at most {LARGEST_SIDE} pixels"
    name, small = _small_side_mm(facts)
    if small / pixel < SMALL_OBJECT_PIXELS:
        pixel = max(small / SMALL_OBJECT_PIXELS, native / 4)
        reason = (
            f"small objects of {name!r} have a side of {small:.3g} mm, which should cover about "
            f"{SMALL_OBJECT_PIXELS:.0f} pixels (the cohort's pixel is {native:.3g} mm)"
        )
    reasons["input.spacing_mm"] = reason
    return float(f"{pixel:.3g}")


def _small_side_mm(facts: Fingerprint) -> tuple[str, float]:
    """Return the class with the smallest objects and their side: 10 % of them are smaller in their largest slice."""
    return min(
        ((label.name, float(np.percentile(facts.sides_mm(label.id), 10))) for label in facts.labels),
        key=lambda item: item[1],
    )


def _input(facts: Fingerprint, orientation: str, pixel: float, reasons: dict[str, str]) -> InputPlan:
    slice_mm = _median([case.spacing_mm[0] for case in facts.cases])
    if max(case.shape[0] for case in facts.cases) == 1:
        context: tuple[float, ...] = (0.0,)
        reasons["input.context_mm"] = "cases of a single slice have no neighbours"
    else:
        step = float(f"{max(slice_mm, 2.0):.3g}")
        planes = 2 if 2 * step <= CONTEXT_MM else 1
        context = tuple(step * i for i in range(-planes, planes + 1))
        reasons["input.context_mm"] = (
            f"{planes} planes each side, within {CONTEXT_MM:g} mm; the median slice distance is {slice_mm:.3g} mm"
        )
    values = np.concatenate([case.intensities for case in facts.cases])
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.5)))
    if not facts.is_ct:
        reasons["input.intensity"] = "no air below -200 in every case, so not CT: each volume to mean 0, SD 1"
        return InputPlan(orientation=orientation, spacing_mm=(pixel, pixel), context_mm=context, intensity="zscore")
    margin = 0.15 * (high - low) + 20
    windows = [_rounded(low - margin, high + margin)]
    reasons["input.windows"] = f"99 % of the values under the masks lie in {low:.0f}..{high:.0f} HU, plus a margin"
    inner = [float(v) for v in np.percentile(values, (10, 75))]
    if high - low > 2 * (inner[1] - inner[0] + 2 * NARROW_MARGIN_HU):
        windows.append(_rounded(inner[0] - NARROW_MARGIN_HU, inner[1] + NARROW_MARGIN_HU))
        reasons["input.windows"] += (
            f"; a second, narrow one shows low contrast where most values are ({inner[0]:.0f}..{inner[1]:.0f})"
        )
    reasons["input.air_threshold"] = "CT: air around the patient is left out"
    return InputPlan(
        orientation=orientation,
        spacing_mm=(pixel, pixel),
        context_mm=context,
        windows=tuple(windows),
        air_threshold=CT_AIR,
    )


def _rounded(low: float, high: float) -> tuple[float, float]:
    return float(math.floor(low / 10) * 10), float(math.ceil(high / 10) * 10)


def _model(facts: Fingerprint, pixel: float, reasons: dict[str, str]) -> ModelPlan:
    sides, ratios = [], []
    for label in facts.labels:  # every class counts alike, however many objects it has
        boxes = facts.boxes_mm(label.id) / pixel
        sides.append(np.percentile(np.sqrt(boxes.prod(axis=1)), np.linspace(2, 98, 97)))
        ratios.append(np.percentile(np.log(boxes[:, 0] / boxes[:, 1]), np.linspace(2, 98, 97)))
    small, large = float(np.concatenate(sides).min()), float(np.concatenate(sides).max())
    small, large = max(small, 3.0), max(large, 8.0)
    small_pixels = _small_side_mm(facts)[1] / pixel
    finest = 2 if small_pixels < FINE_STRIDE_BELOW else 4
    reasons["model.finest_stride"] = f"the side of the small objects is {small_pixels:.3g} pixels"
    reasons["model.stem"] = f"the finest stride is {finest}"
    side = max(max(case.body_mm) for case in facts.cases) / pixel
    coarsest = 16 if side < COARSE_STRIDE_BELOW else 32
    reasons["model.coarsest_stride"] = f"slices are up to {side:.0f} pixels large"
    levels = (3 if coarsest == 16 else 4 if large < 300 else 5) + (finest == 2)
    steps = np.geomspace(small, max(large, small * 2), levels * SIZES_PER_LEVEL)
    sizes = tuple(
        tuple(float(f"{s:.3g}") for s in steps[i : i + SIZES_PER_LEVEL])
        for i in range(0, levels * SIZES_PER_LEVEL, SIZES_PER_LEVEL)
    )
    reasons["model.anchor_sizes"] = f"objects are {small:.3g} to {large:.3g} pixels large in a slice (2 % to 98 %)"
    spread = np.exp(np.percentile(np.concatenate(ratios), (10, 50, 90)))
    reasons["model.anchor_ratios"] = "height / width of the objects: 10 %, 50 % and 90 % of the cohort"
    deep = len(facts.cases) >= 20
    reasons["model.backbone"] = f"{len(facts.cases)} cases: " + (
        "enough for a deep one" if deep else "few, so a small one"
    )
    mask_size = 56 if large > 112 else 28
    reasons["model.mask_size"] = f"the largest objects are {large:.0f} pixels; a cell should not exceed 4 pixels"
    return ModelPlan(
        backbone="resnet50" if deep else "resnet18",
        stem="deep" if finest == 2 else "conv7",
        fpn_norm="group",
        semantic_head=True,
        mask_margin=0.1,
        finest_stride=finest,
        coarsest_stride=coarsest,
        anchor_sizes=sizes,
        anchor_ratios=tuple(float(f"{r:.3g}") for r in spread),
        roi_canonical_size=112.0,
        mask_size=mask_size,
    )


def _training(facts: Fingerprint, pixel: float, reasons: dict[str, str]) -> TrainingPlan:
    size = []
    for axis in range(2):
        extent = float(np.percentile([case.body_mm[axis] for case in facts.cases], 95)) / pixel
        size.append(int(min(max(math.ceil(extent / 32) * 32, 64), 320)))
    reasons["training.crop_size"] = "slices of the cohort without air, at most 320 pixels a side"
    batch = max(2, min(16, 4 * 256 * 256 // (size[0] * size[1])))
    reasons["training.batch_size"] = "about 260 000 pixels a step"
    return TrainingPlan(crop_size=(size[0], size[1]), batch_size=batch, box_negative_iou=0.3)


def _inference(facts: Fingerprint, reasons: dict[str, str]) -> InferencePlan:
    most = max(case.per_slice for case in facts.cases)
    reasons["inference.detections_per_slice"] = f"at most {most} objects in a slice of the cohort; twice that and 10"
    reasons["inference.proposals"] = "eight proposals for each object that a slice may hold, at least 100"
    return InferencePlan(detections_per_slice=2 * most + 10, proposals=max(100, 8 * most))


def _linking(facts: Fingerprint, reasons: dict[str, str]) -> LinkingPlan:
    slice_mm = max(case.spacing_mm[0] for case in facts.cases)
    gap = max(6.0, float(math.ceil(slice_mm)))
    reasons["linking.gap_mm"] = f"at least one slice may be missed; slices are up to {slice_mm:.3g} mm apart"
    reasons["linking.min_volume_ml"] = "half of the smallest object of the label in the cohort; organs may be cut off"
    smallest = {
        label.id: float(f"{min(case.smallest_ml.get(label.id, math.inf) for case in facts.cases) / 2:.3g}")
        for label in facts.labels
        if label.kind != "single"
    }
    return LinkingPlan(gap_mm=gap, min_volume_ml=smallest)
