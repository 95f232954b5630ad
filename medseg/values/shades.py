"""Colours for the objects of one label: its own, then others around it that are told apart.

Lightness is what every form of colour vision sees, so it changes most: by the golden ratio from object to object, which
never repeats and keeps neighbours far apart. The hue swings a little around the label's. Both are taken in OKLab
(Ottosson 2020, https://bottosson.github.io/posts/oklab), where equal steps look equal.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from medseg.labels import Colour

#: From linear RGB to the responses of the cones, and from their cube roots to lightness and two colour axes.
_CONES = np.array([
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
])  # fmt: skip
_OKLAB = np.array([
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
])  # fmt: skip
_FROM_OKLAB, _FROM_CONES = np.linalg.inv(_OKLAB).T, np.linalg.inv(_CONES).T
#: Lightness (0 black, 1 white) of the shades: outlines are seen on black and on white.
_DARKEST, _LIGHTEST = 0.35, 0.93
#: The part of the range of lightness by which an object differs from the one before; the same for the hue (1 over the
#: plastic number, so that objects of like lightness differ in it).
_LIGHTNESS_STEP = 0.6180339887
_HUE_STEP = 0.7548776662
#: How far the hue swings either way.
_SWING_DEGREES = 25.0


@lru_cache(4096)
def shade(colour: Colour, number: int) -> Colour:
    """Return the RGB colour (0..255) of a label's object.

    Args:
        colour: the label's.
        number: of the object within its label, from 0; the first has the label's own colour.
    """
    if number == 0:
        return colour
    lightness, a, b = oklab(colour)
    extent = _LIGHTEST - _DARKEST
    shaded = _DARKEST + extent * (((lightness - _DARKEST) / extent + number * _LIGHTNESS_STEP) % 1)
    swing = 2 * ((0.5 + number * _HUE_STEP) % 1) - 1
    hue = np.arctan2(b, a) + np.radians(_SWING_DEGREES) * swing
    chroma = np.hypot(a, b)
    # A screen shows light and dark colours less vivid than others: the most vivid that it can.
    chromas = chroma * np.linspace(1, 0, 41)[:, None]
    lab = np.hstack([np.full_like(chromas, shaded), chromas * np.cos(hue), chromas * np.sin(hue)])
    linear = (lab @ _FROM_OKLAB) ** 3 @ _FROM_CONES
    fits = (linear.min(axis=1) > -1e-3) & (linear.max(axis=1) < 1.001)
    linear = linear[fits.argmax()].clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (round(255 * float(c)) for c in encoded)
    return red, green, blue


def oklab(colour: Colour) -> NDArray[np.float64]:
    """Return lightness (0..1) and the two colour axes of an sRGB colour; 0.02 is about what one just sees."""
    encoded = np.array(colour) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return _OKLAB @ np.cbrt(_CONES @ linear)
