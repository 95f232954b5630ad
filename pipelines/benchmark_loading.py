"""Loading of training samples, measured: memory of preparing cases, and windows a second.

    python pipelines/benchmark_loading.py           # some minutes and 2 GB of disk; --slices 60 for a quick look

Six volumes of 300 x 512 x 512 with 24 objects lie as .nii.gz in a temporary folder. Memory is what a process holds
beside files (RssAnon), sampled every 2 ms, above what it held before. Windows are augmented crops of
512 x 512 with three context planes, through a DataLoader as training has it; processor seconds, of the workers too,
tell what a window costs where the machine is busy. Every step has a process of its own.
Prints JSON, -o FILE keeps it.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark_parts import peak_mib
from record_results import write_record
from torch.utils.data import DataLoader

from medseg.data.cohort import find_cohort
from medseg.data.cohort_plan import plan_cohort
from medseg.data.dataset import SliceDataset
from medseg.io import write_instances, write_volume
from medseg.io.atomic import write_json
from medseg.labels import LabelTable
from medseg.training.checkpoint import save_plan
from medseg.training.prepared import load_cases, prepare_cases
from medseg.values.geometry import make_volume
from medseg.values.instances import Instance, InstanceSet
from medseg.values.plan import Plan, load_plan

SIDE, LESIONS, WINDOWS, SEED = 512, 23, 400, 0
LABELS = LabelTable.from_names(["organ", "lesion"], kinds={"lesion": "ids"})
SETTINGS: dict[str, Any] = {
    "input.spacing_mm": [0.7, 0.7],
    "input.context_mm": [-1.5, 0.0, 1.5],
    "input.windows": [[-160, 240]],
    "training.crop_size": [SIDE, SIDE],
    "training.focus_fraction": 0.0,
    "training.flip_columns": True,
}


def ball(*size: float) -> np.ndarray:
    """Return an ellipsoid that fills an array of a size."""
    at = np.ogrid[tuple(slice(0, int(n)) for n in size)]
    return sum(((a + 0.5) / int(n) - 0.5) ** 2 for a, n in zip(at, size, strict=True)) <= 0.25


def write_cohort(folder: Path, slices: int) -> None:
    """Write six cases of one organ and many lesions, the images flat so that they compress quickly."""
    organ = Instance(id=1, label=1, mask=ball(0.9 * slices, 180, 220), offset=(slices // 20, 150, 150))
    places = np.random.default_rng(SEED).integers((0, 150, 150), (slices // 2, 300, 340), (LESIONS, 3)).tolist()
    lesion = ball(0.5 * slices, 18, 22)
    objects = [organ, *(Instance(id=i + 2, label=2, mask=lesion, offset=tuple(at)) for i, at in enumerate(places))]
    affine = np.array([[0, 0, 0.7, -180.0], [0, 0.7, 0, -170.0], [1.5, 0, 0, -800.0], [0, 0, 0, 1]])
    rows = ["image,label,patient"]
    for number in range(6):  # each of its own values: two equal images would be refused
        array = np.full((slices, SIDE, SIDE), -1000, np.int16)
        array[:, 60:450, 30:480] = 40 + number
        volume = make_volume(array, affine, "benchmark")
        write_volume(folder / f"image_{number}.nii.gz", volume)
        if not number:
            write_instances(folder / "label.seg.nrrd", InstanceSet.build(objects, volume.get_geometry(), LABELS))
        rows.append(f"image_{number}.nii.gz,label.seg.nrrd,p{number}")
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n")
    write_json(folder / "labels.json", LABELS.to_dict())


def peak_of(action: Callable[[], Any]) -> float:
    """Return the most anonymous memory above what was held before, GiB."""
    return round(peak_mib(action, torch.device("cpu")) / 1024, 2)


def prepare(folder: Path, run: Path, count: int) -> dict[str, Any]:
    """Decide the plan of the first cases and prepare them."""
    whole = find_cohort(folder)
    cohort = replace(whole, rows=whole.rows[:count])
    plans: list[Plan] = []
    reading = peak_of(lambda: plans.append(plan_cohort(cohort, SETTINGS)))
    peak = peak_of(lambda: prepare_cases(cohort, [row.name for row in cohort.rows], plans[0], run))
    save_plan(run, plans[0])
    return {"cases": count, "fingerprint_peak_gib": reading, "prepare_peak_gib": peak}


def load(run: Path, windows: int, workers: int) -> dict[str, Any]:
    """Draw augmented windows through a loader; processor seconds are those of the workers and of this process."""
    cases, _ = load_cases(run)
    plan = load_plan(run / "plan.yaml")
    batches = [range(start, start + 4) for start in range(0, windows, 4)]
    dataset = SliceDataset(cases, plan, windows, SEED)
    used, start, objects = processor_seconds(), 0.0, []
    # Forked, as in training; in a spawned process they would be spawned, and import torch while the clock runs.
    context = "fork" if workers else None
    loader = DataLoader(
        dataset, batch_sampler=batches, num_workers=workers, collate_fn=list, multiprocessing_context=context
    )
    for batch in loader:
        start = start or time.perf_counter()  # the clock starts when the workers have begun
        objects += [len(sample.boxes) for sample in batch]
    seconds = time.perf_counter() - start
    return {
        "window": list(batch[0].image.shape),
        "objects_per_window": round(float(np.mean(objects)), 1),
        "workers": workers,
        "windows_per_second": round((windows - 4) / seconds, 1),
        "processor_ms_per_window": round(1000 * (processor_seconds() - used) / windows, 1),
    }


def processor_seconds() -> float:
    """Return the user and system seconds of this process and of its children that have ended."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in found)


def alone(action: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return pool.submit(action, *arguments).result()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("-o", "--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cohort(folder, args.slices)
        preparing = [alone(prepare, folder, folder / f"run{count}", count) for count in (3, 6)]
        loading = [alone(load, folder / "run6", WINDOWS, workers) for workers in (0, 1, 2)]
    figures = {"shape": [args.slices, SIDE, SIDE], "preparing": preparing, "loading": loading}
    write_record(args.out, figures, seed=SEED)
