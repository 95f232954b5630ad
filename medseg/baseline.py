"""The simplest detector: a band of HU, connected components, a range of volumes.

It is tuned as fairly as it can be and shown beside every result on the phantom: data on which it does well
would prove nothing about a network.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import cc3d
import numpy as np
from highdicom import Volume
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from medseg.errors import ConfigError, InputError
from medseg.labels import LabelTable
from medseg.progress import Track, silent
from medseg.values.geometry import IDENTITY, grid_map, spacing_of
from medseg.values.instances import Instance, InstanceSet

#: What `tune_baseline` tries: SD of the smoothing, mm; smallest and largest volume, ml.
SMOOTHING_MM = (1.5, 3.0, 4.5)
MIN_ML = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
MAX_ML = (4.0, 8.0, 16.0, 32.0)
#: Edges of the HU bands that are tried: this many quantiles of the lesions' own smoothed voxels.
BAND_EDGES = 9
IOU = 0.3


@dataclass(frozen=True, kw_only=True)
class ThresholdBaseline:
    """A tuned threshold-and-components detector of one label.

    Attributes:
        label: the label id it gives.
        labels: the label table of its predictions.
        low_hu, high_hu: smoothed voxels within this band, both ends included, are taken.
        smoothing_mm: SD of the Gaussian that comes first.
        min_ml, max_ml: components (26-neighbourhood) within this range of volumes are objects.
        training_f1: F1 at 3-D IoU 0.3 on the cases it was tuned on.
    """

    label: int
    labels: LabelTable
    low_hu: float
    high_hu: float
    smoothing_mm: float
    min_ml: float
    max_ml: float
    training_f1: float

    def predict(self, volume: Volume) -> InstanceSet:
        """Return the objects of a volume (slice, row, column) in HU."""
        components, sizes = _components(_smooth(volume, self.smoothing_mm), self.low_hu, self.high_hu)
        volumes = sizes * _voxel_ml(volume)
        keep = np.flatnonzero((volumes >= self.min_ml) & (volumes <= self.max_ml))
        windows = ndimage.find_objects(components)
        found = []
        for component in keep[keep > 0]:
            window = windows[component - 1]
            offset = (window[0].start, window[1].start, window[2].start)
            found.append(Instance(id=1, label=self.label, mask=components[window] == component, offset=offset))
        return InstanceSet.build(found, volume, self.labels)


def tune_baseline(
    cases: Sequence[tuple[Volume, InstanceSet]], label: int, *, track: Track = silent
) -> ThresholdBaseline:
    """Return the settings with the highest F1 (3-D IoU >= 0.3, pooled over all cases).

    Args:
        cases: images in HU and their truth, on the same grid and in the same axis order.
        label: id of the label to detect.
        track: reports progress.

    Raises:
        ConfigError: no cases, or a label that the table lacks.
        InputError: no object of the label in any case, or image and truth on different grids.
    """
    if not cases:
        raise ConfigError("baseline: no cases to tune on; give at least one")
    table = cases[0][1].labels
    name = table[label].name
    for position, (volume, truth) in enumerate(cases):
        if grid_map(volume, truth.geometry) != IDENTITY:
            raise InputError(
                f"baseline, case {position + 1}: image and truth have different grids; bring both to one axis order"
            )
    if not any(i.label == label for _, truth in cases for i in truth):
        raise InputError(f"baseline: none of the {len(cases)} cases has an object of label {label} ({name})")
    best = ThresholdBaseline(
        label=label, labels=table, low_hu=0.0, high_hu=0.0, smoothing_mm=0.0,
        min_ml=MIN_ML[0], max_ml=MAX_ML[-1], training_f1=-1.0,
    )  # fmt: skip
    for smoothing in track(SMOOTHING_MM, "tuning the baseline"):
        smooth = [_smooth(volume, smoothing) for volume, _ in cases]
        inside = [s[i.window][i.mask] for s, (_, truth) in zip(smooth, cases, strict=True) for i in truth
                  if i.label == label]  # fmt: skip
        edges = np.quantile(np.concatenate(inside), np.linspace(0.01, 0.99, BAND_EDGES)).round(1)
        for low, high in product(edges, edges):
            if low >= high:
                continue
            trials = [
                _Trial.run(s, truth, label, float(low), float(high), _voxel_ml(volume))
                for s, (volume, truth) in zip(smooth, cases, strict=True)
            ]
            for smallest, largest in product(MIN_ML, MAX_ML):
                if smallest >= largest:
                    continue
                counts = np.sum([trial.counts(smallest, largest) for trial in trials], axis=0)
                f1 = 2 * counts[0] / (counts[1] + counts[2])
                if f1 > best.training_f1:
                    best = replace(
                        best, low_hu=float(low), high_hu=float(high), smoothing_mm=smoothing,
                        min_ml=smallest, max_ml=largest, training_f1=float(f1),
                    )  # fmt: skip
    return best


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """The components of one case under one band, and which of them could match which reference object."""

    volumes_ml: NDArray[np.float64]
    reference: NDArray[np.intp]
    component: NDArray[np.intp]
    references: int

    @classmethod
    def run(
        cls, smooth: NDArray[np.float32], truth: InstanceSet, label: int, low: float, high: float, voxel_ml: float
    ) -> "_Trial":
        components, sizes = _components(smooth, low, high)
        pairs: list[tuple[int, int]] = []
        references = [i for i in truth if i.label == label]
        for position, instance in enumerate(references):
            shared = np.bincount(components[instance.window][instance.mask])
            shared[0] = 0
            for component in np.flatnonzero(shared):
                both = shared[component]
                if both >= IOU * (instance.voxels + sizes[component] - both):
                    pairs.append((position, int(component)))
        edges = np.array(pairs, np.intp).reshape(-1, 2)
        volumes = sizes * voxel_ml
        volumes[0] = 0
        return cls(volumes_ml=volumes, reference=edges[:, 0], component=edges[:, 1], references=len(references))

    def counts(self, min_ml: float, max_ml: float) -> tuple[int, int, int]:
        """Return matched pairs, predicted objects and reference objects within a range of volumes."""
        keep = (self.volumes_ml >= min_ml) & (self.volumes_ml <= max_ml)
        valid = keep[self.component]
        matched = 0
        if valid.any():
            columns, column = np.unique(self.component[valid], return_inverse=True)
            graph = csr_array(
                (np.ones(len(column)), (self.reference[valid], column)), shape=(self.references, len(columns))
            )
            matched = int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())
        return matched, int(keep.sum()), self.references


def _voxel_ml(volume: Volume) -> float:
    return float(np.prod(spacing_of(volume))) / 1000


def _smooth(volume: Volume, smoothing_mm: float) -> NDArray[np.float32]:
    sd = [smoothing_mm / step for step in spacing_of(volume)]
    return ndimage.gaussian_filter(volume.array.astype(np.float32), sd, truncate=3.0)


def _components(
    smooth: NDArray[np.float32], low: float, high: float
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.float64]]:
    """Return the component of every voxel (0: none) and how many voxels each has."""
    components = cc3d.connected_components((smooth >= low) & (smooth <= high), connectivity=26)
    return components, np.bincount(components.ravel()).astype(np.float64)
