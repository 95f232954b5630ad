"""`medseg pacs` with a real archive (Orthanc): a study there, its objects back, and what is done once only."""

import json
import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from cli_runs import Run, run_here
from dicom_fixtures import SERIES, write_series
from dicomweb_client.web import DICOMwebClient
from dicomweb_server import MARK, dicomweb_serving, read_series
from highdicom import VolumeGeometry
from network_fixtures import save_run, simple_case, tiny_plan
from orthanc_fixtures import PASSWORD, USER, Orthanc, orthanc  # noqa: F401
from pydicom.dataelem import DataElement
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

import medseg
from medseg.io import read_instances, write_ct_series, write_instances
from medseg.io.dicom_context import read_dicom_context
from medseg.io.series import series_name
from medseg.pacs.connection import Archive, Connection
from medseg.pacs.credentials import Credentials
from medseg.pacs.results import find_result
from medseg.pacs.search import find_one_series
from medseg.values.placement import place

Pacs = Callable[..., Run]
#: StudyDate of each phantom.
DATES = ("20240530", "20240531", "20240601", "20240602")


def write_run(folder: Path, seed: int) -> Path:
    """Write a network that was never trained, and calls a lot of things objects."""
    plan = tiny_plan(
        {
            "input.spacing_mm": [4.0, 4.0],
            "inference.score_threshold": 0.05,
            "inference.detections_per_slice": 5,
            "linking.min_score": 0.0,
            "linking.single_min_score": 0.0,
        }
    )
    return save_run(folder, plan, seed)


def left_in(temporary: Path) -> list[Path]:
    """What a run left in the folder for temporary files; torch makes one for compiled code when it is imported."""
    return [path for path in temporary.iterdir() if not path.name.startswith("torchinductor_")]


def write_study(folder: Path, seed: int) -> list[pydicom.Dataset]:
    """Write a phantom as a CT series of a patient with a name; return its images by InstanceNumber."""
    write_ct_series(folder, simple_case(seed)[0], seed=seed, description="phantom")
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        ds.PatientName, ds.PatientID, ds.StudyDate = f"{MARK}^Name", f"{MARK}-ID", DATES[seed]
        ds.save_as(path)
    return read_series(folder)


@pytest.fixture
def archive(orthanc: Orthanc) -> Iterator[Orthanc]:  # noqa: F811
    """Orthanc with nothing in it."""
    orthanc.empty()
    yield orthanc


@pytest.fixture
def client(archive: Orthanc) -> DICOMwebClient:
    """Asks the archive without medseg."""
    client = DICOMwebClient(archive.url)
    client._session.auth = (USER.encode(), PASSWORD.encode())
    return client


@pytest.fixture
def pacs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, archive: Orthanc) -> Iterator[Pacs]:
    """Runs a verb with the URL and password of the archive; nothing printed may tell it, or name the patient."""
    monkeypatch.setenv("MEDSEG_PACS_USER", USER)
    monkeypatch.setenv("MEDSEG_PACS_PASSWORD", PASSWORD)
    runs = []

    def run(verb: str, *arguments: object) -> Run:
        runs.append(run_here(monkeypatch, capsys, "pacs", verb, "--url", archive.url, *arguments))
        return runs[-1]

    yield run
    for each in runs:
        assert not re.search(f"{MARK}|{PASSWORD}|{USER}", each.out + each.err, re.IGNORECASE), each


def series_of(client: DICOMwebClient, modality: str) -> list[pydicom.Dataset]:
    """Return the objects of a modality, as the archive has them."""
    rows = client.search_for_series(search_filters={"Modality": modality})
    uids = [(row["0020000D"]["Value"][0], row["0020000E"]["Value"][0]) for row in rows]
    return [ds for study, series in uids for ds in client.retrieve_series(study, series)]


def test_there_and_back(pacs: Pacs, client: DICOMwebClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    images = write_study(tmp_path / "images", 1)
    study, series = images[0].StudyInstanceUID, images[0].SeriesInstanceUID
    sent = pacs("send", tmp_path / "images")
    assert sent.code == 0 and "14 of 14 objects stored and found again" in sent.out

    (found,) = json.loads(pacs("query", "--json", "--since", "2024-05-31", "--modality", "ct").out)["studies"]
    assert found["uid"] == study and found["date"] == "2024-05-31" and found["modalities"] == ["CT"]
    (row,) = found["series"]
    assert row == {"uid": series, "modality": "CT", "number": 1, "description": "phantom", "n_instances": 14}
    assert f"1. --study {study} --series {series}" in pacs("query").out
    assert json.loads(pacs("query", "--json", "--since", "2024-06-01").out) == {"studies": []}

    fetched = pacs("fetch", "--series", series, "-o", tmp_path / "fetched")
    assert fetched.code == 0 and read_series(tmp_path / "fetched") == images

    run = write_run(tmp_path / "run", 0)
    out = tmp_path / "results"
    predicted = pacs("predict", "--series", series, "-m", run, "-o", out, "--sr", "--threads", 1, "--no-report")
    assert predicted.code == 0 and "2 objects stored and found again" in predicted.err, predicted
    assert not left_in(tmp_path / "temporary")
    (case,) = out.iterdir()
    kept = read_instances(case / f"{case.name}.seg.nrrd")
    assert len(kept) >= 2

    # As others see it: highdicom's masks, in the order of the images that were sent.
    (dataset,) = series_of(client, "SEG")
    seg = hd.seg.Segmentation.from_dataset(dataset)
    assert seg.StudyInstanceUID == study and seg.PatientName == f"{MARK}^Name" and seg.PatientID == f"{MARK}-ID"
    (reference,) = seg.ReferencedSeriesSequence
    uids = [ds.SOPInstanceUID for ds in images]
    assert reference.SeriesInstanceUID == series
    assert {item.ReferencedSOPInstanceUID for item in reference.ReferencedInstanceSequence} == set(uids)
    masks = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    placed = place(kept, read_dicom_context(tmp_path / "images").geometry, "the objects")
    context_order = [ref.sop_instance_uid for ref in read_dicom_context(tmp_path / "images").images if ref]
    for position, instance in enumerate(placed):
        mask = placed.full_mask(instance.id)
        assert mask.any()
        np.testing.assert_array_equal(masks[[uids.index(uid) for uid in context_order], ..., position], mask)
    (report,) = series_of(client, "SR")
    assert report.StudyInstanceUID == study
    assert seg.SOPInstanceUID in report.to_json() and MARK in str(report.PatientName)
    for path in case.iterdir():
        assert path.suffix == ".dcm" or MARK.encode() not in path.read_bytes()


def test_watching(pacs: Pacs, client: DICOMwebClient, archive: Orthanc, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"run{seed}", seed) for seed in range(2)]
    out = tmp_path / "results"
    images = {seed: write_study(tmp_path / f"study{seed}", seed) for seed in range(3)}
    (tmp_path / "study2" / "0004.dcm").unlink()
    assert pacs("send", *(tmp_path / f"study{seed}" for seed in range(3))).code == 0
    watch = ["watch", "--once", "-m", runs[0], "-o", out, "--threads", 1, "--no-report", "--retries", 0]
    dry = pacs(*watch, "--dry-run", "--until", "2024-05-31")
    assert dry.code == 0 and dry.out.count("would predict series") == 2 and not series_of(client, "SEG")
    first = pacs(*watch)
    missing = images[2][0].SeriesInstanceUID
    assert first.code == 1 and f"failed: series {missing} (13 instances fetched, none kept): " in first.err
    assert "2 series predicted, 0 skipped" in first.err and "1 of 3 series failed" in first.err
    assert len(list(out.iterdir())) == 2
    refers = {seg.ReferencedSeriesSequence[0].SeriesInstanceUID for seg in series_of(client, "SEG")}
    assert refers == {images[seed][0].SeriesInstanceUID for seed in range(2)}
    again = pacs(*watch, "--until", "2024-05-31")
    assert again.code == 0 and "0 series predicted, 2 skipped" in again.err and len(series_of(client, "SEG")) == 2
    # Another model: its result is not there yet.
    series = ["--series", images[0][0].SeriesInstanceUID, "--series", missing]
    name = series_name(images[0][0].SeriesInstanceUID)
    report = out / name / f"{name}_sr.dcm"  # of the first one's objects
    report.write_bytes(b"")
    two = pacs("predict", *series, "-m", runs[1], "-o", out, "--threads", 1, "--no-report")
    assert two.code == 1 and "1 of 2 series failed" in two.err and len(series_of(client, "SEG")) == 3
    assert not report.exists() and (out / name / f"{name}_seg.dcm").exists()
    watch[3] = runs[1]
    other = pacs(*watch, "--until", "2024-05-30")
    assert other.code == 0 and "0 series predicted, 1 skipped" in other.err and len(series_of(client, "SEG")) == 3

    connection = Connection(url=archive.url, credentials=Credentials(user=USER, password=PASSWORD))
    entry = find_one_series(Archive(connection), images[0][0].SeriesInstanceUID)
    versions = {s.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion
                for s in series_of(client, "SEG")}  # fmt: skip
    assert len(versions) == 2
    for version in versions:
        assert re.fullmatch(rf"{medseg.__version__} model [0-9a-f]{{12}}", version)
        assert find_result(Archive(connection), entry, version) is not None
    assert find_result(Archive(connection), entry, medseg.__version__) is None


def test_a_label_map_goes_by_stow(pacs: Pacs, client: DICOMwebClient, tmp_path: Path) -> None:
    write_study(tmp_path / "images", 3)
    _, truth = simple_case(3)
    context = read_dicom_context(tmp_path / "images")
    write_instances(tmp_path / "map.dcm", truth, format="seg-labelmap", context=context)
    sent = pacs("send", tmp_path / "map.dcm")
    assert sent.code == 0 and "1 of 1 object stored" in sent.out
    (dataset,) = series_of(client, "SEG")
    assert dataset.SegmentationType == "LABELMAP" and dataset == pydicom.dcmread(tmp_path / "map.dcm")


def test_images_come_as_they_are_stored(pacs: Pacs, oblique_geometry: VolumeGeometry, tmp_path: Path) -> None:
    """Compressed, in their character set, with values that no standard allows."""

    def edit(ds: pydicom.Dataset, index: int) -> None:
        ds.SpecificCharacterSet, ds.PatientName = "ISO_IR 100", f"{MARK}^Jürgen"
        ds.add(DataElement(0x00100030, "DA", "in May", already_converted=True))
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.compress(RLELossless)

    write_series(tmp_path / "images", oblique_geometry, edit=edit, syntax=RLELossless)
    assert pacs("send", tmp_path / "images").code == 0
    assert pacs("fetch", "--series", SERIES, "-o", tmp_path / "out").code == 0
    sent, got = read_series(tmp_path / "images"), read_series(tmp_path / "out")
    assert [ds.PixelData for ds in got] == [ds.PixelData for ds in sent]
    for ds in got:
        assert ds.file_meta.TransferSyntaxUID == RLELossless
        assert ds.PatientBirthDate == "in May" and str(ds.PatientName) == f"{MARK}^Jürgen"


def test_who_is_refused(pacs: Pacs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSEG_PACS_PASSWORD", "wrong")
    assert "401 Unauthorized: not logged in, or a wrong user" in pacs("query").refusal()
    write_study(tmp_path / "images", 0)
    assert "401 Unauthorized" in pacs("send", tmp_path / "images").refusal()
    monkeypatch.delenv("MEDSEG_PACS_PASSWORD")
    assert "expected user and password, or a token alone" in pacs("query").refusal()
    monkeypatch.delenv("MEDSEG_PACS_USER")
    assert "401 Unauthorized" in pacs("query").refusal()


def test_ctrl_c_while_a_series_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    images = write_study(tmp_path / "images", 0)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with dicomweb_serving(images) as server:

        def press(method: str, path: str, before: int) -> None:
            if path.endswith(images[8].SOPInstanceUID):
                assert len(list((tmp_path / "temporary").rglob("*.dcm"))) == 8
                os.kill(os.getpid(), signal.SIGINT)

        server.fault = press
        watch = ["watch", "--interval", "0.05", "-m", write_run(tmp_path / "run", 0), "-o", tmp_path / "out"]
        run = run_here(monkeypatch, capsys, "pacs", *watch, "--url", server.url, "--threads", 1)
    assert run.code == 130 and run.err.endswith("interrupted\n")
    assert not left_in(tmp_path / "temporary") and not (tmp_path / "out").exists()
