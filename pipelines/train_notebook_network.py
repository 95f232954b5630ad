"""Train the small network that the notebooks look into, on synthetic CTs, and keep it in their folder.

    python pipelines/train_notebook_network.py -o notebook-network        # about 3 minutes of one core

writes a run folder, and `notebooks/small_network.safetensors` from it: a Mask R-CNN with a ResNet-18 without its last
stage, on 16 phantoms of seed 9. The notebooks look at phantoms of other seeds. The file holds weights of six bits
(notebooks/small_network.py), so that it may lie in the repository; to do more than look, train a network of your own.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

from medseg.cli import console
from medseg.cli.compute import set_up
from medseg.cli.demo import SETTINGS
from medseg.inference.run import load_run
from medseg.phantom import write_cohort
from medseg.training.cohort import train_cohort

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
sys.path.insert(0, str(NOTEBOOKS))

from small_network import FILE, save_small_network  # noqa: E402

CASES, SEED = 16, 9
#: Those of `medseg demo` but for a pyramid from stride 4 on and one plane of context each side: fewer, larger pictures
#: to show.
SMALLER = {
    "input.context_mm": [-3.0, 0.0, 3.0],
    "model.finest_stride": 4,
    "model.stem": "conv7",
    "model.coarsest_stride": 16,
    "model.anchor_sizes": [[6, 10], [16, 24], [36, 60]],
    "model.box_head_channels": 128,
    "training.steps": 900,
    "training.checkpoint_every": 200,
    "training.crop_size": [96, 160],
    "training.learning_rate": 0.002,
    "training.workers": 0,
    "training.seed": 0,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True, help="new folder for the cohort and the run")
    parser.add_argument("--to", type=Path, default=FILE, help="the file to write")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=SMALLER["training.steps"])
    parser.add_argument("--cases", type=int, default=CASES)
    args = parser.parse_args()
    device = set_up(args.device, args.threads)
    write_cohort(args.out / "train", cases=args.cases, seed=SEED, track=console.track)
    settings = {**SETTINGS, **SMALLER, "training.steps": args.steps}
    train_cohort(
        args.out / "train", args.out / "run", device, settings=settings, fold="all",
        track=console.track, show=console.show,
    )  # fmt: skip
    plan, model = load_run(args.out / "run", device)
    save_small_network(args.to, plan, model.state_dict())
    console.wrote(args.to)
