"""Points of reference of the benchmark of inference: torchvision's Mask R-CNN, a U-Net, a one-stage instance model."""

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark_parts import Spent, counted
from monai.networks.nets import UNet as MonaiUNet
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN as StockMaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.transform import resize_boxes

from medseg.models.mask_rcnn import MaskRCNN
from medseg.values.detections import Detections

#: What runs in an environment of its own, as ultralytics is AGPL: a line with numbers of slices in, a line of JSON out.
YOLO = """
import json, os, sys, time
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
name, device, threads, side = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
import numpy, torch, ultralytics
from ultralytics.utils.torch_utils import get_flops
torch.set_num_threads(threads)
torch.manual_seed(0)
model = ultralytics.YOLO(name)
flops = get_flops(model.model, side) * 1e9
torch.set_num_threads(threads)
image = numpy.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=numpy.uint8)
print(json.dumps({"version": ultralytics.__version__, "flops": flops}), flush=True)
for line in sys.stdin:
    wall, processor, found = time.perf_counter(), time.process_time(), 0
    for _ in range(int(line)):
        found += len(model.predict(image, imgsz=side, device=device, verbose=False)[0].boxes)
    spent = [time.perf_counter() - wall, time.process_time() - processor]
    print(json.dumps({"spent": spent, "found": found}), flush=True)
"""


class Yolo:
    """A YOLO model with masks, drawn at random, as a program beside this one.

    Random weights find next to nothing, so that what follows the network costs less than with trained ones.

    Args:
        python: of the environment that has ultralytics.
        name: a model of ultralytics, with .yaml for one without weights.
        device: cpu or cuda.
        side: of its input.
    """

    def __init__(self, python: Path, name: str, device: torch.device, side: int):
        words = [str(python), "-c", YOLO, name, str(device), str(torch.get_num_threads()), str(side)]
        self.program = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.program.stdout is not None
        for line in self.program.stdout:
            if line.startswith("{"):  # ultralytics says other things as well
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError("the YOLO program ended; its own message stands above")

    def __call__(self, slices: range) -> Spent:
        """Run so many slices; return the seconds of each, by its own clocks."""
        assert self.program.stdin is not None
        self.program.stdin.write(f"{len(slices)}\n")
        self.program.stdin.flush()
        wall, processor = self._answer()["spent"]
        return Spent(wall / len(slices), processor / len(slices))

    def close(self) -> None:
        """End the program."""
        assert self.program.stdin is not None
        self.program.stdin.close()
        self.program.wait()


class UNet:
    """MONAI's 2-D U-Net with residual units, as wide as a number of operations per slice asks for; random weights.

    Args:
        flops: per slice.
        classes: output channels, the background included.
        device: where to compute.
        side: of a slice.
    """

    def __init__(self, flops: float, classes: int, device: torch.device, side: int):
        reached = self._flops(32, classes, side)
        # Almost all operations grow with the square of the width.
        self.width = max(8, 8 * round(32 * (flops / reached) ** 0.5 / 8))
        self.flops = self._flops(self.width, classes, side)
        self.model = _unet(self.width, classes).to(device).eval()

    @staticmethod
    def _flops(width: int, classes: int, side: int) -> int:
        with torch.device("meta"), torch.no_grad():
            model, image = _unet(width, classes).eval(), torch.empty(1, 3, side, side)
            return counted(lambda: model(image))[0]

    def __call__(self, images: Tensor) -> Tensor:
        """Return the label of each pixel [B, H, W] of slices [B, 3, H, W]."""
        with torch.inference_mode():
            labels: Tensor = self.model(images).argmax(dim=1)
            return labels


def _unet(width: int, classes: int) -> MonaiUNet:
    widths = [width * 2**level for level in range(5)]
    return MonaiUNet(2, 3, classes, channels=widths, strides=[2] * 4, num_res_units=2)


class Pasting(nn.Module):
    """torchvision's last step; keeps what was found before masks are pasted into the slice, for the linker."""

    def __init__(self, paste: Callable[..., Any]):
        super().__init__()
        self.paste = paste
        self.found: list[dict[str, Tensor]] = []

    def forward(self, results: list, resized: list, sizes: list) -> Any:
        """Return the results with pasted masks."""
        for found, small, size in zip(results, resized, sizes, strict=True):
            self.found.append({**found, "boxes": resize_boxes(found["boxes"], small, size)})
        return self.paste(results, resized, sizes)


class Stock:
    """torchvision's Mask R-CNN with frozen batch normalisation, as its published weights have it.

    Args:
        model: whose weights, by torchvision's names, are loaded.
        size: to which slices are resized, their shorter side; 800 unless told otherwise.
        device: where to compute.
    """

    def __init__(self, model: MaskRCNN, size: int, device: torch.device):
        classes = model.roi_heads.classes + 1
        self.model = StockMaskRCNN(
            resnet_fpn_backbone(backbone_name="resnet50", weights=None), classes,
            min_size=size, max_size=1333,
            image_mean=[0.0] * 3, image_std=[1.0] * 3,  # the windows are the normalisation
        )  # fmt: skip
        self.model.load_state_dict(model.state_dict())
        self.model.to(device).eval()
        self.pasting = Pasting(self.model.transform.postprocess)
        self.model.transform.__dict__["postprocess"] = self.pasting

    def __call__(self, images: Tensor) -> Any:
        """Run the slices [B, 3, H, W] of a batch."""
        with torch.inference_mode():
            return self.model(list(images))

    def detections(self, labels: Sequence[int]) -> list[Detections]:
        """Return what was found since the last call, slice by slice, and forget it."""
        ids, found, self.pasting.found = np.array((0, *labels)), self.pasting.found, []
        return [
            Detections(
                slice_index=index,
                boxes=part["boxes"].cpu().numpy(),
                scores=part["scores"].cpu().numpy(),
                labels=ids[part["labels"].cpu().numpy()],
                masks=part["masks"][:, 0].cpu().numpy(),
            )
            for index, part in enumerate(found)
        ]
