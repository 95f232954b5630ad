"""Masks of slices with 64 pixels to a word: shared pixels of many pairs are counted at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.values.ragged import blocks, spans

#: Columns of the slice to a word.
WORD = 64
#: Words that are packed in one go, and rows of pairs that are compared in one go; bounds the memory.
WORDS_PER_CALL, ROWS_PER_CALL = 1 << 14, 1 << 19


@dataclass(frozen=True, kw_only=True, eq=False)
class BitMasks:
    """N masks; their words begin at columns of the slice that are multiples of 64, so any two can be compared.

    Attributes:
        words: [W] uint64, mask after mask, row after row.
        starts: [N] int64, where each mask begins.
        places: [N, 4] int64, first row, first word, row end, word end of each mask in its slice.
    """

    words: NDArray[np.uint64]
    starts: NDArray[np.int64]
    places: NDArray[np.int64]

    @classmethod
    def pack(cls, masks: Sequence[NDArray[np.bool_]], windows: NDArray[np.int64]) -> "BitMasks":
        """Pack bool crops [h, w] that lie at ``windows`` [N, 4] (first row, first column, row end, column end)."""
        places = windows.copy()
        places[:, 1] //= WORD
        places[:, 3] = -(-places[:, 3] // WORD)
        sizes = (places[:, 2:] - places[:, :2]).prod(axis=1)
        ends = np.cumsum(sizes)
        words = np.zeros(int(sizes.sum()), np.uint64)
        margins = (windows[:, 1] - places[:, 1] * WORD).tolist()
        widths = ((places[:, 3] - places[:, 1]) * WORD).tolist()
        for block in blocks(sizes, WORDS_PER_CALL):
            start, stop = int(ends[block.start] - sizes[block.start]), int(ends[block.stop - 1])
            pixels = np.zeros((stop - start) * WORD, np.bool_)
            at = 0
            for mask, margin, width in zip(masks[block], margins[block], widths[block], strict=True):
                h, w = mask.shape
                pixels[at : at + h * width].reshape(h, width)[:, margin : margin + w] = mask
                at += h * width
            words[start:stop] = np.packbits(pixels).view(np.uint64)
        return cls(words=words, starts=ends - sizes, places=places)

    def select(self, index: NDArray[np.intp]) -> "BitMasks":
        """Return the masks at these positions; the words are shared, not copied."""
        return BitMasks(words=self.words, starts=self.starts[index], places=self.places[index])

    def joined(self, other: "BitMasks") -> "BitMasks":
        """Return these masks and, after them, those of another."""
        return BitMasks(
            words=np.concatenate([self.words, other.words]),
            starts=np.concatenate([self.starts, other.starts + len(self.words)]),
            places=np.concatenate([self.places, other.places]),
        )

    def intersections(self, first: NDArray[np.intp], second: NDArray[np.intp]) -> NDArray[np.int64]:
        """Return [P], how many pixels the masks of each pair share when laid over each other."""
        shared = np.zeros(len(first), np.int64)
        low = np.maximum(self.places[first, :2], self.places[second, :2])
        sides = np.minimum(self.places[first, 2:], self.places[second, 2:]) - low
        # One word column after the other: mostly there are one or two.
        column = 0
        near = np.flatnonzero((sides > 0).all(axis=1))
        while len(near):
            for block in blocks(sides[near, 0], ROWS_PER_CALL):
                pairs = near[block]
                pair, row = spans(np.zeros(len(pairs), np.int64), sides[pairs, 0])
                words = []
                for mask in (first[pairs], second[pairs]):
                    place = self.places[mask]
                    stride = place[:, 3] - place[:, 1]
                    start = self.starts[mask] + (low[pairs, 0] - place[:, 0]) * stride
                    start += low[pairs, 1] - place[:, 1] + column
                    words.append(self.words[start[pair] + stride[pair] * row])
                both = np.bitwise_count(words[0] & words[1])
                starts = np.cumsum(sides[pairs, 0]) - sides[pairs, 0]
                shared[pairs] += np.add.reduceat(both, starts, dtype=np.int64)
            column += 1
            near = near[sides[near, 1] > column]
        return shared
