"""A real Slurm on loopback: two nodes of one processor each, with everything it needs in a folder of its own."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

#: What has to be there; Debian has them in munge, slurmctld, slurmd and slurm-client (all of slurm-wlm).
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "sinfo", "squeue")
NODES = ("n1", "n2")
#: Slurm 22.05 without cgroups, accounting and MPI. Each node is a slurmd with a port of its own. A job that went back
#: into the queue waits until its credentials expire, two minutes by default.
CONFIGURATION = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,requeue_delay=0
KillWait=5
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=8000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=8000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class NoSlurm(Exception):
    """There is no Slurm here; the message says why."""


@dataclass(frozen=True)
class Slurm:
    """A Slurm that runs.

    Attributes:
        folder: its configuration, state and logs.
    """

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What makes sbatch, srun and their kind talk to it."""
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, *command: object, environment: Mapping[str, str] | None = None) -> str:
        """Return what a command prints; it has to succeed."""
        words = [str(word) for word in command]
        done = subprocess.run(
            words, env=self.environment | dict(environment or {}), capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def jobs(self) -> list[str]:
        """Return the numbers of the jobs that wait, run or end."""
        return self.run("squeue", "--noheader", "--format=%i").split()

    def wait_for(self, job: str, seconds: float) -> dict[str, str]:
        """Wait until a job has ended, and return what `scontrol show job` says of it."""
        end = time.monotonic() + seconds
        while True:
            shown = dict(word.split("=", 1) for word in self.run("scontrol", "show", "job", job).split() if "=" in word)
            if shown["JobState"] not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED"):
                return shown
            assert time.monotonic() < end, (shown, self.logs())
            time.sleep(0.2)

    def logs(self) -> str:
        """Return the ends of its logs."""
        return "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in sorted(self.folder.glob("*.log")))


@contextmanager
def loopback_slurm() -> Iterator[Slurm]:
    """Start a Slurm as this user, give it, and stop all of it.

    Raises:
        NoSlurm: it is not installed, or does not start here.
    """
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing:
        raise NoSlurm(f"{', '.join(missing)} not installed (Debian: apt-get install slurm-wlm munge)")
    # However this process ends, the daemons end with it.
    ending = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    # Not pytest's folder: a socket's path has at most 107 characters, and munged wants parents of safe permissions.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    started: list[subprocess.Popen[bytes]] = []
    slurm = Slurm(folder)
    try:
        _configure(folder)
        for name, command in _daemons(folder).items():
            with (folder / f"{name}.log").open("ab") as log:
                started.append(
                    subprocess.Popen(
                        [*ending, *command], env=slurm.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                    )
                )
            if name == "munged":
                _wait_until(lambda: (folder / "munge.socket").exists(), slurm, started)
        _wait_until(lambda: _idle(slurm) == len(NODES), slurm, started)
        yield slurm
    finally:
        _stop(slurm, started)
        shutil.rmtree(folder, ignore_errors=True)


def _configure(folder: Path) -> None:
    for name in ("state", *NODES):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise NoSlurm(f"Slurm does not start for user {os.getuid()}, who has no name here") from None
    host = socket.gethostname().split(".")[0]
    text = CONFIGURATION.format(folder=folder, host=host, user=user, ports=_free_ports(3))
    (folder / "slurm.conf").write_text(text)


def _daemons(folder: Path) -> dict[str, list[str]]:
    """Return what is to be started, in this order, all of it in the foreground."""
    files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "seed-file": "munged.seed"}
    munge = [f"--{option}={folder / file}" for option, file in files.items()]
    return {
        "munged": ["munged", "--foreground", "--force", *munge],
        "slurmctld": ["slurmctld", "-D", "-c"],
        **{f"slurmd-{node}": ["slurmd", "-D", "-N", node] for node in NODES},
    }


def _free_ports(count: int) -> list[int]:
    """Return free ports of loopback; all are held until the last is found, so they differ."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in held]
    for each in held:
        each.close()
    return ports


def _idle(slurm: Slurm) -> int:
    """Return how many nodes are ready for jobs; 0 while the controller does not answer."""
    command = ["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"]
    done = subprocess.run(command, env=slurm.environment, capture_output=True, text=True, timeout=60)
    return len(done.stdout.split()) if done.returncode == 0 else 0


def _wait_until(ready: Callable[[], bool], slurm: Slurm, started: list[subprocess.Popen[bytes]]) -> None:
    end = time.monotonic() + 60
    while not ready():
        ended = [" ".join(daemon.args) for daemon in started if daemon.poll() is not None]
        if ended or time.monotonic() > end:
            reason = f"ended: {ended[0]}" if ended else "not ready after 60 s"
            raise NoSlurm(f"Slurm does not start here ({reason}): {slurm.logs()}")
        time.sleep(0.1)


def _stop(slurm: Slurm, started: list[subprocess.Popen[bytes]]) -> None:
    """End the jobs, then the daemons in reverse order."""
    if len(started) > 1:  # without a controller there are no jobs, and squeue would wait for it
        with suppress(AssertionError, subprocess.TimeoutExpired):
            for job in slurm.jobs():
                slurm.run("scancel", "--full", job)
            end = time.monotonic() + 30
            while slurm.jobs() and time.monotonic() < end:
                time.sleep(0.1)
    for daemon in reversed(started):
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(timeout=15)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
