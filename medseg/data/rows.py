"""Work on the rows of a cohort, here or on a cluster."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from medseg.cluster.connect import Cluster
from medseg.cluster.run import run_cases
from medseg.data.layouts import Cohort
from medseg.io.cohort_table import CohortRow
from medseg.io.failures import Failure

R = TypeVar("R")


def run_rows(
    function: Callable[[Cohort, CohortRow], R | Failure],
    cohort: Cohort,
    rows: Sequence[CohortRow],
    cluster: Cluster | None,
    *,
    stage: str,
) -> Iterator[tuple[str, R | Failure]]:
    """Apply a function to rows of a cohort, see `run_cases`; each travels with the cohort's facts and no other row."""
    alone = partial(function, replace(cohort, rows=(), broken=()))
    return run_cases(alone, {row.name: row for row in rows}, cluster, stage=stage)
