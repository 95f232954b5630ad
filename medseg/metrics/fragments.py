"""How linking fails: objects found in pieces, and several objects in one."""

import numpy as np

from medseg.values.pairs import PairTable

#: A predicted object is a fragment of the object that holds this share of its voxels.
FRAGMENT = 0.5
#: A predicted object is mixed when it holds this share of each of several objects.
MIXED = 0.25


def count_fragments(pairs: PairTable) -> tuple[int, int, int]:
    """Count over objects of one label each, of one case.

    Returns:
        Fragments; reference objects that have one (fragments over these is 1 where none is in pieces); predicted
        objects that mix several. Sums over cases are those of the cohort.
    """
    same = pairs.same_label()
    reference, prediction, shared = pairs.reference[same], pairs.prediction[same], pairs.intersection[same]
    of_object = np.bincount(reference[shared >= FRAGMENT * pairs.prediction_voxels[prediction]])
    held = np.bincount(prediction[shared >= MIXED * pairs.reference_voxels[reference]])
    return int(of_object.sum()), int(np.count_nonzero(of_object)), int(np.count_nonzero(held > 1))
