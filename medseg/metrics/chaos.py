"""The four metrics of the CHAOS challenge, class by class.

Kavur et al., CHAOS Challenge - combined (CT-MR) healthy abdominal organ segmentation, Medical Image Analysis 2021,
69:101950, and the challenge's published code (github.com/emrekavur/CHAOS-evaluation).
"""

from dataclasses import dataclass

from medseg.metrics.overlap import voxel_overlap
from medseg.metrics.surface import class_surface_distances
from medseg.values.instances import InstanceSet


@dataclass(frozen=True, kw_only=True)
class ChaosScore:
    """One class of one case; NaN where the reference has no object, distances also where the prediction has none.

    Attributes:
        dice: twice the shared voxels over the sum of both, 0..1.
        ravd_percent: relative absolute volume difference: the difference of the volumes, without its sign, in per cent
            of the reference's.
        assd_mm: average symmetric surface distance, the border voxels of both pooled.
        mssd_mm: maximum symmetric surface distance.
    """

    dice: float
    ravd_percent: float
    assd_mm: float
    mssd_mm: float


def chaos_scores(reference: InstanceSet, prediction: InstanceSet) -> dict[str, ChaosScore]:
    """Score a prediction as the CHAOS challenge does.

    Args:
        reference, prediction: objects on the same grid in world space (any axis order); the objects of a class are
            one region.

    Returns:
        One entry per label name of either table, the reference's first.

    Raises:
        GeometryError: the grids differ.
    """
    overlaps = voxel_overlap(reference, prediction)
    distances = class_surface_distances(reference, prediction, surface="chaos")
    return {
        name: ChaosScore(
            dice=overlap.dice,
            ravd_percent=abs(overlap.volume_difference_percent),
            assd_mm=distances[name].assd(),
            mssd_mm=distances[name].hd(100),
        )
        for name, overlap in overlaps.items()
    }
