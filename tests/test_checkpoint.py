"""Checkpoints: whole or not there, without pickle, damage noticed and told by name; tables that are cut back."""

import csv
import json
import struct
from pathlib import Path

import pytest
import torch
from network_fixtures import tiny_plan

from medseg.errors import InputError, ModelError
from medseg.training.checkpoint import Checkpoint, find_checkpoints, load_checkpoint, save_checkpoint
from medseg.training.rows import Rows
from medseg.training.state import TrainingState

CPU = torch.device("cpu")
TENSORS = {
    "a.weight": torch.arange(385, dtype=torch.float32).reshape(5, 7, 11).permute(2, 0, 1),  # not contiguous
    "b": torch.tensor(3.5),
    "c": torch.zeros((0, 4)),
    "d": torch.tensor([1, 255], dtype=torch.uint8),
    "e": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 7, TENSORS, {"best_score": None, "seconds": 1.25})
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.header["step"] == 7 and found.header["best_score"] is None and found.header["seconds"] == 1.25
    assert set(found.tensors) == set(TENSORS)
    for name, value in TENSORS.items():
        assert found.tensors[name].dtype == value.dtype and torch.equal(found.tensors[name], value), name


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    """Eight bytes of length, that much JSON, and the values: read here without any library."""
    data = save_checkpoint(tmp_path, 7, TENSORS, {}).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert json.loads(header.pop("__metadata__")["medseg"])["step"] == 7
    start, stop = header["d"]["data_offsets"]
    assert header["d"]["dtype"] == "U8" and data[8 + length :][start:stop] == b"\x01\xff"


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in (3, 20, 100):
        save_checkpoint(tmp_path, step, TENSORS, {})
    (tmp_path / "checkpoints" / ".tmp-01234567-step_00000200.safetensors").write_bytes(b"half")
    assert [p.name for p in find_checkpoints(tmp_path)] == ["step_00000100.safetensors", "step_00000020.safetensors"]
    assert load_checkpoint(tmp_path).header["step"] == 100  # type: ignore[union-attr]


def test_without_any_there_is_none(tmp_path: Path) -> None:
    assert find_checkpoints(tmp_path) == [] and load_checkpoint(tmp_path, pytest.fail) is None


@pytest.mark.parametrize("damage", ["cut", "half", "empty", "flipped", "text", "renamed", "newer"])
def test_a_damaged_one_is_passed_over_by_name(tmp_path: Path, damage: str) -> None:
    save_checkpoint(tmp_path, 10, TENSORS, {})
    last = save_checkpoint(tmp_path, 20, TENSORS, {})
    data = bytearray(last.read_bytes())
    if damage == "renamed":
        last = last.rename(last.with_name("step_00000030.safetensors"))
    else:
        data[-3] ^= 1 if damage == "flipped" else 0
        changed = {
            "cut": data[:-1], "half": data[: len(data) // 2], "empty": b"", "text": b"hello", "flipped": data,
            "newer": bytes(data).replace(b'\\"version\\": 1', b'\\"version\\": 9'),
        }[damage]  # fmt: skip
        assert bytes(changed) != last.read_bytes()
        last.write_bytes(changed)
    notes: list[str] = []
    found = load_checkpoint(tmp_path, notes.append)
    assert found is not None and found.header["step"] == 10
    assert len(notes) == 1 and notes[0].startswith(f"{last}: damaged (") and "passed over" in notes[0]


def test_where_all_are_damaged_all_are_named(tmp_path: Path) -> None:
    for step in (10, 20):
        save_checkpoint(tmp_path, step, TENSORS, {}).write_bytes(b"")
    notes: list[str] = []
    assert load_checkpoint(tmp_path, notes.append) is None
    assert ["00000020" in notes[0], "00000010" in notes[1], len(notes)] == [True, True, 2]


def test_a_checkpoint_of_another_network_is_refused() -> None:
    state, other = TrainingState(tiny_plan(), CPU), TrainingState(tiny_plan({"model.fpn_channels": 16}), CPU)
    state.step = 4
    with pytest.raises(ModelError, match=r"the checkpoint of step 4 does not fit plan.yaml \(.*fpn"):
        other.restore(Checkpoint(state.tensors(), {**state.header(), "step": 4}))


# -- tables ---------------------------------------------------------------------------------------------------


def test_a_table_is_cut_back_to_a_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,0.5\n2,0.25\n3,0.125\n4,0.0")  # the last one torn by a kill
    rows = Rows(path, ["step", "loss"], 2)
    rows.write([3, 1 / 3])
    rows.write([1234567, float("nan")])
    assert path.read_text() == "step,loss\n1,0.5\n2,0.25\n3,0.333333\n1234567,nan\n"
    rows.sync()
    rows.close()


@pytest.mark.parametrize("text", [None, "", "ste", "step,loss\n", "step,loss\n1,2\n"])
def test_a_new_or_empty_table_has_its_columns(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "metrics.csv"
    if text is not None:
        path.write_text(text)
    Rows(path, ["step", "loss"], 0).close()
    assert path.read_text() == "step,loss\n"


def test_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "metrics.csv", ["step", "loss"], 0)
    rows.file = open("/dev/full", "w")  # noqa: SIM115
    rows.csv = csv.writer(rows.file)
    with pytest.raises(InputError, match=r"metrics.csv: cannot be written \(No space left on device\); make room, and"):
        rows.write([1, 2.5])
    rows.close()


def test_what_a_killed_run_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / ".tmp-0123abcd-step_00000002.safetensors").write_bytes(b"half")
    save_checkpoint(tmp_path, 3, {"a": torch.ones(2)}, {})
    assert [p.name for p in folder.iterdir()] == ["step_00000003.safetensors"]


def test_a_torn_row_within_the_steps_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,0.5\n2,0.2")
    Rows(path, ["step", "loss"], 5).close()
    assert path.read_text() == "step,loss\n1,0.5\n"
