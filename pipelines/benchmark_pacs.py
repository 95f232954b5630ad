"""What a series on its way to and from an archive costs this side, in processor time.

    MEDSEG_PACS_USER=U MEDSEG_PACS_PASSWORD=P python pipelines/benchmark_pacs.py --url URL -o docs/results/pacs.json

Stores a synthetic CT of 512 x 512 slices one by one, asks whether it is there, lists and fetches it (which checks it),
and reads it. The archive keeps the series: take one for tests (on loopback, so that no network is measured).
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from record_results import write_record

from medseg.cli.pacs_options import open_archive
from medseg.io import read_volume, write_ct_series
from medseg.io.dicom_transfer import check_series, find_objects
from medseg.pacs.search import find_one_series, list_instances
from medseg.pacs.transfer import fetch_series, send_object, verify_sent
from medseg.values.geometry import make_volume

SHAPE = (512, 512)


def make_series(folder: Path, slices: int, seed: int) -> None:
    """Write noise as a CT series: its voxels do not matter here, their number does."""
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]]) * [2.5, 0.75, 0.75]
    voxels = rng.integers(-1000, 1000, (slices, *SHAPE), dtype=np.int16)
    write_ct_series(folder, make_volume(voxels, affine, "noise"), seed=seed, description="benchmark of medseg pacs")


def measured(act: Callable[[], Any], slices: int) -> tuple[Any, float]:
    """Return what a step returns, and the milliseconds of this processor that it takes a slice."""
    before = time.process_time()
    result = act()
    return result, round(1000 * (time.process_time() - before) / slices, 3)


def main() -> None:
    """Measure each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="DICOMweb services of an archive for tests")
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    n = arguments.slices
    archive = open_archive(arguments.url, None, None, None, None, 60.0, 4)
    with tempfile.TemporaryDirectory() as name:
        folder, fetched = Path(name) / "images", Path(name) / "fetched"
        make_series(folder, n, arguments.seed)
        files = find_objects([folder])
        size = sum(file.stat().st_size for file in files)
        uid = next(iter(files.values())).series
        figures: dict[str, float] = {}
        sent, figures["store"] = measured(lambda: [send_object(archive, file) for file in files], n)
        _, figures["verify"] = measured(lambda: verify_sent(archive, sent), n)
        series = find_one_series(archive, uid)
        _, figures["list"] = measured(lambda: list_instances(archive, series), n)
        _, figures["fetch"] = measured(lambda: fetch_series(archive, series, fetched), n)
        _, figures["of that the check"] = measured(lambda: check_series(fetched, any_geometry=False), n)
        _, figures["read"] = measured(lambda: read_volume(fetched), n)
    shown = {"slices": n, "shape": SHAPE, "mib": round(size / 2**20, 1), "processor_ms_per_slice": figures}
    write_record(arguments.out, shown, seed=arguments.seed)


if __name__ == "__main__":
    main()
