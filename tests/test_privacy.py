"""Nobody is named: a marker in every text of the DICOM headers, in folder names and in NIfTI and NRRD headers, and a
search for it in all that the verbs write and print."""

import base64
import gzip
import json
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from cli_runs import Run, run_all
from network_fixtures import simple_case, tiny_plan
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset

from medseg.errors import InputError
from medseg.io import read_instances, write_ct_series, write_instances
from medseg.io.identity import read_patient_id

MARK = "Zqxw"
TEXT = {"PN", "LO", "SH", "LT", "ST", "UC", "UT"}
BIRTH = "19370518"
#: Pictures, images and scripts in a page.
EMBEDDED = re.compile(rb"[A-Za-z0-9+/]{200,}=*")


def plant(folder: Path) -> None:
    """Put the marker into every text element up to the image module, into dates of the patient, and privately."""
    # Text elements of one value each; group 2 is the file's own, ranges like 60xx are no elements by themselves.
    planted = {tag: MARK + f"^{tag:08x}"[-10:] for tag, (vr, *_) in DicomDictionary.items()
               if vr in TEXT and 0x0008 <= tag >> 16 < 0x0060}  # fmt: skip
    assert len(planted) > 300
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        for tag, value in planted.items():
            ds.add_new(tag, DicomDictionary[tag][0], value)
        ds.PatientID = f"../../{MARK}"
        ds.SeriesDescription = f"/tmp/{MARK}/../x"
        ds.StudyID = ds.AccessionNumber = "../" + MARK
        ds.PatientBirthDate = BIRTH
        private = ds.private_block(0x0011, "Plants", create=True)
        private.add_new(1, "LO", MARK)
        item = Dataset()
        item.PatientID = item.PatientName = MARK
        ds.OtherPatientIDsSequence = [item]
        ds.save_as(path)


def texts(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every file, unpacked where it is packed."""
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        data = path.read_bytes() if path.is_file() else b""
        if name.endswith(".html"):  # base64 spells any four letters by chance: look at what it stands for
            for text in EMBEDDED.findall(data):
                held = base64.b64decode(text)
                yield name, gzip.decompress(held) if held.startswith(b"\x1f\x8b") else held
            data = EMBEDDED.sub(b"", data)
        yield name, name.encode() + data
        if name.endswith(".gz"):
            yield name, gzip.decompress(data)
        if name.endswith((".nrrd", ".mha")):
            head, _, packed = data.partition(b"\n\n" if name.endswith("nrrd") else b"LOCAL\n")
            yield name, head + zlib.decompress(packed, zlib.MAX_WBITS | 32)


def assert_nobody_is_named(folder: Path, runs: list[Run]) -> None:
    for run in runs:
        assert run.code == 0, run
        assert MARK.lower() not in (run.out + run.err).lower()
    found = 0
    for name, content in texts(folder):
        if not name.endswith(".dcm"):  # those belong to the patient's study and have to say so
            for text in (MARK, BIRTH, f"{BIRTH[:4]}-{BIRTH[4:6]}-{BIRTH[6:]}"):
                for encoding in ("utf-8", "utf-16-le"):
                    assert text.lower().encode(encoding) not in content.lower(), f"{text} in {name}"
            found += 1
    assert found


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DICOM series with the marker all over it, in folders named after the patient; ``in`` is its topmost folder."""
    folder = tmp_path_factory.mktemp("in") / f"{MARK}^Anna" / f"CT {MARK} 1937"
    write_ct_series(folder, simple_case(0)[0], seed=0, description="case")
    plant(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of random weights; what it finds does not matter here."""
    import torch

    from medseg.models.mask_rcnn import build_mask_rcnn
    from medseg.training.checkpoint import save_plan, save_weights

    torch.manual_seed(0)
    run = tmp_path_factory.mktemp("model")
    plan = tiny_plan({"model.fpn_channels": 16, "inference.score_threshold": 0.01, "inference.detections_per_slice": 3})
    save_plan(run, plan)
    save_weights(run, build_mask_rcnn(plan).state_dict())
    return run


def test_no_verb_names_the_patient(study: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    truth = out / "truth.seg.nrrd"
    write_instances(truth, simple_case(0)[1])
    shutil.make_archive(str(study), "zip", study)
    runs = run_all(
        [
            ("convert", study, out / "a.nii.gz"),
            ("convert", f"{study}.zip", out / "b.nrrd"),
            ("convert", study, out / "c.mha"),
            ("predict", "-i", study, "-m", model, "-o", out / "predicted", "--device", "cpu", "--threads", 1),
            *(("export", truth, out / name, "--image", study) for name in ("d.nii.gz", "e.seg.nrrd", "f.dcm")),
            ("export", truth, out / "g.nii.gz", "--format", "nifti4d", "--image", study),
            ("export", truth, out / "h.nii", "--format", "semantic", "--tables"),
            ("export", truth, out / "i.dcm", "--format", "rtstruct", "--image", study),
            ("evaluate", "-r", truth, "-p", truth, "-o", out / "scores"),
            ("measure", truth, "--image", study, "-o", out / "measured"),
        ]
    )
    assert_nobody_is_named(out, runs)
    (predicted,) = (out / "predicted").iterdir()
    record = json.loads((predicted / "run.json").read_text())
    assert "patient_id" not in record and len(predicted.name) == 10
    # Objects made from a DICOM SEG of the patient name nobody either; DICOM objects keep their patient.
    assert pydicom.dcmread(out / "f.dcm").PatientID == pydicom.dcmread(out / "i.dcm").PatientID == f"../../{MARK}"
    again = run_all([("export", out / "f.dcm", out / name) for name in ("j.seg.nrrd", "k.nii.gz")])
    assert_nobody_is_named(out, again)
    assert len(read_instances(out / "j.seg.nrrd")) == 3
    # Nothing was written elsewhere: neither beside the study nor where its ids point to.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert sorted(p.name for p in study.parent.iterdir()) == [study.name, f"{study.name}.zip"]
    assert not Path(f"/tmp/{MARK}").exists()


def test_headers_of_other_files_name_nobody_either(tmp_path: Path) -> None:
    volume = simple_case(0)[0]
    image = nib.Nifti1Image(volume.array.transpose(2, 1, 0), np.diag([-2.0, -2.0, 5.0, 1.0]))
    for field in ("descrip", "db_name", "aux_file", "intent_name"):
        image.header[field] = MARK.encode()
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", MARK.encode()))
    nib.save(image, tmp_path / "in.nii")
    nrrd = sitk.GetImageFromArray(volume.array)
    nrrd.SetMetaData("PatientName", MARK)
    sitk.WriteImage(nrrd, str(tmp_path / "in.nrrd"))
    assert MARK in (tmp_path / "in.nrrd").read_bytes()[:600].decode("latin-1")
    out = tmp_path / "out"
    runs = run_all(
        ("convert", tmp_path / f"in.{i}", out / f"{i}.{o}") for i in ("nii", "nrrd") for o in ("nii", "nrrd")
    )
    assert_nobody_is_named(out, runs)
    header = nib.load(out / "nii.nii").header
    assert [bytes(header[f]).strip(b"\0") for f in ("descrip", "db_name", "aux_file", "intent_name")] == [b""] * 4


def test_keep_identity_keeps_it(study: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    runs = run_all(
        [
            ("convert", "--keep-identity", study, out / "a.nii.gz"),
            ("convert", "--keep-identity", study, out / "b.nrrd"),
            ("convert", "--keep-identity", study, out / "c.mha"),
            ("predict", "--keep-identity", "-i", study, "-m", model, "-o", out / "p", "--device", "cpu"),
            ("convert", "--keep-identity", out / "a.nii.gz", out / "d.nii.gz"),
        ]
    )
    assert [run.code for run in runs] == [0, 0, 0, 0, 2]
    assert "only DICOM has a PatientID to keep" in runs[-1].refusal()
    kept = f"PatientID ../../{MARK}"
    assert bytes(nib.load(out / "a.nii.gz").header["descrip"]).strip(b"\0").decode() == kept
    assert f"content: {kept}\n".encode() in (out / "b.nrrd").read_bytes()
    assert f"Comment = {kept}\n".encode() in (out / "c.mha").read_bytes()
    arrays = [sitk.GetArrayFromImage(sitk.ReadImage(str(out / name))) for name in ("a.nii.gz", "b.nrrd", "c.mha")]
    assert all(np.array_equal(array, arrays[0]) for array in arrays)
    (case,) = (out / "p").iterdir()
    assert json.loads((case / "run.json").read_text())["patient_id"] == f"../../{MARK}"
    assert MARK not in case.name  # no path is built from a header, not even then


def test_an_id_that_is_not_there_or_too_long(tmp_path: Path) -> None:
    write_ct_series(tmp_path / "series", simple_case(0)[0], seed=0, description="case")
    assert read_patient_id(tmp_path / "series") == read_patient_id([*(tmp_path / "series").iterdir()]) == "PHANTOM"
    for path in (tmp_path / "series").iterdir():
        ds = pydicom.dcmread(path)
        ds.PatientID = ""
        ds.save_as(path)
    with pytest.raises(InputError, match="series has no PatientID to keep"):
        read_patient_id(tmp_path / "series")
    for path in (tmp_path / "series").iterdir():
        ds = pydicom.dcmread(path)
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.PatientID = "ü" * 60
        ds.save_as(path)
    (run,) = run_all([("convert", "--keep-identity", tmp_path / "series", tmp_path / "a.nii")])
    assert "a description of 130 bytes, at most 80 fit a NIfTI header" in run.refusal()
    assert not (tmp_path / "a.nii").exists()
