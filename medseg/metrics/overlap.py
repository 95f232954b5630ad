"""Voxel agreement of one class: the union of its reference objects against that of its predicted ones.

What is undefined is NaN. Where the reference holds no object of the class, agreement with it is undefined
whatever was predicted; the false positives show in the counts (`medseg.metrics.detection`) and in
``prediction_ml``.

Definitions: Taha and Hanbury, Metrics for evaluating 3D medical image segmentation, BMC Medical Imaging
2015, 15:29.
"""

from dataclasses import dataclass

import numpy as np

from medseg.metrics.windows import in_common_window
from medseg.values.geometry import spacing_of
from medseg.values.instances import Instance, InstanceSet
from medseg.values.pairs import common_labels, on_grid_of


@dataclass(frozen=True, kw_only=True)
class VoxelOverlap:
    """Voxel counts of one class and what follows from them.

    Attributes:
        reference_voxels, prediction_voxels, shared_voxels: counts on the reference's grid.
        voxel_ml: volume of one voxel in ml.
    """

    reference_voxels: int
    prediction_voxels: int
    shared_voxels: int
    voxel_ml: float

    @property
    def reference_ml(self) -> float:
        """Reference volume in ml; 0 where it has none."""
        return self.reference_voxels * self.voxel_ml

    @property
    def prediction_ml(self) -> float:
        """Predicted volume in ml; 0 where there is none."""
        return self.prediction_voxels * self.voxel_ml

    @property
    def dice(self) -> float:
        """Twice the shared voxels over the sum of both."""
        return self._against_reference(2 * self.shared_voxels, self.reference_voxels + self.prediction_voxels)

    @property
    def iou(self) -> float:
        """Shared voxels over the union (Jaccard index)."""
        union = self.reference_voxels + self.prediction_voxels - self.shared_voxels
        return self._against_reference(self.shared_voxels, union)

    @property
    def sensitivity(self) -> float:
        """Share of the reference that was predicted."""
        return self._against_reference(self.shared_voxels, self.reference_voxels)

    @property
    def precision(self) -> float:
        """Share of the prediction that lies in the reference; NaN too where nothing was predicted."""
        return self._against_reference(self.shared_voxels, self.prediction_voxels)

    @property
    def volume_difference_ml(self) -> float:
        """Predicted minus reference volume in ml; defined always."""
        return (self.prediction_voxels - self.reference_voxels) * self.voxel_ml

    @property
    def volume_difference_percent(self) -> float:
        """Predicted minus reference volume in per cent of the reference."""
        return self._against_reference(100 * (self.prediction_voxels - self.reference_voxels), self.reference_voxels)

    def _against_reference(self, numerator: int, denominator: int) -> float:
        return numerator / denominator if self.reference_voxels and denominator else float("nan")


def voxel_overlap(reference: InstanceSet, prediction: InstanceSet) -> dict[str, VoxelOverlap]:
    """Compare two sets class by class; classes are matched by name.

    Args:
        reference, prediction: objects on the same grid in world space (any axis order).

    Returns:
        One entry per label name of either table, the reference's first. A voxel that several objects of a
        class share counts once.

    Raises:
        GeometryError: the grids differ.
    """
    prediction = on_grid_of(reference, prediction)
    joint, to_joint = common_labels(reference.labels, prediction.labels)
    voxel_ml = float(np.prod(spacing_of(reference.geometry))) / 1000
    result = {}
    for label in joint:
        first = [i for i in reference if i.label == label.id]
        second = [i for i in prediction if to_joint[i.label] == label.id]
        a, b, shared = _union_counts(first, second, reference.geometry.spatial_shape)
        result[label.name] = VoxelOverlap(
            reference_voxels=a, prediction_voxels=b, shared_voxels=shared, voxel_ml=voxel_ml
        )
    return result


def _union_counts(first: list[Instance], second: list[Instance], shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Count the voxels of two unions and of what they share, on a canvas just large enough for both."""
    if not first and not second:
        return 0, 0, 0
    a, b = in_common_window(first, second, shape=shape, margin=0)
    return int(np.count_nonzero(a)), int(np.count_nonzero(b)), int(np.count_nonzero(a & b))
