"""Objects as channels of a 4-D NIfTI file: overlaps kept, read by nibabel and SimpleITK, damaged files refused."""

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from highdicom import VolumeGeometry

from medseg.errors import InputError
from medseg.io import read_instances, write_instances
from medseg.labels import LabelTable
from medseg.values.instances import Instance, InstanceSet

LABELS = LabelTable.from_dict([{"id": 3, "name": "liver"}, {"id": 300, "name": "Läsion 左", "kind": "ids"}])


@pytest.fixture
def objects(oblique_geometry: VolumeGeometry, rng: np.random.Generator) -> InstanceSet:
    def mask(*shape: int) -> np.ndarray:
        found = rng.random(shape) < 0.6
        found[[0, -1], [0, -1], [0, -1]] = True  # a tight box
        return found

    return InstanceSet.build(
        [
            Instance(id=1, label=3, mask=mask(4, 5, 9), offset=(0, 1, 2), score=0.25),
            Instance(id=1, label=300, mask=mask(2, 3, 3), offset=(2, 3, 4), score=1 / 3, source_id=17),
            Instance(id=1, label=300, mask=mask(5, 7, 11), offset=(0, 0, 0)),
        ],
        oblique_geometry,
        LABELS,
    )


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_objects_come_back(objects: InstanceSet, tmp_path: Path, suffix: str) -> None:
    written = write_instances(tmp_path / f"a{suffix}", objects, format="nifti4d")
    assert [f.name for f in written.files] == [f"a{suffix}", "a.json"] and written.lost_voxels == {}
    found = read_instances(tmp_path / f"a{suffix}")
    assert [(i.label, i.score, i.source_id) for i in found] == [(3, 0.25, 1), (300, 1 / 3, 17), (300, 1.0, 3)]
    assert found.labels == LABELS
    np.testing.assert_allclose(found.geometry.affine, objects.geometry.affine, atol=1e-4)
    for instance in objects:
        np.testing.assert_array_equal(found.full_mask(instance.id), objects.full_mask(instance.id))


def test_nibabel_and_simpleitk_read_the_channels(objects: InstanceSet, tmp_path: Path) -> None:
    write_instances(tmp_path / "a.nii.gz", objects, format="nifti4d")
    image = nib.load(tmp_path / "a.nii.gz")
    assert image.shape == (11, 7, 5, 3) and image.get_data_dtype() == np.uint8
    channels = np.asarray(image.dataobj).T
    itk = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.nii.gz")))
    for instance in objects:
        np.testing.assert_array_equal(channels[instance.id - 1], objects.full_mask(instance.id))
        np.testing.assert_array_equal(itk[instance.id - 1], objects.full_mask(instance.id))
    expected = np.diag([-1, -1, 1, 1]) @ objects.geometry.affine[:, [2, 1, 0, 3]]
    np.testing.assert_allclose(image.get_sform(), expected, atol=1e-4)
    np.testing.assert_allclose(image.get_qform(), expected, atol=1e-4)


def test_same_objects_same_bytes(objects: InstanceSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write_instances(tmp_path / "one" / "a.nii.gz", objects, format="nifti4d")
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    second = write_instances(tmp_path / "two" / "b.nii.gz", objects, format="nifti4d")
    assert [f.read_bytes() for f in first.files] == [f.read_bytes() for f in second.files]


@pytest.mark.parametrize("count", [0, 1])
def test_one_channel_or_none(objects: InstanceSet, tmp_path: Path, count: int) -> None:
    few = InstanceSet.build(list(objects)[:count], objects.geometry, LABELS)
    write_instances(tmp_path / "a.nii.gz", few, format="nifti4d")
    found = read_instances(tmp_path / "a.nii.gz")
    assert len(found) == count and found.labels == LABELS


def test_files_of_others(objects: InstanceSet, tmp_path: Path) -> None:
    write_instances(tmp_path / "a.nii", objects, format="nifti4d")
    (tmp_path / "a.json").unlink()
    found = read_instances(tmp_path / "a.nii")
    assert found.labels.names == ("channel 1", "channel 2", "channel 3")
    image = nib.load(tmp_path / "a.nii")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj).astype(np.float32), image.affine), tmp_path / "f.nii.gz")
    assert [i.voxels for i in read_instances(tmp_path / "f.nii.gz")] == [i.voxels for i in objects]
    values = np.asarray(image.dataobj) * 2
    nib.save(nib.Nifti1Image(values, image.affine), tmp_path / "g.nii.gz")
    with pytest.raises(InputError, match="g.nii.gz: value 2 in channel 1, expected 0 and 1"):
        read_instances(tmp_path / "g.nii.gz")


def test_damaged_files_are_refused(objects: InstanceSet, tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    write_instances(path, objects, format="nifti4d")
    whole = path.read_bytes()
    plain = gzip.decompress(whole)
    for content in (whole[:-20], gzip.compress(plain[:-400]), whole[:-8] + b"\0" * 8):
        path.write_bytes(content)
        with pytest.raises(InputError, match="a.nii.gz: ") as caught:
            read_instances(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    record = json.loads((tmp_path / "a.json").read_text())
    for channels in (record["channels"][:2], [{"score": 1}] * 3, [{"label": 4}] * 3, ["x"] * 3):
        (tmp_path / "a.json").write_text(json.dumps(record | {"channels": channels}))
        with pytest.raises(InputError, match="a.json: ") as caught:
            read_instances(path)
        assert "\n" not in str(caught.value)
