"""Measurements as a DICOM structured report (TID 1500 "Measurement Report", PS3.16) that references segments.

One group (TID 1411) per object: tracking id, the segment it was measured in, what and where it is, and its numbers.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from highdicom import sr
from highdicom.sr import CodedConcept
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

import medseg
from medseg.errors import InputError
from medseg.io.dicom_context import add_shared, content_date, derive_uid, shared_header
from medseg.io.dicom_objects import forget_writing_time, save_dataset
from medseg.io.dicom_seg import read_dicom_seg
from medseg.io.dicom_seg_labels import coded, short_text
from medseg.labels import Code

SERIES_NUMBER = 102
#: Image classes whose values are Hounsfield units: CT, enhanced CT, legacy converted enhanced CT.
_CT_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2",
}  # fmt: skip
HOUNSFIELD = Code(value="[hnsf'U]", scheme="UCUM", meaning="Hounsfield unit")
_IMAGING = CodedConcept("363679005", "SCT", "Imaging procedure")


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One number of a report: what it is, its value, its unit (UCUM), and how it sums up voxels, where it does."""

    name: Code
    value: float
    unit: Code
    derivation: Code | None = None


def write_dicom_sr(path: Path, segmentation: Path, quantities: Sequence[Sequence[Quantity]]) -> None:
    """Write a measurement report on the segments of a DICOM SEG, in its patient and study.

    The same segmentation and numbers give the same bytes.

    Args:
        path: the file.
        segmentation: the DICOM SEG.
        quantities: per object of the segmentation, in the order in which `read_dicom_seg` returns them. Undefined ones
            (NaN) are left out, Hounsfield units where the images are no CT too.

    Raises:
        InputError: no DICOM SEG, one without objects, or one that does not name the series it was made on.
    """
    numbers = read_dicom_seg(segmentation).segment_numbers
    if len(numbers) != len(quantities):
        raise InputError(f"{segmentation}: {len(numbers)} objects, measurements of {len(quantities)}")
    if not numbers:
        raise InputError(f"{segmentation}: no objects, and a report has at least one; measurements.csv says so too")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seg = dcmread(segmentation)
    series = [str(item.SeriesInstanceUID) for item in seg.get("ReferencedSeriesSequence") or []]
    if not series or not seg.get("StudyInstanceUID"):
        raise InputError(f"{segmentation}: names no study and series that it was made on, which a report must refer to")
    is_ct = _image_class(seg) in _CT_CLASSES
    described = {int(item.SegmentNumber): item for item in seg.SegmentSequence}
    what = ("report", str(seg.SOPInstanceUID), repr(quantities), medseg.__version__)
    groups = [
        _group(seg, described[number], series[0], [q for q in own if is_ct or q.unit != HOUNSFIELD], what)
        for number, own in zip(numbers, quantities, strict=True)
    ]
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=derive_uid("device", medseg.__version__), name="medseg", manufacturer_name="medseg", model_name="medseg"
    )
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=sr.ObserverContext(
                observer_type=codes.DCM.Device, observer_identifying_attributes=device
            )
        ),
        procedure_reported=_IMAGING,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    dataset = _document(seg, report, what)
    save_dataset(path, dataset)


def _document(seg: Dataset, report: sr.MeasurementReport, what: Sequence[str]) -> Dataset:
    """Return the report with the patient and study of the segmentation, and its date."""
    header = shared_header(seg)
    evidence = Dataset()
    for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        setattr(evidence, keyword, str(seg.get(keyword)))
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber",
                    "ReferringPhysicianName", "StudyDate", "StudyTime"):  # fmt: skip
        setattr(evidence, keyword, None if keyword in ("StudyDate", "StudyTime") else "")
    dataset = sr.ComprehensiveSR(
        evidence=[evidence],
        content=report,
        series_instance_uid=derive_uid("series", *what),
        series_number=SERIES_NUMBER,
        sop_instance_uid=derive_uid("instance", *what),
        instance_number=1,
        manufacturer="medseg",
        is_complete=True,
        series_description="medseg measurements",
        manufacturer_model_name="medseg",
        software_versions=medseg.__version__,
        device_serial_number="0",
    )
    dataset.SpecificCharacterSet = "ISO_IR 192"
    add_shared(dataset, header)
    for keyword in ("FrameOfReferenceUID", "PositionReferenceIndicator"):  # a document has no place in the patient
        if keyword in dataset:
            delattr(dataset, keyword)
    dataset["ContentDate"].value, dataset["ContentTime"].value = content_date(header)
    forget_writing_time(dataset)
    return dataset


def _image_class(seg: Dataset) -> str:
    """Return the SOP class of the images that were segmented, empty where it is not told."""
    for item in seg.get("ReferencedSeriesSequence") or []:
        for image in item.get("ReferencedInstanceSequence") or []:
            return str(image.get("ReferencedSOPClassUID") or "")
    return ""


def _group(
    seg: Dataset, segment: Dataset, series: str, quantities: Sequence[Quantity], what: Sequence[str]
) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    number = int(segment.SegmentNumber)
    name = short_text(str(segment.get("TrackingID") or segment.get("SegmentLabel") or f"segment {number}"), 64)
    uid = str(segment.get("TrackingUID") or derive_uid("tracking", *what[:2], str(number)))
    region = _concept(segment, "AnatomicRegionSequence")
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=uid, identifier=name),
        referenced_segment=sr.ReferencedSegment(
            sop_class_uid=str(seg.SOPClassUID),
            sop_instance_uid=str(seg.SOPInstanceUID),
            segment_number=number,
            source_series=sr.SourceSeriesForSegmentation(referenced_series_instance_uid=series),
        ),
        finding_category=_concept(segment, "SegmentedPropertyCategoryCodeSequence"),
        finding_type=_concept(segment, "SegmentedPropertyTypeCodeSequence"),
        finding_sites=None if region is None else [sr.FindingSite(region)],
        measurements=[_measurement(quantity) for quantity in quantities if math.isfinite(quantity.value)],
    )


def _measurement(quantity: Quantity) -> sr.Measurement:
    name, unit = coded(quantity.name), coded(quantity.unit)
    assert name is not None and unit is not None
    value = float(f"{quantity.value:.6g}")
    return sr.Measurement(name=name, value=value, unit=unit, derivation=coded(quantity.derivation))


def _concept(segment: Dataset, keyword: str) -> CodedConcept | None:
    sequence = segment.get(keyword)
    return CodedConcept.from_dataset(sequence[0]) if sequence else None
