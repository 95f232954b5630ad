"""What makes inference quick changes nothing: each part against the plain way."""

import copy

import numpy as np
import pytest
import torch
from network_fixtures import simple_case, tiny_plan
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import FrozenBatchNorm2d, nms, roi_align
from torchvision.ops import box_iou as torchvision_iou

from medseg.data.context import network_input
from medseg.data.grid import NetworkGrid, to_network_grid
from medseg.inference.feeding import STRIDE, feed
from medseg.inference.predictor import Predictor
from medseg.models.box_iou import box_iou
from medseg.models.inference_form import choose_precision, for_inference
from medseg.models.mask_rcnn import MaskRCNN, build_mask_rcnn
from medseg.models.roi_cpu import align_on_cpu, cut_on_cpu
from medseg.models.suppression import grouped_nms
from medseg.values.plan import InputPlan

CPU = torch.device("cpu")
#: A network that was never trained finds something everywhere at this threshold.
FINDS = {"inference.score_threshold": 0.3, "inference.precision": "float32", "input.air_threshold": None}


def random_boxes(count: int, generator: torch.Generator) -> Tensor:
    corner = torch.rand((count, 2), generator=generator) * 60
    return torch.cat([corner, corner + 1 + torch.rand((count, 2), generator=generator) * 40], dim=1)


def untrained(settings: dict, seed: int = 5) -> tuple[Predictor, MaskRCNN]:
    plan = tiny_plan({**FINDS, **settings})
    torch.manual_seed(seed)
    model = build_mask_rcnn(plan).eval()
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.1)  # scores differ
    return Predictor(plan, model, CPU), model


def test_a_group_is_suppressed_as_if_it_were_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    boxes, scores = random_boxes(400, generator), torch.rand(400, generator=generator).round(decimals=2)
    groups = torch.randint(0, 7, (400,), generator=generator)
    groups[groups == 3] = 4  # a group of none
    found = grouped_nms(boxes, scores, groups, 0.4)
    assert (scores[found].diff() <= 0).all()
    for group in range(7):
        own = torch.nonzero(groups == group)[:, 0]
        expected = own[nms(boxes[own], scores[own], 0.4)] if len(own) else own
        assert sorted(found[groups[found] == group].tolist()) == sorted(expected.tolist())
    assert grouped_nms(boxes[:0], scores[:0], groups[:0], 0.4).shape == (0,)


@pytest.mark.cuda
def test_groups_on_a_gpu_are_those_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(2)
    boxes, scores = random_boxes(3000, generator), torch.rand(3000, generator=generator)
    groups = torch.randint(0, 40, (3000,), generator=generator)
    there = grouped_nms(boxes.cuda(), scores.cuda(), groups.cuda(), 0.5)
    assert there.cpu().tolist() == grouped_nms(boxes, scores, groups, 0.5).tolist()


@pytest.mark.parametrize("settings", [{}, {"model.finest_stride": 2, "model.coarsest_stride": 16}])
def test_proposals_are_torchvisions(settings: dict) -> None:
    _, model = untrained({**settings, "model.anchor_sizes": [[8.0], [14.0], [24.0], [40.0]]})
    images = torch.randn((3, model.channels, 96, 64), generator=torch.Generator().manual_seed(3))
    torch.nn.init.normal_(model.rpn.head.bbox_pred.weight, std=0.05)
    torch.nn.init.normal_(model.rpn.head.cls_logits.weight, std=0.2)
    with torch.inference_mode():
        features = model.backbone(images)
        shapes = ImageList(images, [(96, 64)] * 3)
        ours, losses = model.rpn(shapes, features)
        theirs, _ = RegionProposalNetwork.forward(model.rpn, shapes, features)
    assert losses == {}
    for mine, expected in zip(ours, theirs, strict=True):
        assert len(expected) > 5
        torch.testing.assert_close(mine, expected, rtol=0, atol=0)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("size", "sampling"), [(7, 2), (5, 3)])
def test_gathered_cells_are_roi_align_and_so_are_their_gradients(aligned: bool, size: int, sampling: int) -> None:
    generator = torch.Generator().manual_seed(4)
    features = torch.randn((2, 5, 13, 17), generator=generator)
    boxes = random_boxes(200, generator) * 1.5 - 20  # some reach beyond the slice, some lie outside of it
    rois = torch.cat([torch.randint(0, 2, (200, 1), generator=generator).float(), boxes], dim=1)
    wanted = torch.randn((200, 5, size, size), generator=generator)
    features.requires_grad_()
    expected = roi_align(features, rois, size, 0.25, sampling, aligned)
    (gradient,) = torch.autograd.grad(expected, features, wanted)
    for layout in (torch.contiguous_format, torch.channels_last):
        own = features.detach().contiguous(memory_format=layout).requires_grad_()
        found = align_on_cpu(own, rois, size, 0.25, sampling, aligned)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
        torch.testing.assert_close(torch.autograd.grad(found, own, wanted)[0], gradient, rtol=0, atol=2e-4)


@pytest.mark.parametrize("aligned", [True, False])
def test_masks_are_cut_as_roi_align_cuts_them(aligned: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    masks = (torch.rand((3, 37, 59), generator=generator) < 0.5).float()
    boxes = random_boxes(40, generator) * 1.3 - 10  # more than are cut at once; some lie outside of the slice
    index = torch.randint(0, 3, (40,), generator=generator)
    rois = torch.cat([index[:, None].float(), boxes], dim=1)
    expected = roi_align(masks[:, None], rois, 11, 1.0, 3, aligned)[:, 0]
    with torch.autocast("cpu", torch.bfloat16):
        found = cut_on_cpu(masks, boxes, index, 11, 3, aligned)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_overlaps_of_boxes_are_torchvisions_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(6)
    objects, anchors = random_boxes(7, generator), random_boxes(300, generator)
    anchors[:7], objects[6, 2:] = objects, objects[6, :2]  # the same box, and one without area
    expected = torchvision_iou(objects, anchors)
    assert expected.diag()[:6].eq(1).all() and 0 < expected[:6, 7:].max() < 1
    assert torch.equal(box_iou(objects, anchors).nan_to_num(-1), expected.nan_to_num(-1))


@pytest.mark.parametrize("offsets", [(0.0,), (-4.0, 0.0, 4.0), (-9.0, -3.5, 0.0, 1.25)])
@pytest.mark.parametrize("intensity", ["window", "zscore"])
def test_what_is_fed_is_the_networks_input(offsets: tuple, intensity: str, rng: np.random.Generator) -> None:
    windows = ((-160.0, 240.0), (-30.0, 95.0))
    plan = InputPlan(
        spacing_mm=(1.0, 1.0),
        context_mm=offsets,
        windows=windows,
        intensity=intensity,
        channel_names=("a", "b"),
    )
    array = rng.integers(-900, 900, (2, 7, 37, 64)).astype(np.int16 if intensity == "window" else np.float32)
    batches = [range(3), range(3, 6), range(6, 7)]
    fed = torch.cat(list(feed(array, batches, 2.5, plan, CPU))).numpy()
    assert fed.shape == (7, plan.channels, 64, 64)
    for index in range(7):
        expected = network_input(array, index, 2.5, plan)
        np.testing.assert_allclose(fed[index, :, :37], expected, rtol=0, atol=1e-6 if intensity == "window" else 1e-3)
        np.testing.assert_array_equal(fed[index, :, 37:], np.repeat(fed[index, :, 36:37], 27, axis=1))


def test_a_slice_smaller_than_two_cells_is_filled_up() -> None:
    plan = InputPlan(spacing_mm=(1.0, 1.0))
    (only,) = feed(np.full((1, 1, 3, 33), 40, np.int16), [range(1)], 1.0, plan, CPU)
    assert only.shape == (1, 1, 2 * STRIDE, 2 * STRIDE) and (only == 0).all()  # the middle of the window


@pytest.mark.parametrize(
    "settings",
    [
        {"model.norm": "frozen_batch", "model.fpn_norm": "frozen_batch", "model.head_norm": "frozen_batch"},
        {"model.norm": "frozen_batch", "model.stem": "deep", "model.box_head_convolutions": 2,
         "model.head_norm": "frozen_batch", "model.semantic_head": True},
        {"model.backbone": "resnet50", "model.norm": "frozen_batch"},
        {},
    ],
)  # fmt: skip
def test_frozen_normalisation_is_folded_without_a_trace(settings: dict) -> None:
    _, model = untrained(settings)
    generator = torch.Generator().manual_seed(6)
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            for name, buffer in module.named_buffers():
                low = 0.6 if name in ("weight", "running_var") else -0.2
                buffer.copy_(low + 0.5 * torch.rand(buffer.shape, generator=generator))
    before = copy.deepcopy(model.state_dict())
    quick = for_inference(model, torch.float32)
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in quick.modules())
    images = torch.randn((2, model.channels, 64, 96), generator=generator)
    with torch.inference_mode():
        for mine, expected in zip(quick.backbone(images).values(), model.backbone(images).values(), strict=True):
            torch.testing.assert_close(mine, expected, rtol=2e-3, atol=2e-4 * float(expected.abs().max()))
        ours, theirs = quick(images), model(images)
    assert [len(r.scores) for r in ours] == [len(r.scores) for r in theirs] and len(ours[0].scores)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_batch_size_changes_nothing() -> None:
    """Boxes within 1e-3 px, scores within 1e-5, as many of them, of slices of odd size."""
    volume, _ = simple_case(3, (11, 53, 67))
    found = []
    for batch in (1, 8):
        predictor, _ = untrained({"inference.batch_size": batch, "inference.box_refinements": 1})
        found.append(predictor.detect(to_network_grid((volume,), predictor.plan.input)))
    assert sum(len(d) for d in found[0]) > 20
    for one, eight in zip(*found, strict=True):
        assert len(one) == len(eight) and one.slice_index == eight.slice_index
        np.testing.assert_array_equal(one.labels, eight.labels)
        np.testing.assert_allclose(one.boxes, eight.boxes, rtol=0, atol=1e-3)
        np.testing.assert_allclose(one.scores, eight.scores, rtol=0, atol=1e-5)
        np.testing.assert_allclose(one.masks, eight.masks, rtol=0, atol=1e-4)


def test_bfloat16_keeps_boxes_and_scores_in_float32() -> None:
    predictor, model = untrained({"inference.precision": "bfloat16"})
    assert predictor.dtype == torch.bfloat16
    network = predictor._network
    assert network.backbone.body["conv1"].weight.dtype == torch.bfloat16
    assert network.roi_heads.box_predictor.cls_score.weight.dtype == torch.float32
    assert next(model.parameters()).dtype == torch.float32
    grid = to_network_grid(simple_case(3, (2, 53, 67))[:1], predictor.plan.input)
    for detections in predictor.detect(grid):
        assert detections.boxes.dtype == detections.scores.dtype == detections.masks.dtype == np.float32


def test_auto_is_bfloat16_where_there_are_matrix_units_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for units, expected in (
        ({"avx512_bf16": True, "amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True, "amx_bf16": False}, torch.float32),
        ({"avx2": True}, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda units=units: units, raising=False)
        assert choose_precision("auto", CPU) == expected
        assert choose_precision("float32", CPU) == torch.float32
        assert choose_precision("bfloat16", CPU) == torch.bfloat16
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert choose_precision("auto", CPU) == torch.float32


@pytest.mark.cuda
def test_a_gpu_finds_what_the_cpu_finds() -> None:
    """Pinned buffers, the thread that fills them, and results that arrive a batch late."""
    predictor, model = untrained({"inference.batch_size": 3})
    grid: NetworkGrid = to_network_grid(simple_case(3, (11, 53, 67))[:1], predictor.plan.input)
    there = Predictor(predictor.plan, copy.deepcopy(model), torch.device("cuda")).detect(grid)
    for one, other in zip(predictor.detect(grid), there, strict=True):
        assert one.slice_index == other.slice_index and abs(len(one) - len(other)) <= 1
        if len(one) == len(other):
            np.testing.assert_allclose(one.boxes, other.boxes, rtol=0, atol=0.05)
