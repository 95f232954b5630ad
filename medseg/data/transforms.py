"""Augmentation of a slice and its object masks together, with MONAI's transforms."""

import numpy as np
import torch
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandShiftIntensityd,
)
from numpy.typing import NDArray
from torch import Tensor

from medseg.values.plan import TrainingPlan

IMAGE, MASKS = "image", "masks"
#: The window that is cut out before augmentation is this much larger than the training crop, so that
#: rotating and scaling bring in tissue and not emptiness.
OVERSIZE = 1.25


def build_augmentation(plan: TrainingPlan, size: tuple[int, int]) -> Compose:
    """Return the chain for {"image": [C, H, W], "masks": [G, H, W]} float tensors, result of size (rows, columns).

    Geometry moves image and masks alike (both linear; masks come out as shares in 0..1); intensities change
    in the image alone. Mirroring only where the plan allows it: a mirrored patient has the liver on the left.
    """
    both = (IMAGE, MASKS)
    return Compose(
        [
            RandAffined(
                both,
                prob=1.0,
                rotate_range=0.15,
                shear_range=(0.05, 0.05),
                scale_range=(0.15, 0.15),
                spatial_size=size,
                mode=("bilinear", "bilinear"),
                padding_mode=("border", "zeros"),
            ),
            RandFlipd(both, prob=0.5 if plan.flip_columns else 0.0, spatial_axis=1),
            RandGaussianSmoothd((IMAGE,), prob=0.1, sigma_x=(0.3, 0.8), sigma_y=(0.3, 0.8)),
            RandGaussianNoised((IMAGE,), prob=0.2, std=0.05),
            RandAdjustContrastd((IMAGE,), prob=0.2, gamma=(0.8, 1.25)),
            RandScaleIntensityd((IMAGE,), prob=0.5, factors=0.1),
            RandShiftIntensityd((IMAGE,), prob=0.5, offsets=0.1),
        ]
    )


def augment(chain: Compose, image: NDArray[np.float32], masks: NDArray[np.float32], seed: int) -> tuple[Tensor, Tensor]:
    """Apply the chain with its random choices drawn from ``seed`` alone.

    Args:
        chain: from `build_augmentation`.
        image: [C, H, W].
        masks: [G, H, W] in 0..1; G may be 0.
        seed: of this sample.

    Returns:
        Image [C, h, w] and masks [G, h, w], plain float32 tensors in the chain's size.
    """
    chain.set_random_state(seed=seed % (2**32))
    # MONAI refuses a key of zero channels, so an empty slice carries one empty mask through.
    stack = masks if len(masks) else np.zeros((1, *image.shape[1:]), np.float32)
    out = chain({IMAGE: torch.from_numpy(image), MASKS: torch.from_numpy(stack)})
    moved_image, moved_masks = (torch.as_tensor(out[key]).as_subclass(Tensor).contiguous() for key in (IMAGE, MASKS))
    return moved_image, moved_masks[: len(masks)]
