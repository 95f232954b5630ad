"""Reading and writing, measured: against SimpleITK in the same run, and in memory. Prints JSON, -o FILE keeps it.

    python pipelines/benchmark_io.py            # some minutes and 1.5 GB of disk; --slices 100 for a quick look

The series is CT-like, uncompressed, 512 x 512, written to a temporary folder; each reader has read it once before the
clock starts. Every step has a process of its own. Seconds are processor seconds, user and system, so that a busy
machine does not count. Memory is the peak (VmHWM) above what was held before the step.
"""

import argparse
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from record_results import write_record

from medseg.io import read_volume, write_ct_series
from medseg.io.dicom_context import read_dicom_context
from medseg.io.dicom_seg import read_dicom_seg
from medseg.io.dicom_seg_writer import write_dicom_seg
from medseg.labels import LabelTable
from medseg.values.geometry import make_volume
from medseg.values.instances import InstanceSet

GIB = 2**30
SIDE, OBJECTS, REPEATS = 512, 30, 5
ADDRESS_SPACE_GIB = 4


def peak_bytes() -> int:
    """Return the most memory that this process held since `forget_peak`."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def forget_peak() -> int:
    """Set the peak back (Linux, proc(5): clear_refs) and return what is held now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def make(folder: Path, slices: int) -> None:
    """Write a series: something smooth in air, with noise."""
    y, x = np.indices((SIDE, SIDE)) / SIDE - 0.5
    body = np.where(x**2 + 1.6 * y**2 < 0.16, 40 + 120 * np.sin(9 * x) * np.cos(7 * y), -1000)
    noise = np.random.default_rng(0).normal(0, 12, (8, SIDE, SIDE))
    array = np.empty((slices, SIDE, SIDE), np.int16)
    for index, plane in enumerate(array):
        plane[:] = np.rint(body + noise[index % 8]).clip(-1024)
    affine = np.array([[0, 0, 0.7, -180.0], [0, 0.7, 0, -170.0], [1.5, 0, 0, -800.0], [0, 0, 0, 1]])
    write_ct_series(folder, make_volume(array, affine, "benchmark"), seed=0, description="benchmark")


def read_speed(folder: Path) -> dict[str, Any]:
    """Time medseg and SimpleITK in turns on one series."""
    import SimpleITK as sitk

    def simpleitk() -> np.ndarray:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        return sitk.GetArrayFromImage(reader.Execute())

    def ours() -> np.ndarray:
        return read_volume(folder).array

    assert np.array_equal(ours(), simpleitk())
    seconds: dict[str, list[float]] = {"medseg": [], "simpleitk": []}
    for _ in range(REPEATS):
        for name, read in (("medseg", ours), ("simpleitk", simpleitk)):
            start = time.process_time()
            read()
            seconds[name].append(round(time.process_time() - start, 3))
    ratio = np.median(seconds["simpleitk"]) / np.median(seconds["medseg"])
    return {"seconds": seconds, "times_as_fast_as_simpleitk": round(float(ratio), 2)}


def read_memory(folder: Path) -> dict[str, Any]:
    """Measure the peak of reading in units of the array returned."""
    read_volume(next(folder.iterdir()))  # what is imported late is imported now
    base = forget_peak()
    array = read_volume(folder).array
    over = (peak_bytes() - base) / array.nbytes
    return {"array_gib": round(array.nbytes / GIB, 3), "peak_over_array": round(over, 2)}


def convert(folder: Path) -> dict[str, Any]:
    """Run `medseg convert` in a bounded address space."""

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_GIB * GIB, ADDRESS_SPACE_GIB * GIB))

    command = [sys.executable, "-m", "medseg", "convert", str(folder), str(folder.parent / "out.nii.gz")]
    done = subprocess.run(command, preexec_fn=bound, capture_output=True, text=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = {"address_space_gib": ADDRESS_SPACE_GIB, "exit_code": done.returncode, "error": done.stderr.strip()}
    return report | {"seconds": round(used.ru_utime + used.ru_stime, 1), "peak_gib": round(used.ru_maxrss / 2**20, 2)}


def segmentation(folder: Path) -> dict[str, Any]:
    """Write and read a DICOM SEG of overlapping ellipsoids, and compare."""
    context = read_dicom_context(folder)
    shape, rng = np.array(context.geometry.spatial_shape), np.random.default_rng(1)
    masks = []
    for _ in range(OBJECTS):
        radii, centre = rng.uniform((0.1, 0.06, 0.06), (0.25, 0.15, 0.15)) * shape, rng.uniform(0.3, 0.7, 3) * shape
        a, b, c = (((np.arange(n) - m) / r) ** 2 for n, m, r in zip(shape, centre, radii, strict=True))
        masks.append((1, a[:, None, None] + b[:, None] + c < 1))
    labels = LabelTable.from_names(["lesion"], kinds={"lesion": "ids"})
    objects = InstanceSet.from_masks(masks, context.geometry, labels)
    masks.clear()
    path, report = folder.parent / "objects.dcm", {"objects": OBJECTS, "voxels": sum(o.voxels for o in objects)}
    base, start = forget_peak(), time.process_time()
    write_dicom_seg(path, objects, context)
    report |= {"write_seconds": time.process_time() - start, "write_gib": (peak_bytes() - base) / GIB}
    base, start = forget_peak(), time.process_time()
    found = read_dicom_seg(path, context).instances
    report |= {"read_seconds": time.process_time() - start, "read_gib": (peak_bytes() - base) / GIB}
    same = all(np.array_equal(found.full_mask(o.id), objects.full_mask(o.id)) for o in objects)
    return {k: round(v, 2) for k, v in report.items()} | {"identical": same, "file_mib": path.stat().st_size >> 20}


def alone(step: Callable[..., Any], *arguments: object) -> Any:
    """Run a step in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(step, *arguments).result()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=1000, help="of the long series; the short one has three tenths")
    parser.add_argument("-o", "--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    many = args.slices
    few = many * 3 // 10
    with tempfile.TemporaryDirectory(prefix="medseg-benchmark-") as temporary:
        long, short = Path(temporary, "long", "series"), Path(temporary, "short", "series")
        alone(make, short, few), alone(make, long, many)
        results = {f"read_{few}_slices": alone(read_speed, short), f"read_{many}_slices": alone(read_memory, long)}
        results |= {f"convert_{many}_slices": alone(convert, long), f"seg_{few}_slices": alone(segmentation, short)}
    write_record(args.out, results, seed=0)
