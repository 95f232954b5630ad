"""What a training leaves on disk: plan.yaml, model.safetensors and the checkpoints from which it can go on.

A checkpoint is one safetensors file with a JSON header and no pickle. It appears whole or not at all, and holds a
SHA-256 of its tensors, so that one that was damaged later is noticed. The last two are kept.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from medseg.inference.run import PLAN_FILE, WEIGHTS_FILE
from medseg.io.atomic import atomic_path, is_leftover, write_text
from medseg.progress import Note, unheard
from medseg.values.plan import Plan

FOLDER = "checkpoints"
#: How many are kept: the last, and the one before in case the last is damaged.
KEPT = 2
#: Changes with the meaning of what is in a checkpoint.
VERSION = 1


class Checkpoint(NamedTuple):
    """Tensors by name, and the header's values: ``step`` and what else `save_checkpoint` was given."""

    tensors: dict[str, Tensor]
    header: dict[str, Any]


def save_plan(run: Path, plan: Plan) -> Path:
    """Write the plan, its reasons as comments."""
    write_text(run / PLAN_FILE, plan.to_yaml())
    return run / PLAN_FILE


def save_weights(run: Path, weights: Mapping[str, Tensor]) -> Path:
    """Write weights as safetensors (no pickle)."""
    return _write(run / WEIGHTS_FILE, _on_cpu(weights), None)


def save_checkpoint(run: Path, step: int, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
    """Write the checkpoint of a step and drop all but the last two.

    Args:
        run: folder of the training.
        step: steps done.
        tensors: by name.
        header: what JSON can hold.
    """
    held = _on_cpu(tensors)
    data = {**header, "version": VERSION, "step": step, "sha256": _digest(held)}
    path = _write(run / FOLDER / f"step_{step:08d}.safetensors", held, {"medseg": json.dumps(data)})
    left = [file for file in path.parent.iterdir() if is_leftover(Path(file.name))]  # by a run that was killed
    for old in (*find_checkpoints(run)[KEPT:], *left):
        old.unlink()
    return path


def find_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run, the last first."""
    found = (run / FOLDER).glob("step_*.safetensors")
    return sorted((p for p in found if re.fullmatch(r"step_\d{8,}", p.stem)), key=_step_of, reverse=True)


def load_checkpoint(run: Path, note: Note = unheard) -> Checkpoint | None:
    """Load the last whole checkpoint; None where there is none.

    Args:
        run: folder of the training.
        note: hears of each that is damaged, by name.
    """
    for path in find_checkpoints(run):
        try:
            return _read(path)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            note(f"{path}: damaged ({reason}); passed over for the one before it, or the start where there is none")
    return None


def drop_all_but_last(run: Path) -> None:
    """Delete the checkpoints of a finished run except its last."""
    for old in find_checkpoints(run)[1:]:
        old.unlink()


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None) -> Path:
    with atomic_path(path) as temporary:
        # Not save_file: a full disk is an OSError here, which atomic_path tells in one line.
        temporary.write_bytes(save(dict(tensors), metadata))
    return path


def _read(path: Path) -> Checkpoint:
    with safe_open(path, framework="pt") as file:
        header = json.loads((file.metadata() or {})["medseg"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if header["version"] != VERSION:
        raise ValueError(f"of format {header['version']}, expected {VERSION}")
    if header["sha256"] != _digest(tensors):
        raise ValueError("its contents are not those of its checksum")
    if header["step"] != _step_of(path):
        raise ValueError(f"is of step {header['step']}")
    return Checkpoint(tensors, header)


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
