"""Detections: what the network found in one slice."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Detections:
    """Objects found in one slice; N = 0 is an ordinary value.

    Attributes:
        slice_index: which slice (first array axis) this is.
        boxes: [N, 4] float32, x1 y1 x2 y2 in pixels, continuous: pixel i covers [i, i + 1).
        scores: [N] float32 in 0..1.
        labels: [N] int64, ids of the LabelTable.
        masks: [N, M, M] float32 probabilities in box coordinates (row, column), never pasted into the slice.
    """

    slice_index: int
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.float32]

    def __post_init__(self) -> None:
        n = len(self.scores)
        if self.boxes.shape != (n, 4) or self.labels.shape != (n,) or self.scores.shape != (n,):
            raise ValueError(
                f"boxes {self.boxes.shape}, scores {self.scores.shape}, labels {self.labels.shape}: "
                f"expected ({n}, 4), ({n},) and ({n},)"
            )
        if self.masks.ndim != 3 or self.masks.shape[0] != n or self.masks.shape[1] != self.masks.shape[2]:
            raise ValueError(f"masks {self.masks.shape}: expected ({n}, M, M)")

    @classmethod
    def empty(cls, slice_index: int, mask_size: int) -> "Detections":
        """Return a slice in which nothing was found."""
        return cls(
            slice_index=slice_index,
            boxes=np.zeros((0, 4), np.float32),
            scores=np.zeros(0, np.float32),
            labels=np.zeros(0, np.int64),
            masks=np.zeros((0, mask_size, mask_size), np.float32),
        )

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: NDArray[np.bool_] | NDArray[np.intp] | slice) -> "Detections":
        """Select by a boolean mask [N], by positions, or by a slice."""
        return Detections(
            slice_index=self.slice_index,
            boxes=self.boxes[index],
            scores=self.scores[index],
            labels=self.labels[index],
            masks=self.masks[index],
        )

    def scaled(self, row_factor: float, column_factor: float) -> "Detections":
        """Return the same objects on a grid with ``factor`` times as many pixels along rows and columns."""
        factors = np.array([column_factor, row_factor, column_factor, row_factor], np.float64)
        return Detections(
            slice_index=self.slice_index,
            boxes=(self.boxes * factors).astype(np.float32),
            scores=self.scores,
            labels=self.labels,
            masks=self.masks,
        )

    def shifted(self, rows: float, columns: float) -> "Detections":
        """Return the same objects moved by whole or fractional pixels."""
        return Detections(
            slice_index=self.slice_index,
            boxes=(self.boxes + np.array([columns, rows, columns, rows], np.float64)).astype(np.float32),
            scores=self.scores,
            labels=self.labels,
            masks=self.masks,
        )

    def mirrored(self, size: tuple[int, int], *, rows: bool, columns: bool) -> "Detections":
        """Return the same objects in a slice of ``size`` (rows, columns) pixels whose rows or columns run backwards.

        A point at x lies at ``size - x`` then: edges are mirrored, pixel i becomes pixel ``size - 1 - i``.
        """
        x1, y1, x2, y2 = self.boxes.astype(np.float64).T
        if columns:
            x1, x2 = size[1] - x2, size[1] - x1
        if rows:
            y1, y2 = size[0] - y2, size[0] - y1
        return Detections(
            slice_index=self.slice_index,
            boxes=np.stack([x1, y1, x2, y2], axis=1).astype(np.float32),
            scores=self.scores,
            labels=self.labels,
            masks=self.masks[:, :: -1 if rows else 1, :: -1 if columns else 1],
        )
