"""The smallest plan and cohort that a network can be built for, trained on and applied to."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray

from medseg.data.cache import CachedCase, load_case, prepare_case
from medseg.io import write_instances, write_volume
from medseg.io.atomic import write_json
from medseg.labels import LabelTable
from medseg.progress import Track
from medseg.values.geometry import make_volume
from medseg.values.instances import InstanceSet
from medseg.values.plan import InputPlan, Plan

LABELS = LabelTable.from_names(["organ", "lesion"], kinds={"lesion": "ids"})
#: Slices towards the head, rows towards posterior, columns towards the patient's left.
HPL = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], float)
TINY: dict[str, Any] = {
    "model.backbone": "resnet18",
    "model.fpn_channels": 32,
    "model.box_head_channels": 64,
    "model.mask_head_channels": 16,
    "model.mask_roi_size": 7,
    "model.mask_size": 14,
    "model.roi_canonical_size": 112.0,
    "model.anchor_sizes": [[8.0], [14.0], [24.0], [40.0]],
    "model.anchor_ratios": [0.7, 1.4],
    "model.proposals_before_nms": 100,
    "training.crop_size": [64, 64],
    "training.batch_size": 2,
    "training.steps": 20,
    "training.workers": 0,
    "training.proposals": 30,
    "training.box_samples": 16,
    "inference.proposals": 30,
    "inference.detections_per_slice": 10,
}


def tiny_plan(settings: dict[str, Any] | None = None, labels: LabelTable = LABELS) -> Plan:
    """Return a plan of a network that trains in seconds, some fields replaced."""
    plan = Plan(labels=labels, input=InputPlan(spacing_mm=(2.0, 2.0), windows=((-100.0, 300.0),)))
    return plan.with_overrides({**TINY, **(settings or {})})


def ellipse(
    shape: tuple[int, ...], centre: tuple[float, ...], radii: tuple[float, ...], power: float = 2.0
) -> NDArray[np.bool_]:
    """Return the pixels whose centre (index + 0.5) lies in an ellipse, or a superellipse of another power."""
    at = np.indices(shape) + 0.5
    distance = sum(np.abs((a - c) / r) ** power for a, c, r in zip(at, centre, radii, strict=True))
    return np.asarray(distance <= 1)


def simple_case(seed: int, shape: tuple[int, int, int] = (14, 60, 68)) -> tuple[Volume, InstanceSet]:
    """Return a bright organ and two small, brighter lesions in a body: 5.0 x 2.0 x 2.0 mm, off the origin."""
    rng = np.random.default_rng(seed)
    move = rng.uniform(-2.5, 2.5, 2)
    depth, rows, columns = shape
    body = ellipse(shape, (depth / 2, rows / 2, columns / 2), (1e3, rows / 2 - 3, columns / 2 - 3))
    organ = ellipse(shape, (7.0, 30 + move[0], 24 + move[1]), (5.2, 15.0, 11.0))
    lesions = [
        ellipse(shape, (5.5, 22 + move[1], 48 + move[0]), (2.7, 5.5, 6.0)),
        ellipse(shape, (8.5, 41 - move[0], 50 - move[1]), (2.7, 6.0, 5.0)),
    ]
    hu = np.where(body, 0.0, -1000.0)
    hu[organ] = 100.0
    for lesion in lesions:
        hu[lesion] = 250.0
    hu[body] += rng.normal(0, 8, int(body.sum()))
    affine = np.eye(4)
    affine[:3, :3] = HPL * [5.0, 2.0, 2.0]
    affine[:3, 3] = (-61.3, -40.9, 811.5)
    volume = make_volume(np.rint(hu).astype(np.int16), affine, "simple case")
    return volume, InstanceSet.from_masks([(1, organ), (2, lesions[0]), (2, lesions[1])], volume, LABELS)


def one_image(seed: int, shape: tuple[int, int, int] = (14, 60, 68)) -> tuple[tuple[Volume, ...], InstanceSet]:
    """Return `simple_case` as a study of one image."""
    volume, truth = simple_case(seed, shape)
    return (volume,), truth


def two_images(seed: int) -> tuple[tuple[Volume, ...], InstanceSet]:
    """Return `simple_case` as a study of two images, of which the first shows the organ and the second the lesions."""
    volume, truth = simple_case(seed)
    first, second = (volume.array.astype(np.float32) for _ in range(2))
    first[volume.array > 150] = 0.0
    second[(volume.array > 50) & (volume.array < 150)] = 0.0
    return tuple(make_volume(a + 1000.0, volume.affine, "image") for a in (first, 2 * second)), truth


def empty_volume(shape: tuple[int, int, int] = (5, 37, 41)) -> Volume:
    """Return water and nothing in it."""
    affine = np.eye(4)
    affine[:3, :3] = HPL * [5.0, 2.0, 2.0]
    return make_volume(np.zeros(shape, np.int16), affine, "empty")


def quick_curves(run: Path, *_: object) -> None:
    """Stand in for `medseg.training.outputs.save_curves`: a second of drawing is more than what some tests train."""
    (run / "curves.png").touch()


def write_simple_cohort(
    folder: Path, cases: int = 2, shape: tuple[int, int, int] = (14, 60, 68), labels: LabelTable = LABELS
) -> Path:
    """Write that many of `simple_case`, each a patient: img_N.nii.gz, lab_N.seg.nrrd, cohort.csv and labels.json.

    ``labels`` are LABELS under other names perhaps.
    """
    rows = ["image,label,patient"]
    for seed in range(cases):
        volume, truth = simple_case(seed, shape)
        write_volume(folder / f"img_{seed}.nii.gz", volume)
        named = InstanceSet(instances=truth.instances, geometry=truth.geometry, labels=labels)
        write_instances(folder / f"lab_{seed}.seg.nrrd", named)
        rows.append(f"img_{seed}.nii.gz,lab_{seed}.seg.nrrd,p{seed}")
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n")
    write_json(folder / "labels.json", labels.to_dict())
    return folder


def prepared_cases(folder: Path) -> list[CachedCase]:
    """Return `simple_case` 0 and 1, prepared in a folder for `tiny_plan`."""
    for seed in range(2):
        prepare_case(f"case{seed}", *one_image(seed), tiny_plan().input, folder)
    return [load_case(folder, f"case{seed}") for seed in range(2)]


def interrupting(step: int, error: type[BaseException] = KeyboardInterrupt) -> Track:
    """Return a `Track` that ends a training after some steps, with Ctrl-C unless told otherwise."""

    def track(items: Iterable, description: str, total: int | None = None) -> Iterator:
        for number, item in enumerate(items):
            if description == "training" and number == step:
                raise error
            yield item

    return track


def save_run(folder: Path, plan: Plan, seed: int = 0) -> Path:
    """Write a run that was never trained."""
    import torch

    from medseg.models.mask_rcnn import build_mask_rcnn
    from medseg.training.checkpoint import save_plan, save_weights

    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    save_plan(folder, plan)
    save_weights(folder, build_mask_rcnn(plan).state_dict())
    return folder
