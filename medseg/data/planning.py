"""From a fingerprint to a Plan: each choice by a rule, with its reason in words.

docs/planning.md has the rules in a table. What the network sees is decided here, the rest in `planning_rules`.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from medseg.data.fingerprint import CT_AIR, Fingerprint
from medseg.data.planning_rules import inference_plan, linking_plan, model_plan, training_plan
from medseg.data.planning_scale import Scale, small_side_mm
from medseg.values.plan import InputPlan, Plan

#: Pixels a side to which slices (of average area) are sampled down, and up to which they are sampled up so that small
#: objects cover enough cells.
LARGEST_SIDE = 512
#: Cells of the pyramid's finest level that the side of the small objects should cover (10 % of a class, each in its
#: largest slice): those that the box head looks at.
BOX_CELLS = 7
#: The same for the mask head; where slices are so small that it costs little, they are sampled up to it at stride 4.
MASK_CELLS = 14
#: Pixels a side of slices for which that is little.
CHEAP_SIDE = 224
#: Pixels that the side of the small objects must cover whatever it costs.
FEWEST_PIXELS = 6.0
#: No more than so many pixels are made of one, each way: there is nothing more to see.
MOST_UPSAMPLING = 4.0
#: What the narrow HU window shows beyond the bulk of the values under the masks.
NARROW_MARGIN_HU = 30.0
#: A second context plane each side is taken where it lies within this distance, mm: noise averages out, and a small
#: lesion has ended while a vessel goes on.
CONTEXT_MM = 8.0


#: Slices are cut across an axis that is so many times coarser than the next; else towards the head.
COARSER = 1.5
#: Orientations by the axis (head, posterior, left) that the slices follow.
ORIENTATIONS = ("HPL", "PFL", "LFP")
#: The place in ``HPL`` of the axis along which a letter lies.
PATIENT_AXIS = {"H": 0, "F": 0, "P": 1, "A": 1, "L": 2, "R": 2}


def best_orientation(facts: Fingerprint) -> str:
    """Return in which orientation the slices of most cases are those of the scanner."""
    return scanner_orientation((case.spacing_mm, case.shape, facts.orientation) for case in facts.cases)


def scanner_orientation(grids: Iterable[tuple[Sequence[float], Sequence[int], str]]) -> str:
    """Return in which orientation the slices of most grids are those of the scanner.

    Pictures as thick as one voxel are slices across that axis.

    Args:
        grids: spacing (mm), shape and orientation, such as ``HPL``, of each, all by array axis.
    """
    votes: Counter[int] = Counter()
    for spacing_mm, shape, letters in grids:
        steps = [0.0] * 3
        for step, size, letter in zip(spacing_mm, shape, letters, strict=True):
            steps[PATIENT_AXIS[letter]] = np.inf if size == 1 else step
        second, coarsest = sorted(steps)[1:]
        votes[steps.index(coarsest) if coarsest >= COARSER * second else 0] += 1
    return ORIENTATIONS[max(range(3), key=lambda axis: (votes[axis], -axis))]


def derive_plan(facts: Fingerprint, *, pixel_mm: float | None = None) -> Plan:
    """Decide everything from a cohort's fingerprint.

    Args:
        facts: of the cohort, taken in the plan's orientation.
        pixel_mm: the pixel that the user decided on, to which everything in pixels then fits; None: by rule.
    """
    reasons: dict[str, str] = {}
    pixel = _pixel_mm(facts, reasons) if pixel_mm is None else pixel_mm
    z, y, x = (float(np.median([case.spacing_mm[axis] for case in facts.cases])) for axis in range(3))
    reasons["input.orientation"] = (
        f"slices across the coarsest axis, else towards the head: median {z:.3g} x {y:.3g} x {x:.3g} mm this way"
    )
    network_input = _input(facts, pixel, reasons)
    scale = Scale.of(facts, pixel)
    model = model_plan(facts, scale, reasons)
    return Plan(
        labels=facts.labels,
        input=network_input,
        model=model,
        training=training_plan(facts, scale, model, reasons),
        inference=inference_plan(facts, scale, reasons),
        linking=linking_plan(facts, reasons),
        reasons=reasons,
    )


def _pixel_mm(facts: Fingerprint, reasons: dict[str, str]) -> float:
    native = float(np.median([min(case.spacing_mm[1:]) for case in facts.cases]))
    side = float(np.sqrt(np.mean([np.prod(case.body_mm) for case in facts.cases])))
    name, small = small_side_mm(facts)
    pixel, reason = native, f"the median pixel of the cohort, {native:.3g} mm"
    if side / native > LARGEST_SIDE:
        pixel = side / LARGEST_SIDE
        reason = f"slices of {side:.0f} mm a side on average in {LARGEST_SIDE} pixels"
    least = native / MOST_UPSAMPLING
    wishes = (
        (small / (4 * MASK_CELLS), side / CHEAP_SIDE, f"{MASK_CELLS} cells of stride 4, as the mask head sees them"),
        (small / (2 * BOX_CELLS), side / LARGEST_SIDE, f"{BOX_CELLS} cells of stride 2, as the box head sees them"),
        (small / FEWEST_PIXELS, 0.0, f"{FEWEST_PIXELS:.0f} pixels at least"),
    )
    for wish, affordable, cells in wishes:
        finer = max(wish, affordable, least)
        if finer < 0.95 * pixel:  # a little is not worth the interpolation
            pixel = finer
            limit = (
                "" if finer == wish
                else f"; {MOST_UPSAMPLING:.0f} times finer is the most" if finer == least
                else f"; slices stay at {side / finer:.0f} pixels a side on average"
            )  # fmt: skip
            reason = (
                f"small objects of {name!r} have a side of {small:.3g} mm, which should cover {cells}{limit} "
                f"(the cohort's pixel is {native:.3g} mm)"
            )
    pixel = float(f"{pixel:.3g}")
    reasons["input.spacing_mm"] = f"{reason}; small objects cover {small / pixel:.0f} pixels"
    return pixel


def _input(facts: Fingerprint, pixel: float, reasons: dict[str, str]) -> InputPlan:
    windows = _windows(facts, reasons) if facts.is_ct else None
    ct = {} if windows is None else {"windows": windows, "air_threshold": CT_AIR}
    if windows is None:
        reasons["input.intensity"] = (
            f"values reach below -200 in {sum(min(case.lowest) < -200 for case in facts.cases)} of {len(facts.cases)} "
            "cases, so this is not CT: each volume to mean 0, SD 1"
        )
    else:
        reasons["input.intensity"] = "air below -200 in every case, so CT in HU"
        reasons["input.air_threshold"] = "CT: air around the patient is left out"
    return InputPlan(
        orientation=facts.orientation,
        channel_names=facts.channels,
        spacing_mm=(pixel, pixel),
        context_mm=_context(facts, reasons),
        intensity="zscore" if windows is None else "window",
        **ct,
    )


def _context(facts: Fingerprint, reasons: dict[str, str]) -> tuple[float, ...]:
    slice_mm = float(np.median([case.spacing_mm[0] for case in facts.cases]))
    if facts.single_slices:
        reasons["input.context_mm"] = "cases of a single slice have no neighbours"
        return (0.0,)
    step = float(f"{max(slice_mm, 2.0):.3g}")
    planes = 2 if 2 * step <= CONTEXT_MM else 1
    reasons["input.context_mm"] = (
        f"{planes} {'planes' if planes > 1 else 'plane'} each side, within {CONTEXT_MM:g} mm or the next slice; the "
        f"median slice distance is {slice_mm:.3g} mm"
    )
    return tuple(step * i for i in range(-planes, planes + 1))


def _windows(facts: Fingerprint, reasons: dict[str, str]) -> tuple[tuple[float, float], ...]:
    values = np.concatenate([facts.values(channel) for channel in range(len(facts.channels))])
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.5)))
    margin = 0.15 * (high - low) + 20
    windows = [_rounded(low - margin, high + margin)]
    reasons["input.windows"] = f"99 % of the values under the masks lie in {low:.0f}..{high:.0f} HU, plus a margin"
    inner = [float(v) for v in np.percentile(values, (10, 75))]
    if high - low > 2 * (inner[1] - inner[0] + 2 * NARROW_MARGIN_HU):
        windows.append(_rounded(inner[0] - NARROW_MARGIN_HU, inner[1] + NARROW_MARGIN_HU))
        reasons["input.windows"] += (
            f"; a second, narrow one shows low contrast where most values are ({inner[0]:.0f}..{inner[1]:.0f})"
        )
    return tuple(windows)


def _rounded(low: float, high: float) -> tuple[float, float]:
    return float(math.floor(low / 10) * 10), float(math.ceil(high / 10) * 10)
