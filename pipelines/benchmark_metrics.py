"""Time and memory of the object metrics against MONAI's, looped over the same objects, at equal values.

    python pipelines/benchmark_metrics.py

128 ellipsoids of 5 to 25 mm radius in 200 x 512 x 512 voxels of 2.5 x 0.7 x 0.7 mm, each predicted a little off. Per
object: Dice, IoU, NSD at 1 mm (surfels and border voxels), HD95, ASSD (border voxels). MONAI gets each object as it
stands in the volume (its functions crop by themselves; the first 8 objects, they take minutes) and, for comparison, all
of them cropped beforehand as medseg does it. Then images of 369, 1476 and 5904 small objects, whose cost must grow with
their number only. Processor seconds, one thread. Prints JSON, -o FILE keeps it.
"""

import argparse
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")  # before numpy and torch are imported

import numpy as np
from highdicom import VolumeGeometry
from record_results import write_record

from medseg.labels import LabelTable
from medseg.metrics.surface import pair_surface_distances
from medseg.metrics.windows import in_common_window
from medseg.values.instances import Instance, InstanceSet
from medseg.values.pairs import PairTable

SHAPE = (200, 512, 512)
SPACING_MM = (2.5, 0.7, 0.7)
TOLERANCE_MM = 1.0
LABELS = LabelTable.from_names(["object"], kinds={"object": "ids"})

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--objects", type=int, default=128)
parser.add_argument("--monai-objects", type=int, default=8, help="how many of them MONAI gets in the full volume")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("-o", "--out", type=Path, help="JSON file to write")
args = parser.parse_args()
rng = np.random.default_rng(args.seed)


def grid(shape: tuple[int, ...]) -> VolumeGeometry:
    """Axial slices at the origin."""
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[::-1] * SPACING_MM
    return VolumeGeometry(affine, tuple(shape), "PATIENT")


def ellipsoid(centre: np.ndarray, radii_mm: np.ndarray, shape: tuple[int, ...]) -> Instance:
    """An ellipsoid around a voxel position, cropped; its ids are given later."""
    reach = np.ceil(radii_mm / SPACING_MM).astype(int) + 1
    low = np.maximum(np.floor(centre).astype(int) - reach, 0)
    high = np.minimum(np.ceil(centre).astype(int) + reach + 1, shape)
    axes = np.ogrid[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    parts = zip(axes, centre, SPACING_MM, radii_mm, strict=True)
    mask = sum(((x - c) * s / r) ** 2 for x, c, s, r in parts) <= 1
    return Instance(id=1, label=1, mask=mask, offset=(int(low[0]), int(low[1]), int(low[2])))


def cohort(count: int, shape: tuple[int, ...], radii_mm: tuple[float, float]) -> tuple[InstanceSet, InstanceSet]:
    """Objects on a jittered lattice, and predictions shifted by up to 2 mm and scaled by up to 10 per cent."""
    flat = np.array(shape) == 1
    side = np.where(flat, 0, np.multiply(shape, SPACING_MM))
    cells_per_mm = (count / np.prod(side[side > 0])) ** (1 / np.count_nonzero(side))
    per_axis = np.maximum(1, np.ceil(side * cells_per_mm)).astype(int)
    cells = rng.permutation(np.prod(per_axis))[:count]
    reference, prediction = [], []
    for cell in zip(*np.unravel_index(cells, per_axis), strict=True):
        centre = np.where(flat, 0, (np.array(cell) + rng.uniform(0.4, 0.6, 3)) * shape / per_axis)
        size = rng.uniform(*radii_mm, 3)
        reference.append(ellipsoid(centre, size, shape))
        moved = np.where(flat, 0, centre + rng.uniform(-2, 2, 3) / SPACING_MM)
        prediction.append(ellipsoid(moved, size * rng.uniform(0.9, 1.1), shape))
    return InstanceSet.build(reference, grid(shape), LABELS), InstanceSet.build(prediction, grid(shape), LABELS)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what the work returns and the processor seconds it took: other programs do not count."""
    start = time.process_time()
    return work(), time.process_time() - start


def medseg_scores(reference: InstanceSet, prediction: InstanceSet) -> dict[int, dict[str, float]]:
    """Everything from the two sets: pairs, matching, overlaps, surfaces; by reference id."""
    pairs = PairTable.between(reference, prediction)
    rows = pairs.matching(0.1)
    border = pair_surface_distances(reference, prediction, pairs, rows, surface="border")
    surfels = pair_surface_distances(reference, prediction, pairs, rows)
    return {
        int(pairs.reference[row]) + 1: {
            "dice": float(dice), "iou": float(iou), "nsd_border": b.nsd(TOLERANCE_MM), "nsd": s.nsd(TOLERANCE_MM),
            "hd95_mm": b.hd(95), "assd_mm": b.assd(),
        }
        for row, dice, iou, b, s in zip(rows, pairs.dice()[rows], pairs.iou()[rows], border, surfels, strict=True)
    }  # fmt: skip


def monai_scores(pairs: Iterator[tuple[np.ndarray, np.ndarray]]) -> list[dict[str, float]]:
    """The same scores, object by object."""
    found = []
    for a, b in pairs:
        y, p = torch.from_numpy(a)[None, None], torch.from_numpy(b)[None, None]
        mm: dict[str, Any] = {"include_background": True, "spacing": SPACING_MM}
        nsd = [metrics.compute_surface_dice(p, y, [TOLERANCE_MM], use_subvoxels=fine, **mm) for fine in (False, True)]
        found.append({
            "dice": metrics.compute_dice(p, y).item(), "iou": metrics.compute_iou(p, y).item(),
            "nsd_border": nsd[0].item(), "nsd": nsd[1].item(),
            "hd95_mm": metrics.compute_hausdorff_distance(p, y, percentile=95, **mm).item(),
            "assd_mm": metrics.compute_average_surface_distance(p, y, symmetric=True, **mm).item(),
        })  # fmt: skip
    return found


reference, prediction = cohort(args.objects, SHAPE, (5, 25))
medseg_scores(*cohort(2, (9, 20, 20), (3, 4)))  # tables are made once per process
ours, our_seconds = timed(lambda: medseg_scores(reference, prediction))
scaling = {}
for count in (369, 1476, 5904):
    edge = round(520 * (count / 369) ** 0.5)
    many = cohort(count, (1, edge, edge), (3, 7))
    scaling[count] = timed(lambda sets=many: medseg_scores(*sets))[1] / count * 1000
peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

import monai  # noqa: E402 - after the memory of medseg alone is known
import torch  # noqa: E402
from monai import metrics  # noqa: E402

few = list(ours)[: args.monai_objects]
crops, crop_seconds = timed(lambda: monai_scores(
    in_common_window([reference[i]], [prediction[i]], shape=SHAPE, margin=1) for i in ours
))  # fmt: skip
full, full_seconds = timed(lambda: monai_scores((reference.full_mask(i), prediction.full_mask(i)) for i in few))
difference = {
    key: max(abs(ours[i][key] - theirs[key]) for peer in (crops, full) for i, theirs in zip(ours, peer, strict=False))
    for key in next(iter(ours.values()))
}
per_object = our_seconds / len(ours)
figures = {
    "objects": args.objects, "matched": len(ours), "shape": SHAPE,
    "medseg_seconds": our_seconds, "medseg_peak_gib": peak_gib,
    "monai_full_seconds_per_object": full_seconds / len(few), "monai_full_objects": len(few),
    "monai_crops_seconds_per_object": crop_seconds / len(ours),
    "times_as_fast_as_monai": full_seconds / len(few) / per_object,
    "times_as_fast_as_monai_on_crops": crop_seconds / len(ours) / per_object,
    "largest_difference": difference,
    "milliseconds_per_small_object": scaling, "monai": monai.__version__, "torch": torch.__version__,
}  # fmt: skip
write_record(args.out, figures, seed=args.seed)
