"""Fixtures that every test may use, and the settings that have to stand before torch is imported."""

import os

# Idle OpenMP threads that spin make a busy machine several times slower; torch reads these when imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores among themselves
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import signal
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from highdicom import VolumeGeometry

ROOT = Path(__file__).resolve().parents[1]

# Jobs in the background, and those of nohup, ignore signals, and so would every program that a test starts and stops.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)  # goes on here, and is as usual in programs that are started


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with real data: ``MEDSEG_DATA``, else ``../shared/data`` beside the repository."""
    given = os.environ.get("MEDSEG_DATA")
    folder = Path(given) if given else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a folder (set MEDSEG_DATA to where it is)")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    """A random generator, the same for every test."""
    return np.random.default_rng(20240229)


@pytest.fixture(scope="session")
def oblique_geometry() -> VolumeGeometry:
    """A grid without symmetry: 5 x 7 x 11 voxels of 3.0 x 0.8 x 0.7 mm, turned about all axes, off the origin."""
    a, b, c = np.deg2rad([17.0, -9.0, 31.0])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    slice_row_column = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], float)  # towards head, posterior, left
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_y @ about_x @ slice_row_column * [3.0, 0.8, 0.7]
    affine[:3, 3] = (-37.2, 51.9, -813.4)
    return VolumeGeometry(affine, (5, 7, 11), "PATIENT")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked ``cuda`` where there is no CUDA device."""
    if item.get_closest_marker("cuda") is None:
        return
    if find_spec("torch") is None:
        pytest.skip("needs a CUDA device: torch is not installed")
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device: torch finds none on this machine")
