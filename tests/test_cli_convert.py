"""`medseg info` and `medseg convert` as a user runs them: output, exit codes, and no torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_fixtures import SERIES, write_series
from highdicom import VolumeGeometry

from medseg.cli import convert, info
from medseg.errors import InputError
from medseg.io import read_volume


def run(repository: Path, *arguments: object) -> subprocess.CompletedProcess:
    """Run one verb in a process of its own; a line of modules that must not be there ends its output."""
    code = (
        "import sys, typer\nfrom medseg.cli import convert, info\napp = typer.Typer()\n"
        "[app.command(verb.NAME)(verb.run) for verb in (convert, info)]\napp(standalone_mode=False)\n"
        "print('loaded', [m for m in ('torch', 'monai', 'matplotlib') if m in sys.modules])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(repository), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=environment
    )


def test_convert_prints_the_path_and_loads_no_torch(
    tmp_path: Path, repository: Path, oblique_geometry: VolumeGeometry
) -> None:
    hu = write_series(tmp_path / "in", oblique_geometry)
    done = run(repository, "convert", tmp_path / "in", tmp_path / "out" / "ct.nii.gz")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [str(tmp_path / "out" / "ct.nii.gz"), "loaded []"]
    np.testing.assert_array_equal(read_volume(tmp_path / "out" / "ct.nii.gz").array, hu)


def test_convert_refuses_before_it_reads_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"out\.dcm: cannot write this format"):
        convert.run([tmp_path / "missing"], tmp_path / "out.dcm")
    with pytest.raises(InputError, match="missing: no such file or folder"):
        convert.run([tmp_path / "missing"], tmp_path / "out.nii")
    assert list(tmp_path.iterdir()) == []


def test_convert_takes_the_series_of_several(
    tmp_path: Path, oblique_geometry: VolumeGeometry, capsys: pytest.CaptureFixture
) -> None:
    write_series(tmp_path / "in" / "a", oblique_geometry)
    write_series(tmp_path / "in" / "b", oblique_geometry, series=SERIES + ".7")
    convert.run([tmp_path / "in"], tmp_path / "b.nrrd", SERIES + ".7")
    assert capsys.readouterr().out == f"{tmp_path / 'b.nrrd'}\n"


def test_info_lists_series_without_the_patient(
    tmp_path: Path, repository: Path, oblique_geometry: VolumeGeometry, capsys: pytest.CaptureFixture
) -> None:
    write_series(tmp_path, oblique_geometry)
    (tmp_path / "notes.txt").write_text("hello")
    info.run(tmp_path)
    table = capsys.readouterr().out
    assert "5 x 7 x 11" in table and "HPL" in table
    assert f"1. series {SERIES} (5 files)\n2. notes.txt (1 files): set aside: not DICOM" in table
    done = run(repository, "info", tmp_path, "--json")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.endswith("loaded []\n")
    rows = json.loads(done.stdout.rpartition("loaded []")[0])["series"]
    assert rows[0]["uid"] == SERIES and rows[0]["shape"] == [5, 7, 11] and len(rows[0]["files"]) == 5
    np.testing.assert_allclose(rows[0]["spacing_mm"], (3.0, 0.8, 0.7), atol=1e-6)
    assert "planted" not in (table + done.stdout).lower()


def test_info_of_a_name_that_looks_like_markup(tmp_path: Path, oblique_geometry: VolumeGeometry,
                                               capsys: pytest.CaptureFixture) -> None:  # fmt: skip
    write_series(tmp_path, oblique_geometry, edit=lambda ds, i: setattr(ds, "SeriesDescription", "[b]x[/z]"))
    info.run(tmp_path)
    assert "[b]x[/z]" in capsys.readouterr().out


def test_convert_a_real_ct_equals_simpleitk(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sitk = pytest.importorskip("SimpleITK")
    source = data_dir / "ct_chest_4mm" / "series"
    convert.run([source], tmp_path / "out.nii.gz")
    capsys.readouterr()
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(source)))
    image = reader.Execute()
    made = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(np.asarray(made.dataobj).transpose(2, 1, 0), sitk.GetArrayFromImage(image))
    for index in [(0, 0, 0), (63, 63, 78), (5, 40, 11)]:
        x, y, z = (made.affine @ [*index, 1])[:3]
        np.testing.assert_allclose((-x, -y, z), image.TransformIndexToPhysicalPoint(index), atol=1e-4)


def test_info_of_a_truncated_file_does_not_look_fine(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.random.default_rng(1).integers(0, 999, (11, 7, 5)).astype(np.int16), np.eye(4))
    image.set_qform(np.eye(4), code=1)
    for name in ("a.nii", "a.nii.gz"):
        nib.save(image, tmp_path / name)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[:-40])
        with pytest.raises(InputError, match=rf"{name}: truncated"):
            info.run(tmp_path / name)


def test_info_says_why_a_nifti_has_no_place(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    image = nib.Nifti1Image(np.zeros((11, 7, 5), np.int16), None)
    nib.save(image, tmp_path / "a.nii")
    info.run(tmp_path / "a.nii")
    assert "not usable" in (out := capsys.readouterr().out) and "neither sform nor qform" in out
