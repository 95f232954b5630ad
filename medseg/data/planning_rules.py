"""Rules of the plan beyond the network's input: network, training, detection, linking, each with its reason."""

import math

import numpy as np

from medseg.data.anchor_fit import fit_anchors
from medseg.data.ceiling import mask_ceiling
from medseg.data.fingerprint import Fingerprint
from medseg.data.memory import ASSUMED_GIB, sample_bytes
from medseg.data.planning_scale import Scale
from medseg.values.linking_plan import LinkingPlan
from medseg.values.plan import InferencePlan, ModelPlan, TrainingPlan

#: Pixels of the side of the small objects below which the pyramid starts at stride 2: four cells at stride 4.
FINE_STRIDE_BELOW = 16.0
#: Largest side of a slice, and of the objects, in pixels below which the pyramid ends at stride 16.
COARSE_SLICE_BELOW, COARSE_OBJECT_BELOW = 224.0, 112.0
#: Cells of the finest level that small objects cover from which all objects are pooled as finely as published, with 14
#: to 28 cells; below, most could not be, and 7 to 14 of a coarser level know more of the surroundings.
FINE_POOLING_FROM = 10.0
#: Anchor sizes per pyramid level.
SIZES_PER_LEVEL = 3
#: Cases from which a deep backbone has enough to learn from.
DEEP_FROM = 20
#: Sides of masks to choose from, and how much mean Dice of the ceiling the smaller one may lose.
MASK_SIZES, CEILING_SLACK = (28, 56, 112), 0.005
#: Masks reach beyond their box by this share.
MASK_MARGIN = 0.1
#: Sides in pixels of training crops: the largest slice that is taken whole, and the smallest crop of a larger one.
WHOLE_SLICE, SMALLEST_CROP = 320, 256
#: Pixels of slices per step.
PIXELS_PER_STEP = 4 * 256 * 256
#: Pixels of slices that prediction takes at once.
PIXELS_AT_ONCE = 8 * 512 * 512
#: A class that covers less than this share of the slices that show it is looked at in crops of its own.
FOCUS_BELOW, FOCUS_FRACTION = 0.01, 0.4
#: Dice that a good model has. Pixels that are the object's with at least half of this probability belong to the mask of
#: highest expected Dice (Lipton et al. 2014, arXiv 1402.1892, "Thresholding classifiers to maximize F1 score").
DICE = 0.9
#: How often every labelled crop is seen, and the fewest and most steps.
PASSES, FEWEST_STEPS, MOST_STEPS = 20, 3000, 20000


def model_plan(facts: Fingerprint, scale: Scale, reasons: dict[str, str]) -> ModelPlan:
    """Choose the network."""
    finest = 2 if scale.small < FINE_STRIDE_BELOW else 4
    reasons["model.finest_stride"] = (
        f"the side of small objects is {scale.small:.3g} pixels, {scale.small / finest:.2g} cells of stride {finest}"
    )
    reasons["model.stem"] = f"the finest stride is {finest}"
    coarsest = _coarsest(scale, reasons)
    strides = tuple(s for s in (2, 4, 8, 16, 32, 64) if finest <= s <= coarsest)
    if scale.largest >= 300:
        strides += (2 * coarsest,)
    fit, plain = fit_anchors(scale.boxes, strides, SIZES_PER_LEVEL, scale.smallest, scale.largest)
    reasons["model.anchor_sizes"] = (
        f"cross-sections are {scale.smallest:.3g} to {scale.largest:.3g} pixels large (2 % to 98 %); sizes by "
        f"{fit.rule}: mean IoU with the best anchor {fit.mean_iou:.3f}, {fit.recall:.1%} of boxes reach 0.5"
        + (f" (equal ratios: {plain.mean_iou:.3f}, {plain.recall:.1%})" if fit is not plain else "")
    )
    reasons["model.anchor_ratios"] = "height / width of the cross-sections, 10 %, 50 % and 90 % or by k-means"
    deep = len(facts.cases) >= DEEP_FROM and coarsest == 32
    cases = "1 case" if len(facts.cases) == 1 else f"{len(facts.cases)} cases"
    reasons["model.backbone"] = f"{cases}, coarsest stride {coarsest}: " + (
        "enough for a deep one" if deep else "a small one learns more quickly from nothing"
    )
    # Eq. 1 of the FPN paper: objects of this side come from stride 16, so with so many cells.
    cells = scale.small / finest
    canonical = 224.0 if cells >= FINE_POOLING_FROM else 112.0
    reasons["model.roi_canonical_size"] = (
        f"objects are pooled from the level where their side covers {canonical / 16:.0f} to {canonical / 8:.0f} cells; "
        f"the small ones cover {cells:.2g} of the finest"
    )
    crowd = crowded(facts)
    before = int(min(4000, max(1000, 100 * math.ceil(crowd / 10))))
    reasons["model.proposals_before_nms"] = f"ten for each of the {crowd:.0f} objects of a crowded slice, 1000 to 4000"
    return ModelPlan(
        backbone="resnet50" if deep else "resnet18",
        stem="deep" if finest == 2 else "conv7",
        fpn_norm="group",
        semantic_head=True,
        mask_margin=MASK_MARGIN,
        finest_stride=finest,
        coarsest_stride=coarsest,
        anchor_sizes=fit.sizes,
        anchor_ratios=fit.ratios,
        roi_canonical_size=canonical,
        mask_size=_mask_size(facts, scale, reasons),
        proposals_before_nms=before,
    )


def _coarsest(scale: Scale, reasons: dict[str, str]) -> int:
    if scale.largest_side < COARSE_SLICE_BELOW:
        reasons["model.coarsest_stride"] = f"slices are up to {scale.largest_side:.0f} pixels large"
        return 16
    if scale.largest < COARSE_OBJECT_BELOW:
        reasons["model.coarsest_stride"] = (
            f"the largest objects (98 %) are {scale.largest:.0f} pixels, {scale.largest / 16:.2g} cells of stride 16"
        )
        return 16
    reasons["model.coarsest_stride"] = (
        f"slices are up to {scale.largest_side:.0f} pixels large, objects {scale.largest:.0f}"
    )
    return 32


def _mask_size(facts: Fingerprint, scale: Scale, reasons: dict[str, str]) -> int:
    """Choose the smallest mask that loses next to nothing of what masks of any size allow."""
    target = (scale.pixel_mm, scale.pixel_mm)
    means = []
    for size in MASK_SIZES:
        dice = [
            np.mean([mask_ceiling(o.mask(), o.pixel_mm, target, size, MASK_MARGIN) for f in found for o in f.outlines])
            for found in (list(facts.of(label.id)) for label in facts.labels)
        ]
        means.append(float(np.mean(dice)))
    chosen = next(i for i, mean in enumerate(means) if mean >= max(means) - CEILING_SLACK)
    number = sum(len(f.outlines) for label in facts.labels for f in facts.of(label.id))
    reasons["model.mask_size"] = (
        f"truth -> mask -> truth on {number} outlines has a mean Dice of "
        + ", ".join(f"{mean:.4f} at {size}" for mean, size in zip(means, MASK_SIZES, strict=True))
        + f"; the smallest within {CEILING_SLACK} of the best"
    )
    return MASK_SIZES[chosen]


def training_plan(facts: Fingerprint, scale: Scale, model: ModelPlan, reasons: dict[str, str]) -> TrainingPlan:
    """Choose crops, batch and steps."""
    crop = _crop(scale, reasons)
    share = float(np.minimum(1, crop[0] * crop[1] / scale.slices.prod(axis=1)).mean())
    crowd = crowded(facts) * share
    samples = min(256, max(64, 32 * math.ceil(4 * crowd / 32)))
    reasons["training.box_samples"] = (
        f"a crop of a crowded slice (95 %) has about {crowd:.0f} objects; four proposals each, 64 to 256"
    )
    each = sample_bytes(model, crop, samples)
    fitting = int(ASSUMED_GIB * 2**30 // each)
    batch = max(1, min(fitting, max(2, min(16, PIXELS_PER_STEP // (crop[0] * crop[1])))))
    reasons["training.batch_size"] = (
        f"about {PIXELS_PER_STEP // 1000} 000 pixels a step, 2 to 16 slices; a slice takes {each / 2**30:.2f} GiB in "
        f"float32, so {fitting} fit into the {ASSUMED_GIB} GiB that a GPU of 8 GB can spare (training.accumulate "
        "splits a step)"
    )
    settings: dict[str, object] = {
        **_focus(facts, scale, crop, reasons),
        **_steps(facts, share, batch, reasons),
        **_turns(facts, reasons),
    }
    return TrainingPlan.model_validate(
        {
            "slice_spacing_mm": _slice_spacing_mm(facts),
            "crop_size": crop,
            "batch_size": batch,
            "box_samples": samples,
            "box_negative_iou": 0.3,
            **settings,
        }  # fmt: skip
    )


def _slice_spacing_mm(facts: Fingerprint) -> tuple[float, float] | None:
    """Return the least and the largest slice distance, of the cases that have one."""
    found = [case.spacing_mm[0] for case in facts.cases if case.shape[0] > 1]
    return (float(f"{min(found):.3g}"), float(f"{max(found):.3g}")) if found else None


def _crop(scale: Scale, reasons: dict[str, str]) -> tuple[int, int]:
    extents = np.percentile(scale.slices, 95, axis=0)
    if extents.max() <= WHOLE_SLICE:
        reasons["training.crop_size"] = f"whole slices: 95 % are within {extents[0]:.0f} x {extents[1]:.0f} pixels"
        sides = [max(64, _up_to_32(extent)) for extent in extents]
    else:
        side = min(max(SMALLEST_CROP, _up_to_32(1.25 * scale.largest)), 512)
        reasons["training.crop_size"] = (
            f"crops: slices have up to {extents[0]:.0f} x {extents[1]:.0f} pixels (95 %), more than {WHOLE_SLICE}; "
            f"{SMALLEST_CROP} pixels, or a quarter more than the largest objects ({scale.largest:.0f}), at most 512"
        )
        sides = [min(side, max(64, _up_to_32(extent))) for extent in extents]
    return sides[0], sides[1]


def _up_to_32(pixels: float) -> int:
    return math.ceil(pixels / 32) * 32


def _focus(facts: Fingerprint, scale: Scale, crop: tuple[int, int], reasons: dict[str, str]) -> dict[str, object]:
    """Look at a class in small crops where it covers little of a slice."""
    covers = {}
    for label in facts.labels:
        shares = [
            one.areas_mm2.sum() / (len(one.per_slice) * np.prod(case.body_mm))
            for case in facts.cases
            if (one := case.classes.get(label.id)) is not None
        ]
        covers[label] = float(np.mean(shares))
    label, least = min(covers.items(), key=lambda item: item[1])
    covered = f"objects of {label.name!r} cover {least:.2%} of the slices that show them"
    side = max(64, _up_to_32(3 * float(np.median(facts.sides_mm(label.id))) / scale.pixel_mm))
    if least >= FOCUS_BELOW or side >= min(crop):
        reasons["training.focus_fraction"] = f"{covered}: no crops of their own"
        return {}
    reasons["training.focus_fraction"] = f"{covered}: more of them are seen in crops of their own"
    reasons["training.focus_size"] = f"three times the median side of {label.name!r}, at least 64 pixels"
    return {"focus_fraction": FOCUS_FRACTION, "focus_size": (side, side)}


def _steps(facts: Fingerprint, share: float, batch: int, reasons: dict[str, str]) -> dict[str, object]:
    slices = sum(int(np.count_nonzero(case.per_slice)) for case in facts.cases)
    crops = slices / share
    steps = min(MOST_STEPS, max(FEWEST_STEPS, round(PASSES * crops / batch / 100) * 100))
    reasons["training.steps"] = (
        f"{slices} slices with objects, {crops:.0f} crops of them, each seen {PASSES} times in batches of {batch}; "
        f"{FEWEST_STEPS} to {MOST_STEPS}"
    )
    return {"steps": steps}


def crowded(facts: Fingerprint) -> float:
    """Return how many objects a crowded slice has: 95 % of the slices with objects have no more."""
    return float(np.percentile(np.concatenate([case.per_slice[case.per_slice > 0] for case in facts.cases]), 95))


def _turns(facts: Fingerprint, reasons: dict[str, str]) -> dict[str, object]:
    """Mirror and turn samples where nothing has a right way up."""
    anatomy = (
        "cases have several slices" if not facts.single_slices
        else "images are DICOM" if any(case.from_dicom for case in facts.cases)
        else "labels of one object each" if any(label.kind == "single" for label in facts.labels)
        else None
    )  # fmt: skip
    if anatomy:
        reasons["training.flip_columns"] = f"{anatomy}: there may be a left and a right"
        return {}
    reasons["training.flip_columns"] = reasons["training.flip_rows"] = reasons["training.rotate_degrees"] = (
        "single slices that are not DICOM, and any number of objects in them: as under a microscope, no way up"
    )
    return {"flip_columns": True, "flip_rows": True, "rotate_degrees": 180.0}


def inference_plan(facts: Fingerprint, scale: Scale, reasons: dict[str, str]) -> InferencePlan:
    """Choose the limits of detection."""
    most = max(int(case.per_slice.max(initial=0)) for case in facts.cases)
    reasons["inference.detections_per_slice"] = f"at most {most} objects in a slice of the cohort; twice that and 10"
    reasons["inference.proposals"] = "eight proposals for each object that a slice may hold, 100 to 2000"
    pixels = float(scale.slices.prod(axis=1).max())
    batch = max(1, min(8, int(PIXELS_AT_ONCE // pixels)))
    reasons["inference.batch_size"] = f"slices have up to {pixels:.2g} pixels; {PIXELS_AT_ONCE:.2g} at once, at most 8"
    return InferencePlan(detections_per_slice=2 * most + 10, proposals=min(2000, max(100, 8 * most)), batch_size=batch)


def linking_plan(facts: Fingerprint, reasons: dict[str, str]) -> LinkingPlan:
    """Choose what becomes an object."""
    slice_mm = max(case.spacing_mm[0] for case in facts.cases)
    gap = max(6.0, float(math.ceil(slice_mm)))
    reasons["linking.gap_mm"] = f"at least one slice may be missed; slices are up to {slice_mm:.3g} mm apart"
    smallest = {
        label.id: float(f"{min(float(one.volumes_ml.min()) for one in facts.of(label.id)) / 2:.3g}")
        for label in facts.labels
        if label.kind != "single"
    }
    if smallest:
        reasons["linking.min_volume_ml"] = "half of the smallest object of the label in the cohort; some may be cut off"
    reasons["linking.mask_threshold"] = f"expected Dice is highest at half of itself; {DICE:g} is hoped for"
    return LinkingPlan(gap_mm=gap, min_volume_ml=smallest, mask_threshold=DICE / 2)
