"""One training slice as a loader's worker hands it over: small, masks cut to what is seen of them."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Patch(NamedTuple):
    """What a sample shows of an object.

    number: its class, 1..K; share [h, w] uint8: how much of each pixel it covers, 255 for all of it; corner: (row,
    column) of the patch in the sample.
    """

    number: int
    share: NDArray[np.uint8]
    corner: tuple[int, int]


class Sample(NamedTuple):
    """One training slice.

    image [C, H, W] float32; boxes [G, 4] float32 in pixels; patches: those of the G objects to be found, in the order
    of their boxes, and then of objects cut off too far to be targets; seed of what is drawn at random in its losses.

    Whole masks would be ten times as much to hand over. What is small is in numpy's arrays: they travel with the
    message, where each tensor needs a file descriptor of its own.
    """

    image: Tensor
    boxes: NDArray[np.float32]
    patches: tuple[Patch, ...]
    seed: int

    def classes(self) -> Tensor:
        """Return the classes of the objects to be found, [G] int64 in 1..K."""
        return torch.tensor([patch.number for patch in self.patches[: len(self.boxes)]], dtype=torch.int64)

    def masks(self, device: torch.device | str = "cpu") -> Tensor:
        """Return how much of each pixel each of the objects to be found covers, [G, H, W] float32 in 0..1."""
        masks = torch.zeros((len(self.boxes), *self.image.shape[1:]), device=device)
        for mask, patch in zip(masks, self.patches, strict=False):
            _paint(mask, patch)
        return masks

    def covered(self, classes: int, device: torch.device | str = "cpu") -> Tensor:
        """Return how much of each pixel any object of each of K classes covers, [K, H, W] float32 in 0..1."""
        covered = torch.zeros((classes, *self.image.shape[1:]), device=device)
        for patch in self.patches:
            _paint(covered[patch.number - 1], patch)
        return covered


def _paint(plane: Tensor, patch: Patch) -> None:
    """Enter a patch into [H, W] where it covers more than what is there."""
    (row, column), (rows, columns) = patch.corner, patch.share.shape
    part = plane[row : row + rows, column : column + columns]
    torch.maximum(part, torch.from_numpy(patch.share).to(part.device) / 255, out=part)
