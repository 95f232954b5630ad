"""medseg: one 3-D mask per object from CT and MR studies, overlaps kept. Research use only."""

__version__ = "0.1.0"
