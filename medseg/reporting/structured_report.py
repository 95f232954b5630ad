"""Measurements in the codes of DICOM structured reports.

Codes: SNOMED CT for volume and axes, IBSI (the Image Biomarker Standardisation Initiative's feature codes) for shape,
DCM 112031 with a derivation for intensities, units in UCUM, as TID 1500 and its context groups (PS3.16) have them.
"""

from pathlib import Path

from medseg.io.dicom_sr import HOUNSFIELD, Quantity, write_dicom_sr
from medseg.labels import Code
from medseg.metrics.measurement import Measurement

_MM = Code(value="mm", scheme="UCUM", meaning="millimeter")
#: Attribute of `Measurement` -> name and unit.
_SHAPE = {
    "volume_ml": (
        Code(value="118565006", scheme="SCT", meaning="Volume"),
        Code(value="ml", scheme="UCUM", meaning="milliliter"),
    ),
    "long_axis_mm": (Code(value="103339001", scheme="SCT", meaning="Long Axis"), _MM),
    "short_axis_mm": (Code(value="103340004", scheme="SCT", meaning="Short Axis"), _MM),
    "max_diameter_mm": (Code(value="L0JK", scheme="IBSI", meaning="Maximum 3D Diameter"), _MM),
    "surface_mm2": (
        Code(value="C0JK", scheme="IBSI", meaning="Surface Area of Mesh"),
        Code(value="mm2", scheme="UCUM", meaning="square millimeter"),
    ),
    "sphericity": (
        Code(value="QCFX", scheme="IBSI", meaning="Sphericity"),
        Code(value="1", scheme="UCUM", meaning="no units"),
    ),
}
_ATTENUATION = Code(value="112031", scheme="DCM", meaning="Attenuation Coefficient")
_DERIVATIONS = {
    "mean": Code(value="373098007", scheme="SCT", meaning="Mean"),
    "sd": Code(value="386136009", scheme="SCT", meaning="Standard Deviation"),
    "minimum": Code(value="255605001", scheme="SCT", meaning="Minimum"),
    "maximum": Code(value="56851009", scheme="SCT", meaning="Maximum"),
}


def write_measurements_sr(measurements: list[Measurement], segmentation: Path, target: Path) -> None:
    """Write measurements of the objects of a DICOM SEG as a report on its segments (see `write_dicom_sr`).

    Raises:
        InputError: the segmentation is no DICOM SEG, has no objects, or names no series.
    """
    write_dicom_sr(target, segmentation, [_quantities(measurement) for measurement in measurements])


def _quantities(measurement: Measurement) -> list[Quantity]:
    found = [
        Quantity(name=name, value=getattr(measurement, attribute), unit=unit)
        for attribute, (name, unit) in _SHAPE.items()
    ]
    return found + [
        Quantity(name=_ATTENUATION, value=getattr(measurement, attribute), unit=HOUNSFIELD, derivation=derivation)
        for attribute, derivation in _DERIVATIONS.items()
    ]
