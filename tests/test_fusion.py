"""Weighted box fusion with masks: cases worked out by hand, the authors' package, and what must not change anything."""

from itertools import permutations

import numpy as np
import pytest

from medseg.inference.fusion import fuse
from medseg.values.detections import Detections
from medseg.values.pasting import paste_mask

KEEP = {"score_threshold": 0.0, "limit": 1000}


def found(boxes, scores, labels=None, masks=None, size=4, slice_index=3):
    n = len(boxes)
    return Detections(
        slice_index=slice_index,
        boxes=np.array(boxes, np.float32).reshape(n, 4),
        scores=np.array(scores, np.float32),
        labels=np.array(labels if labels is not None else [1] * n, np.int64),
        masks=np.ones((n, size, size), np.float32) if masks is None else np.array(masks, np.float32),
    )


def random_pass(rng, centres, *, label_of=lambda i: 1 + i % 2, share=0.8, size=7):
    """Some of the objects at [N, 2] centres, a little off, with their scores and noise for masks."""
    kept = np.flatnonzero(rng.random(len(centres)) < share)
    middle = centres[kept] + rng.normal(0, 0.8, (len(kept), 2))
    half = 8 + rng.normal(0, 0.6, (len(kept), 2))
    return found(
        np.hstack([middle - half, middle + half]), rng.uniform(0.2, 1, len(kept)), [label_of(i) for i in kept],
        rng.random((len(kept), size, size)),
    )  # fmt: skip


def assert_equal(a: Detections, b: Detections) -> None:
    for name in ("slice_index", "boxes", "scores", "labels", "masks"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_two_boxes_of_one_object_worked_out_by_hand():
    a, b = found([[0, 0, 10, 20]], [0.9]), found([[1, 2, 11, 22]], [0.6])
    got = fuse([a, b], **KEEP)
    # Weights 0.6 and 0.4; the mean of the scores, both passes saw it. IoU 9 x 18 of 2 x 200 - 162 = 0.68.
    np.testing.assert_allclose(got.boxes, [[0.4, 0.8, 10.4, 20.8]], atol=1e-6)
    assert got.scores == pytest.approx([0.75]) and got.slice_index == 3
    three = fuse([a, b, found([], [])], **KEEP)
    np.testing.assert_allclose(three.boxes, got.boxes)
    assert three.scores == pytest.approx([1.5 / 3])  # one of three passes did not see it
    apart = fuse([a, b], **KEEP, fusion_iou=0.69)
    assert len(apart) == 2 and apart.scores == pytest.approx([0.45, 0.3])
    assert len(fuse([a, found([[1, 2, 11, 22]], [0.6], [2])], **KEEP)) == 2  # another class


def test_a_third_box_meets_the_fused_one():
    """The third overlaps the first by less than the threshold, and the mean of the first two by more."""
    boxes = [[0, 0, 10, 10], [2, 0, 12, 10], [3, 0, 13, 10]]
    scores = [0.6, 0.5, 0.4]
    # 0 and 1: 80/120 = 0.667. 0 and 2: 70/130 = 0.538. Fused at 10/11: 2.09 off, 79.1/120.9 = 0.654.
    got = fuse([found([box], [score]) for box, score in zip(boxes, scores, strict=True)], **KEEP)
    assert len(got) == 1
    np.testing.assert_allclose(got.boxes[0, [0, 2]], [(0.5 * 2 + 0.4 * 3) / 1.5, (6 + 0.5 * 12 + 0.4 * 13) / 1.5])
    assert got.scores == pytest.approx([0.5])
    # The third overlaps the second, but not the mean of the first two, which lies at 0.25: 62.5/137.5 = 0.455.
    boxes, scores = [[0, 0, 10, 10], [2.5, 0, 12.5, 10], [4, 0, 14, 10]], [0.9, 0.1, 0.05]
    assert len(fuse([found([box], [score]) for box, score in zip(boxes, scores, strict=True)], **KEEP)) == 2


def test_masks_are_averaged_where_they_lie():
    """A full mask in the left box, one with a full right half in the right box: means by column, worked out by hand."""
    half = np.repeat([[0.0, 0.0, 1.0, 1.0]], 4, axis=0)
    a, b = found([[0, 0, 8, 8]], [0.5], masks=[np.ones((4, 4))]), found([[2, 0, 10, 8]], [0.5], masks=[half])
    got = fuse([a, b], **KEEP, fusion_iou=0.5)
    np.testing.assert_allclose(got.boxes, [[1, 0, 9, 8]])
    # Fused cells are 2 px wide with centres at 2, 4, 6, 8. The first mask reaches to 8 (not included). The second has
    # cells with centres at 3, 5, 7, 9: at 2 its edge value 0, at 4 between 0 and 0, at 6 between 0 and 1, at 8 it is 1.
    columns = [(1 + 0) / 2, (1 + 0) / 2, (1 + 0.5) / 2, (0 + 1) / 2]
    np.testing.assert_allclose(got.masks, np.broadcast_to(columns, (1, 4, 4)), atol=1e-6)
    unequal = fuse([a, found([[2, 0, 10, 8]], [0.25], masks=[half])], **KEEP, fusion_iou=0.5)
    assert unequal.boxes[0, 0] == pytest.approx(2 / 3) and unequal.scores == pytest.approx([0.375])


def test_a_fused_mask_pastes_as_the_mean_of_its_members():
    """A disc seen twice, its boxes off by fractions of a pixel, stays a disc where it was."""

    def seen(box, size=28):
        x1, y1, x2, y2 = box
        x = x1 + (np.arange(size) + 0.5) / size * (x2 - x1) - 20.3
        y = y1 + (np.arange(size) + 0.5) / size * (y2 - y1) - 14.7
        return np.clip(9.5 - np.hypot(*np.meshgrid(x, y)), 0, 1)  # soft edge, radius 9

    boxes = [[9.1, 4.2, 31.9, 25.0], [10.4, 3.6, 31.2, 26.3]]
    got = fuse([found([b], [s], masks=[seen(b)]) for b, s in zip(boxes, (0.9, 0.7), strict=True)], **KEEP)
    pasted, row, column = paste_mask(got.masks[0], got.boxes[0], (40, 50))
    at = np.indices(pasted.shape) + 0.5 + np.array([row, column])[:, None, None]
    disc = np.hypot(at[0] - 14.7, at[1] - 20.3)
    assert (pasted[disc < 8] > 0.9).all() and (pasted[disc > 10] < 0.1).all()
    np.testing.assert_allclose([(pasted * at[k]).sum() / pasted.sum() for k in (0, 1)], [14.7, 20.3], atol=0.05)


def test_one_pass_and_equal_passes_change_nothing():
    rng = np.random.default_rng(0)
    centres = rng.uniform(0, 120, (30, 2))  # boxes of 16 pixels: many overlap
    one = random_pass(rng, centres)
    one = one[np.argsort(-one.scores)]
    assert_equal(fuse([one], score_threshold=0.9, limit=1), one)
    for number in (2, 3):
        assert_equal(fuse([one] * number, score_threshold=0.2, limit=100), one)


def test_what_one_pass_tells_apart_stays_apart():
    """Two boxes of one pass with an IoU of 0.67 are two objects, also beside another pass that has one of them."""
    one = found([[0, 0, 10, 10], [2, 0, 12, 10]], [0.9, 0.8])
    got = fuse([one, found([[2.2, 0, 12.2, 10]], [0.7])], **KEEP)
    np.testing.assert_allclose(got.boxes[:, 0], [2 + 0.2 * 0.7 / 1.5, 0], atol=1e-6)
    assert got.scores == pytest.approx([0.75, 0.45])


def test_the_order_of_passes_changes_nothing():
    rng = np.random.default_rng(1)
    for _ in range(2):
        passes = [random_pass(rng, rng.uniform(0, 60, (12, 2))) for _ in range(3)]
        passes.append(passes[0])
        first = fuse(passes, **KEEP)
        for order in permutations(range(4)):
            assert_equal(fuse([passes[i] for i in order], **KEEP), first)


def test_the_order_of_passes_does_not_break_ties():
    """Two passes have the same box with the same score; that of one may join its neighbour, that of the other not."""
    box, beside = [0, 0, 10, 10], [2, 0, 12, 10]
    passes = [found([beside, box], [0.9, 0.8]), found([box], [0.8])]
    assert_equal(fuse(passes, **KEEP), fuse(passes[::-1], **KEEP))


def test_nothing_thresholds_and_limits():
    empty = [Detections.empty(2, 7), Detections.empty(2, 14)]
    assert_equal(fuse(empty, **KEEP), empty[1])
    two = [found([[0, 0, 5, 5], [20, 20, 30, 30]], [0.9, 0.5]), found([[0, 0, 5, 5]], [0.3])]
    assert fuse(two, score_threshold=0.25, limit=9).scores == pytest.approx([0.6])  # 0.25 is not more than 0.25
    assert fuse(two, score_threshold=0.2, limit=1).boxes.tolist() == [[0, 0, 5, 5]]
    silent = found([[0, 0, 5, 5]], [0.0])
    assert len(fuse([silent, silent], **KEEP)) == 0
    with pytest.raises(ValueError, match="expected passes over one slice"):
        fuse([empty[0], Detections.empty(3, 7)], **KEEP)
    with pytest.raises(ValueError, match="expected passes"):
        fuse([], **KEEP)


def test_masks_of_two_sizes():
    small, large = np.ones((1, 5, 5)), np.ones((1, 10, 10))
    large[0, :, 5:] = 0
    got = fuse([found([[0, 0, 20, 20]], [0.5], masks=small), found([[0, 0, 20, 20]], [0.5], masks=large)], **KEEP)
    np.testing.assert_allclose(got.masks[0], (1 + large[0]) / 2, atol=1e-6)


def test_boxes_agree_with_the_authors_package():
    package = pytest.importorskip(
        "ensemble_boxes", reason="ensemble-boxes is not installed (pip install ensemble-boxes)"
    )
    rng = np.random.default_rng(2)
    grid = np.stack(np.meshgrid(np.arange(5), np.arange(5)), axis=-1).reshape(-1, 2) * 18.0 + 12
    for number in (2, 3, 5):
        passes = [random_pass(rng, grid) for _ in range(number)]
        got = fuse(passes, **KEEP)
        boxes, scores, labels = package.weighted_boxes_fusion(
            [p.boxes / 128 for p in passes], [p.scores for p in passes], [p.labels for p in passes], iou_thr=0.55
        )
        order = np.lexsort([boxes[:, 0], scores])[::-1]
        ours = np.lexsort([got.boxes[:, 0], got.scores])[::-1]
        np.testing.assert_allclose(got.boxes[ours], boxes[order] * 128, atol=1e-3)
        np.testing.assert_allclose(got.scores[ours], scores[order], atol=1e-6)
        np.testing.assert_array_equal(got.labels[ours], labels[order])
