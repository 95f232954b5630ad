"""Writes objects as an RT structure set (PS3.3 A.19): contours along pixel edges, so that masks come back exactly.

Everything that identifies patient, study and images is the source's; UIDs follow from the content and dates are those
of the source, so that the same call writes the same bytes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian
from pydicom.valuerep import DSfloat

import medseg
from medseg.errors import GeometryError
from medseg.io.dicom_context import (
    DicomContext,
    ImageReference,
    add_shared,
    content_date,
    content_hash,
    derive_uid,
    tracking_ids,
)
from medseg.io.dicom_objects import placed_objects, save_dataset
from medseg.io.dicom_seg_labels import UNKNOWN_ORIGIN, Algorithm, coded, note_labels, short_text
from medseg.io.rtstruct_rois import CONTOUR_DATA, RT_STRUCTURE_SET
from medseg.labels import Code, Colour
from medseg.values.contours import Polygon, outline
from medseg.values.geometry import spacing_of
from medseg.values.instances import Instance, InstanceSet

SERIES_NUMBER = 101
#: Coordinates are rounded to this share of a pixel; half a pixel would be too much, DICOM allows 16 characters.
ROUNDING_PIXELS, ROUGHEST_PIXELS = 1e-4, 0.02
_MOST_CHARACTERS = 16
_DETACHED_STUDY = "1.2.840.10008.3.1.2.3.1"


def write_rtstruct(
    path: Path,
    instances: InstanceSet,
    context: DicomContext,
    *,
    algorithms: Sequence[Algorithm] | None = None,
    smooth: bool = False,
) -> None:
    """Write every instance as a region of interest (ROI number = instance id), overlaps kept.

    Contours run along the edges of pixels; holes are joined to them by channels of no width (the keyhole technique of
    PS3.3 C.8.8.6.3), so that filling them returns the masks exactly.

    Args:
        path: the file.
        instances: the objects, on a grid with the voxels of the series. None at all gives a region without contours
            per label.
        context: the series they belong to.
        algorithms: how each came about; None: not known, which leaves ROIGenerationAlgorithm empty.
        smooth: round the contours; masks then come back about as they were.

    Raises:
        InputError: the series lacks UIDs; neither objects nor labels; or a file that cannot be written.
        GeometryError: objects on another grid than the series, or so far from the origin that 16 characters do not
            hold their contours.
    """
    instances = placed_objects(path, instances, context, "an RT structure set has at least one region")
    what = ("rtstruct", context.series_uid, content_hash(instances), repr((algorithms, smooth)), medseg.__version__)
    dataset = _common(context, what)
    _refer(dataset, context)
    regions = list(_regions(instances, context, algorithms))
    dataset.StructureSetROISequence = [description for description, _, _ in regions]
    dataset.ROIContourSequence = [drawing for _, drawing, _ in regions]
    dataset.RTROIObservationsSequence = [observation for _, _, observation in regions]
    decimals = _decimals(context, path)
    for instance, drawing in zip(instances, dataset.ROIContourSequence, strict=False):
        drawing.ContourSequence = list(_contours(instance, context, decimals, smooth))
    note_labels(dataset, instances)
    save_dataset(path, dataset)


def _common(context: DicomContext, what: Sequence[str]) -> Dataset:
    """Return patient, study, series, equipment and the structure set's own names and dates."""
    data = Dataset()
    data.SpecificCharacterSet = "ISO_IR 192"
    add_shared(data, context.header)
    data.SOPClassUID = RT_STRUCTURE_SET
    data.SOPInstanceUID = derive_uid("instance", *what)
    data.Modality = "RTSTRUCT"
    data.SeriesInstanceUID = derive_uid("series", *what)
    data.SeriesNumber, data.InstanceNumber = SERIES_NUMBER, 1
    data.SeriesDescription = "medseg objects"
    data.OperatorsName = ""
    data.Manufacturer = data.ManufacturerModelName = "medseg"
    data.DeviceSerialNumber, data.SoftwareVersions = "0", medseg.__version__
    data.StructureSetLabel = "medseg"
    data.StructureSetName = "Objects found in the series"
    data.StructureSetDate, data.StructureSetTime = content_date(context.header)
    data.ApprovalStatus = "UNAPPROVED"
    data.file_meta = FileMetaDataset()
    # Contours may be longer than the 64 KiB that a decimal string has in explicit VR (note in PS3.3 C.8.8.6).
    data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return data


def _refer(dataset: Dataset, context: DicomContext) -> None:
    """Name the frame of reference, study, series and images that the contours belong to."""
    images: dict[str, ImageReference] = {}
    for image in (*context.images, *context.others):
        if image is not None:
            images.setdefault(image.sop_instance_uid, image)
    frame = Dataset()
    frame.FrameOfReferenceUID = context.frame_of_reference_uid
    if images:
        series = Dataset()
        series.SeriesInstanceUID = context.series_uid
        series.ContourImageSequence = [_image(image, whole=True) for image in images.values()]
        study = Dataset()
        study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _DETACHED_STUDY, context.study_uid
        study.RTReferencedSeriesSequence = [series]
        frame.RTReferencedStudySequence = [study]
    dataset.ReferencedFrameOfReferenceSequence = [frame]


def _image(image: ImageReference, *, whole: bool = False) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.sop_class_uid, image.sop_instance_uid
    if image.frame is not None and not whole:
        item.ReferencedFrameNumber = image.frame
    return item


def _regions(
    instances: InstanceSet, context: DicomContext, algorithms: Sequence[Algorithm] | None
) -> Iterator[tuple[Dataset, Dataset, Dataset]]:
    """Yield the three items of every region: its name, its (still empty) contours, its meaning."""
    if not len(instances):
        for label in instances.labels:
            yield _region(label.id, label.name, label.colour, label.type, context)
        return
    looks = zip(instances, instances.names(), instances.colours(), tracking_ids(instances, context), strict=True)
    for position, (instance, name, colour, tracking) in enumerate(looks):
        description, drawing, observation = _region(
            instance.id, name, colour, instances.labels[instance.label].type, context
        )
        description.ROIVolume = DSfloat(instances.volume_ml(instance.id), auto_format=True)
        description.TrackingID, description.TrackingUID = short_text(tracking[0], 64), tracking[1]
        if algorithms is not None and algorithms[position] != UNKNOWN_ORIGIN:
            algorithm = algorithms[position]
            description.ROIGenerationAlgorithm = algorithm.type
            made_by = short_text(f"{algorithm.name} {algorithm.version}", 64)
            if made_by:
                description.ROIGenerationDescription = made_by
        yield description, drawing, observation


def _region(
    number: int, name: str, colour: Colour, meaning: Code | None, context: DicomContext
) -> tuple[Dataset, Dataset, Dataset]:
    description, drawing, observation = Dataset(), Dataset(), Dataset()
    description.ROINumber = number
    description.ReferencedFrameOfReferenceUID = context.frame_of_reference_uid
    description.ROIName = short_text(name, 64)
    description.ROIGenerationAlgorithm = ""
    drawing.ReferencedROINumber = number
    drawing.ROIDisplayColor = list(colour)
    observation.ObservationNumber = observation.ReferencedROINumber = number
    observation.RTROIInterpretedType = observation.ROIInterpreter = ""
    code = coded(meaning)
    if code is not None:
        observation.RTROIIdentificationCodeSequence = [code]
    return description, drawing, observation


def _contours(instance: Instance, context: DicomContext, decimals: int, smooth: bool) -> Iterator[Dataset]:
    """Yield the contours of an object, slice by slice."""
    affine = context.geometry.affine
    for z, polygons in enumerate(outline(instance.mask, smooth=smooth), instance.offset[0]):
        image = context.images[z]
        reference = [_image(image)] if image is not None else None
        for polygon in polygons:
            item = Dataset()
            if reference is not None:
                item.ContourImageSequence = reference
            item.ContourGeometricType = "CLOSED_PLANAR"
            item.NumberOfContourPoints = len(polygon)
            text = _text(_points(polygon, z, instance, affine), decimals)
            # As bytes, because pydicom makes an object of every decimal string, which takes most of the time; the
            # implicit VR of the file leaves them decimal strings.
            item[CONTOUR_DATA] = DataElement(CONTOUR_DATA, "OB", text)
            yield item


def _points(polygon: Polygon, z: int, instance: Instance, affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return [n, 3] LPS mm of points in continuous pixels of the object's own window."""
    rows = polygon[:, 0] + (instance.offset[1] - 0.5)
    columns = polygon[:, 1] + (instance.offset[2] - 0.5)
    start = affine[:3, 3] + z * affine[:3, 0]
    return start + rows[:, None] * affine[:3, 1] + columns[:, None] * affine[:3, 2]


def _decimals(context: DicomContext, path: Path) -> int:
    """Return how many decimals the coordinates get: enough for the pixels, and as 16 characters allow."""
    geometry = context.geometry
    pixel_mm = min(spacing_of(geometry)[1:])
    corners = np.array([[z, r, c] for z in (0, 1) for r in (0, 1) for c in (0, 1)]) * geometry.spatial_shape - 0.5
    reach = float(np.abs(corners @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]).max())
    room = _MOST_CHARACTERS - len(f"-{int(reach + 1)}.")
    decimals = min(room, max(1, int(np.ceil(-np.log10(pixel_mm * ROUNDING_PIXELS)))))
    if decimals < 0 or 10.0**-decimals > pixel_mm * ROUGHEST_PIXELS:
        raise GeometryError(
            f"{path}: positions of up to {reach:.4g} mm at pixels of {pixel_mm:.4g} mm do not fit the "
            f"{_MOST_CHARACTERS} characters of a decimal string; write .seg.nrrd or DICOM SEG instead"
        )
    return decimals


def _text(points: NDArray[np.float64], decimals: int) -> bytes:
    """Return coordinates as a DICOM decimal string (PS3.5 6.2), padded to an even length."""
    values = np.round(points, decimals).ravel() + 0.0  # no negative zero
    digits = len(str(int(np.abs(values).max()))) + decimals
    text = (f"%.{digits}g\\" * len(values))[:-1] % tuple(values.tolist())
    return (text + " " * (len(text) % 2)).encode("ascii")
