"""References and predictions in any format on one grid."""

from pathlib import Path

import numpy as np
import pytest
from highdicom import VolumeGeometry

from medseg.errors import ConfigError, GeometryError, InputError
from medseg.evaluation import evaluate_files
from medseg.io import write_ct_series, write_instances
from medseg.io.dicom_context import DicomContext, read_dicom_context
from medseg.io.instance_pairs import read_pair
from medseg.labels import LabelTable
from medseg.metrics.evaluation import evaluate_case
from medseg.values.geometry import make_volume
from medseg.values.instances import InstanceSet

SHAPE = (5, 7, 11)
LABELS = LabelTable.from_names(["liver", "lesion"], kinds={"lesion": "ids"})
FORMATS = {"seg.nrrd": "seg.nrrd", "nii.gz": "nifti", "seg.dcm": "seg", "rtstruct.dcm": "rtstruct"}


@pytest.fixture(scope="module")
def dicom(tmp_path_factory: pytest.TempPathFactory, oblique_geometry: VolumeGeometry) -> Path:
    folder = tmp_path_factory.mktemp("series") / "dicom"
    array = np.arange(5 * 7 * 11, dtype=np.int16).reshape(SHAPE)
    write_ct_series(folder, make_volume(array, oblique_geometry.affine, "image"), seed=1, description="test")
    return folder


@pytest.fixture(scope="module")
def series(dicom: Path) -> DicomContext:
    return read_dicom_context(dicom)


def lesions(series: DicomContext, first: int, end: int) -> InstanceSet:
    """A lesion in slices first..end-1, apart from a liver in slice 2."""
    lesion, liver = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    lesion[first:end, 1:3, 2:5] = True
    liver[2, 4:6, 6:10] = True
    return InstanceSet.from_masks([(1, liver), (2, lesion)], series.geometry, LABELS)


def write(folder: Path, name: str, objects: InstanceSet, series: DicomContext) -> Path:
    form = FORMATS[name.split(".", 1)[1]]
    write_instances(folder / name, objects, format=form, context=series if form in ("seg", "rtstruct") else None)
    return folder / name


@pytest.mark.parametrize("reference", ["a.nii.gz", "a.seg.nrrd", "a.seg.dcm", "a.rtstruct.dcm"])
@pytest.mark.parametrize("prediction", ["b.seg.nrrd", "b.seg.dcm", "b.rtstruct.dcm"])
def test_every_pair_gives_the_same(
    dicom: Path, series: DicomContext, tmp_path: Path, reference: str, prediction: str
) -> None:
    """Both segmentations leave out slices, and different ones: 0 to 2 against 1 to 3."""
    first = write(tmp_path, reference, lesions(series, 0, 2), series)
    second = write(tmp_path, prediction, lesions(series, 1, 4), series)
    if first.suffix == second.suffix == ".dcm" and "rtstruct" in first.name + second.name:
        with pytest.raises(InputError, match="neither holds the grid of its image; .*--image"):
            read_pair(first, second)
        a, b = read_pair(first, second, image=dicom)
    else:
        a, b = read_pair(first, second)
    result = evaluate_case(a, b, surface=None)
    assert result.of("lesion").voxels.dice == pytest.approx(2 * 1 / (2 + 3))
    assert result.of("liver").voxels.dice == 1


def test_the_joint_grid_begins_with_whichever_begins_first(series: DicomContext, tmp_path: Path) -> None:
    first = write(tmp_path, "a.seg.dcm", lesions(series, 1, 4), series)
    second = write(tmp_path, "b.seg.dcm", lesions(series, 0, 2), series)
    a, b = read_pair(first, second)
    assert a.geometry.spatial_shape == b.geometry.spatial_shape == (4, 7, 11)
    assert evaluate_case(a, b, surface=None).of("lesion").voxels.dice == pytest.approx(0.4)


def test_segmentations_of_different_voxels(
    series: DicomContext, tmp_path: Path, oblique_geometry: VolumeGeometry
) -> None:
    affine = oblique_geometry.affine.copy()
    affine[:3, 3] += 0.4 * affine[:3, 2]
    array = np.zeros(SHAPE, np.int16)
    write_ct_series(tmp_path / "dicom", make_volume(array, affine, "image"), seed=2, description="test")
    other = read_dicom_context(tmp_path / "dicom")
    first = write(tmp_path, "a.seg.dcm", lesions(series, 0, 2), series)
    second = write(tmp_path, "b.seg.dcm", lesions(other, 0, 2), other)
    with pytest.raises(GeometryError, match=r"b\.seg\.dcm has other voxels .* than .*a\.seg\.dcm"):
        read_pair(first, second)


def test_a_folder_of_dicom_segmentations(series: DicomContext, tmp_path: Path) -> None:
    for case in ("x", "y"):
        truth, found = lesions(series, 0, 2), lesions(series, 1, 4)
        write_instances(tmp_path / f"reference/{case}_seg.dcm", truth, context=series)
        write_instances(tmp_path / f"prediction/{case}/{case}_seg.dcm", found, context=series)
    result = evaluate_files(tmp_path / "reference", tmp_path / "prediction", tmp_path / "scores")
    assert list(result.cases) == ["x", "y"] and not result.failures
    assert result.summary["classes"]["lesion"]["voxels"]["dice"]["mean"] == pytest.approx(0.4)


def test_structure_sets_on_the_images_of_a_cohort(dicom: Path, series: DicomContext, tmp_path: Path) -> None:
    for case in ("x", "y"):
        write(tmp_path / "reference" / case, "label.rtstruct.dcm", lesions(series, 0, 2), series)
        found = write(tmp_path / "prediction" / case, "found.rtstruct.dcm", lesions(series, 1, 4), series)
        found.rename(found.with_name(f"{case}_rtstruct.dcm"))
    reference, prediction = tmp_path / "reference", tmp_path / "prediction"
    rows = "".join(f"{dicom},{case}/label.rtstruct.dcm,{case},{case}\n" for case in ("x", "y"))
    (reference / "cohort.csv").write_text(f"image,label,patient,case\n{rows}")
    result = evaluate_files(reference, prediction, tmp_path / "scores")
    assert list(result.cases) == ["x", "y"] and not result.failures
    assert result.summary["classes"]["lesion"]["voxels"]["dice"]["mean"] == pytest.approx(0.4)
    with pytest.raises(ConfigError, match="one image, but .* has 2 cases"):
        evaluate_files(reference, prediction, tmp_path / "scores", image=dicom)
    single = reference / "x/label.rtstruct.dcm", prediction / "x/x_rtstruct.dcm", tmp_path / "single"
    with pytest.raises(InputError, match="--image"):
        evaluate_files(*single)
    result = evaluate_files(*single, image=dicom)
    assert result.cases["label.rtstruct"].of("lesion").voxels.dice == pytest.approx(0.4)
