"""The plan: YAML round trip, overrides and what it refuses."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from medseg.errors import ConfigError
from medseg.labels import LabelTable
from medseg.values.plan import InputPlan, Plan, load_plan, parse_plan, parse_setting


@pytest.fixture
def plan() -> Plan:
    return Plan(
        labels=LabelTable.from_names(["liver", "lesion, 'small'"], kinds={"liver": "single"}),
        input=InputPlan(spacing_mm=(1.5, 1.25), context_mm=(-3.0, 0.0, 3.0), windows=((-160, 240), (-50.0, 150.0))),
        reasons={"input.spacing_mm": "median of 12 cases: 1.4 mm", "training.steps": "two\nlines # and: a colon"},
    )


def test_yaml_round_trip_with_reasons_as_comments(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(plan.to_yaml(), encoding="utf-8")
    assert load_plan(tmp_path / "plan.yaml") == plan
    lines = plan.to_yaml().splitlines()
    at = lines.index("  # median of 12 cases: 1.4 mm")
    assert lines[at + 1].startswith("  spacing_mm:")
    assert any(line.startswith("  # two lines") for line in lines)


def test_every_default_survives_plain_data(plan: Plan) -> None:
    assert parse_plan(yaml.safe_load(yaml.safe_dump(plan.model_dump(mode="json"))), "x") == plan


def test_channels_are_planes_times_windows(plan: Plan) -> None:
    assert plan.input.channels == 6
    assert plan.with_overrides({"input.intensity": "zscore"}).input.channels == 3
    assert InputPlan(spacing_mm=(1, 1)).channels == 1


def test_overrides_make_a_changed_copy(plan: Plan) -> None:
    changed = plan.with_overrides({"model.backbone": "resnet18", "input.spacing_mm": [2, 2], "training.steps": 7})
    assert (changed.model.backbone, changed.input.spacing_mm, changed.training.steps) == ("resnet18", (2.0, 2.0), 7)
    assert plan.model.backbone == "resnet50" and plan.input.spacing_mm == (1.5, 1.25)
    # why the plan had another value is no reason for this one
    assert changed.reasons == {}
    assert plan.with_overrides({}) == plan


def test_it_is_frozen(plan: Plan) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        plan.input.spacing_mm = (1.0, 1.0)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.backbon", "resnet18", r"setting 'model.backbon' is unknown \(did you mean 'model.backbone'\?\)"),
        ("linking.weights.iuo", 1, r"did you mean 'linking.weights.iou'\?"),
        ("backbone", "resnet18", "is unknown"),
        ("model.backbone.size", 3, "is unknown"),
        ("", 3, "is unknown"),
        ("model.backbone", "vgg16", "model.backbone: Input should be"),
        ("input.spacing_mm", [0, 1], "expected more than 0"),
        ("input.spacing_mm", [float("nan"), 1], "input.spacing_mm"),
        ("input.spacing_mm", [1], "input.spacing_mm"),
        ("input.spacing_mm", "wide", "input.spacing_mm"),
        ("input.orientation", "XYZ", "expected one each of L/R, P/A and H/F"),
        ("input.orientation", "HPA", "expected one each of L/R, P/A and H/F"),
        ("input.context_mm", [-1, 1], "include 0"),
        ("input.context_mm", [1, 0], "ascending"),
        ("input.windows", [[5, 5]], "low < high"),
        ("input.windows", [], "low < high"),
        ("model.mask_size", 42, "mask_size 42: expected mask_roi_size 14 times"),
        ("model.mask_size", 7, "expected mask_roi_size"),
        ("model.anchor_sizes", [[8], [16], [32]], "has 3 levels, expected 4"),
        ("model.anchor_sizes", [[8], [16, 20], [32], [64]], "same number of positive sizes"),
        ("model.anchor_sizes", [[-8], [16], [32], [64]], "same number of positive sizes"),
        ("training.steps", 0, "greater than or equal to 1"),
        ("training.steps", "many", "training.steps"),
        ("inference.nms_iou", 1.5, "less than or equal to 1"),
        ("linking.link_iou", 0, "greater than 0"),
        ("version", 2, "version"),
        ("labels", 5, "labels"),
        ("labels", [{"id": 0, "name": "x"}], "expected 1..65535"),
        ("labels", None, "labels"),
    ],
)
def test_settings_that_make_no_sense_are_refused(plan: Plan, key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        plan.with_overrides({key: value})
    assert "\n" not in str(caught.value)


def test_a_class_agnostic_head_has_no_softmax(plan: Plan) -> None:
    with pytest.raises(ConfigError, match="softmax compares classes"):
        plan.with_overrides({"model.mask_head": "class_agnostic", "model.mask_loss": "softmax"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("input: [", "not a readable YAML file"),
        ("just text", "plan.yaml: the plan"),
        ("- 1", "plan.yaml: the plan"),
        ("", "plan.yaml: the plan"),
        ("input: {spacing_mm: [1, 1]}", "labels: Field required"),
        ("colour: red\nlabels: []\ninput: {spacing_mm: [1, 1]}", "colour: unknown field"),
        (
            "labels: []\ninput: {spacing_mm: [1, 1], windows: !!python/object/apply:os.system [ls]}",
            "not a readable YAML",
        ),
    ],
)
def test_broken_files_are_refused_by_name_and_field(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_plan(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such plan"):
        load_plan(tmp_path / "plan.yaml")
    with pytest.raises(ConfigError, match="not a readable YAML"):
        load_plan(tmp_path)
    (tmp_path / "plan.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a readable YAML"):
        load_plan(tmp_path / "plan.yaml")


def test_settings_on_the_command_line() -> None:
    assert parse_setting("model.backbone=resnet18") == ("model.backbone", "resnet18")
    assert parse_setting("input.context_mm=[-2.5, 0, 2.5]") == ("input.context_mm", [-2.5, 0, 2.5])
    assert parse_setting(" a.b = x=y ") == ("a.b", "x=y")
    for text in ("model.backbone", "=3", " =3"):
        with pytest.raises(ConfigError, match="expected section.field=value"):
            parse_setting(text)
    with pytest.raises(ConfigError, match="not YAML"):
        parse_setting("a.b=[1")
