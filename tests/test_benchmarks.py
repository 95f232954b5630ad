"""pipelines/benchmark_*.py: both sides compute the same, and the arithmetic that the figures rest on."""

import importlib
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from medseg.data.sample import Sample
from medseg.labels import LabelTable
from medseg.models import fused, winograd
from medseg.models.mask_rcnn import MaskRCNN, build_mask_rcnn
from medseg.values.geometry import make_volume
from medseg.values.instances import InstanceSet

CPU = torch.device("cpu")
CEILINGS = {
    **{f"{kind}_{dtype}_flops": 1e9 for kind in ("matmul", "conv") for dtype in ("float32", "bfloat16")},
    "copy_bytes": 1e9,
}


@pytest.fixture(scope="module", autouse=True)
def pipelines() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "pipelines"))


def pipeline(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def network() -> MaskRCNN:
    """Return the benchmark's network, drawn at random, its statistics settled on one batch of noise."""
    training = pipeline("train_benchmark_model")
    torch.manual_seed(0)
    model = build_mask_rcnn(training.benchmark_plan(steps=2))
    training.exchange_norms(model, FrozenBatchNorm2d, nn.BatchNorm2d)
    nothing = np.zeros((0, 4), np.float32)
    batch = [Sample(image, nothing, (), 0) for image in torch.randn(2, 3, 64, 64)]
    training.settle_norms(model.train(), [batch], CPU)
    training.exchange_norms(model, nn.BatchNorm2d, FrozenBatchNorm2d)
    return model.eval()


def test_the_network_has_torchvisions_names_and_computes_the_same_there(network: MaskRCNN) -> None:
    references, parts = pipeline("benchmark_references"), pipeline("benchmark_parts")
    stock = references.Stock(network, 64, CPU)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with parts.staged(CPU, time.process_time) as stages:
        stock(image)
    stages_of_torchvision = {
        "resize",
        "backbone",
        "pyramid",
        "proposals",
        "roi_align",
        "box_head",
        "mask_head",
        "paste",
    }
    assert stages.keys() == stages_of_torchvision
    (theirs,) = stock.detections((1, 2, 3, 4, 5, 6))
    with torch.inference_mode(), parts.staged(CPU, time.process_time) as stages:
        (ours,) = network(image)
    assert stages.keys() == stages_of_torchvision - {"resize", "paste"}
    assert len(theirs) == len(ours.scores) > 0
    np.testing.assert_allclose(theirs.scores, ours.scores.numpy(), atol=1e-4)
    np.testing.assert_allclose(theirs.boxes, ours.boxes.numpy(), atol=1e-2)
    np.testing.assert_allclose(theirs.masks, ours.masks.numpy(), atol=1e-3)
    assert stock.detections((1,)) == []  # given once


def test_work_is_counted_as_by_hand() -> None:
    parts = pipeline("benchmark_parts")
    layer, image = nn.Conv2d(3, 5, 3, bias=False), torch.zeros(2, 3, 11, 9)
    with torch.no_grad():
        flops, moved = parts.counted(lambda: layer(image).view(-1))
    assert flops == 2 * (2 * 9 * 7 * 5) * 27
    assert moved == 4 * (image.numel() + layer.weight.numel() + 2 * 9 * 7 * 5)


@pytest.mark.skipif(not (winograd.is_available() and fused.is_available()), reason="torch without NNPACK or oneDNN")
def test_other_ways_of_convolving_count_as_the_plain_sum() -> None:
    plain, image = nn.Conv2d(128, 128, 3, padding=1), torch.randn(1, 128, 48, 56)
    counted = pipeline("benchmark_parts").counted
    with torch.inference_mode():
        for layer in (winograd.WinogradConv2d.of(plain), fused.FusedConv2d.of(plain)):
            assert counted(lambda layer=layer: layer(image))[0] == 2 * 48 * 56 * 9 * 128 * 128
        residual = torch.zeros_like(image)
        assert counted(lambda: fused.FusedConv2d.of(plain)(image, residual))[0] == 2 * 48 * 56 * 9 * 128 * 128


def test_the_floor_is_of_what_takes_longer() -> None:
    parts = pipeline("benchmark_parts")
    ceilings = {**CEILINGS, "conv_float32_flops": 2e9}
    assert parts.floor_seconds(4e9, 1e9, ceilings, "float32") == 2.0
    assert parts.floor_seconds(4e9, 3e9, ceilings, "float32") == 3.0


def test_ratios_are_of_runs_that_took_turns() -> None:
    parts = pipeline("benchmark_parts")
    slow = [parts.Spent(2.0, 3.0), parts.Spent(40.0, 8.0), parts.Spent(6.0, 9.0)]
    quick = [parts.Spent(1.0, 1.0), parts.Spent(10.0, 4.0), parts.Spent(2.0, 2.0)]
    assert parts.median_ratio(slow, quick) == {"wall": 3.0, "processor": 3.0}


def test_peak_memory_is_what_was_taken_and_given_back() -> None:
    parts = pipeline("benchmark_parts")

    def work() -> None:
        block = torch.zeros(64 * 2**18)  # 64 MiB
        for _ in range(8):
            block += 1

    assert 60 < parts.peak_mib(work, CPU) < 80


def test_objects_are_compared() -> None:
    inference = pipeline("benchmark_inference")
    labels = LabelTable.from_names(["a", "b"])
    volume = make_volume(np.zeros((4, 5, 7), np.int16), np.diag([2.0, 2.0, 3.0, 1.0]), "test")
    mask, moved = np.zeros((2, 4, 5, 7), bool)
    mask[1:3, 1:3, 1:5] = True
    moved[1:3, 1:3, 2:6] = True
    reference = InstanceSet.from_masks([(1, mask)], volume, labels)
    found = inference.compare(reference, InstanceSet.from_masks([(1, moved)], volume, labels))
    assert found["objects"] == [1, 1]
    assert found["matched"] == 1
    assert found["dice_of_matched"] == found["mean_dice"] == 0.75
    assert found["dice"] == {"a": 0.75, "b": None}
