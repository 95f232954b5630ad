"""Scores of detections ranked by their confidence over a whole cohort: AP in 3-D, FROC and CPM.

In each case the predicted objects of a class are taken by falling score, and each takes the reference object
of its class with the largest IoU among those that are still free and reach the threshold. What finds none is
a false positive, a second detection of the same object too. This is the rule of COCO (Lin et al., Microsoft
COCO, ECCV 2014), here with masks in 3-D and cases as images; no limit is set on the detections of a case.

The ranking then is over the cohort. Objects of equal score enter together, so that no result depends on the
order in which cases or objects come (COCO breaks such ties by order); inside a case those with the larger
IoU go first.

Where no case holds a reference object of the class, every score is NaN.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.errors import ConfigError
from medseg.values.pairs import PairTable

#: False positives per scan at which a FROC curve is read; their mean sensitivity is the CPM.
FROC_POINTS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
#: IoU thresholds over which AP is averaged. The loose range is nnDetection's (Baumgartner et al., MICCAI 2021).
AP_LOOSE = tuple(k / 100 for k in range(10, 51, 5))
AP_STRICT = tuple(k / 100 for k in range(50, 96, 5))
#: Numbers held at once when many resamples are scored.
_CHUNK = 1 << 21


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranking:
    """The detections of one class in a cohort at one IoU threshold, by falling score.

    Attributes:
        scores: [N] float64.
        cases: [N] int64, position of the case of each detection.
        hits: [N] bool, whether it found an object that was still free.
        references: [C] int64, reference objects of the class in each case.
    """

    scores: NDArray[np.float64]
    cases: NDArray[np.int64]
    hits: NDArray[np.bool_]
    references: NDArray[np.int64]

    @property
    def _ends(self) -> NDArray[np.intp]:
        """Positions of the last detection of each score."""
        return np.flatnonzero(np.append(np.diff(self.scores) != 0, True)) if len(self.scores) else np.arange(0)

    def counts(self, weights: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return true and false positives at or above each distinct score, [W, E] int64 each.

        Args:
            weights: [W, C], how often each case counts (`medseg.metrics.bootstrap`).
        """
        of_detection = weights[:, self.cases]
        ends = self._ends
        return (
            np.cumsum(of_detection * self.hits, axis=1)[:, ends],
            np.cumsum(of_detection * ~self.hits, axis=1)[:, ends],
        )


def rank(cases: Sequence[PairTable], name: str, iou_threshold: float) -> Ranking:
    """Match the detections of one class greedily in every case and rank them over the cohort.

    Args:
        cases: the touching pairs of each case.
        name: of the class; a case whose label tables lack it has no object of it.
        iou_threshold: least IoU of a hit, 0..1; a pair exactly at it is one.

    Raises:
        ConfigError: a threshold outside 0..1.
    """
    if not 0 <= iou_threshold <= 1:
        raise ConfigError(f"IoU threshold of a hit {iou_threshold}: expected 0..1")
    scores, owners, hits, references = [np.zeros(0)], [np.zeros(0, np.int64)], [np.zeros(0, bool)], []
    for position, pairs in enumerate(cases):
        label = pairs.labels.by_name(name).id if name in pairs.labels.names else 0  # 0: no object has it
        mine = np.flatnonzero(pairs.prediction_labels == label)
        found = _greedy(pairs, label, iou_threshold)
        scores.append(pairs.prediction_scores[mine])
        owners.append(np.full(len(mine), position))
        hits.append(found[mine])
        references.append(np.count_nonzero(pairs.reference_labels == label))
    score = np.concatenate(scores)
    order = np.argsort(-score, kind="stable")
    return Ranking(
        scores=score[order],
        cases=np.concatenate(owners)[order],
        hits=np.concatenate(hits)[order],
        references=np.array(references, np.int64),
    )


def _greedy(pairs: PairTable, label: int, iou_threshold: float) -> NDArray[np.bool_]:
    """Return [P], whether each predicted object of the label finds a free reference object."""
    iou = pairs.iou()
    rows = np.flatnonzero(
        (iou >= iou_threshold) & pairs.same_label() & (pairs.prediction_labels[pairs.prediction] == label)
    )
    best = np.zeros(len(pairs.prediction_labels))
    np.maximum.at(best, pairs.prediction[rows], iou[rows])
    owner = pairs.prediction[rows]
    order = np.lexsort((-iou[rows], owner, -best[owner], -pairs.prediction_scores[owner]))
    hit = np.zeros(len(best), bool)
    taken = np.zeros(len(pairs.reference_labels), bool)
    for r, p in zip(pairs.reference[rows[order]], owner[order], strict=True):
        if not hit[p] and not taken[r]:
            hit[p] = taken[r] = True
    return hit


def precision_recall(ranking: Ranking) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return [E] recall and [E] precision at each distinct score, as they are (not interpolated)."""
    tp, fp = (c[0] for c in ranking.counts(np.ones((1, len(ranking.references)), np.int64)))
    total = int(ranking.references.sum())
    return (tp / total if total else np.full(len(tp), np.nan)), tp / (tp + fp)


def average_precision(ranking: Ranking, weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return [W] average precision under each row of weights.

    The mean, over the recalls 0, 0.01 ... 1, of the highest precision at that recall or above; 0 where no such
    recall is reached. (COCO's recalls are `linspace(0, 1, 101)`; one of them is 0.7000000000000001, which misses a
    recall of exactly 7 / 10. Here they are compared in whole numbers.)

    Args:
        ranking: see `rank`.
        weights: [W, C], how often each case counts.
    """
    return np.concatenate([_average_precision(ranking, part) for part in _parts(ranking, weights)])


def _parts(ranking: Ranking, weights: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Cut weights so that a few arrays of a part's weights by detections fit the memory."""
    step = max(1, _CHUNK // max(1, len(ranking.scores)))
    return (weights[start : start + step] for start in range(0, len(weights), step))


def _average_precision(ranking: Ranking, weights: NDArray[np.int64]) -> NDArray[np.float64]:
    tp, fp = ranking.counts(weights)
    total = weights @ ranking.references
    precision = np.divide(tp, tp + fp, out=np.zeros(tp.shape), where=tp + fp > 0)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    envelope = np.pad(envelope, ((0, 0), (0, 1)))  # beyond the last recall that is reached: 0
    # The first point with recall k / 100 or more, in whole numbers, all rows in one sorted list.
    rows = np.arange(len(weights))[:, None] * (100 * int(total.max(initial=0)) + 1)
    wanted = np.arange(101) * total[:, None]
    at = np.searchsorted((100 * tp + rows).ravel(), (wanted + rows).ravel()).reshape(wanted.shape)
    at -= np.arange(len(weights))[:, None] * tp.shape[1]
    return np.where(total > 0, np.take_along_axis(envelope, at, axis=1).mean(axis=1), np.nan)


def mean_average_precision(
    cases: Sequence[PairTable], name: str, thresholds: Sequence[float], weights: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return [W] the mean over IoU thresholds of the average precision of one class."""
    return np.mean([average_precision(rank(cases, name, t), weights) for t in thresholds], axis=0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Froc:
    """A free-response curve: sensitivity against false positives per scan, one point per distinct score.

    Attributes:
        false_positives: [E] per scan (every case of the cohort is a scan), rising.
        sensitivity: [E] share of the reference objects that are hit, rising.
        scores: [E] the score at and above which detections count.
    """

    false_positives: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    scores: NDArray[np.float64]


def froc_curve(ranking: Ranking) -> Froc:
    """Return the curve of the whole cohort; sensitivity is NaN where no case has a reference object."""
    tp, fp = (c[0] for c in ranking.counts(np.ones((1, len(ranking.references)), np.int64)))
    total = int(ranking.references.sum())
    return Froc(
        false_positives=fp / len(ranking.references),
        sensitivity=tp / total if total else np.full(len(tp), np.nan),
        scores=ranking.scores[ranking._ends],
    )


def froc_sensitivities(ranking: Ranking, weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return [W, 7] the sensitivity at each of ``FROC_POINTS`` false positives per scan.

    The highest sensitivity that some score reaches with at most so many false positives per scan: 0 where even
    the highest score brings more, the last one where the curve ends earlier. (Interpolating between points, as
    some challenges do, would promise sensitivities that no score reaches.) The mean of the seven is the CPM:
    Niemeijer et al., IEEE TMI 30(2), 2011; Setio et al., LUNA16, Medical Image Analysis 42, 2017.
    """
    return np.concatenate([_froc_sensitivities(ranking, part) for part in _parts(ranking, weights)])


def _froc_sensitivities(ranking: Ranking, weights: NDArray[np.int64]) -> NDArray[np.float64]:
    tp, fp = ranking.counts(weights)
    total = (weights @ ranking.references)[:, None]
    scans = weights.sum(axis=1)[:, None]
    tp = np.pad(tp, ((0, 0), (1, 0)))  # above the highest score nothing is found
    # Compared as counts: x times the scans is exact for the points chosen.
    reached = [np.count_nonzero(fp <= point * scans, axis=1) for point in FROC_POINTS]
    found = np.take_along_axis(tp, np.stack(reached, axis=1), axis=1)
    return np.divide(found, total, out=np.full(found.shape, np.nan), where=total > 0)
