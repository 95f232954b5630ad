"""Training samples: which slice and crop, and its input and objects.

Every random choice of sample n comes from (seed, n) alone: not from the worker that makes it, not from
the samples before it. A run can therefore go on at any sample.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from medseg.data.cache import CachedCase
from medseg.data.context import network_input
from medseg.data.transforms import OVERSIZE, augment, build_augmentation
from medseg.errors import InputError
from medseg.values.plan import Plan

#: An object is a target where this share of it, and this many pixels, lie in the crop.
MIN_VISIBLE_SHARE = 0.2
MIN_VISIBLE_PIXELS = 3.0
#: An object is small where a focused crop is this many times as large.
FOCUS_MARGIN = 3.0


class Sample(NamedTuple):
    """One training slice.

    image [C, H, W] float32; boxes [G, 4] in pixels; classes [G] int64 in 1..K; masks [G, H, W] 0..1; covered
    [K, H, W] 0..1, the share of each pixel that any object of a class covers, those cut off too far to be targets
    included; seed of what is drawn at random in its losses.
    """

    image: Tensor
    boxes: Tensor
    classes: Tensor
    masks: Tensor
    covered: Tensor
    seed: int


class _Place(NamedTuple):
    case: int
    slice_index: int
    row: float
    column: float
    size: tuple[int, int]


class SliceDataset(Dataset[Sample]):
    """``length`` samples drawn from prepared cases: a share around objects, the rest anywhere."""

    def __init__(self, cases: Sequence[CachedCase], plan: Plan, length: int, seed: int):
        self.cases = list(cases)
        self.plan = plan
        self.length = length
        self.seed = seed
        self.class_of = {label: i + 1 for i, label in enumerate(plan.labels.ids)}
        training = plan.training
        self.augmentation = (
            {size: build_augmentation(training, size) for size in {training.crop_size, training.focus_size}}
            if training.augment
            else None
        )
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
        missing = [plan.labels[label].name for label, found in self.by_label.items() if not found]
        if missing:
            raise InputError(
                f"labels {missing} occur in no training case; take them out of the label table or add cases with them"
            )

        counts = np.array([len(self.by_label[label]) for label in plan.labels.ids], np.float64)
        weights = counts ** (1 - training.class_balance)
        self.label_chance = weights / weights.sum()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, index])
        place = self._choose(rng)
        return self._cut(place, int(rng.integers(2**32)))

    def origin(self, index: int) -> tuple[str, int]:
        """Return the case that sample ``index`` is from, and the slice, counted from 0 in the plan's orientation."""
        place = self._choose(np.random.default_rng([self.seed, index]))
        return self.cases[place.case].name, place.slice_index

    def _choose(self, rng: np.random.Generator) -> _Place:
        training = self.plan.training
        focused = bool(self.small) and training.focus_fraction > 0 and rng.random() < training.focus_fraction
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
        oversize = OVERSIZE if self.augmentation else 1.0
        size = [int(np.ceil(n * oversize / 2)) * 2 for n in place.size]
        case = self.cases[place.case]
        first = [round(place.row - size[0] / 2), round(place.column - size[1] / 2)]
        window, padding = _window(first, size, case.array.shape[2:])
        array = case.array[:, :, window[0], window[1]]
        image = network_input(array, place.slice_index, case.slice_spacing_mm, self.plan.input)
        image = np.pad(image, ((0, 0), *padding), mode="edge")
        classes, masks = [], []
        for label, mask in self._objects(case, place.slice_index, first, size):
            classes.append(self.class_of[label])
            masks.append(mask)
        stack = np.stack(masks) if masks else np.zeros((0, *size), np.float32)
        if self.augmentation:
            pixels, shares = augment(self.augmentation[place.size], image, stack, seed)
        else:
            pixels, shares = torch.from_numpy(image), torch.from_numpy(stack)
        numbers = torch.tensor(classes, dtype=torch.int64)
        covered = torch.zeros((len(self.class_of), *shares.shape[1:]))
        for number, share in zip(classes, shares, strict=True):
            torch.maximum(covered[number - 1], share, out=covered[number - 1])
        return _targets(pixels, numbers, shares, covered, stack.sum(axis=(1, 2)), seed)

    @staticmethod
    def _objects(
        case: CachedCase, index: int, first: list[int], size: list[int]
    ) -> list[tuple[int, NDArray[np.float32]]]:
        found = []
        for item in case.objects:
            z = index - item.offset[0]
            if not 0 <= z < item.shape[0] or not item.areas[z]:
                continue
            plane = item.plane(index)
            offset = [item.offset[1] - first[0], item.offset[2] - first[1]]
            start = [max(0, o) for o in offset]
            stop = [min(n, o + m) for n, o, m in zip(size, offset, plane.shape, strict=True)]
            if stop[0] <= start[0] or stop[1] <= start[1]:
                continue
            part = plane[start[0] - offset[0] : stop[0] - offset[0], start[1] - offset[1] : stop[1] - offset[1]]
            if not part.any():
                continue
            mask = np.zeros(size, np.float32)
            mask[start[0] : stop[0], start[1] : stop[1]] = part
            found.append((item.label, mask))
        return found


def _window(
    first: list[int], size: list[int], shape: tuple[int, ...]
) -> tuple[tuple[slice, slice], tuple[tuple[int, int], tuple[int, int]]]:
    """Return the part of a window that lies in the slice, and what to pad around it."""
    parts, padding = [], []
    for start, length, limit in zip(first, size, shape, strict=True):
        low = min(max(start, 0), limit - 1)
        high = max(min(start + length, limit), low + 1)
        parts.append(slice(low, high))
        before = max(low - start, 0)
        padding.append((before, length - before - (high - low)))
    return (parts[0], parts[1]), (padding[0], padding[1])


def _targets(
    image: Tensor, classes: Tensor, masks: Tensor, covered: Tensor, before: NDArray[np.float32], seed: int
) -> Sample:
    """Box the objects that are still to be seen after cropping and augmentation."""
    solid = masks >= 0.5
    pixels = solid.sum(dim=(1, 2))
    visible = (pixels >= MIN_VISIBLE_PIXELS) & (pixels >= MIN_VISIBLE_SHARE * torch.from_numpy(before))
    solid, masks, classes = solid[visible], masks[visible], classes[visible]
    boxes = torch.zeros((len(solid), 4))
    for axis, columns in ((2, (1, 3)), (1, (0, 2))):
        hit = solid.any(dim=axis)
        boxes[:, columns[0]] = hit.float().argmax(dim=1).float()
        boxes[:, columns[1]] = (hit.shape[1] - hit.flip(1).float().argmax(dim=1)).float()
    return Sample(image, boxes, classes, masks, covered, seed)
