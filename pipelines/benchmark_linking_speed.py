"""What linking costs: growth over 1,000 to 100,000 detections, and one large volume.

    python pipelines/benchmark_linking_speed.py -o linking

Crowded stacks (90 objects, about 1,000 detections) are set side by side; every tile has detections of its own. The
large volume is 600 x 512 x 512 with 150 objects. Each run is a process of its own: processor seconds on one core, and
the memory that it added to that of its input. Linking includes pasting and reassembly.
"""

import argparse
import multiprocessing
import resource
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from highdicom import VolumeGeometry
from record_results import envelope

from medseg.cli import console
from medseg.io.atomic import write_json
from medseg.linking import link
from medseg.linking.crowd import crowded_stack
from medseg.linking.simulation import DetectorNoise, simulate_detections
from medseg.values.detections import Detections
from medseg.values.linking_plan import LinkingPlan

TILES = ((1, 1, 1), (3, 2, 2), (10, 3, 3))  # about 1,000, 12,000 and 100,000 detections
METHODS = ("flow", "hungarian")
FIELDS = ("boxes", "scores", "labels", "masks")

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("-o", "--out", type=Path, required=True, help="folder for linking_speed.json")
args = parser.parse_args()

SIZE = np.array((40, 144, 144))
TILE = crowded_stack(seed=0, shape=(40, 144, 144), spacing_mm=(2.5, 0.8, 0.8), count=90)
Case = tuple[list[Detections], VolumeGeometry]


def tiled(tiles: tuple[int, int, int]) -> Case:
    """Set tiles side by side, each with detections of its own."""
    parts: dict[int, list[Detections]] = {}
    for seed, tile in enumerate(np.ndindex(tiles)):
        z, row, column = (SIZE * tile).tolist()
        for part in simulate_detections(TILE, DetectorNoise(), seed=seed).detections:
            parts.setdefault(part.slice_index + z, []).append(part.shifted(row, column))
    depth, rows, columns = (SIZE * tiles).tolist()
    joint = [
        Detections(slice_index=z, **{f: np.concatenate([getattr(p, f) for p in ps]) for f in FIELDS})
        for z, ps in parts.items()
    ]
    return joint, VolumeGeometry(TILE.geometry.affine, (depth, rows, columns), "PATIENT")


def measured(case: Case, method: str) -> dict[str, float | str]:
    """Link in a process of its own; return what it cost."""

    def work(answer: Connection) -> None:
        start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = len(link(case[0], case[1], TILE.labels, LinkingPlan.model_validate({"method": method})))
        seconds, peak = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answer.send((round(seconds, 2), round((peak - before) / 2**10), round(peak / 2**10), found))

    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=work, args=(there,))
    child.start()
    seconds, added, peak, found = here.recv()
    child.join()
    detections = sum(len(part) for part in case[0])
    row = {"method": method, "detections": detections, "seconds": seconds, "added_mib": added, "peak_mib": peak}
    console.out.print({**row, "objects": found})
    return {**row, "objects": found}


growth = [measured(case, method) for tiles in TILES for case in [tiled(tiles)] for method in METHODS]
large = crowded_stack(seed=0, shape=(600, 512, 512), spacing_mm=(1.0, 0.8, 0.8), count=150, radius_mm=(8.0, 30.0))
detected = list(simulate_detections(large, DetectorNoise(), seed=0).detections)
volume = measured((detected, large.geometry), "flow")
figures = {"growth": growth, "volume_600x512x512": volume}
write_json(args.out / "linking_speed.json", envelope(figures, seed=0))
console.wrote(args.out / "linking_speed.json")
