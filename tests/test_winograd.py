"""medseg/models/winograd.py: the same sums in another order."""

import pytest
import torch
from network_fixtures import tiny_plan
from torch import nn

from medseg.models import fused, winograd
from medseg.models.inference_form import for_inference
from medseg.models.mask_rcnn import build_mask_rcnn

needs_nnpack = pytest.mark.skipif(
    not (winograd.is_available() and fused.is_available()), reason="this torch or processor has no NNPACK or oneDNN"
)


def exchanged(model: nn.Module) -> bool:
    return any(isinstance(m, winograd.WinogradConv2d) for m in model.modules())


def layer(bias: bool) -> nn.Conv2d:
    torch.manual_seed(1)
    return nn.Conv2d(168, 176, 3, padding=1, bias=bias)


@needs_nnpack
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_is_the_convolution(bias: bool, layout: torch.memory_format) -> None:
    plain = layer(bias)
    images = torch.randn((3, 168, 31, 37), generator=torch.Generator().manual_seed(2))
    expected = plain.double()(images.double())
    plain.float()
    with torch.inference_mode():
        quick = winograd.WinogradConv2d.of(plain)
        found = quick(images.contiguous(memory_format=layout))
        assert found.is_contiguous(memory_format=torch.channels_last)
        first = winograd.WinogradConv2d.of(plain, relu=True, layout=torch.contiguous_format)(images)
        assert first.is_contiguous() and torch.equal(first, found.relu())
        residual = torch.ones_like(found)
        assert torch.equal(winograd.WinogradConv2d.of(plain, relu=True)(images, residual), (found + 1).relu())
        alone = [quick(image[None]) for image in images]
        for part in (images[..., :29], images[:, :, :, :5]):  # fewer than 900 pixels: the plain way
            torch.testing.assert_close(quick(part), plain(part), rtol=0, atol=1e-5)
    assert (found - expected).abs().max() < 3e-4 * expected.std()
    assert not torch.equal(found, plain(images))  # not the plain way
    assert torch.equal(torch.cat(alone), found)  # whatever else is in the batch


@needs_nnpack
def test_only_what_gains_is_exchanged() -> None:
    kept = [
        nn.Conv2d(128, 127, 3, padding=1),
        nn.Conv2d(128, 128, 3, padding=1, stride=2),
        nn.Conv2d(128, 128, 3),
        nn.Conv2d(128, 128, 3, padding=2, dilation=2),
        nn.Conv2d(128, 128, 3, padding=1, groups=2),
        nn.Conv2d(128, 128, 5, padding=1),
        nn.Conv2d(128, 128, 3, padding=1, padding_mode="reflect"),
    ]
    model = nn.Sequential(*kept, nn.Sequential(nn.Conv2d(128, 128, 3, padding=1)))
    fused.fuse(model)
    winograd.use_winograd(model, torch.channels_last)
    assert not any(isinstance(layer, winograd.WinogradConv2d) for layer in list(model)[:-1])
    exchanged = model[-1][0]
    assert isinstance(exchanged, winograd.WinogradConv2d)
    winograd.use_winograd(model, torch.channels_last)
    assert model[-1][0] is exchanged


@needs_nnpack
def test_a_wide_network_finds_the_same_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tiny_plan({"model.fpn_channels": 128, "inference.score_threshold": 0.3})
    torch.manual_seed(5)
    model = build_mask_rcnn(plan).eval()
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.1)
    images = torch.randn((2, model.channels, 256, 224), generator=torch.Generator().manual_seed(3))
    quick = for_inference(model, torch.float32)
    assert exchanged(quick)
    assert not exchanged(for_inference(model, torch.bfloat16))
    narrow = build_mask_rcnn(tiny_plan({"model.fpn_channels": 64}))
    assert not exchanged(for_inference(narrow, torch.float32))
    monkeypatch.setattr(winograd, "is_available", lambda: False)
    plain = for_inference(model, torch.float32)
    assert not exchanged(plain)
    with torch.inference_mode():
        for found, expected in zip(quick(images), plain(images), strict=True):
            assert len(expected.scores) > 3
            torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-2)
            torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)
            torch.testing.assert_close(found.masks, expected.masks, rtol=0, atol=1e-2)
