"""Writes objects as a DICOM Segmentation (PS3.3 A.51) that belongs to the series they were found in.

highdicom builds the object with all its modules for one empty slice; the frames, the last two elements of the file,
are then appended here. highdicom alone wants every segment as a dense array (30 objects of 300 slices of 512 x 512:
2.2 GiB), here memory grows with the stored bits. The tests hold the two equal, frame by frame.

The same objects and series give the same bytes: UIDs follow from the content, and dates are those of the series.
"""

import gc
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from highdicom import Volume
from highdicom.seg import Segmentation
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import CTImageStorage
from pydicom.valuerep import DSfloat

import medseg
from medseg.errors import InputError
from medseg.io.dicom_context import (
    REQUIRED_EMPTY,
    DicomContext,
    ImageReference,
    add_shared,
    content_date,
    content_hash,
    derive_uid,
    tracking_ids,
)
from medseg.io.dicom_objects import forget_writing_time, placed_objects, save_dataset
from medseg.io.dicom_seg_labels import (
    UNKNOWN_ORIGIN,
    Algorithm,
    describe_labels,
    describe_segments,
    name_algorithm,
    note_labels,
)
from medseg.values.geometry import spacing_of
from medseg.values.instances import Instance, InstanceSet
from medseg.values.layers import assign_layers

SERIES_NUMBER = 100
MAX_BYTES = (1 << 32) - 2


def write_dicom_seg(
    path: Path,
    instances: InstanceSet,
    context: DicomContext,
    *,
    algorithms: Sequence[Algorithm] | None = None,
    labelmap: bool = False,
) -> None:
    """Write every instance as a segment (segment number = instance id), overlaps kept.

    Args:
        path: the file.
        instances: the objects, on a grid with the voxels of the series. None at all gives one empty frame, with a
            segment per label.
        context: the series they belong to.
        algorithms: how each came about; None: not known.
        labelmap: write a Label Map Segmentation (one number per voxel), which holds no overlaps.

    Raises:
        InputError: the series lacks UIDs; more than 65535 objects; overlaps in a label map; neither objects nor
            labels; or a file that cannot be written.
        GeometryError: objects on another grid than the series.
    """
    instances = placed_objects(path, instances, context, "a DICOM SEG has at least one segment")
    if len(instances) > 65535:
        raise InputError(f"{path}: {len(instances)} objects, at most 65535 fit a DICOM SEG")
    flat = _flat(path, instances) if labelmap else None
    dataset = _without_frames(instances, context, algorithms, labelmap)
    _refer(dataset, context)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    frames = _Frames(context, name_segments="SegmentIdentificationSequence" not in shared)
    if flat is not None:
        pixels, vr = _add_labelmap(frames, flat, dataset.BitsAllocated), b"OW" if dataset.BitsAllocated > 8 else b"OB"
    else:
        pixels, vr = _add_segments(frames, instances), b"OB"
        dataset.SegmentsOverlap = "YES" if max(assign_layers(instances).values(), default=0) else "NO"
    if pixels.nbytes > MAX_BYTES:
        raise InputError(
            f"{path}: {len(frames.items)} frames of {pixels.nbytes / 2**30:.1f} GiB, a DICOM file holds 4 GiB; "
            "write .seg.nrrd instead"
        )
    dataset.NumberOfFrames = len(frames.items)
    del dataset.PerFrameFunctionalGroupsSequence, dataset.PixelData
    save_dataset(path, dataset, lambda file: _append(file, frames, pixels, vr))


def _flat(path: Path, instances: InstanceSet) -> NDArray[np.uint16]:
    try:
        return instances.to_labelmap("error").array
    except InputError:
        raise InputError(
            f"{path}: a label map segmentation holds one object per voxel, and objects overlap; write a binary one "
            "(--format seg)"
        ) from None


def _without_frames(
    instances: InstanceSet, context: DicomContext, algorithms: Sequence[Algorithm] | None, labelmap: bool
) -> Dataset:
    """Return the segmentation of one empty slice, with every attribute but those of frames and source images."""
    if len(instances):
        segments = describe_segments(instances, tracking_ids(instances, context))
    else:
        segments = describe_labels(instances.labels)
    origins = list(algorithms or [UNKNOWN_ORIGIN])
    origins += origins[:1] * (len(segments) - len(origins))  # one for all where there are no objects
    geometry = context.geometry
    kind = "LABELMAP" if labelmap else "BINARY"
    what = (context.series_uid, content_hash(instances), kind, repr(origins), medseg.__version__)
    empty = Volume(
        np.zeros((1, *geometry.spatial_shape[1:]), np.uint8),
        geometry.affine.round(9),  # 0.99999999999999 mm is 1 mm
        "PATIENT",
        frame_of_reference_uid=context.frame_of_reference_uid,
    )
    date, time = content_date(context.header)
    with _collector_paused():
        seg = Segmentation(
            source_images=[_stand_in(context)],
            pixel_array=empty,
            segmentation_type=kind,
            segment_descriptions=segments,
            series_instance_uid=derive_uid("series", *what),
            series_number=SERIES_NUMBER,
            sop_instance_uid=derive_uid("instance", *what),
            instance_number=1,
            manufacturer="medseg",
            manufacturer_model_name="medseg",
            software_versions=medseg.__version__,
            device_serial_number="0",
            content_description="Objects found in the series",
            omit_empty_frames=False,
            content_label="SEGMENTATION",
            content_creator_name="",
            content_date=date,
            content_time=time,
            series_description="medseg objects",
            specific_character_set="ISO_IR 192",
        )
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.SpacingBetweenSlices = _decimal(spacing_of(geometry)[0])  # of one slice highdicom writes 1.0
    for segment in seg.SegmentSequence:  # number 0 is the background of a label map
        name_algorithm(segment, origins[max(int(segment.SegmentNumber) - 1, 0)])
    organization = derive_uid("dimensions", *what)
    seg.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    for item in seg.DimensionIndexSequence:
        item.DimensionOrganizationUID = organization
    if "DimensionOrganizationType" in seg:
        del seg.DimensionOrganizationType
    forget_writing_time(seg)
    note_labels(seg, instances)
    return seg


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause garbage collection: highdicom reads 22 MB of JSON for the first object of a process.

    The collector would look through all that was read again and again, and take twice as long as the parser.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _stand_in(context: DicomContext) -> Dataset:
    """Return a source image without a patient: theirs are put in afterwards, as the source has them, valid or not."""
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, derive_uid("stand-in", context.series_uid)
    image.StudyInstanceUID, image.SeriesInstanceUID = context.study_uid, context.series_uid
    image.FrameOfReferenceUID, image.Modality = context.frame_of_reference_uid, "CT"
    for keyword in REQUIRED_EMPTY:
        setattr(image, keyword, None if keyword in ("StudyDate", "StudyTime") else "")
    affine, (thickness, row_mm, column_mm) = context.geometry.affine, spacing_of(context.geometry)
    image.Rows, image.Columns = context.geometry.spatial_shape[1:]
    image.ImagePositionPatient = [_decimal(v) for v in affine[:3, 3]]
    image.ImageOrientationPatient = [_decimal(v) for v in (*affine[:3, 2] / column_mm, *affine[:3, 1] / row_mm)]
    image.PixelSpacing, image.SliceThickness = [_decimal(row_mm), _decimal(column_mm)], _decimal(thickness)
    return image


def _decimal(value: float) -> DSfloat:
    return DSfloat(round(float(value), 9) + 0.0, auto_format=True)


def _refer(dataset: Dataset, context: DicomContext) -> None:
    """Put in patient, study and frame of reference of the source, and the UIDs of its images."""
    add_shared(dataset, context.header)
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if context.header.get("LossyImageCompression") == "01" and keyword in context.header:
            dataset.add(context.header[keyword])
    images = [*(image for image in context.images if image is not None), *context.others]
    files = {image.sop_instance_uid: image for image in images}
    references = []
    for image in files.values():
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.sop_class_uid, image.sop_instance_uid
        references.append(item)
    series = Dataset()
    series.SeriesInstanceUID, series.ReferencedInstanceSequence = context.series_uid, references
    del dataset.SourceImageSequence, dataset.ReferencedSeriesSequence
    if references:
        dataset.SourceImageSequence, dataset.ReferencedSeriesSequence = references, [series]


class _Frames:
    """Encodes the functional groups of frames; what frames of one slice or segment share is encoded once."""

    def __init__(self, context: DicomContext, name_segments: bool) -> None:
        self._context = context
        self._name_segments = name_segments
        self._slices: dict[int, tuple[bytes, bytes]] = {}
        self.items: list[bytes] = []

    def add(self, segment: int | None, index: int, rank: int) -> None:
        """Add the frame of a segment (None: of all) in slice ``index``, the ``rank``-th (from 1) that has frames."""
        indices = (rank,) if segment is None else (segment, rank)
        content = struct.pack(f"<HH2sH{len(indices)}I", 0x0020, 0x9157, b"UL", 4 * len(indices), *indices)
        derivation, position = self._of_slice(index)
        item = derivation + _sequence(0x0020, 0x9111, _item(content)) + position
        if segment is not None and self._name_segments:
            number = struct.pack("<HH2sHH", 0x0062, 0x000B, b"US", 2, segment)
            item += _sequence(0x0062, 0x000A, _item(number))
        self.items.append(_item(item))

    def _of_slice(self, index: int) -> tuple[bytes, bytes]:
        """Return the encoded Derivation Image and Plane Position sequences of a slice."""
        if index not in self._slices:
            image, derived, placed = self._context.images[index], Dataset(), Dataset()
            if image is not None:
                derived.DerivationImageSequence = [_derivation(image)]
            position = self._context.geometry.affine[:3, :] @ (index, 0, 0, 1)
            placed.PlanePositionSequence = [Dataset()]
            placed.PlanePositionSequence[0].ImagePositionPatient = [_decimal(v) for v in position]
            self._slices[index] = (_encoded(derived), _encoded(placed))
        return self._slices[index]


def _encoded(dataset: Dataset) -> bytes:
    """Return the elements of a data set in explicit VR, little endian (PS3.5 7.1.2)."""
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = False, True
    write_dataset(buffer, dataset)
    return buffer.getvalue()


def _item(content: bytes) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


def _sequence(group: int, element: int, items: bytes) -> bytes:
    return struct.pack("<HH2sHI", group, element, b"SQ", 0, len(items)) + items


def _append(file: BinaryIO, frames: _Frames, pixels: NDArray[np.uint8], vr: bytes) -> None:
    """Append the two last elements of the data set: the groups of all frames, and their pixels."""
    file.write(_sequence(0x5200, 0x9230, b"".join(frames.items)))
    odd = pixels.nbytes % 2
    file.write(struct.pack("<HH2sHI", 0x7FE0, 0x0010, vr, 0, pixels.nbytes + odd))
    file.write(pixels.data)
    file.write(b"\0" * odd)


def _derivation(image: ImageReference) -> Dataset:
    """Return the item that says which image a frame was drawn on (PS3.3 C.7.6.16.2.6)."""
    source = Dataset()
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = image.sop_class_uid, image.sop_instance_uid
    if image.frame is not None:
        source.ReferencedFrameNumber = image.frame
    source.PurposeOfReferenceCodeSequence = [
        _coded("121322", "Source image for image processing operation"),
    ]
    source.SpatialLocationsPreserved = "YES"
    item = Dataset()
    item.SourceImageSequence = [source]
    item.DerivationCodeSequence = [_coded("113076", "Segmentation")]
    return item


def _coded(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


def _add_segments(frames: _Frames, instances: InstanceSet) -> NDArray[np.uint8]:
    """Add a frame per segment and slice with a voxel, segment by segment; return their bits, one a voxel."""
    occupied = {i.id: (i.offset[0] + np.flatnonzero(i.mask.any(axis=(1, 2)))).tolist() for i in instances}
    ranks = {index: rank for rank, index in enumerate(sorted({z for zs in occupied.values() for z in zs}), 1)}
    rows, columns = instances.geometry.spatial_shape[1:]
    total = sum(len(zs) for zs in occupied.values())
    bits = np.zeros(-(-max(total, 1) * rows * columns // 8), np.uint8)
    start = 0
    for instance in instances:
        for index in occupied[instance.id]:
            frames.add(instance.id, index, ranks[index])
            _pack(bits, start, instance, index, columns)
            start += rows * columns
    if not total:
        frames.add(1, 0, 1)
    return bits


def _pack(bits: NDArray[np.uint8], start: int, instance: Instance, index: int, columns: int) -> None:
    """Put a slice of an object into a bit stream whose frame begins at bit ``start``; no padding between frames."""
    mask = instance.slice_mask(index)
    assert mask is not None
    first = start + instance.offset[1] * columns
    band = np.zeros(first % 8 + mask.shape[0] * columns, np.bool_)
    left = instance.offset[2]
    band[first % 8 :].reshape(mask.shape[0], columns)[:, left : left + mask.shape[1]] = mask
    packed = np.packbits(band, bitorder="little")
    bits[first // 8 : first // 8 + len(packed)] |= packed


def _add_labelmap(frames: _Frames, flat: NDArray[np.uint16], bits_allocated: int) -> NDArray[np.uint8]:
    """Add a frame per slice with a voxel; return their values, which are segment numbers."""
    occupied = np.flatnonzero(flat.any(axis=(1, 2))).tolist() or [0]
    for rank, index in enumerate(occupied, 1):
        frames.add(None, index, rank)
    values = flat[occupied].astype("<u1" if bits_allocated == 8 else "<u2")
    return values.reshape(-1).view(np.uint8)
