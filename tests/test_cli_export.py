"""`medseg export`: formats, options, messages and exit codes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from dicom_fixtures import write_series
from highdicom import VolumeGeometry

from medseg.cli import main
from medseg.io import read_instances, write_instances
from medseg.io.dicom_context import read_dicom_context
from medseg.labels import LabelTable
from medseg.values.instances import InstanceSet

LABELS = LabelTable.from_dict([{"id": 1, "name": "liver"}, {"id": 300, "name": "lesion", "kind": "ids"}])


@pytest.fixture
def folder(tmp_path: Path, oblique_geometry: VolumeGeometry) -> Path:
    """A series, and a liver with two lesions, one of them across its border, as .seg.nrrd."""
    write_series(tmp_path / "series", oblique_geometry)
    masks = np.zeros((3, 5, 7, 11), bool)
    masks[0, 0:4, 0:5, 1:9] = masks[1, 1:2, 2:4, 3:5] = masks[2, 1:5, 3:7, 3:11] = True
    objects = InstanceSet.from_masks([(1, masks[0]), (300, masks[1]), (300, masks[2])], oblique_geometry, LABELS)
    write_instances(tmp_path / "in.seg.nrrd", objects)
    return tmp_path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    """Run the command in the folder; return exit code, standard output and standard error."""
    monkeypatch.chdir(folder)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medseg", "export", *arguments])
        with pytest.raises(SystemExit) as stop:
            main.main()
        captured = capfd.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


def masks_of(instances: InstanceSet) -> list[bytes]:
    return [instances.full_mask(i.id).tobytes() for i in instances]


def test_every_format_there_and_back(run, folder: Path) -> None:
    expected = read_instances(folder / "in.seg.nrrd")
    for out, *options in [
        ("a.dcm", "--image", "series"),
        ("b.nii.gz", "--format", "nifti4d"),
        ("c.dcm", "--format", "rtstruct", "--image", "series"),
        ("d.nii", "--format", "nifti4d", "--image", "series"),
    ]:
        code, printed, error = run("in.seg.nrrd", out, *options)
        assert (code, error) == (0, ""), error
        assert printed.splitlines()[0] == str(folder / out)
        back = ["--image", "series"] if out == "c.dcm" else []
        assert run(out, f"{out}.seg.nrrd", *back)[0] == 0
        found = read_instances(folder / f"{out}.seg.nrrd", image=read_dicom_context(folder / "series"))
        assert masks_of(found) == masks_of(expected), out
        assert found.labels == LABELS and [i.label for i in found] == [1, 300, 300]


def test_flat_maps_say_what_they_lose(run, folder: Path) -> None:
    code, printed, error = run("in.seg.nrrd", "a.nii.gz", "--tables")
    assert code == 0 and "ml of 2 objects went to overlapping ones" in error
    names = [Path(line).name for line in printed.splitlines()]
    assert names == ["a.nii.gz", "a.json", "a_dseg.tsv", "a_itksnap.txt", "a_slicer.ctbl"]
    assert "2 lesion_1 " in (folder / "a_slicer.ctbl").read_text()
    code, _, error = run("in.seg.nrrd", "b.nii.gz", "--overlap", "error")
    assert code == 2 and "overlap" in error and not (folder / "b.nii.gz").exists()


def test_semantic_maps_widen_and_bring_their_labels(run, folder: Path) -> None:
    assert run("in.seg.nrrd", "a.nii.gz", "--format", "semantic", "--tables", "--overlap", "smaller")[0] == 0
    found = read_instances(folder / "a.nii.gz")
    assert found.labels == LABELS and [i.label for i in found] == [1, 300]
    expected = read_instances(folder / "in.seg.nrrd")
    lesions = expected.semantic(300)
    kept = found.full_mask(2)
    assert kept[expected.full_mask(2)].all() and not (kept & ~lesions).any()
    assert "300 lesion " in (folder / "a_slicer.ctbl").read_text()
    wanted = LabelTable.from_dict([{"id": 7, "name": "lesion"}, {"id": 8, "name": "liver"}])
    assert [i.label for i in read_instances(folder / "a.nii.gz", labels=wanted)] == [7, 8]


def test_a_seg_is_its_own_context(run, folder: Path) -> None:
    assert run("in.seg.nrrd", "a.dcm", "--image", "series")[0] == 0
    code, _, error = run("a.dcm", "b.dcm")
    assert code == 0, error
    code, _, error = run("in.seg.nrrd", "b.dcm")
    assert code == 2 and "belongs to a patient and study" in error and error.count("\n") == 1
    code, _, error = run("in.seg.nrrd", "b.dcm", "--image", "in.seg.nrrd")
    assert code == 2


def test_resampling_has_to_be_asked_for(run, folder: Path, oblique_geometry: VolumeGeometry) -> None:
    affine = oblique_geometry.affine.copy()
    affine[:3, :3] /= 2
    fine = VolumeGeometry(affine, (10, 14, 22), "PATIENT")
    small = InstanceSet.from_masks([(1, np.ones((10, 14, 22), bool))], fine, LABELS)
    write_instances(folder / "fine.seg.nrrd", small)
    code, _, error = run("fine.seg.nrrd", "a.nii.gz", "--image", "series")
    assert code == 2 and "not those of the image" in error and "--resample" in error
    assert run("fine.seg.nrrd", "a.nii.gz", "--image", "series", "--resample")[0] == 0
    assert read_instances(folder / "a.nii.gz")[1].voxels >= 4 * 6 * 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in.seg.nrrd", "a.png"], "cannot be written in this format"),
        (["in.seg.nrrd", "a.dcm", "--format", "dicom"], "--format dicom: expected one of nifti, semantic"),
        (["in.seg.nrrd", "a.nii.gz", "--format", "rtstruct"], "is written to .dcm; rename the file"),
        (["in.seg.nrrd", "a.nii.gz", "--overlap", "first"], "--overlap first: expected one of"),
        (["in.seg.nrrd", "b.seg.nrrd", "--tables"], "--tables"),
        (["in.seg.nrrd", "a.dcm", "--smooth", "--image", "series"], "--smooth"),
        (["in.seg.nrrd", "a.nii.gz", "--resample"], "name the image as well"),
        (["in.seg.nrrd", "a.nii.gz", "--series", "1.2"], "name the image as well"),
        (["gone.seg.nrrd", "a.nii.gz"], "gone.seg.nrrd: no such file"),
        (["in.seg.nrrd", "a.dcm", "--image", "gone"], "gone: no such file or folder"),
        (["in.seg.nrrd", "in.seg.nrrd"], "in.seg.nrrd"),
    ],
)
def test_what_makes_no_sense_is_one_line(run, folder: Path, arguments: list[str], message: str) -> None:
    before = sorted(path.name for path in folder.iterdir())
    code, printed, error = run(*arguments)
    assert (code, printed) == (2, "") and message in error and error.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == before


def test_labels_name_a_plain_map(run, folder: Path) -> None:
    run("in.seg.nrrd", "a.nii.gz", "--format", "semantic")
    (folder / "a.json").unlink()
    (folder / "labels.json").write_text(json.dumps(LABELS.to_dict()))
    assert run("a.nii.gz", "b.seg.nrrd", "--labels", "labels.json")[0] == 0
    assert read_instances(folder / "b.seg.nrrd").labels.names == ("liver", "lesion")
