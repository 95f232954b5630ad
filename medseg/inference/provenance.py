"""How a result was made, without saying whose it is: versions, device, threads, files by hash."""

import hashlib
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import medseg

LIBRARIES = ("torch", "torchvision", "monai", "numpy", "scipy", "pydicom", "nibabel", "highdicom")


def environment(device: torch.device) -> dict[str, Any]:
    """Return versions, device and thread count (results on a CPU are bit-exact at one thread count)."""
    return {
        "medseg": medseg.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
    }


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(paths: Iterable[Path]) -> str:
    """Return the SHA-256 over the contents of files, ordered by their own hashes (names do not count)."""
    return hash_text("".join(sorted(hash_file(path) for path in paths)))


def hash_text(text: str) -> str:
    """Return the SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()
