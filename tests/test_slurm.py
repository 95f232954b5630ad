"""Slurm: profiles, the workers of `--cluster slurm` and the sbatch templates, on a real Slurm on loopback."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from cli_runs import environment
from loopback_slurm import NoSlurm, Slurm, loopback_slurm
from network_fixtures import TINY, write_simple_cohort
from safetensors.torch import load_file

from medseg.cluster.choice import parse_cluster
from medseg.cluster.connect import connected
from medseg.cluster.slurm import find_profile, load_profile
from medseg.errors import ClusterError, ConfigError
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
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="there is no sbatch here"), connected(parse_cluster(f"slurm:{file}")):
        pass


def submit(slurm: Slurm, *words: object) -> str:
    """Submit a template for nodes of one core, and return the number of its job."""
    environ = {**environment(), "MEDSEG_PYTHON": sys.executable}
    return slurm.run("sbatch", "--parsable", "--cpus-per-task=1", *words, environment=environ).strip()


def wait_until(ready: Callable[[], bool], log: Path) -> None:
    end = time.monotonic() + 200
    while not ready():
        assert time.monotonic() < end, log.read_text() if log.exists() else "the job prints nothing"
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
    ended = slurm.wait_for(job, 300)
    told = log.read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), told
    assert told.count("the model so far is saved") == 1 and told.count("back into the queue") == 1, told
    assert "trained 12 steps" in told and "Exception ignored" not in told, told
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train_cohort(cohort, tmp_path / "whole", CPU, settings=SETTINGS, fold="all")
    torch.set_num_threads(threads)
    weights, expected = (load_file(folder / "model.safetensors") for folder in (run, tmp_path / "whole"))
    assert [name for name, value in expected.items() if not torch.equal(weights[name], value)] == []
    assert (run / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()
