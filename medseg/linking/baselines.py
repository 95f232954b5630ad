"""The field's usual ways to link slices, to compare the flow with.

A baseline stands in for `flow.solve_tracks`: what comes before it (pasting, `drop_duplicates`) and after it (score,
`min_score`, gap filling, kinds, shared voxels) is the same for every method. So it gets the nodes after duplicates
were dropped, of all labels and slices at once (`Nodes` is sorted by label, then slice, and holds masks, windows,
boxes, scores, areas and centroids), and returns tracks.
"""

from collections.abc import Callable

from medseg.linking.nodes import Nodes
from medseg.values.plan import LinkingPlan

#: (nodes, spacing_mm as (slice, row, column), config) -> tracks: lists of node positions, each of one label and by
#: ascending slice (several of one slice are allowed and united), no position in two tracks, ordered by their first
#: position. A node in no track is dropped; a track of one is an object of one slice. Only slices between two
#: consecutive members of a track are filled.
Baseline = Callable[[Nodes, tuple[float, float, float], LinkingPlan], list[list[int]]]

BASELINES: dict[str, Baseline] = {}
