"""How long a large case's report takes, how much memory, and how large the page is.

    python pipelines/benchmark_report.py -o report

A CT of 600 slices of 512 x 512 with noise as scanners have it, and 100 objects of 8 to 160 mm, some in each other; the
report as `medseg predict` writes it, measuring included. Prints processor seconds, wall time, the peak of resident
memory (the image itself is 300 MiB of it) and the size of the page; --json FILE keeps them.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
from highdicom import Volume
from record_results import write_record

from medseg.labels import LabelTable
from medseg.reporting.case_report import describe_case
from medseg.values.geometry import make_volume
from medseg.values.instances import Instance, InstanceSet

SHAPE = (600, 512, 512)
SPACING_MM = (1.0, 0.8, 0.8)
OBJECTS = 100
LABELS = LabelTable.from_names(["organ", "lesion"], kinds={"organ": "ids", "lesion": "ids"})


def ellipsoid(radii_mm: np.ndarray) -> np.ndarray:
    """Return the voxels of an ellipsoid in its own box."""
    half = np.ceil(radii_mm / SPACING_MM).astype(int)
    z, y, x = (np.arange(-h, h + 1) * s / r for h, s, r in zip(half, SPACING_MM, radii_mm, strict=True))
    return z[:, None, None] ** 2 + y[:, None] ** 2 + x**2 <= 1


def large_case(seed: int) -> tuple[Volume, InstanceSet]:
    """Return a body with noise, and objects in it, every fifth of them large."""
    rng = np.random.default_rng(seed)
    rows, columns = (np.arange(n) - n / 2 for n in SHAPE[1:])
    body = (rows[:, None] / 190) ** 2 + (columns / 235) ** 2 <= 1
    array = np.empty(SHAPE, np.int16)
    for z in range(SHAPE[0]):
        array[z] = np.where(body, 40, -1000) + rng.normal(0, 22, SHAPE[1:])
    instances = []
    for number in range(OBJECTS):
        radii = rng.uniform(25, 80, 3) if number % 5 == 0 else rng.uniform(4, 15, 3)
        mask = ellipsoid(radii)
        low, high = np.array([0, 110, 100]), np.array(SHAPE) - [0, 110, 100]
        offset = rng.integers(low, np.maximum(high - mask.shape, low + 1))
        offset = np.minimum(offset, np.array(SHAPE) - mask.shape)
        instance = Instance(
            id=1, label=1 if number % 5 == 0 else 2, mask=mask, score=float(rng.uniform(0.3, 1)),
            offset=(int(offset[0]), int(offset[1]), int(offset[2])),
        )  # fmt: skip
        array[instance.window][mask] += 60
        instances.append(instance)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = SPACING_MM
    affine[:, 3] = (-205.0, -205.0, -300.0, 1.0)
    volume = make_volume(array, affine, "large case")
    return volume, InstanceSet.build(instances, volume, LABELS)


def main() -> None:
    """Make the case, write its report, and print what that took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for report.html")
    parser.add_argument("--json", type=Path, help="JSON file to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    volume, instances = large_case(arguments.seed)
    before, wall = time.process_time(), time.perf_counter()
    case = describe_case("large", volume, instances, (-160.0, 240.0))
    measured = time.process_time() - before
    page = case.save(arguments.out / "report.html")
    figures = {
        "shape": SHAPE,
        "objects": len(instances),
        "processor_seconds": round(time.process_time() - before, 1),
        "of_which_measuring": round(measured, 1),
        "wall_seconds": round(time.perf_counter() - wall, 1),
        "peak_resident_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "page_mb": round(page.stat().st_size / 1e6, 2),
    }
    write_record(arguments.json, figures, seed=arguments.seed)


if __name__ == "__main__":
    main()
