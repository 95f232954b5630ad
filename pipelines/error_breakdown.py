"""What a model gets wrong on its held-out cases: objects not seen, merged, in pieces, badly outlined, invented.

    medseg train DATA/nuclei -o RUN --fold 0/5
    python pipelines/error_breakdown.py RUN/validation --images DATA/nuclei/imagesTr -o nuclei_errors.json

Objects match at IoU 0.5. An object that no prediction matches is *merged* where a prediction holds half of it and of
another object; *in pieces* where several predictions lie in it by half and cover half of it together; *badly outlined*
where a prediction has an IoU of 0.1 with it, else *not seen*. A prediction that matches nothing *holds several*
objects; or is a *piece or double* where half of it lies in an object that others show; or is *badly outlined*, else
*invented*. With --images, cases are counted apart where their objects are brighter and darker than the rest of the
image. Of volumes, wrong voxels are counted by whether both have the object in that slice. Prints JSON.
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from record_results import write_record

from medseg.errors import InputError
from medseg.io import read_instances, read_volume
from medseg.metrics.windows import in_common_window
from medseg.values.instances import InstanceSet
from medseg.values.pairs import PairTable, on_grid_of

IOUS, SEEN, HALF = (0.5, 0.75), 0.1, 0.5


def dense(pairs: PairTable, values: NDArray[Any]) -> NDArray[np.float64]:
    """Return [R, P] values of the pairs of one label each, 0 where objects do not meet."""
    table = np.zeros((len(pairs.reference_voxels), len(pairs.prediction_voxels)))
    same = pairs.same_label()
    table[pairs.reference[same], pairs.prediction[same]] = values[same]
    return table


def explain(pairs: PairTable) -> tuple[Counter[str], Counter[str]]:
    """Count why objects of the truth were missed, and what the predictions are that match nothing."""
    rows = pairs.matching(IOUS[0])
    iou, shared = dense(pairs, pairs.iou()), dense(pairs, pairs.intersection)
    held = shared >= HALF * pairs.reference_voxels[:, None]  # half of the object lies in the prediction
    inside = shared >= HALF * pairs.prediction_voxels  # half of the prediction lies in the object
    several = held.sum(axis=0) > 1
    shown = np.isin(np.arange(len(iou)), pairs.reference[rows])
    others = inside.sum(axis=1) > 1
    missed: Counter[str] = Counter()
    for r in np.flatnonzero(~shown):
        pieces = inside[r] & ~several
        if (held[r] & several).any():
            missed["merged"] += 1
        elif pieces.sum() > 1 and shared[r, pieces].sum() >= HALF * pairs.reference_voxels[r]:
            missed["in pieces"] += 1
        else:
            missed["badly outlined" if (iou[r] >= SEEN).any() else "not seen"] += 1
    wrong: Counter[str] = Counter()
    for p in np.setdiff1d(np.arange(iou.shape[1]), pairs.prediction[rows]):
        if several[p]:
            wrong["holds several"] += 1
        elif (inside[:, p] & (shown | others)).any():
            wrong["piece or double"] += 1
        else:
            wrong["badly outlined" if (iou[:, p] >= SEEN).any() else "invented"] += 1
    return missed, wrong


def wrong_voxels(reference: InstanceSet, prediction: InstanceSet, pairs: PairTable) -> Counter[str]:
    """Count the voxels that matched objects of volumes have alone, by whether the other is in that slice at all."""
    rows = pairs.matching(IOUS[0])
    pred = on_grid_of(reference, prediction)
    found: Counter[str] = Counter()
    for r, p in zip(pairs.reference[rows], pairs.prediction[rows], strict=True):
        objects = [reference.instances[r]], [pred.instances[p]]
        truth, mask = in_common_window(*objects, shape=reference.geometry.spatial_shape, margin=0)
        both = truth.any(axis=(1, 2)) & mask.any(axis=(1, 2))
        apart = (truth != mask).sum(axis=(1, 2))
        found["in slices that both have"] += int(apart[both].sum())
        found["in slices that only the truth has"] += int(apart[~both & truth.any(axis=(1, 2))].sum())
        found["in slices that only the prediction has"] += int(apart[~both & mask.any(axis=(1, 2))].sum())
    return found


def kind_of(reference: InstanceSet, folder: Path | None, name: str) -> str:
    """Tell whether the objects of a case are brighter or darker than the rest of its image."""
    if folder is None:
        return "all"
    images = sorted(folder.glob(f"{name}*"))
    if not images:
        raise InputError(f"{folder}: no image of case {name}; name the folder of the cohort's images")
    image = read_volume(images[0])
    objects = np.zeros(image.spatial_shape, bool)
    for instance in on_grid_of(InstanceSet.build((), image.get_geometry(), reference.labels), reference):
        objects[instance.window] |= instance.mask
    return "bright" if image.array[objects].mean() > image.array[~objects].mean() else "dark"


def breakdown(validation: Path, images: Path | None) -> dict[str, Any]:
    """Return counts per kind of case: matches at each IoU, and the reasons at the first."""
    kinds: dict[str, Counter[str]] = {}
    references = sorted((validation / "reference").glob("*.seg.nrrd"))
    if not references:
        raise InputError(f"{validation}: no reference/*.seg.nrrd; name the folder `validation` of a trained run")
    for path in references:
        name = path.name.removesuffix(".seg.nrrd")
        reference = read_instances(path)
        prediction = read_instances(validation / "predictions" / name / path.name)
        pairs = PairTable.between(reference, prediction)
        counts = kinds.setdefault(kind_of(reference, images, name), Counter())
        counts["cases"] += 1
        for iou in IOUS:
            matched = len(pairs.matching(iou))
            counts[f"tp {iou}"] += matched
            counts[f"fp {iou}"] += len(prediction) - matched
            counts[f"fn {iou}"] += len(reference) - matched
        missed, wrong = explain(pairs)
        counts.update({f"missed: {key}": number for key, number in missed.items()})
        counts.update({f"wrong: {key}": number for key, number in wrong.items()})
        if reference.geometry.spatial_shape[0] > 1:
            counts.update({f"voxels: {k}": n for k, n in wrong_voxels(reference, prediction, pairs).items()})
    return {kind: {**dict(sorted(counts.items())), **jaccards(counts)} for kind, counts in sorted(kinds.items())}


def jaccards(counts: Counter[str]) -> dict[str, float]:
    """Return TP / (TP + FP + FN) of the pooled counts."""
    found = {iou: [counts[f"{kind} {iou}"] for kind in ("tp", "fp", "fn")] for iou in IOUS}
    return {f"jaccard_detection {iou}": round(three[0] / sum(three), 4) for iou, three in found.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("validation", type=Path, help="folder `validation` of a trained run")
    parser.add_argument("--images", type=Path, help="folder of the cohort's images")
    parser.add_argument("-o", "--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    write_record(args.out, breakdown(args.validation, args.images), seed=None)
