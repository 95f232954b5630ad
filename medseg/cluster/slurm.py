"""Workers as jobs of Slurm, by dask-jobqueue."""

from typing import TYPE_CHECKING

from medseg.errors import ConfigError

if TYPE_CHECKING:
    from distributed.deploy.cluster import Cluster


def start_slurm(profile: str | None, *, gpu: bool) -> "tuple[Cluster, int]":
    """Start a scheduler here and ask Slurm for the jobs of a profile.

    Called with Dask's settings for cohorts in force (`medseg.cluster.connect.SETTINGS`); the caller closes what it
    gets, and with it the jobs.

    Args:
        profile: name or YAML file; None: the standard profile.
        gpu: each worker process has one GPU and offers the resource GPU=1; all have one thread.

    Returns:
        The cluster, and how many worker processes it will have once all jobs run.

    Raises:
        ConfigError: no such profile, or what it says makes no sense.
        ClusterError: Slurm is not there, or refuses.
    """
    raise ConfigError("--cluster slurm: is not built in yet; use local:N, or tcp://HOST:PORT of a Dask scheduler")
