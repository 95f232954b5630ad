"""Weights of torchvision in our networks: what a file is, what of it fits, and that it computes the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models.resnet as resnet
from network_fixtures import tiny_plan
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.image_list import ImageList

from medseg.errors import ConfigError, ModelError
from medseg.labels import LabelTable
from medseg.models.mask_rcnn import build_mask_rcnn
from medseg.models.pretrained import PRESETS, Pretrained, read_pretrained
from medseg.models.transfer import Transfer, inflated, load_pretrained
from medseg.training.initial import Start, start_from_file
from medseg.values.plan import Plan

IMAGES = (64, 96)


def classifier(name: str, seed: int = 0) -> dict[str, Tensor]:
    """Return the state dict of one of torchvision's ResNets, its normalisation as if it had been trained."""
    torch.manual_seed(seed)
    return seasoned(getattr(resnet, name)(weights=None)).state_dict()


def seasoned(model: nn.Module) -> nn.Module:
    """Give batch normalisation means and variances other than 0 and 1, and features of moderate size."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.2, 0.5)
    return model.eval()


def transferred(weights: dict[str, Tensor], path: Path, settings: dict[str, Any]) -> tuple[nn.Module, Transfer, Plan]:
    """Save weights, read them, and load them into the network of a tiny plan adapted to them."""
    torch.save(weights, path)
    start = start_from_file(path)
    plan = start.adapted(tiny_plan(settings), {})
    torch.manual_seed(7)
    model = build_mask_rcnn(plan)
    return model, start.load_into(model, plan), plan


def part(transfer: Transfer, name: str) -> tuple[int, int, int]:
    """Return how many tensors of a part were loaded, adapted, left new."""
    (found,) = [p for p in transfer.parts if p.name == name]
    return len(found.loaded), len(found.adapted), len(found.fresh)


# -- what a file is -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_every_backbone_is_known_by_its_shapes(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in getattr(resnet, name)(weights=None).state_dict().items()}
    weights = {k: torch.zeros(()).expand(s) for k, s in shapes.items()}  # one number on disk
    torch.save(weights, tmp_path / "any.pth")
    found = read_pretrained(tmp_path / "any.pth")
    assert (found.backbone, found.layout) == (name, "classifier")
    assert found.settings == {"model.backbone": name, "model.norm": "frozen_batch", "model.stem": "conv7"}


def bottlenecks(*, width: int = 64) -> dict[str, Tensor]:
    with torch.device("meta"):
        builder = resnet.resnet152 if width == 64 else resnet.wide_resnet50_2
        return {k: torch.zeros(()).expand(v.shape) for k, v in builder(weights=None).state_dict().items()}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (bottlenecks(), r"w\.pth: the backbone is resnet152, which medseg has not; expected .*resnet18, 34, 50 or 101"),
        (bottlenecks(width=128), "the backbone is wide_resnet50_2"),
        ({"conv1.weight": torch.zeros(8, 3, 3, 3)}, "a backbone with 0, 0, 0, 0 blocks of other shapes"),
        ({"encoder.weight": torch.zeros(2)}, r"1 tensors, the first 'encoder\.weight'; expected a state dict"),
        ({"model": {"conv1.weight": torch.zeros(2)}}, "holds 'model', not tensors by name"),
        ({}, "holds nothing, not tensors by name"),
        ([torch.zeros(2)], "holds list, not tensors by name"),
    ],
)
def test_a_file_that_fits_nothing_is_refused(weights: Any, message: str, tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=message) as error:
        read_pretrained(tmp_path / "w.pth")
    assert "\n" not in str(error.value)


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run by unpickling",)


def test_files_that_cannot_be_read_safely_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"conv1.weight": _Runs()}, tmp_path / "code.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "code.pth").read_bytes()[:200])
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "text.safetensors").write_text("not weights")
    for name in ("code.pth", "cut.pth", "text.pth"):
        with pytest.raises(ModelError, match=rf"{name}: not a file of weights that can be read safely \(") as error:
            read_pretrained(tmp_path / name)
        assert "\n" not in str(error.value)
    assert "run by" not in capsys.readouterr().out
    with pytest.raises(ModelError, match=r"text\.safetensors: not a safetensors file"):
        read_pretrained(tmp_path / "text.safetensors")
    with pytest.raises(ModelError, match="no such file"):
        read_pretrained(tmp_path / "none.pth")


# -- the stem -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 10])
def test_a_grey_image_gives_the_response_it_gave_in_three_channels(channels: int) -> None:
    torch.manual_seed(2)
    weight, grey = torch.randn(11, 3, 7, 7), torch.randn(2, 1, 17, 23)
    before = nn.functional.conv2d(grey.expand(-1, 3, -1, -1), weight)
    after = nn.functional.conv2d(grey.expand(-1, channels, -1, -1), inflated(weight, channels))
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "old.pth"])
def test_a_backbone_is_taken_whole_from_either_kind_of_file(suffix: str, tmp_path: Path) -> None:
    weights, path = classifier("resnet18"), tmp_path / f"resnet18.{suffix}"
    if suffix == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=suffix == "pth")
    plan = start_from_file(path).adapted(tiny_plan({"input.context_mm": [-3.0, -1.0, 0.0, 1.0, 3.0]}), {})
    model = build_mask_rcnn(plan).eval()
    loaded = load_pretrained(model, plan, read_pretrained(path))
    assert part(loaded, "backbone") == (99, 1, 0)
    assert part(loaded, "pyramid")[:2] == part(loaded, "box head")[:2] == (0, 0)
    assert loaded.unused == ("fc.bias", "fc.weight")
    lines = loaded.lines()
    assert "backbone: 100 of 100 tensors loaded; adapted: backbone.body.conv1.weight" in lines
    assert "left out: fc.bias, fc.weight" in lines and "mask head: 0 of 12 tensors loaded" in lines
    body = resnet.resnet18(weights=None).eval()
    body.load_state_dict(weights)
    grey = torch.randn(1, 1, *IMAGES)
    with torch.inference_mode():
        ours = model.backbone.body(grey.expand(-1, 5, -1, -1))["3"]
        x = body.maxpool(body.relu(body.bn1(body.conv1(grey.expand(-1, 3, -1, -1)))))
        theirs = body.layer4(body.layer3(body.layer2(body.layer1(x))))
    assert theirs.abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


# -- the plan -------------------------------------------------------------------------------------------------


def start_of(name: str, layout: Any = "classifier") -> Start:
    source = Pretrained(name="w.pth", layout=layout, backbone=name, weights={})  # type: ignore[arg-type]
    return Start(option="--pretrained w.pth", sha256="", pretrained=source)


def test_the_plan_follows_the_weights_and_says_why() -> None:
    plan = tiny_plan({"model.stem": "deep", "model.fpn_norm": "group"})
    reasoned = plan.model_copy(update={"reasons": {"model.stem": "small objects", "model.anchor_sizes": "boxes"}})
    adapted = start_of("resnet50").adapted(reasoned, {"model.fpn_norm": "group"})
    assert adapted == reasoned.with_overrides(
        {"model.backbone": "resnet50", "model.stem": "conv7", "model.norm": "frozen_batch"}
    ).model_copy(update={"reasons": adapted.reasons})
    why = "the weights of w.pth are those of a resnet50 (classifier)"
    changed = {"model.backbone": why, "model.stem": why, "model.norm": why}
    assert adapted.reasons == {"model.anchor_sizes": "boxes", **changed}
    assert start_of("resnet50").adapted(adapted, {}) == adapted


def test_a_contradicting_setting_is_refused_and_an_agreeing_one_kept() -> None:
    for key, value in (("model.norm", "group"), ("model.stem", "deep"), ("model.backbone", "resnet34")):
        with pytest.raises(ConfigError, match=rf"--pretrained w\.pth: needs {key} \w+, but --set gives {value}"):
            start_of("resnet50").adapted(tiny_plan({key: value}), {key: value})
    settings = {"model.norm": "frozen_batch"}
    assert start_of("resnet18").adapted(tiny_plan(settings), settings).model.norm == "frozen_batch"


# -- torchvision's Mask R-CNNs --------------------------------------------------------------------------------

BUILDERS = {"torchvision": maskrcnn_resnet50_fpn, "torchvision_v2": maskrcnn_resnet50_fpn_v2}


@pytest.fixture(scope="module", params=BUILDERS)
def theirs(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    """The name of a preset, and torchvision's network with random weights."""
    torch.manual_seed(3)
    return request.param, seasoned(BUILDERS[request.param](weights=None, weights_backbone=None, num_classes=5))


def test_a_preset_computes_what_torchvision_computes(theirs: tuple[str, nn.Module], tmp_path: Path) -> None:
    """Key by key into our network; then the same features, proposals, class logits, box deltas and mask logits."""
    preset, model = theirs
    torch.save(model.state_dict(), tmp_path / "w.pth")
    source = read_pretrained(tmp_path / "w.pth")
    labels = LabelTable.from_names(["a", "b", "c", "d"])
    plan = tiny_plan({**PRESETS[preset], "input.context_mm": [-1.0, 0.0, 1.0]}, labels)
    assert source.settings.items() <= PRESETS[preset].items()
    ours = build_mask_rcnn(plan).eval()
    assert list(ours.state_dict()) == list(source.weights)
    ours.load_state_dict(source.weights)
    x = torch.randn(1, 3, *IMAGES)
    images = ImageList(x, [IMAGES])
    with torch.inference_mode():
        wanted, features = model.backbone(x), ours.backbone(x)
        assert list(wanted) == list(features)
        for name in wanted:
            torch.testing.assert_close(features[name], wanted[name], atol=1e-4, rtol=1e-5)
        (boxes,), (found,) = model.rpn(images, wanted)[0], ours.rpn(images, features)[0]
        # Boxes of nearly equal scores may stand in another order.
        assert len(found) == len(boxes) and float(torch.cdist(found, boxes, p=torch.inf).amin(0).max()) < 1e-3
        few = boxes[:: len(boxes) // 12]
        heads = model.roi_heads
        logits, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(wanted, [few], [IMAGES])))
        masks = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(wanted, [few], [IMAGES])))
        levels = list(features.values())
        for a, b in zip(ours.roi_heads._boxes(levels, [few]), (logits, deltas), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(ours.roi_heads._masks(levels, [few]), masks, atol=1e-4, rtol=1e-5)
    assert len(boxes) > 20 and logits.std() > 0.01 and masks.std() > 0.01


def as_published(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return names as in the file that torchvision published in 2019 (its modules rename them when they load it)."""
    old = {}
    for name, value in weights.items():
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        for i in range(4):
            name = name.replace(f"_blocks.{i}.0.", f"_blocks.{i}.").replace(
                f"roi_heads.mask_head.{i}.0.", f"roi_heads.mask_head.mask_fcn{i + 1}."
            )
        if "num_batches_tracked" not in name:
            old[name] = value
    return old


@pytest.mark.parametrize("finest", [2, 4])
def test_what_fits_of_a_detector_is_taken_and_the_rest_named(
    theirs: tuple[str, nn.Module], finest: int, tmp_path: Path
) -> None:
    preset, model = theirs
    weights = model.state_dict() if preset == "torchvision_v2" else as_published(model.state_dict())
    sizes = [[8.0, 9.0], [14.0, 15.0], [24.0, 25.0], [40.0, 41.0], [60.0, 61.0]][: 5 if finest == 2 else 4]
    settings = {"model.finest_stride": finest, "model.anchor_sizes": sizes, "model.semantic_head": True}
    ours, loaded, plan = transferred(weights, tmp_path / "w.pth", settings)
    second = preset == "torchvision_v2"
    assert plan.model.fpn_norm == plan.model.head_norm == ("frozen_batch" if second else "none")
    assert part(loaded, "backbone") == (264, 1, 0)
    level = (10 if second else 4) if finest == 2 else 0
    assert part(loaded, "pyramid") == (40 if second else 16, 0, level)
    assert part(loaded, "proposals") == (4 if second else 2, 0, 4)  # other anchors
    # The tiny plan's linear layers and masks are smaller than theirs; what is convolution in the second version fits.
    assert part(loaded, "box head")[0] == (20 if second else 0)
    assert loaded.classes == () and "roi_heads.box_predictor.cls_score.weight" in loaded.unused
    state = ours.state_dict()
    moved = f"backbone.fpn.layer_blocks.{1 if finest == 2 else 0}.0.weight"
    torch.testing.assert_close(state[moved], model.state_dict()["backbone.fpn.layer_blocks.0.0.weight"])
    assert not state["semantic.embedding.weight"].any() and not state["semantic.embedding.bias"].any()
    assert all(name in state for p in loaded.parts for name in p.loaded + p.adapted + p.fresh)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    weights = classifier("resnet18")
    weights["layer2.0.conv1.weight"][3, 1, 2, 0] = torch.nan
    with pytest.raises(ModelError, match=r"w\.pth: backbone\.body\.layer2\.0\.conv1\.weight has values that are not"):
        transferred(weights, tmp_path / "w.pth", {})
