"""The one-stage model of `comparison.py`, run by the Python of an environment that has ultralytics (AGPL).

Nothing imports this, and it imports nothing of medseg. Words: train FOLDER MODEL SIDE SEED SECONDS THREADS, or find
FOLDER WEIGHTS SIDE THREADS; standard input is a JSON object; the last line of the output is another.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("YOLO_OFFLINE", "true")

import cv2
import numpy as np
import torch
import ultralytics.engine.trainer as trainer_module
from ultralytics import YOLO


class ProcessorClock:
    """Stands for the module `time` in the trainer, so that its time limit counts processor seconds."""

    time = staticmethod(time.process_time)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def train(folder: Path, model: str, side: int, seed: int, seconds: float, names: list[str]) -> dict[str, Any]:
    """Train from nothing, by ultralytics' own rules for a limit of time; no picture is altered."""
    images = folder / "train" / "images"
    images.mkdir()
    for path in sorted((folder / "train").glob("*.npy")):
        for z, image in enumerate(np.load(path, allow_pickle=False)):
            cv2.imwrite(str(images / f"{path.stem}_{z:03d}.png"), image)
    held = folder / "val"  # it insists on a validation; one slice
    first = min(p.stem for p in (folder / "train" / "labels").iterdir() if p.stat().st_size)
    for kind, suffix in (("images", ".png"), ("labels", ".txt")):
        (held / kind).mkdir(parents=True)
        (held / kind / f"a{suffix}").write_bytes((folder / "train" / kind / f"{first}{suffix}").read_bytes())
    about = {"path": str(folder), "train": "train/images", "val": "val/images", "names": dict(enumerate(names))}
    (folder / "data.yaml").write_text(json.dumps(about))  # JSON is YAML
    trainer_module.time = ProcessorClock()
    counted, clock = {"samples": 0}, []
    network = YOLO(model)

    def count(trainer: Any) -> None:
        counted["samples"] += trainer.batch_size
        clock[1:] = [time.process_time()]

    network.add_callback("on_train_start", lambda trainer: clock.append(time.process_time()))
    network.add_callback("on_train_batch_end", count)
    network.train(
        data=str(folder / "data.yaml"), imgsz=side, time=seconds / 3600, epochs=1000, batch=8, nbs=8, workers=0,
        device="cpu", seed=seed, pretrained=False, optimizer="AdamW", lr0=2e-3, cos_lr=True, warmup_epochs=1,
        mosaic=0, erasing=0, hsv_h=0, hsv_s=0, hsv_v=0, translate=0, scale=0, fliplr=0, auto_augment=None,
        overlap_mask=False, val=False, plots=False, amp=False, verbose=False, project=str(folder), name="run",
        exist_ok=True,
    )  # fmt: skip
    # without what it does before and after, checks and files
    return {"seconds": clock[1] - clock[0], **counted, "weights": str(folder / "run" / "weights" / "last.pt")}


def find(folder: Path, weights: str, side: int) -> dict[str, Any]:
    """Write what is found in the slices of each volume_*.npy to found_*.npz; return processor seconds of each."""
    network, spent = YOLO(weights), []
    paths = sorted(folder.glob("volume_*.npy"))
    first = np.load(paths[0], allow_pickle=False)[0]
    network.predict(first, imgsz=side, device="cpu", verbose=False)  # what is done once is not counted
    for path in paths:
        volume = np.load(path, allow_pickle=False)
        found: dict[str, list[Any]] = {"slices": [], "boxes": [], "scores": [], "classes": [], "masks": []}
        start = time.process_time()
        for z, image in enumerate(volume):
            result = network.predict(
                image, imgsz=side, device="cpu", conf=0.3, iou=0.5, retina_masks=True, verbose=False
            )[0]  # fmt: skip
            if result.masks is None:
                continue
            found["slices"] += [z] * len(result.boxes)
            found["boxes"] += result.boxes.xyxy.tolist()
            found["scores"] += result.boxes.conf.tolist()
            found["classes"] += result.boxes.cls.int().tolist()
            found["masks"] += list(result.masks.data.numpy() > 0.5)
        spent.append(time.process_time() - start)
        shapes = {"boxes": (-1, 4), "masks": (-1, *volume.shape[1:3])}
        arrays = {key: np.array(values).reshape(shapes.get(key, (-1,))) for key, values in found.items()}
        np.savez(folder / path.name.replace("volume", "found").replace(".npy", ".npz"), **arrays)
    return {"seconds": spent}


if __name__ == "__main__":
    what, root, *words = sys.argv[1:]
    torch.set_num_threads(int(words[-1]))
    if what == "train":
        name, side, seed, seconds, _ = words
        done = train(Path(root), name, int(side), int(seed), float(seconds), json.load(sys.stdin)["names"])
    else:
        weights, side, _ = words
        done = find(Path(root), weights, int(side))
    print(json.dumps(done))
