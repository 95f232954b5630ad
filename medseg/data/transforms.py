"""Random changes of a sample's intensities; its geometry changes in `medseg.data.warp`.

Contrast is MONAI's. The others are not, for time and for exactness: with a 512 x 512 crop of three channels MONAI's
Gaussian takes four times as long as the sums below (a convolution of one channel), its noise four times (float64 from
numpy's old generator), its gamma three times (arithmetic with metadata; a test holds ours to its values), and moving
each mask as a whole slice grows with the objects, while `warp` moves their boxes. Everything here is elementwise, so
the bits do not depend on the number of threads.
"""

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import NdarrayOrTensor
from monai.transforms import ScaleIntensity
from torch import Tensor

from medseg.values.augmentation import AugmentationPlan

#: Pixels on each side that a Gaussian reaches.
BLUR_REACH = 2


def change_intensities(image: Tensor, plan: AugmentationPlan, rng: np.random.Generator) -> Tensor:
    """Return a sample's image with contrast, brightness, gamma, resolution, blur and noise changed at random.

    Args:
        image: [C, H, W] float32; all channels are changed alike, but for noise, which is drawn pixel by pixel.
        plan: shares and ranges.
        rng: decides everything.
    """
    if rng.random() < plan.contrast_share:
        scale = ScaleIntensity(minv=None, maxv=None, factor=float(rng.uniform(-plan.contrast, plan.contrast)))
        image = _plain(scale(image))
    if rng.random() < plan.brightness_share:
        image = image + float(rng.uniform(-plan.brightness, plan.brightness))
    if rng.random() < plan.gamma_share:
        image = adjust_gamma(image, float(rng.uniform(*plan.gamma)))
    if rng.random() < plan.low_resolution_share:
        image = lower_resolution(image, float(rng.uniform(1.0, plan.low_resolution)))
    if rng.random() < plan.blur_share:
        image = blur(image, float(rng.uniform(*plan.blur_pixels)))
    if rng.random() < plan.noise_share:
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        image = torch.randn(image.shape, generator=generator).mul_(float(rng.uniform(0, plan.noise))).add_(image)
    return image


def adjust_gamma(image: Tensor, gamma: float) -> Tensor:
    """Raise [C, H, W], scaled to 0..1, to a power, and scale it back."""
    low, high = image.aminmax()
    extent = high - low
    return ((image - low) / (extent + 1e-7)).pow_(gamma).mul_(extent).add_(low)


def lower_resolution(image: Tensor, factor: float) -> Tensor:
    """Sample [C, H, W] down by a factor to the nearest pixels, and up again with linear interpolation.

    Isensee et al. 2021, Nature Methods 18:203, supplement 4.
    """
    small = [max(1, round(n / factor)) for n in image.shape[1:]]
    down = F.interpolate(image[None], size=small, mode="nearest-exact")
    return F.interpolate(down, size=image.shape[1:], mode="bilinear", align_corners=False)[0]


def blur(image: Tensor, sigma_pixels: float) -> Tensor:
    """Smooth the last two axes of [C, H, W] with a Gaussian, its edge repeated beyond it."""
    taps = np.exp(-0.5 * (np.arange(-BLUR_REACH, BLUR_REACH + 1) / sigma_pixels) ** 2)
    weights = (taps / taps.sum()).tolist()
    padded = F.pad(image[None], (BLUR_REACH,) * 4, mode="replicate")[0]
    for axis in (1, 2):
        length = image.shape[axis]
        parts = [padded.narrow(axis, start, length) for start in range(len(weights))]
        padded = parts[0] * weights[0]
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            padded.add_(part, alpha=weight)
    return padded


def _plain(image: NdarrayOrTensor) -> Tensor:
    return torch.as_tensor(image).as_subclass(Tensor)  # MONAI's carries an affine along, which is none here
