"""Tilted and uneven slices, straightened: objects come back where they are in the patient."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from corpus.dicom_values import BALLS, tilted_scan
from scipy import ndimage

from medseg.errors import GeometryError
from medseg.io import read_volume
from medseg.io.dicom_resampling import plan_resampling, resample_planes


def centroids(volume) -> list[np.ndarray]:
    """Return the centres of the bright objects in LPS mm, weighted by brightness."""
    weights = np.clip(volume.array.astype(float) + 1000, 0, 1100)
    labels, n = ndimage.label(weights > 550)
    assert n == len(BALLS)
    grown = ndimage.grey_dilation(labels, 5)
    found = [np.array(ndimage.center_of_mass(weights, grown, i)) for i in range(1, n + 1)]
    return sorted(((volume.affine @ [*c, 1])[:3] for c in found), key=lambda point: point[2])


@pytest.mark.parametrize("degrees", [14.0, -22.0, 1.0])
def test_balls_in_a_tilted_scan_come_back_within_a_fifth_of_a_mm(tmp_path: Path, degrees: float) -> None:
    tilted_scan(tmp_path, degrees)
    with pytest.raises(GeometryError, match=rf"tilted by {abs(degrees):.1f} degrees"):
        read_volume(tmp_path)
    volume = read_volume(tmp_path, resample_tilt=True)
    assert volume.array.dtype == np.int16 and volume.array.min() == -1000
    np.testing.assert_allclose(volume.spacing, (4.0 * np.cos(np.deg2rad(degrees)), 0.8, 0.8), atol=1e-6)
    for found, (true, _) in zip(centroids(volume), BALLS, strict=True):
        assert np.linalg.norm(found - true) < 0.2


def test_balls_in_a_tilted_and_uneven_scan(tmp_path: Path) -> None:
    steps = np.where(np.arange(40) % 5 == 0, 1.0, 3.0)
    tilted_scan(tmp_path, places_mm=np.concatenate([[0], np.cumsum(steps)]))
    volume = read_volume(tmp_path, resample_tilt=True, resample_uneven=True)
    for found, (true, _) in zip(centroids(volume), BALLS, strict=True):
        assert np.linalg.norm(found - true) < 0.2


def test_a_linear_field_stays_linear() -> None:
    along = np.array([0.0, 2.0, 5.0, 6.0])
    aside = np.array([[0, 0], [0.25, -0.5], [-1.5, 0.125], [3.0, 1.0]])
    rows, columns = np.mgrid[0:8.0, 0:9.0]
    planes = np.stack([10 * z + 3 * (rows + r) - 2 * (columns + c) for z, (r, c) in zip(along, aside, strict=True)])
    plan = plan_resampling(along, aside, (8, 9), even=False)
    assert plan.shape == (7, 8 + 5, 9 + 2) and plan.corner == (-2, -1) and plan.step_mm == 1.0
    result = resample_planes(planes.astype(np.float32), plan)
    z, r, c = np.meshgrid(np.arange(7.0), np.arange(13) - 2.0, np.arange(11) - 1.0, indexing="ij")
    inside = (slice(None), slice(5, 8), slice(2, 8))  # where every slice has pixels on both sides
    np.testing.assert_allclose(result[inside], (10 * z + 3 * r - 2 * c)[inside], atol=1e-4)


def test_distances_of_the_new_slices() -> None:
    def levels(*gaps: float) -> list[float]:
        along = np.concatenate([[0.0], np.cumsum(gaps)])
        return plan_resampling(along, np.zeros((len(along), 2)), (2, 3), even=False).levels_mm.tolist()

    assert levels(3, 3, 6, 3) == [0, 3, 6, 9, 12, 15]  # one is missing
    assert levels(2.9, 3.1, 3.0) == [0, 3, 6, 9]  # nearly even: as many as there are
    assert levels(1, 1, 4, 4, 4) == np.linspace(0, 14, 15).tolist()  # the smallest distance loses nothing ...
    assert levels(0.1, 4, 4, 3.9) == np.linspace(0, 12, 13).tolist()  # ... but has an end


def test_real_tilted_gantry(data_dir: Path) -> None:
    folder = data_dir / "ct_tilted_gantry"
    with pytest.raises(GeometryError, match=r"tilted by 18\.5 degrees.*1\.08 to 7\.00 mm.*--resample-tilt.*uneven"):
        read_volume(folder)
    volume = read_volume(folder, resample_tilt=True, resample_uneven=True)
    assert volume.array.dtype == np.int16
    np.testing.assert_allclose(volume.spacing[1:], (0.4882812, 0.4882812), atol=1e-5)
    assert 1.08 < volume.spacing[0] < 1.09  # the smallest distance, over the whole extent
    headers = [pydicom.dcmread(path) for path in folder.iterdir()]
    for number in (0, -1):  # whole slices of the new grid are whole slices of the scan
        ds = sorted(headers, key=lambda ds: float(ds.ImagePositionPatient[2]))[number]
        row, column = np.reshape(np.array(ds.ImageOrientationPatient, float), (2, 3))
        start = np.array(ds.ImagePositionPatient, float) + 200 * 0.4882812 * (row + column)
        z, y, x = (np.linalg.inv(volume.affine) @ [*start, 1])[:3]
        assert abs(z - [0, len(volume.array) - 1][number]) < 1e-3
        plane = volume.array[number].astype(float)
        got = ndimage.map_coordinates(plane, np.mgrid[0:100, 0:100] + np.array([y, x])[:, None, None], order=1)
        stored = ds.pixel_array[200:300, 200:300] * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        # Interpolated twice by parts of a pixel; a whole pixel off would correlate far less.
        assert np.corrcoef(got.ravel(), stored.ravel())[0, 1] > 0.98
