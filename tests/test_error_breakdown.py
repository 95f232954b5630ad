"""pipelines/error_breakdown.py: each kind of mistake once, by hand; bright and dark cases; slices of volumes."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from highdicom import VolumeGeometry

from medseg.errors import InputError
from medseg.io import write_instances, write_volume
from medseg.labels import LabelTable
from medseg.values.geometry import make_volume
from medseg.values.instances import InstanceSet
from medseg.values.pairs import PairTable

LABELS = LabelTable.from_names(["nucleus"], kinds={"nucleus": "ids"})


@pytest.fixture(scope="module")
def breakdown() -> ModuleType:
    sys.path.insert(0, str(Path(__file__).parents[1] / "pipelines"))
    return importlib.import_module("error_breakdown")


def strips(geometry: VolumeGeometry, *spans: tuple[int, int], rows: tuple[int, int] = (0, 5)) -> InstanceSet:
    """Objects of one slice that are the columns from..to of some rows."""
    masks = []
    for start, stop in spans:
        mask = np.zeros(geometry.spatial_shape, bool)
        mask[0, rows[0] : rows[1], start:stop] = True
        masks.append((1, mask))
    return InstanceSet.from_masks(masks, geometry, LABELS)


def test_each_mistake_is_named(breakdown: ModuleType, oblique_geometry: VolumeGeometry) -> None:
    geometry = VolumeGeometry(oblique_geometry.affine, (1, 5, 70), "PATIENT")
    reference = strips(geometry, (0, 4), (4, 8), (10, 20), (30, 40), (50, 54), (60, 64))
    # one for two; two halves; an outline of IoU 3/10; nothing there; found, and half of it once more; air
    prediction = strips(geometry, (0, 8), (10, 15), (15, 19), (30, 33), (60, 64), (61, 63), (44, 46))
    missed, wrong = breakdown.explain(PairTable.between(reference, prediction))
    # the larger half (IoU 5/10) matches the object of two, the other is a piece; one of the merged pair matches at 4/8
    assert missed == {"merged": 1, "badly outlined": 1, "not seen": 1}
    assert wrong == {"piece or double": 2, "badly outlined": 1, "invented": 1}
    three = strips(geometry, (0, 4), (4, 8), (8, 12))
    missed, wrong = breakdown.explain(PairTable.between(three, strips(geometry, (0, 12))))
    assert (missed, wrong) == ({"merged": 3}, {"holds several": 1})
    missed, wrong = breakdown.explain(PairTable.between(strips(geometry, (0, 12)), three))
    assert (missed, wrong) == ({"in pieces": 1}, {"piece or double": 3})
    missed, wrong = breakdown.explain(PairTable.between(strips(geometry), strips(geometry)))
    assert (missed, wrong) == ({}, {})


def test_voxels_are_counted_by_slice(breakdown: ModuleType, oblique_geometry: VolumeGeometry) -> None:
    truth, mask = np.zeros((2, 5, 7, 11), bool)
    truth[0:4, 1:5, 1:6] = True  # 20 voxels a slice
    mask[1:5, 1:5, 1:7] = True  # 24 a slice: 4 too many in slices 1 to 3
    reference, prediction = (InstanceSet.from_masks([(1, m)], oblique_geometry, LABELS) for m in (truth, mask))
    found = breakdown.wrong_voxels(reference, prediction, PairTable.between(reference, prediction))
    assert found == {
        "in slices that both have": 12,
        "in slices that only the truth has": 20,
        "in slices that only the prediction has": 24,
    }


def test_a_run_is_counted_by_the_kind_of_its_images(
    breakdown: ModuleType, oblique_geometry: VolumeGeometry, tmp_path: Path
) -> None:
    geometry = VolumeGeometry(oblique_geometry.affine, (1, 5, 30), "PATIENT")
    reference, prediction = strips(geometry, (0, 8), (10, 18)), strips(geometry, (0, 8), (10, 14))
    array = np.zeros((1, 5, 30), np.int16)
    array[..., 0:18] = 100
    for name, image in (("a", array), ("b", 100 - array)):
        write_instances(tmp_path / "validation" / "reference" / f"{name}.seg.nrrd", reference)
        write_instances(tmp_path / "validation" / "predictions" / name / f"{name}.seg.nrrd", prediction)
        write_volume(tmp_path / "images" / f"{name}_0000.nii.gz", make_volume(image, geometry.affine, "test"))
    found = breakdown.breakdown(tmp_path / "validation", tmp_path / "images")
    assert set(found) == {"bright", "dark"}
    for counts in found.values():
        assert counts["cases"] == 1
        assert counts["jaccard_detection 0.5"] == 1.0
        assert counts["jaccard_detection 0.75"] == round(1 / 3, 4)
    assert breakdown.breakdown(tmp_path / "validation", None)["all"]["tp 0.5"] == 4
    with pytest.raises(InputError, match="no image of case a"):
        breakdown.breakdown(tmp_path / "validation", tmp_path)
    with pytest.raises(InputError, match="no reference"):
        breakdown.breakdown(tmp_path, None)
