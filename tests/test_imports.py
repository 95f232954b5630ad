"""The imports point one way, heavy libraries stay in their rooms, only the command line acts on the process."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: Rooms from the bottom up: a room imports only rooms above it in this list, and itself.
TIERS: list[set[str]] = [
    {"medseg"},  # __init__.py: the version
    {"errors", "progress"},
    {"labels"},
    {"values"},
    {"io", "models", "linking", "metrics"},
    {"cluster"},
    {"data", "phantom", "baseline", "evaluation", "pacs"},
    {"reporting"},
    {"inference"},
    {"training"},
    {"cli"},
    {"__main__"},
]
#: Rooms of one tier that may know each other, as long as no circle arises (`test_no_circles`).
NEIGHBOURS = TIERS[6]
TIER = {room: tier for tier, rooms in enumerate(TIERS) for room in rooms}

#: Libraries that only these rooms import.
OWNERS = {
    "pydicom": {"io"},
    "nibabel": {"io"},
    "SimpleITK": {"io"},
    "nrrd": {"io"},
    "slicerio": {"io"},
    "monai": {"data"},
    "faster_coco_eval": {"metrics"},
    "dicomweb_client": {"pacs"},
    "requests": {"pacs"},
    "matplotlib": {"reporting"},
    "jinja2": {"reporting"},
    "dask": {"cluster"},
    "distributed": {"cluster"},
    "dask_jobqueue": {"cluster"},
    "typer": {"cli"},
    "rich": {"cli"},
}
#: Rooms that work without torch.
WITHOUT_TORCH = set().union(*TIERS[:4], {"io", "linking", "metrics", "cluster", "phantom", "evaluation", "pacs"})


@cache
def sources() -> dict[str, str]:
    """Path below medseg/ -> text."""
    folder = ROOT / "medseg"
    return {p.relative_to(folder).as_posix(): p.read_text(encoding="utf-8") for p in sorted(folder.rglob("*.py"))}


def room_of(path: str) -> str:
    """``io/nifti.py`` -> ``io``, ``labels.py`` -> ``labels``, ``__init__.py`` -> ``medseg``."""
    first = path.split("/")[0].removesuffix(".py")
    return "medseg" if first == "__init__" else first


def imported_modules(path: str, tree: ast.AST) -> Iterator[str]:
    """Absolute names of everything a file imports, inside functions and type checks too."""
    package = ["medseg", *path.split("/")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            # `from medseg import io` imports the room io, `from medseg import __version__` only medseg.
            for alias in node.names:
                name = f"{start}.{alias.name}"
                yield name if start == "medseg" and alias.name in TIER else start


def rooms_used(path: str, tree: ast.AST) -> set[str]:
    used = set()
    for name in imported_modules(path, tree):
        parts = name.split(".")
        if parts[0] == "medseg":
            used.add(parts[1] if len(parts) > 1 else "medseg")
    return used - {room_of(path)}


def faults(path: str, text: str) -> list[str]:
    """Return what a file of medseg does against the rules, one line each."""
    tree = ast.parse(text)
    room = room_of(path)
    if room not in TIER:
        return [f"{path}: room {room!r} has no place in TIERS; give it one"]
    found = []
    for used in sorted(rooms_used(path, tree)):
        if used not in TIER:
            found.append(f"{path}: imports {used!r}, which is no room of medseg")
        elif TIER[used] >= TIER[room] and not {room, used} <= NEIGHBOURS:
            found.append(f"{path}: {room} imports {used}, which is not below it")
    for name in sorted({n.split(".")[0] for n in imported_modules(path, tree)}):
        if name in OWNERS and room not in OWNERS[name]:
            found.append(f"{path}: imports {name}, which stays inside {sorted(OWNERS[name])}")
        if name in {"torch", "torchvision"} and room in WITHOUT_TORCH:
            found.append(f"{path}: imports {name}; {room} works without torch")
        if name == "pickle":
            found.append(f"{path}: imports pickle")
    if room not in {"cli", "__main__"}:
        found += [f"{path}: {act} is for the command line only" for act in sorted(acts(tree))]
    return found


def acts(tree: ast.AST) -> set[str]:
    """Return the ways in which a file prints, exits, reads the environment or changes the folder."""
    forbidden = {"sys": {"exit", "stdout", "stderr", "argv"}, "os": {"environ", "getenv", "chdir", "_exit", "putenv"}}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"print", "exit", "quit"}:
            found.add(f"{node.func.id}()")
        elif isinstance(node, ast.Name) and node.id == "SystemExit":
            found.add("SystemExit")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in forbidden.get(node.value.id, ()):
                found.add(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.ImportFrom) and node.module in forbidden:
            found.update(f"{node.module}.{a.name}" for a in node.names if a.name in forbidden[node.module])
    return found


def circle(edges: dict[str, set[str]]) -> list[str] | None:
    """Return one circle of a directed graph, or None."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        for target in sorted(edges.get(node, ())):
            if found := visit(target, [*path, node]):
                return found
        done.add(node)
        return None

    return next((c for node in sorted(edges) if (c := visit(node, []))), None)


@pytest.mark.parametrize("path", sources())
def test_rules_of_the_rooms(path):
    found = faults(path, sources()[path])
    assert not found, "\n".join(found)


def test_no_circles():
    edges: dict[str, set[str]] = {}
    for path, text in sources().items():
        edges.setdefault(room_of(path), set()).update(rooms_used(path, ast.parse(text)))
    assert circle(edges) is None


def test_nothing_imports_the_pipelines():
    for path, text in sources().items():
        assert not any(n.split(".")[0] == "pipelines" for n in imported_modules(path, ast.parse(text))), path


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("values/a.py", "from medseg.io.nifti import read", "values imports io, which is not below it"),
        ("io/a.py", "def f():\n    import medseg.linking.graph", "io imports linking, which is not below it"),
        ("io/a.py", "from ..metrics import overlap", "io imports metrics"),
        ("models/a.py", "from medseg import cli", "models imports cli"),
        ("labels.py", "from medseg.values import plan", "labels imports values"),
        ("data/a.py", "import pydicom.dataset", "imports pydicom, which stays inside ['io']"),
        ("inference/a.py", "import matplotlib.pyplot as plt", "imports matplotlib"),
        ("training/a.py", "from monai import transforms", "imports monai"),
        ("linking/a.py", "import torch.nn.functional as F", "linking works without torch"),
        ("metrics/a.py", "import torch", "metrics works without torch"),
        ("models/a.py", "print('x')", "print() is for the command line only"),
        ("models/a.py", "import sys\nsys.exit(1)", "sys.exit is for"),
        ("models/a.py", "from os import environ", "os.environ is for"),
        ("models/a.py", "import os\nos.chdir('/')", "os.chdir is for"),
        ("models/a.py", "raise SystemExit(1)", "SystemExit is for"),
        ("somewhere/a.py", "", "has no place in TIERS"),
        ("cli/a.py", "import medseg.nowhere", "which is no room of medseg"),
    ],
)
def test_a_planted_fault_is_found(path, text, expected):
    assert any(expected in line for line in faults(path, text)), faults(path, text)


def test_what_is_allowed_passes():
    assert faults("inference/a.py", "import torch\nfrom medseg.io.nifti import x\nfrom medseg import __version__") == []
    assert faults("cli/a.py", "import os\nprint(os.environ)\nfrom medseg.training import loop") == []
    assert faults("io/a.py", "import pydicom, nibabel, SimpleITK\nfrom .atomic import atomic_path") == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) is None
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own that finds medseg in this checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)


def test_importing_medseg_is_light():
    """The package and its lower rooms load neither torch nor any reader."""
    code = (
        "import sys, medseg, medseg.labels, medseg.values.plan, medseg.values.detections, medseg.cli.main\n"
        "heavy = {'torch', 'monai', 'SimpleITK', 'nibabel', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = run_python(code, ROOT)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def small_case(tmp_path_factory, oblique_geometry):
    """A folder with image.nii.gz and two label files of one object, and a cohort of one of them."""
    import numpy as np

    from medseg.io import write_instances, write_volume
    from medseg.labels import LabelTable
    from medseg.values.geometry import make_volume
    from medseg.values.instances import InstanceSet

    folder = tmp_path_factory.mktemp("small")
    image = make_volume(np.arange(5 * 7 * 11, dtype=np.int16).reshape(5, 7, 11), oblique_geometry.affine, "image")
    write_volume(folder / "image.nii.gz", image)
    mask = np.zeros((5, 7, 11), bool)
    mask[1:4, 2:5, 3:8] = True
    found = InstanceSet.from_masks([(1, mask)], oblique_geometry, LabelTable.from_names(["liver"]))
    for name in ("reference.seg.nrrd", "prediction.seg.nrrd"):
        write_instances(folder / name, found)
    (folder / "cohort.csv").write_text("image,label\nimage.nii.gz,reference.seg.nrrd\n")
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "image.nii.gz", "--json"],
        ["convert", "image.nii.gz", "out.nrrd"],
        ["export", "reference.seg.nrrd", "out.nii.gz"],
        ["evaluate", "-r", "reference.seg.nrrd", "-p", "prediction.seg.nrrd", "-o", "scores"],
        ["measure", "reference.seg.nrrd", "--image", "image.nii.gz", "-o", "sizes"],
        ["check", ".", "-o", "check.json"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_verbs_that_work_without_torch(small_case, arguments):
    """They do their work and never load torch, which takes seconds."""
    code = (
        "import sys\n"
        "from medseg.cli.main import main\n"
        f"sys.argv = ['medseg', *{arguments}]\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'torchvision', 'monai', 'dask', 'distributed'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = run_python(code, small_case)
    assert done.returncode == 0, done.stderr
