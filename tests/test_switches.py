"""Every switch of the network, with the parts that the planner adds for small objects: it learns, and predicts."""

from typing import Any

import pytest
import torch
from network_fixtures import LABELS, one_image, tiny_plan

from medseg.data.cache import CachedCase, load_case, prepare_case
from medseg.data.dataset import SliceDataset
from medseg.errors import ConfigError
from medseg.inference.predictor import Predictor
from medseg.models.mask_rcnn import build_mask_rcnn
from medseg.training.optimizer import build_optimizer
from medseg.training.step import Stepper

CPU = torch.device("cpu")
#: What the planner decides where objects are small.
PLANNED: dict[str, Any] = {
    "model.stem": "deep",
    "model.fpn_norm": "group",
    "model.finest_stride": 2,
    "model.coarsest_stride": 16,
    "model.semantic_head": True,
    "model.mask_margin": 0.1,
    "model.anchor_sizes": [[6.0], [10.0], [16.0], [26.0]],
    "input.context_mm": [-5.0, 0.0, 5.0],
    "training.crop_size": [32, 64],
    "training.augment": False,
    "training.learning_rate": 2e-3,
    "inference.score_threshold": 0.0,
    "inference.detections_per_slice": 4,
}
MASKS = (
    {},
    {"model.mask_head": "class_agnostic"},
    {"model.mask_loss": "softmax"},
)
SWITCHES = [
    *({**{"model.roi_op": op}, **mask} for op in ("align", "pool") for mask in MASKS),
    *({"model.backbone": name} for name in ("resnet34", "resnet50")),
    {"input.context_mm": [0.0]},
    {"model.rpn_convolutions": 2, "model.box_head_convolutions": 2, "model.head_norm": "group"},
    {"model.stem": "conv7", "model.finest_stride": 4, "model.anchor_sizes": [[8.0], [14.0], [24.0]]},
]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> CachedCase:
    folder = tmp_path_factory.mktemp("cases")
    prepare_case("case", *one_image(0, (6, 60, 68)), tiny_plan().input, folder)
    return load_case(folder, "case")


@pytest.mark.parametrize("settings", SWITCHES, ids=lambda s: ",".join(f"{v}" for v in s.values()))
def test_a_few_steps_lower_the_loss_and_a_volume_is_predicted(case: CachedCase, settings: dict[str, Any]) -> None:
    plan = tiny_plan({**PLANNED, **settings})
    torch.manual_seed(1)
    model = build_mask_rcnn(plan).train()
    optimizer = build_optimizer(model, plan.training)
    stepper = Stepper(model, plan.training, CPU)
    dataset = SliceDataset([case], plan, 16, 0)
    batch = [s for s in (dataset[i] for i in range(16)) if len(s.boxes)][:2]
    losses = []
    try:
        for _ in range(4):
            found, _ = stepper.gradients(batch)
            optimizer.step()
            losses.append(sum(found.values()))
    finally:
        stepper.close()
    assert losses[-1] < 0.95 * losses[0], losses
    volumes, _ = one_image(1, (3, 41, 52))
    prediction = Predictor(plan, model, CPU).predict(volumes)
    assert prediction.instances.labels == LABELS
    assert prediction.instances.geometry.spatial_shape == volumes[0].spatial_shape


def test_masks_that_compete_need_a_mask_per_class() -> None:
    with pytest.raises(ConfigError, match="mask_loss softmax compares classes; it needs mask_head class_specific") as e:
        tiny_plan({"model.mask_head": "class_agnostic", "model.mask_loss": "softmax"})
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("key", ["model.roi_op", "model.mask_head", "model.mask_loss", "model.backbone"])
def test_an_unknown_choice_is_refused_by_name(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"settings: {key}: Input should be .* \(found 'other'\)"):
        tiny_plan({key: "other"})
