"""Slurm: the sbatch templates and the workers of `--cluster slurm` on a real Slurm on loopback."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_slurm import NoSlurm, Slurm, loopback_slurm


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    try:
        with loopback_slurm() as running:
            yield running
    except NoSlurm as reason:
        pytest.skip(str(reason))


def test_a_job_of_two_nodes_runs(slurm: Slurm, tmp_path: Path) -> None:
    script = tmp_path / "job.sbatch"
    script.write_text("#!/bin/bash\nsrun printenv SLURMD_NODENAME\n")
    job = slurm.run("sbatch", "--parsable", "--nodes=2", f"--output={tmp_path}/out", script).strip()
    assert slurm.wait_for(job, 60)["JobState"] == "COMPLETED"
    assert sorted((tmp_path / "out").read_text().split()) == ["n1", "n2"]
