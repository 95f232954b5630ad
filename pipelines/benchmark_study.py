"""What each stage of a study costs, and what a scheduler pays per case. Prints JSON, -o FILE keeps it.

    python pipelines/benchmark_study.py -o docs/results/study_cost.json

The study is a synthetic CT of 300 x 512 x 512 as uncompressed DICOM (a coarser one, each voxel cut into 3 x 4 x 4), the
network the small one of the notebooks, at its own pixel size. Eight slices are predicted before: the first study
also loads libraries. All seconds are processor seconds of one thread, so that a busy machine does not count. The
scheduler is timed over cases that do nothing, with one worker: what it pays itself (with the client, in the same
process) is what limits how many cases a second can go out, however many workers there are.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

time.perf_counter = time.process_time  # before medseg is imported: what it times is processor time then

import numpy as np  # noqa: E402
import torch  # noqa: E402
from record_results import ROOT, write_record  # noqa: E402

from medseg.cluster.choice import ClusterChoice  # noqa: E402
from medseg.cluster.connect import connected  # noqa: E402
from medseg.cluster.run import run_cases  # noqa: E402
from medseg.inference.study import StudyPredictor  # noqa: E402
from medseg.io import write_ct_series  # noqa: E402
from medseg.labels import LabelTable  # noqa: E402
from medseg.models.mask_rcnn import MaskRCNN, build_mask_rcnn  # noqa: E402
from medseg.phantom.case import make_phantom  # noqa: E402
from medseg.training.checkpoint import save_plan, save_weights  # noqa: E402
from medseg.values.geometry import make_volume  # noqa: E402
from medseg.values.plan import InputPlan, Plan  # noqa: E402

SHAPE, SPACING_MM, PARTS, SEED = (100, 128, 128), (2.88, 2.8, 2.8), (3, 4, 4), 0
CASES = 500


def unpack_network(run: Path) -> Path:
    """Write the notebooks' network as a training run."""
    sys.path.insert(0, str(ROOT / "notebooks"))
    from small_network import load_small_network

    return write_run(run, *load_small_network())


def published_network(run: Path) -> Path:
    """Write the published network, ResNet-50 at the full 512 x 512, never trained; all of 20 masks in every slice."""
    labels = LabelTable.from_names(["object"])
    plan = Plan(labels=labels, input=InputPlan(spacing_mm=(SPACING_MM[1] / PARTS[1],) * 2)).with_overrides(
        {"inference.proposals": 200, "inference.detections_per_slice": 20, "inference.score_threshold": 0.0}
    )
    torch.manual_seed(SEED)
    return write_run(run, plan, build_mask_rcnn(plan))


def write_run(run: Path, plan: Plan, model: MaskRCNN) -> Path:
    """Write plan and weights as a training does."""
    save_plan(run, plan)
    save_weights(run, model.state_dict())
    return run


def size(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def study_cost(folder: Path) -> dict[str, Any]:
    """Predict one study, report included."""
    torch.set_num_threads(1)
    importing = time.process_time()  # all that this process has done so far
    coarse = make_phantom(seed=SEED, shape=SHAPE, spacing_mm=SPACING_MM).volume
    array = np.kron(coarse.array, np.ones(PARTS, np.int16))
    affine = coarse.affine @ np.diag([*(1 / np.array(PARTS)), 1.0])
    for name, part in (("few", array[:8]), ("whole", array)):
        write_ct_series(folder / name, make_volume(part, affine, name), seed=SEED, description=name)
    start = time.process_time()
    predictor = StudyPredictor(unpack_network(folder / "run"), torch.device("cpu"))
    opening = time.process_time() - start
    for name in ("few", "whole"):
        prediction, saved = predictor.run([folder / name], folder / "results", name)
        start = time.process_time()
        saved.report()
        prediction.seconds["report"] = time.process_time() - start
    few = StudyPredictor(published_network(folder / "published"), torch.device("cpu"))
    published, _ = few.run([folder / "few"], folder / "results", "published")
    return {
        "shape": list(array.shape),
        "objects": len(prediction.instances),
        "seconds": {stage: round(seconds, 2) for stage, seconds in prediction.seconds.items()},
        "resnet50_seconds_per_slice": round(published.seconds["network"] / 8, 2),
        "start_seconds": round(importing + opening, 1),
        "input_bytes": size(folder / "whole"),
        "output_bytes": size(folder / "results" / "whole"),
        "output_bytes_by_file": {
            path.name.removeprefix("whole_"): path.stat().st_size
            for path in sorted((folder / "results" / "whole").iterdir())
        },
    }


def scheduler_cost() -> float:
    """Return the processor seconds per case of scheduler and client."""
    with connected(ClusterChoice(kind="local", workers=1)) as cluster:
        start = time.process_time()
        done = sum(1 for _ in run_cases(str, {str(n): n for n in range(CASES)}, cluster, stage="nothing"))
        assert done == CASES
        return (time.process_time() - start) / CASES


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, help="JSON file to write")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        figures = study_cost(Path(folder))
    figures["scheduler_seconds_per_case"] = round(scheduler_cost(), 5)
    write_record(out, figures, seed=SEED)


if __name__ == "__main__":
    main()
