"""Measurement reports: the numbers of measure, on the segments they were measured in, as highdicom reads them."""

import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_fixtures import SERIES, write_series
from highdicom.sr import srread
from pydicom.sr.codedict import codes

from medseg.errors import InputError
from medseg.io import read_instances, read_volume
from medseg.io.dicom_context import read_dicom_context
from medseg.io.dicom_seg_writer import write_dicom_seg
from medseg.io.rtstruct_writer import write_rtstruct
from medseg.labels import Code, Label, LabelTable
from medseg.metrics.measurement import measure
from medseg.reporting.structured_report import write_measurements_sr
from medseg.values.instances import InstanceSet

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def case(tmp_path_factory, oblique_geometry):
    """A folder with an oblique CT, its DICOM SEG of three objects, and their measurements."""
    folder = tmp_path_factory.mktemp("case")
    write_series(folder / "ct", oblique_geometry)
    context = read_dicom_context(folder / "ct")
    lesion = Code(value="52988006", scheme="SCT", meaning="Lesion")
    liver = Code(value="10200004", scheme="SCT", meaning="Liver")
    labels = LabelTable(
        [
            Label(id=3, name="liver", colour=(1, 2, 3), type=liver),
            Label(id=4, name="lesion", colour=(3, 2, 1), kind="ids", type=lesion, region=liver),
        ]
    )
    masks = np.zeros((3, 5, 7, 11), bool)
    masks[0, 1:4, 1:6, 2:9] = masks[1, 2, 3, 4] = masks[2, 2:4, 4:6, 5:8] = True
    objects = InstanceSet.from_masks(zip((3, 4, 4), masks, strict=True), oblique_geometry, labels)
    write_dicom_seg(folder / "seg.dcm", objects, context)
    write_rtstruct(folder / "rt.dcm", objects, context)
    write_dicom_seg(folder / "none.dcm", InstanceSet.build([], oblique_geometry, labels), context)
    measurements = measure(read_instances(folder / "seg.dcm", image=context), read_volume(folder / "ct"))
    write_measurements_sr(measurements, folder / "seg.dcm", folder / "sr.dcm")
    return folder, measurements


def test_numbers_and_segments_as_highdicom_reads_them(case):
    folder, measurements = case
    groups = srread(folder / "sr.dcm").content.get_volumetric_roi_measurement_groups()
    segments = pydicom.dcmread(folder / "seg.dcm").SegmentSequence
    uid = pydicom.dcmread(folder / "seg.dcm").SOPInstanceUID
    assert len(groups) == len(measurements) == 3
    for group, expected, segment in zip(groups, measurements, segments, strict=True):
        assert group.tracking_uid == segment.TrackingUID
        assert group.referenced_segment.referenced_sop_instance_uid == uid
        assert group.referenced_segment.referenced_segment_numbers == [segment.SegmentNumber]
        assert group.finding_type.value == segment.SegmentedPropertyTypeCodeSequence[0].CodeValue
        (volume,) = group.get_measurements(name=codes.SCT.Volume)
        assert volume.value == pytest.approx(expected.volume_ml, rel=1e-5)
        assert volume.unit.value == "ml"
        means = [m for m in group.get_measurements() if m.derivation is not None and m.derivation.meaning == "Mean"]
        assert means[0].value == pytest.approx(expected.mean, rel=1e-5)
        assert means[0].unit.value == "[hnsf'U]"
    assert [g.finding_sites[0].value.meaning for g in groups[1:]] == ["Liver", "Liver"]


def test_what_is_undefined_is_left_out(case, tmp_path):
    folder, measurements = case
    tilted = [replace(m, long_axis_mm=math.nan, short_axis_mm=math.nan) for m in measurements]
    write_measurements_sr(tilted, folder / "seg.dcm", tmp_path / "sr.dcm")
    for path, count in ((folder / "sr.dcm", 10), (tmp_path / "sr.dcm", 8)):
        for group in srread(path).content.get_volumetric_roi_measurement_groups():
            assert len(group.get_measurements()) == count


def test_patient_and_study_are_the_sources_and_bytes_the_same(case, tmp_path):
    folder, measurements = case
    report = pydicom.dcmread(folder / "sr.dcm")
    assert (report.PatientID, report.StudyInstanceUID) == ("PLANTED-ID", SERIES + ".9")
    assert "FrameOfReferenceUID" not in report
    write_measurements_sr(measurements, folder / "seg.dcm", tmp_path / "again.dcm")
    assert (tmp_path / "again.dcm").read_bytes() == (folder / "sr.dcm").read_bytes()


def test_a_report_needs_segments(case, tmp_path):
    folder, measurements = case
    with pytest.raises(InputError, match="expected a segmentation"):
        write_measurements_sr(measurements, folder / "rt.dcm", tmp_path / "sr.dcm")
    with pytest.raises(InputError, match="no objects"):
        write_measurements_sr([], folder / "none.dcm", tmp_path / "sr.dcm")
    with pytest.raises(InputError, match="3 objects, measurements of 1"):
        write_measurements_sr(measurements[:1], folder / "seg.dcm", tmp_path / "sr.dcm")
    assert not list(tmp_path.iterdir())


def test_measure_writes_it_on_request(case, tmp_path):
    """The command line: the SEG, which lacks slices without objects, is put onto the image's grid."""
    folder, _ = case
    command = [sys.executable, "-m", "medseg", "measure", folder / "seg.dcm", "--image", folder / "ct", "-o", tmp_path]
    done = subprocess.run([*map(str, command), "--sr"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "measurements.dcm").read_bytes() == (folder / "sr.dcm").read_bytes()
    assert (tmp_path / "measurements.csv").exists()
    command[4] = folder / "rt.dcm"
    done = subprocess.run(
        [*map(str, command[:-1]), str(tmp_path / "x"), "--sr"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert "expected a segmentation (SEG)" in done.stderr
    assert not list((tmp_path / "x").glob("*"))


def test_dciodvfy_finds_no_error(case):
    path = shutil.which("dciodvfy")
    if path is None:
        pytest.skip("dciodvfy is not installed (Debian package dicom3tools)")
    done = subprocess.run([path, str(case[0] / "sr.dcm")], capture_output=True, text=True)
    text = done.stderr + done.stdout
    assert "ComprehensiveSR" in text
    assert not [line for line in text.splitlines() if line.startswith("Error")]
