"""Detections: selection, scaling and what they refuse."""

import numpy as np
import pytest

from medseg.values.detections import Detections


@pytest.fixture
def detections(rng: np.random.Generator) -> Detections:
    return Detections(
        slice_index=4,
        boxes=np.array([[1, 2, 5, 9], [0.5, 0.25, 3.5, 2.75], [7, 1, 8, 4]], np.float32),
        scores=np.array([0.9, 0.4, 0.7], np.float32),
        labels=np.array([2, 1, 2]),
        masks=rng.random((3, 6, 6), np.float32),
    )


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (np.array([True, False, True]), [0, 2]),
        (np.array([2, 0]), [2, 0]),
        (slice(1, None), [1, 2]),
        (np.zeros(3, bool), []),
        (np.zeros(0, np.intp), []),
    ],
)
def test_selection_keeps_fields_together(detections: Detections, index, rows: list[int]) -> None:
    chosen = detections[index]
    assert len(chosen) == len(rows) and chosen.slice_index == 4
    for field in ("boxes", "scores", "labels", "masks"):
        np.testing.assert_array_equal(getattr(chosen, field), getattr(detections, field)[rows])


def test_empty_is_an_ordinary_value() -> None:
    empty = Detections.empty(3, 28)
    assert len(empty) == 0 and empty.slice_index == 3
    assert (empty.boxes.shape, empty.masks.shape) == ((0, 4), (0, 28, 28))
    assert len(empty.scaled(2.0, 0.5)) == len(empty.shifted(1, 2)) == len(empty[np.zeros(0, bool)]) == 0


def test_scaling_and_shifting_boxes(detections: Detections) -> None:
    scaled = detections.scaled(row_factor=2.0, column_factor=0.5)
    np.testing.assert_allclose(scaled.boxes[0], [0.5, 4.0, 2.5, 18.0])
    shifted = detections.shifted(rows=10, columns=-1.5)
    np.testing.assert_allclose(shifted.boxes[1], [-1.0, 10.25, 2.0, 12.75])
    np.testing.assert_allclose(scaled.scaled(0.5, 2.0).boxes, detections.boxes)
    assert scaled.boxes.dtype == shifted.boxes.dtype == np.float32
    np.testing.assert_array_equal(scaled.masks, detections.masks)  # box coordinates do not change
    np.testing.assert_allclose(detections.boxes[0], [1, 2, 5, 9])  # the source stays


@pytest.mark.parametrize(
    "change",
    [
        {"boxes": np.zeros((3, 5), np.float32)},
        {"boxes": np.zeros((2, 4), np.float32)},
        {"labels": np.zeros(2, np.int64)},
        {"scores": np.zeros((3, 1), np.float32)},
        {"masks": np.zeros((3, 6, 5), np.float32)},
        {"masks": np.zeros((2, 6, 6), np.float32)},
        {"masks": np.zeros((3, 36), np.float32)},
    ],
)
def test_fields_that_do_not_fit_are_refused(detections: Detections, change: dict[str, np.ndarray]) -> None:
    fields = {name: getattr(detections, name) for name in ("boxes", "scores", "labels", "masks")}
    with pytest.raises(ValueError, match="expected"):
        Detections(slice_index=0, **(fields | change))
