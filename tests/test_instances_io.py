"""Objects in files: .seg.nrrd and label maps, read back by medseg and by SimpleITK, nibabel and slicerio."""

import gzip
import json
import struct
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from highdicom import VolumeGeometry
from numpy.typing import NDArray

from medseg.errors import GeometryError, InputError
from medseg.io import read_instances, write_instances
from medseg.labels import Code, Label, LabelTable
from medseg.values.geometry import AxisMap, same_grid
from medseg.values.instances import Instance, InstanceSet, crop_to_object
from medseg.values.layers import assign_layers

SHAPE = (5, 7, 11)
NASTY = 'Läsion "1", <script>alert(1)</script> a|b:c~d^e\\n 左腎'
MASS = Code(value="4147007", scheme="SCT", meaning="Mass")
LABELS = LabelTable(
    [
        Label(id=3, name="liver", colour=(200, 100, 0)),
        Label(
            id=300,
            name=NASTY,
            colour=(10, 20, 250),
            kind="ids",
            category=Code(value="49755003", scheme="SCT", meaning="Morphologically Altered Structure"),
            type=MASS,
            region=Code(value="23451007", scheme="SCT", meaning="Adrenal gland"),
            laterality=Code(value="24028007", scheme="SCT", meaning="Right"),
        ),
        Label(id=9, name="unused", colour=(1, 2, 3)),
    ]
)
FORMATS = [".seg.nrrd", ".nii.gz", ".nii"]


def box(*window: slice) -> NDArray[np.bool_]:
    mask = np.zeros(SHAPE, np.bool_)
    mask[window] = True
    return mask


LIVER, LESION, BORDER = box(*np.s_[0:4, 0:5, 1:9]), box(*np.s_[1:2, 2:4, 3:5]), box(*np.s_[1:5, 3:7, 3:11])


def build(
    parts: list[tuple[int, NDArray[np.bool_], float]], geometry: VolumeGeometry, labels: LabelTable = LABELS
) -> InstanceSet:
    found = []
    for label, mask, score in parts:
        crop = crop_to_object(mask)
        assert crop is not None
        found.append(Instance(id=1, label=label, mask=crop[0], offset=crop[1], score=score))
    return InstanceSet.build(found, geometry, labels)


@pytest.fixture
def overlapping(oblique_geometry: VolumeGeometry) -> InstanceSet:
    """A liver with a lesion inside it and one across its border."""
    return build([(3, LIVER, 0.1), (300, LESION, 0.9), (300, BORDER, 1 / 3)], oblique_geometry)


@pytest.fixture
def apart(oblique_geometry: VolumeGeometry) -> InstanceSet:
    """Two lesions that touch."""
    return build([(300, box(*np.s_[1:3, 2:4, 3:5]), 0.7), (300, box(*np.s_[1:4, 2:4, 5:9]), 0.25)], oblique_geometry)


def assert_same(found: InstanceSet, expected: InstanceSet) -> None:
    assert same_grid(found.geometry, expected.geometry, tolerance_mm=1e-3)
    np.testing.assert_allclose(found.geometry.affine, expected.geometry.affine, atol=1e-4)
    assert [(i.id, i.label, i.score) for i in found] == [(i.id, i.label, i.score) for i in expected]
    for instance in expected:
        np.testing.assert_array_equal(found.full_mask(instance.id), expected.full_mask(instance.id))


# Round trips


def test_overlaps_come_back_from_a_segmentation(overlapping: InstanceSet, tmp_path: Path) -> None:
    written = write_instances(tmp_path / "a.seg.nrrd", overlapping)
    assert written.files == (tmp_path / "a.seg.nrrd",) and written.lost_voxels == {}
    found = read_instances(tmp_path / "a.seg.nrrd")
    assert_same(found, overlapping)
    assert found.labels == LABELS and found.names() == overlapping.names()
    np.testing.assert_array_equal(found.geometry.affine[:3, 3], overlapping.geometry.affine[:3, 3])


@pytest.mark.parametrize("suffix", FORMATS)
def test_touching_objects_come_back_from_every_format(apart: InstanceSet, tmp_path: Path, suffix: str) -> None:
    written = write_instances(tmp_path / f"a.b{suffix}", apart)
    assert written.lost_voxels == {} and all(file.is_file() for file in written.files)
    found = read_instances(tmp_path / f"a.b{suffix}")
    assert_same(found, apart)
    assert found.labels == LABELS


@pytest.mark.parametrize("suffix", FORMATS)
def test_nothing_found_is_a_valid_file(oblique_geometry: VolumeGeometry, tmp_path: Path, suffix: str) -> None:
    empty = InstanceSet.build([], oblique_geometry, LABELS)
    write_instances(tmp_path / f"a{suffix}", empty)
    found = read_instances(tmp_path / f"a{suffix}")
    assert_same(found, empty)
    assert found.labels == LABELS
    no_labels = InstanceSet.build([], oblique_geometry, LabelTable([]))
    write_instances(tmp_path / f"b{suffix}", no_labels)
    assert len(read_instances(tmp_path / f"b{suffix}").labels) == 0


@pytest.mark.parametrize("suffix", [".seg.nrrd", ".nii"])
def test_every_axis_order_and_flip_comes_back(apart: InstanceSet, tmp_path: Path, suffix: str) -> None:
    for order, flips in product(permutations(range(3)), product((False, True), repeat=3)):
        moved = apart.moved(AxisMap(order=order, flips=flips))
        write_instances(tmp_path / f"a{suffix}", moved)
        assert_same(read_instances(tmp_path / f"a{suffix}"), moved)


@pytest.mark.parametrize("suffix", FORMATS)
def test_same_objects_same_bytes(
    overlapping: InstanceSet, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write_instances(tmp_path / "one" / f"a{suffix}", overlapping)
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    second = write_instances(tmp_path / "two" / f"b{suffix}", overlapping)
    assert [f.read_bytes() for f in first.files] == [f.read_bytes() for f in second.files]


def test_more_objects_than_a_byte_counts(tmp_path: Path, oblique_geometry: VolumeGeometry) -> None:
    masks = [(3, np.zeros(SHAPE, bool)) for _ in range(300)]
    for number, (_, mask) in enumerate(masks):
        mask.ravel()[number] = True
    many = InstanceSet.from_masks(masks, oblique_geometry, LABELS)
    for suffix in FORMATS:
        write_instances(tmp_path / f"a{suffix}", many)
        assert_same(read_instances(tmp_path / f"a{suffix}"), many)


def test_layers_are_few_and_never_shared(rng: np.random.Generator, oblique_geometry: VolumeGeometry) -> None:
    masks = []
    while len(masks) < 40:
        a, b, c = (slice(*sorted(rng.choice(n + 1, 2, replace=False))) for n in SHAPE)
        mask = box(a, b, c) & (rng.random(SHAPE) < 0.5)
        if mask.any():
            masks.append((3, mask))
    sets = InstanceSet.from_masks(masks, oblique_geometry, LABELS)
    layers = assign_layers(sets)
    for layer in set(layers.values()):
        together = [sets.full_mask(i) for i, at in layers.items() if at == layer]
        assert np.sum(together, axis=0).max() == 1
    assert set(layers.values()) == set(range(max(layers.values()) + 1))
    most = np.sum([sets.full_mask(i.id) for i in sets], axis=0).max()
    assert most <= len(set(layers.values())) <= len(sets)


# Independent readers


def test_simpleitk_reads_the_layers(overlapping: InstanceSet, tmp_path: Path) -> None:
    write_instances(tmp_path / "a.seg.nrrd", overlapping)
    image = sitk.ReadImage(str(tmp_path / "a.seg.nrrd"))
    values = sitk.GetArrayFromImage(image)
    for number, instance in enumerate(overlapping):
        keys = {
            k: image.GetMetaData(f"Segment{number}_{k}") for k in ("Layer", "LabelValue", "Name", "Color", "Extent")
        }
        np.testing.assert_array_equal(
            values[..., int(keys["Layer"])] == int(keys["LabelValue"]), overlapping.full_mask(instance.id)
        )
        assert keys["Name"] == overlapping.names()[number]
        np.testing.assert_allclose(
            [float(c) * 255 for c in keys["Color"].split()], overlapping.colours()[number], atol=0.01
        )
        assert keys["Extent"] == "0 10 0 6 0 4"
    for index in [(0, 0, 0), (4, 6, 10), (1, 5, 2)]:
        world = image.TransformIndexToPhysicalPoint(index[::-1])
        np.testing.assert_allclose((overlapping.geometry.affine @ [*index, 1])[:3], world, atol=1e-9)


def test_slicerio_reads_masks_geometry_and_terminology(overlapping: InstanceSet, tmp_path: Path) -> None:
    slicerio = pytest.importorskip("slicerio")
    write_instances(tmp_path / "a.seg.nrrd", overlapping)
    read = slicerio.read_segmentation(str(tmp_path / "a.seg.nrrd"))
    assert [s["id"] for s in read["segments"]] == ["Segment_1", "Segment_2", "Segment_3"]
    for instance, segment in zip(overlapping, read["segments"], strict=True):
        mask = slicerio.segment_mask(read, segment).transpose(2, 1, 0)
        np.testing.assert_array_equal(mask, overlapping.full_mask(instance.id))
    np.testing.assert_allclose(read["ijkToLPS"], overlapping.geometry.affine[:, [2, 1, 0, 3]])
    assert "terminology" not in read["segments"][0]
    terminology = read["segments"][1]["terminology"]
    assert terminology["type"] == ["SCT", "4147007", "Mass"]
    assert terminology["anatomicRegion"] == ["SCT", "23451007", "Adrenal gland"]
    assert terminology["anatomicRegionModifier"] == ["SCT", "24028007", "Right"]


def test_nibabel_reads_ids_in_place(overlapping: InstanceSet, tmp_path: Path) -> None:
    written = write_instances(tmp_path / "a.nii.gz", overlapping)
    flat, lost = overlapping.to_labelmap("higher_score")
    assert written.lost_voxels == lost == {1: 38, 3: 2}
    image = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), flat)
    assert image.get_data_dtype() == np.uint16
    header = image.header
    assert (int(header["intent_code"]), int(header["sform_code"]), int(header["qform_code"])) == (1002, 1, 1)
    np.testing.assert_allclose(header.get_sform(), header.get_qform(), atol=1e-4)
    ras = np.diag([-1, -1, 1, 1]) @ overlapping.geometry.affine
    for index in [(0, 0, 0), (4, 6, 10), (1, 5, 2)]:
        np.testing.assert_allclose(image.affine @ [*index[::-1], 1], ras @ [*index, 1], atol=1e-4)
    raw = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    assert struct.unpack_from("<ff", raw, 112) == (1.0, 0.0)  # scl_slope, scl_inter
    codes = [extension.get_code() for extension in header.extensions]
    assert codes == [30]
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.nii.gz"))).tolist() == flat.tolist()


def test_the_json_says_what_was_lost(overlapping: InstanceSet, tmp_path: Path) -> None:
    write_instances(tmp_path / "a.nii.gz", overlapping, overlap="smaller")
    record = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert record["overlap"] == "smaller"
    lost = {int(key): row["voxels_lost_to_overlap"] for key, row in record["instances"].items()}
    assert lost == {1: 38, 2: 0, 3: 2} | overlapping.to_labelmap("smaller").lost_voxels
    assert record["instances"]["2"]["name"] == f"{NASTY} 1"
    with pytest.raises(InputError, match="overlap; choose"):
        write_instances(tmp_path / "b.nii.gz", overlapping, overlap="error")
    assert not (tmp_path / "b.nii.gz").exists() and not (tmp_path / "b.json").exists()


# Label tables wanted by the reader


def test_own_files_are_matched_to_a_table_by_name(apart: InstanceSet, tmp_path: Path) -> None:
    wanted = LabelTable([Label(id=1, name=NASTY, colour=(0, 0, 0)), Label(id=300, name="other", colour=(1, 1, 1))])
    for suffix in FORMATS:
        write_instances(tmp_path / f"a{suffix}", apart)
        found = read_instances(tmp_path / f"a{suffix}", labels=wanted)
        assert [i.label for i in found] == [1, 1] and found.labels == wanted
        assert [i.score for i in found] == [0.7, 0.25]
        with pytest.raises(InputError, match="are not in the label table"):
            read_instances(tmp_path / f"a{suffix}", labels=LabelTable.from_names(["liver"]))


def save_map(path: Path, array: NDArray, geometry: VolumeGeometry) -> Path:
    affine = np.diag([-1, -1, 1, 1]) @ geometry.affine[:, [2, 1, 0, 3]]
    image = nib.Nifti1Image(array.transpose(2, 1, 0), affine, dtype=array.dtype)
    nib.save(image, path)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.float32, np.float64])
def test_a_semantic_map(oblique_geometry: VolumeGeometry, tmp_path: Path, dtype: type) -> None:
    array = (LIVER * 3 + box(*np.s_[4:5, 6:7, 0:1]) * 9).astype(dtype)
    path = save_map(tmp_path / "a.nii.gz", array, oblique_geometry)
    found = read_instances(path, labels=LABELS)
    assert [(i.label, i.voxels) for i in found] == [(3, LIVER.sum()), (9, 1)]
    np.testing.assert_array_equal(found.full_mask(1), LIVER)
    found = read_instances(path)
    assert found.labels.names == ("label 3", "label 9")


def test_nndetection_json(oblique_geometry: VolumeGeometry, tmp_path: Path) -> None:
    path = save_map(
        tmp_path / "a.nii.gz", (LESION * 2 + box(*np.s_[4:5, 6:7, 0:1]) * 5).astype(np.uint8), oblique_geometry
    )
    (tmp_path / "a.json").write_text('{"instances": {"2": 0, "5": 1, "7": 0}}')
    found = read_instances(path)
    assert [(i.label, i.source_id) for i in found] == [(1, 2), (2, 5)]
    assert found.labels.names == ("label 1", "label 2") and found.labels[1].kind == "ids"
    table = LabelTable.from_names(["nodule", "mass"])
    assert read_instances(path, labels=table).labels == table
    with pytest.raises(InputError, match="a.json: label id 2 is not in the label table"):
        read_instances(path, labels=LabelTable.from_names(["nodule"]))
    (tmp_path / "a.json").write_text('{"instances": {"2": 0}}')
    with pytest.raises(InputError, match="a.nii.gz: values .5. are not in the table instance ids"):
        read_instances(path)


def test_a_lost_object_leaves_the_numbers_of_the_file_behind(oblique_geometry: VolumeGeometry, tmp_path: Path) -> None:
    under = build([(3, LESION, 0.1), (300, LESION, 0.9), (3, box(*np.s_[4:5, 6:7, 0:1]), 0.5)], oblique_geometry)
    assert write_instances(tmp_path / "a.nii.gz", under).lost_voxels == {1: 4}
    found = read_instances(tmp_path / "a.nii.gz")
    assert [(i.id, i.source_id, i.label, i.score) for i in found] == [(1, 2, 300, 0.9), (2, 3, 3, 0.5)]
    for name in ("b.seg.nrrd", "b.nii.gz"):  # handed down, though the objects are now 1 and 2
        write_instances(tmp_path / name, found)
        assert [(i.id, i.source_id) for i in read_instances(tmp_path / name)] == [(1, 2), (2, 3)]


def test_a_json_about_something_else_is_left_alone(oblique_geometry: VolumeGeometry, tmp_path: Path) -> None:
    path = save_map(tmp_path / "a.nii.gz", LIVER.astype(np.uint8) * 3, oblique_geometry)
    for text in ('{"Manual": true}', "[]", '{"instances": 5}'):
        (tmp_path / "a.json").write_text(text)
        assert len(read_instances(path, labels=LABELS)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"instances": {"1": "x"}}',
        '{"instances": {"one": 0}}',
        '{"instances": {"1": {"label": 1}}}',
        '{"instances": {"1": {"score": 1}}, "labels": []}',
        '{"instances": {"1": 1}, "labels": [{"id": 0, "name": "x"}]}',
        '{"instances": {"3": {"label": 1, "score": 1.5}}, "labels": [{"id": 1, "name": "x"}]}',
        '{"instances": {"3": {"label": 2}}, "labels": [{"id": 1, "name": "x"}]}',
    ],
)
def test_a_damaged_json_is_refused_by_name(oblique_geometry: VolumeGeometry, tmp_path: Path, text: str) -> None:
    path = save_map(tmp_path / "a.nii.gz", LIVER.astype(np.uint8) * 3, oblique_geometry)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match="a.json: ") as caught:
        read_instances(path)
    assert "\n" not in str(caught.value)


# Segmentations of other programs


def write_foreign(path: Path, array: NDArray[np.uint8], fields: str, geometry: VolumeGeometry) -> Path:
    """Write an NRRD as 3D Slicer does; ``array`` is (slice, row, column) or has layers last."""
    layers = array.shape[3:]
    sizes = " ".join(str(n) for n in (*layers, *array.shape[2::-1]))
    columns = [geometry.affine[:3, axis] for axis in (2, 1, 0)]
    # stored in RAS, to be turned to LPS
    directions = " ".join(f"({-c[0]},{-c[1]},{c[2]})" for c in columns)
    origin = geometry.affine[:3, 3] * [-1, -1, 1]
    header = (
        f"NRRD0004\ntype: unsigned char\ndimension: {array.ndim}\nspace: right-anterior-superior\nsizes: {sizes}\n"
        f"space directions: {'none ' if layers else ''}{directions}\n"
        f"kinds: {'list ' if layers else ''}domain domain domain\nencoding: raw\n"
        f"space origin: ({origin[0]},{origin[1]},{origin[2]})\n{fields}\n"
    )
    path.write_bytes(header.encode() + array.tobytes())
    return path


TERMS = (
    "Segmentation.Status:inprogress|TerminologyEntry:General Anatomy list~SCT^123037004^Anatomical Structure"
    "~SCT^64033007^Kidney~SCT^24028007^Right~Anatomic codes~^^~^^|"
)


def test_a_slicer_segmentation(oblique_geometry: VolumeGeometry, tmp_path: Path) -> None:
    array = np.zeros((*SHAPE, 2), np.uint8)
    array[LIVER, 0], array[BORDER, 1], array[4, 6, 0, 0] = 1, 1, 2
    fields = (
        f"Segment0_ID:=a\nSegment0_Name:=Niere\nSegment0_Color:=0.5 0.25 1\nSegment0_LabelValue:=1\nSegment0_Layer:=0\n"
        f"Segment0_Tags:={TERMS}\n"
        "Segment1_ID:=b\nSegment1_Name:=x\nSegment1_LabelValue:=1\nSegment1_Layer:=1\n"
        "Segment2_ID:=c\nSegment2_Name:=x\nSegment2_LabelValue:=2\nSegment2_Layer:=0\n"
        "Segment3_ID:=d\nSegment3_Name:=empty\nSegment3_LabelValue:=3\nSegment3_Layer:=0\n"
    )
    for name in ("a.seg.nrrd", "b.nrrd"):
        path = write_foreign(tmp_path / name, array, fields, oblique_geometry)
        found = read_instances(path)
        assert found.labels.names == ("Niere", "x", "empty")
        assert [(i.label, i.voxels) for i in found] == [(1, LIVER.sum()), (2, BORDER.sum()), (2, 1)]
        assert found.labels[1].colour == (128, 64, 255) and found.labels[2].kind == "ids"
        assert found.labels[1].type == Code(value="64033007", scheme="SCT", meaning="Kidney")
        assert found.labels[1].laterality == Code(value="24028007", scheme="SCT", meaning="Right")
        assert found.labels[1].region is None
        np.testing.assert_array_equal(found.full_mask(2), BORDER)
        np.testing.assert_allclose(found.geometry.affine, oblique_geometry.affine, atol=1e-9)
    table = LabelTable.from_names(["empty", "x", "Niere"])
    assert [i.label for i in read_instances(path, labels=table)] == [3, 2, 2]


def test_an_old_slicer_segmentation_without_layers(oblique_geometry: VolumeGeometry, tmp_path: Path) -> None:
    array = np.stack([LIVER, BORDER], axis=-1).astype(np.uint8)
    fields = "Segment0_ID:=a\nSegment0_Name:=liver\nSegment1_ID:=b\nSegment1_Name:=lesion\n"
    found = read_instances(write_foreign(tmp_path / "a.seg.nrrd", array, fields, oblique_geometry))
    np.testing.assert_array_equal(found.full_mask(1), LIVER)
    np.testing.assert_array_equal(found.full_mask(2), BORDER)


def test_own_file_after_slicer_dropped_the_table_and_added_a_segment(overlapping: InstanceSet, tmp_path: Path) -> None:
    write_instances(tmp_path / "a.seg.nrrd", overlapping)
    head, data = (tmp_path / "a.seg.nrrd").read_bytes().split(b"\n\n", 1)
    kept = [line for line in head.split(b"\n") if not line.startswith(b"medseg_LabelTable")]
    new = [b"Segment3_ID:=n", b"Segment3_Name:=new", b"Segment3_LabelValue:=1", b"Segment3_Layer:=0"]
    (tmp_path / "b.seg.nrrd").write_bytes(b"\n".join(kept + new) + b"\n\n" + data)
    found = read_instances(tmp_path / "b.seg.nrrd")
    assert [(i.label, i.score) for i in found] == [(3, 0.1), (300, 0.9), (300, 1 / 3), (301, 1.0)]
    assert found.labels.names == ("liver", NASTY, "new")
    assert found.labels[300].region == LABELS[300].region


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("", "no segments in the header"),
        ("Segment0_Name:=a\nSegment0_LabelValue:=x\n", "not a usable segmentation"),
        ("Segment0_Name:=a\nSegment0_Layer:=2\n", "the file has 1 layers"),
        ("Segment0_Name:=a\nSegment0_LabelValue:=-1\n", "values go from 1 to 65535"),
        ("Segment0_Name:=a\nSegment0_Color:=red\n", "not a usable segmentation"),
        ("Segment0_Name:=a\nSegment0_Tags:=medseg.label:0|\n", "expected 1..65535"),
        ("Segment0_Name:=a\nSegment0_Tags:=medseg.score:7|\n", "expected 0..1"),
        ("medseg_LabelTable:={\n", "not a usable segmentation"),
    ],
)
def test_broken_segment_headers_are_refused(
    oblique_geometry: VolumeGeometry, tmp_path: Path, fields: str, message: str
) -> None:
    path = write_foreign(tmp_path / "a.seg.nrrd", LIVER.astype(np.uint8), fields, oblique_geometry)
    with pytest.raises(InputError, match=message) as caught:
        read_instances(path)
    assert "a.seg.nrrd" in str(caught.value) and "\n" not in str(caught.value)


# Files that cannot be used


def test_values_that_are_no_labels_are_refused(oblique_geometry: VolumeGeometry, tmp_path: Path) -> None:
    for array, message in [
        (LIVER * -3.0, "value -3 found"),
        (LIVER * 0.5, "value 0.5 found, expected whole numbers"),
        (LIVER * np.nan, "value nan found, expected whole numbers"),
        (LIVER.astype(np.int16) - 1000, "value -1000 found"),
        (LIVER.astype(np.int32) * 70000, "expected 1..65535"),
        (LIVER * 4.0, "values .4. are not in the table"),
    ]:
        path = save_map(tmp_path / "a.nii.gz", array, oblique_geometry)
        with pytest.raises(InputError, match=f"a.nii.gz: .*{message}") as caught:
            read_instances(path, labels=None if "65535" in message else LABELS)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".seg.nrrd", ".nii.gz"])
def test_cut_and_foreign_files_are_refused(apart: InstanceSet, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_instances(path, apart)
    whole = path.read_bytes()
    for content in (whole[:-20], whole[: len(whole) // 2], whole[:50], b"", b"hello, this is no image\n" * 9):
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"a{suffix}: ") as caught:
            read_instances(path)
        assert "\n" not in str(caught.value)


def test_a_segmentation_without_a_place_is_refused(oblique_geometry: VolumeGeometry, tmp_path: Path) -> None:
    path = write_foreign(tmp_path / "a.seg.nrrd", LIVER.astype(np.uint8), "Segment0_Name:=a\n", oblique_geometry)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(line for line in lines if not line.startswith(b"space")))
    with pytest.raises((InputError, GeometryError), match=r"a.seg.nrrd: .*place in the patient is unknown"):
        read_instances(path)


def test_paths_that_make_no_sense_are_refused(apart: InstanceSet, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone.nii: no such file, expected a file of .seg.nrrd"):
        read_instances(tmp_path / "gone.nii")
    with pytest.raises(InputError, match="is a folder"):
        read_instances(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match="a.txt: objects cannot be read from this format"):
        read_instances(tmp_path / "a.txt")
    for name in ("a.nrrd", "a.png", "a"):
        with pytest.raises(InputError, match="objects cannot be written in this format"):
            write_instances(tmp_path / name, apart)
    for name in ("a.seg.nrrd", "a.nii.gz"):
        with pytest.raises(InputError, match="cannot be written"):
            write_instances(tmp_path / "a.txt" / name, apart)  # the folder is a file
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


# Real data


def test_nuclei_with_their_json(data_dir: Path) -> None:
    path = sorted((data_dir / "nuclei" / "labelsTr").glob("*.nii.gz"))[0]
    record = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    found = read_instances(path, labels=LabelTable.from_names(["nucleus"], kinds={"nucleus": "ids"}))
    values = np.asarray(nib.load(path).dataobj).T
    assert [str(i.source_id) for i in found] == sorted(record["instances"], key=int)
    for instance in list(found)[::7]:
        np.testing.assert_array_equal(found.full_mask(instance.id), values == instance.source_id)


def test_dcmqi_label_map_lies_where_simpleitk_says(data_dir: Path) -> None:
    path = data_dir / "dicom_seg" / "dcmqi" / "liver_spine_seg.nrrd"
    image = sitk.ReadImage(str(path))
    found = read_instances(path)
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.Execute(sitk.Cast(image, sitk.sitkUInt16))
    assert [i.source_id for i in found] == list(statistics.GetLabels())
    for instance in found:
        centre = np.argwhere(found.full_mask(instance.id)).mean(axis=0)
        world = (found.geometry.affine @ [*centre, 1])[:3]
        np.testing.assert_allclose(world, statistics.GetCentroid(instance.source_id), atol=1e-3)
        assert instance.voxels == statistics.GetNumberOfPixels(instance.source_id)


def test_sixty_one_organs_survive_both_formats(data_dir: Path, tmp_path: Path) -> None:
    organs = read_instances(data_dir / "ct_torso_3mm" / "organs.nii.gz")
    assert len(organs) > 50
    for suffix in (".seg.nrrd", ".nii.gz"):
        write_instances(tmp_path / f"a{suffix}", organs)
        assert_same(read_instances(tmp_path / f"a{suffix}"), organs)
