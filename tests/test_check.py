"""`medseg check`: every planted fault is found and named, sound cases are left in peace."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from cli_runs import run_all
from highdicom import VolumeGeometry

from medseg.cli import check, console
from medseg.data.check import check_cohort, measure_cases
from medseg.data.check_case import empty_slices, slice_axis
from medseg.data.cohort import find_cohort
from medseg.errors import CasesError, ConfigError, InputError
from medseg.io import write_volume
from medseg.values.geometry import make_volume
from medseg.values.instances import Instance

Change = Callable[[np.ndarray, np.ndarray], None]


def write_case(folder: Path, name: str, grid: VolumeGeometry, seed: int, change: Change | None = None) -> None:
    """Write an image of noise from 0 to 200 and its label map: organ 1, and two lesions of value 2."""
    image = np.random.default_rng(seed).integers(0, 200, (5, 7, 11)).astype(np.float32)
    label = np.zeros((5, 7, 11), np.uint8)
    label[0:4, 1:6, 1:5] = 1
    label[1 : 3 + seed % 2, 2:4, 7:9] = 2
    label[1:4, 5:7, 8:10] = 2
    label[0, 1, 1 : 1 + seed] = 0
    if change:
        change(image, label)
    if (image == np.rint(image)).all() and np.abs(image).max() < 30000:
        image = image.astype(np.int16)
    write_volume(folder / f"{name}.nii.gz", make_volume(image, grid.affine, "image"))
    write_volume(folder / f"{name}_label.nii.gz", make_volume(label, grid.affine, "label"))


def measured(folder: Path) -> list[tuple[int, ...]]:
    """Return the shapes of a cohort's images, as training would read them."""
    return list(measure_cases(find_cohort(folder), lambda volumes, instances: volumes[0].array.shape))


@pytest.fixture
def make(tmp_path: Path, oblique_geometry: VolumeGeometry) -> Callable[..., Path]:
    """Return a writer of a cohort of four cases of four patients, changed by their names."""

    def written(patients: dict[str, str] | None = None, channel: str = "image", **changes: Change) -> Path:
        rows = [f"{channel},label,patient"]
        for seed, name in enumerate("abcd"):
            write_case(tmp_path, name, oblique_geometry, seed, changes.get(name))
            rows.append(f"{name}.nii.gz,{name}_label.nii.gz,{(patients or {}).get(name, name)}")
        (tmp_path / "cohort.csv").write_text("\n".join(rows) + "\n")
        table = [{"id": 1, "name": "organ"}, {"id": 2, "name": "lesion", "kind": "components"}]
        (tmp_path / "labels.json").write_text(json.dumps(table))
        return tmp_path

    return written


def test_a_sound_cohort(make: Callable[..., Path], capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    folder = make()
    check.run(folder, tmp_path / "out" / "check.json")
    shown = capsys.readouterr().out
    assert shown.rstrip().endswith(str(tmp_path / "out" / "check.json"))
    assert "4 of 4 cases can be read; errors: 0, warnings: 0" in shown
    data = json.loads((tmp_path / "out" / "check.json").read_text())
    assert (data["layout"], data["patients"], data["errors"], data["warnings"]) == ("table", 4, [], [])
    case = data["cases"][1]
    assert (case["name"], case["orientation"]) == ("b", "HPL") and case["shape"] == [5, 7, 11]
    np.testing.assert_allclose(case["spacing_mm"], [3.0, 0.8, 0.7], rtol=1e-6)
    lesion = {"objects": 2, "voxels": 3 * 4 + 3 * 4, "objects_with_gaps": 0, "missing_slices": 0}
    assert case["labels"] == {"organ": lesion | {"objects": 1, "voxels": 4 * 5 * 4 - 1}, "lesion": lesion}
    check.run(folder, tmp_path / "again.json", as_json=True)
    assert json.loads(capsys.readouterr().out) == data
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "out" / "check.json").read_bytes()


@pytest.mark.parametrize("width", [60, 80])
def test_the_table_fits_and_cuts_nothing(
    width: int,
    make: Callable[..., Path],
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = make()
    monkeypatch.setattr(console.out, "_width", width)
    check.run(folder, tmp_path / "check.json")
    shown = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(str(tmp_path))]
    assert max(map(len, shown)) <= width and not any("…" in line for line in shown)
    assert shown[0].strip() == "table, 4 cases"
    # 60 columns are too few for a column per label: a line per label then
    line = next(number for number, text in enumerate(shown) if text.startswith(" b "))
    if width == 80:
        assert "1, 79" in shown[line] and "2, 24" in shown[line]
    else:
        assert "organ: 1, 79" in shown[line] and "lesion: 2, 24" in shown[line + 1]


def test_kinds_of_the_command_line(make: Callable[..., Path], tmp_path: Path) -> None:
    folder = make()
    check.run(folder, tmp_path / "check.json", kind=["lesion=single"])
    data = json.loads((tmp_path / "check.json").read_text())
    assert [case["labels"]["lesion"]["objects"] for case in data["cases"]] == [1] * 4
    (hint,) = data["warnings"]
    assert hint.startswith("label lesion: one object per case") and "--kind 'lesion=components'" in hint
    with pytest.raises(ConfigError, match="--kind tumour: no such label in .*; it has organ, lesion"):
        check.run(folder, tmp_path / "check.json", kind=["tumour=ids"])
    with pytest.raises(InputError, match="is a folder, expected the name of a JSON file"):
        check.run(folder, tmp_path)


def test_errors_are_all_found_and_stop_nothing(
    make: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture, oblique_geometry: VolumeGeometry
) -> None:
    def blank(image: np.ndarray, label: np.ndarray) -> None:
        image[:] = 7

    def unmarked(image: np.ndarray, label: np.ndarray) -> None:
        label[:] = 0

    folder = make(b=blank, c=unmarked)
    affine = oblique_geometry.affine.copy()
    affine[0, 3] += 1
    image = make_volume(np.arange(385, dtype=np.int16).reshape(5, 7, 11), affine, "moved")
    write_volume(folder / "d.nii.gz", image)
    with (folder / "cohort.csv").open("a") as file:
        file.write("gone.nii.gz,a_label.nii.gz,e\n")
    with pytest.raises(typer.Exit) as stop:
        check.run(folder, tmp_path / "check.json")
    assert stop.value.exit_code == 1
    errors = json.loads((tmp_path / "check.json").read_text())["errors"]
    gone, unmarked_line, moved, blank_line = errors
    assert gone.startswith("case gone: ") and "gone.nii.gz: no such file" in gone
    assert unmarked_line.startswith("case c: ") and "is an empty label" in unmarked_line
    assert moved.startswith("case d: image and label are in different places")
    assert blank_line == "case b: channel image: every voxel is 7, the image is blank; export it again"
    shown = capsys.readouterr().out
    assert all(f"error: {line}" in shown for line in errors) and "2 of 5 cases can be read" in shown
    # training reads its cases through the same errors, all of them told in one
    with pytest.raises(CasesError, match="^4 of 5 cases of the cohort cannot be used") as error:
        measured(folder)
    assert sorted(error.value.reasons) == sorted(errors)


def test_values_that_are_no_numbers_are_an_error(make: Callable[..., Path]) -> None:
    def holed(image: np.ndarray, label: np.ndarray) -> None:
        image[2, 3, 4] = np.nan

    (error,) = check_cohort(find_cohort(make(a=holed))).errors
    assert error.startswith("case a: ") and "1 voxels are NaN or infinite" in error


def test_duplicates(make: Callable[..., Path]) -> None:
    def same(image: np.ndarray, label: np.ndarray) -> None:
        image[:] = np.arange(385).reshape(5, 7, 11)

    def relabelled(image: np.ndarray, label: np.ndarray) -> None:
        label[0, 1, 1:5] = 1  # as in a

    report = check_cohort(find_cohort(make(b=same, c=relabelled, d=same)))
    (error,) = report.errors
    assert error.startswith("case d: its image is that of case b, voxel by voxel, and they count as two patients")
    (copied,) = [line for line in report.warnings if "its label is that of" in line]
    assert copied.startswith("case c: its label is that of case a, voxel by voxel, on another image")
    with pytest.raises(InputError, match="case d: its image is that of case b"):
        measured(make(b=same, d=same))
    report = check_cohort(find_cohort(make({"b": "x", "d": "x"}, b=same, d=same)))
    assert not report.errors and any("case d: its image is that of case b" in line for line in report.warnings)
    assert measured(make({"b": "x", "d": "x"}, b=same, d=same)) == [(5, 7, 11)] * 4


def test_oddities_of_labels(make: Callable[..., Path]) -> None:
    def gap(image: np.ndarray, label: np.ndarray) -> None:
        label[2][label[2] == 1] = 0
        label[0, 0, 10] = 2

    lines = check_cohort(find_cohort(make(b=gap))).warnings
    assert [line for line in lines if "slices without a voxel" in line] == [
        "case b: label organ: 1 of 1 objects have slices without a voxel between their first and last (object 1: slice "
        "3 along axis 0); was a slice left out?"
    ]
    assert "case b: label lesion: 1 of 3 objects are a single voxel" in lines


def test_a_label_in_one_case_or_none(make: Callable[..., Path]) -> None:
    def without(image: np.ndarray, label: np.ndarray) -> None:
        label[label == 2] = 0

    folder = make(a=without, b=without, c=without)
    assert any("label lesion: in one case of 4" in line for line in check_cohort(find_cohort(folder)).warnings)
    folder = make(a=without, b=without, c=without, d=without)
    assert "label lesion: in no case; is the name or number right?" in check_cohort(find_cohort(folder)).warnings
    (folder / "d.nii.gz").write_bytes(b"")  # lesions may be in what cannot be read
    found = check_cohort(find_cohort(folder))
    assert len(found.errors) == 1 and [line for line in found.warnings if "label lesion" in line] == [
        "label lesion: in no case that can be read; 1 of 4 cannot"
    ]


@pytest.mark.parametrize(
    ("factor", "offset", "wild"), [(1, 0, False), (9, 0, False), (12, 0, True), (0.05, 100, True), (1, 300, True)]
)
def test_a_case_of_other_intensities(make: Callable[..., Path], factor: float, offset: float, wild: bool) -> None:
    def other(image: np.ndarray, label: np.ndarray) -> None:
        image[:] = image * factor + offset

    lines = check_cohort(find_cohort(make(c=other))).warnings
    assert [line.split(":")[0] for line in lines if "another unit" in line] == ["case c"] * wild


def test_ct_and_wide_values(make: Callable[..., Path]) -> None:
    def water(image: np.ndarray, label: np.ndarray) -> None:
        image -= 100

    def deep(image: np.ndarray, label: np.ndarray) -> None:
        image[0, 0, 0] = -4000

    lines = check_cohort(find_cohort(make(channel="image:CT", a=water, b=deep, d=water))).warnings
    assert [line[:7] for line in lines if "none below 0" in line] == ["case c:"]
    assert [line[:7] for line in lines if "expected HU from -3024" in line] == ["case b:"]

    def wide(image: np.ndarray, label: np.ndarray) -> None:
        image[0, 0, 0] = 70000

    lines = check_cohort(find_cohort(make(a=wide))).warnings
    assert [line[:7] for line in lines if "beyond the 16 bits" in line] == ["case a:"]


def test_slices_are_those_of_the_largest_spacing(oblique_geometry: VolumeGeometry) -> None:
    assert slice_axis(oblique_geometry) == 0
    sagittal = np.array([[4.0, 0, 0, 7], [0, 0, 0.9, -3], [0, -0.9, 0, 1], [0, 0, 0, 1]])  # its rows run upright
    assert slice_axis(VolumeGeometry(sagittal, (5, 7, 11), "PATIENT")) == 0
    affine = np.diag([2.0, 2.0, 2.0, 1.0])[:, [0, 2, 1, 3]]
    assert slice_axis(VolumeGeometry(affine, (5, 7, 11), "PATIENT")) == 1  # its rows run upright
    mask = np.zeros((5, 2, 3), bool)
    mask[[0, 3, 4]] = True
    assert empty_slices(Instance(id=1, label=1, mask=mask, offset=(10, 0, 0)), 0) == [11, 12]
    assert empty_slices(Instance(id=1, label=1, mask=mask, offset=(10, 0, 0)), 2) == []
    mask[3:, 0] = mask[0, 1] = False  # two parts that lie beside each other
    assert empty_slices(Instance(id=1, label=1, mask=mask, offset=(10, 0, 0)), 0) == []


def test_the_command_line_lists_every_broken_case(make: Callable[..., Path], tmp_path: Path) -> None:
    def unmarked(image: np.ndarray, label: np.ndarray) -> None:
        label[:] = 0

    folder = make(a=unmarked, d=unmarked)
    checked, planned = run_all(
        [["check", folder, "-o", tmp_path / "check.json"], ["plan", folder, "-o", tmp_path / "plan.yaml"]]
    )
    assert checked.code == 1 and checked.err == ""
    assert checked.out.splitlines()[-1] == str(tmp_path / "check.json")
    assert sum(line.startswith("error: case ") for line in checked.out.splitlines()) == 2
    first, *reasons = planned.err.splitlines()
    assert planned.code == 2 and not (tmp_path / "plan.yaml").exists()
    assert first == "error: 2 of 4 cases of the cohort cannot be used; mend them or take them out:"
    assert [line.split(":")[0] for line in reasons] == ["  case a", "  case d"]
