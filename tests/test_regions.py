"""Labels that are regions of several values (nnU-Net 2): overlapping objects, from the cohort to a model and scores."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from network_fixtures import TINY, quick_curves, simple_case

from medseg.data.check import check_cohort
from medseg.data.cohort import find_cohort, read_cases
from medseg.errors import InputError
from medseg.evaluation import evaluate_files
from medseg.io import write_instances, write_volume
from medseg.labels import LabelTable
from medseg.training.cohort import train_cohort
from medseg.values.geometry import make_volume
from medseg.values.instances import InstanceSet
from medseg.values.kinds import by_region
from medseg.values.plan import load_plan

TABLE = {
    "labels": {"background": 0, "all": [1, 2], "lesion": [2], "organ": 1},
    "regions_class_order": [1, 2, 3],
    "channel_names": {"0": "CT"},
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cases as nnU-Net has them: 1 is the organ, 2 both lesions."""
    folder = tmp_path_factory.mktemp("regions") / "Dataset001"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(TABLE))
    for seed in range(2):
        volume, truth = simple_case(seed)
        stored = np.zeros(volume.spatial_shape, np.uint8)
        for instance in truth:
            stored[instance.window][instance.mask] = instance.label
        write_volume(folder / "imagesTr" / f"c{seed}_0000.nii.gz", volume)
        write_volume(folder / "labelsTr" / f"c{seed}.nii.gz", make_volume(stored, volume.affine, "label"))
    return folder


def test_regions_are_unions_that_overlap(cohort: Path) -> None:
    found = find_cohort(cohort, {"lesion": "components"})
    assert found.labels is not None and found.labels.names == ("all", "lesion", "organ")
    assert found.regions == {1: (1, 2), 2: (2,), 3: (1,)}
    for seed, (_, _, instances) in enumerate(read_cases(found)):
        organ, *lesions = (i.voxels for i in simple_case(seed)[1])
        sizes = [(i.label, i.voxels) for i in instances]
        assert sizes[0] == (1, organ + sum(lesions)) and sizes[-1] == (3, organ)
        assert sorted(voxels for label, voxels in sizes if label == 2) == sorted(lesions)
    report = check_cohort(found)
    assert not report.errors and [label.objects for label in report.cases[0].labels] == [1, 2, 1]


def test_a_model_of_regions(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are classes like others: planned, trained on, and compared with the cohort's own files."""
    monkeypatch.setattr("medseg.training.outputs.save_curves", quick_curves)
    settings = {**TINY, "training.steps": 1}
    train_cohort(cohort, tmp_path / "run", torch.device("cpu"), settings=settings, kinds={"lesion": "components"})
    plan = load_plan(tmp_path / "run" / "plan.yaml")
    assert [(label.name, label.kind) for label in plan.labels] == [
        ("all", "single"), ("lesion", "components"), ("organ", "single"),
    ]  # fmt: skip
    for row, _, truth in read_cases(find_cohort(cohort, {"lesion": "components"})):
        write_instances(tmp_path / "pred" / row.name / f"{row.name}.seg.nrrd", truth)
    kinds = {"lesion": "components"}
    scores = evaluate_files(cohort, tmp_path / "pred", tmp_path / "scores", kinds=kinds).summary["classes"]  # type: ignore[arg-type]
    assert {name: entry["voxels"]["dice"]["mean"] for name, entry in scores.items()} == dict.fromkeys(scores, 1.0)
    assert [scores[name]["objects"]["tp"] for name in ("all", "lesion", "organ")] == [2, 4, 2]


def test_a_label_table_names_the_regions(cohort: Path) -> None:
    own = cohort / "labels.json"
    own.write_text(
        '[{"id": 7, "name": "lesion", "kind": "components"}, {"id": 2, "name": "organ"}, {"id": 5, "name": "all"}]'
    )
    found = find_cohort(cohort)
    assert found.regions == {5: (1, 2), 7: (2,), 2: (1,)}
    assert sorted(i.label for i in next(iter(read_cases(found)))[2]) == [2, 5, 7, 7]
    own.write_text('[{"id": 1, "name": "organ"}, {"id": 2, "name": "tumour"}]')
    with pytest.raises(InputError, match="its labels are the regions all, lesion, organ, and the label table names"):
        find_cohort(cohort)
    own.unlink()


def test_values_of_no_region_and_regions_without_voxels(oblique_geometry) -> None:
    array = np.zeros((5, 7, 11), np.uint8)
    array[2, 3, 4:6], array[3, 3, 4:9] = 1, 3
    stored = InstanceSet.from_labelmap(array, oblique_geometry, LabelTable.from_names(["a", "b", "c"]))
    labels = LabelTable.from_names(["whole", "absent"])
    found = by_region(stored, {1: (1, 3), 2: (2,)}, labels)
    assert [(i.label, i.voxels) for i in found] == [(1, 7)] and found.labels == labels
    with pytest.raises(InputError, match=r"values \[3\] found that are in none of the regions whole, absent"):
        by_region(stored, {1: (1,), 2: (2,)}, labels)
