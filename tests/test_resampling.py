"""In-plane resampling, against closed forms and a slow oracle."""

import numpy as np
import pytest

from medseg.values.resampling import line_weights, resample_crop, resample_plane, resampled_size


def slow_weights(source: int, target: int) -> np.ndarray:
    """Weigh every source pixel by a triangle around the target pixel's centre; edge values held."""
    width = max(1.0, source / target)
    out = np.zeros((target, source))
    for t in range(target):
        centre = (t + 0.5) * source / target - 0.5
        for tap in range(-2 * source, 3 * source):
            out[t, min(max(tap, 0), source - 1)] += max(0.0, 1 - abs(tap - centre) / width)
    return out / out.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("source", "target"), [(7, 7), (7, 11), (11, 7), (13, 3), (5, 40), (1, 4), (9, 1), (40, 17)])
def test_weights_follow_their_definition(source: int, target: int) -> None:
    np.testing.assert_allclose(line_weights(source, target), slow_weights(source, target), atol=1e-6)
    np.testing.assert_allclose(line_weights(source, target, target // 3, target // 2 + 1),
                               slow_weights(source, target)[target // 3 : target // 2 + 1], atol=1e-6)  # fmt: skip


@pytest.mark.parametrize(
    ("source", "target", "tolerance"), [(31, 31, 1e-5), (31, 77, 1e-5), (60, 12, 1e-5), (77, 31, 0.03), (60, 13, 0.03)]
)
def test_ramps_are_reproduced(source: int, target: int, tolerance: float) -> None:
    """A value that is linear in mm is the same after resampling, away from the edges.

    The few taps of a triangle that is no whole number of pixels wide leave some hundredths of a source pixel.
    """
    ramp = np.arange(source) + 0.5
    expected = (np.arange(target) + 0.5) * source / target
    inside = slice(int(np.ceil(target / source)) + 1, -int(np.ceil(target / source)) - 1)
    got = line_weights(source, target) @ ramp
    np.testing.assert_allclose(got[inside], expected[inside], rtol=0, atol=tolerance)
    assert (np.diff(got) >= -1e-6).all()


def test_sampling_down_averages_and_skips_nothing() -> None:
    """A triangle k pixels wide each way gives any pattern of period k its mean."""
    pattern = np.tile([10.0, 0.0, 0.0, 2.0], 8).astype(np.float32)
    down = line_weights(32, 8) @ pattern
    np.testing.assert_allclose(down[1:-1], 3.0, atol=1e-5)
    assert (line_weights(53, 7).sum(axis=0) > 0).all()


def test_planes_keep_constants_and_leading_axes(rng: np.random.Generator) -> None:
    out = resample_plane(np.full((2, 3, 7, 11), -7, np.int16), 5, 23)
    assert out.shape == (2, 3, 5, 23) and out.dtype == np.float32
    np.testing.assert_allclose(out, -7, atol=1e-5)
    noise = rng.normal(size=(7, 11))
    np.testing.assert_array_equal(resample_plane(noise, 7, 11), noise.astype(np.float32))
    expected = slow_weights(7, 4) @ noise @ slow_weights(11, 15).T
    np.testing.assert_allclose(resample_plane(noise, 4, 15), expected, atol=1e-5)


@pytest.mark.parametrize("target", [(19, 25), (7, 60), (40, 9), (50, 60), (3, 3)])
@pytest.mark.parametrize("window", [(0, 0, 19, 25), (0, 20, 4, 5), (3, 5, 9, 2), (18, 0, 1, 25), (7, 11, 1, 1)])
def test_a_crop_is_resampled_as_the_whole_slice_is(
    target: tuple[int, int], window: tuple[int, int, int, int], rng: np.random.Generator
) -> None:
    source = (19, 25)
    row, column, rows, columns = window
    crop = rng.random((3, rows, columns)) < 0.7
    whole = np.zeros((3, *source), bool)
    whole[:, row : row + rows, column : column + columns] = crop
    share, (first_row, first_column) = resample_crop(crop, (row, column), source, target)
    got = np.zeros((3, *target), np.float32)
    got[:, first_row : first_row + share.shape[1], first_column : first_column + share.shape[2]] = share
    np.testing.assert_allclose(got, resample_plane(whole, *target), atol=1e-6)
    assert got.min() >= 0 and got.max() <= 1 + 1e-6


@pytest.mark.parametrize(
    ("pixels", "spacing_mm", "target_mm", "expected"),
    [(512, 0.75, 1.5, 256), (100, 1.0, 3.0, 33), (1, 0.1, 5.0, 1), (7, 2.0, 0.5, 28)],
)
def test_the_size_covers_the_extent(pixels: int, spacing_mm: float, target_mm: float, expected: int) -> None:
    assert resampled_size(pixels, spacing_mm, target_mm) == expected
