"""The colours of the objects of one label: many, told apart, by colour-blind eyes too."""

import colorsys

import numpy as np
import pytest

from medseg.labels import PALETTE
from medseg.values.shades import oklab, shade

#: What red-blind and green-blind eyes make of linear RGB (Machado, Oliveira and Fernandes 2009, severity 1).
EYES = {
    "usual": np.eye(3),
    "protan": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),  # noqa: E501
    "deutan": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),  # noqa: E501
}  # fmt: skip


def seen(colour, eye):
    """Return in OKLab what an eye sees."""
    encoded = np.array(colour) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    linear = (EYES[eye] @ linear).clip(0, 1)
    back = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return oklab(255 * back)


def test_oklab_gives_the_published_values():
    """White, and pure red, green and blue, as CSS Color 4 and Ottosson's text have them."""
    np.testing.assert_allclose(oklab((255, 255, 255)), (1, 0, 0), atol=1e-4)
    np.testing.assert_allclose(oklab((255, 0, 0)), (0.62796, 0.22486, 0.12585), atol=1e-4)
    np.testing.assert_allclose(oklab((0, 255, 0)), (0.86644, -0.23389, 0.17950), atol=1e-4)
    np.testing.assert_allclose(oklab((0, 0, 255)), (0.45201, -0.03246, -0.31153), atol=1e-4)


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("colour", PALETTE)
def test_neighbours_of_a_hundred_are_told_apart(colour, eye):
    """0.02 is just seen; the next object differs eight times as much, the next four twice."""
    colours = [shade(colour, k) for k in range(100)]
    assert colours[0] == colour and len(set(colours)) == 100
    points = np.array([seen(c, eye) for c in colours])
    for apart, least in ((1, 0.155), (2, 0.04), (3, 0.04), (4, 0.04)):
        assert np.linalg.norm(points[apart:] - points[:-apart], axis=1).min() > least


def test_shades_keep_near_the_hue_of_the_label_and_greys_stay_grey():
    for colour in PALETTE:
        hues = np.array([colorsys.rgb_to_hsv(*(c / 255 for c in shade(colour, k)))[0] for k in range(40)])
        away = np.abs((hues - hues[0] + 0.5) % 1 - 0.5)
        assert away.max() < 1 / 6  # of the circle: from orange neither to green nor to purple
    for grey in ((0, 0, 0), (255, 255, 255), (90, 90, 90)):
        shades = [shade(grey, k) for k in range(1, 40)]
        assert len(set(shades)) == 39 and all(max(c) - min(c) <= 1 for c in shades)
        assert all(isinstance(v, int) and 50 < v < 250 for c in shades for v in c)
