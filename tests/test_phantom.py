"""The phantom: geometry, determinism, and what the lesions were promised to be, measured from the voxels."""

import csv
import json
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from typer import Typer
from typer.testing import CliRunner

from medseg.cli import phantom as verb
from medseg.errors import ConfigError, InputError
from medseg.io import read_instances, read_volume
from medseg.io.cohort_table import read_cohort_labels, read_cohort_table
from medseg.phantom import Phantom, make_phantom, phantom_labels, write_cohort
from medseg.phantom.cohort import case_seed, describe
from medseg.phantom.lesions import HOSTS, share_a_face
from medseg.phantom.shapes import Frame, ellipsoid, occupancy, smooth_field
from medseg.values.geometry import IDENTITY, orientation_map, same_grid, spacing_of

SEEDS = (3, 4, 5)
VOXEL_ML = 3.0 * 2.8 * 2.8 / 1000


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    return [make_phantom(seed=seed) for seed in SEEDS]


def grid_frame(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Frame:
    axes = [((np.arange(n) - (n - 1) / 2) * s).astype(np.float32) for n, s in zip(shape, spacing, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return Frame(x=x, y=y, z=z, axes=(axes[0], axes[1], axes[2]), margin_mm=(0.0, 0.0, 0.0))


def test_occupancy_of_thick_slices_adds_up_to_the_volume() -> None:
    radii = (13.0, 10.0, 17.0)
    exact = 4 / 3 * np.pi * np.prod(radii)
    for spacing in ((2.0, 1.5, 1.5), (6.0, 1.5, 1.7)):
        at = grid_frame((21, 39, 41), spacing)
        share = occupancy(ellipsoid(at, (0.7, -0.4, 1.1), radii))
        assert share.sum() * np.prod(spacing) == pytest.approx(exact, rel=0.02)
        assert 0.2 < np.mean((share > 0.02) & (share < 0.98)) / np.mean(share > 0.02) < 0.9


def test_smooth_field_has_unit_spread_and_does_not_depend_on_the_spacing() -> None:
    axis = np.arange(-150, 151, 2.0).astype(np.float32)
    field = smooth_field(np.random.default_rng(1), (axis, axis, axis), 12.0)
    assert field.std() == pytest.approx(1.0, abs=0.1)
    coarse = smooth_field(np.random.default_rng(1), (axis[::5], axis, axis[::3]), 12.0)
    np.testing.assert_allclose(coarse, field[::5, :, ::3], atol=1e-4)


def test_same_seed_same_voxels_and_other_seed_other_voxels() -> None:
    shape = (31, 43, 47)
    spacing = (6.0, 7.0, 6.5)
    a, b, other = (make_phantom(seed=s, shape=shape, spacing_mm=spacing) for s in (7, 7, 8))
    np.testing.assert_array_equal(a.volume.array, b.volume.array)
    np.testing.assert_array_equal(a.volume.affine, b.volume.affine)
    assert [(i.label, i.offset, i.voxels) for i in a.instances] == [(i.label, i.offset, i.voxels) for i in b.instances]
    assert describe(a) == describe(b)
    assert not np.array_equal(a.volume.array, other.volume.array)


def test_grid_and_orientation(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        volume = phantom.volume
        assert volume.array.dtype == np.int16 and volume.array.shape == (96, 128, 128)
        assert spacing_of(volume) == pytest.approx((3.0, 2.8, 2.8))
        assert orientation_map(volume, "HPL") == IDENTITY
        assert np.linalg.norm(volume.affine[:3, 3]) > 200
        assert same_grid(volume, phantom.instances.geometry) and same_grid(volume, phantom.noise_free)


def test_organs_lie_where_they_belong(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        labels = phantom.instances.labels
        centre = {}
        for i in phantom.instances:
            if labels[i.label].kind == "single":
                voxel = np.argwhere(i.mask).mean(axis=0) + i.offset
                centre[labels[i.label].name] = phantom.volume.affine[:3, :3] @ voxel + phantom.volume.affine[:3, 3]
        assert set(centre) == {"liver", "spleen", "kidney_left", "kidney_right", "aorta", "spine"}
        left, posterior, head = (np.array([0, 1, 2]) == k for k in range(3))
        spine = centre["spine"]
        assert (centre["liver"] - spine)[left] < -30 and (centre["kidney_right"] - spine)[left] < -30
        assert (centre["spleen"] - spine)[left] > 30 and (centre["kidney_left"] - spine)[left] > 30
        assert all((centre[name] - spine)[posterior] < -5 for name in centre if name != "spine")
        assert (centre["liver"] - centre["kidney_right"])[head] > 20
        assert (centre["spleen"] - centre["kidney_left"])[head] > 20


def test_organs_have_human_sizes_and_enhancement(phantoms: list[Phantom]) -> None:
    # ml; generous around adult norms, smaller spleens occur
    limits = {"liver": (600, 2000), "spleen": (40, 400), "kidney_left": (40, 350), "kidney_right": (40, 350),
              "aorta": (50, 220), "spine": (350, 800)}  # fmt: skip
    hu = {name: [] for name in limits}
    for phantom in phantoms:
        for i in phantom.instances:
            name = phantom.instances.labels[i.label].name
            if name in limits:
                assert limits[name][0] < i.voxels * VOXEL_ML < limits[name][1], name
                hu[name].append(np.median(phantom.volume.array[i.window][i.mask]))
    assert all(50 < v < 130 for v in hu["liver"]) and np.ptp(hu["liver"]) > 5
    assert all(v > 100 for v in hu["spine"])


def test_organs_exclude_each_other_and_neighbours_touch(phantoms: list[Phantom]) -> None:
    touching = set()
    for phantom in phantoms:
        names = {label.name: label.id for label in phantom.instances.labels}
        masks = {name: phantom.instances.semantic(names[name]) for name in HOSTS}
        assert sum(m.astype(int) for m in masks.values()).max() == 1
        for a, b in (("liver", "kidney_right"), ("spleen", "kidney_left")):
            if (ndimage.binary_dilation(masks[a]) & masks[b]).any():
                touching.add((a, b))
    assert touching == {("liver", "kidney_right"), ("spleen", "kidney_left")}


def test_lesions_lie_inside_their_host_and_necroses_inside_their_lesion(phantoms: list[Phantom]) -> None:
    cores = 0
    for phantom in phantoms:
        labels = phantom.instances.labels
        assert 4 <= len(phantom.lesions) <= 12
        assert len(phantom.lesion_ids) == len(phantom.lesions)
        lesions = phantom.instances.semantic(labels.by_name("lesion").id)
        for instance, lesion in zip(phantom.lesion_ids, phantom.lesions, strict=True):
            host = phantom.instances.semantic(labels.by_name(lesion.host).id)
            mask = phantom.instances.full_mask(instance)
            assert not (mask & ~host).any()
            assert ndimage.label(mask)[1] == 1
        for i in phantom.instances:
            if labels[i.label].name == "necrosis":
                cores += 1
                mask = phantom.instances.full_mask(i.id)
                assert mask.sum() >= 8 and not (mask & ~lesions).any()
                owners = [k for k in phantom.lesion_ids if (phantom.instances.full_mask(k) & mask).any()]
                assert len(owners) == 1
                assert not (mask & ~phantom.instances.full_mask(owners[0])).any()
    assert cores >= len(phantoms)


def test_diameters(phantoms: list[Phantom]) -> None:
    diameters = []
    for phantom in phantoms:
        for instance, lesion in zip(phantom.lesion_ids, phantom.lesions, strict=True):
            voxels = phantom.instances[instance].voxels
            assert voxels >= 4
            assert 6 <= lesion.diameter_mm <= 30
            measured = np.cbrt(6 / np.pi * voxels * VOXEL_ML * 1000)
            assert measured == pytest.approx(lesion.diameter_mm, abs=1.2)
            diameters.append(lesion.diameter_mm)
    assert min(diameters) < 10 and max(diameters) > 25
    assert len({d // 6 for d in diameters}) == 4  # every quarter of the range


def test_touching_lesions_share_a_face_and_no_voxel(phantoms: list[Phantom]) -> None:
    structure = ndimage.generate_binary_structure(3, 1)
    for phantom in phantoms:
        pairs = {
            (phantom.lesion_ids[i], phantom.lesion_ids[j])
            for i, lesion in enumerate(phantom.lesions) for j in lesion.touches if i < j
        }  # fmt: skip
        assert pairs
        everything = phantom.instances.semantic(phantom.instances.labels.by_name("lesion").id)
        low, high = np.argwhere(everything).min(axis=0), np.argwhere(everything).max(axis=0) + 1
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        masks = {k: phantom.instances.full_mask(k)[box] for k in phantom.lesion_ids}
        for a in masks:
            for b in masks:
                if a < b:
                    touch = any((masks[a].take(np.r_[1:n], k) & masks[b].take(np.r_[: n - 1], k)).any()
                                or (masks[b].take(np.r_[1:n], k) & masks[a].take(np.r_[: n - 1], k)).any()
                                for k, n in enumerate(masks[a].shape))  # fmt: skip
                    assert touch == ((a, b) in pairs)
                    assert not (masks[a] & masks[b]).any()
                    if touch:  # components alone cannot tell them apart
                        assert ndimage.label(masks[a] | masks[b], structure)[1] == 1


def test_share_a_face_needs_a_face(phantoms: list[Phantom]) -> None:
    from dataclasses import replace

    lesion = replace(phantoms[0].lesions[0], mask=np.ones((2, 3, 4), bool), offset=(5, 6, 7))
    beside = replace(lesion, offset=(7, 6, 7))
    across_an_edge = replace(lesion, offset=(7, 9, 7))
    one_apart = replace(lesion, offset=(8, 6, 7))
    assert share_a_face(lesion, beside) and share_a_face(beside, lesion)
    assert not share_a_face(lesion, across_an_edge) and not share_a_face(lesion, one_apart)


def test_contrast_and_noise_are_in_range_where_they_are_measured(phantoms: list[Phantom]) -> None:
    for phantom in phantoms:
        labels = phantom.instances.labels
        noise = phantom.volume.array - phantom.noise_free.array
        spots = np.zeros(phantom.volume.array.shape, bool)
        for k in phantom.lesion_ids:
            spots |= phantom.instances.full_mask(k)
        spots = ndimage.binary_dilation(spots, iterations=2)
        assert phantom.noise_sd_hu == pytest.approx(noise[phantom.noise_free.array > -200].std(), rel=0.1)
        assert 9 < noise[phantom.noise_free.array > -200].std() < 20
        for instance, lesion in zip(phantom.lesion_ids, phantom.lesions, strict=True):
            assert 15 <= abs(lesion.contrast_hu) <= 60
            assert 1 <= lesion.cnr <= 4
            assert lesion.cnr == pytest.approx(abs(lesion.contrast_hu) / phantom.noise_sd_hu)
            if lesion.host != "liver":
                continue  # the kidney's medulla and the spleen's hilum have a contrast of their own
            mask = phantom.instances.full_mask(instance)
            if lesion.core is not None:
                window = tuple(slice(o, o + n) for o, n in zip(lesion.offset, lesion.mask.shape, strict=True))
                mask[window] &= ~ndimage.binary_dilation(lesion.core)
            inner = ndimage.binary_erosion(mask)
            if lesion.diameter_mm < 14 or lesion.core is not None or inner.sum() < 8:
                continue
            around = phantom.instances.semantic(labels.by_name("liver").id)
            around = ndimage.binary_erosion(around, iterations=2) & ~spots
            measured = phantom.noise_free.array[inner].mean() - np.median(phantom.noise_free.array[around])
            assert measured == pytest.approx(lesion.contrast_hu, abs=6)


def test_noise_is_correlated_in_plane_like_a_soft_kernel(phantoms: list[Phantom]) -> None:
    phantom = phantoms[0]
    noise = (phantom.volume.array - phantom.noise_free.array)[20:70, 50:78, 40:88]
    noise = noise - noise.mean()
    beside = (noise[:, :, 1:] * noise[:, :, :-1]).mean() / noise.var()
    above = (noise[1:] * noise[:-1]).mean() / noise.var()
    assert 0.1 < beside < 0.8
    assert abs(above) < 0.4


@pytest.mark.parametrize("shape", [(41, 67, 59), (8, 9, 11)])
def test_odd_shapes_cut_the_patient_and_keep_its_size(shape: tuple[int, int, int]) -> None:
    phantom = make_phantom(seed=2, shape=shape, spacing_mm=(5.0, 2.9, 2.5))
    assert phantom.volume.array.shape == shape
    assert phantom.volume.array[shape[0] // 2, shape[1] // 2].max() > -200
    for i in phantom.instances:
        assert i.voxels > 0


def test_a_field_of_view_without_organs_has_no_lesions() -> None:
    phantom = make_phantom(seed=2, shape=(9, 8, 10), spacing_mm=(0.5, 0.5, 0.5))
    assert phantom.lesions == ()
    assert all(phantom.instances.labels[i.label].kind == "single" for i in phantom.instances)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="seed -1"):
        make_phantom(seed=-1)
    with pytest.raises(ConfigError, match="at least 8"):
        make_phantom(seed=1, shape=(7, 20, 20))
    with pytest.raises(ConfigError, match="spacing_mm"):
        make_phantom(seed=1, spacing_mm=(0.0, 1.0, 1.0))


def test_it_is_quick() -> None:
    start = time.process_time()
    make_phantom(seed=11)
    assert time.process_time() - start < 2.0


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "phantoms"
    return write_cohort(folder, cases=2, seed=5, shape=(33, 45, 49), spacing_mm=(6.0, 6.5, 6.0))


def test_cohort_reads_back_as_dicom_nifti_and_overlapping_truth(cohort: Path) -> None:
    rows = read_cohort_table(cohort)
    assert [row.name for row in rows] == ["case_000", "case_001"]
    assert read_cohort_labels(cohort) == phantom_labels()
    with (cohort / "cohort.csv").open() as file:
        assert next(csv.reader(file)) == ["image", "label", "patient", "case"]
    for case, row in enumerate(rows):
        phantom = make_phantom(seed=case_seed(5, case), shape=(33, 45, 49), spacing_mm=(6.0, 6.5, 6.0))
        dicom, nifti = read_volume(row.images[0]), read_volume(cohort / row.name / f"{row.name}.nii.gz")
        for volume in (dicom, nifti):
            assert same_grid(volume, phantom.volume)
            moved = orientation_map(volume, "HPL").array(volume.array)
            np.testing.assert_array_equal(moved, phantom.volume.array)
        truth = read_instances(row.label)
        assert [(i.label, i.offset) for i in truth] == [(i.label, i.offset) for i in phantom.instances]
        for ours, theirs in zip(phantom.instances, truth, strict=True):
            np.testing.assert_array_equal(ours.mask, theirs.mask)
        record = json.loads((cohort / row.name / "phantom.json").read_text())
        assert record["seed"] == phantom.seed and len(record["lesions"]) == len(phantom.lesions)
        ids = [lesion["instance"] for lesion in record["lesions"]]
        assert all(a in ids and b in ids for a, b in record["touching"])


def test_more_cases_do_not_change_the_first(cohort: Path, tmp_path: Path) -> None:
    one = write_cohort(tmp_path / "one", cases=1, seed=5, shape=(33, 45, 49), spacing_mm=(6.0, 6.5, 6.0))
    files = sorted(p.relative_to(one) for p in (one / "case_000").rglob("*") if p.is_file())
    assert len(files) == 33 + 3
    for file in files:
        assert (one / file).read_bytes() == (cohort / file).read_bytes(), file


def test_varied_spacing_keeps_the_field_of_view(tmp_path: Path) -> None:
    folder = write_cohort(
        tmp_path / "varied", cases=2, seed=1, shape=(12, 40, 44), spacing_mm=(9.0, 5.0, 5.0), vary_spacing=True
    )
    grids = [read_volume(row.images[0]) for row in read_cohort_table(folder)]
    assert spacing_of(grids[0]) != spacing_of(grids[1])
    for grid in grids:
        between, row, column = spacing_of(grid)
        assert 2.5 <= between <= 5 and 2.5 <= row <= 3 and row == pytest.approx(column)
        for n, step, extent in zip(grid.spatial_shape, (between, row, column), (108, 200, 220), strict=True):
            assert n * step == pytest.approx(extent, abs=step)


def test_a_folder_in_use_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="not an empty folder"):
        write_cohort(tmp_path, cases=1, seed=1)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def stop(items, description, total=None):
        yield next(iter(items))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cohort(tmp_path / "new", cases=2, seed=1, shape=(9, 10, 11), spacing_mm=(20.0, 20.0, 20.0), track=stop)
    assert list(tmp_path.iterdir()) == []


def test_the_verb_writes_a_cohort_and_prints_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = Typer()
    app.command(verb.NAME)(verb.run)
    monkeypatch.chdir(tmp_path)
    arguments = ["-o", "out", "--cases", "1", "--seed", "3", "--shape", "9,10,11", "--spacing", "20,20,20"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "out") in result.output
    assert len(read_cohort_table(tmp_path / "out")) == 1
    bad = CliRunner().invoke(app, ["-o", "other", "--shape", "9,x,11"])
    assert isinstance(bad.exception, ConfigError) and "--shape '9,x,11'" in str(bad.exception)
    assert not (tmp_path / "other").exists()
