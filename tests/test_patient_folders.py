"""A DICOM folder per patient: the series that a SEG or RTSTRUCT refers to, patients by their id, labels by name."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from dicom_fixtures import SERIES, write_series
from highdicom import VolumeGeometry
from pydicom import dcmread
from pydicom.dataset import Dataset

from medseg.cli import check
from medseg.data.cohort import find_cohort, read_case, read_cases
from medseg.errors import CasesError, GeometryError, InputError
from medseg.evaluation import evaluate_files
from medseg.io import read_volume, write_instances
from medseg.io.dicom_context import read_dicom_context
from medseg.io.series import series_name
from medseg.labels import LabelTable
from medseg.values.geometry import same_grid
from medseg.values.instances import InstanceSet


def objects(grid: VolumeGeometry, *names: str) -> InstanceSet:
    """Return overlapping boxes, one per name, that fill no slice at the ends."""
    masks = []
    for number in range(len(names)):
        mask = np.zeros(grid.spatial_shape, bool)
        mask[1:4, 1 + number : 4 + number, 2:7] = True
        masks.append((number + 1, mask))
    return InstanceSet.from_masks(masks, grid, LabelTable.from_names(names))


def write_patient(
    folder: Path,
    grid: VolumeGeometry,
    number: int,
    *names: str,
    patient: str,
    form: str = "seg",
    without_id: bool = False,
) -> str:
    """Write a CT series, another of the same place, and a SEG or RTSTRUCT of the first; return the series' UID."""

    def edit(ds: Dataset, index: int) -> None:
        ds.PatientID, ds.PatientName = patient, f"Name^Of^{patient}"
        if without_id:
            del ds.PatientID

    uid = f"{SERIES}.{number}1"
    write_series(folder / "CT", grid, edit=edit, series=uid)
    write_series(folder / "other", grid, edit=edit, series=f"{SERIES}.{number}2")
    context = read_dicom_context(folder / "CT")
    write_instances(folder / f"{form}.dcm", objects(context.geometry, *names), context=context, format=form)
    return uid


def strip_private(path: Path) -> None:
    """Take out what medseg notes for itself: labels are then known by what every reader sees."""
    ds = dcmread(path)
    ds.remove_private_tags()
    ds.save_as(path)


@pytest.fixture
def folder(tmp_path: Path, oblique_geometry: VolumeGeometry) -> Path:
    """Three folders of two patients; the files of each number their labels in another order."""
    cohort = tmp_path / "cohort"
    write_patient(cohort / "Doe_John", oblique_geometry, 1, "liver", "lesion", patient="SECRET-1")
    write_patient(cohort / "Doe_John_2", oblique_geometry, 2, "lesion", "liver", patient="SECRET-1", form="rtstruct")
    write_patient(cohort / "Roe", oblique_geometry, 3, "lesion", patient="SECRET-2")
    for file in ("Doe_John/seg.dcm", "Doe_John_2/rtstruct.dcm", "Roe/seg.dcm"):
        strip_private(cohort / file)
    (cohort / "notes").mkdir()
    (cohort / "notes" / "readme.txt").write_text("no patient")
    return cohort


def test_series_patients_and_labels(folder: Path, oblique_geometry: VolumeGeometry) -> None:
    cohort = find_cohort(folder)
    assert not cohort.broken and cohort.channels == ("CT",)
    assert [row.series for row in cohort.rows] == [f"{SERIES}.{k}1" for k in (1, 2, 3)]
    assert [row.patient for row in cohort.rows] == ["patient 1", "patient 1", "patient 2"]
    assert [row.name for row in cohort.rows] == [series_name(f"{SERIES}.{k}1") for k in (1, 2, 3)]
    assert cohort.labels is not None and sorted(cohort.labels.names) == ["lesion", "liver"]
    told = repr([(row.name, row.patient) for row in cohort.rows])
    assert "SECRET" not in told and "Doe" not in told
    expected = [("liver", "lesion"), ("lesion", "liver"), ("lesion",)]
    for (row, (volume,), found), names in zip(read_cases(cohort), expected, strict=True):
        assert same_grid(volume, read_volume(row.images[0] / "CT"))
        assert same_grid(found.geometry, volume)
        truth = objects(oblique_geometry, *names)
        by_name = {found.labels[i.label].name: i for i in found}
        assert set(by_name) == set(names)
        for wanted in truth:
            own = by_name[truth.labels[wanted.label].name]
            assert own.voxels == wanted.voxels
            np.testing.assert_allclose(
                _centre(found.full_mask(own.id), volume.affine),
                _centre(truth.full_mask(wanted.id), truth.geometry.affine),
            )


def _centre(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]


def test_without_a_patient_id_every_folder_is_a_patient(tmp_path: Path, oblique_geometry: VolumeGeometry) -> None:
    for number, name in enumerate(("a", "b"), 1):
        write_patient(tmp_path / name, oblique_geometry, number, "x", patient="same", without_id=True)
    assert [row.patient for row in find_cohort(tmp_path).rows] == ["patient 1", "patient 2"]


def test_the_only_series_stands_in_for_a_lost_reference(folder: Path) -> None:
    shutil.rmtree(folder / "Roe" / "CT")
    cohort = find_cohort(folder)
    assert cohort.rows[2].series == f"{SERIES}.32" and not cohort.broken
    remarks: list[str] = []
    read_case(cohort.rows[2], cohort.labels, remarks.append)
    assert [f"made on series {SERIES}.31, the image is series {SERIES}.32" in line for line in remarks] == [True]


def test_broken_folders_are_told_and_do_not_hide_the_others(folder: Path, oblique_geometry: VolumeGeometry) -> None:
    shutil.rmtree(folder / "Doe_John" / "CT")  # the series that its SEG refers to
    write_series(folder / "Doe_John" / "third", oblique_geometry, series=f"{SERIES}.13")
    (folder / "Doe_John_2" / "rtstruct.dcm").unlink()
    shutil.copy(folder / "Roe" / "seg.dcm", folder / "Roe" / "again.dcm")
    assert not find_cohort(folder).rows
    with pytest.raises(CasesError, match=r"^3 of 3 cases of the cohort cannot be used") as error:
        list(read_cases(find_cohort(folder)))
    one, two, three = error.value.reasons
    assert "case folder 1: " in one and f"refers to series {SERIES}.11, which is not among the 2 image series" in one
    assert "case folder 2: " in two and "no SEG or RTSTRUCT among its 2 image series" in two
    assert "case folder 3: " in three and "2 segmentations of one series (again.dcm, seg.dcm)" in three
    (folder / "Roe" / "again.dcm").unlink()
    assert [len(part) for part in (find_cohort(folder).rows, find_cohort(folder).broken)] == [1, 2]


def test_the_report_names_no_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "Doe_John_2" / "rtstruct.dcm").unlink()
    (folder / "Roe" / "CT" / "IM0001.dcm").write_bytes(b"broken")
    with pytest.raises(typer.Exit):
        check.run(folder, tmp_path / "check.json")
    text = (tmp_path / "check.json").read_text()
    assert not any(name in text for name in ("Doe", "Roe", "SECRET", str(folder)))
    data = json.loads(text)
    assert (data["layout"], data["channels"], data["patients"]) == ("DICOM folder per patient", ["CT"], 2)
    first, second = sorted(data["errors"])
    assert "folder 3/CT/IM0001.dcm" in first and second.startswith("case folder 2: folder 2: no SEG or RTSTRUCT")
    assert [case["folder"] for case in data["cases"]] == [1]
    shown = capsys.readouterr().out
    assert "SECRET" not in shown and str(folder / "Roe" / "CT" / "IM0001.dcm") in shown  # the user must find it


def test_an_evaluation_names_no_folder(folder: Path, tmp_path: Path) -> None:
    """Of three cases one is found again, one was not predicted and one has no label."""
    (folder / "Doe_John_2" / "rtstruct.dcm").unlink()
    first, second = find_cohort(folder).rows
    truth = read_case(first, None)[1]
    write_instances(tmp_path / "found" / first.name / f"{first.name}.seg.nrrd", truth)
    result = evaluate_files(folder, tmp_path / "found", tmp_path / "scores")
    assert [score["voxels"]["dice"]["mean"] for score in result.summary["classes"].values()] == [1.0, 1.0]
    assert set(result.failures) == {second.name, "folder 2"} and "Doe_John_2: no SEG" in result.failures["folder 2"]
    written = json.loads((tmp_path / "scores" / "summary.json").read_text())
    assert written["failures"]["folder 2"].startswith("folder 2: no SEG or RTSTRUCT among its 2 image series")
    assert not any(name in json.dumps(written) for name in ("Doe", "Roe", "SECRET"))


def test_a_segmentation_in_another_frame_of_reference_is_a_broken_case(folder: Path) -> None:
    for file in (folder / "Roe" / "CT").iterdir():
        ds = dcmread(file)
        ds.FrameOfReferenceUID = "1.2.3.4"
        ds.save_as(file)
    cohort = find_cohort(folder)
    with pytest.raises(GeometryError, match=f"^case {cohort.rows[2].name}: .*frame of reference"):
        read_case(cohort.rows[2], cohort.labels)


def test_a_table_of_dicom_without_patients_goes_by_their_ids(folder: Path) -> None:
    (folder / "Doe_John_2" / "CT").rename(folder / "Doe_John_2" / "CT_2")
    (folder / "Roe" / "CT").rename(folder / "Roe" / "CT_3")
    rows = ["image,label", "Doe_John/CT,Doe_John/seg.dcm", "Roe/CT_3,Roe/seg.dcm"]
    rows.append("Doe_John_2/CT_2,Doe_John_2/rtstruct.dcm")
    (folder / "cohort.csv").write_text("\n".join(rows))
    cohort = find_cohort(folder)
    assert [row.patient for row in cohort.rows] == ["patient 1", "patient 2", "patient 1"]
    assert cohort.layout == "table" and len(list(read_cases(cohort))) == 3
    (folder / "cohort.csv").write_text("\n".join(f"{row},{'patient' if k == 0 else 'x'}" for k, row in enumerate(rows)))
    assert {row.patient for row in find_cohort(folder).rows} == {"x"}  # the table's word counts


def test_no_folder_of_patients(tmp_path: Path, oblique_geometry: VolumeGeometry) -> None:
    write_series(tmp_path / "a" / "CT", oblique_geometry)
    with pytest.raises(InputError, match="not a cohort; .*found 0 files and 1 folders, none with a SEG or RTSTRUCT"):
        find_cohort(tmp_path)


def test_real_segmentations_and_structure_sets(data_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(data_dir / "dicom_seg" / "dcmqi" / "ct-3slice", tmp_path / "one" / "ct")
    shutil.copy(data_dir / "dicom_seg" / "dcmqi" / "liver.dcm", tmp_path / "one" / "liver.dcm")
    (tmp_path / "two").symlink_to(data_dir / "rtstruct" / "sarcoma_001" / "CT" / "dicom")
    (tmp_path / "three").mkdir()
    for name in ("ct_1.dcm", "ct_2.dcm", "rt.dcm"):  # drawn in another frame of reference
        shutil.copy(data_dir / "rtstruct" / "two_slices" / name, tmp_path / "three" / name)
    cohort = find_cohort(tmp_path)
    assert not cohort.broken and len(cohort.rows) == 3 and cohort.labels is not None
    assert cohort.labels.names == ("Liver", "ROI-1", "GTV_Mass_CT")
    one, three, two = cohort.rows
    (volume,), liver = read_case(one, cohort.labels)
    expected = read_volume(data_dir / "dicom_seg" / "dcmqi" / "liver_seg.nrrd")
    assert same_grid(expected, volume) and liver[1].voxels == np.count_nonzero(expected.array)
    (volume,), tumour = read_case(two, cohort.labels)
    expected = read_volume(data_dir / "rtstruct" / "sarcoma_001" / "CT" / "nifti" / "mask" / "mask.nii.gz")
    assert same_grid(expected, volume) and liver.labels == tumour.labels
    assert abs(tumour[1].voxels - np.count_nonzero(expected.array)) <= 0.01 * tumour[1].voxels
    with pytest.raises(GeometryError, match=f"case {three.name}: .*rt.dcm: frame of reference"):
        read_case(three, cohort.labels)
