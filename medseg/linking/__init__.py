"""Linking: detections per slice become 3-D objects. No torch.

nodes       detections pasted once, as crops, in an order that does not depend on the input's
duplicates  several detections of one thing in one slice
affinity    log-odds that two detections of different slices are one object
flow        the best set of tracks, exactly
reassembly  tracks to masks: gaps filled, shared voxels settled
linker      `link`, the steps in order
"""

from medseg.linking.linker import link

__all__ = ["link"]
