"""The small network of the notebooks: its file loads, finds what it was trained on, and keeps what is put into it."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.inference.predictor import Predictor
from medseg.metrics.case import evaluate_case
from medseg.models.mask_rcnn import build_mask_rcnn
from medseg.phantom import make_phantom

sys.path.append(str(Path(__file__).resolve().parents[1] / "notebooks"))
small_network = importlib.import_module("small_network")

LARGEST_BYTES = 3_000_000


@pytest.fixture(scope="module")
def network():
    return small_network.load_small_network()


def test_file_is_small_and_finds_the_organs_of_a_phantom(network):
    assert small_network.FILE.stat().st_size < LARGEST_BYTES
    phantom = make_phantom(seed=71, shape=(12, 128, 128), spacing_mm=(8.0, 2.8, 2.8))
    plan, model = network
    found = Predictor(plan, model, torch.device("cpu")).predict((phantom.volume,)).instances
    result = evaluate_case(phantom.instances, found, surface=None)
    organs = [label.name for label in phantom.instances.labels if label.kind == "single"]
    assert np.mean([result.of(name).voxels.dice for name in organs]) > 0.7


def test_weights_of_whole_steps_come_back_exactly(network, tmp_path: Path):
    plan, _ = network
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for name, value in build_mask_rcnn(plan).state_dict().items():
        if value.ndim < 2:
            weights[name] = torch.randn(value.shape, generator=generator).half().float()
            continue
        numbers = torch.randint(-31, 32, value.shape, generator=generator).float()
        numbers.reshape(len(value), -1)[:, 0] = 31  # so that a row's step is known
        steps = 0.25 * 2.0 ** torch.randint(-3, 4, (len(value),), generator=generator)
        weights[name] = numbers * steps.reshape(-1, *[1] * (value.ndim - 1))
    path = tmp_path / "network.safetensors"
    small_network.save_small_network(path, plan, weights)
    again, model = small_network.load_small_network(path)
    assert again == plan
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_no_step_loses_more_than_the_one_that_cuts_nothing_off(tmp_path: Path, network):
    plan, model = network
    weights = {name: value + 0.001 * torch.randn_like(value) for name, value in model.state_dict().items()}
    path = tmp_path / "network.safetensors"
    small_network.save_small_network(path, plan, weights)
    _, again = small_network.load_small_network(path)
    for name, value in again.state_dict().items():
        if value.ndim >= 2:
            rows, kept = weights[name].flatten(1), value.flatten(1)
            lost = ((rows - kept) ** 2).sum(dim=1)
            naive = rows.abs().amax(dim=1, keepdim=True).div(31).half().float()  # a step that cuts nothing off
            assert (lost <= ((rows - (rows / naive).round() * naive) ** 2).sum(dim=1) * 1.0001).all(), name
