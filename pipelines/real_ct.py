"""Real CT: train on one volume, predict that volume and another patient's DICOM series, evaluate both.

    python pipelines/real_ct.py --data DATA -o real-ct

DATA holds `ct_torso_3mm` (ct.nii.gz, organs.nii.gz, label_names.json) and `ct_torso_dicom` (series/,
organs.nii.gz), both from TotalSegmentator's tests; their labels are the output of a model. It shows that real
data flows from DICOM to masks on the DICOM grid and can be learnt. One training patient is no quality claim.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

from record_results import envelope

from medseg.cli import console
from medseg.cli.compute import set_up
from medseg.cli.evaluate import summary_table
from medseg.evaluation import evaluate_files
from medseg.inference.provenance import environment
from medseg.inference.study import StudyPredictor
from medseg.io import read_instances, read_volume, write_instances
from medseg.io.atomic import write_csv, write_json
from medseg.labels import Label, LabelTable, palette_colour
from medseg.reporting.overlay import save_overlay
from medseg.training.cohort import train_cohort
from medseg.values.instances import InstanceSet

ORGANS = (
    "liver", "spleen", "stomach", "aorta", "inferior_vena_cava", "spinal_cord", "autochthon_left", "autochthon_right",
)  # fmt: skip
SETTINGS = {
    "input.spacing_mm": [2.0, 2.0],
    "model.backbone": "resnet18",
    "model.fpn_channels": 64,
    "model.box_head_channels": 256,
    "model.mask_head_channels": 64,
    "model.mask_size": 28,
    "training.batch_size": 2,
    "training.learning_rate": 0.0015,
    "training.proposals": 100,
}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", type=Path, required=True)
parser.add_argument("-o", "--out", type=Path, required=True, help="new folder")
parser.add_argument("--steps", type=int, default=900)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--device", default="auto")
args = parser.parse_args()

device = set_up(args.device, 0)
names = json.loads((args.data / "ct_torso_3mm" / "label_names.json").read_text())
everything = LabelTable(
    Label(id=int(key), name=name, colour=palette_colour(int(key) - 1), kind="single") for key, name in names.items()
)
chosen = LabelTable.from_names(ORGANS)


def reference(source: Path, target: Path) -> None:
    """Keep the chosen organs of a label map of all organs."""
    found = read_instances(source, labels=everything)
    kept = [
        (chosen.by_name(everything[i.label].name).id, found.full_mask(i.id))
        for i in found
        if everything[i.label].name in ORGANS
    ]
    write_instances(target, InstanceSet.from_masks(kept, found.geometry, chosen))


studies = {
    "torso_3mm": args.data / "ct_torso_3mm" / "ct.nii.gz",
    "torso_dicom": args.data / "ct_torso_dicom" / "series",
}
labels = {name: args.out / "reference" / f"{name}.seg.nrrd" for name in studies}
reference(args.data / "ct_torso_3mm" / "organs.nii.gz", labels["torso_3mm"])
reference(args.data / "ct_torso_dicom" / "organs.nii.gz", labels["torso_dicom"])
row = {"image": studies["torso_3mm"].resolve(), "label": labels["torso_3mm"].resolve(), "patient": "torso"}
write_csv(args.out / "cohort.csv", list(row), [row])

start = time.perf_counter()
settings = {**SETTINGS, "training.steps": args.steps, "training.seed": args.seed}
run = args.out / "run"
result = train_cohort(args.out, run, device, settings=settings, single_case=True, track=console.track)
trained = time.perf_counter() - start

predictor = StudyPredictor(run, device)
for name, study in studies.items():
    prediction, _ = predictor.run((study,), args.out / "predictions", name, track=console.track)
    truth = read_instances(labels[name])
    picture = args.out / "predictions" / name / f"{name}_comparison.png"
    save_overlay(picture, read_volume(study), prediction.instances, reference=truth)
    console.wrote(picture)

evaluation = evaluate_files(args.out / "reference", args.out / "predictions", args.out / "evaluation")
console.out.print(summary_table(evaluation.summary))
table = {
    case: {c.name: {"dice": c.voxels.dice, "volume_reference_ml": c.voxels.reference_ml} for c in found.classes}
    for case, found in evaluation.cases.items()
}
figures = {
    "training_seconds": round(trained),
    "steps": result.steps,
    "cases": table,
    "environment": environment(device),
    "notice": "One training patient, evaluated on itself and one other: data flows; no quality claim.",
}
write_json(args.out / "results.json", envelope(figures, seed=args.seed, device=device.type))
console.wrote(args.out / "results.json")
