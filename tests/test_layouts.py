"""The layouts of nnU-Net, nnDetection and the Decathlon, written as these projects write them."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from highdicom import VolumeGeometry

from medseg.data.cohort import find_cohort, find_studies, parse_kind, read_cases
from medseg.errors import ConfigError, InputError
from medseg.io import write_volume
from medseg.values.geometry import make_volume


def write_dataset(folder: Path, table: dict[str, Any], *files: str) -> Path:
    """Write dataset.json and empty files below a folder."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    (folder / "dataset.json").write_text(json.dumps(table))
    return folder


def two_blocks() -> np.ndarray:
    """Return a label map: value 1 in one corner, 2 in two parts that do not touch."""
    array = np.zeros((5, 7, 11), np.uint8)
    array[1:3, 1:3, 1:4] = 1
    array[1:4, 5:7, 1:3] = 2
    array[2:4, 5:7, 8:11] = 2
    return array


def test_nnunet_with_two_channels(tmp_path: Path, oblique_geometry: VolumeGeometry) -> None:
    write_dataset(tmp_path, {"labels": {"background": 0, "a": 1, "b": 2}, "channel_names": {"1": "FLAIR", "0": "T1"}})
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    for channel in (0, 1):
        array = np.arange(385, dtype=np.int16).reshape(5, 7, 11) * (channel + 1)
        image = make_volume(array, oblique_geometry.affine, "image")
        write_volume(tmp_path / "imagesTr" / f"x_000{channel}.nii.gz", image)
    write_volume(tmp_path / "labelsTr" / "x.nii.gz", make_volume(two_blocks(), oblique_geometry.affine, "label"))
    cohort = find_cohort(tmp_path)
    assert (cohort.layout, cohort.channels) == ("nnU-Net", ("T1", "FLAIR"))
    ((row, volumes, instances),) = read_cases(cohort)
    assert [image.name for image in row.images] == ["x_0000.nii.gz", "x_0001.nii.gz"]
    np.testing.assert_array_equal(volumes[1].array, 2 * volumes[0].array)
    assert [i.label for i in instances] == [1, 2]
    # the two parts of b are one object, until its kind says otherwise
    for kind, count in (("single", 1), ("components", 2)):
        ((_, _, instances),) = read_cases(find_cohort(tmp_path, {"b": kind}))
        assert [i.label for i in instances].count(2) == count
    (tmp_path / "imagesTr" / "x_0001.nii.gz").unlink()
    with pytest.raises(InputError, match=r"x\.nii\.gz: 1 channels \(0000\) of this case .*, expected 2 numbered"):
        list(read_cases(find_cohort(tmp_path)))


def test_an_image_that_is_listed_and_missing_is_named(tmp_path: Path) -> None:
    listed = [{"image": "./imagesTr/gone.nii.gz", "label": "./labelsTr/x.nii.gz"}]
    write_dataset(tmp_path, {"labels": {"a": 1}, "training": listed}, "imagesTr/other.nii.gz", "labelsTr/x.nii.gz")
    (broken,) = find_cohort(tmp_path).broken
    both = " or ".join(str(tmp_path / "imagesTr" / name) for name in ("gone.nii.gz", "x_0000.nii.gz"))
    assert broken.reason.endswith(f"no image for this label; expected {both}")


def test_kinds_name_their_labels(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"labels": {"a": 1}}, "imagesTr/x_0000.nii", "labelsTr/x.nii")
    with pytest.raises(ConfigError, match="--kind b: no such label in .*; it has a"):
        find_cohort(tmp_path, {"b": "ids"})
    assert parse_kind("left = lung=components") == ("left = lung", "components")
    for text in ("a=several", "a", "=ids"):
        with pytest.raises(ConfigError, match="expected NAME=KIND with a kind of single, components, ids"):
            parse_kind(text)


def test_labels_json_wins(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"labels": {"a": 1}}, "imagesTr/x_0000.nii", "labelsTr/x.nii")
    (tmp_path / "labels.json").write_text('[{"id": 1, "name": "tumour", "kind": "components"}]')
    labels = find_cohort(tmp_path).labels
    assert labels is not None and labels.names == ("tumour",) and labels[1].kind == "components"
    labels = find_cohort(tmp_path, {"tumour": "ids"}).labels
    assert labels is not None and labels[1].kind == "ids"


def test_nnunet_1_lists_its_cases_without_channel_numbers(tmp_path: Path) -> None:
    listed = [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]
    listed.append({"image": "./imagesTr/gone.nii.gz", "label": "./labelsTr/gone.nii.gz"})
    table = {"labels": {"0": "background", "1": "liver"}, "modality": {"0": "CT"}, "training": listed}
    write_dataset(tmp_path, table, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "labelsTr/not_listed.nii.gz")
    cohort = find_cohort(tmp_path)
    assert (cohort.channels, cohort.layout) == (("CT",), "nnU-Net")
    assert [row.images for row in cohort.rows] == [(tmp_path / "imagesTr" / "a_0000.nii.gz",)]
    (broken,) = cohort.broken
    assert broken.name == "gone" and "gone.nii.gz: no such file" in broken.reason


def test_a_folder_of_images_is_a_cohort_to_predict_on(tmp_path: Path) -> None:
    """nnU-Net's imagesTs: channels by their numbers, or else every file a case; a study with a NIfTI file is none."""

    def cases(*names: str) -> list[tuple[str, int]]:
        folder = tmp_path / str(len(list(tmp_path.iterdir()))) / "imagesTs"
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).touch()
        found = find_studies(folder)
        assert find_studies(folder, single=True) is None
        assert found is None or all(row.label.parent == folder.parent / "labelsTs" for row in found.rows)
        return [] if found is None else [(row.name, len(row.images)) for row in found.rows]

    assert cases("b_0000.nii.gz", "a_0001.nii.gz", "a_0000.nii.gz", "._a_0000.nii.gz") == [("a", 2), ("b", 1)]
    assert cases("scan_2019.nii", "scan_2020.nii", "x.mha", "x.json") == [("scan_2019", 1), ("scan_2020", 1), ("x", 1)]
    assert cases("a_0000.nii.gz", "IM0001") == cases("notes.json") == []


def test_a_cohort_to_predict_on_needs_no_labels(tmp_path: Path) -> None:
    listed = [{"image": f"./imagesTr/{name}.nii", "label": f"./labelsTr/{name}.nii"} for name in "ab"]
    write_dataset(tmp_path / "n", {"labels": {"ignore": 1}, "training": listed}, "imagesTr/a.nii")
    found = find_studies(tmp_path / "n")
    assert found is not None and [row.name for row in found.rows] == ["a"]
    assert [case.name for case in found.broken] == ["b"] and "no image for this label" in found.broken[0].reason
    (tmp_path / "n" / "cohort.csv").write_text("image,label\nimagesTr/a.nii,gone.nii\ngone.nii,gone.nii\n")
    found = find_studies(tmp_path / "n" / "cohort.csv")
    assert found is not None and [row.name for row in found.rows] == ["a"] and len(found.broken) == 1


def test_nnunet_2_names_files_anywhere(tmp_path: Path) -> None:
    files = {"case": {"images": ["../x/t1.mha", "../x/t2.mha"], "label": "../y/l.mha"}}
    table = {"labels": {"liver": 1}, "channel_names": {"0": "MR", "1": "MR"}, "dataset": files}
    (tmp_path / "set").mkdir()
    write_dataset(tmp_path / "set", table, "../x/t1.mha", "../x/t2.mha", "../y/l.mha")
    cohort = find_cohort(tmp_path / "set")
    assert cohort.channels == ("MR 0", "MR 1")
    assert [image.resolve() for image in cohort.rows[0].images] == [tmp_path / "x/t1.mha", tmp_path / "x/t2.mha"]


def test_the_channels_of_the_decathlon_are_volumes_of_one_file(tmp_path: Path) -> None:
    table = {"labels": {"0": "background", "1": "a", "2": "b"}, "modality": {"0": "T1", "1": "T2"}}
    write_dataset(tmp_path, table, "imagesTr/._x.nii.gz", "labelsTr/._x.nii.gz")
    affine = np.array([[-0.7, 0, 0, 9.0], [0, 0.8, 0, -4], [0, 0, 3, 11], [0, 0, 0, 1]])
    array = np.random.default_rng(3).integers(0, 900, (11, 7, 5, 2)).astype(np.int16)
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "imagesTr" / "x.nii.gz")
    nib.save(nib.Nifti1Image(two_blocks().transpose(2, 1, 0), affine), tmp_path / "labelsTr" / "x.nii.gz")
    cohort = find_cohort(tmp_path)
    assert (cohort.layout, cohort.channels) == ("Medical Segmentation Decathlon", ("T1", "T2"))
    ((_, volumes, instances),) = read_cases(cohort)
    for channel, volume in enumerate(volumes):
        np.testing.assert_array_equal(volume.array, array[..., channel].transpose(2, 1, 0))
    assert instances[1].voxels == 2 * 2 * 3
    (tmp_path / "dataset.json").write_text(json.dumps(table | {"modality": {"0": "T1"}}))
    with pytest.raises(InputError, match=r"case x: .*x\.nii\.gz: 2 channels, expected 1 \(T1\)"):
        list(read_cases(find_cohort(tmp_path)))


@pytest.mark.parametrize("name", ["dataset.json", "dataset.yaml"])
def test_nndetection_as_it_writes_itself(tmp_path: Path, oblique_geometry: VolumeGeometry, name: str) -> None:
    labels = tmp_path / "raw_splitted" / "labelsTr"
    (tmp_path / "raw_splitted" / "imagesTr").mkdir(parents=True)
    labels.mkdir()
    image = make_volume(np.arange(385, dtype=np.int16).reshape(5, 7, 11), oblique_geometry.affine, "image")
    write_volume(tmp_path / "raw_splitted" / "imagesTr" / "a_0000.nii.gz", image)
    write_volume(labels / "a.nii.gz", make_volume(two_blocks(), oblique_geometry.affine, "label"))
    (labels / "a.json").write_text('{"instances": {"1": 1, "2": 0}}')
    # YAML numbers its keys, JSON quotes them
    text = {"dataset.json": '{"labels": {"0": "x", "1": "y"}}', "dataset.yaml": "labels:\n  0: x\n  1: y\n"}
    (tmp_path / name).write_text(text[name])
    cohort = find_cohort(tmp_path)
    assert cohort.layout == "nnDetection" and cohort.labels is not None
    assert [(label.id, label.name, label.kind) for label in cohort.labels] == [(1, "x", "ids"), (2, "y", "ids")]
    ((_, _, instances),) = read_cases(cohort)
    assert [(i.label, i.source_id, i.voxels) for i in instances] == [(2, 1, 12), (1, 2, 24)]
    (labels / "b.nii.gz").touch()
    (tmp_path / "raw_splitted" / "imagesTr" / "b_0000.nii.gz").touch()
    (broken,) = find_cohort(tmp_path).broken
    assert "b.nii.gz: no b.json beside it" in broken.reason


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"labels": {"whole": [1, "x"], "core": 2}},
            r"region 'whole' has the values \[1, 'x'\], expected whole numbers",
        ),
        ({"labels": {"whole": [], "core": 2}}, r"region 'whole' has the values \[\], expected whole numbers"),
        ({"labels": {"whole": [0, 1]}}, r"region 'whole' has the values \[0, 1\]; 0 is the background"),
        ({"labels": {"whole": [1, 2], "ignore": 3}}, "label 'ignore' marks voxels without annotation"),
        ({"labels": {"a": 1, "ignore": 2}}, "label 'ignore' marks voxels without annotation"),
        ({"labels": {"a": 1, "b": 1}}, "label 1 is called 'a' and 'b'"),
        ({"labels": {"a": 1}, "channel_names": {"x": "T1"}}, "expected names by number"),
        ({"labels": {"a": 1}, "training": [{"image": "x"}]}, "expected a list of cases with image and label"),
    ],
)
def test_what_is_refused(tmp_path: Path, table: dict, message: str) -> None:
    write_dataset(tmp_path, table, "imagesTr/x_0000.nii", "labelsTr/x.nii")
    with pytest.raises(InputError, match=message) as error:
        find_cohort(tmp_path)
    assert "\n" not in str(error.value) and str(error.value).startswith(str(tmp_path))


def test_ambiguous_folders_are_told(tmp_path: Path) -> None:
    write_dataset(tmp_path / "in", {"labels": {"a": 1}}, "imagesTr/x_0000.nii", "labelsTr/x.nii")
    with pytest.raises(InputError, match=r"not a cohort; .* found a cohort in .*/in; name that folder"):
        find_cohort(tmp_path)
    (tmp_path / "in" / "cohort.csv").write_text("image,label\nimagesTr/x_0000.nii,labelsTr/x.nii\n")
    with pytest.raises(
        InputError, match=r"cohort\.csv and dataset\.json found, expected one; name the one that counts"
    ):
        find_cohort(tmp_path / "in")
    assert find_cohort(tmp_path / "in" / "dataset.json").layout == "nnU-Net"
    assert find_cohort(tmp_path / "in" / "cohort.csv").layout == "table"
    (tmp_path / "in" / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "a": 1}}))
    (tmp_path / "in" / "labelsTr" / "x.json").write_text('{"instances": {"1": 0}}')
    with pytest.raises(InputError, match=r"calls 0 the background, but the \.json beside"):
        find_cohort(tmp_path / "in" / "dataset.json")


def test_real_cohorts(data_dir: Path) -> None:
    nuclei = find_cohort(data_dir / "nuclei")
    assert nuclei.labels is not None and not nuclei.broken
    assert (nuclei.layout, len(nuclei.rows), nuclei.channels) == ("nnDetection", 200, ("microscopy",))
    assert [(label.id, label.name, label.kind) for label in nuclei.labels] == [(1, "nucleus", "ids")]
    row = nuclei.rows[0]
    count = len(json.loads(row.label.with_name(f"{row.name}.json").read_text())["instances"])
    one = next(read_cases(nuclei))
    assert len(one[2]) == count and one[1][0].spatial_shape == one[2].geometry.spatial_shape
    hippocampus = find_cohort(data_dir / "mr_hippocampus")
    assert (hippocampus.layout, len(hippocampus.rows), hippocampus.channels) == ("nnU-Net", 208, ("MRI",))
    assert hippocampus.labels is not None and hippocampus.labels.names == ("Anterior", "Posterior")
    assert {i.label for i in next(read_cases(hippocampus))[2]} == {1, 2}
