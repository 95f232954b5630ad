"""medseg/models/fused.py: the same sums with fewer passes over memory."""

import copy

import pytest
import torch
from network_fixtures import tiny_plan
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from medseg.models import fused, winograd
from medseg.models.inference_form import for_inference
from medseg.models.layout import channels_first, channels_last
from medseg.models.mask_rcnn import MaskRCNN, build_mask_rcnn

needs_onednn = pytest.mark.skipif(not fused.is_available(), reason="this torch has no oneDNN")


def wide_network(settings: dict) -> MaskRCNN:
    """Return a network whose pyramid has 128 channels, its normalisation not that of a fresh one."""
    plan = tiny_plan({"model.fpn_channels": 128, "inference.score_threshold": 0.3, **settings})
    torch.manual_seed(5)
    model = build_mask_rcnn(plan).eval()
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.1)
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.bias.uniform_(-0.2, 0.3)
    return model


def kinds(model: nn.Module) -> set[type]:
    return {type(module) for module in model.modules()}


@needs_onednn
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("shape", [(5, 7, 1, 1, 0), (6, 4, 3, 2, 1), (3, 8, 7, 2, 3)])
def test_it_is_the_convolution_and_what_follows(relu: bool, shape: tuple) -> None:
    channels, results, size, stride, border = shape
    torch.manual_seed(1)
    plain = nn.Conv2d(channels, results, size, stride, border)
    images = torch.randn((2, channels, 11, 13))
    with torch.inference_mode():
        expected = plain(images)
        residual = torch.randn_like(expected)
        quick = fused.FusedConv2d.of(plain, relu)
        for layout in (torch.contiguous_format, torch.channels_last):
            given = images.contiguous(memory_format=layout)
            torch.testing.assert_close(quick(given), expected.relu() if relu else expected, rtol=0, atol=1e-5)
        added = (expected + residual).relu() if relu else expected + residual
        own = residual.contiguous(memory_format=torch.channels_last)
        found = quick(images, own)
        torch.testing.assert_close(found, added, rtol=0, atol=1e-5)
        assert found.data_ptr() == own.data_ptr()
        assert quick(images[:0]).shape == (0, *expected.shape[1:])


@needs_onednn
@pytest.mark.skipif(not winograd.is_available(), reason="this torch or processor has no NNPACK")
@pytest.mark.parametrize("side", [32, 160])
@pytest.mark.parametrize(
    ("settings", "blocks", "pyramid"),
    [
        ({"model.norm": "frozen_batch"}, True, True),
        ({"model.norm": "frozen_batch", "model.backbone": "resnet50", "model.fpn_norm": "frozen_batch",
          "model.box_head_convolutions": 1, "model.semantic_head": True}, True, True),
        ({"model.fpn_norm": "group", "model.head_norm": "group"}, False, False),
    ],
)  # fmt: skip
def test_a_network_of_fused_parts_finds_the_same(settings: dict, blocks: bool, pyramid: bool, side: int) -> None:
    model = wide_network(settings)
    before = copy.deepcopy(model.state_dict())
    images = torch.randn((2, model.channels, side, side + 32), generator=torch.Generator().manual_seed(3))
    quick = for_inference(model, torch.float32)
    found = kinds(quick)
    assert fused.FusedConv2d in found and winograd.WinogradConv2d in found
    assert (fused.Residual in found, fused.Pyramid in found) == (blocks, pyramid)
    with torch.inference_mode():
        for mine, expected in zip(quick.backbone(images).items(), model.backbone(images).items(), strict=True):
            assert mine[0] == expected[0]
            torch.testing.assert_close(mine[1], expected[1], rtol=2e-3, atol=2e-4 * float(expected[1].abs().max()))
        for ours, theirs in zip(quick(images), model(images), strict=True):
            assert len(theirs.scores)
            torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=0, atol=1e-2)
            torch.testing.assert_close(ours.scores, theirs.scores, rtol=0, atol=1e-4)
            torch.testing.assert_close(ours.masks, theirs.masks, rtol=0, atol=1e-2)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_other_networks_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    wide, narrow = wide_network({}), build_mask_rcnn(tiny_plan({"model.fpn_channels": 64}))
    assert fused.FusedConv2d not in kinds(for_inference(wide, torch.bfloat16))
    assert fused.FusedConv2d not in kinds(for_inference(narrow, torch.float32))
    monkeypatch.setattr(fused, "is_available", lambda: False)
    assert fused.FusedConv2d not in kinds(for_inference(wide, torch.float32))


@pytest.mark.parametrize("turn", [channels_first, channels_last])
def test_turned_images_are_the_same(turn) -> None:
    wanted = torch.contiguous_format if turn is channels_first else torch.channels_last
    images = torch.randn(3, 5, 7, 11)
    for given in (images, images.contiguous(memory_format=torch.channels_last), images[:, 1:3, ::2, 1:6]):
        turned = turn(given)
        assert torch.equal(turned, given) and turned.is_contiguous(memory_format=wanted)
