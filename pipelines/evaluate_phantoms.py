"""How long a cohort takes to evaluate: phantom patients against a prediction that is their perturbed truth.

    python pipelines/evaluate_phantoms.py -o evaluate-phantoms
    cd evaluate-phantoms && medseg evaluate -r reference -p prediction -o scores --workers 2

The first line writes the cohort (once) and evaluates it as the second does, results.json says in what time. Organs are
moved by a voxel and dilated or eroded; lesions besides are lost, split, merged with their neighbour or invented.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
from record_results import write_record
from scipy import ndimage

from medseg.evaluation import Settings, evaluate_files
from medseg.io import write_instances
from medseg.phantom import make_phantom
from medseg.reporting.plots import save_plots
from medseg.values.instances import Instance, InstanceSet, crop_to_object


def perturbed(truth: InstanceSet, rng: np.random.Generator, *, worse: float) -> InstanceSet:
    """Return a prediction of the truth with mistakes; ``worse`` (0..1) says how many."""
    found: list[Instance] = []

    def add(mask: np.ndarray, label: int, score: float) -> None:
        crop = crop_to_object(mask)
        if crop is not None:
            found.append(Instance(id=1, label=label, mask=crop[0], offset=crop[1], score=float(np.clip(score, 0, 1))))

    for instance in truth:
        mask = np.roll(truth.full_mask(instance.id), rng.integers(-1, 2, 3), axis=(0, 1, 2))
        several = truth.labels[instance.label].kind == "ids"
        small = instance.voxels < 60
        change = rng.integers(0, 2) if small else rng.integers(0, 3)
        if change == 1:
            mask = ndimage.binary_dilation(mask)
        elif change == 2:
            mask = ndimage.binary_erosion(mask)
        score = rng.normal(0.75, 0.15)
        if several and rng.uniform() < worse * (2 if small else 1):
            continue
        if several and rng.uniform() < worse / 2:  # in two halves
            half = np.zeros_like(mask)
            middle = instance.offset[0] + instance.mask.shape[0] // 2
            half[:middle] = mask[:middle]
            add(half, instance.label, score)
            add(mask & ~half, instance.label, score - 0.1)
        elif several and found and found[-1].label == instance.label and rng.uniform() < worse / 2:
            last = found.pop()  # one object of two
            mask[last.window] |= last.mask
            add(mask, instance.label, max(score, last.score))
        else:
            add(mask, instance.label, score)
    lesion = truth.labels.by_name("lesion").id
    shape = np.array(truth.geometry.spatial_shape)
    for _ in range(rng.poisson(4 * worse)):
        mask = np.zeros(shape, bool)
        at = rng.integers(shape // 4, 3 * shape // 4)
        mask[tuple(slice(a, a + int(n)) for a, n in zip(at, rng.integers(1, 6, 3), strict=True))] = True
        add(mask, lesion, rng.normal(0.5, 0.2))
    return InstanceSet.build(found, truth.geometry, truth.labels)


def processor_seconds() -> float:
    """Return the user and system seconds of this process and of its workers that have ended."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in found)


def main() -> None:
    """Write the cohort where it is missing, evaluate it, say how long that took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    for case in range(args.cases):
        name = f"case_{case:03d}.seg.nrrd"
        if (args.out / "prediction_worse" / name).exists():
            continue
        truth = make_phantom(seed=case).instances
        write_instances(args.out / "reference" / name, truth)
        for folder, worse in (("prediction", 0.15), ("prediction_worse", 0.3)):
            write_instances(args.out / folder / name, perturbed(truth, np.random.default_rng(case), worse=worse))
    start, used = time.perf_counter(), processor_seconds()
    done: list[float] = []

    def track(items, description, total=None):  # type: ignore[no-untyped-def]
        for item in items:
            done.append(time.perf_counter() - start)
            print(f"\r{description}: {len(done)}/{total}", end="", flush=True)
            yield item
        print()

    result = evaluate_files(
        args.out / "reference", args.out / "prediction", args.out / "scores",
        settings=Settings(), workers=args.workers, track=track,
    )  # fmt: skip
    save_plots(result, args.out / "scores")
    lesion = result.summary["classes"]["lesion"]
    figures = {
        "cases": len(result.cases),
        "objects": sum(len(c.objects) for c in result.cases.values()),
        "workers": args.workers,
        "wall_seconds": round(time.perf_counter() - start, 1),
        "wall_seconds_of_cases": round(done[-1], 1),
        "processor_seconds": round(processor_seconds() - used, 1),
        "lesion_f1": lesion["objects"]["f1"],
        "lesion_cpm": lesion["ranking"]["cpm"]["value"],
    }
    write_record(args.out / "results.json", figures, seed=list(range(args.cases)))


if __name__ == "__main__":
    main()
