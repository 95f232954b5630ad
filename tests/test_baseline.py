"""The threshold baseline: it finds what a threshold can find, and stays poor on the phantom."""

import numpy as np
import pytest
from highdicom import Volume

from medseg.baseline import ThresholdBaseline, tune_baseline
from medseg.errors import ConfigError, InputError
from medseg.labels import LabelTable
from medseg.phantom import make_phantom
from medseg.values.geometry import AxisMap, make_volume
from medseg.values.instances import InstanceSet
from medseg.values.pairs import PairTable

LABELS = LabelTable.from_names(["lesion", "organ"], kinds={"lesion": "ids"})
AFFINE = np.array([[0, 0, 2.0, -31], [0, 2.2, 0, -47], [3.0, 0, 0, 211], [0, 0, 0, 1]])


def balls(seed: int) -> tuple[Volume, InstanceSet]:
    """Dark balls in a bright organ, and dark bars that are far too large."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices((23, 41, 47))
    hu = np.full(z.shape, 100.0)
    hu[:, :6] = 30
    masks = []
    for centre in ((6, 16, 12), (15, 30, 34), (16, 16, 30)):
        offset = rng.integers(-1, 2, 3)
        a, b, c = np.add(centre, offset)
        mask = ((z - a) * 3.0) ** 2 + ((y - b) * 2.2) ** 2 + ((x - c) * 2.0) ** 2 < 9.0**2
        hu[mask] = 30
        masks.append((1, mask))
    hu += rng.normal(0, 5, hu.shape)
    volume = make_volume(hu.round().astype(np.int16), AFFINE, "balls")
    return volume, InstanceSet.from_masks([*masks, (2, hu > 60)], volume, LABELS)


def lesion_f1(detector: ThresholdBaseline, cases: list[tuple[Volume, InstanceSet]]) -> float:
    matched = found = there = 0
    for volume, truth in cases:
        prediction = detector.predict(volume)
        matched += len(PairTable.between(truth, prediction).matching(0.3))
        found += len(prediction)
        there += sum(i.label == detector.label for i in truth)
    return 2 * matched / (found + there)


def test_it_finds_separate_blobs_of_one_density_on_new_cases() -> None:
    train = [balls(seed) for seed in (1, 2)]
    detector = tune_baseline(train, 1)
    assert detector.training_f1 == 1.0
    assert lesion_f1(detector, train) == detector.training_f1
    assert lesion_f1(detector, [balls(3)]) == 1.0
    prediction = detector.predict(balls(3)[0])
    assert {i.label for i in prediction} == {1} and len(prediction) == 3


def test_the_range_of_volumes_is_kept() -> None:
    detector = tune_baseline([balls(1)], 1)
    sizes = [i.voxels * 3.0 * 2.2 * 2.0 / 1000 for i in detector.predict(balls(1)[0])]
    assert all(detector.min_ml <= size <= detector.max_ml for size in sizes)


def test_nothing_in_the_band_is_no_objects() -> None:
    detector = tune_baseline([balls(1)], 1)
    empty = detector.predict(make_volume(np.full((5, 7, 11), -1000, np.int16), AFFINE, "air"))
    assert len(empty) == 0 and empty.geometry.spatial_shape == (5, 7, 11)


def test_bad_cases_are_refused() -> None:
    with pytest.raises(ConfigError, match="no cases"):
        tune_baseline([], 1)
    volume, truth = balls(1)
    none = InstanceSet.build([], volume, LABELS)
    with pytest.raises(InputError, match="no object|has an object"):
        tune_baseline([(volume, none)], 1)
    flipped = AxisMap(order=(0, 1, 2), flips=(True, False, False)).volume(volume)
    with pytest.raises(InputError, match="case 2.*different grids"):
        tune_baseline([(volume, truth), (flipped, truth)], 1)


def test_it_stays_under_035_on_held_out_phantoms() -> None:
    grid = {"shape": (58, 90, 90), "spacing_mm": (5.0, 4.0, 4.0)}
    train = [make_phantom(seed=seed, **grid) for seed in (1, 2)]
    held_out = [make_phantom(seed=seed, **grid) for seed in (11, 12)]
    label = train[0].instances.labels.by_name("lesion").id
    detector = tune_baseline([(p.volume, p.instances) for p in train], label)
    f1 = lesion_f1(detector, [(p.volume, p.instances) for p in train])
    assert f1 == pytest.approx(detector.training_f1)
    assert lesion_f1(detector, [(p.volume, p.instances) for p in held_out]) < 0.35
