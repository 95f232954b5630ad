"""Ranges, packed masks and pairs of nodes, against loops over whole slices."""

import numpy as np
import pytest
from numpy.typing import NDArray
from test_linking import LABELS, LESION, ORGAN, grid, rectangle

from medseg.linking import bitmasks, nodes
from medseg.linking.bitmasks import BitMasks
from medseg.linking.covers import find_covers
from medseg.values.linking_plan import LinkingPlan
from medseg.values.ragged import blocks, spans

SIDE = 300


def test_ranges_one_after_the_other() -> None:
    owner, number = spans(np.array([5, 0, 9]), np.array([2, 0, 3]))
    assert owner.tolist() == [0, 0, 2, 2, 2]
    assert number.tolist() == [5, 6, 9, 10, 11]
    assert [part.tolist() for part in spans(np.zeros(0, np.int64), np.zeros(0, np.int64))] == [[], []]


@pytest.mark.parametrize("sizes", [[], [3], [30], [4, 4, 4, 4, 4], [0, 0, 25, 1, 0, 9, 2, 40, 0]])
def test_blocks_hold_everything_once_and_little_at_a_time(sizes: list[int]) -> None:
    parts = [sizes[block] for block in blocks(np.array(sizes, np.int64), 10)]
    assert sum(parts, []) == sizes
    assert all(part and sum(part[1:]) < 10 for part in parts)
    assert len(parts) <= 1 + sum(sizes) // 10


def random_masks(rng: np.random.Generator, count: int) -> tuple[list[NDArray[np.bool_]], NDArray[np.int64]]:
    """Return crops of one to 140 columns, some of them beyond the slice by a pixel."""
    sizes = np.column_stack([rng.integers(1, 60, count), rng.integers(1, 140, count)])
    corners = rng.integers(-1, 150, (count, 2))
    masks = [rng.random(size) < rng.choice([0.1, 0.5, 1.0]) for size in sizes.tolist()]
    return masks, np.column_stack([corners, corners + sizes])


def painted(mask: NDArray[np.bool_], window: NDArray[np.int64]) -> NDArray[np.bool_]:
    full = np.zeros((SIDE, SIDE), np.bool_)
    r0, c0, r1, c1 = (window + 1).tolist()
    full[r0:r1, c0:c1] = mask
    return full


@pytest.mark.parametrize("rows_per_call", [1, 100, 1 << 19])
def test_shared_pixels_are_those_of_the_whole_slices(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, rows_per_call: int
) -> None:
    monkeypatch.setattr(bitmasks, "ROWS_PER_CALL", rows_per_call)
    masks, windows = random_masks(rng, 23)
    full = [painted(mask, window) for mask, window in zip(masks, windows, strict=True)]
    packed = BitMasks.pack(masks[:9], windows[:9]).joined(BitMasks.pack(masks[9:], windows[9:]))
    first, second = (axis.ravel() for axis in np.indices((23, 23)))
    expected = [np.count_nonzero(full[i] & full[j]) for i, j in zip(first, second, strict=True)]
    assert np.count_nonzero(expected) > 100 and 0 in expected
    np.testing.assert_array_equal(packed.intersections(first, second), expected)
    index = rng.permutation(23)[:17]
    inside = np.isin(first, np.arange(17)) & np.isin(second, np.arange(17))
    turned = [
        np.count_nonzero(full[index[i]] & full[index[j]]) for i, j in zip(first[inside], second[inside], strict=True)
    ]
    np.testing.assert_array_equal(packed.select(index).intersections(first[inside], second[inside]), turned)
    assert packed.intersections(first[:0], second[:0]).tolist() == []


def random_nodes(rng: np.random.Generator, count: int, slices: int = 7) -> nodes.Nodes:
    parts = []
    for _ in range(count):
        corner, size = rng.integers(0, 45, 2), rng.integers(1, 25, 2)
        label = int(rng.choice([ORGAN, LESION]))
        parts.append(rectangle(int(rng.integers(slices)), *corner, *size, score=float(rng.random()), label=label))
    return nodes.build_nodes(parts, grid((slices, 60, 70)), LABELS, 0.5)


@pytest.mark.parametrize("pairs_per_call", [1, 1 << 18])
@pytest.mark.parametrize("distance", [0, 1, 3, 9])
def test_pairs_are_those_that_a_loop_finds(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, distance: int, pairs_per_call: int
) -> None:
    monkeypatch.setattr(nodes, "PAIRS_PER_CALL", pairs_per_call)
    found = random_nodes(rng, 90)
    expected = []
    for i in range(len(found)):
        for j in range(i + 1 if distance == 0 else 0, len(found)):
            if found.labels[i] == found.labels[j] and found.slices[j] - found.slices[i] == distance:
                (a, b, c, d), (e, f, g, h) = found.windows[[i, j]].tolist()
                if min(c, g) > max(a, e) and min(d, h) > max(b, f):
                    expected.append((i, j))
    assert (len(expected) > 20) == (distance < 7)
    assert list(zip(*(axis.tolist() for axis in found.pairs(distance)), strict=True)) == expected
    assert [len(axis) for axis in found.select(np.zeros(0, np.intp)).pairs(distance)] == [0, 0]


def test_covers_are_those_that_a_loop_finds(rng: np.random.Generator) -> None:
    plan = LinkingPlan(duplicate_iou=0.3)
    found = random_nodes(rng, 300)
    n = len(found)
    full = np.array([painted(mask, window) for mask, window in zip(found.masks, found.windows, strict=True)])
    shared = np.einsum("ip,jp->ij", *[full.reshape(n, -1).astype(np.float32)] * 2).astype(int)
    plural = found.labels == LESION
    expected = {}
    for big in np.flatnonzero(plural).tolist():
        for step in (-2, -1, 1, 2):
            inside = [
                j for j in np.flatnonzero((found.slices == found.slices[big] + step) & plural)
                if found.areas[j] < found.areas[big] and shared[big, j] >= 0.6 * found.areas[j]
            ]  # fmt: skip
            smallest = [
                i for i in inside
                if not any(
                    shared[i, j] >= 0.6 * min(found.areas[i], found.areas[j])
                    and (found.areas[j] < found.areas[i] or (found.areas[j] == found.areas[i] and j > i))
                    for j in inside if j != i
                )
            ]  # fmt: skip
            both = shared[big, smallest].sum()
            iou = both / (found.areas[big] + found.areas[smallest].sum() - both)
            if len(smallest) > 1 and iou >= 0.3:
                expected[(abs(step), big, tuple(smallest))] = iou
    covers = find_covers(found, plural, np.ones(n, np.bool_), 2, plan)
    keys = [(int(covers.distance[c]), int(covers.mask[c]), covers.members(c)) for c in range(len(covers))]
    assert len(expected) > 20 and sorted(keys) == sorted(expected)
    np.testing.assert_allclose(covers.iou, [expected[key] for key in keys])
    # Of those with a fresh mask none is lost.
    fresh = rng.random(n) < 0.2
    again = find_covers(found, plural, fresh, 2, plan)
    some = {(int(again.distance[c]), int(again.mask[c]), again.members(c)) for c in range(len(again))}
    assert {key for key in expected if fresh[list(key[2])].any()} <= some < set(expected)
    # The nearest, then the one that fills it best.
    wanted = rng.random(n) < 0.8
    best = covers.best(wanted, found.keys)
    assert covers.mask[best].tolist() == sorted({big for _, big, _ in expected if wanted[big]})
    for c in best.tolist():
        rivals = [(d, -iou) for (d, big, _), iou in expected.items() if big == covers.mask[c]]
        assert (covers.distance[c], -covers.iou[c]) == pytest.approx(min(rivals))
