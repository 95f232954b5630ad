"""What ablations and comparisons share: phantoms in memory, a bare training, slice-wise scores, paired differences."""

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as coco_mask
from highdicom import Volume
from monai.metrics import compute_surface_dice
from numpy.typing import NDArray
from scipy.stats import t as student
from torchvision.models.detection.image_list import ImageList

from medseg.data.cache import CachedCase, CachedObject
from medseg.data.context import network_input
from medseg.data.dataset import SliceDataset
from medseg.data.sample import Sample
from medseg.inference.fetching import fetch
from medseg.labels import LabelTable
from medseg.models.mask_rcnn import MaskRCNN, build_mask_rcnn
from medseg.phantom import make_phantom, phantom_labels
from medseg.training.state import TrainingState
from medseg.training.step import Stepper
from medseg.values.detections import Detections
from medseg.values.geometry import spacing_of
from medseg.values.instances import InstanceSet
from medseg.values.pasting import paste_masks
from medseg.values.plan import Plan

CPU = torch.device("cpu")
COLUMNS = ("setting", "class", "figure", "mean", "sd", "n", "difference", "difference_sd", "pairs", "low", "high")
#: The organs; lesions take longer to learn than these trainings last.
ORGANS = LabelTable([label for label in phantom_labels() if label.kind == "single"])
Figures = dict[tuple[str, str], float]


# -- tables -----------------------------------------------------------------------------------------------


def spread(values: list[float]) -> tuple[float, float, int]:
    """Return mean, standard deviation and number of what is defined."""
    defined = [v for v in values if not math.isnan(v)]
    mean = statistics.fmean(defined) if defined else math.nan
    return mean, statistics.stdev(defined) if len(defined) > 1 else math.nan, len(defined)


def tabulate(results: dict[str, dict[int, Figures]]) -> list[dict[str, Any]]:
    """Return the rows for setting -> seed -> (class, figure) -> value; differences where both settings have a seed.

    ``low`` and ``high`` are the 95 % interval of the mean difference by Student's t over the pairs of seeds: where it
    holds 0, the difference is inside the noise.
    """
    rows, first = [], next(iter(results.values()))
    for setting, by_seed in results.items():
        for name, figure in dict.fromkeys(key for found in by_seed.values() for key in found):
            mine = {seed: found.get((name, figure), math.nan) for seed, found in by_seed.items()}
            pairs = [v - first[seed].get((name, figure), math.nan) for seed, v in mine.items() if seed in first]
            apart = (None,) * 5 if by_seed is first else _difference(pairs)
            rows.append(dict(zip(COLUMNS, (setting, name, figure, *spread([*mine.values()]), *apart), strict=True)))
    return rows


def _difference(pairs: list[float]) -> tuple[float, float, int, float, float]:
    """Return mean, SD and number of paired differences, and the 95 % interval of the mean."""
    mean, sd, number = spread(pairs)
    half = float(student.ppf(0.975, number - 1)) * sd / math.sqrt(number) if number > 1 else math.nan
    return mean, sd, number, mean - half, mean + half


# -- phantoms and training --------------------------------------------------------------------------------


def as_case(name: str, volume: Volume, truth: InstanceSet) -> CachedCase:
    """Return an image and the objects of its labels as a prepared case: the grid stays."""
    return CachedCase(
        name=name,
        array=volume.array[None],
        geometry=volume.get_geometry(),
        slice_spacing_mm=spacing_of(volume)[0],
        objects=tuple(CachedObject.of(i.label, i.mask, i.offset) for i in truth),
    )


def draw_case(
    seed: int, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], labels: LabelTable
) -> CachedCase:
    """Draw a phantom as a prepared case that holds the objects of some labels."""
    phantom = make_phantom(seed=seed, shape=shape, spacing_mm=spacing_mm)
    kept = [i for i in phantom.instances if i.label in labels.ids]
    truth = InstanceSet.build(kept, phantom.volume.get_geometry(), labels)
    return as_case(f"phantom_{seed}", phantom.volume, truth)


class GroupedStepper(Stepper):
    """On one thread the samples of a batch cost a quarter less together than one by one."""

    def _parts(self, share: Sequence[Sample]) -> list[Any]:
        return [self._compute(list(share))]


def train_plainly(cases: Sequence[CachedCase], plan: Plan, *, masks: bool = True) -> MaskRCNN:
    """Train a plan's network as `medseg train` does, without files and validation; return it with averaged weights.

    Args:
        cases: prepared.
        plan: decides everything, the seed included.
        masks: off: the mask head learns nothing and costs nothing, which leaves Faster R-CNN.
    """
    state = TrainingState(plan, CPU)
    if not masks:
        state.model.roi_heads._mask_loss = lambda features, samples, targets: features[0].new_zeros(())
    stepper, size = GroupedStepper(state.model, plan.training, CPU), plan.training.batch_size
    samples = SliceDataset(cases, plan, plan.training.steps * size, plan.training.seed)
    try:
        while not state.finished:
            stepper.gradients([samples[state.step * size + place] for place in range(size)])
            state.advance()
    finally:
        stepper.close()
    trained = build_mask_rcnn(plan)
    trained.load_state_dict(state.average.values)
    return trained.eval()


# -- scores of slices -------------------------------------------------------------------------------------


class SliceTruth(NamedTuple):
    """The objects of a slice: classes [G] in 1..K, masks [G, H, W], boxes [G, 4] in pixels."""

    classes: NDArray[np.int64]
    masks: NDArray[np.bool_]
    boxes: NDArray[np.float32]


def truth_of(case: CachedCase, index: int, labels: LabelTable) -> SliceTruth:
    """Return what a slice of a case holds."""
    class_of = {label: number + 1 for number, label in enumerate(labels.ids)}
    classes, masks, boxes = [], [], []
    for item in case.objects:
        z = index - item.offset[0]
        if 0 <= z < item.shape[0] and item.areas[z]:
            whole = np.zeros(case.array.shape[2:], np.bool_)
            row, column = item.offset[1:]
            whole[row : row + item.shape[1], column : column + item.shape[2]] = item.plane(index)
            rows, columns = np.flatnonzero(whole.any(axis=1)), np.flatnonzero(whole.any(axis=0))
            classes.append(class_of[item.label])
            masks.append(whole)
            boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return SliceTruth(
        np.array(classes, np.int64),
        np.array(masks, np.bool_).reshape(-1, *case.array.shape[2:]),
        np.array(boxes, np.float32).reshape(-1, 4),
    )


@torch.inference_mode()
def look(
    model: MaskRCNN, plan: Plan, case: CachedCase, index: int, truth: SliceTruth
) -> tuple[Detections, NDArray[np.float32]]:
    """Return what the network finds in a slice, and its masks [G, M, M] in the true boxes for the true classes."""
    image = torch.from_numpy(network_input(case.array, index, case.slice_spacing_mm, plan.input))[None]
    size = (image.shape[-2], image.shape[-1])
    _, features = model._features(image)
    proposals, _ = model.rpn(ImageList(image, [size]), features)
    levels = list(features.values())
    found = next(fetch(model.roi_heads.results(levels, proposals, size), [index], np.array((0, *plan.labels.ids))))
    own = model.roi_heads._chances(levels, [torch.from_numpy(truth.boxes)], torch.from_numpy(truth.classes))
    return found, own.numpy()


class SliceScores:
    """Collects slices and returns COCO's AP of boxes and masks, and how good masks are in the true boxes.

    Args:
        plan: whose labels are scored.
        pixel_mm: of the slices; also the tolerance of NSD.
        rectangles: take every box itself as its mask.
    """

    def __init__(self, plan: Plan, pixel_mm: float, *, rectangles: bool = False):
        self.plan = plan
        self.pixel_mm = pixel_mm
        self.rectangles = rectangles
        self.images: list[dict[str, int]] = []
        self.annotations: list[dict[str, Any]] = []
        self.found: list[dict[str, Any]] = []
        self.quality: list[tuple[int, float, float]] = []

    def add(self, truth: SliceTruth, found: Detections, own: NDArray[np.float32]) -> None:
        """Add a slice: its truth, what was found, and the masks in the true boxes."""
        shape = truth.masks.shape[1:]
        image = {"id": len(self.images) + 1, "height": shape[0], "width": shape[1]}
        self.images.append(image)
        for number, mask, box in zip(truth.classes.tolist(), truth.masks, truth.boxes.tolist(), strict=True):
            entry = {"id": len(self.annotations) + 1, "image_id": image["id"], "category_id": number, "iscrowd": 0}
            self.annotations.append(entry | {"area": int(mask.sum()), "bbox": _wide(box), "segmentation": _code(mask)})
        class_of = {label: number + 1 for number, label in enumerate(self.plan.labels.ids)}
        pasted = self._paste(found.masks, found.boxes, shape)
        for label, score, box, mask in zip(found.labels, found.scores, found.boxes.tolist(), pasted, strict=True):
            entry = {"image_id": image["id"], "category_id": class_of[int(label)], "score": float(score)}
            self.found.append(entry | {"bbox": _wide(box), "segmentation": _code(mask)})
        for number, mask, guess in zip(
            truth.classes.tolist(), truth.masks, self._paste(own, truth.boxes, shape), strict=True
        ):
            dice = 2 * np.count_nonzero(mask & guess) / (mask.sum() + guess.sum())
            self.quality.append((number, float(dice), _nsd(mask, guess, self.pixel_mm)))

    def _paste(
        self, masks: NDArray[np.float32], boxes: NDArray[np.float32], shape: tuple[int, ...]
    ) -> Iterator[NDArray[np.bool_]]:
        values = np.ones_like(masks) if self.rectangles else masks
        for pasted, row, column in paste_masks(values, boxes, (shape[0], shape[1])):
            whole = np.zeros(shape, np.bool_)
            whole[row : row + pasted.shape[0], column : column + pasted.shape[1]] = pasted >= 0.5
            yield whole

    def figures(self) -> Figures:
        """Return (class, figure) -> value, and the means over the classes that the truth holds."""
        names = self.plan.labels.names
        found: Figures = {}
        for kind, of in (("bbox", "box"), ("segm", "mask")):
            for name, (mean, at_50, at_75) in zip(names, self._precision(kind), strict=True):
                found |= {(name, f"{of}_ap"): mean, (name, f"{of}_ap50"): at_50, (name, f"{of}_ap75"): at_75}
        for number, name in enumerate(names, 1):
            own = [(dice, nsd) for of_class, dice, nsd in self.quality if of_class == number]
            for position, figure in enumerate(("dice_in_true_box", "nsd_in_true_box")):
                found[name, figure] = float(np.mean([q[position] for q in own])) if own else math.nan
        figures = dict.fromkeys(figure for _, figure in found)
        means = {figure: spread([v for (_, kind), v in found.items() if kind == figure])[0] for figure in figures}
        return found | {("mean of classes", figure): mean for figure, mean in means.items()}

    def _precision(self, kind: str) -> NDArray[np.float64]:
        """Return [K, 3] AP over IoU 0.5 to 0.95, at 0.5 and at 0.75; NaN where there is no object of a class."""
        count = len(self.plan.labels)
        # Boxes in the entries would be taken for what is to be compared, whatever the kind.
        keep = {"image_id", "category_id", "score", "bbox" if kind == "bbox" else "segmentation"}
        detections = [{key: value for key, value in entry.items() if key in keep} for entry in self.found]
        categories = [{"id": n + 1, "name": name} for n, name in enumerate(self.plan.labels.names)]
        truth = COCO({"images": self.images, "annotations": self.annotations, "categories": categories})
        evaluation = COCOeval_faster(truth, truth.loadRes(detections), iouType=kind)
        evaluation.params.maxDets = [max(1, len(detections))]
        evaluation.evaluate()
        evaluation.accumulate()
        precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]  # [threshold, recall, class]
        means = np.where(precision < 0, np.nan, precision).mean(axis=1)
        return np.stack([means.mean(axis=0), means[0], means[5]], axis=1).reshape(count, 3)


def _wide(box: list[float]) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def _code(mask: NDArray[np.bool_]) -> Any:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def _nsd(truth: NDArray[np.bool_], guess: NDArray[np.bool_], pixel_mm: float) -> float:
    """Return the share of both outlines that lies within a pixel of the other one."""
    if not guess.any():
        return 0.0
    both = np.argwhere(truth | guess)
    low, high = np.maximum(both.min(axis=0) - 2, 0), both.max(axis=0) + 3
    pair = [torch.from_numpy(m[low[0] : high[0], low[1] : high[1]].copy())[None, None] for m in (guess, truth)]
    return float(compute_surface_dice(*pair, [pixel_mm], include_background=True, spacing=[pixel_mm] * 2))


def score(
    model: MaskRCNN, plan: Plan, cases: Sequence[CachedCase], every: int, *, rectangles: bool = False
) -> tuple[Figures, int, float]:
    """Score every n-th slice of some cases; return figures, cross-sections and processor seconds."""
    start, scores = time.process_time(), SliceScores(plan, plan.input.spacing_mm[0], rectangles=rectangles)
    for case in cases:
        for index in range(every // 2, case.array.shape[1], every):
            truth = truth_of(case, index, plan.labels)
            scores.add(truth, *look(model, plan, case, index, truth))
    return scores.figures(), len(scores.annotations), time.process_time() - start
