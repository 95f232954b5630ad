"""Cohorts as they lie on disk: the layouts that are known, and one clear line for each that is broken."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from highdicom import VolumeGeometry
from network_fixtures import LABELS, simple_case

from medseg.data.cohort import common_labels, find_cohort, read_case, read_cases
from medseg.errors import CasesError, ConfigError, GeometryError, InputError
from medseg.io import write_instances, write_volume
from medseg.io.atomic import write_json
from medseg.io.label_names import united_labels
from medseg.labels import LabelTable
from medseg.values.geometry import IDENTITY, AxisMap, grid_map, make_volume
from medseg.values.instances import InstanceSet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two cases with a cohort.csv and labels.json; the label of the second is stored in another axis order."""
    rows = ["image,label,patient"]
    for seed in range(2):
        volume, truth = simple_case(seed)
        write_volume(tmp_path / f"img_{seed}.nii.gz", volume)
        if seed:
            truth = truth.moved(AxisMap(order=(2, 0, 1), flips=(True, False, True)))
        write_instances(tmp_path / f"lab_{seed}.seg.nrrd", truth)
        rows.append(f"img_{seed}.nii.gz,lab_{seed}.seg.nrrd,p{seed}")
    (tmp_path / "cohort.csv").write_text("\n".join(rows) + "\n")
    write_json(tmp_path / "labels.json", LABELS.to_dict())
    return tmp_path


def dataset(folder: Path, labels: object, images: dict[str, str], *, ending: str = ".nii.gz") -> Path:
    """Write an nnU-Net or Decathlon folder; images: stem -> file name of the image ('' for none)."""
    for directory in ("imagesTr", "labelsTr"):
        (folder / directory).mkdir(parents=True, exist_ok=True)
    for stem, name in images.items():
        (folder / "labelsTr" / f"{stem}{ending}").touch()
        if name:
            (folder / "imagesTr" / name).touch()
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder


def test_a_table_and_its_label_table(folder: Path) -> None:
    for path in (folder, folder / "cohort.csv"):
        cohort = find_cohort(path)
        assert [(row.name, row.patient) for row in cohort.rows] == [("img_0", "p0"), ("img_1", "p1")]
        assert cohort.labels == LABELS
    (folder / "labels.json").unlink()
    assert find_cohort(folder).labels == LABELS  # the label files name them, too


def test_labels_come_in_the_axis_order_of_their_image(folder: Path) -> None:
    found = list(read_cases(find_cohort(folder)))
    assert [row.name for row, _, _ in found] == ["img_0", "img_1"]
    for seed, (_, (volume,), truth) in enumerate(found):
        image, expected = simple_case(seed)
        to_image = grid_map(image, volume)
        assert to_image is not None and grid_map(truth.geometry, volume) == IDENTITY
        moved = expected.moved(to_image)
        for number in (1, 2, 3):
            np.testing.assert_array_equal(truth.full_mask(number), moved.full_mask(number))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ({"background": 0, "liver": 1, "tumour": 2}, ("liver", "tumour")),  # nnU-Net v2
        ({"0": "background", "1": "liver", "2": "tumour"}, ("liver", "tumour")),  # v1 and the Decathlon
        ({"2": "tumour", "1": "liver"}, ("liver", "tumour")),
    ],
)
def test_nnunet_label_tables(tmp_path: Path, labels: dict, names: tuple[str, ...]) -> None:
    cohort = find_cohort(dataset(tmp_path, labels, {"b_002": "b_002_0000.nii.gz", "a_001": "a_001_0000.nii.gz"}))
    assert cohort.labels is not None
    assert (cohort.labels.ids, cohort.labels.names) == ((1, 2), names)
    assert [(row.name, row.images[0].name) for row in cohort.rows] == [
        ("a_001", "a_001_0000.nii.gz"),
        ("b_002", "b_002_0000.nii.gz"),
    ]


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_decathlon_images_have_no_channel_number(tmp_path: Path, ending: str) -> None:
    folder = dataset(tmp_path, {"1": "liver"}, {"liver_1": f"liver_1{ending}"}, ending=ending)
    for directory in ("imagesTr", "labelsTr"):  # the Decathlon's archives come from a Mac
        (folder / directory / f"._liver_1{ending}").touch()
    (row,) = find_cohort(folder).rows
    assert (row.name, row.images[0], row.label) == (
        "liver_1",
        folder / "imagesTr" / f"liver_1{ending}",
        folder / "labelsTr" / f"liver_1{ending}",
    )


def test_a_label_without_image_is_a_broken_case(tmp_path: Path) -> None:
    cohort = find_cohort(dataset(tmp_path, {"1": "liver"}, {"a": "", "b": "b_0000.nii.gz"}))
    assert [row.name for row in cohort.rows] == ["b"]
    (broken,) = cohort.broken
    assert broken.name == "a" and re.search(
        r"labelsTr/a\.nii\.gz: no image .* expected .*a_0000\.nii\.gz", broken.reason
    )
    with pytest.raises(CasesError, match=r"^2 of 2 cases of the cohort cannot be used.*\ncase a: .*\ncase b: "):
        list(read_cases(cohort))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"labels": ["liver"]}', '{"labels": {"liver": "x"}}'])
def test_a_broken_dataset_json_is_refused(tmp_path: Path, text: str) -> None:
    dataset(tmp_path, {}, {"a": "a_0000.nii.gz"})
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(InputError, match=r"dataset\.json: expected JSON with 'labels'"):
        find_cohort(tmp_path)


def test_what_is_no_cohort_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such cohort"):
        find_cohort(tmp_path / "nowhere")
    with pytest.raises(InputError, match="not a cohort; expected a folder with cohort.csv"):
        find_cohort(tmp_path)
    dataset(tmp_path, {"1": "liver"}, {})
    with pytest.raises(InputError, match=r"labelsTr: no label files \(\.nii\.gz, "):
        find_cohort(tmp_path)
    with pytest.raises(ConfigError, match="names are not unique"):
        find_cohort(dataset(tmp_path, {"1": "liver", "2": "liver"}, {"a": "a_0000.nii.gz"}))


def test_overlaps_arrive_through_every_format_that_keeps_them(tmp_path: Path) -> None:
    volume, truth = simple_case(0)
    write_volume(tmp_path / "image.nii.gz", volume)
    masks = {number: truth.full_mask(number) for number in (1, 2, 3)}
    masks[3] |= masks[1] & (np.arange(masks[1].shape[2]) % 3 == 0)
    truth = InstanceSet.from_masks([(truth[k].label, mask) for k, mask in masks.items()], volume, LABELS)
    write_instances(tmp_path / "a.seg.nrrd", truth)
    write_instances(tmp_path / "b.nii.gz", truth, format="nifti4d")
    low = np.min([i.offset for i in truth], axis=0)
    high = np.max([np.add(i.offset, i.mask.shape) for i in truth], axis=0)
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ low
    crop = [(truth[k].label, mask[tuple(map(slice, low, high))]) for k, mask in masks.items()]
    grid = VolumeGeometry(affine, tuple(int(n) for n in high - low), "PATIENT")
    assert grid.spatial_shape != volume.spatial_shape  # as 3D Slicer cuts a segmentation to its segments
    write_instances(tmp_path / "c.seg.nrrd", InstanceSet.from_masks(crop, grid, LABELS))
    for name in ("a.seg.nrrd", "b.nii.gz", "c.seg.nrrd"):
        (tmp_path / "cohort.csv").write_text(f"image,label\nimage.nii.gz,{name}\n")
        cohort = find_cohort(tmp_path)
        assert cohort.labels == LABELS
        ((_, (image,), found),) = read_cases(cohort)
        assert sum(i.voxels for i in found) == sum(np.count_nonzero(mask) for mask in masks.values())
        to_image = grid_map(volume, image)
        assert to_image is not None
        for instance in found:
            expected = to_image.array(masks[instance.id])
            np.testing.assert_array_equal(found.full_mask(instance.id), expected, err_msg=name)


def test_label_tables_are_united_by_name() -> None:
    one = LabelTable.from_names(["liver", "lesion"])
    two = LabelTable.from_names(["lesion", "spleen"], kinds={"lesion": "ids"})
    united = united_labels([one, two])
    assert [(label.id, label.name, label.kind) for label in united] == [
        (1, "liver", "single"),
        (2, "lesion", "ids"),
        (3, "spleen", "single"),
    ]
    assert len({label.colour for label in united}) == 3
    agreeing = LabelTable([one[2], replace(two[2], id=7)])
    assert united_labels([agreeing, one]).ids == (1, 2, 7)  # numbers that the files agree on stay


def test_labels_with_and_without_names_do_not_mix(folder: Path) -> None:
    (folder / "labels.json").unlink()
    volume, truth = simple_case(0)
    write_volume(folder / "lab.nii.gz", make_volume(truth.to_labelmap("later").array, volume.affine, "labels"))
    table = (folder / "cohort.csv").read_text()
    (folder / "cohort.csv").write_text(table.replace("lab_0.seg.nrrd", "lab.nii.gz"))
    with pytest.raises(InputError, match=r"1 label files name their labels and 1 do not \(.*lab\.nii\.gz\)"):
        find_cohort(folder)
    (folder / "cohort.csv").write_text("image,label\nimg_0.nii.gz,lab.nii.gz\n")
    assert find_cohort(folder).labels is None
    with pytest.raises(ConfigError, match=r"the labels of this cohort have no names, .*; write labels\.json"):
        find_cohort(folder, {"label 1": "components"})


# -- broken cases ---------------------------------------------------------------------------------------------


def test_image_and_label_in_different_places_are_refused(folder: Path) -> None:
    volume, _ = simple_case(0)
    affine = volume.affine.copy()
    affine[0, 3] += 3.0
    write_volume(folder / "img_0.nii.gz", make_volume(volume.array, affine, "moved"))
    cohort = find_cohort(folder)
    with pytest.raises(GeometryError, match=r"case img_0: image and label are in different places: .*img_0.* has 14 x"):
        read_case(cohort.rows[0], cohort.labels)
    with pytest.raises(GeometryError, match="case img_0"):
        list(read_cases(cohort))


def test_an_empty_label_is_refused(folder: Path) -> None:
    volume, _ = simple_case(0)
    empty = make_volume(np.zeros(volume.array.shape, np.uint8), volume.affine, "empty")
    write_volume(folder / "lab.nii.gz", empty)
    table = (folder / "cohort.csv").read_text().replace("lab_0.seg.nrrd", "lab.nii.gz")
    (folder / "cohort.csv").write_text(table)
    cohort = find_cohort(folder)
    with pytest.raises(InputError, match=r"case img_0: .*lab\.nii\.gz is an empty label, nothing is marked"):
        read_case(cohort.rows[0], cohort.labels)


def test_unknown_label_ids_are_refused(folder: Path) -> None:
    volume, truth = simple_case(0)
    array = truth.to_labelmap("later").array
    array[array == 3] = 9
    write_volume(folder / "lab.nii.gz", make_volume(array, volume.affine, "labels"))
    table = (folder / "cohort.csv").read_text().replace("lab_0.seg.nrrd", "lab.nii.gz")
    (folder / "cohort.csv").write_text(table)
    cohort = find_cohort(folder)
    with pytest.raises(InputError, match=r"lab\.nii\.gz: values \[9\] are not in the table .*'lesion'"):
        read_case(cohort.rows[0], cohort.labels)


def test_label_tables_are_united_by_id() -> None:
    tables = [LabelTable.from_names(["organ"]), LABELS]
    assert common_labels(tables, "cohort") == LABELS
    with pytest.raises(InputError, match="label 1 is called 'organ' in one case and 'lesion' in another"):
        common_labels([LABELS, LabelTable.from_names(["lesion"])], "cohort")
