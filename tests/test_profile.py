"""Where the time went: stages, shares, profile.json; and headers that are read once."""

import json
from pathlib import Path

import pytest
import typer
from network_fixtures import save_run, simple_case, tiny_plan
from typer.testing import CliRunner

from medseg.cli import predict
from medseg.inference.profile import STAGES, profile, profile_dict
from medseg.io import dicom_files, list_series, read_volume, write_ct_series
from medseg.io.dicom import keep_scans


def test_shares_are_of_the_whole_and_in_order() -> None:
    stages = profile({"write": 1.0, "network": 6.0, "read": 2.0, "other": 1.0})
    assert [(s.name, s.seconds, s.share) for s in stages] == [
        ("read", 2.0, 0.2),
        ("network", 6.0, 0.6),
        ("write", 1.0, 0.1),
        ("other", 1.0, 0.1),
    ]
    assert profile_dict({"network": 6.0, "read": 2.0})["share_outside_network"] == 0.25
    assert profile({}) == () and profile({"read": 0.0})[0].share == 0.0


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every header that is read."""
    seen: list[Path] = []
    plain = dicom_files.read_header

    def read_header(path: Path) -> dicom_files.DicomFile:
        seen.append(path)
        return plain(path)

    monkeypatch.setattr(dicom_files, "read_header", read_header)
    return seen


def test_headers_are_kept_within_the_block_and_no_longer(tmp_path: Path, reads: list[Path]) -> None:
    for name in "abcdef":
        write_ct_series(tmp_path / name, simple_case(1, (3, 20, 24))[0], seed=1, description="case")
    folder = tmp_path / "a"
    with keep_scans():
        list_series(folder)
        with keep_scans():
            read_volume(folder)
        read_volume(folder)
        assert len(reads) == 3
        for name in "bcdef":  # pushes the first one out
            list_series(tmp_path / name)
        list_series(folder)
        assert len(reads) == 21
    list_series(folder)
    assert len(reads) == 24


def test_predict_says_where_the_time_went(tmp_path: Path, reads: list[Path]) -> None:
    write_ct_series(tmp_path / "dicom", simple_case(1, (4, 40, 44))[0], seed=1, description="case")
    plan = tiny_plan({"inference.batch_size": 8})
    save_run(tmp_path / "run", plan)
    app = typer.Typer()
    app.command()(predict.run)
    arguments = ["-i", tmp_path / "dicom", "-m", tmp_path / "run", "-o", tmp_path / "out", "--device", "cpu"]
    options = ["--profile", "--no-report", "--precision", "float32", "--batch-size", "3", "--name", "x"]
    result = CliRunner().invoke(app, [*(str(a) for a in arguments), *options])
    assert (result.exit_code, result.exception) == (0, None), result.output
    assert "where the time went" in result.output and "bring them to the network's grid" in result.output
    found = json.loads((tmp_path / "out" / "x" / "profile.json").read_text())
    assert list(found["stages"]) == [name for name in STAGES if name not in ("fusion", "report")]
    assert sum(s["share"] for s in found["stages"].values()) == pytest.approx(1, abs=1e-3)
    assert 0 < found["share_outside_network"] < 1
    assert len(reads) == 4  # once for each file, though four functions ask
    refused = CliRunner().invoke(app, [*(str(a) for a in arguments), "--batch-size", "0"])
    assert "batch_size" in str(refused.exception) and "greater than or equal to 1" in str(refused.exception)
