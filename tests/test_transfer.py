"""From one medseg network to another: classes by name, other channels, other heads, other strides."""

from pathlib import Path
from typing import Any

import pytest
import torch
from network_fixtures import tiny_plan
from torch import Tensor

from medseg.errors import ConfigError, ModelError
from medseg.labels import LabelTable
from medseg.models.mask_rcnn import MaskRCNN, build_mask_rcnn
from medseg.models.transfer import Transfer, load_trained
from medseg.training.checkpoint import save_plan, save_weights
from medseg.training.initial import Start, start_from_run
from medseg.values.plan import Plan

SEMANTIC = {"model.semantic_head": True}
HEADS = "roi_heads.box_predictor."


def network(plan: Plan, seed: int) -> MaskRCNN:
    torch.manual_seed(seed)
    model = build_mask_rcnn(plan).eval()
    for parameter in model.parameters():  # biases too, so that rows can be told apart
        torch.nn.init.normal_(parameter, std=0.05)
    return model


def transfer(before: Plan, after: Plan) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], Transfer]:
    """Return the weights of the source, of the target as it was drawn, and as it is then, and the report."""
    source, target = network(before, 1), network(after, 2)
    drawn = {name: value.clone() for name, value in target.state_dict().items()}
    report = load_trained(target, after, source.state_dict(), before, "--init run")
    return source.state_dict(), drawn, target.state_dict(), report


def test_rows_of_a_class_go_to_the_class_of_its_name() -> None:
    """organ, lesion -> cyst, lesion, node: row 2 to row 2 only by chance, so lesion stands third here."""
    before = tiny_plan(SEMANTIC)
    after = tiny_plan(SEMANTIC, LabelTable.from_names(["cyst", "node", "lesion"]))
    old, drawn, new, report = transfer(before, after)
    assert report.classes == ("lesion",)
    for kind in ("weight", "bias"):
        for name, rows, source, target in (
            (f"{HEADS}cls_score", 1, 2, 3),
            (f"{HEADS}bbox_pred", 4, 2, 3),
            ("roi_heads.mask_predictor.mask_fcn_logits", 1, 2, 3),
            ("semantic.logits", 1, 1, 2),
        ):
            before_rows = old[f"{name}.{kind}"].unflatten(0, (-1, rows))
            after_rows = new[f"{name}.{kind}"].unflatten(0, (-1, rows))
            drawn_rows = drawn[f"{name}.{kind}"].unflatten(0, (-1, rows))
            torch.testing.assert_close(after_rows[target], before_rows[source])
            fresh = [i for i in range(len(after_rows)) if i != target and not (i == 0 and "semantic" not in name)]
            torch.testing.assert_close(after_rows[fresh], drawn_rows[fresh])
            if "semantic" not in name:
                torch.testing.assert_close(after_rows[0], before_rows[0])  # background
    embedding = new["semantic.embedding.weight"]
    torch.testing.assert_close(embedding[:, 2], old["semantic.embedding.weight"][:, 1])
    assert not embedding[:, :2].any()  # new classes tell the pyramid nothing yet
    adapted = {name for part in report.parts for name in part.adapted}
    assert {f"{HEADS}cls_score.weight", "semantic.logits.bias", "semantic.embedding.weight"} <= adapted
    assert not [name for part in report.parts for name in part.fresh] and report.unused == ()
    for name in ("backbone.body.conv1.weight", "rpn.head.cls_logits.weight", "roi_heads.box_head.fc6.weight"):
        torch.testing.assert_close(new[name], old[name])


def test_the_same_labels_take_everything_and_the_outputs_agree() -> None:
    plan = tiny_plan({**SEMANTIC, "inference.score_threshold": 0.0})
    source, target = network(plan, 1), network(plan, 2)
    report = load_trained(target, plan, source.state_dict(), plan, "--init run")
    assert all(not part.adapted and not part.fresh for part in report.parts)
    x = torch.randn(1, 1, 64, 80)
    with torch.inference_mode():
        (a,), (b,) = source(x), target(x)
    assert len(a.boxes) > 0
    for left, right in zip(a, b, strict=True):
        torch.testing.assert_close(left, right)


def test_no_class_in_common_leaves_the_class_layers_as_drawn() -> None:
    after = tiny_plan(SEMANTIC, LabelTable.from_names(["cyst", "node"]))
    old, drawn, new, report = transfer(tiny_plan(SEMANTIC), after)
    assert report.classes == () and "classes: none taken over, all new" in report.lines()
    for name in (f"{HEADS}cls_score.weight", f"{HEADS}bbox_pred.bias", "semantic.logits.weight"):
        torch.testing.assert_close(new[name], drawn[name])
    assert not new["semantic.embedding.weight"].any()
    torch.testing.assert_close(new["semantic.embedding.bias"], old["semantic.embedding.bias"])
    assert f"{HEADS}cls_score.weight" in report.unused


@pytest.mark.parametrize("stem", ["conv7", "deep"])
def test_other_channels_give_the_response_that_a_grey_image_had(stem: str) -> None:
    settings = {"model.stem": stem, "model.norm": "frozen_batch"}  # which does not hide a scale
    three, five = {"input.context_mm": [-2.0, 0.0, 2.0]}, {"input.context_mm": [-2.0, -1.0, 0.0, 1.0, 2.0]}
    for a, b, more, less in ((three, five, 5, 3), (five, three, 3, 5), (five, {}, 1, 5)):
        before, after = tiny_plan({**settings, **a}), tiny_plan({**settings, **b})
        source, target = network(before, 1), network(after, 2)
        report = load_trained(target, after, source.state_dict(), before, "--init run")
        first = "backbone.body.conv1.weight" if stem == "conv7" else "backbone.body.conv1.0.weight"
        assert [name for part in report.parts for name in part.adapted] == [first]
        grey = torch.randn(1, 1, 64, 64)
        with torch.inference_mode():
            wanted = source.backbone(grey.expand(-1, less, -1, -1))
            found = target.backbone(grey.expand(-1, more, -1, -1))
        for name, level in wanted.items():
            torch.testing.assert_close(found[name], level, atol=1e-4 * float(level.abs().max()), rtol=1e-4)


@pytest.mark.parametrize(
    ("before", "after", "new", "unused"),
    [
        ({"model.mask_head": "class_agnostic"}, {}, "mask_predictor.mask_fcn_logits", "mask_predictor.mask_fcn_logits"),
        ({}, {"model.mask_size": 28}, "mask_predictor.conv6_mask", ""),
        ({}, SEMANTIC, "semantic.logits", ""),
        (SEMANTIC, {}, "", "semantic.logits"),
        ({}, {"model.box_roi_size": 5}, "box_head.fc6.weight", "box_head.fc6.weight"),
        ({}, {"model.anchor_ratios": [1.0]}, "rpn.head.cls_logits", "rpn.head.cls_logits"),
    ],
)
def test_what_does_not_fit_is_named(before: dict, after: dict, new: str, unused: str) -> None:
    _, _, _, report = transfer(tiny_plan(before), tiny_plan(after))
    for given, names in ((new, [n for p in report.parts for n in p.fresh]), (unused, [*report.unused])):
        assert bool(names) == bool(given), names
        assert not given or any(given in name for name in names), names


def test_a_single_mask_for_all_classes_is_taken_whatever_their_names() -> None:
    settings = {"model.mask_head": "class_agnostic"}
    old, _, new, _ = transfer(tiny_plan(settings), tiny_plan(settings, LabelTable.from_names(["cyst"])))
    name = "roi_heads.mask_predictor.mask_fcn_logits.weight"
    torch.testing.assert_close(new[name], old[name])


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4)])
def test_levels_of_the_pyramid_are_matched_by_their_stride(before: int, after: int) -> None:
    sizes = {4: [[8.0], [14.0], [24.0], [40.0]], 2: [[5.0], [8.0], [14.0], [24.0], [40.0]]}
    plans = [tiny_plan({"model.finest_stride": s, "model.anchor_sizes": sizes[s]}) for s in (before, after)]
    old, _, new, report = transfer(*plans)
    for level in range(4):
        a, b = level + (before == 2), level + (after == 2)
        for block in ("inner", "layer"):
            name = f"backbone.fpn.{block}_blocks.{{}}.0.weight"
            torch.testing.assert_close(new[name.format(b)], old[name.format(a)])
    names = report.unused if before == 2 else [n for p in report.parts for n in p.fresh]
    assert len(names) == 4 and all("fpn" in n for n in names)


# -- the plan -------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of a network with other labels, a deep stem, and anchors of its own."""
    plan = tiny_plan({**SEMANTIC, "model.stem": "deep", "model.anchor_sizes": [[9.0], [15.0], [25.0], [41.0]]})
    save_plan(tmp_path / "first", plan)
    save_weights(tmp_path / "first", network(plan, 1).state_dict())
    return tmp_path / "first"


def adapted(start: Start, settings: dict[str, Any], **changes: Any) -> Plan:
    plan = tiny_plan({**changes, **settings}, LabelTable.from_names(["lesion", "cyst"]))
    return start.adapted(plan.model_copy(update={"reasons": {"model.anchor_sizes": "boxes"}}), settings)


def test_the_architecture_is_that_of_the_first_run_and_the_rest_of_the_new_cohort(run: Path) -> None:
    start = start_from_run(run)
    assert start.option == "--init first" and len(start.sha256) == 64
    plan = adapted(start, {"model.mask_margin": 0.2}, **{"input.spacing_mm": [1.5, 1.5], "model.backbone": "resnet34"})
    assert plan.model.backbone == "resnet18" and plan.model.stem == "deep" and plan.model.semantic_head
    assert plan.input.spacing_mm == (1.5, 1.5) and plan.labels.names == ("lesion", "cyst")
    assert plan.model.mask_margin == 0.2  # the user's
    assert plan.model.anchor_sizes == tiny_plan().model.anchor_sizes  # of the new cohort's boxes
    why = "as in the run that the weights come from (--init first)"
    changed = dict.fromkeys(("model.backbone", "model.stem", "model.semantic_head"), why)
    assert plan.reasons == {"model.anchor_sizes": "boxes", **changed}
    model = build_mask_rcnn(plan)
    assert start.load_into(model, plan).classes == ("lesion",)


def test_anchors_of_another_number_give_way_to_those_that_were_learnt(run: Path) -> None:
    start = start_from_run(run)
    plan = adapted(start, {}, **{"model.anchor_sizes": [[8.0, 9.0], [14.0, 15.0], [24.0, 25.0], [40.0, 41.0]]})
    assert plan.model.anchor_sizes == ((9.0,), (15.0,), (25.0,), (41.0,))
    assert plan.reasons["model.anchor_sizes"] == "as in the run that the weights come from (--init first)"


def test_what_the_weights_cannot_do_is_refused(run: Path, tmp_path: Path) -> None:
    start = start_from_run(run)
    for key, value in (("model.backbone", "resnet50"), ("model.stem", "conv7"), ("model.fpn_channels", 64)):
        with pytest.raises(ConfigError, match=rf"--init first: needs {key} \w+, but --set gives {value}; leave out"):
            adapted(start, {key: value})
    with pytest.raises(ModelError, match="not a training run"):
        start_from_run(tmp_path / "nothing")
