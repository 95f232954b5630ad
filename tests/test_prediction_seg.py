"""The DICOM SEG beside a prediction: written where the study is a complete DICOM series, else told why not."""

import json
from pathlib import Path

import numpy as np
import pytest
from dicom_fixtures import write_series
from highdicom import VolumeGeometry
from network_fixtures import LABELS, tiny_plan

import medseg
from medseg.inference.predictor import Prediction
from medseg.inference.result import save_prediction
from medseg.inference.study import series_context
from medseg.io import read_instances, read_volume, write_volume
from medseg.io.dicom_context import read_dicom_context
from medseg.io.dicom_seg import read_dicom_seg
from medseg.values.instances import InstanceSet


@pytest.mark.parametrize("parts", [2, 0])
def test_a_prediction_on_dicom_has_a_seg(tmp_path: Path, oblique_geometry: VolumeGeometry, parts: int) -> None:
    write_series(tmp_path / "series", oblique_geometry)
    volume = read_volume(tmp_path / "series")
    context, problem = series_context(tmp_path / "series", None, volume.get_geometry())
    assert context is not None and problem == ""
    masks = np.zeros((2, 5, 7, 11), bool)
    masks[0, 1:4, 1:6, 2:9] = masks[1, 2:5, 3:7, 5:11] = True
    found = InstanceSet.from_masks([(1, masks[0]), (2, masks[1])][:parts], volume, LABELS)
    prediction = Prediction(instances=found, warnings=(), seconds={})
    saved = save_prediction(tmp_path / "out", "x", volume, prediction, tiny_plan(), {}, context)
    assert tmp_path / "out" / "x_seg.dcm" in saved.files and all(file.is_file() for file in saved.files)
    seg = read_dicom_seg(tmp_path / "out" / "x_seg.dcm", read_dicom_context(tmp_path / "series"))
    assert seg.instances.labels == LABELS and len(seg.instances) == parts
    for instance in found:
        np.testing.assert_array_equal(seg.instances.full_mask(instance.id), found.full_mask(instance.id))
    assert {(a.type, a.name, a.version) for a in seg.algorithms} <= {("AUTOMATIC", "medseg", medseg.__version__)}
    for file in saved.files:
        assert file.name == "x_seg.dcm" or b"PLANTED" not in file.read_bytes()
    assert "warnings" in json.loads((tmp_path / "out" / "run.json").read_text())
    assert len(read_instances(tmp_path / "out" / "x_seg.dcm")) == parts


def test_why_there_is_none(tmp_path: Path, oblique_geometry: VolumeGeometry) -> None:
    write_series(tmp_path / "series", oblique_geometry, edit=lambda ds, index: setattr(ds, "StudyInstanceUID", ""))
    volume = read_volume(tmp_path / "series")
    context, problem = series_context(tmp_path / "series", None, volume.get_geometry())
    assert context is None and problem == "no DICOM SEG was written: the series has no StudyInstanceUID"
    write_volume(tmp_path / "a.nii.gz", volume)
    assert series_context(tmp_path / "a.nii.gz", None, volume.get_geometry()) == (None, "")
    affine = oblique_geometry.affine.copy()
    affine[:3, 0] *= 1.3
    other = VolumeGeometry(affine, (5, 7, 11), "PATIENT")
    write_series(tmp_path / "whole", oblique_geometry)
    context, problem = series_context(tmp_path / "whole", None, other)
    assert context is None and "the volume was resampled" in problem
    slices = sorted((tmp_path / "whole").iterdir())
    read = {file: read_dicom_context(file).geometry.affine[:3, 3] for file in slices}
    order = sorted(read, key=lambda file: float(read[file] @ oblique_geometry.affine[:3, 0]))
    order[2].unlink()
    context, problem = series_context(tmp_path / "whole", None, other)
    assert context is None and "the volume was resampled" in problem
