"""What is compared, trained within the same processor seconds: a semantic U-Net, a one-stage model, medseg.

Each system is a function from training cases, seed and seconds to a `Trained`: what it spent, and how it finds the
objects of a volume. Learning rates fall by the share of the seconds that is spent, so nobody is cut off early.
"""

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from ablation_parts import CPU, GroupedStepper, as_case
from ablation_questions import SETTINGS
from comparison_cases import Case
from comparison_forms import MASK_SIZE, Masks, components, detections, linked, masks_of, one_label_each
from highdicom import Volume
from monai.losses import DiceLoss
from monai.networks.nets import UNet
from numpy.typing import NDArray
from skimage.measure import find_contours
from skimage.measure import label as numbered

from medseg.data.context import network_input
from medseg.data.dataset import SliceDataset
from medseg.inference.predictor import Predictor
from medseg.models.mask_rcnn import build_mask_rcnn
from medseg.training.optimizer import learning_rate
from medseg.training.state import TrainingState
from medseg.values.detections import Detections
from medseg.values.geometry import spacing_of
from medseg.values.instances import InstanceSet
from medseg.values.pasting import cut_mask
from medseg.values.plan import InputPlan, Plan

#: Nominal steps of the learning rate's way down.
STEPS = 1000
UNET = {"widths": (24, 48, 96, 192), "batch": 8, "learning_rate": 2e-3}
YOLO_PROGRAM = Path(__file__).with_name("comparison_yolo.py")
#: What is found in a volume: objects by name of the way, and processor seconds.
Found = dict[str, tuple[InstanceSet, float]]
#: Volumes, and empty sets of their geometries and labels -> what is found in each.
Find = Callable[[Sequence[Volume], Sequence[InstanceSet]], list[Found]]


class Trained(NamedTuple):
    """A trained system: processor seconds and samples of its training, and how it finds objects."""

    seconds: float
    samples: int
    find: Find


def plan_for(cases: Sequence[Case], seed: int) -> Plan:
    """Return the plan of the pixels of the first case: the windows hold all of what is drawn there."""
    volume, truth = cases[0]
    between, row, column = spacing_of(volume)
    entry = InputPlan(orientation="HPL", spacing_mm=(row, column), windows=((-60.0, 180.0), (0.0, 120.0)))
    own = {
        "training.seed": seed,
        "training.steps": STEPS,
        "training.ema_decay": 0.98,
        "model.finest_stride": 4,
        "model.anchor_sizes": [[8.0, 12.0], [16.0, 22.0], [40.0, 70.0]],
        "inference.score_threshold": 0.3,
    }
    return Plan(labels=truth.labels, input=entry).with_overrides({**SETTINGS, **own})


def inputs_of(volume: Volume, plan: Plan) -> NDArray[np.float32]:
    """Return what every network sees of a volume: [Z, C, H, W]."""
    spacing = spacing_of(volume)[0]
    return np.stack([network_input(volume.array[None], z, spacing, plan.input) for z in range(volume.array.shape[0])])


# -- medseg -----------------------------------------------------------------------------------------------


def train_medseg(cases: Sequence[Case], seed: int, seconds: float) -> Trained:
    """Train a small Mask R-CNN on slices."""
    plan = plan_for(cases, seed)
    state, size = TrainingState(plan, CPU), plan.training.batch_size
    dataset = SliceDataset([as_case(str(n), *case) for n, case in enumerate(cases)], plan, 10**9, seed)
    stepper, start, done = GroupedStepper(state.model, plan.training, CPU), time.process_time(), 0
    while (spent := time.process_time() - start) < seconds:
        stepper.gradients([dataset[done + place] for place in range(size)])
        state.step = min(int(STEPS * spent / seconds), STEPS - 1)  # what the learning rate follows from
        state.advance()
        done += size
    stepper.close()
    model = build_mask_rcnn(plan)
    model.load_state_dict(state.average.values)
    predictor = Predictor(plan, model.eval(), CPU)

    def find(volume: Volume, like: InstanceSet) -> Found:
        begun = time.process_time()
        return {"medseg": (predictor.predict([volume]).instances, time.process_time() - begun)}

    return Trained(time.process_time() - start, done, _one_by_one(find))


def _one_by_one(find: Callable[[Volume, InstanceSet], Found]) -> Find:
    return lambda volumes, likes: [find(volume, like) for volume, like in zip(volumes, likes, strict=True)]


# -- semantic ---------------------------------------------------------------------------------------------


def train_unet(cases: Sequence[Case], seed: int, seconds: float, depth_mm: float) -> Trained:
    """Train MONAI's 2-D U-Net with a mask per label (sigmoid; cross-entropy and Dice)."""
    plan = plan_for(cases, seed)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(np.concatenate([inputs_of(volume, plan) for volume, _ in cases]))
    wanted = torch.from_numpy(np.concatenate([np.stack([*masks_of(t).values()], axis=1) for _, t in cases])).float()
    strides = [2] * (len(UNET["widths"]) - 1)
    model = UNet(2, images.shape[1], wanted.shape[1], channels=UNET["widths"], strides=strides, num_res_units=2)
    optimizer, overlap = torch.optim.AdamW(model.parameters(), lr=UNET["learning_rate"]), DiceLoss(sigmoid=True)
    schedule = plan.training.model_copy(update={"learning_rate": UNET["learning_rate"]})
    start, done = time.process_time(), 0
    while (spent := time.process_time() - start) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(min(int(STEPS * spent / seconds), STEPS - 1), schedule)
        chosen = torch.from_numpy(rng.integers(0, len(images), UNET["batch"]))
        logits = model(images[chosen])
        loss = F.binary_cross_entropy_with_logits(logits, wanted[chosen]) + overlap(logits, wanted[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done += len(chosen)
    model.eval()

    def find(volume: Volume, like: InstanceSet) -> Found:
        begun = time.process_time()
        with torch.inference_mode():
            logits = torch.cat([model(part) for part in torch.from_numpy(inputs_of(volume, plan)).split(8)])
        masks: Masks = dict(zip(like.labels.ids, (logits > 0).numpy().transpose(1, 0, 2, 3), strict=True))
        network = time.process_time() - begun
        ways = {
            "U-Net, one label per voxel, components": lambda: components(one_label_each(masks), like),
            "U-Net, a mask per label, components": lambda: components(masks, like),
            "U-Net, a mask per label, watershed": lambda: components(masks, like, depth_mm),
        }
        found: Found = {}
        for name, way in ways.items():
            begun = time.process_time()
            found[name] = (way(), network + time.process_time() - begun)
        return found

    return Trained(time.process_time() - start, done, _one_by_one(find))


# -- one-stage --------------------------------------------------------------------------------------------


def train_yolo(cases: Sequence[Case], seed: int, seconds: float, python: Path, model: str, side: int) -> Trained:
    """Train a YOLO with masks from nothing, in its own environment; its detections go through medseg's linker.

    Args:
        python: of the environment that has ultralytics (AGPL), which nothing here imports.
        model: one of its names, with .yaml for one without weights.
        side: to which it scales slices.
    """
    plan, folder = plan_for(cases, seed), tempfile.TemporaryDirectory(prefix="yolo")
    root = Path(folder.name)
    names = list(cases[0][1].labels.names)
    for number, (volume, truth) in enumerate(cases):
        _write_slices(root / "train", f"case{number}", volume, truth, plan)
    words = ["train", str(root), model, str(side), str(seed), str(seconds), str(torch.get_num_threads())]
    report = _run_yolo(python, words, {"names": names})

    def find(volumes: Sequence[Volume], likes: Sequence[InstanceSet]) -> list[Found]:
        for number, volume in enumerate(volumes):
            np.save(root / f"volume_{number:03d}.npy", _bytes(inputs_of(volume, plan)))
        spent = _run_yolo(python, ["find", str(root), report["weights"], str(side), str(torch.get_num_threads())], {})
        results: list[Found] = []
        for number, (like, seconds) in enumerate(zip(likes, spent["seconds"], strict=True)):
            begun = time.process_time()
            instances = linked(_read_found(root / f"found_{number:03d}.npz", like), like)
            results.append({"YOLO, linked by medseg": (instances, seconds + time.process_time() - begun)})
        return results

    find.folder = folder  # type: ignore[attr-defined]  # lives as long as what needs it
    return Trained(report["seconds"], report["samples"], find)


def _read_found(path: Path, like: InstanceSet) -> list[Detections]:
    """Return what YOLO found in a volume, slice by slice, masks in their boxes."""
    with np.load(path, allow_pickle=False) as found:
        rows = [
            (np.asarray(box, np.float64), like.labels.ids[int(name)], cut_mask(mask, box, MASK_SIZE))
            for box, name, mask in zip(found["boxes"], found["classes"], found["masks"].astype(bool), strict=True)
        ]
        where, scores = found["slices"], found["scores"]
    return [
        detections(z, [rows[i] for i in np.flatnonzero(where == z)], scores[where == z].tolist())
        for z in range(like.geometry.spatial_shape[0])
    ]


def _bytes(inputs: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return [Z, H, W, 3] what an image file can hold of [Z, 2, H, W]."""
    levels = np.rint((inputs + 1) * 127.5).astype(np.uint8)
    return np.ascontiguousarray(levels[:, [0, 1, 1]].transpose(0, 2, 3, 1))


def _write_slices(folder: Path, name: str, volume: Volume, truth: InstanceSet, plan: Plan) -> None:
    """Write slices as arrays, and their objects as the polygons that YOLO learns from (the largest part of each)."""
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{name}.npy", _bytes(inputs_of(volume, plan)))
    rows, columns = volume.array.shape[1:]
    for z in range(volume.array.shape[0]):
        lines = []
        for instance in truth:
            inside = instance.slice_mask(z)
            if inside is None or not inside.any():
                continue
            parts = numbered(inside)
            largest = parts == np.bincount(parts.ravel())[1:].argmax() + 1
            outline = max(find_contours(np.pad(largest, 1).astype(float), 0.5), key=len)
            at = (outline - 0.5 + instance.offset[1:]) / (rows, columns)  # one pixel of padding, half to its edge
            points = " ".join(f"{x:.5f} {y:.5f}" for y, x in at.clip(0, 1))
            lines.append(f"{truth.labels.ids.index(instance.label)} {points}")
        (folder / "labels" / f"{name}_{z:03d}.txt").write_text("\n".join(lines))


def _run_yolo(python: Path, words: list[str], about: dict[str, Any]) -> dict[str, Any]:
    """Run the program beside this one; return its last line."""
    command = [str(python), str(YOLO_PROGRAM), *words]
    done = subprocess.run(command, input=json.dumps(about), capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"the YOLO program failed: {' '.join((done.stderr or done.stdout).split())[-500:]}")
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer
