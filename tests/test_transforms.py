"""Random changes of intensities: each against what it says, all from one generator."""

import numpy as np
import pytest
import torch
from monai.transforms import AdjustContrast
from scipy import ndimage

from medseg.data.transforms import adjust_gamma, blur, change_intensities, lower_resolution
from medseg.errors import ConfigError
from medseg.values.augmentation import AugmentationPlan

SHARES = {f"{name}_share": 0.0 for name in ("contrast", "brightness", "gamma", "low_resolution", "blur", "noise")}


def only(**fields: object) -> AugmentationPlan:
    return AugmentationPlan.model_validate({**SHARES, **fields})


def changed(image: torch.Tensor, plan: AugmentationPlan, seed: int = 0) -> torch.Tensor:
    return change_intensities(image.clone(), plan, np.random.default_rng(seed))


@pytest.fixture
def image(rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(rng.uniform(-1, 1, (2, 17, 23)).astype(np.float32))


def test_without_shares_nothing_changes(image: torch.Tensor) -> None:
    assert torch.equal(changed(image, only()), image)


def test_contrast_and_brightness_stay_within_their_ranges(image: torch.Tensor) -> None:
    factors, shifts = [], []
    for seed in range(40):
        factors.append((changed(image, only(contrast_share=1.0, contrast=0.3), seed) / image).mean().item())
        shifts.append((changed(image, only(brightness_share=1.0, brightness=0.2), seed) - image).mean().item())
    assert 0.7 <= min(factors) < 0.8 and 1.2 < max(factors) <= 1.3
    assert -0.2 <= min(shifts) < -0.12 and 0.12 < max(shifts) <= 0.2


def test_gamma_keeps_the_range_and_the_order(image: torch.Tensor) -> None:
    out = changed(image, only(gamma_share=1.0, gamma=(2.0, 2.0)))
    low, high = image.min(), image.max()
    torch.testing.assert_close(out, ((image - low) / (high - low)) ** 2 * (high - low) + low, atol=1e-5, rtol=0)
    for gamma in (0.8, 1.25):
        np.testing.assert_allclose(adjust_gamma(image, gamma), AdjustContrast(gamma=gamma)(image), atol=1e-6)
    assert torch.equal(adjust_gamma(torch.full((1, 5, 7), 0.3), 1.2), torch.full((1, 5, 7), 0.3))


def test_blur_is_a_gaussian(image: torch.Tensor) -> None:
    for sigma in (0.3, 0.8):
        radius = ndimage.gaussian_filter(image.numpy(), (0, sigma, sigma), mode="nearest", radius=(0, 2, 2))
        np.testing.assert_allclose(blur(image, sigma).numpy(), radius, atol=1e-5)


def test_low_resolution_keeps_what_is_flat_and_loses_what_is_fine() -> None:
    flat = torch.full((2, 17, 23), 0.3)
    torch.testing.assert_close(lower_resolution(flat, 1.9), flat)
    stripes = torch.tensor([1.0, -1.0]).repeat(2, 16, 12)
    assert torch.equal(lower_resolution(stripes, 1.0), stripes)
    halved = lower_resolution(stripes, 2.0)
    assert halved.shape == stripes.shape and halved.std() < 0.1  # every second column is the same one


def test_noise_has_its_standard_deviation() -> None:
    flat = torch.zeros((3, 64, 64))
    deviations = [changed(flat, only(noise_share=1.0, noise=0.4), seed).std().item() for seed in range(40)]
    assert max(deviations) < 0.41 and 0.15 < np.mean(deviations) < 0.25
    noise = changed(flat, only(noise_share=1.0, noise=0.4), 1)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.06


def test_shares_are_those_of_the_plan(image: torch.Tensor) -> None:
    hits = sum(not torch.equal(changed(image, only(noise_share=0.3), seed), image) for seed in range(400))
    assert abs(hits / 400 - 0.3) < 4 * (0.21 / 400) ** 0.5


def test_all_of_it_is_a_function_of_the_generator(image: torch.Tensor) -> None:
    plan = AugmentationPlan.model_validate({key: 1.0 for key in SHARES})
    torch.manual_seed(1)
    first = changed(image, plan, 5)
    torch.manual_seed(2)
    np.random.seed(2)
    again = changed(image, plan, 5)
    assert type(first) is torch.Tensor and torch.equal(first, again) and first.isfinite().all()
    assert not torch.equal(first, changed(image, plan, 6))


def test_ranges_are_checked() -> None:
    from network_fixtures import tiny_plan

    for field, value in (("gamma", [1.2, 0.8]), ("blur_pixels", [0.0, 1.0]), ("elastic", 0.6), ("zoom", 1.0)):
        with pytest.raises(ConfigError, match=rf"training\.augmentation.*{field}|{field}"):
            tiny_plan({f"training.augmentation.{field}": value})
