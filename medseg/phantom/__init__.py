"""The synthetic CT cohort: torsos with overlapping organs and touching, nested lesions."""

from medseg.phantom.case import SHAPE, SPACING_MM, Phantom, make_phantom, phantom_labels

__all__ = ["SHAPE", "SPACING_MM", "Phantom", "make_phantom", "phantom_labels"]
