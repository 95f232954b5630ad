"""Linking: detections per slice become 3-D objects. No torch.

bitmasks    masks packed into bits: shared pixels of many pairs at once
nodes       detections pasted once, as crops, in an order that does not depend on the input's
duplicates  several detections of one thing in one slice
covers      masks that show as one what a slice nearby shows as several
alternatives  one object or two: readings of a slice that exclude each other
affinity    log-odds that two detections of different slices are one object
views       what passes along other axes say of that
dominated   edges that it cannot follow
flow        the best set of tracks, exactly
waists      tracks of objects that stand on each other, cut
ends        tracks of which one goes on where another ends, joined
pieces      short tracks that are no objects, left out
baselines   the field's usual ways, for comparison
scores      how sure the slices were; calibration
reassembly  tracks to masks: gaps filled, shared voxels settled
joins       how firm each join is
tuning      weights fitted to detections whose truth is known
linker      `link`, the steps in order
directions  objects of models whose slices run along different axes, fused
crowd       synthetic volumes of objects that touch, and
simulation  what a detector that errs would report of known objects: to measure linking
"""

from medseg.linking.joins import Join
from medseg.linking.linker import LinkingResult, link, link_in_detail

__all__ = ["Join", "LinkingResult", "link", "link_in_detail"]
