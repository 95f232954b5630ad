"""The synthetic CT cohort: torsos with overlapping organs and touching, nested lesions."""

from medseg.phantom.case import SHAPE as SHAPE
from medseg.phantom.case import SPACING_MM as SPACING_MM
from medseg.phantom.case import Phantom as Phantom
from medseg.phantom.case import make_phantom as make_phantom
from medseg.phantom.case import phantom_labels as phantom_labels
from medseg.phantom.cohort import write_cohort as write_cohort
