"""What `medseg check` says about one case: its grid, its objects, its intensities, and what is odd about them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cc3d
import numpy as np
from highdicom import Volume, VolumeGeometry
from numpy.typing import NDArray

from medseg.values.geometry import spacing_of
from medseg.values.instances import Instance, InstanceSet

INT16 = np.iinfo(np.int16)
#: Hounsfield units as scanners write them: -3024 is the lowest padding in use, 30710 the end of the extended scale.
CT_RANGE = (-3024.0, 30710.0)
#: Percentiles are taken of about this many voxels, evenly spread: enough for a range, and quick.
SAMPLED_VOXELS = 1_000_000
#: Parts of a ``single`` label with fewer voxels are specks and no objects.
PART_VOXELS = 10


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """Intensities of one channel: the extremes, the 0.5, 50 and 99.5 percentile, and a hash of shape and voxels."""

    minimum: float
    maximum: float
    low: float
    median: float
    high: float
    sha256: str


@dataclass(frozen=True, kw_only=True)
class LabelFacts:
    """One label in one case.

    Attributes:
        name: the label's.
        voxels: of all its objects; what two of them share counts twice.
        objects: how many there are.
        objects_with_gaps: those with slices without a voxel between two that have one in the same place.
        missing_slices: how many such slices there are.
        parts: connected components of at least `PART_VOXELS` voxels, of a ``single`` label; else 0.
    """

    name: str
    voxels: int
    objects: int
    objects_with_gaps: int
    missing_slices: int
    parts: int


@dataclass(frozen=True, kw_only=True)
class CaseFacts:
    """One case that could be read.

    Attributes:
        name: the case's.
        patient: whose it is (see `CohortRow`); not for reports.
        shape, spacing_mm, orientation: of the image, in its own axis order.
        images: per channel.
        labels: per label of the cohort.
        label_sha256: a hash of the objects' labels, places and voxels.
        errors, warnings: what is wrong and what is odd, a line each without the case's name.
    """

    name: str
    patient: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    orientation: str
    images: tuple[ImageFacts, ...]
    labels: tuple[LabelFacts, ...]
    label_sha256: str
    errors: tuple[str, ...]
    warnings: tuple[str, ...]


def case_facts(
    name: str,
    patient: str,
    volumes: Sequence[Volume],
    instances: InstanceSet,
    channels: Sequence[str],
    remarks: Sequence[str] = (),
) -> CaseFacts:
    """Look at a case.

    Args:
        name, patient: see `CohortRow`.
        volumes: an image per channel, all on one grid.
        instances: its objects on that grid.
        channels: what the channels are called; ``CT`` is held to the range of Hounsfield units.
        remarks: what reading the label had to remark.
    """
    axis = slice_axis(volumes[0].get_geometry())
    images = tuple(_image_facts(volume) for volume in volumes)
    labels, odd = [], list(remarks)
    for label in instances.labels:
        own = [instance for instance in instances if instance.label == label.id]
        gaps = {instance.id: empty_slices(instance, axis) for instance in own}
        holed = {key: slices for key, slices in gaps.items() if slices}
        labels.append(
            LabelFacts(
                name=label.name,
                voxels=sum(instance.voxels for instance in own),
                objects=len(own),
                objects_with_gaps=len(holed),
                missing_slices=sum(len(slices) for slices in holed.values()),
                parts=sum(_parts(instance) for instance in own) if label.kind == "single" else 0,
            )
        )
        for key, slices in list(holed.items())[:1]:
            odd.append(
                f"label {label.name}: {len(holed)} of {len(own)} objects have slices without a voxel between their "
                f"first and last (object {key}: slice {slices[0] + 1}{' ...' if len(slices) > 1 else ''} along axis "
                f"{axis}); was a slice left out?"
            )
        specks = sum(instance.voxels == 1 for instance in own)
        if specks:
            odd.append(f"label {label.name}: {specks} of {len(own)} objects are a single voxel")
    for channel, image in zip(channels, images, strict=True):
        odd += [f"channel {channel}: {text}" for text in _intensity_warnings(image, channel)]
    directions = volumes[0].get_geometry().get_closest_patient_orientation()
    shape = volumes[0].spatial_shape
    return CaseFacts(
        name=name,
        patient=patient,
        shape=(int(shape[0]), int(shape[1]), int(shape[2])),
        spacing_mm=spacing_of(volumes[0]),
        orientation="".join(letter.value for letter in directions),
        images=images,
        labels=tuple(labels),
        label_sha256=objects_hash(instances),
        errors=tuple(image_errors(volumes, channels)),
        warnings=tuple(odd),
    )


def image_errors(volumes: Sequence[Volume], channels: Sequence[str]) -> list[str]:
    """Return what makes the images of a case useless, a line each: a channel in which every voxel is the same."""
    return [
        f"channel {channel}: every voxel is {float(volume.array.flat[0]):g}, the image is blank; export it again"
        for channel, volume in zip(channels, volumes, strict=True)
        if (volume.array == volume.array.flat[0]).all()
    ]


def image_hash(array: NDArray) -> str:
    """Return a SHA-256 of an image's shape, type and voxels."""
    digest = hashlib.sha256(repr((array.shape, array.dtype.str)).encode())
    for plane in array:
        digest.update(np.ascontiguousarray(plane).data)
    return digest.hexdigest()


def objects_hash(instances: InstanceSet) -> str:
    """Return a SHA-256 of the labels, places and voxels of objects, whatever their order."""
    parts = sorted(
        repr((i.label, i.offset, i.mask.shape, hashlib.sha256(np.packbits(i.mask).tobytes()).hexdigest()))
        for i in instances
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def slice_axis(grid: VolumeGeometry) -> int:
    """Return the array axis across which a volume was drawn: that of the largest spacing, of equal ones the upright."""
    spacing = spacing_of(grid)
    upright = np.abs(grid.affine[2, :3]) / spacing
    return max((axis for axis in range(3) if spacing[axis] >= 0.99 * max(spacing)), key=lambda axis: upright[axis])


def empty_slices(instance: Instance, axis: int) -> list[int]:
    """Return the slices of the volume (from 0) that lack an object which is in the same place before and after them.

    Parts of an object that lie beside each other have no slice missing between them.
    """
    planes = np.moveaxis(instance.mask, axis, 0)
    hit = np.flatnonzero(planes.any(axis=(1, 2))).tolist()
    gaps = [(a, b) for a, b in pairwise(hit) if b > a + 1 and (planes[a] & planes[b]).any()]
    return [k + instance.offset[axis] for a, b in gaps for k in range(a + 1, b)]


def _parts(instance: Instance) -> int:
    parts = cc3d.connected_components(instance.mask, connectivity=26)
    return int((np.bincount(parts.ravel())[1:] >= PART_VOXELS).sum())


def _image_facts(volume: Volume) -> ImageFacts:
    array = volume.array
    step = max(1, array.size // SAMPLED_VOXELS)
    sample = array.reshape(-1)[::step] if array.flags.c_contiguous else array.flatten()[::step]
    low, median, high = np.percentile(sample, (0.5, 50, 99.5))
    return ImageFacts(
        minimum=float(array.min()),
        maximum=float(array.max()),
        low=float(low),
        median=float(median),
        high=float(high),
        sha256=image_hash(array),
    )


def _intensity_warnings(image: ImageFacts, channel: str) -> list[str]:
    found = f"values from {image.minimum:g} to {image.maximum:g}"
    if channel.upper() == "CT":
        if image.minimum < CT_RANGE[0] or image.maximum > CT_RANGE[1]:
            return [f"{found}, expected HU from {CT_RANGE[0]:g} to {CT_RANGE[1]:g}"]
        if image.minimum >= 0 and image.maximum > 0:
            return [f"{found}, none below 0, where HU have air and fat; was the rescale intercept left out?"]
    if image.minimum < INT16.min or image.maximum > INT16.max:
        return [f"{found}, beyond the 16 bits of scanners; was the image rescaled?"]
    return []
