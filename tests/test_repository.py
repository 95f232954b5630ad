"""What the repository says about itself holds: versions, environments, set-up commands, links."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import medseg

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
#: Import name -> distribution, where they differ.
DISTRIBUTIONS = {
    "cc3d": "connected-components-3d",
    "skimage": "scikit-image",
    "yaml": "pyyaml",
    "nrrd": "pynrrd",
    "distributed": "dask",  # dask[distributed]
}
#: Extras whose packages medseg imports itself, where the verb that needs them runs.
IMPORTED_EXTRAS = ("cluster", "pacs")
#: Needed without being imported: decoders that pydicom finds by itself.
PLUGINS = {"python-gdcm", "pylibjpeg"}


def requirements(*extras: str) -> list[Requirement]:
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    return [r for r in map(Requirement, lines) if r.name != PROJECT["name"]]


def constraints() -> dict[str, str]:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[canonicalize_name(name)] = version
    return pins


def test_every_requirement_is_pinned_to_a_version_that_it_allows():
    pins = constraints()
    for requirement in requirements(*PROJECT["optional-dependencies"]):
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} has no version in constraints.txt"
        assert Version(pin) in requirement.specifier, f"{requirement} against {pin}"


def test_constraints_name_no_source_and_no_platform():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^(nvidia|cuda|triton)|^-|\+", text, flags=re.MULTILINE)


def test_what_medseg_imports_is_what_it_requires():
    imported = set()
    for path in (ROOT / "medseg").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add((node.module or "").split(".")[0])
    imported -= {"medseg", *sys.stdlib_module_names}
    names = {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in imported}
    required = {canonicalize_name(r.name) for r in requirements()}
    extra = {canonicalize_name(r.name) for r in requirements(*IMPORTED_EXTRAS)}
    assert names - required - extra == set(), "imported and not in pyproject.toml"
    assert required - names - PLUGINS == set(), "in pyproject.toml and not imported"


def test_environment_fits_the_project():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == PROJECT["name"]
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    *conda, pip = environment["dependencies"]
    names = {re.split(r"[<>=! ]", entry, maxsplit=1)[0]: entry for entry in conda}
    assert set(names) == {"python", "pip"}
    assert SpecifierSet(names["python"].removeprefix("python")) == SpecifierSet(PROJECT["requires-python"])
    assert pip == {"pip": ["-c constraints.txt", "-e .[test]"]}
    assert "test" in PROJECT["optional-dependencies"]


def test_version_is_in_the_changelog():
    assert f"## {medseg.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_ci_runs_the_test_command_of_the_readme():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.search(r"^exec make test ", script.read_text(encoding="utf-8"), flags=re.MULTILINE)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in readme
    assert "make test" in readme


@pytest.mark.parametrize(
    "page", ["README.md", "medseg/README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
)
def test_links_lead_somewhere(page):
    path = ROOT / page
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{page} links {target}"


def readme_commands() -> list[str]:
    """The lines of the README that show a verb: ``medseg info STUDY``."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [re.split(r"\s{3,}", line)[0] for line in re.findall(r"^    (medseg [a-z].*)$", text, flags=re.MULTILINE)]


def test_the_readme_shows_every_verb():
    assert {line.split()[1] for line in readme_commands()} == {
        path.stem.replace("_", "-")
        for path in (ROOT / "medseg" / "cli").glob("*.py")
        if "NAME =" in path.read_text(encoding="utf-8")
    }


@pytest.mark.parametrize("line", readme_commands())
def test_commands_of_the_readme_exist(line):
    verb, *arguments = line.split()[1:]
    module = importlib.import_module(f"medseg.cli.{verb.replace('-', '_')}")
    if hasattr(module, "app"):  # a verb of verbs: `medseg pacs query`
        command = typer.main.get_command(module.app).commands[arguments.pop(0)]
    else:
        app = typer.Typer()
        app.command(verb)(module.run)
        command = typer.main.get_command(app)
    options = {option for parameter in command.params for option in parameter.opts}
    assert {a for a in arguments if a.startswith("-")} <= options
    required = {o for p in command.params if p.required and p.param_type_name == "option" for o in p.opts}
    assert not required or required & set(arguments)


# The set-up, with stand-ins for Python: nothing is installed.

NEW = """#!/bin/sh
# a Python that notes what it is asked for and makes an environment of itself
echo "$*" >> "$LOG"
case "$*" in
  --version) echo "Python 3.11.9" ;;
  *"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  *"-m pip install"*) [ -z "$BROKEN" ] ;;
esac
"""
OLD = f"""#!/bin/sh
case "$1" in
  --version) echo "Python 3.9.2" ;;
  -c) exec {sys.executable} -c "import sys; sys.version_info = (3, 9, 2); $2" ;;
esac
"""
NO_VENV = '#!/bin/sh\ncase "$*" in *ensurepip*) exit 1 ;; esac\n'


@pytest.fixture
def checkout(tmp_path):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make_setup(folder: Path, script: str | None, **environment: str) -> subprocess.CompletedProcess[str]:
    python = folder / "python-stand-in"
    if script is not None:
        python.write_text(script)
        python.chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", f"PYTHON={python}", "setup"],
        cwd=folder,
        env={**kept, "LOG": str(folder / "log"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if not line.startswith("make")]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (None, "no .*python-stand-in found; install Python 3.11 or newer"),
        (OLD, "is Python 3.9.2, medseg needs Python 3.11 or newer"),
        (NO_VENV, "cannot make virtual environments .*apt install python3-venv"),
    ],
)
def test_an_unfit_python_gives_one_line(checkout, script, expected):
    done = make_setup(checkout, script)
    assert done.returncode == 2
    (line,) = errors(done)
    assert re.search(expected, line)
    assert "make PYTHON=" in line
    assert not (checkout / ".venv").exists()


def test_setup_runs_once(checkout):
    first = make_setup(checkout, NEW)
    assert first.returncode == 0, first.stderr
    assert "about 6 GB on disk" in first.stdout
    assert "pip install --quiet --disable-pip-version-check --no-input -c constraints.txt -e .[test]" in (
        checkout / "log"
    ).read_text(encoding="utf-8")
    assert make_setup(checkout, NEW).stdout.startswith("make")  # nothing to be done
    os.utime(checkout / "constraints.txt", (2**31, 2**31))
    again = make_setup(checkout, NEW)
    assert "installing" in again.stdout
    assert "making .venv" not in again.stdout


def test_an_installation_that_broke_off_is_started_afresh(checkout):
    broken = make_setup(checkout, NEW, BROKEN="yes")
    assert broken.returncode == 2
    assert "pip could not install" in errors(broken)[-1]
    assert not (checkout / ".venv" / ".installed").exists()
    again = make_setup(checkout, NEW)
    assert again.returncode == 0
    assert "making .venv" in again.stdout
    assert not (checkout / ".venv" / ".installing").exists()


def test_an_environment_without_a_working_python_is_made_anew(checkout):
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").symlink_to("/nowhere/python3")
    done = make_setup(checkout, NEW.replace("cp", "rm -f .venv/bin/python && cp"))
    assert done.returncode == 0, done.stderr
    assert "making .venv" in done.stdout
