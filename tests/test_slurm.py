"""Slurm: profiles, the workers of `--cluster slurm` and the sbatch templates, on a real Slurm on loopback."""

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from cli_runs import environment
from loopback_slurm import NoSlurm, Slurm, loopback_slurm
from network_fixtures import TINY, interrupting, save_run, simple_case, tiny_plan, write_simple_cohort
from safetensors.torch import load_file

from medseg.cli import predict
from medseg.cluster.choice import parse_cluster
from medseg.cluster.connect import connected
from medseg.cluster.slurm import _import_cluster, find_profile, load_profile
from medseg.errors import ClusterError, ConfigError
from medseg.io import write_volume
from medseg.io.atomic import is_leftover
from medseg.training.cohort import train_cohort

TEMPLATES = Path(__file__).parents[1] / "pipelines" / "slurm"
CPU = torch.device("cpu")
#: A training of seconds, with a process that prepares samples.
SETTINGS = {
    **TINY,
    "model.fpn_channels": 16,
    "model.finest_stride": 4,
    "model.coarsest_stride": 16,
    "model.anchor_sizes": [[8.0], [14.0], [24.0]],
    "training.crop_size": [32, 32],
    "training.precision": "float32",
    "training.steps": 12,
    "training.workers": 1,
}
PROFILE = "jobs: 2\ntime: '00:10:00'\nmemory: 2 GiB\ninterface: lo\n"


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    try:
        with loopback_slurm() as running:
            yield running
    except NoSlurm as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients."""
    return write_simple_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Results are the same to the bit at one thread count; Slurm's nodes have one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("medseg.cluster.slurm.KEYS", tmp_path / "keys")
    return tmp_path / "keys"


def written(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "own.yaml"
    file.write_text(text)
    return file


def test_profiles_are_files_or_names_in_one_folder(tmp_path: Path) -> None:
    file = written(tmp_path / "profiles", PROFILE)
    assert find_profile(str(file)) == find_profile("own", file.parent) == file
    with pytest.raises(
        ConfigError, match=r"slurm:other: no profile .*other\.yaml; write one .*, or name one of own, or"
    ):
        find_profile("other", file.parent)
    with pytest.raises(ConfigError, match=r"slurm: no profile .*/default\.yaml; write one .*, or name a file$"):
        find_profile(None, tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"slurm:own\.yaml: no such file"):
        find_profile("own.yaml", file.parent)


def test_a_profile_has_what_the_file_says(tmp_path: Path) -> None:
    more = "partition: gpu\ngres: gpu:1\ncores: 8\ndirectives: [--qos=short]\nenvironment: [module load cuda]\n"
    profile = load_profile(written(tmp_path, PROFILE + more))
    assert (profile.jobs, profile.time, profile.memory, profile.partition) == (2, "00:10:00", "2 GiB", "gpu")
    assert (profile.gres, profile.cores, profile.account, profile.logs) == ("gpu:1", 8, None, None)
    assert (profile.directives, profile.environment) == (("--qos=short",), ("module load cuda",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jobs: [", r"own\.yaml: not a readable YAML file"),
        ("- jobs", r"own\.yaml: expected keys and values, such as jobs: 4"),
        ("jobs: 2\ntime: '10'\n", r"own\.yaml: memory is missing; a profile needs jobs, time and memory"),
        (PROFILE + "patrition: gpu\n", r"own\.yaml: unknown key 'patrition'; expected jobs, time, memory, cores, part"),
        (PROFILE.replace("2\n", "0\n", 1), r"own\.yaml: jobs: .* greater than or equal to 1 \(found '0'\)"),
        (
            PROFILE.replace("'00:10:00'", "1 hour"),
            r"own\.yaml: time: expected minutes, HH:MM:SS or .* \(found '1 hour'\)",
        ),
        (PROFILE.replace("2 GiB", "2"), r"own\.yaml: memory: "),
        (PROFILE.replace("2 GiB", "lots"), r"own\.yaml: memory: expected a size such as 16 GiB \(found 'lots'\)"),
        (PROFILE + 'directives: ["--a\\n--b"]\n', r"own\.yaml: directives\.0: expected one line"),
    ],
)
def test_profiles_that_make_no_sense_are_refused_by_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        load_profile(written(tmp_path, text))
    assert "\n" not in str(refused.value)


def test_ctrl_c_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("dask_jobqueue")]:
        monkeypatch.delitem(sys.modules, name)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert _import_cluster().__name__ == "SLURMCluster" and "dask_jobqueue.runner" in sys.modules
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_slurm_refuses_is_told_before_waiting(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    for more, message in (
        ("partition: nowhere\n", "Slurm refuses such a job: Invalid partition name"),
        ("cores: 2\n", "Slurm refuses such a job: Requested node configuration is not available"),
        ("directives: [--gres=gpu:1]\n", "Slurm refuses such a job: "),
    ):
        file = written(tmp_path, PROFILE + more)
        with pytest.raises(ClusterError, match=message), connected(parse_cluster(f"slurm:{file}")):
            pass
    assert slurm.jobs() == []
    file = written(tmp_path, PROFILE.replace("interface: lo", "interface: none0"))
    with (
        pytest.raises(ClusterError, match="no scheduler can be started .*none0"),
        connected(parse_cluster(f"slurm:{file}")),
    ):
        pass
    file = written(tmp_path, PROFILE + "environment: [exit 3]\n")
    with (
        pytest.raises(
            ClusterError, match="all 2 jobs ended before they took a case; give the profile a folder for logs"
        ),
        connected(parse_cluster(f"slurm:{file}")),
    ):
        pass
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="there is no sbatch here"), connected(parse_cluster(f"slurm:{file}")):
        pass


def contents(results: Path) -> dict[str, bytes | dict]:
    """What is in the files of results; of run.json all but times. What a killed job left half written is none."""
    found: dict[str, bytes | dict] = {}
    for path in filter(Path.is_file, sorted(results.rglob("*"))):
        if is_leftover(path):
            continue
        if path.name == "run.json":
            record = json.loads(path.read_text())
            found[str(path.relative_to(results))] = record | {"date": None, "seconds": None}
        else:
            found[str(path.relative_to(results))] = path.read_bytes()
    return found


def test_a_cohort_on_two_jobs_of_which_one_is_killed_is_that_of_one_process(
    slurm: Slurm, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies = 24
    quick = {"input.spacing_mm": [4.0, 4.0], "inference.proposals": 5, "inference.detections_per_slice": 3}
    finding = {"inference.score_threshold": 0.1, "linking.min_score": 0.0, "linking.single_min_score": 0.0}
    run = save_run(tmp_path / "run", tiny_plan({**quick, **finding}))
    for seed in range(studies):
        write_volume(tmp_path / "images" / f"s{seed:02d}.nii.gz", simple_case(seed, (5, 37, 41))[0])

    def predicted(name: str, cluster: str | None) -> dict[str, bytes | dict]:
        predict.run(
            [tmp_path / "images"], [run], tmp_path / name, device="cpu", threads=1, report=False, cluster=cluster
        )
        return contents(tmp_path / name)

    alone = predicted("alone", None)
    logs = tmp_path / "logs"
    file = written(tmp_path, f"{PROFILE}logs: {logs}\n")
    for name, value in {**environment(), "SLURM_CONF": slurm.environment["SLURM_CONF"]}.items():
        monkeypatch.setenv(name, value)
    jobs: list[str] = []

    def kill_a_job() -> None:
        wait_until(lambda: len(list((tmp_path / "jobs").glob("*/run.json"))) >= 2, logs)
        jobs.extend(slurm.jobs())
        slurm.run("scancel", "--signal=KILL", "--full", jobs[0])

    killer = threading.Thread(target=kill_a_job, daemon=True)
    killer.start()
    found = predicted("jobs", f"slurm:{file}")
    killer.join()
    assert any("tls://" in log.read_text() for log in logs.glob("*.err"))
    (kept,) = keys.iterdir()  # until this process ends
    assert kept.stat().st_mode & 0o777 == 0o700 and (kept / "key.pem").stat().st_mode & 0o777 == 0o600
    assert len(jobs) == 2 and len({log.stem for log in logs.glob("*.out")}) >= 2
    assert found == alone and sum(name.endswith("run.json") for name in found) == studies
    assert any(record["instances"] for name, record in found.items() if isinstance(record, dict))
    wait_until(lambda: slurm.jobs() == [], logs)


def submit(slurm: Slurm, *words: object) -> str:
    """Submit a template for nodes of one core, and return the number of its job."""
    environ = {**environment(), "MEDSEG_PYTHON": sys.executable}
    return slurm.run("sbatch", "--parsable", "--cpus-per-task=1", *words, environment=environ).strip()


def wait_until(ready: Callable[[], bool], log: Path) -> None:
    end = time.monotonic() + 600
    while not ready():
        assert time.monotonic() < end, log.read_text() if log.is_file() else "waited in vain"
        time.sleep(0.02)


def steps_in(run: Path) -> int:
    return max(0, (run / "metrics.csv").read_bytes().count(b"\n") - 1) if (run / "metrics.csv").exists() else 0


def test_a_training_that_meets_its_time_limit_goes_back_into_the_queue_and_on(
    slurm: Slurm, cohort: Path, tmp_path: Path
) -> None:
    """Slurm's warning once, in the middle: the weights are those of a training that was never stopped, to the bit."""
    run, log = tmp_path / "run", tmp_path / "log"
    words = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    job = submit(slurm, f"--output={log}", TEMPLATES / "train.sbatch", cohort, run, "--fold", "all", *words)
    wait_until(lambda: steps_in(run) >= 3, log)
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    ended = slurm.wait_for(job, 600)
    told = log.read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), told
    assert told.count("the model so far is saved") == 1 and told.count("back into the queue") == 1, told
    assert "trained 12 steps" in told and "Exception ignored" not in told, told
    train_cohort(cohort, tmp_path / "whole", CPU, settings=SETTINGS, fold="all")
    weights, expected = (load_file(folder / "model.safetensors") for folder in (run, tmp_path / "whole"))
    assert [name for name, value in expected.items() if not torch.equal(weights[name], value)] == []
    assert (run / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()


def test_two_nodes_go_on_with_what_one_process_began(slurm: Slurm, cohort: Path, tmp_path: Path) -> None:
    """To what one process comes to, rounding aside."""
    settings = {**SETTINGS, "training.steps": 4, "training.workers": 0}
    train_cohort(cohort, tmp_path / "one", CPU, settings=settings, fold="all")
    run, log = tmp_path / "two", tmp_path / "log"
    assert train_cohort(cohort, run, CPU, settings=settings, fold="all", track=interrupting(2)).steps == 2
    job = submit(slurm, "--nodes=2", f"--output={log}", TEMPLATES / "train.sbatch", cohort, run)
    ended = slurm.wait_for(job, 600)
    told = log.read_text()
    assert (ended["JobState"], ended["NodeList"]) == ("COMPLETED", "n[1-2]") and told.count("trained 4 steps") == 1, (
        told
    )
    weights, expected = (load_file(folder / "model.safetensors") for folder in (run, tmp_path / "one"))
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=2e-3)
    rows = [(folder / "metrics.csv").read_text().splitlines() for folder in (run, tmp_path / "one")]
    assert rows[0][:3] == rows[1][:3] and len(rows[0]) == 5
    for ours, theirs in zip(*(row[3:] for row in rows), strict=True):
        assert [float(v) for v in ours.split(",")] == pytest.approx(
            [float(v) for v in theirs.split(",")], rel=2e-3, abs=1e-4
        )


def test_templates_of_prediction_share_out_studies(slurm: Slurm, tmp_path: Path) -> None:
    """With a stand-in for Python that writes down what it is asked and given: every study once, a failure is told."""
    asked, stand_in, studies = tmp_path / "asked", tmp_path / "python", [f"/data/{name} x" for name in "abcde"]
    stand_in.write_text(
        f'#!/bin/bash\necho "$*" >>{asked}\n[[ $5 != *.txt ]] || {{ cat "$5" >>{asked}; [ "$9" = OUT/4 ]; }}\n'
    )
    stand_in.chmod(0o755)
    (tmp_path / "studies.txt").write_text("\n\n".join(studies))
    environ = {"MEDSEG_PYTHON": str(stand_in), "MEDSEG_PROFILE": "gpu"}
    small = ("--parsable", "--cpus-per-task=1", "--mem=100", f"--output={tmp_path}/log-%a")
    words = [TEMPLATES / "predict_array.sbatch", tmp_path / "studies.txt", "RUN", "OUT", "--flips"]
    job = slurm.run("sbatch", *small, "--array=3,4", *words, environment=environ).strip()
    assert slurm.wait_for(f"{job}_3", 300)["JobState"] == "FAILED"
    assert slurm.wait_for(f"{job}_4", 300)["JobState"] == "COMPLETED"
    lines = asked.read_text().splitlines()
    assert sorted(lines)[2:] == studies
    for task, share in (("3", studies[::2]), ("4", studies[1::2])):
        (number,) = (n for n, line in enumerate(lines) if line.endswith(f".txt -m RUN -o OUT/{task} --resume --flips"))
        assert lines[number].startswith("-m medseg predict -i ") and set(share) <= set(lines)
    asked.unlink()
    job = slurm.run("sbatch", *small, "--array=3,5", *words, environment=environ).strip()
    assert {slurm.wait_for(f"{job}_{task}", 300)["ExitCode"] for task in (3, 5)} == {"2:0"}  # a gap
    assert not asked.exists() and "expected numbers without gaps" in (tmp_path / "log-5").read_text()
    job = slurm.run("sbatch", *small, TEMPLATES / "predict.sbatch", "COHORT", *words[2:], environment=environ).strip()
    assert slurm.wait_for(job, 300)["JobState"] == "COMPLETED"
    assert asked.read_text() == "-m medseg predict -i COHORT -m RUN -o OUT --cluster slurm:gpu --resume --flips\n"


def test_the_profile_to_copy_can_be_read() -> None:
    assert load_profile(TEMPLATES / "profile.yaml").gres == "gpu:1"
