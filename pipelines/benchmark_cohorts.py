"""What `medseg check` and `medseg plan` cost: processor seconds and peak memory of each command. Prints JSON.

    python pipelines/benchmark_cohorts.py --data DATA -o cohorts.json

DATA holds `mr_hippocampus` (nnU-Net's layout) and `nuclei` (nnDetection's); six volumes of 300 x 512 x 512 with 24
objects as .nii.gz are drawn (2 GB of disk). User and system seconds of one thread and the peak of resident memory
(VmHWM; what wait4 tells counts the parent's too), imports included.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any

from benchmark_loading import SEED, write_cohort
from record_results import write_record

from medseg.data.cohort import find_cohort
from medseg.values.plan import load_plan

COHORTS = {"mr_hippocampus": "mr_hippocampus, nnU-Net's layout", "nuclei": "nuclei, nnDetection's layout"}

#: Runs medseg and leaves its peak memory, in KiB, in the file named first.
WATCHED = r"""
import atexit, re, sys
from pathlib import Path
from medseg.cli.main import start

target = Path(sys.argv.pop(1))
status = Path("/proc/self/status")
atexit.register(lambda: target.write_text(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]))
start()
"""


def cost(peak: Path, *words: str) -> dict[str, Any]:
    """Run a verb of medseg; return its exit code (1: errors were found), processor seconds and peak memory."""
    command = [sys.executable, "-c", WATCHED, str(peak), *words]
    process = Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode > 1:
        raise SystemExit(f"medseg {words[0]} ended with {process.returncode}; its message stands above")
    peak_mib = int(peak.read_text()) >> 10
    return {"processor_seconds": round(used.ru_utime + used.ru_stime, 1), "peak_mib": peak_mib}


def measure(name: str, cohort: Path, work: Path) -> dict[str, Any]:
    """Return what both verbs cost on one cohort, and what they said."""
    checking = cost(work / "peak", "check", str(cohort), "-o", str(work / "check.json"))
    planning = cost(work / "peak", "plan", str(cohort), "-o", str(work / "plan.yaml"))
    said, plan = json.loads((work / "check.json").read_text(encoding="utf-8")), load_plan(work / "plan.yaml")
    return {
        "cohort": name,
        "cases": len(find_cohort(cohort).rows),
        "check": {**checking, "errors": len(said["errors"]), "warnings": len(said["warnings"])},
        "plan": {**planning, "spacing_mm": plan.input.spacing_mm, "mask_size": plan.model.mask_size},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--slices", type=int, default=300, help="of the volumes that are drawn")
    parser.add_argument("-o", "--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder, "drawn")
        write_cohort(drawn, args.slices)
        where = {name: args.data / key for key, name in COHORTS.items()} | {f"drawn, {args.slices} x 512 x 512": drawn}
        rows = [measure(name, cohort, Path(folder)) for name, cohort in where.items()]
    write_record(args.out, rows, seed=SEED)
