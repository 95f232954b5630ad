"""Cohorts on Dask: what is lost and what is not when a case, a worker or the whole run dies."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster_cases import work
from network_fixtures import TINY, save_run, simple_case, tiny_plan, write_simple_cohort
from safetensors.torch import load_file, save_file

from medseg.cli import main
from medseg.cluster.choice import ClusterChoice, parse_cluster
from medseg.cluster.connect import SETTINGS, STARTS, Cluster, connected, patiently, start_local
from medseg.cluster.run import run_cases
from medseg.data.check import check_cohort
from medseg.data.cohort import find_cohort
from medseg.errors import ClusterError, ConfigError, InputError
from medseg.evaluation import evaluate_files
from medseg.inference.run import WEIGHTS_FILE
from medseg.io import write_volume
from medseg.io.atomic import is_leftover
from medseg.io.failures import Failure, read_failures, write_failures
from medseg.training.cohort import prepare_cohort

pytest.importorskip("distributed", reason="Dask is not installed (the extra cluster)")
STUDIES = 24


@pytest.fixture(scope="module")
def scheduler() -> Iterator[ClusterChoice]:
    """Two workers on this machine that all tests share, reached as any scheduler is."""
    import dask

    with dask.config.set(SETTINGS), start_local(2, None)[0] as started:
        yield ClusterChoice(kind="scheduler", address=started.scheduler_address)


@pytest.fixture
def cluster(scheduler: ClusterChoice) -> Iterator[Cluster]:
    with connected(scheduler) as found:
        assert found is not None
        found.client.wait_for_workers(2)
        yield found


def test_a_slow_start_of_dask_is_tried_again() -> None:
    outcomes: list[type[BaseException] | None] = [AssertionError, AssertionError, None]

    def start() -> str:
        outcome = outcomes.pop(0)
        if outcome:
            raise outcome
        return "started"

    assert patiently(start) == "started" and not outcomes
    outcomes += [AssertionError] * STARTS
    with pytest.raises(AssertionError):
        patiently(start)
    assert not outcomes


# -- what --cluster says ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("local", ClusterChoice(kind="local")),
        ("local:3", ClusterChoice(kind="local", workers=3)),
        ("slurm", ClusterChoice(kind="slurm")),
        ("slurm:a/b:c.yaml", ClusterChoice(kind="slurm", profile="a/b:c.yaml")),
        ("tcp://node7:8786", ClusterChoice(kind="scheduler", address="tcp://node7:8786")),
        ("tls://[::1]:8786", ClusterChoice(kind="scheduler", address="tls://[::1]:8786")),
    ],
)
def test_what_cluster_says(text: str, expected: ClusterChoice) -> None:
    assert parse_cluster(text) == expected


@pytest.mark.parametrize(
    "text", ["", "here", "local:", "local:0", "local:-1", "local:x", "slurm:", "tcp://", "tcp://node", "tcp:node:1"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected local, local:N"):
        parse_cluster(text)


def test_without_a_cluster_cases_run_here_in_their_order() -> None:
    with connected(None) as nothing:
        assert nothing is None
        found = run_cases(work, {"b": "1", "a": "2", "c": "raise"}, nothing, stage="try")
        assert [next(found), next(found)] == [("b", "1"), ("a", "2")]
        with pytest.raises(KeyError):  # a fault of ours keeps its traceback
            next(found)


def test_nobody_answers() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medseg.cluster.connect.ANSWER_S", 0.2)
        with (
            pytest.raises(ClusterError, match=r"tcp://127.0.0.1:9: no Dask scheduler answers"),
            connected(ClusterChoice(kind="scheduler", address="tcp://127.0.0.1:9")),
        ):
            pass


def test_tls_without_certificates() -> None:
    with pytest.raises(ConfigError, match=r"tls://127.0.0.1:9: Dask's settings here name no certificates for TLS"):
        connected(ClusterChoice(kind="scheduler", address="tls://127.0.0.1:9")).__enter__()


def test_one_worker_for_each_gpu() -> None:
    with pytest.raises(ConfigError, match="--cluster local:3: there are 2 GPUs, and each takes one worker"):
        start_local(3, ["0", "1"])


# -- failures.csv ----------------------------------------------------------------------------------------------


def test_failures_come_back_from_their_table(tmp_path: Path) -> None:
    failures = {"a, b": Failure(stage="read", reason='no "slices", 2 of 3'), "c": Failure(stage="worker", reason="x")}
    path = write_failures(tmp_path, failures)
    assert path is not None and path.read_text().splitlines()[0] == "case,stage,reason"
    assert read_failures(tmp_path) == failures
    assert write_failures(tmp_path, {}) is None and not path.exists() and read_failures(tmp_path) == {}


# -- what a worker may do --------------------------------------------------------------------------------------


def test_a_case_that_kills_its_worker_is_named_and_costs_no_other(cluster: Cluster, tmp_path: Path) -> None:
    counts = {name: tmp_path / name for name in ("kill", "raise", "refuse", "first")}
    cases = {name: f"{name} {path}" for name, path in counts.items()} | {f"good {n}": str(n) for n in range(10)}
    found = dict(run_cases(work, cases, cluster, stage="try"))
    lost = "the worker process was lost each time: it crashed, was killed, or took too much memory"
    assert found == {
        "kill": Failure(stage="worker", reason=lost),
        "raise": Failure(stage="try", reason=f"KeyError: 'what' (cluster_cases.py:{_line('raise KeyError')})"),
        "refuse": Failure(stage="try", reason="no slices"),
        "first": "second",
        **{f"good {n}": str(n) for n in range(10)},
    }
    assert {name: path.stat().st_size for name, path in counts.items()} == dict.fromkeys(counts, 2)


def _line(text: str) -> int:
    lines = (Path(__file__).parent / "cluster_cases.py").read_text().splitlines()
    return 1 + next(number for number, line in enumerate(lines) if text in line)


def test_workers_that_cannot_take_cases_are_refused(scheduler: ClusterChoice) -> None:
    lacking = pytest.raises(ConfigError, match=r"no worker of tcp://.* offers the resource GPU=1; start one for each")
    with lacking, connected(scheduler, gpu_ids=[]):
        pass
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distributed.Client.nthreads", lambda self: {"tcp://a:1": 4})
        with pytest.raises(ConfigError, match="have up to 4 threads, expected one"), connected(scheduler):
            pass


# -- medseg predict --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `run` of a model that sees an organ everywhere, and studies as a folder of images `images`."""
    folder = tmp_path_factory.mktemp("cohort")
    quick = {"input.spacing_mm": [4.0, 4.0], "inference.score_threshold": 0.2, "inference.proposals": 5}
    save_run(folder / "run", tiny_plan({**quick, "inference.detections_per_slice": 3}))
    weights = load_file(folder / "run" / WEIGHTS_FILE)
    weights["roi_heads.box_predictor.cls_score.bias"][1] += 4
    weights["roi_heads.mask_predictor.mask_fcn_logits.bias"] += 3
    save_file(weights, folder / "run" / WEIGHTS_FILE)
    for seed in range(STUDIES):
        volume, _ = simple_case(seed, (5, 37, 41))
        write_volume(folder / "images" / f"s{seed:02d}.nii.gz", volume)
    return folder


def command(cohort: Path, out: Path, *options: object) -> list[str]:
    chosen = ("--device", "cpu", "--threads", 1, "--no-report", *options)
    return [str(a) for a in ("medseg", "predict", "-i", cohort / "images", "-m", cohort / "run", "-o", out, *chosen)]


#: Runs `medseg` twice in one process: without a cluster, which must load no Dask, and on one.
TWICE = """
import sys
from medseg.cli import main

def medseg(arguments):
    sys.argv = arguments
    main.app.registered_commands.clear()
    main.app.registered_groups.clear()
    try:
        main.main()
    except SystemExit as stop:
        assert not stop.code, stop.code

medseg({alone})
assert not {{"dask", "distributed", "tornado"}} & set(sys.modules)
medseg({clustered})
"""


@pytest.fixture(scope="module")
def runs(cohort: Path, scheduler: ClusterChoice) -> tuple[Path, Path]:
    """The results of one process without Dask; and of a run on the cluster that was killed after some of the cases."""
    alone, killed = cohort / "alone", cohort / "killed"
    clustered = command(cohort, killed, "--cluster", scheduler.address)
    code = TWICE.format(alone=command(cohort, alone), clustered=clustered)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with (cohort / "printed").open("w") as printed:
        process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=printed, stderr=printed)
    try:
        wait_for(lambda: len(stamps(killed)) >= 6 or process.poll() is not None)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL, (cohort / "printed").read_text()
    return alone, killed


def contents(folder: Path) -> dict[str, bytes | dict]:
    """What is in the files of results, run.json but for times; what a killed worker left half written is none."""
    found: dict[str, bytes | dict] = {}
    for path in sorted(folder.rglob("*")):
        if is_leftover(path):
            continue
        if path.name == "run.json":
            found[str(path.relative_to(folder))] = {
                key: value for key, value in json.loads(path.read_text()).items() if key not in ("date", "seconds")
            }
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def stamps(folder: Path) -> dict[str, int]:
    """Which cases are done, and when."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/run.json")}


def wait_for(condition: Callable[[], bool], seconds: float = 900) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def medseg(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
        monkeypatch.setattr(main.signal, "signal", lambda *_: None)
        monkeypatch.setattr(main.app, "registered_commands", [])
        monkeypatch.setattr(main.app, "registered_groups", [])
        with pytest.raises(SystemExit) as exit_:
            main.main()
        return int(exit_.value.code or 0), *capsys.readouterr()

    return run


def test_a_killed_run_goes_on_loses_a_worker_and_gives_the_same_bytes(
    cohort: Path, runs: tuple[Path, Path], cluster: Cluster, medseg
) -> None:
    """24 studies through 2 workers: the run is killed, goes on, and one of its workers is killed then."""
    alone, out = runs
    # The scheduler forgets the cases of the client that was killed, and each worker ends the one that it is at.
    wait_for(lambda: not cluster.client.run_on_scheduler(_known) and not any(cluster.client.run(_held).values()))
    before = stamps(out)
    assert 6 <= len(before) < STUDIES
    (broken,) = sorted(before)[:1]
    path = out / broken / f"{broken}_measurements.csv"
    path.write_text(path.read_text() + "1\n")  # no longer what run.json says

    def kill_a_worker() -> None:
        wait_for(lambda: len(stamps(out)) >= STUDIES - 5)
        os.kill(next(iter(cluster.client.run(os.getpid).values())), signal.SIGKILL)

    killer = threading.Thread(target=kill_a_worker, daemon=True)
    killer.start()
    on_cluster = command(cohort, out, "--cluster", cluster.client.scheduler.address, "--resume")
    code, printed, err = medseg(*on_cluster)
    killer.join()
    assert code == 0, err
    assert f"{len(before) - 1} of {STUDIES} cases were complete already" in printed
    kept = {name: stamp for name, stamp in stamps(out).items() if name in before}
    assert {name for name in before if kept[name] != before[name]} == {broken}
    assert contents(out) == contents(alone) and len(contents(out)) == 9 * STUDIES
    assert all(json.loads(path.read_text())["instances"] for path in out.glob("*/run.json"))


def _known(dask_scheduler) -> int:
    return len(dask_scheduler.tasks)


def _held(dask_worker) -> int:
    return len(dask_worker.state.tasks)


def test_what_resume_takes_for_complete(cohort: Path, runs: tuple[Path, Path], medseg, tmp_path: Path) -> None:
    """In this process: another model, other options, another study or a lost file, and the case is done again."""
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for name in ("s00", "s01"):
        shutil.copy(cohort / "images" / f"{name}.nii.gz", images)
        shutil.copytree(runs[0] / name, out / name)
    images.joinpath("s02.nii.gz").write_bytes(b"no image")

    def again(*options: object) -> str:
        arguments = command(cohort, out, *options, "--resume")
        arguments[arguments.index("-i") + 1] = str(images)
        code, printed, err = medseg(*arguments)
        assert code == 1 and "warning: 1 of 3 cases failed" in err, err
        assert read_failures(out).keys() == {"s02"} and read_failures(out)["s02"].stage == "read"
        assert str(tmp_path) not in (out / "failures.csv").read_text()
        return printed

    assert "2 of 3 cases were complete already" in again()
    (out / "s00" / "s00.seg.nrrd").unlink()
    shutil.copy(images / "s00.nii.gz", images / "s01.nii.gz")
    assert "complete" not in again()
    (out / "s00" / "s00_dseg.tsv").write_text("changed")
    (out / "s01" / "run.json").write_text("[]")
    assert "complete" not in again()
    assert "complete" not in again("--batch-size", 1)


# -- check, evaluate, prepare ----------------------------------------------------------------------------------


def test_the_other_verbs_find_the_same_on_a_cluster(cluster: Cluster, tmp_path: Path) -> None:
    folder = write_simple_cohort(tmp_path, cases=3, shape=(12, 54, 62))
    image = folder / "img_1.nii.gz"
    whole = image.read_bytes()
    image.write_bytes(whole[:500])
    found = find_cohort(folder)
    report = check_cohort(found, cluster=cluster)
    assert report == check_cohort(found) and [case.name for case in report.cases] == ["img_0", "img_2"]
    assert [line[:12] for line in report.errors] == ["case img_1: "]

    both = [folder / name for name in ("here", "there")]
    scores = [evaluate_files(folder, folder, out, cluster=c) for out, c in zip(both, (None, cluster), strict=True)]
    assert scores[0].summary == scores[1].summary and list(scores[0].cases) == list(scores[1].cases)
    for name in ("per_case.csv", "per_instance.csv", "summary.json"):
        assert (both[0] / name).read_bytes() == (both[1] / name).read_bytes()

    settings = {**TINY, "input.spacing_mm": [3.0, 3.0]}
    with pytest.raises(InputError, match="img_1"):
        prepare_cohort(folder, folder / "none", settings=settings, cluster=cluster)
    image.write_bytes(whole)
    runs = [folder / name for name in ("run", "clustered")]
    for run, workers in zip(runs, (None, cluster), strict=True):
        prepare_cohort(folder, run, settings=settings, cluster=workers)
        assert json.loads((run / "run.json").read_text())["status"] == "prepared"
    first, second = ({path.name: path.read_bytes() for path in (run / "cases").iterdir()} for run in runs)
    assert first == second and len(first) == 3 * 3 + 1
    before = {path: path.stat().st_mtime_ns for path in (runs[1] / "cases").glob("img*")}
    (runs[1] / "cases" / "img_2.json").unlink()
    prepare_cohort(folder, runs[1], resume=True, cluster=cluster)
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path.name[:5] for path in before if after[path] != before[path]} == {"img_2"}
