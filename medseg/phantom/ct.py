"""From a sharp picture of the patient to what a scanner would have stored: kernel, noise, streaks, rounding."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.phantom.shapes import Array

#: SD of the in-plane point spread of the soft-tissue kernel, mm, and of the slice profile, in slices.
KERNEL_SD_MM = 1.1
PROFILE_SD_SLICES = 0.3


def blur(hu: Array, spacing_mm: tuple[float, float, float]) -> Array:
    """Return the picture seen through the scanner's point spread and slice profile."""
    sd = (PROFILE_SD_SLICES, KERNEL_SD_MM / spacing_mm[1], KERNEL_SD_MM / spacing_mm[2])
    return ndimage.gaussian_filter(hu, sd, truncate=2.5, mode="nearest")


def noise(
    rng: np.random.Generator, inside: NDArray[np.bool_], spacing_mm: tuple[float, float, float], noise_sd: float
) -> Array:
    """Return CT-like noise: correlated in plane, stronger in the middle of the body, with slight streaks.

    Filtered back-projection passes noise of a band: the power rises with the frequency (the ramp) and the
    kernel's roll-off takes it down again (S. J. Riederer et al., Phys. Med. Biol. 23 (1978) 446).

    Args:
        rng: the source of all randomness.
        inside: bool (slice, row, column), the body.
        spacing_mm: (slice, row, column).
        noise_sd: mean SD inside the body, HU.
    """
    shape = inside.shape
    frequency = np.hypot(
        np.fft.fftfreq(shape[1], spacing_mm[1])[:, None], np.fft.rfftfreq(shape[2], spacing_mm[2])[None]
    )
    peak = 0.11  # cycles per mm
    transfer = np.sqrt(frequency / peak + 0.12) * np.exp(-0.5 * np.square(frequency / peak))
    white = rng.standard_normal(shape, dtype=np.float32)
    # Neighbouring slices share a little of their noise.
    white[1:] += 0.25 * white[:-1]
    grain = np.fft.irfft2(np.fft.rfft2(white, axes=(1, 2)) * transfer.astype(np.float32), s=shape[1:], axes=(1, 2))
    grain = grain.astype(np.float32)
    depth = ndimage.gaussian_filter(
        inside.astype(np.float32), (0, 32 / spacing_mm[1], 32 / spacing_mm[2]), truncate=2, mode="constant"
    )
    local = 0.45 + 0.7 * depth
    streaks = rng.standard_normal((shape[0], shape[1]), dtype=np.float32)
    streaks = ndimage.gaussian_filter(streaks, (0.5, 3.0 / spacing_mm[1]))
    streaks /= streaks.std() + np.float32(1e-6)
    result = grain / grain.std() + 0.18 * streaks[:, :, None] * depth
    result *= local
    scale = result[inside].std() if inside.any() else result.std()
    return (result * np.float32(noise_sd / scale)).astype(np.float32)


def store(hu: Array) -> NDArray[np.int16]:
    """Return whole HU in the range of a 12-bit scanner."""
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
