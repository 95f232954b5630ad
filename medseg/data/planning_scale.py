"""Sizes of a cohort in the pixels that the network sees: what several rules of the plan go by."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.data.fingerprint import Fingerprint

#: Boxes per class that anchors are fitted to: quantiles of many more.
BOXES_PER_CLASS = 2000
#: Shares of a class's boxes that the anchors' range leaves out on either side.
RANGE = (2, 98)
#: Seed of the choice of boxes where there are more.
SEED = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Scale:
    """Sizes in pixels.

    Attributes:
        pixel_mm: the pixel.
        small: side of the small objects (see `small_side_mm`).
        smallest, largest: sides of cross-sections, 2 % and 98 % of the classes where they are smallest and largest.
        boxes: [n, 2] heights and widths of cross-sections, every class as often, however many objects it has.
        slices: [cases, 2] rows and columns of each case's slices without air.
    """

    pixel_mm: float
    small: float
    smallest: float
    largest: float
    boxes: NDArray[np.float64]
    slices: NDArray[np.float64]

    @classmethod
    def of(cls, facts: Fingerprint, pixel_mm: float) -> "Scale":
        """Measure a cohort in pixels of this size."""
        every = [facts.boxes_mm(label.id) / pixel_mm for label in facts.labels]
        sides = [np.percentile(np.sqrt(boxes.prod(axis=1)), RANGE) for boxes in every]
        rng = np.random.default_rng(SEED)
        number = min(BOXES_PER_CLASS, max(len(boxes) for boxes in every))
        return cls(
            pixel_mm=pixel_mm,
            small=small_side_mm(facts)[1] / pixel_mm,
            smallest=max(min(float(low) for low, _ in sides), 3.0),
            largest=max(max(float(high) for _, high in sides), 8.0),
            boxes=np.concatenate([_drawn(boxes, number, rng) for boxes in every]),
            slices=np.array([case.body_mm for case in facts.cases]) / pixel_mm,
        )

    @property
    def largest_side(self) -> float:
        """Side of the largest slice."""
        return float(self.slices.max())


def small_side_mm(facts: Fingerprint) -> tuple[str, float]:
    """Return the class with the smallest objects and their side: 10 % of them are smaller in their largest slice."""
    return min(
        ((label.name, float(np.percentile(facts.sides_mm(label.id), 10))) for label in facts.labels),
        key=lambda item: item[1],
    )


def _drawn(boxes: NDArray[np.float64], number: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return ``number`` boxes: all of them as often as they go in, and some once more."""
    whole, rest = divmod(number, len(boxes))
    some = boxes[np.sort(rng.permutation(len(boxes))[:rest])]
    return np.concatenate([np.repeat(boxes, whole, axis=0), some])
