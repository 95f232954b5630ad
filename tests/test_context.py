"""2.5-D input: planes at exact distances, windows as channels."""

import numpy as np
import pytest

from medseg.data.context import context_planes, network_input
from medseg.values.plan import InputPlan

SHAPE = (5, 7, 11)


def ramp(spacing_mm: float, dtype: type = np.float32) -> np.ndarray:
    """Return a volume whose value is 10 x mm from the first slice, + 1000 rows + 100 columns."""
    z, y, x = np.indices(SHAPE)
    return (10 * z * spacing_mm + 1000 * y + 100 * x).astype(dtype)


@pytest.mark.parametrize("spacing_mm", [0.7, 2.5, 5.0, 40.0])
def test_planes_lie_at_their_millimetres(spacing_mm: float) -> None:
    offsets = (-3.1, -0.25, 0.0, 1.0, 4.4)
    array = ramp(spacing_mm)
    base = array[0]
    last = (SHAPE[0] - 1) * spacing_mm
    for index in range(SHAPE[0]):
        planes = context_planes(array, index, offsets, spacing_mm)
        for plane, offset in zip(planes, offsets, strict=True):
            mm = min(max(index * spacing_mm + offset, 0.0), last)  # beyond the ends the edge slice again
            np.testing.assert_allclose(plane, base + 10 * mm, rtol=0, atol=2e-3)


def test_a_plane_on_a_slice_is_that_slice(rng: np.random.Generator) -> None:
    array = rng.integers(-1000, 3000, SHAPE).astype(np.int16)
    planes = context_planes(array, 2, (-3.0, -1.5, 0.0, 1.5), 1.5000001)  # to 1e-6 of a slice
    np.testing.assert_array_equal(planes, array[[0, 1, 2, 3]])
    assert planes.dtype == np.float32


def test_integers_do_not_overflow_between_slices() -> None:
    array = np.array([30000, -30000, 30000], np.int16)[:, None, None]
    planes = context_planes(array, 1, (-0.5, 0.25), 1.0)
    assert planes[:, 0, 0].tolist() == [0.0, -15000.0]


def test_a_single_slice_is_its_own_context() -> None:
    array = ramp(3.0)[:1]
    np.testing.assert_array_equal(context_planes(array, 0, (-3.0, 0.0, 3.0), 3.0), np.repeat(array, 3, axis=0))


def test_the_volume_is_left_as_it_was() -> None:
    array = ramp(3.0)
    array.flags.writeable = False  # as a mapped file
    context_planes(array, 1, (-1.0, 0.0), 3.0)


def test_windows_map_to_minus_one_and_one_and_clip() -> None:
    values = np.array([-500, -100, 0, 100, 300, 900], np.int16)
    array = np.broadcast_to(values, (3, 1, 6)) + np.array([-40, 0, 40], np.int16)[:, None, None]
    plan = InputPlan(spacing_mm=(1, 1), context_mm=(-2.0, 0.0, 2.0), windows=((-100.0, 300.0), (0.0, 100.0)))
    channels = network_input(array[None], 1, 2.0, plan)
    assert channels.shape == (plan.channels, 1, 6) and channels.dtype == np.float32
    # window by window, planes ascending in each
    np.testing.assert_allclose(channels[1, 0], [-1, -1, -0.5, 0, 1, 1], atol=1e-6)
    np.testing.assert_allclose(channels[0, 0], [-1, -1, -0.7, -0.2, 0.8, 1], atol=1e-6)
    np.testing.assert_allclose(channels[2, 0], [-1, -0.8, -0.3, 0.2, 1, 1], atol=1e-6)
    np.testing.assert_allclose(channels[4, 0], [-1, -1, -1, 1, 1, 1], atol=1e-6)
    np.testing.assert_allclose(channels[3, 0], [-1, -1, -1, 0.2, 1, 1], atol=1e-6)


def test_standard_scores_are_one_channel_a_plane() -> None:
    plan = InputPlan(spacing_mm=(1, 1), context_mm=(-1.0, 0.0), intensity="zscore")
    array = ramp(1.0)
    np.testing.assert_array_equal(network_input(array[None], 3, 1.0, plan), array[[2, 3]])
