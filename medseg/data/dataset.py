"""Training samples: which slice and crop, and its input and objects.

Every random choice of sample n comes from (seed, n) alone: not from the worker that makes it, not from
the samples before it. A run can therefore go on at any sample.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from medseg.data.cache import CachedCase
from medseg.data.context import network_input
from medseg.data.sample import Patch, Sample
from medseg.data.transforms import change_intensities
from medseg.data.warp import Crop, View, draw_warp
from medseg.errors import InputError
from medseg.values.plan import Plan

#: An object is a target where this share of it, and this many pixels, lie in the crop.
MIN_VISIBLE_SHARE = 0.2
MIN_VISIBLE_PIXELS = 3.0
#: A pixel belongs to an object that covers half of it.
SOLID = 128
#: An object is small where a focused crop is this many times as large.
FOCUS_MARGIN = 3.0


class _Place(NamedTuple):
    case: int
    slice_index: int
    row: float
    column: float
    size: tuple[int, int]


class SliceDataset(Dataset[Sample]):
    """``length`` samples drawn from prepared cases, by the shares of the plan (``training``).

    ``focus_fraction``, of whole batches: around a small object, each alike. Of the others, ``object_fraction``: around
    an object of a class drawn by ``class_balance``, each object of the class alike, in any of its slices alike. Of the
    rest, ``empty_fraction``: in a slice without any object, of cases that have such slices, each case alike. What then
    remains is drawn anywhere: each case alike, each of its slices alike, objects or not. Crops of the last two lie
    anywhere in the slice.
    """

    def __init__(self, cases: Sequence[CachedCase], plan: Plan, length: int, seed: int):
        self.cases = list(cases)
        self.plan = plan
        self.length = length
        self.seed = seed
        self.class_of = {label: i + 1 for i, label in enumerate(plan.labels.ids)}
        training = plan.training
        self.slices = [[o.slices() for o in case.objects] for case in self.cases]
        self.by_label = {
            label: [(c, o) for c, case in enumerate(self.cases) for o, x in enumerate(case.objects) if x.label == label]
            for label in plan.labels.ids
        }
        self.small = [
            (c, o)
            for c, case in enumerate(self.cases)
            for o, x in enumerate(case.objects)
            if all(FOCUS_MARGIN * n <= m for n, m in zip(x.shape[1:], training.focus_size, strict=True))
        ]
        self.empty = [(c, z) for c, case in enumerate(self.cases) if len(z := case.empty_slices())]
        missing = [plan.labels[label].name for label, found in self.by_label.items() if not found]
        if missing:
            raise InputError(
                f"labels {missing} occur in no training case, or only in objects smaller than a pixel; add cases with "
                "them, hold out others (--fold), or take them out of the label table"
            )

        counts = np.array([len(self.by_label[label]) for label in plan.labels.ids], np.float64)
        weights = counts ** (1 - training.class_balance)
        self.label_chance = weights / weights.sum()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, index])
        place = self._choose(index, rng)
        return self._cut(place, int(rng.integers(2**32)))

    def origin(self, index: int) -> tuple[str, int]:
        """Return the case that sample ``index`` is from, and the slice, counted from 0 in the plan's orientation."""
        place = self._choose(index, np.random.default_rng([self.seed, index]))
        return self.cases[place.case].name, place.slice_index

    def _focused(self, index: int) -> bool:
        """Tell whether a sample is a focused crop: whole batches are, spread evenly over the training.

        Samples of one size take the same time, so no thread or process waits for another, and they can be stacked.
        """
        batch, share = index // self.plan.training.batch_size, self.plan.training.focus_fraction
        return bool(self.small) and math.floor((batch + 1) * share) > math.floor(batch * share)

    def _choose(self, index: int, rng: np.random.Generator) -> _Place:
        training = self.plan.training
        focused = self._focused(index)
        shape = training.focus_size if focused else training.crop_size
        crop = np.array(shape)
        if focused or rng.random() < training.object_fraction:
            case, number = self._object(rng, focused)
            found = self.cases[case].objects[number]
            z = int(rng.choice(self.slices[case][number]))
            plane = found.plane(z)
            centre = np.array([(hit[0] + hit[-1] + 1) / 2 for hit in map(np.flatnonzero, (plane.any(1), plane.any(0)))])
            centre += np.array(found.offset[1:]) + rng.uniform(-0.35, 0.35, 2) * crop
        else:
            if self.empty and training.empty_fraction > 0 and rng.random() < training.empty_fraction:
                case, slices = self.empty[rng.integers(len(self.empty))]
                z = int(rng.choice(slices))
            else:
                case = int(rng.integers(len(self.cases)))
                z = int(rng.integers(self.cases[case].array.shape[1]))
            centre = rng.uniform(0, 1, 2) * self.cases[case].array.shape[2:]
        # Keep the crop inside the slice where the slice is larger; centre it where it is smaller.
        half = crop / 2
        size = np.array(self.cases[case].array.shape[2:])
        centre = np.where(size <= crop, size / 2, np.clip(centre, half, np.maximum(size - half, half)))
        return _Place(case, z, float(centre[0]), float(centre[1]), shape)

    def _object(self, rng: np.random.Generator, focused: bool) -> tuple[int, int]:
        if focused:
            return self.small[rng.integers(len(self.small))]
        label = int(rng.choice(self.plan.labels.ids, p=self.label_chance))
        return self.by_label[label][rng.integers(len(self.by_label[label]))]

    def _cut(self, place: _Place, seed: int) -> Sample:
        case = self.cases[place.case]
        training = self.plan.training
        rng = np.random.default_rng(seed)
        rows, columns = place.size
        first = (round(place.row - rows / 2), round(place.column - columns / 2))
        view: View = Crop(first, place.size)
        if training.augment:
            view = draw_warp(
                first,
                place.size,
                training.augmentation,
                rotate_degrees=training.rotate_degrees,
                flip_rows=training.flip_rows,
                flip_columns=training.flip_columns,
                rng=rng,
            )
        window = view.window(case.array.shape[2:])
        array = case.array[:, :, window[0], window[1]]
        pixels = network_input(array, place.slice_index, case.slice_spacing_mm, self.plan.input)
        image = view.image(pixels, window)
        if training.augment:
            image = change_intensities(image, training.augmentation, rng)
        return self._sample(image, case, place, view, seed)

    def _sample(self, image: Tensor, case: CachedCase, place: _Place, view: View, seed: int) -> Sample:
        """Box the objects that are still to be seen in a view of a slice."""
        targets: list[tuple[list[int], Patch]] = []
        others: list[Patch] = []
        for item in case.objects:
            z = place.slice_index - item.offset[0]
            if not 0 <= z < item.shape[0] or not item.areas[z]:
                continue
            seen = view.see(item.plane(place.slice_index), item.offset[1:])
            if seen is None:
                continue
            patch = Patch(self.class_of[item.label], seen.share, seen.corner)
            solid = seen.share >= SOLID
            if np.count_nonzero(solid) >= max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_SHARE * seen.whole):
                targets.append((_box(solid, seen.corner), patch))
            else:
                others.append(patch)
        boxes = np.array([box for box, _ in targets], np.float32).reshape(-1, 4)
        return Sample(image, boxes, (*(patch for _, patch in targets), *others), seed)


def _box(solid: NDArray[np.bool_], corner: tuple[int, int]) -> list[int]:
    """Return x0, y0, x1, y1 around the pixels of a patch at (row, column)."""
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    row, column = corner
    return [column + int(columns[0]), row + int(rows[0]), column + int(columns[-1]) + 1, row + int(rows[-1]) + 1]
