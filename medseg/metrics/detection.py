"""Object agreement of one class: what was found, missed, invented, split and merged.

Objects match one to one at a threshold of IoU or Dice (`PairTable.matching`: most matches, then the largest
total). What is undefined is NaN: where the reference holds no object of the class, every score is NaN and the
false positives are counted.

- F1 = 2 TP / (2 TP + FP + FN).
- Jaccard index of detection = TP / (TP + FP + FN). Microscopy papers call it average precision; it has nothing to do
  with the area under a precision-recall curve, which is what AP means here (`medseg.metrics.ranking`).
- PQ = SQ x RQ, SQ the mean IoU of the matched pairs, RQ = F1: Kirillov et al., Panoptic Segmentation,
  CVPR 2019 (there at IoU > 0.5; here at the threshold given, with the best matching). With objects in the
  reference and no match, SQ is NaN and PQ is 0.
- Lesion Dice: the mean over reference objects, however small, of the Dice of their match, 0 where one was missed.
  (BraTS 2023 divides by TP + FP + FN instead: Moawad et al., arXiv:2306.00838. False positives count in F1 here.)
- Split: a reference object that holds at least half of each of two or more predicted objects of its class.
- Merge: a predicted object that holds at least half of each of two or more reference objects of its class.
  Splits and merges are the over- and under-segmentation of Hoover et al., An experimental comparison of range image
  segmentation algorithms, IEEE PAMI 18(7), 1996, at a tolerance of 0.5, without the condition that the parts cover
  half of the whole: a blob that swallows two small lesions merges them, however large it is.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.values.pairs import PairTable

#: Share of an object that must lie in another for it to count as a part of it.
PART = 0.5


@dataclass(frozen=True, kw_only=True)
class DetectionScore:
    """Counts of one class, in one case or pooled over cases, and what follows from them.

    Attributes:
        tp, fp, fn: matched pairs, predicted objects without a match, reference objects without one.
        iou_sum, dice_sum: totals over the matched pairs.
        splits: reference objects that were predicted in parts.
        merges: predicted objects that join several reference objects.
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0
    iou_sum: float = 0.0
    dice_sum: float = 0.0
    splits: int = 0
    merges: int = 0

    @property
    def reference_objects(self) -> int:
        """Objects in the reference."""
        return self.tp + self.fn

    @property
    def prediction_objects(self) -> int:
        """Objects predicted."""
        return self.tp + self.fp

    @property
    def f1(self) -> float:
        """Recognition quality RQ, the F1 of objects."""
        return self._over(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def jaccard_detection(self) -> float:
        """Jaccard index of detection, TP / (TP + FP + FN)."""
        return self._over(self.tp, self.tp + self.fp + self.fn)

    @property
    def sensitivity(self) -> float:
        """Share of the reference objects that were found."""
        return self._over(self.tp, self.tp + self.fn)

    @property
    def precision(self) -> float:
        """Share of the predicted objects that are real; NaN too where nothing was predicted."""
        return self._over(self.tp, self.tp + self.fp)

    @property
    def sq(self) -> float:
        """Segmentation quality, the mean IoU of matched pairs; NaN where none matched."""
        return self._over(self.iou_sum, self.tp)

    @property
    def pq(self) -> float:
        """Panoptic quality, SQ x RQ."""
        return self._over(2 * self.iou_sum, 2 * self.tp + self.fp + self.fn)

    @property
    def mean_matched_dice(self) -> float:
        """Mean Dice of matched pairs, each object weighted alike; NaN where none matched."""
        return self._over(self.dice_sum, self.tp)

    @property
    def lesion_dice(self) -> float:
        """Mean Dice over the reference objects, 0 for a missed one, each object weighted alike."""
        return self._over(self.dice_sum, self.tp + self.fn)

    def _over(self, numerator: float, denominator: float) -> float:
        return numerator / denominator if self.reference_objects and denominator else float("nan")


def score_detections(pairs: PairTable, matched: NDArray[np.int64], label: int) -> DetectionScore:
    """Count one class of one case.

    Args:
        pairs: the touching pairs.
        matched: rows of ``pairs`` that are matched (see `PairTable.matching`).
        label: id in ``pairs.labels``.
    """
    rows = matched[pairs.reference_labels[pairs.reference[matched]] == label]
    references = int(np.count_nonzero(pairs.reference_labels == label))
    predictions = int(np.count_nonzero(pairs.prediction_labels == label))
    inside = pairs.same_label() & (pairs.reference_labels[pairs.reference] == label)
    reference, prediction = pairs.reference[inside], pairs.prediction[inside]
    shared = pairs.intersection[inside]
    parts = np.bincount(reference[shared >= PART * pairs.prediction_voxels[prediction]])
    joined = np.bincount(prediction[shared >= PART * pairs.reference_voxels[reference]])
    return DetectionScore(
        tp=len(rows),
        fp=predictions - len(rows),
        fn=references - len(rows),
        iou_sum=float(pairs.iou()[rows].sum()),
        dice_sum=float(pairs.dice()[rows].sum()),
        splits=int(np.count_nonzero(parts >= 2)),
        merges=int(np.count_nonzero(joined >= 2)),
    )


def pooled(scores: Iterable[DetectionScore]) -> DetectionScore:
    """Add up the counts of several cases; the scores of the sum weigh every object alike."""
    scores = list(scores)
    return DetectionScore(
        tp=sum(s.tp for s in scores),
        fp=sum(s.fp for s in scores),
        fn=sum(s.fn for s in scores),
        iou_sum=sum(s.iou_sum for s in scores),
        dice_sum=sum(s.dice_sum for s in scores),
        splits=sum(s.splits for s in scores),
        merges=sum(s.merges for s in scores),
    )
