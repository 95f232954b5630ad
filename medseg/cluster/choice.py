"""What `--cluster` says: where the cases of a cohort are worked on. No Dask is imported for it."""

from dataclasses import dataclass
from typing import Literal

from medseg.errors import ConfigError

EXPECTED = "local, local:N (processes on this machine), slurm, slurm:PROFILE, or tcp://HOST:PORT of a Dask scheduler"


@dataclass(frozen=True, kw_only=True)
class ClusterChoice:
    """Where to work.

    Attributes:
        kind: processes on this machine, jobs of Slurm, or the workers of a running Dask scheduler.
        workers: of ``local``; None: as many as fit.
        profile: of ``slurm``: name or file; None: the standard one.
        address: of ``scheduler``.
    """

    kind: Literal["local", "slurm", "scheduler"]
    workers: int | None = None
    profile: str | None = None
    address: str | None = None


def parse_cluster(text: str) -> ClusterChoice:
    """Read what `--cluster` was given.

    Raises:
        ConfigError: anything else than local, local:N, slurm, slurm:PROFILE, tcp://HOST:PORT, tls://HOST:PORT.
    """
    kind, colon, rest = text.partition(":")
    if kind in ("tcp", "tls"):
        host, _, port = rest.removeprefix("//").rpartition(":")
        if rest.startswith("//") and host and port.isdecimal():
            return ClusterChoice(kind="scheduler", address=text)
    elif kind == "local" and (not colon or (rest.isdecimal() and int(rest) > 0)):
        return ClusterChoice(kind="local", workers=int(rest) if rest else None)
    elif kind == "slurm" and (not colon or rest):
        return ClusterChoice(kind="slurm", profile=rest or None)
    raise ConfigError(f"--cluster {text}: expected {EXPECTED}")
