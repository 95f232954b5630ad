"""Cohort tables: names, paths, and one clear line for every fault."""

import hashlib
import json
from pathlib import Path

import pytest
from dicom_fixtures import SERIES, write_series
from highdicom import VolumeGeometry

from medseg.data.cohort import find_cohort, find_studies
from medseg.errors import InputError
from medseg.io.cohort_table import (
    names_patients,
    read_cohort_channels,
    read_cohort_labels,
    read_cohort_table,
    stem_of,
)
from medseg.labels import LabelTable


def cohort(folder: Path, rows: str, *files: str) -> Path:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    (folder / "cohort.csv").write_text(rows, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.nii.gz", "a"),
        ("a.b.seg.nrrd", "a.b"),
        ("A.NII.GZ", "A"),
        ("case_1", "case_1"),
        (".nii", ".nii"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_stem(name: str, stem: str) -> None:
    assert stem_of(Path("x") / name) == stem


def test_a_case_is_called_by_its_column_else_by_its_image_and_never_after_a_folder(
    tmp_path: Path, oblique_geometry: VolumeGeometry
) -> None:
    write_series(tmp_path / "Doe_John" / "CT", oblique_geometry)
    (tmp_path / "Roe").mkdir()
    files = ("Doe_John/CT", "Roe", "a.b.nii.gz", "Poe/CT", "c.nii")
    rows = [f"{file},l.nii" for file in files]
    table = cohort(tmp_path, "\n".join(["image,label", *rows]), "a.b.nii.gz", "l.nii")
    names = [row.name for row in read_cohort_table(table, images=False)]
    series = hashlib.sha256(SERIES.encode()).hexdigest()[:10]
    assert names == [series, "row 3", "a.b", "row 5", "c"]  # a folder without images, one that is not there
    cohort(tmp_path, "\n".join(["image,label,case", *(f"{row},no {k}" for k, row in enumerate(rows))]))
    found = read_cohort_table(table, images=False)
    assert [row.name for row in found] == [row.patient for row in found] == [f"no {k}" for k in range(5)]


def test_paths_are_relative_to_the_table_and_columns_may_come_in_any_order(tmp_path: Path) -> None:
    text = "\ufeffpatient, label,image,note\np1,l/a.nii.gz,i/a.nii.gz,x\np2,l/b.nii.gz,i/b.nii.gz,y\n"
    folder = cohort(tmp_path, text, "i/a.nii.gz", "i/b.nii.gz", "l/a.nii.gz", "l/b.nii.gz")
    rows = read_cohort_table(folder)
    assert [row.name for row in rows] == ["a", "b"]
    assert rows[1].images == (tmp_path / "i/b.nii.gz",) and rows[1].label == tmp_path / "l/b.nii.gz"
    assert rows[1].patient == "p2"
    assert read_cohort_table(folder / "cohort.csv") == rows


def test_channels_have_a_column_each_and_patients_may_be_left_out(tmp_path: Path) -> None:
    text = "image:T2,label,image: T1 c\nb.nii,l.nii,a.nii\nc.nii,m.nii,d.nii\n"
    folder = cohort(tmp_path, text, "a.nii", "b.nii", "c.nii", "d.nii", "l.nii", "m.nii")
    assert read_cohort_channels(folder) == ("T2", "T1 c")
    first, second = read_cohort_table(folder)
    assert first.images == (tmp_path / "b.nii", tmp_path / "a.nii") and first.name == first.patient == "b"
    assert second.patient == "c" and not names_patients(folder)
    (tmp_path / "a.nii").unlink()
    with pytest.raises(InputError, match=r"row 2: image 'a\.nii' does not exist"):
        read_cohort_table(folder)
    assert len(read_cohort_table(folder, images=False)) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,patient\na.nii,p\n", r"\['label'\] are missing"),
        ("picture,label\na.nii,p\n", r"\['image'\] are missing"),
        ("image,label,patient\na.nii,b.nii,\n", "row 2: patient empty"),
        ("image,image:T1,label\na.nii,a.nii,b.nii\n", "expected one column image, or one per channel"),
        ("image:T1,image: T1,label\na.nii,a.nii,b.nii\n", "each with a name of its own"),
        ("image,label,patient\n", "no cases"),
        ("", "are missing"),
        ("image,label,patient\na.nii,b.nii,p\na.nii,,p\n", "row 3: label empty"),
        ("image,label,patient\na.nii,nowhere.nii,p\n", "row 2: label 'nowhere.nii' does not exist"),
        ("image,label,patient\nnowhere.nii,b.nii,p\n", "row 2: image 'nowhere.nii' does not exist"),
        ("image,label,patient\na.nii,b.nii,p\na.nii,b.nii,q\n", "rows 2 and 3: two cases are called 'a'"),
        ("image,label,case\na.nii,b.nii,p/q\n", "row 2: case 'p/q', expected a plain file name"),
        ("image,label,case\na.nii,b.nii,\n", "row 2: case empty"),
        ('image,label,patient\n"a.nii,b.nii,p\n', "not a readable"),
    ],
)
def test_faults_name_the_row(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_cohort_table(cohort(tmp_path, text, "a.nii", "b.nii"))
    assert "\n" not in str(error.value)


def test_missing_images_are_allowed_where_only_labels_are_read(tmp_path: Path) -> None:
    folder = cohort(tmp_path, "image,label,patient\nnowhere.nii,b.nii,p\n", "b.nii")
    assert read_cohort_table(folder, images=False)[0].name == "nowhere"


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such cohort table"):
        read_cohort_table(tmp_path)


def test_labels_beside_the_table(tmp_path: Path) -> None:
    assert read_cohort_labels(tmp_path) is None
    table = LabelTable.from_names(["liver", "lesion"], kinds={"lesion": "ids"})
    (tmp_path / "labels.json").write_text(json.dumps(table.to_dict()))
    assert read_cohort_labels(tmp_path) == table
    assert read_cohort_labels(tmp_path / "cohort.csv") == table
    for text in ("{", '{"1": "liver"}', '[{"id": 0, "name": "x"}]', '[{"nme": 1}]'):
        (tmp_path / "labels.json").write_text(text)
        with pytest.raises(InputError, match="labels.json"):
            read_cohort_labels(tmp_path)


def test_a_list_of_images_is_a_cohort_to_predict_on(tmp_path: Path) -> None:
    (tmp_path / "a b.nii.gz").touch()
    (tmp_path / "wanted.txt").write_text("a b.nii.gz\n\n../elsewhere/c.nrrd\n")
    (tmp_path / "wanted.csv").write_text("image\na b.nii.gz\n../elsewhere/c.nrrd\n")
    for name in ("wanted.txt", "wanted.csv"):
        found = find_studies(tmp_path / name)
        assert found is not None and found.channels == ("image",)
        assert [(row.name, row.images) for row in found.rows] == [("a b", (tmp_path / "a b.nii.gz",))]
        (broken,) = found.broken
        assert broken.name == "c" and broken.reason.endswith(f"c.nrrd: no such file, but {name} lists it")
        with pytest.raises(InputError, match=r"columns \['label'\] are missing"):
            find_cohort(tmp_path / name)
