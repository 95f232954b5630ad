"""Slurm: profiles, the workers of `--cluster slurm` and the sbatch templates, on a real Slurm on loopback."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_slurm import NoSlurm, Slurm, loopback_slurm

from medseg.cluster.choice import parse_cluster
from medseg.cluster.connect import connected
from medseg.cluster.slurm import find_profile, load_profile
from medseg.errors import ClusterError, ConfigError

PROFILE = "jobs: 2\ntime: '00:10:00'\nmemory: 2 GiB\ninterface: lo\n"


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    try:
        with loopback_slurm() as running:
            yield running
    except NoSlurm as reason:
        pytest.skip(str(reason))


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
