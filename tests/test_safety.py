"""Whatever happens to a process or a disk: the old file or the new one, one clear line, and the input untouched.

The command line runs in processes of its own here, which are killed, starved of disk and memory, and raced.
"""

import ast
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from cli_runs import environment, run_all
from dicom_fixtures import write_series
from highdicom import Volume, VolumeGeometry

from medseg.errors import InputError
from medseg.io import read_instances, read_volume, write_ct_series, write_instances, write_volume
from medseg.io.atomic import atomic_folder, check_apart, is_leftover, write_csv, write_json, write_text
from medseg.io.dicom import list_dicom
from medseg.labels import LabelTable
from medseg.values.geometry import make_volume
from medseg.values.instances import InstanceSet

KILLS = 16


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "medseg", *map(str, arguments)]


def python(code: str, *arguments: object) -> str:
    """Run code in a fresh Python (which may fork: it has no threads), and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True, text=True, env=environment(), timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def snapshot(folder: Path) -> Mapping[str, tuple[int, str]]:
    """Return time of change and content of every file under a folder."""
    return {str(p): (p.stat().st_mtime_ns, digest(p)) for p in sorted(folder.rglob("*")) if p.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def noise(seed: int, shape: tuple[int, int, int], geometry: VolumeGeometry) -> Volume:
    """Return a volume that gzip cannot shrink much."""
    array = np.random.default_rng(seed).integers(-1024, 3000, shape).astype(np.int16)
    return make_volume(array, geometry.affine, "noise")


# kill -9 ----------------------------------------------------------------------------------------------------------

KILL = """
    import os, random, signal, sys, time
    from contextlib import suppress
    from pathlib import Path
    import medseg.io.volumes, nibabel  # once, and not in every fork
    from medseg.cli import convert, main

    kills, target, *sources = int(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]

    def start(source):
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.argv = ["medseg", "convert", source, str(target)]
            try:
                main.main()
            except SystemExit as stop:
                os._exit(stop.code)
            os._exit(99)
        return pid

    seconds, whole = [], set()
    for source in sources:
        begin = time.monotonic()
        assert os.waitpid(start(source), 0)[1] == 0
        seconds.append(time.monotonic() - begin)
        whole.add(target.read_bytes())
    assert len(whole) == 2
    random.seed(7)
    unfinished = changed = 0
    for kill in range(kills):
        before = target.read_bytes()
        pid = start(sources[kill % 2])
        if kill % 2:  # any moment
            time.sleep(random.uniform(0, 1.2 * max(seconds)))
        else:  # a moment while it writes
            while not any(path != target for path in target.parent.iterdir()) and os.waitpid(pid, os.WNOHANG) == (0, 0):
                time.sleep(0.0005)
            time.sleep(random.uniform(0, 0.4 * min(seconds)))
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        assert target.read_bytes() in whole, "half a file"
        changed += target.read_bytes() != before
        left = [path for path in target.parent.iterdir() if path != target]
        unfinished += len(left)
        for path in left:
            assert path.name.startswith(".tmp-"), path
            path.unlink()
    print(unfinished, changed)
"""


@pytest.mark.parametrize("name", ["ct.nii.gz", "ct.nrrd"])
def test_kill_9_at_any_moment_leaves_the_old_file_or_the_new_one(
    name: str, tmp_path: Path, oblique_geometry: VolumeGeometry
) -> None:
    for seed in range(2):
        write_volume(tmp_path / f"in_{seed}.nii", noise(seed, (16, 130, 140), oblique_geometry))
    (tmp_path / "out").mkdir()
    sources = [tmp_path / "in_0.nii", tmp_path / "in_1.nii"]
    unfinished, changed = map(int, python(KILL, KILLS, tmp_path / "out" / name, *sources).split())
    assert unfinished >= 3, "the kills came too early or too late to prove anything"
    assert changed >= 1


def test_the_command_line_killed_while_it_writes(tmp_path: Path, oblique_geometry: VolumeGeometry) -> None:
    write_volume(tmp_path / "in.nii", noise(1, (40, 200, 200), oblique_geometry))
    target = tmp_path / "out" / "ct.nii.gz"
    write_text(target, "the old file")
    process = subprocess.Popen(command("convert", tmp_path / "in.nii", target), env=environment(),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    wait_for_temporary(target.parent, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert target.read_text() == "the old file"
    (left,) = [path for path in target.parent.iterdir() if path != target]
    assert is_leftover(left)


def wait_for_temporary(folder: Path, process: subprocess.Popen) -> Path:
    """Return the temporary file once the process has begun to write it."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for path in folder.glob(".tmp-*"):
            if path.stat().st_size:
                return path
        time.sleep(0.001)
    raise AssertionError(f"no temporary file was seen; the process returned {process.poll()}")


def test_what_killed_runs_left_is_no_result(tmp_path: Path, oblique_geometry: VolumeGeometry) -> None:
    hu = write_series(tmp_path / "study", oblique_geometry)
    for name in ("IM0000.dcm", "IM0001.dcm"):
        shutil.copy(tmp_path / "study" / name, tmp_path / "study" / f".tmp-0123abcd-{name}")
    half = (tmp_path / "study" / "IM0002.dcm").read_bytes()[:700]
    (tmp_path / "study" / ".tmp-0123abce-x.dcm").write_bytes(half)
    write_series(tmp_path / "study" / ".tmp-0123abcf-dicom", oblique_geometry, series="1.2.3.4")
    np.testing.assert_array_equal(read_volume(tmp_path / "study").array, hu)
    image, aside = list_dicom(tmp_path / "study")
    assert len(image.files) == 5 and len(aside.files) == 8
    assert aside.problem == "unfinished output of a killed run"


def test_a_name_of_any_length_can_be_written(tmp_path: Path) -> None:
    for name in ("x" * 251 + ".txt", "ä" * 125 + ".txt"):
        write_text(tmp_path / name, "whole")
        assert (tmp_path / name).read_text() == "whole"
    assert len(names(tmp_path)) == 2


def test_leftovers_are_known_by_their_names() -> None:
    assert is_leftover(Path(".tmp-0a1b2c3d-ct.nii.gz")) and is_leftover(Path(".tmp-0a1b2c3d-dicom/0001.dcm"))
    for name in (".tmp", ".tmp-1", "tmp-0a1b2c3d-x", ".hidden", "a/.tmp-xyz-b.dcm"):
        assert not is_leftover(Path(name))


# the file system says no --------------------------------------------------------------------------------------------


@pytest.fixture
def small_case(tmp_path: Path, oblique_geometry: VolumeGeometry) -> Path:
    """A folder with an image, objects on it, and what an earlier run wrote."""
    folder = tmp_path / "in"
    volume = noise(3, (9, 130, 140), oblique_geometry)
    write_volume(folder / "ct.nii", volume)
    mask = np.zeros((9, 130, 140), bool)
    mask[2:7, 10:60, 20:70] = True
    masks = [(1, mask), (1, np.roll(mask, 30, 2)), (2, np.roll(mask, 40, 1))]
    write_instances(folder / "objects.seg.nrrd", InstanceSet.from_masks(masks, volume, LabelTable.from_names("ab")))
    return folder


def writing_runs(folder: Path) -> tuple[list[Path], list[tuple[object, ...]]]:
    """Return the files that verbs would write into a folder called out, and the runs that do."""
    out = folder.parent / "out"
    files = [out / name for name in ("ct.nii.gz", "ct.nrrd", "ct.mha", "summary.json")]
    runs: list[tuple[object, ...]] = [("convert", folder / "ct.nii", file) for file in files[:-1]]
    objects = folder / "objects.seg.nrrd"
    return files, [*runs, ("evaluate", "-r", objects, "-p", objects, "-o", out)]


def test_a_read_only_folder_is_one_line(small_case: Path) -> None:
    files, runs = writing_runs(small_case)
    out = files[0].parent
    out.mkdir()
    out.chmod(0o555)
    prefix = []
    if os.geteuid() == 0:  # root may write anywhere, unless it gives up its capabilities
        if shutil.which("setpriv") is None:
            pytest.skip("running as root without setpriv: nothing is read-only")
        prefix = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    for run in run_all(runs, prefix=prefix):
        line = run.refusal()
        assert str(out) in line and "cannot be written" in line
    assert names(out) == []


def test_a_file_size_limit_is_one_line_and_nothing_half_written(small_case: Path) -> None:
    files, runs = writing_runs(small_case)
    for file in files:
        write_text(file, "the old file")
    for file, run in zip(files, run_all(runs, file_size=300), strict=True):
        assert "File too large" in run.refusal() and (file.name in run.err or "per_" in run.err)
        assert file.read_text() == "the old file"
    assert names(files[0].parent) == sorted(file.name for file in files)


def test_a_full_disk_is_one_line_and_nothing_half_written(small_case: Path, tmp_path: Path) -> None:
    files, runs = writing_runs(small_case)
    out = files[0].parent
    out.mkdir()
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    mount = f"mount -t tmpfs -o size=64k none {out}"
    if shutil.which("unshare") is None or subprocess.run([*unshare, "sh", "-c", mount], check=False).returncode:
        pytest.skip("no small tmpfs can be mounted here (unshare --mount refused): no full disk to write to")
    # Only the processes of this prefix see the mount, so that what is left on it has to be copied from there.
    script = f"""
        {mount} && for f in {" ".join(map(str, files))}; do echo old > $f; done
        head -c 40000 /dev/zero > {out}/fill; "$@"; code=$?; cp -a {out} {tmp_path}/seen; exit $code"""
    for file, run in zip(files[:-1], run_all(runs[:-1], prefix=[*unshare, "sh", "-c", script, "sh"]), strict=True):
        assert "No space left on device" in run.refusal() and file.name in run.err
    assert names(tmp_path / "seen") == sorted(["fill", *(file.name for file in files)])
    assert all((tmp_path / "seen" / file.name).read_text() == "old\n" for file in files)


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.seg.nrrd", "a.nii.gz"])
def test_an_error_while_writing_leaves_the_old_file(
    name: str, small_case: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = read_instances(small_case / "objects.seg.nrrd")
    target = small_case / name
    write_text(target, "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(InputError, match=rf"{name}: cannot be written \(No space left on device\)"):
        if name.endswith("json"):
            write_json(target, {"a": 1})
        elif name.endswith("csv"):
            write_csv(target, ["a"], [{"a": 1}])
        else:
            write_instances(target, objects)
    assert target.read_text() == "old" and not list(small_case.glob(".*"))


def test_a_rename_is_flushed_with_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    monkeypatch.setattr("os.fsync", lambda handle: flushed.append(os.readlink(f"/proc/self/fd/{handle}")))
    write_text(tmp_path / "a" / "b.txt", "x")
    assert Path(flushed[0]).name.startswith(".tmp-") and flushed[1:] == [str(tmp_path / "a")]
    flushed.clear()
    with atomic_folder(tmp_path / "folder") as temporary:
        write_text(temporary / "b.txt", "x")
    assert flushed[-1] == str(tmp_path) and flushed[-2] == str(temporary)


# the process is told to stop, or nobody listens ---------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_ends_the_work_orderly(
    number: signal.Signals, code: int, tmp_path: Path, oblique_geometry: VolumeGeometry
) -> None:
    write_volume(tmp_path / "in.nii", noise(1, (60, 300, 300), oblique_geometry))
    target = tmp_path / "out" / "ct.nii.gz"
    write_text(target, "the old file")
    process = subprocess.Popen(command("convert", tmp_path / "in.nii", target), env=environment(), text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip
    wait_for_temporary(target.parent, process)
    process.send_signal(number)
    assert (process.communicate(timeout=60)[1], process.returncode) == ("interrupted\n", code)
    assert names(target.parent) == ["ct.nii.gz"] and target.read_text() == "the old file"


def test_nohup_keeps_a_run_alive(tmp_path: Path, oblique_geometry: VolumeGeometry) -> None:
    write_volume(tmp_path / "in.nii", noise(1, (60, 200, 200), oblique_geometry))
    target = tmp_path / "out" / "ct.nii.gz"
    target.parent.mkdir()
    process = subprocess.Popen(
        ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *command("convert", tmp_path / "in.nii", target)],
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for_temporary(target.parent, process)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0 and names(target.parent) == ["ct.nii.gz"]


@pytest.mark.parametrize("redirection", ["| head -1", "<&- >&- 2>&-", "2>/dev/full", ">/dev/full"])
def test_nobody_reads_the_output(redirection: str, tmp_path: Path, oblique_geometry: VolumeGeometry) -> None:
    write_series(tmp_path / "in", oblique_geometry)
    done = subprocess.run(
        ["bash", "-c", f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}', "-", *command("info", tmp_path / "in")],
        capture_output=True, text=True, env=environment(), timeout=60,
    )  # fmt: skip
    if redirection == ">/dev/full":
        assert done.returncode == 2
        assert done.stderr == "error: standard output: No space left on device; check disk and permissions\n"
    else:
        assert (done.returncode, done.stderr) == (0, "")


def test_the_work_is_done_though_nobody_reads_of_it(tmp_path: Path, oblique_geometry: VolumeGeometry) -> None:
    hu = write_series(tmp_path / "in", oblique_geometry)
    for number, redirection in enumerate(["| true", ">&-"]):
        target = tmp_path / "out" / f"{number}.nii.gz"
        script = f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}'
        done = subprocess.run(["bash", "-c", script, "-", *command("convert", tmp_path / "in", target)],
                              capture_output=True, text=True, env=environment(), timeout=60)  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        np.testing.assert_array_equal(read_volume(target).array, hu)


# the input -----------------------------------------------------------------------------------------------------------


def test_the_input_is_never_touched(tmp_path: Path, small_case: Path, oblique_geometry: VolumeGeometry) -> None:
    write_series(small_case / "dicom", oblique_geometry)
    shutil.make_archive(str(small_case / "dicom"), "zip", small_case / "dicom")
    before = snapshot(small_case)
    for path in [small_case, *small_case.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    objects, out = small_case / "objects.seg.nrrd", tmp_path / "out"
    runs = [
        ("info", small_case / "dicom"),
        ("info", small_case / "dicom.zip"),
        ("convert", small_case / "dicom", out / "a.nii.gz"),
        ("convert", small_case / "dicom.zip", out / "b.nrrd"),
        ("convert", small_case / "ct.nii", out / "c.mha"),
        ("export", objects, out / "d.nii.gz", "--image", small_case / "ct.nii"),
    ]
    prefix = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if shutil.which("setpriv") else []
    for run in run_all(runs, prefix=prefix):
        assert run.code == 0, run
    assert snapshot(small_case) == before
    assert not (tmp_path / "in" / "out").exists()


def test_an_output_that_is_the_input_or_among_it_is_refused(small_case: Path, oblique_geometry: VolumeGeometry) -> None:
    write_series(small_case / "dicom", oblique_geometry)
    (small_case.parent / "link.nii").symlink_to(small_case / "ct.nii")
    os.link(small_case / "ct.nii", small_case.parent / "hard.nii")
    before = snapshot(small_case.parent)
    (same, link, hard, inside, deep) = run_all(
        [
            ("convert", small_case / "ct.nii", small_case / "ct.nii"),
            ("convert", small_case / "ct.nii", small_case.parent / "link.nii"),
            ("convert", small_case.parent / "hard.nii", small_case / ".." / "in" / "ct.nii"),
            ("convert", small_case / "dicom", small_case / "dicom" / "ct.nii.gz"),
            ("convert", small_case / "dicom", small_case / "dicom" / "new" / "ct.nii.gz"),
        ]
    )
    for run in (same, link, hard):
        assert "is the input itself, which is never changed" in run.refusal()
    for run in (inside, deep):
        assert "lies in the input folder" in run.refusal()
    assert snapshot(small_case.parent) == before
    check_apart(small_case / "other.nii.gz", small_case / "ct.nii")  # beside it is fine
    check_apart(small_case / "dicom.nii.gz", small_case / "dicom")
    with pytest.raises(InputError, match="lies in the input folder"):
        check_apart(small_case / "dicom", small_case / "dicom")


# the same bytes, whole files -----------------------------------------------------------------------------------------


def test_same_input_same_bytes(small_case: Path, tmp_path: Path) -> None:
    series = write_ct_series(small_case / "series", read_volume(small_case / "ct.nii"), seed=1, description="same")
    objects, digests = small_case / "objects.seg.nrrd", []
    for out in (tmp_path / "first", tmp_path / "second" / "elsewhere"):
        runs = [
            *(("convert", series, out / f"ct{suffix}") for suffix in (".nii", ".nii.gz", ".nrrd", ".mha")),
            *(("export", objects, out / f"a{s}", "--image", series) for s in (".seg.nrrd", ".nii.gz", ".dcm")),
            ("export", objects, out / "b.nii.gz", "--format", "nifti4d"),
            ("export", objects, out / "c.nii.gz", "--format", "semantic", "--tables"),
            ("export", objects, out / "d.dcm", "--format", "rtstruct", "--image", series),
            ("evaluate", "-r", objects, "-p", objects, "-o", out),
        ]
        for run in run_all(runs):  # seconds apart, so that a time in a file would show
            assert run.code == 0, run
        digests.append({path.name: digest(path) for path in out.iterdir()})
    assert digests[0] == digests[1] and len(digests[0]) >= 17


RACE = """
    import os, sys
    from pathlib import Path
    from medseg.io import read_instances, write_instances
    from medseg.io.atomic import write_json
    from medseg.values.instances import InstanceSet

    source, target = map(Path, sys.argv[1:])
    objects = read_instances(source)
    sets = [objects, InstanceSet.from_masks([(1, objects.full_mask(1))], objects.geometry, objects.labels)]

    def write(number, folder):
        write_instances(folder / "a.seg.nrrd", sets[number])
        write_instances(folder / "a.nii.gz", sets[number], overlap="later")
        write_json(folder / "b.json", [number] * 2000)

    whole = {}
    for number in range(2):
        write(number, target.parent / "alone")
        for path in (target.parent / "alone").iterdir():
            whole.setdefault(target / path.name, set()).add(path.read_bytes())
    children = []
    for number in range(2):
        if (pid := os.fork()) == 0:
            for turn in range(25):
                write(number, target)
            os._exit(0)
        children.append(pid)
    while children:
        for path, known in whole.items():
            if path.exists():
                assert path.read_bytes() in known, path
        done, status = os.waitpid(-1, os.WNOHANG)
        assert status == 0
        if done:
            children.remove(done)
    print("raced")
"""


def test_two_processes_in_one_folder_leave_whole_files(tmp_path: Path, small_case: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert python(RACE, small_case / "objects.seg.nrrd", out) == "raced\n"
    assert names(out) == ["a.json", "a.nii.gz", "a.seg.nrrd", "b.json"]


# memory --------------------------------------------------------------------------------------------------------------

MEMORY = """
    import resource, sys
    from pathlib import Path
    import nibabel
    from medseg.io import read_volume, write_volume

    def of_this_process(key):
        return int(Path("/proc/self/status").read_text().split(key)[1].split()[0]) * 1024

    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    write_volume(target, read_volume(next(folder.iterdir())))  # what is imported late is imported now
    Path("/proc/self/clear_refs").write_text("5")
    base = of_this_process("VmHWM:")
    size = of_this_process("VmSize:")
    volume = read_volume(folder)
    print((of_this_process("VmHWM:") - base) / volume.array.nbytes)
    bound = size + int(1.6 * volume.array.nbytes)
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    write_volume(target, volume)
"""


def test_reading_and_writing_take_little_more_than_the_voxels(tmp_path: Path, oblique_geometry: VolumeGeometry) -> None:
    array = np.zeros((64, 512, 512), np.int16)
    array[::2] = 700
    series = write_ct_series(tmp_path / "in", make_volume(array, oblique_geometry.affine, "x"), seed=0, description="x")
    for name in ("a.nii.gz", "a.nrrd"):
        assert float(python(MEMORY, series, tmp_path / name)) <= 1.6
        np.testing.assert_array_equal(read_volume(tmp_path / name).array, array)


# no code from files --------------------------------------------------------------------------------------------------

#: Modules that run code from files, or are built on one that does.
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
#: Calls that do unless told otherwise: name -> the keyword that makes them safe (None: nothing does).
UNSAFE_CALLS = {
    "np.load": "allow_pickle", "numpy.load": "allow_pickle", "torch.load": "weights_only", "torch.save": None,
    "yaml.load": None, "yaml.unsafe_load": None, "yaml.full_load": None, "pd.read_pickle": None,
    "eval": None, "exec": None, "os.system": None, "CheckpointLoader": None, "PersistentDataset": None,
}  # fmt: skip
MONAI_LOADERS = ("CheckpointLoader", "PersistentDataset")
SAFE_VALUE = {"allow_pickle": False, "weights_only": True}


def unpickled(text: str) -> list[str]:
    """Return what in a source file could run code out of a data file."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in UNPICKLERS]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNPICKLERS:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            name = next((loader for loader in MONAI_LOADERS if name.endswith(loader)), name)
            if name in UNSAFE_CALLS:
                given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
                keyword = UNSAFE_CALLS[name]
                if keyword is None or given.get(keyword) is not SAFE_VALUE[keyword]:
                    found.append(ast.unparse(node))
    return found


def test_nothing_is_unpickled(repository: Path) -> None:
    files = [path for folder in ("medseg", "pipelines") for path in (repository / folder).rglob("*.py")]
    assert len(files) > 50
    assert {str(p): f for p in files if (f := unpickled(p.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from joblib import load", "np.load(f)", "np.load(f, allow_pickle=True)", "torch.load(f)",
     "torch.load(f, weights_only=False)", "yaml.load(f)", "monai.handlers.CheckpointLoader()", "eval(x)"],
)  # fmt: skip
def test_the_search_for_pickles_finds_them(line: str) -> None:
    assert unpickled(line)
    safe = "np.load(f, allow_pickle=False)\nmodel.eval()\nyaml.safe_load(f)\ntorch.load(f, weights_only=True)"
    assert not unpickled(safe)


def test_a_process_ends_without_taking_the_interpreter_apart() -> None:
    """That takes torch seconds. What was registered for the end is done, and the exit code is the same."""
    code = (
        "import atexit, os, sys\n"
        "from medseg.cli.main import start\n"
        "class Last:\n"
        "    def __del__(self):\n"
        "        os.write(1, b'taken apart')\n"
        "last = Last()\n"
        "atexit.register(os.write, 1, b'registered')\n"
        "sys.argv = ['medseg', 'no-such-verb']\n"
        "start()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "registered") and "no-such-verb" in done.stderr
