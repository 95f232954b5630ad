"""The network: anchors, backbones, pooling, mask targets, heads, and what it learns."""

import math

import numpy as np
import pytest
import torch
from network_fixtures import ellipse, tiny_plan
from torch import Tensor
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes
from torchvision.ops import box_iou

from medseg.errors import ModelError
from medseg.labels import LabelTable
from medseg.models.anchors import PyramidAnchors
from medseg.models.backbones import norm_layer
from medseg.models.heads import Target, with_margin
from medseg.models.mask_rcnn import build_mask_rcnn, choose_device
from medseg.models.roi import PyramidPooler, mask_targets
from medseg.models.semantic import SemanticHead
from medseg.values.pasting import paste_mask
from medseg.values.plan import ModelPlan, Plan

SIZE = (97, 131)  # no multiple of any stride


def pyramid(size: tuple[int, int], levels: int, channels: int = 1) -> list[Tensor]:
    """Return feature maps of noise, as large as the backbone makes them."""
    generator = torch.Generator().manual_seed(3)
    strides = [4 * 2**rank for rank in range(levels)]
    return [torch.randn((1, channels, *(-(-n // s) for n in size)), generator=generator) for s in strides]


def slices(plan: Plan, size: tuple[int, int] = (64, 80)) -> tuple[Tensor, list[Target]]:
    """Return two images, an organ and a lesion on each, and what is to be found."""
    images, targets = [], []
    for organ, lesion in (((30.2, 24.6), (40.3, 62.1)), ((26.7, 51.4), (45.5, 20.5))):
        masks = [ellipse(size, organ, (17.3, 13.9)), ellipse(size, lesion, (6.2, 7.4))]
        image = -0.5 + 0.6 * masks[0] + 1.2 * masks[1]
        images.append(np.repeat(image[None], plan.input.channels, axis=0))
        hits = [(np.flatnonzero(m.any(0)), np.flatnonzero(m.any(1))) for m in masks]
        boxes = torch.tensor([[x[0], y[0], x[-1] + 1, y[-1] + 1] for x, y in hits], dtype=torch.float32)
        shares = torch.from_numpy(np.stack(masks)).float()
        targets.append(Target(boxes, torch.tensor([1, 2]), shares, shares))
    return torch.from_numpy(np.stack(images)).float(), targets


def no_objects(size: tuple[int, int]) -> Target:
    """Return the target of a slice that holds nothing."""
    return Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, *size), torch.zeros(2, *size))


# -- anchors --------------------------------------------------------------------------------------------------


def test_anchors_are_neither_rounded_nor_off_the_centre_of_their_cell() -> None:
    sizes, ratios = ((5.0, 7.0), (11.0, 13.0), (23.0, 27.0), (47.0, 53.0)), (0.5, 1.3)
    features = pyramid(SIZE, 4)
    (anchors,) = PyramidAnchors(sizes, ratios)(ImageList(torch.zeros(1, 1, *SIZE), [SIZE]), features)
    start = 0
    for rank, feature in enumerate(features):
        stride, (rows, columns) = 4 * 2**rank, feature.shape[-2:]
        count = rows * columns * 4
        level = anchors[start : start + count].reshape(rows, columns, 4, 4)
        start += count
        x1, y1, x2, y2 = level[1, 2].unbind(dim=1)
        torch.testing.assert_close((x1 + x2) / 2, torch.full((4,), 2.5 * stride))
        torch.testing.assert_close((y1 + y2) / 2, torch.full((4,), 1.5 * stride))
        area = torch.tensor([s * s for _ in ratios for s in sizes[rank]])
        torch.testing.assert_close((x2 - x1) * (y2 - y1), area)
        torch.testing.assert_close((y2 - y1) / (x2 - x1), torch.tensor([0.5, 0.5, 1.3, 1.3]))
    assert start == len(anchors)


def test_inexact_anchors_are_torchvisions() -> None:
    sizes = ((8.0, 12.0), (24.0, 32.0), (48.0, 64.0), (96.0, 128.0), (256.0, 512.0))
    images = ImageList(torch.zeros(2, 1, 128, 192), [(128, 192)] * 2)
    features = pyramid((128, 192), 5)
    ours = PyramidAnchors(sizes, (0.5, 1.0, 2.0), exact=False)(images, features)
    theirs = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)(images, features)
    assert len(ours) == len(theirs) == 2
    torch.testing.assert_close(ours[1], theirs[1])


# -- backbone and state dict ----------------------------------------------------------------------------------


def test_parameters_are_named_and_shaped_as_torchvisions() -> None:
    labels = LabelTable.from_names([f"thing {i}" for i in range(90)])
    sizes = [[32.0], [64.0], [128.0], [256.0], [512.0]]
    plan = Plan.model_validate(
        {
            "labels": labels,
            "input": {"spacing_mm": (1, 1), "context_mm": (-1.0, 0.0, 1.0)},
            "model": {"backbone": "resnet50", "norm": "frozen_batch", "anchor_sizes": sizes},
        }
    )
    with torch.device("meta"):
        ours = build_mask_rcnn(plan).state_dict()
        theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    # Without weights torchvision counts batches; with frozen normalisation, as for its COCO weights, it does not.
    theirs = {name: value for name, value in theirs.items() if not name.endswith("num_batches_tracked")}
    assert list(ours) == list(theirs)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_every_backbone_takes_any_channels_and_any_size(backbone: str) -> None:
    windows = [[-100.0, 100.0], [0.0, 50.0], [-50.0, 30.0], [0.0, 400.0], [-900.0, 0.0]]
    plan = tiny_plan(
        {"model.backbone": backbone, "model.norm": "group", "input.windows": windows, "inference.score_threshold": 0.0}
    )
    torch.manual_seed(1)
    model = build_mask_rcnn(plan).eval()
    with torch.inference_mode():
        features = model.backbone(torch.randn(1, 5, *SIZE))
        (result,) = model(torch.randn(1, 5, *SIZE))
    assert [tuple(f.shape[-2:]) for f in features.values()] == [(25, 33), (13, 17), (7, 9), (4, 5)]
    assert {f.shape[1] for f in features.values()} == {32}
    assert 0 < len(result.boxes) <= 10
    limit = torch.tensor([SIZE[1], SIZE[0]] * 2)
    assert (result.boxes >= 0).all() and (result.boxes <= limit).all()


def test_a_fifth_level_is_at_stride_64() -> None:
    plan = tiny_plan({"model.anchor_sizes": [[8.0], [16.0], [32.0], [64.0], [128.0]]})
    with torch.inference_mode():
        features = build_mask_rcnn(plan).eval().backbone(torch.zeros(1, 1, 128, 192))
    assert [tuple(f.shape[-2:]) for f in features.values()] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]


def test_nothing_inside_normalises_the_input() -> None:
    torch.manual_seed(0)
    model = build_mask_rcnn(tiny_plan({"model.norm": "frozen_batch"})).eval()
    image = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        plain, moved, scaled = (model.backbone(x)["0"] for x in (image, image + 0.5, image * 2))
    assert (plain - moved).abs().max() > 1e-3 * plain.abs().max()
    assert (plain - scaled).abs().max() > 1e-3 * plain.abs().max()


def test_wrong_channels_are_refused() -> None:
    model = build_mask_rcnn(tiny_plan())
    with pytest.raises(ModelError, match=r"\(1, 3, 64, 64\), expected \[batch, 1, rows, columns\]"):
        model(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ModelError, match="expected"):
        model.losses(torch.zeros(1, 64, 64), [])


# -- pooling --------------------------------------------------------------------------------------------------


def sampled(feature: np.ndarray, row: float, column: float) -> float:
    """Interpolate between cells, whose values sit at whole coordinates; the edge value is held."""
    row, column = (float(np.clip(v, 0, n - 1)) for v, n in zip((row, column), feature.shape, strict=True))
    r, c = min(int(row), feature.shape[0] - 2), min(int(column), feature.shape[1] - 2)
    a, b = row - r, column - c
    top = (1 - b) * feature[r, c] + b * feature[r, c + 1]
    bottom = (1 - b) * feature[r + 1, c] + b * feature[r + 1, c + 1]
    return float((1 - a) * top + a * bottom)


def slow_align(feature: np.ndarray, box: list[float], stride: int, size: int, ratio: int, aligned: bool) -> np.ndarray:
    """ROI Align as section 3 of the paper says it, one sample after the other."""
    x1, y1, x2, y2 = (v / stride - (0.5 if aligned else 0.0) for v in box)
    if not aligned:  # where torchvision takes no box smaller than a cell
        x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
    out = np.zeros((size, size))
    for i, j in np.ndindex(size, size):
        for k, m in np.ndindex(ratio, ratio):
            row = y1 + (y2 - y1) * (i + (k + 0.5) / ratio) / size
            column = x1 + (x2 - x1) * (j + (m + 0.5) / ratio) / size
            out[i, j] += sampled(feature, row, column) / ratio**2
    return out


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_align_samples_between_the_cells(aligned: bool, ratio: int) -> None:
    plan = ModelPlan(roi_aligned=aligned, roi_sampling_ratio=ratio)
    features = pyramid(SIZE, 4, channels=2)
    boxes = [[3.3, 7.9, 41.2, 29.6], [80.0, 50.5, 131.0, 97.0], [10.0, 20.0, 12.5, 23.0]]  # all at stride 4
    pooled = PyramidPooler(5, plan)(features, [torch.tensor(boxes)])
    for number, box in enumerate(boxes):
        for channel in range(2):
            expected = slow_align(features[0][0, channel].numpy(), box, 4, 5, ratio, aligned)
            np.testing.assert_allclose(pooled[number, channel], expected, atol=1e-5)


def test_aligned_pooling_gives_the_pixel_coordinates_of_the_bins() -> None:
    features = [
        ((torch.arange(-(-131 // s)) + 0.5) * s).expand(1, 1, -(-97 // s), -1) for s in (4, 8, 16, 32)
    ]  # what each cell holds is where its centre lies
    box = torch.tensor([[21.7, 9.2, 88.1, 71.9]])
    expected = 21.7 + (torch.arange(7) + 0.5) * (88.1 - 21.7) / 7
    for canonical in (1000.0, 224.0, 112.0):  # stride 4 to 8
        pooled = PyramidPooler(7, ModelPlan(roi_canonical_size=canonical))(features, [box])
        torch.testing.assert_close(pooled[0, 0], expected.expand(7, 7))


def test_the_level_follows_the_size_of_the_box() -> None:
    features = [torch.full((2, 1, 512, 512), float(rank)) for rank in range(5)]
    sides = {10.0: 0, 111.9: 0, 112.0: 1, 223.9: 1, 224.0: 2, 447.9: 2, 448.0: 3, 2000.0: 3}
    boxes = [torch.tensor([[0.0, 0.0, s, s] for s in sides]), torch.tensor([[5.0, 5.0, 5.0 + 448, 5.0 + 112]])]
    pooled = PyramidPooler(2, ModelPlan())(features, boxes)
    assert pooled[:, 0, 0, 0].tolist() == pytest.approx(
        [*map(float, sides.values()), 2.0]
    )  # eq. 1: 4 + log2(sqrt(wh) / 224)
    halved = PyramidPooler(2, ModelPlan(roi_canonical_size=112.0))(features, boxes)
    assert halved[:, 0, 0, 0].tolist() == pytest.approx([0.0, 1.0, 2.0, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0])


def test_boxes_belong_to_their_own_image_and_none_is_fine() -> None:
    features = [torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)]) for _ in range(4)]
    box = torch.tensor([[1.0, 2.0, 9.0, 12.0]])
    pool = PyramidPooler(3, ModelPlan())
    pooled = pool(features, [box.new_zeros(0, 4), box])
    assert pooled.shape == (1, 1, 3, 3) and (pooled == 1).all()
    assert pool(features, [box[:0], box[:0]]).shape == (0, 1, 3, 3)


def slow_pool(feature: np.ndarray, box: list[float], stride: int, size: int) -> np.ndarray:
    """ROI Pool in plain loops, after the layer of Fast R-CNN (Girshick 2015): pixels x1 to x2 - 1, rounded cells."""
    first = [math.floor(v / stride + 0.5) for v in (box[1], box[0])]
    last = [math.floor((v - 1) / stride + 0.5) for v in (box[3], box[2])]
    out = np.zeros((size, size))
    for place in np.ndindex(size, size):
        cells = []
        for start, end, i, extent in zip(first, last, place, feature.shape, strict=True):
            bin_size = max(end - start + 1, 1) / size
            low, high = start + math.floor(i * bin_size), start + math.ceil((i + 1) * bin_size)
            cells.append(slice(min(max(low, 0), extent), min(max(high, 0), extent)))
        part = feature[tuple(cells)]
        out[place] = part.max() if part.size else 0
    return out


def test_pool_is_the_published_one() -> None:
    boxes = [
        [0.0, 0.0, 16.0, 16.0],
        [1.4, -1.4, 17.4, 14.6],
        [3.3, 7.9, 41.2, 29.6],
        [10.0, 20.0, 10.4, 20.3],
        [90.0, 61.7, 140.0, 99.0],
    ]  # all at stride 4
    features = pyramid(SIZE, 4, channels=2)
    pooled = PyramidPooler(3, ModelPlan(roi_op="pool"))(features, [torch.tensor(boxes)])
    for number, box in enumerate(boxes):
        for channel in range(2):
            expected = slow_pool(features[0][0, channel].numpy(), box, 4, 3)
            np.testing.assert_allclose(pooled[number, channel], expected, atol=1e-6)


@pytest.mark.parametrize("op", ["align", "pool"])
def test_boxes_keep_their_place_in_half_precision(op: str) -> None:
    """Pixel 301.5 is not a number of bfloat16, whose steps are 2 there; the pooled values are rounded, not the box."""
    torch.manual_seed(4)
    half = torch.randn(1, 3, 90, 110).bfloat16()
    boxes = [torch.tensor([[301.5, 257.0, 331.0, 289.7], [265.2, 301.0, 293.0, 341.9]])]
    pool = PyramidPooler(5, ModelPlan(roi_op=op))
    with torch.autocast("cpu", torch.bfloat16):
        found = pool([half] * 4, boxes)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), pool([half.float()] * 4, boxes), atol=0.01, rtol=0.01)


# -- mask targets and the ceiling -----------------------------------------------------------------------------


def test_targets_are_the_covered_share_of_each_cell() -> None:
    """Cells of 4 x 4 pixels, where the 4 x 4 samples lie on the pixels: rectangles give their area exactly."""
    masks = torch.zeros(2, 40, 48)
    masks[0, 5:23, 9:31] = 1
    masks[1, 0:40, 0:7] = 1
    boxes = torch.tensor([[8.0, 4.0, 36.0, 32.0], [0.0, 8.0, 28.0, 36.0]])
    cut = mask_targets(masks, boxes, torch.tensor([0, 1]), 7)
    rows = torch.tensor([3, 4, 4, 4, 3, 0, 0]) / 4
    columns = torch.tensor([3, 4, 4, 4, 4, 3, 0]) / 4
    torch.testing.assert_close(cut[0], rows[:, None] * columns)
    torch.testing.assert_close(cut[1], (torch.tensor([4, 3, 0, 0, 0, 0, 0]) / 4).expand(7, 7))


def test_a_target_does_not_move_against_its_box() -> None:
    mask = torch.from_numpy(ellipse((60, 64), (30.0, 32.0), (15.0, 15.0)))[None].float()
    cut = mask_targets(mask, torch.tensor([[17.0, 15.0, 47.0, 45.0]]), torch.tensor([0]), 28)[0]
    torch.testing.assert_close(cut, cut.flip(0))
    torch.testing.assert_close(cut, cut.flip(1))
    off = mask_targets(mask, torch.tensor([[17.0, 15.0, 47.0, 45.0]]), torch.tensor([0]), 28, aligned=False)[0]
    assert (off - off.flip(0)).abs().max() > 0.2


def smooth_shapes() -> list[np.ndarray]:
    """Ellipses, superellipses and a bent blob, odd sizes at fractional positions in 512 x 512."""
    shape = (512, 512)
    shapes = [
        ellipse(shape, (201.37, 255.81), (143.9, 97.3)),
        ellipse(shape, (303.71, 160.22), (61.4, 88.6), power=3.0),
        ellipse(shape, (77.43, 401.58), (30.7, 33.1)),
        ellipse(shape, (411.9, 77.17), (13.3, 21.6)),
        ellipse(shape, (250.5, 249.75), (9.1, 7.7)),
    ]
    y, x = np.indices(shape) + 0.5
    angle = np.arctan2(y - 230.4, x - 270.9)
    radius = 90 + 17 * np.cos(3 * angle + 0.4) + 9 * np.sin(5 * angle)
    return [*shapes, np.hypot(y - 230.4, x - 270.9) <= radius]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def test_the_ceiling() -> None:
    """Truth -> 56 x 56 target -> pasted back loses less than 0.005 Dice, and less than torchvision's own way."""
    ours, theirs = [], []
    for shape in smooth_shapes():
        x, y = np.flatnonzero(shape.any(0)), np.flatnonzero(shape.any(1))
        box = torch.tensor([[x[0], y[0], x[-1] + 1, y[-1] + 1]], dtype=torch.float32)
        truth = torch.from_numpy(shape)[None].float()
        index = torch.tensor([0])
        pasted, row, column = paste_mask(mask_targets(truth, box, index, 56)[0].numpy(), box[0].numpy(), shape.shape)
        back = np.zeros(shape.shape, bool)
        back[row : row + pasted.shape[0], column : column + pasted.shape[1]] = pasted >= 0.5
        ours.append(dice(shape, back))
        cut = project_masks_on_boxes(truth, box, index, 56)
        theirs.append(dice(shape, (paste_masks_in_image(cut[:, None], box, shape.shape)[0, 0] >= 0.5).numpy()))
    assert min(ours) >= 0.995, ours
    assert all(a > b for a, b in zip(ours, theirs, strict=True)), (ours, theirs)
    assert np.mean(theirs) < 0.99  # the loss that this way avoids is there


# -- losses and results ---------------------------------------------------------------------------------------

SWITCHES = [
    {},
    {"model.roi_op": "pool"},
    {"model.mask_head": "class_agnostic"},
    {"model.mask_loss": "softmax"},
    {"model.roi_aligned": False},
    {"model.norm": "group", "model.mask_size": 28},
    {"model.stem": "deep", "model.fpn_norm": "group"},
    {"model.semantic_head": True, "model.mask_margin": 0.2},
    {"training.box_positive_iou": 0.4, "training.box_negative_iou": 0.2},
]


@pytest.mark.parametrize("settings", SWITCHES, ids=lambda s: ",".join(f"{v}" for v in s.values()) or "default")
def test_every_switch_learns_and_finds(settings: dict) -> None:
    plan = tiny_plan({**settings, "inference.score_threshold": 0.0})
    torch.manual_seed(5)
    model = build_mask_rcnn(plan).train()
    images, targets = slices(plan)
    losses = model.losses(images, targets)
    dense = {"semantic"} if plan.model.semantic_head else set()
    assert set(losses) == {"objectness", "rpn_box", "class", "box", "mask"} | dense
    assert all(bool(torch.isfinite(v) & (v > 0)) for v in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    parts = ("backbone.body.conv1", "rpn.head", "roi_heads.box_head", "roi_heads.mask_head", "roi_heads.mask_predictor")
    for part in parts:
        assert any(p.grad.abs().max() > 0 for n, p in model.named_parameters() if n.startswith(part)), part
    with torch.inference_mode():
        for result in model.eval()(images):
            n, size = len(result.boxes), plan.model.mask_size
            assert 0 < n <= 10
            assert result.masks.shape == (n, size, size) and result.scores.shape == result.classes.shape == (n,)
            assert result.masks.min() >= 0 and result.masks.max() <= 1
            assert set(result.classes.tolist()) <= {1, 2}
            assert (result.scores.diff() <= 0).all()


def test_mask_and_class_are_independent_unless_they_compete() -> None:
    """With sigmoid masks the loss of an organ leaves the lesion's mask alone; with softmax it does not."""
    for loss, touched in (("sigmoid", [1]), ("softmax", [0, 1, 2])):
        plan = tiny_plan({"model.mask_loss": loss})
        torch.manual_seed(5)
        model = build_mask_rcnn(plan).train()
        images, targets = slices(plan)
        organ = [Target(t.boxes[:1], t.classes[:1], t.masks[:1], t.covered) for t in targets]
        model.losses(images, organ)["mask"].backward()
        gradient = model.roi_heads.mask_predictor.mask_fcn_logits.weight.grad
        assert gradient is not None
        assert torch.nonzero(gradient.abs().amax(dim=(1, 2, 3)) > 0)[:, 0].tolist() == touched


@pytest.mark.parametrize("semantic", [False, True])
def test_slices_without_objects_train(semantic: bool) -> None:
    plan = tiny_plan({"model.semantic_head": semantic})
    model = build_mask_rcnn(plan).train()
    nothing = no_objects((64, 80))
    images, targets = slices(plan)
    for batch in ([nothing, nothing], [nothing, targets[1]]):
        model.zero_grad()
        losses = model.losses(images, batch)
        assert all(bool(torch.isfinite(v)) for v in losses.values())
        torch.stack(list(losses.values())).sum().backward()
    assert float(model.losses(images, [nothing, nothing])["mask"].detach()) == 0


@pytest.mark.parametrize("mask_loss", ["sigmoid", "softmax"])
def test_the_losses_of_a_batch_are_the_mean_of_those_of_its_images(mask_loss: str) -> None:
    """Whatever shares the batch, an image with one object, with two, or with none: parts of a batch can be added up."""
    plan = tiny_plan({"model.semantic_head": True, "model.mask_loss": mask_loss})
    torch.manual_seed(5)
    model = build_mask_rcnn(plan).train()
    images, (first, second) = slices(plan)
    lonely = Target(second.boxes[:1], second.classes[:1], second.masks[:1], second.covered, seed=3)
    targets = [first, lonely, no_objects((64, 80))]
    images = torch.cat([images, images[:1].flip(3)])
    with torch.no_grad():
        together = model.losses(images, targets)
        alone = [model.losses(image[None], [target]) for image, target in zip(images, targets, strict=True)]
    for name, value in together.items():
        torch.testing.assert_close(value, torch.stack([part[name] for part in alone]).mean(), rtol=1e-5, atol=1e-6)


def test_the_semantic_loss_is_that_of_its_formula() -> None:
    """Two classes on 7 x 10 cells of 2 pixels, the slice one pixel short each way; the second class is absent."""
    head = SemanticHead(channels=32, classes=2, stride=2, min_cells=50.0)
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn((1, 2, 7, 10), generator=generator)
    covered = torch.zeros((1, 2, 13, 19))
    covered[0, 0, 3:8, 4:11] = 1
    wanted = np.zeros((2, 7, 10))
    for row in range(14):
        for column in range(20):
            if row < 13 and column < 19:
                wanted[:, row // 2, column // 2] += covered[0, :, row, column].numpy() / 4
    chance = 1 / (1 + np.exp(-logits[0].double().numpy()))
    total = 0.0
    for p, w in zip(chance, wanted, strict=True):
        total += -(w * np.log(p) + (1 - w) * np.log(1 - p)).sum() / (w.sum() + 50)
        if w.sum():
            total += 1 - (2 * (p * w).sum() + 1) / (p.sum() + w.sum() + 1)
    assert float(head.loss(logits, covered).detach()) == pytest.approx(total / 2, rel=1e-5)


def test_what_the_semantic_head_finds_reaches_every_level_and_sends_nothing_back() -> None:
    head = SemanticHead(channels=32, classes=2, stride=4, min_cells=50.0)
    features = {str(i): level.requires_grad_() for i, level in enumerate(pyramid((64, 80), 3, channels=32))}
    logits, told = head(features)
    assert logits.shape == (1, 2, 16, 20) and logits.dtype == torch.float32
    assert {name: level.shape for name, level in told.items()} == {name: x.shape for name, x in features.items()}
    for name in features:
        assert not torch.equal(told[name], features[name])
    told["2"].sum().backward()
    assert features["0"].grad is None and head.logits.weight.grad is None


def test_masks_reach_beyond_their_box_by_the_margin() -> None:
    boxes = torch.tensor([[10.0, 20.0, 30.0, 25.0]])
    torch.testing.assert_close(with_margin(boxes, 0.1), torch.tensor([[8.0, 19.5, 32.0, 25.5]]))
    torch.manual_seed(5)
    plain = build_mask_rcnn(tiny_plan({"inference.score_threshold": 0.0})).eval()
    wide = build_mask_rcnn(tiny_plan({"inference.score_threshold": 0.0, "model.mask_margin": 0.25})).eval()
    wide.load_state_dict(plain.state_dict())
    with torch.inference_mode():
        image = torch.randn(1, 1, 64, 64)
        (a,), (b,) = plain(image), wide(image)
    torch.testing.assert_close(with_margin(a.boxes, 0.25), b.boxes)
    torch.testing.assert_close(a.scores, b.scores)


def test_a_second_look_moves_boxes_on_and_counts_the_lower_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images; each look moves boxes of class 2 by a tenth of their width, and the second doubts the last one."""
    plan = tiny_plan({"inference.score_threshold": 0.3, "inference.box_refinements": 1})
    heads, margin = build_mask_rcnn(plan).roi_heads.eval(), plan.model.mask_margin
    looks = iter(
        (torch.tensor([[0.0, -9.0, 1.0], [0.0, -9.0, 2.0], [0.0, -9.0, 3.0]]),  # best first: the third, the second
         torch.tensor([[0.0, -9.0, 4.0], [0.0, 9.0, 8.5], [0.0, -9.0, -2.0]]))
    )  # fmt: skip
    seen = []

    def look(features: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        seen.append([b.tolist() for b in boxes])
        codes = torch.zeros(3, 3, 4)
        codes[:, 2, 0] = 1.0  # times the width, over the coder's 10
        return next(looks), codes.flatten(1)

    monkeypatch.setattr(heads, "_boxes", look)
    proposals = [[10.0, 10.0, 30.0, 20.0]], [[20.0, 20.0, 40.0, 50.0], [5.0, 40.0, 15.0, 60.0]]
    features = [level.repeat(2, 1, 1, 1) for level in pyramid((64, 64), 4, channels=32)]
    with torch.inference_mode():
        first, second = heads.results(features, [torch.tensor(p) for p in proposals], (64, 64))
    assert seen[1] == [[[12.0, 10.0, 32.0, 20.0]], [[6.0, 40.0, 16.0, 60.0], [22.0, 20.0, 42.0, 50.0]]]
    torch.testing.assert_close(first.boxes, with_margin(torch.tensor([[14.0, 10.0, 34.0, 20.0]]), margin))
    torch.testing.assert_close(first.scores, torch.tensor([0.0, -9.0, 1.0]).softmax(0)[2:])
    torch.testing.assert_close(second.boxes, with_margin(torch.tensor([[7.0, 40.0, 17.0, 60.0]]), margin))
    torch.testing.assert_close(second.scores, torch.tensor([0.0, 9.0, 8.5]).softmax(0)[2:])
    assert first.classes.tolist() == second.classes.tolist() == [2] and second.masks.shape == (1, 14, 14)


def test_masks_of_single_labels_take_a_share_of_the_semantic_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probability that grows with the column: cells of an organ's mask get that of their middle; a lesion's none."""
    labels = LabelTable.from_names(["lesion", "organ"], kinds={"lesion": "ids"})
    settings = {"inference.score_threshold": 0.3, "inference.semantic_share": 0.25, "model.mask_margin": 0.0}
    plan = tiny_plan(settings, labels=labels)
    heads = build_mask_rcnn(plan).roi_heads.eval()
    monkeypatch.setattr(heads, "_boxes", lambda features, boxes: (torch.eye(3)[[1, 2]] * 9, torch.zeros(2, 12)))
    boxes = [torch.tensor([[40.0, 16.0, 54.0, 44.0]]), torch.tensor([[10.0, 12.0, 38.0, 40.0]])]  # a lesion, an organ
    features = [level.repeat(2, 1, 1, 1) for level in pyramid((64, 64), 4, channels=32)]
    dense = torch.zeros(2, 2, 16, 16)
    dense[1, 1] = (torch.arange(16) * 4 + 2) / 64  # at the middle of cell j lies column 4 j + 2
    with torch.inference_mode():
        plain = heads.results(features, boxes, (64, 64))
        mixed = heads.results(features, boxes, (64, 64), dense)
    assert [r.classes.tolist() for r in mixed] == [[1], [2]]
    torch.testing.assert_close(mixed[0].masks, plain[0].masks)
    told = ((10 + 2 * (torch.arange(14) + 0.5)) / 64).expand(1, 14, 14)
    torch.testing.assert_close(mixed[1].masks, 0.75 * plain[1].masks + 0.25 * told)


def test_proposals_that_are_neither_object_nor_background_are_not_learnt_from() -> None:
    """Boxes of IoU 1, 0.5, 0.25 and 0 with the one object, thresholds 0.4 and 0.2."""
    plan = tiny_plan({"training.box_positive_iou": 0.4, "training.box_negative_iou": 0.2, "training.jittered_boxes": 0})
    heads = build_mask_rcnn(plan).roi_heads
    target = Target(
        torch.tensor([[0.0, 0.0, 8.0, 8.0]]), torch.tensor([2]), torch.ones(1, 64, 64), torch.zeros(2, 64, 64)
    )
    proposals = torch.tensor([[0.0, 0.0, 8.0, 16.0], [0.0, 0.0, 16.0, 16.0], [40.0, 40.0, 50.0, 50.0]])
    (samples,) = heads._sample([proposals], [target])
    found = {tuple(box): int(number) for box, number in zip(samples.boxes.tolist(), samples.classes, strict=True)}
    assert found == {(0, 0, 8, 8): 2, (0, 0, 8, 16): 2, (40, 40, 50, 50): 0}
    assert samples.close.tolist() == [bool(c == 2) for c in samples.classes]  # 0.5 is close enough for a mask


def test_a_box_without_area_is_refused() -> None:
    plan = tiny_plan()
    images, targets = slices(plan)
    for box in ([5.0, 5.0, 5.0, 9.0], [9.0, 5.0, 5.0, 9.0], [5.0, float("nan"), 8.0, 9.0]):
        broken = Target(torch.tensor([box]), torch.tensor([1]), targets[1].masks[:1], targets[1].covered)
        with pytest.raises(ModelError, match="image 1 of the batch has a box without area"):
            build_mask_rcnn(plan).train().losses(images, [targets[0], broken])


def test_nothing_found_is_an_answer() -> None:
    plan = tiny_plan({"inference.score_threshold": 1.0})
    with torch.inference_mode():
        results = build_mask_rcnn(plan).eval()(torch.randn(2, 1, 64, 64))
    assert [tuple(field.shape) for field in results[1]] == [(0, 4), (0,), (0,), (0, 14, 14)]
    assert len(results) == 2


def test_no_proposals_are_no_objects_and_no_loss() -> None:
    plan = tiny_plan({"inference.score_threshold": 0.0})
    heads = build_mask_rcnn(plan).roi_heads
    features = pyramid((64, 64), 4, channels=32)
    (result,) = heads.results(features, [torch.zeros(0, 4)], (64, 64))
    assert [len(field) for field in result] == [0, 0, 0, 0]
    nothing = no_objects((64, 64))
    assert [float(v.detach()) for v in heads.losses(features, [torch.zeros(0, 4)], [nothing]).values()] == [0, 0, 0]


def test_the_seed_of_a_target_decides_what_is_drawn() -> None:
    plan = tiny_plan()
    torch.manual_seed(5)
    model = build_mask_rcnn(plan).train()
    images, targets = slices(plan)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed + 10)  # torch's own generator has no part in it
        losses.append(float(model.losses(images, [t._replace(seed=seed) for t in targets])["class"].detach()))
        torch.rand(3)
    assert losses[0] == losses[1] != losses[2]


def test_a_loaded_model_is_the_same_model() -> None:
    plan = tiny_plan({"inference.score_threshold": 0.0})
    first, second = (build_mask_rcnn(plan).eval() for _ in range(2))
    second.load_state_dict(first.state_dict())
    with torch.inference_mode():
        image = torch.randn(1, 1, 64, 64)
        for a, b in zip(first(image)[0], second(image)[0], strict=True):
            assert torch.equal(a, b)


def test_a_tiny_model_learns_two_slices_by_heart() -> None:
    """The surest detection of each class lies where the object is, in pixels of the input."""
    settings = {"model.norm": "group", "training.box_positive_fraction": 0.5, "training.box_samples": 32}
    plan = tiny_plan({**settings, "inference.score_threshold": 0.3})
    torch.manual_seed(0)
    model = build_mask_rcnn(plan).train()
    images, targets = slices(plan)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    history = []
    for _ in range(48):
        loss = torch.stack(list(model.losses(images, targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert np.mean(history[-5:]) < 0.5 * np.mean(history[:5]), history
    with torch.inference_mode():
        results = model.eval()(images)
    for result, target in zip(results, targets, strict=True):
        for number, kind in enumerate(target.classes):
            best = result.classes.tolist().index(int(kind))  # best first
            assert float(box_iou(result.boxes[best][None], target.boxes[number][None])) > 0.65
            truth = target.masks[number].numpy() > 0
            pasted, r, c = paste_mask(result.masks[best].numpy(), result.boxes[best].numpy(), truth.shape)
            found = np.zeros(truth.shape, bool)
            found[r : r + pasted.shape[0], c : c + pasted.shape[1]] = pasted >= 0.5
            assert dice(found, truth) > 0.7


# -- devices --------------------------------------------------------------------------------------------------


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu") == torch.device("cpu")
    for name in ("banana", "", "cuda:x", "mps", "meta"):
        with pytest.raises(ModelError, match=f"device '{name}' is unknown; expected auto, cpu, cuda or cuda:N"):
            choose_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_cuda_is_refused() -> None:
    for name in ("cuda", "cuda:1"):
        with pytest.raises(ModelError, match=f"device '{name}' cannot be used"):
            choose_device(name)


@pytest.mark.cuda
def test_cuda_agrees_with_the_cpu() -> None:
    torch.manual_seed(0)
    plan = tiny_plan({"inference.score_threshold": 0.0, "model.norm": "group"})
    model = build_mask_rcnn(plan).eval()
    images, _ = slices(plan)
    device = choose_device("cuda")
    with torch.inference_mode():
        here = model.backbone(images)["0"]
        there = model.to(device).backbone(images.to(device))["0"]
        assert len(model(images.to(device))) == 2
    torch.testing.assert_close(there.cpu(), here, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("channels", "groups"), [(16, 8), (24, 8), (32, 16), (48, 16), (64, 32), (96, 32), (33, 1)])
def test_group_norm_has_no_group_of_one_channel(channels: int, groups: int) -> None:
    """The coarsest level of a small crop is one pixel, which alone in its group would be its own mean."""
    build = norm_layer("group")
    assert build is not None
    norm = build(channels).train()
    assert norm.num_groups == groups
    assert norm(torch.arange(float(channels)).reshape(1, channels, 1, 1)).abs().sum() > 0
