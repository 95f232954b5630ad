"""Workers as jobs of Slurm, by dask-jobqueue: one job, one worker process, one case at a time."""

import logging
import re
import shutil
import signal
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from weakref import finalize

import yaml
from pydantic import AfterValidator, Field, ValidationError

from medseg.cluster.connect import SETTINGS, patiently
from medseg.errors import ClusterError, ConfigError
from medseg.progress import Note, unheard
from medseg.values.section import Section

if TYPE_CHECKING:
    from dask_jobqueue import SLURMCluster
    from distributed import Security

#: Where a profile that is not named as a file is looked for, as NAME.yaml.
PROFILES = Path("~/.config/medseg/slurm")
#: Where the jobs find the keys by which they and the scheduler know each other, until this program ends.
KEYS = Path("~/.cache/medseg/slurm")
ROLES = ("client", "scheduler", "worker")
#: The profile of `--cluster slurm`.
STANDARD = "default"
#: Seconds between looks whether jobs ended, at their time limit for instance, and are to be replaced; and after which a
#: worker that is not heard of any more is taken for ended. One that crashed begins again in its job within that time.
REPLACE_AFTER_S = 30.0
LOST_AFTER_S = 60.0
#: Seconds between looks while the first job is waited for.
LOOK_AGAIN_S = 1.0
#: Seconds that Slurm has to answer.
ANSWER_S = 60.0


def _one_line(text: str) -> str:
    if not text.strip() or len(text.splitlines()) > 1:
        raise ValueError("expected one line")
    return text


def _slurm_time(text: str) -> str:
    """Accept the formats of `sbatch --time`."""
    if not re.fullmatch(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}", text):
        raise ValueError("expected minutes, HH:MM:SS or D-HH:MM:SS, in quotation marks")
    return text


def _memory(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*(\.\d+)? ?[MGT]i?B", text):
        raise ValueError("expected a size such as 16 GiB")
    return text


Line = Annotated[str, AfterValidator(_one_line)]


class Profile(Section):
    """What to ask Slurm for; read from YAML."""

    #: How many jobs, each with one worker process.
    jobs: int = Field(ge=1)
    #: Time limit of a job. A case that it cuts off runs again in another job, once.
    time: Annotated[str, AfterValidator(_slurm_time)]
    #: Memory of a job; a worker that takes more is ended.
    memory: Annotated[str, AfterValidator(_memory)]
    #: Cores of a job.
    cores: int = Field(1, ge=1)
    #: None: Slurm's default.
    partition: Line | None = None
    account: Line | None = None
    #: Such as gpu:1. One GPU for each job: its only process uses one.
    gres: Line | None = None
    #: More options of sbatch, such as --qos=short.
    directives: tuple[Line, ...] = ()
    #: Lines of bash that a job begins with, such as module load.
    environment: tuple[Line, ...] = ()
    #: Python of the jobs; None: the one that runs this.
    python: Line | None = None
    #: Network interface by which scheduler and workers reach each other; None: that of the default route.
    interface: Line | None = None
    #: Folder for what jobs print, seen by all nodes; None: it is thrown away.
    logs: Path | None = None


def find_profile(given: str | None, folder: Path = PROFILES) -> Path:
    """Return the file of a profile.

    Args:
        given: a file (with a slash, or a name that ends with .yaml or .yml), or the name of one in ``folder``; None:
            `STANDARD`.
        folder: where names are looked for.

    Raises:
        ConfigError: there is none.
    """
    name = given or STANDARD
    is_file = "/" in name or name.endswith((".yaml", ".yml"))
    file = (Path(name) if is_file else folder / f"{name}.yaml").expanduser()
    if file.is_file():
        return file
    if is_file:
        raise ConfigError(f"--cluster slurm:{name}: no such file; expected a profile in YAML (docs/cluster.md)")
    known = sorted(other.stem for other in folder.expanduser().glob("*.yaml"))
    raise ConfigError(
        f"--cluster slurm{f':{given}' if given else ''}: no profile {file}; write one (docs/cluster.md), or name "
        + (f"one of {', '.join(known)}, or a file" if known else "a file")
    )


def load_profile(file: Path) -> Profile:
    """Read a profile.

    Raises:
        ConfigError: not YAML, an unknown key, or a value that makes no sense; the message names file and key.
    """
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: not a readable YAML file ({str(error).splitlines()[0]})") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{file}: expected keys and values, such as jobs: 4 (docs/cluster.md)")
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise ConfigError(f"{file}: {key} is missing; a profile needs jobs, time and memory") from None
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{file}: unknown key {key!r}; expected {', '.join(Profile.model_fields)}") from None
        found, problem = str(first["input"])[:80], first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{file}: {key}: {problem} (found {found!r})") from None


def start_slurm(profile: str | None, *, gpu: bool, note: Note = unheard) -> "tuple[SLURMCluster, int]":
    """Start a scheduler here and ask Slurm for the jobs of a profile.

    Called with Dask's settings for cohorts in force (`medseg.cluster.connect.SETTINGS`); the caller closes what it
    gets, and with it the jobs. A job that ended, at its time limit for instance, is replaced.

    Args:
        profile: name or YAML file; None: the standard profile.
        gpu: each worker process has one GPU and offers the resource GPU=1; all have one thread.
        note: hears that the first job is being waited for.

    Returns:
        The cluster, with one worker at least, and how many it will have once all jobs run.

    Raises:
        ConfigError: no such profile, or what it says makes no sense.
        ClusterError: Slurm is not there, or refuses, or all jobs ended before they became workers.
    """
    import dask

    file = find_profile(profile)
    asked = load_profile(file)
    if not shutil.which("sbatch"):
        raise ClusterError("--cluster slurm: there is no sbatch here; start it where jobs can be submitted")
    try:
        cluster = _cluster(asked, gpu)
    except (OSError, ValueError, RuntimeError, ImportError) as error:  # an interface that is not there, for one
        raise ClusterError(f"{file}: no scheduler can be started ({' '.join(str(error).split())})") from None
    try:
        _ask_slurm(file, cluster.job_script())
        dask.config.set({"distributed.deploy.lost-worker-timeout": f"{LOST_AFTER_S:g}s"})
        cluster.scale(jobs=asked.jobs)
        note(f"waiting for a job of Slurm ({asked.jobs} asked for)")
        _wait_for_one(cluster, file, asked)
    except BaseException:
        cluster.close()
        raise
    cluster.adapt(minimum_jobs=asked.jobs, maximum_jobs=asked.jobs, interval=f"{REPLACE_AFTER_S:g}s")
    return cluster, asked.jobs


def _wait_for_one(cluster: "SLURMCluster", file: Path, asked: Profile) -> None:
    """Wait until a worker is there.

    Raises:
        ClusterError: no job is left that could become one.
    """
    while not cluster.scheduler_info["workers"]:
        time.sleep(LOOK_AGAIN_S)
        jobs = [job.job_id for job in cluster.workers.values() if job.job_id]
        if len(jobs) == asked.jobs and not _any_left(jobs) and not cluster.scheduler_info["workers"]:
            hint = f"{asked.logs} says why" if asked.logs else "give the profile a folder for logs to see why"
            raise ClusterError(f"{file}: all {asked.jobs} jobs ended before they took a case; {hint}")


def _any_left(jobs: list[str]) -> bool:
    """Return whether any of the jobs waits or runs; True where Slurm does not answer."""
    command = ["squeue", "--noheader", "--format=%i", "--jobs=" + ",".join(jobs)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except subprocess.TimeoutExpired:
        return True
    return bool(done.stdout.strip()) if not done.returncode else "Invalid job id" not in done.stderr


def _cluster(asked: Profile, gpu: bool) -> "SLURMCluster":
    """Return a scheduler that has not asked for jobs yet."""
    from dask.config import serialize

    settings = serialize({key: value for key, value in SETTINGS.items() if key.startswith("distributed.")})
    begin = [f"export OMP_NUM_THREADS={asked.cores}", f"export DASK_INTERNAL_INHERIT_CONFIG={settings}"]
    directives = [f"--gres={asked.gres}"] if asked.gres else []
    if asked.logs is None:
        directives.append("--output=/dev/null")
    security, keys = _make_keys()
    start = partial(
        _import_cluster(),
        queue=asked.partition,
        account=asked.account,
        walltime=asked.time,
        # One thread of Dask's takes one case; the cores are for the threads of the network.
        cores=1,
        processes=1,
        job_cpu=asked.cores,
        memory=asked.memory,
        job_extra_directives=[*directives, *asked.directives],
        job_script_prologue=[*begin, *asked.environment],
        worker_extra_args=["--no-dashboard", *(["--resources", "GPU=1"] if gpu else [])],
        python=asked.python,
        interface=asked.interface,
        security=security,
        log_directory=str(asked.logs.expanduser()) if asked.logs else None,
        job_name="medseg",
        scheduler_options={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
        silence_logs=logging.CRITICAL,
    )
    cluster = patiently(start)
    finalize(cluster, shutil.rmtree, keys, ignore_errors=True)  # at the end of the process if not before
    return cluster


def _import_cluster() -> "type[SLURMCluster]":
    """Import dask-jobqueue, but not the handler of Ctrl-C that comes with it: it would end the program with code 0."""
    before = signal.getsignal(signal.SIGINT)
    from dask_jobqueue import SLURMCluster

    signal.signal(signal.SIGINT, before)
    return SLURMCluster


def _make_keys() -> "tuple[Security, Path]":
    """Return keys for this run, and the folder of their files.

    Without them, others in the network could have the workers run what they like.
    """
    from distributed import Security

    KEYS.expanduser().mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=KEYS.expanduser()))
    made = Security.temporary()
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    certificate.write_text(made.tls_worker_cert)
    key.touch(mode=0o600)
    key.write_text(made.tls_worker_key)
    files = {f"tls_{role}_cert": str(certificate) for role in ROLES} | {f"tls_{role}_key": str(key) for role in ROLES}
    return Security(require_encryption=True, tls_ca_file=str(certificate), **files), folder


def _ask_slurm(file: Path, script: str) -> None:
    """Ask Slurm whether it would take a job, which it does not start.

    Raises:
        ClusterError: it would not, or does not answer.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as job:
        job.write(script)
        job.flush()
        try:
            done = subprocess.run(
                ["sbatch", "--test-only", job.name], capture_output=True, text=True, timeout=ANSWER_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(f"--cluster slurm: Slurm does not answer within {ANSWER_S:g} s") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ClusterError(f"{file}: Slurm refuses such a job: {reason.removeprefix('allocation failure: ')}")
