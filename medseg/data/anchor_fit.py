"""Anchors fitted to the boxes of a cohort.

An anchor is judged as the network will use it: laid a quarter of its level's stride beside the box's centre each way,
which is how far a centre lies from the nearest cell's on average.
"""

from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import ClusterError, kmeans2

#: IoU from which an anchor counts as finding a box.
FOUND_IOU = 0.5
#: What a rule has to gain in mean IoU over the plain one to be preferred to it.
WORTH_IT = 0.005

Sizes = tuple[tuple[float, ...], ...]


class AnchorFit(NamedTuple):
    """Anchors and how well they cover the boxes.

    sizes: square root of the area in pixels, one tuple per level, finest first; ratios: height / width; rule: how they
    were found; mean_iou: of the best anchor, over the boxes; recall: share of boxes whose best anchor has IoU 0.5.
    """

    sizes: Sizes
    ratios: tuple[float, ...]
    rule: str
    mean_iou: float
    recall: float


def fit_anchors(
    boxes: NDArray[np.float64], strides: tuple[int, ...], per_level: int, smallest: float, largest: float
) -> tuple[AnchorFit, AnchorFit]:
    """Fit anchors to boxes.

    Args:
        boxes: [n, 2] heights and widths in pixels; weigh classes by how many of each there are.
        strides: of the pyramid levels, finest first.
        per_level: sizes on each level.
        smallest, largest: the range of sizes that the plain rule covers, in pixels.

    Returns:
        The chosen anchors, and those of the plain rule (sizes in equal ratios, as far as ``largest``) to compare with.
    """
    number = len(strides) * per_level
    sides, shapes = np.log(boxes.prod(axis=1)) / 2, np.log(boxes[:, 0] / boxes[:, 1])
    low, high = np.log(smallest), np.log(max(largest, 2 * smallest))
    ratios = np.exp(np.percentile(shapes, (10, 50, 90)))
    equal = np.exp(np.linspace(low, high, number))
    plain = _judged("equal ratios", equal, ratios, boxes, strides)
    spread = np.percentile(sides, (np.arange(number) + 0.5) * 100 / number)
    clipped = np.clip(sides, low, None)
    found = [_means(clipped, start) for start in (equal, np.exp(spread))]
    shaped = [ratios, _means(shapes, ratios)]
    fitted = [
        _judged("k-means", sizes, shape, boxes, strides)
        for sizes, shape in product([equal, *found], shaped)
        if sizes is not None and shape is not None
    ]
    best = max(fitted, key=lambda fit: fit.mean_iou)
    better = best.mean_iou > plain.mean_iou + WORTH_IT and best.recall >= plain.recall
    return (best if better else plain), plain


def _means(values: NDArray[np.float64], start: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return the exponentials of k-means of values (in logarithms) that begin at ``start``, ascending.

    None where values do not fall into so many clusters.
    """
    try:
        middle, _ = kmeans2(values[:, None], np.log(start)[:, None], iter=30, minit="matrix", missing="raise")
    except ClusterError:
        return None
    return np.sort(np.exp(middle[:, 0]))


def _judged(
    rule: str,
    sizes: NDArray[np.float64],
    ratios: NDArray[np.float64],
    boxes: NDArray[np.float64],
    strides: tuple[int, ...],
) -> AnchorFit:
    per_level = len(sizes) // len(strides)
    rounded = tuple(tuple(float(f"{s:.3g}") for s in sizes[i : i + per_level]) for i in range(0, len(sizes), per_level))
    shapes = tuple(float(f"{r:.3g}") for r in ratios)
    best = best_iou(boxes, rounded, shapes, strides)
    return AnchorFit(rounded, shapes, rule, float(best.mean()), float(np.mean(best >= FOUND_IOU)))


def best_iou(
    boxes: NDArray[np.float64], sizes: Sizes, ratios: tuple[float, ...], strides: tuple[int, ...]
) -> NDArray[np.float64]:
    """Return [n] the IoU of each box [n, 2] with its best anchor, laid a quarter of a stride beside it each way."""
    best = np.zeros(len(boxes))
    for level, stride in zip(sizes, strides, strict=True):
        for size in level:
            for ratio in ratios:
                anchor = np.array([size * ratio**0.5, size / ratio**0.5])
                reach = (boxes + anchor) / 2 - stride / 4
                inner = np.clip(np.minimum(np.minimum(boxes, anchor), reach), 0, None).prod(axis=1)
                best = np.maximum(best, inner / (boxes.prod(axis=1) + anchor.prod() - inner))
    return best
