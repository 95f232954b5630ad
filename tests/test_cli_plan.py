"""`medseg plan` through the command line, and plans from files."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import yaml
from cli_runs import Run, run_all
from network_fixtures import HPL, LABELS, simple_case

from medseg.data.cohort import find_cohort
from medseg.data.cohort_plan import decide_plan, likely_orientation, plan_cohort
from medseg.data.layouts import Cohort
from medseg.data.planning import scanner_orientation
from medseg.errors import ConfigError
from medseg.io import write_instances, write_volume
from medseg.io.atomic import write_json
from medseg.values.geometry import make_volume
from medseg.values.instances import InstanceSet
from medseg.values.plan import load_plan


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cases with cohort.csv and labels.json."""
    folder = tmp_path_factory.mktemp("cohort")
    rows = ["image,label,patient"]
    for seed in range(2):
        volume, truth = simple_case(seed)
        write_volume(folder / f"case_{seed}.nii.gz", volume)
        write_instances(folder / f"label_{seed}.seg.nrrd", truth)
        rows.append(f"case_{seed}.nii.gz,label_{seed}.seg.nrrd,Doe^Jane{seed}")
    (folder / "cohort.csv").write_text("\n".join(rows), encoding="utf-8")
    write_json(folder / "labels.json", LABELS.to_dict())
    return folder


@pytest.fixture(scope="module")
def runs(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The verb's runs, by what they are about."""
    out = tmp_path_factory.mktemp("out")
    jobs = {
        "plain": ["plan", cohort, "-o", out / "a.yaml", "--fingerprint", out / "a.json"],
        "again": ["plan", cohort, "-o", out / "b.yaml"],
        "set": ["plan", cohort, "-o", out / "c.yaml", "--set", "input.spacing_mm=[1, 1]", "--set", "training.steps=7"],
        "small": ["plan", cohort, "-o", out / "s.yaml", "--small", "--set", "training.ema_decay=0.9"],
        "unknown": ["plan", cohort, "-o", out / "d.yaml", "--set", "training.step=7"],
        "value": ["plan", cohort, "-o", out / "d.yaml", "--set", "training.steps=none"],
        "folder": ["plan", cohort, "-o", out],
        "nothing": ["plan", out / "nowhere", "-o", out / "d.yaml"],
    }
    done = dict(zip(jobs, run_all(jobs.values()), strict=True))
    done["folder of the files"] = Run(0, str(out), "")
    return done


@pytest.fixture
def files(runs: dict[str, Run]) -> Path:
    return Path(runs["folder of the files"].out)


def test_it_prints_facts_and_reasons_and_writes_the_plan(runs: dict[str, Run], files: Path, cohort: Path) -> None:
    run = runs["plain"]
    assert run.code == 0 and run.err == ""
    for text in ("2 cases, 28 slices", "organ", "lesion", "model.anchor_sizes", "training.steps", "windows"):
        assert text in run.out
    assert run.out.split()[-2:] == [str(files / "a.yaml"), str(files / "a.json")]
    assert load_plan(files / "a.yaml") == plan_cohort(find_cohort(cohort), {})
    lines = (files / "a.yaml").read_text(encoding="utf-8").splitlines()
    assert max(map(len, lines)) <= 120 and sum(line.startswith("  # ") for line in lines) >= 20
    assert (files / "a.yaml").read_bytes() == (files / "b.yaml").read_bytes()


def test_the_fingerprint_names_nobody(runs: dict[str, Run], files: Path) -> None:
    text = (files / "a.json").read_text(encoding="utf-8")
    assert "case_0" not in text and "Doe" not in text and "Doe" not in runs["plain"].out
    facts = json.loads(text)
    assert facts["cases"] == 2 and facts["classes"]["lesion"]["objects"] == 4


def test_settings_stand_in_the_plan(runs: dict[str, Run], files: Path) -> None:
    assert runs["set"].code == 0
    plan, other = load_plan(files / "c.yaml"), load_plan(files / "a.yaml")
    assert plan.input.spacing_mm == (1.0, 1.0) and plan.training.steps == 7
    assert "training.steps" not in plan.reasons and "input.spacing_mm" not in plan.reasons
    assert plan.model.anchor_sizes != other.model.anchor_sizes  # they fit the pixel that was set


def test_what_cannot_be_is_refused_in_one_line(runs: dict[str, Run], files: Path) -> None:
    refusals = {name: runs[name].refusal() for name in ("unknown", "value", "folder", "nothing")}
    assert "'training.step' is unknown (did you mean 'training.steps'?)" in refusals["unknown"]
    assert "settings: training.steps" in refusals["value"]
    assert "is a folder" in refusals["folder"]
    assert "no such" in refusals["nothing"]
    assert not (files / "d.yaml").exists()


def test_a_plan_from_a_file_is_taken_as_it_is(cohort: Path, runs: dict[str, Run], files: Path, tmp_path: Path) -> None:
    edited = yaml.safe_load((files / "a.yaml").read_text(encoding="utf-8"))
    edited["model"]["mask_size"], edited["input"]["orientation"] = 112, "HAR"
    (tmp_path / "edited.yaml").write_text(yaml.safe_dump(edited), encoding="utf-8")
    found = find_cohort(cohort)
    decision = decide_plan(found, {}, tmp_path / "edited.yaml")
    assert decision.plan == load_plan(tmp_path / "edited.yaml")
    assert decision.facts.orientation == "HAR"
    assert decide_plan(found, {"training.steps": 3}, tmp_path / "edited.yaml").plan.training.steps == 3
    edited["labels"][0]["name"] = "liver"
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(edited), encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"other\.yaml: the plan is for the labels 1 'liver'.*the cohort has 1 'organ'"
    ):
        decide_plan(found, {}, tmp_path / "other.yaml")


@pytest.mark.parametrize(("order", "expected"), [((1, 2, 0), "LFP"), ((1, 0, 2), "PFL"), ((0, 1, 2), "HPL")])
def test_slices_are_those_of_the_scanner(tmp_path: Path, order: tuple[int, int, int], expected: str) -> None:
    """Slices of 5 mm and pixels of 2 mm, the slices stacked along each axis of the patient."""
    rows = ["image,label,patient"]
    volume, truth = simple_case(0)
    matrix = np.eye(4)
    matrix[:3, :3] = HPL[:, np.argsort(order)] * [5.0, 2.0, 2.0]  # the same arrays, lying otherwise in the patient
    turned = make_volume(volume.array, matrix, "turned")
    moved = InstanceSet(instances=truth.instances, geometry=turned.get_geometry(), labels=LABELS)
    write_volume(tmp_path / "image.nii.gz", turned)
    write_instances(tmp_path / "label.seg.nrrd", moved)
    (tmp_path / "cohort.csv").write_text("\n".join([*rows, "image.nii.gz,label.seg.nrrd,p"]), encoding="utf-8")
    write_json(tmp_path / "labels.json", LABELS.to_dict())
    looks: list[str] = []

    def listening(items: Iterable, description: str, total: int | None = None) -> Iterable:
        looks.append(description)
        return items

    plan, facts = decide_plan(find_cohort(tmp_path), {}, track=listening)
    assert plan.input.orientation == facts.orientation == expected
    assert looks == ["reading cases"]  # once: the first header tells how slices lie
    np.testing.assert_allclose(facts.cases[0].spacing_mm, (5, 2, 2), rtol=1e-5)
    assert facts.cases[0].shape[0] == 14 and "5 x 2 x 2 mm" in plan.reasons["input.orientation"]
    assert decide_plan(find_cohort(tmp_path), {"input.orientation": "HPL"}).plan.input.orientation == "HPL"


def test_a_first_case_unlike_the_others_does_not_decide() -> None:
    """Cases are looked at again where most lie otherwise; the orientation of the facts does not matter to the vote."""
    turned = ((2.0, 5.0, 2.0), (60, 14, 68), "HPL"), ((5.0, 2.0, 2.0), (14, 60, 68), "PFL")  # the same, twice
    upright = ((5.0, 2.0, 2.0), (14, 60, 68), "HPL")
    flat = ((1.0, 1.0, 4.0), (1, 60, 68), "LHP")
    assert [scanner_orientation([grid]) for grid in (*turned, upright, flat)] == ["PFL", "PFL", "HPL", "LFP"]
    assert scanner_orientation([turned[0], upright, upright]) == "HPL"
    cohort = Cohort(rows=(), channels=("image",), labels=None)
    assert likely_orientation(cohort) == "HPL"


def test_facts_do_not_depend_on_the_order_of_cases(cohort: Path) -> None:
    found = find_cohort(cohort)
    turned = type(found)(**{**vars(found), "rows": found.rows[::-1]})
    one, other = plan_cohort(found, {}).model_dump(mode="json"), plan_cohort(turned, {}).model_dump(mode="json")
    np.testing.assert_allclose(one["model"]["anchor_sizes"], other["model"]["anchor_sizes"], rtol=0.05)
    assert one["input"] == other["input"] and one["inference"] == other["inference"]


def test_a_small_plan_is_the_same_but_for_network_and_training(runs: dict[str, Run], files: Path) -> None:
    assert runs["small"].code == 0
    plain, small = load_plan(files / "a.yaml"), load_plan(files / "s.yaml")
    assert small.model.fpn_channels == 128 and plain.model.fpn_channels == 256
    assert small.training.ema_decay == 0.9  # --set goes last
    assert (small.input, small.inference, small.linking) == (plain.input, plain.inference, plain.linking)
