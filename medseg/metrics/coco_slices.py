"""COCO's average precision with every slice as an image, by faster-coco-eval.

A figure to compare with 2-D detectors. It says nothing about whether slices were joined to the right objects
(`medseg.metrics.ranking` does), and an object that spans many slices counts as often.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as coco_mask

from medseg.values.instances import InstanceSet

NAN = float("nan")
#: Columns of `COCOeval` precision: all areas.
_ALL_AREAS = 0


@dataclass(frozen=True, kw_only=True)
class SliceObjects:
    """The cross-sections of one case.

    Attributes:
        reference, prediction: (slice, name of the class, score, run-length encoded mask) of each cross-section,
            all masks of a case in one crop of the plane.
    """

    reference: tuple[tuple[int, str, float, Any], ...]
    prediction: tuple[tuple[int, str, float, Any], ...]


def slice_objects(reference: InstanceSet, prediction: InstanceSet) -> SliceObjects:
    """Cut two sets of one grid into slices along the first array axis."""
    everyone = [*reference, *prediction]
    low = np.min([i.offset[1:] for i in everyone], axis=0) if everyone else np.zeros(2, int)
    high = np.max([np.add(i.offset, i.mask.shape)[1:] for i in everyone], axis=0) if everyone else low

    def sections(instances: InstanceSet) -> tuple[tuple[int, str, float, Any], ...]:
        found = []
        for instance in instances:
            # COCO wants [rows, columns, n] with rows contiguous.
            canvas = np.zeros((*(high - low), instance.mask.shape[0]), np.uint8, order="F")
            row, column = np.subtract(instance.offset[1:], low)
            _, height, width = instance.mask.shape
            canvas[row : row + height, column : column + width] = instance.mask.transpose(1, 2, 0)
            name = instances.labels[instance.label].name
            for z, (code, inside) in enumerate(zip(coco_mask.encode(canvas), instance.mask, strict=True)):
                if inside.any():
                    found.append((instance.offset[0] + z, name, instance.score, code))
        return tuple(found)

    return SliceObjects(reference=sections(reference), prediction=sections(prediction))


def coco_slice_ap(cases: Sequence[SliceObjects], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return COCO's AP of every class over all slices of a cohort.

    Args:
        cases: see `slice_objects`.
        names: of the classes.

    Returns:
        Per class ``ap_50_95`` (IoU 0.50 to 0.95 in steps of 0.05), ``ap_50`` and ``ap_75``, masks of every area and
        without a limit on the detections of a slice; NaN where no slice of the reference holds the class.
    """
    categories = {name: i + 1 for i, name in enumerate(names)}
    images: dict[tuple[int, int], dict[str, int]] = {}
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for position, case in enumerate(cases):
        for sections, target in ((case.reference, annotations), (case.prediction, detections)):
            for z, name, score, code in sections:
                height, width = code["size"]
                image = images.setdefault((position, z), {"id": len(images) + 1, "height": height, "width": width})
                entry = {"id": len(target) + 1, "image_id": image["id"], "category_id": categories[name]}
                more = {"score": score} if target is detections else {"area": int(coco_mask.area(code)), "iscrowd": 0}
                target.append(entry | more | {"segmentation": code})
    if not annotations:
        return {name: {"ap_50_95": NAN, "ap_50": NAN, "ap_75": NAN} for name in names}
    truth = COCO({
        "images": list(images.values()),
        "categories": [{"id": i, "name": name} for name, i in categories.items()],
        "annotations": annotations,
    })  # fmt: skip
    evaluation = COCOeval_faster(truth, truth.loadRes(detections), iouType="segm", rle_iou_max_workers=1)
    evaluation.params.maxDets = [max(1, len(detections))]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, _ALL_AREAS, -1]  # [threshold, recall, class]
    means = np.where(precision < 0, np.nan, precision).mean(axis=1)
    return {
        name: {"ap_50_95": float(means[:, k].mean()), "ap_50": float(means[0, k]), "ap_75": float(means[5, k])}
        for k, name in enumerate(names)
    }
