"""What Dask costs per case of a cohort, against a prediction. Prints JSON.

    python pipelines/benchmark_cluster.py -o cluster.json
    python pipelines/benchmark_cluster.py -m RUN -i STUDY -o cluster.json

Cases that do nothing but return what a prediction returns go through one local worker, in rounds with the same cases in
this process; the difference in processor seconds of both processes (scheduler and client are in this one), and in wall
time, is Dask's. It is compared with one prediction in this process by one thread: of STUDY by the model in RUN, else
of a synthetic patient, as `medseg phantom` draws them, by the small network of the notebooks.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from record_results import ROOT, write_record

from medseg.cluster.choice import ClusterChoice
from medseg.cluster.connect import Cluster, connected
from medseg.cluster.run import run_cases
from medseg.data.cohort import find_cohort
from medseg.inference.cohort import Case, Job, Summary, predict_case
from medseg.inference.passes import PassSettings
from medseg.inference.study import StudyPredictor
from medseg.phantom.cohort import write_cohort
from medseg.training.checkpoint import save_plan, save_weights

SEED = 0
OBJECTS = tuple((number, f"lesion {number}", 0.9, 1.5) for number in range(1, 21))
FILES = tuple(Path(f"/results/case/case_{number}.nii.gz") for number in range(10))
READING = {"resample_uneven": False, "resample_tilt": False, "nifti_form": None, "keep_identity": False}


def nothing(job: Job, case: Case) -> Summary:
    """Return a summary of usual size."""
    return Summary(objects=OBJECTS, files=FILES, seconds={"read": 1.0, "network": 2.0})


def cost_of(work: Callable[[], Any], cluster: Cluster) -> tuple[float, float]:
    """Return processor seconds here and on the workers, and wall seconds."""
    before = sum(cluster.client.run(time.process_time).values())
    start, begun = time.process_time(), time.perf_counter()
    work()
    wall, own = time.perf_counter() - begun, time.process_time() - start
    return own + sum(cluster.client.run(time.process_time).values()) - before, wall


def overhead(cases: int, rounds: int, job: Job) -> dict[str, float]:
    """Return Dask's part per case."""
    studies = {f"case {n}": Case(name=f"case {n}", study=(Path(f"/studies/{n}/image.nii.gz"),)) for n in range(cases)}
    function = partial(nothing, job)
    start = time.perf_counter()
    with connected(ClusterChoice(kind="local", workers=1)) as cluster:
        assert cluster is not None
        up = time.perf_counter() - start
        list(run_cases(function, dict(list(studies.items())[:5]), cluster, stage="warm"))  # imports torch on the worker
        found = []
        for _ in range(rounds):
            there = cost_of(lambda: list(run_cases(function, studies, cluster, stage="empty")), cluster)
            here = cost_of(lambda: list(run_cases(function, studies, None, stage="empty")), cluster)
            found.append([(a - b) / cases for a, b in zip(there, here, strict=True)])
    processor, wall = (statistics.median(values) for values in zip(*found, strict=True))
    return {
        "processor_ms_per_case": round(1000 * processor, 2),
        "wall_ms_per_case": round(1000 * wall, 2),
        "start_of_cluster_s": round(up, 1),
    }


def small_run(folder: Path) -> tuple[Path, Path]:
    """Write a synthetic patient, and the notebooks' network as a run; return the run and the study."""
    sys.path.insert(0, str(ROOT / "notebooks"))
    from small_network import load_small_network

    plan, model = load_small_network()
    run = folder / "run"
    save_plan(run, plan)
    save_weights(run, model.state_dict())
    write_cohort(folder / "cohort", cases=1, seed=SEED)
    return run, find_cohort(folder / "cohort").rows[0].images[0]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", type=Path)
    parser.add_argument("-i", "--input", type=Path)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run, study = (given.model, given.input) if given.model and given.input else small_run(folder)
        predictor = StudyPredictor(run, torch.device("cpu"))
        job = Job(
            models=(run,), model_sha256=tuple(predictor.model_hashes), device="cpu", threads=1, passes=PassSettings(),
            settings=(), out=folder / "results", reading=READING, report=False, profile=False, resume=False,
        )  # fmt: skip
        case = Case(name="case", study=(study,))
        predict_case(predictor, job, case)  # once, for what is loaded at first use
        start = time.process_time()
        done = predict_case(predictor, job, case)
        seconds = time.process_time() - start
        assert isinstance(done, Summary), done
        dask = overhead(given.cases, given.rounds, job)
    figures = {
        "cases": given.cases,
        "rounds": given.rounds,
        "dask": dask,
        "prediction_processor_s": round(seconds, 2),
        "overhead_percent": round(dask["processor_ms_per_case"] / seconds / 10, 3),
    }
    write_record(given.out, figures, seed=SEED)


if __name__ == "__main__":
    main()
