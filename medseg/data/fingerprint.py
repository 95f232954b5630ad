"""What a cohort looks like, in millimetres and intensities: the facts that a Plan is derived from.

Taken case by case: what is kept of a case is a few numbers per object and slice, a sample of the intensities and a
few outlines, never its voxels. `medseg.data.fingerprint_table` makes readable figures of them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray

from medseg.data.contacts import Contacts, find_contacts
from medseg.data.grid import body_window
from medseg.errors import InputError
from medseg.labels import LabelTable
from medseg.values.geometry import grid_map, orientation_map, spacing_of
from medseg.values.instances import Instance, InstanceSet

#: Volumes whose lowest value lies below this are taken for CT in HU.
CT_BELOW = -200.0
#: CT values at or below this are air or the table's foam.
CT_AIR = -300.0
#: Values kept per case, channel and label.
VALUES_KEPT = 4000
#: Outlines kept per case and label, and per label of the cohort.
OUTLINES_PER_CASE, OUTLINES_PER_LABEL = 2, 48


class Outline(NamedTuple):
    """The largest cross-section of an object: packed [h, w] bool, its shape, and the (row, column) pixel in mm."""

    bits: NDArray[np.uint8]
    shape: tuple[int, int]
    pixel_mm: tuple[float, float]

    def mask(self) -> NDArray[np.bool_]:
        """Return the [h, w] cross-section."""
        return np.unpackbits(self.bits, count=self.shape[0] * self.shape[1]).astype(np.bool_).reshape(self.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassFacts:
    """Facts of one label in one case: k objects, n cross-sections of objects with slices.

    Attributes:
        boxes_mm: [n, 2] height and width of each cross-section.
        areas_mm2: [n] area of each cross-section.
        sides_mm: [k] square root of the box area of each object in its largest slice.
        extents_mm: [k, 3] size of each object along (slice, row, column).
        volumes_ml: [k] volume.
        gaps: [k] slices without a voxel between the first and the last of each object.
        per_slice: [s] objects in each slice that has one.
        touching: [k] share of each object's surface that touches objects of the same label, 0..1.
        touching_others: [k] the same for objects of other labels.
        overlapped: [k] share of each object's voxels that lie in some other object too.
        values: per channel, a sample of the intensities under the masks.
        outlines: of a few objects.
    """

    boxes_mm: NDArray[np.float64]
    areas_mm2: NDArray[np.float64]
    sides_mm: NDArray[np.float64]
    extents_mm: NDArray[np.float64]
    volumes_ml: NDArray[np.float64]
    gaps: NDArray[np.int64]
    per_slice: NDArray[np.int64]
    touching: NDArray[np.float64]
    touching_others: NDArray[np.float64]
    overlapped: NDArray[np.float64]
    values: tuple[NDArray[np.float64], ...]
    outlines: tuple[Outline, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseMeasures:
    """Facts of one case, axes in the plan's orientation.

    Attributes:
        spacing_mm, shape: of the grid (slice, row, column), not resampled.
        body_mm: rows and columns that hold more than air, mm.
        classes: by label id; labels without an object in the case are missing.
        per_slice: [slices] objects of any label in each slice.
        labelled_voxels, shared_voxels: voxels in at least one object, and in at least two.
        touching, overlapping: pairs of objects by their label ids (lower first).
        lowest: the lowest value of each channel.
        from_dicom: whether the image names a DICOM frame of reference.
    """

    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    body_mm: tuple[float, float]
    classes: Mapping[int, ClassFacts]
    per_slice: NDArray[np.int64]
    labelled_voxels: int
    shared_voxels: int
    touching: Mapping[tuple[int, int], int]
    overlapping: Mapping[tuple[int, int], int]
    lowest: tuple[float, ...]
    from_dicom: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Fingerprint:
    """Facts of a cohort, taken in an orientation (see `medseg.values.geometry.orientation_map`)."""

    cases: tuple[CaseMeasures, ...]
    labels: LabelTable
    channels: tuple[str, ...]
    orientation: str

    @property
    def is_ct(self) -> bool:
        """Whether intensities are Hounsfield units, judged by the presence of air in every case and channel."""
        return all(low < CT_BELOW for case in self.cases for low in case.lowest)

    @property
    def single_slices(self) -> bool:
        """Whether no case has a second slice."""
        return all(case.shape[0] == 1 for case in self.cases)

    def of(self, label: int) -> Iterator[ClassFacts]:
        """Yield the facts of a label, case by case."""
        return (case.classes[label] for case in self.cases if label in case.classes)

    def boxes_mm(self, label: int) -> NDArray[np.float64]:
        """Return [n, 2] heights and widths (mm) of a label's cross-sections over all cases."""
        return np.concatenate([facts.boxes_mm for facts in self.of(label)])

    def sides_mm(self, label: int) -> NDArray[np.float64]:
        """Return the side (mm) of each object of a label in its largest slice, over all cases."""
        return np.concatenate([facts.sides_mm for facts in self.of(label)])

    def values(self, channel: int, label: int | None = None) -> NDArray[np.float64]:
        """Return the sampled intensities of a channel under the masks of a label, or of all."""
        ids = self.labels.ids if label is None else (label,)
        return np.concatenate([facts.values[channel] for i in ids for facts in self.of(i)])


def look_at(volumes: Sequence[Volume], instances: InstanceSet, orientation: str) -> CaseMeasures:
    """Collect the facts of one case; its channels and labels lie on the same grid."""
    axis_map = orientation_map(volumes[0], orientation)
    to_image = grid_map(instances.geometry, volumes[0])
    assert to_image is not None  # the reader of the case has checked it
    objects = instances.moved(to_image).moved(axis_map)
    arrays = [axis_map.array(volume.array) for volume in volumes]
    z, y, x = spacing_of(axis_map.geometry(volumes[0]))
    slices, height, width = arrays[0].shape
    lowest = tuple(float(array.min()) for array in arrays)
    rows, columns = body_window(arrays[0], CT_AIR if lowest[0] < CT_BELOW else None)
    contacts = find_contacts(objects)
    labels = [instance.label for instance in objects]
    classes = {
        label: _class_facts([i for i, found in enumerate(labels) if found == label], objects, arrays, contacts)
        for label in sorted(set(labels))
    }
    kinds = [(min(labels[i], labels[j]), max(labels[i], labels[j])) for i, j in contacts.pairs]
    return CaseMeasures(
        spacing_mm=(z, y, x),
        shape=(slices, height, width),
        body_mm=((rows[1] - rows[0]) * y, (columns[1] - columns[0]) * x),
        classes=classes,
        per_slice=_count_slices(objects, slices),
        labelled_voxels=contacts.labelled_voxels,
        shared_voxels=contacts.shared_voxels,
        touching=Counter(pair for pair, area in zip(kinds, contacts.area_mm2, strict=True) if area > 0),
        overlapping=Counter(pair for pair, shared in zip(kinds, contacts.shared, strict=True) if shared > 0),
        lowest=lowest,
        from_dicom=bool(volumes[0].frame_of_reference_uid),
    )


def _count_slices(objects: Iterable[Instance], slices: int) -> NDArray[np.int64]:
    counts = np.zeros(slices, np.int64)
    for instance in objects:
        first = instance.offset[0]
        counts[first : first + instance.mask.shape[0]] += instance.mask.any(axis=(1, 2))
    return counts


def _class_facts(chosen: list[int], objects: InstanceSet, arrays: list[NDArray], contacts: Contacts) -> ClassFacts:
    """Collect the facts of the objects at these positions, which have one label."""
    instances = [objects.instances[i] for i in chosen]
    spacing = np.array(spacing_of(objects.geometry))
    boxes, areas, sides, extents, gaps = [], [], [], [], []
    for instance in instances:
        size = _cross_sections(instance.mask)
        boxes.append(size * spacing[1:])
        areas.append(np.count_nonzero(instance.mask, axis=(1, 2)))
        sides.append(np.sqrt((size * spacing[1:]).prod(axis=1)).max())
        extents.append(_extent(instance.mask) * spacing)
        gaps.append(_gap(areas[-1]))
    seen = np.concatenate(areas) > 0
    counts = _count_slices(instances, arrays[0].shape[0])
    each = -(-VALUES_KEPT // len(instances))
    return ClassFacts(
        boxes_mm=np.concatenate(boxes)[seen],
        areas_mm2=np.concatenate(areas)[seen] * spacing[1:].prod(),
        sides_mm=np.array(sides),
        extents_mm=np.array(extents),
        volumes_ml=np.array([instance.voxels for instance in instances]) * (spacing.prod() / 1000),
        gaps=np.array(gaps, np.int64),
        per_slice=counts[counts > 0],
        touching=contacts.own[chosen],
        touching_others=contacts.other[chosen],
        overlapped=contacts.overlapped[chosen],
        values=tuple(np.concatenate([_sample(array, i, each) for i in instances]) for array in arrays),
        outlines=tuple(_outlines(instances, (float(spacing[1]), float(spacing[2])))),
    )


def _cross_sections(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return [d, 2] rows and columns that the object spans in each slice of its crop, 0 where it is not there."""
    spans = []
    for axis in (2, 1):
        hit = np.asarray(mask.any(axis=axis))
        last = hit.shape[1] - hit[:, ::-1].argmax(axis=1)
        spans.append(np.where(hit.any(axis=1), last - hit.argmax(axis=1), 0))
    return np.stack(spans, axis=1)


def _extent(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    hits = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    return np.array([hit[-1] - hit[0] + 1 for hit in hits])


def _gap(areas: NDArray[np.int64]) -> int:
    there = np.flatnonzero(areas)
    return int(there[-1] - there[0] + 1 - len(there))


def _sample(array: NDArray, instance: Instance, number: int) -> NDArray[np.float64]:
    """Return about ``number`` values under a mask, evenly spread."""
    inside = array[instance.window][instance.mask]
    return inside[:: -(-len(inside) // number)].astype(np.float64)


def _outlines(instances: list[Instance], pixel_mm: tuple[float, float]) -> Iterator[Outline]:
    """Yield the largest cross-section of a few objects, evenly spread over their sizes."""
    order = sorted(range(len(instances)), key=lambda i: (instances[i].voxels, i))
    number = min(OUTLINES_PER_CASE, len(order))
    for k in range(number):
        mask = instances[order[(2 * k + 1) * len(order) // (2 * number)]].mask
        plane = mask[int(np.count_nonzero(mask, axis=(1, 2)).argmax())]
        plane = plane[np.ix_(*(_span(plane.any(axis=axis)) for axis in (1, 0)))]
        yield Outline(np.packbits(plane), (plane.shape[0], plane.shape[1]), pixel_mm)


def _span(hit: NDArray[np.bool_]) -> NDArray[np.intp]:
    there = np.flatnonzero(hit)
    return np.arange(there[0], there[-1] + 1)


def fingerprint(
    cases: Iterable[CaseMeasures], labels: LabelTable, channels: tuple[str, ...], orientation: str
) -> Fingerprint:
    """Put the cases' facts together.

    Raises:
        InputError: no case, or a label of the table that occurs in none.
    """
    facts = tuple(cases)
    if not facts:
        raise InputError("the cohort has no cases")
    missing = [label.name for label in labels if not any(label.id in case.classes for case in facts)]
    if missing:
        raise InputError(
            f"labels {missing} occur in no case of the cohort; take them out of the label table or add cases with them"
        )
    return Fingerprint(cases=facts, labels=labels, channels=channels, orientation=orientation)


def thin_outlines(cases: Iterable[CaseMeasures]) -> Iterator[CaseMeasures]:
    """Pass cases on, without outlines of labels of which there are enough, so that memory stays bounded."""
    kept: Counter[int] = Counter()
    for case in cases:
        classes = {
            label: replace(facts, outlines=facts.outlines[: max(0, OUTLINES_PER_LABEL - kept[label])])
            for label, facts in case.classes.items()
        }
        kept.update({label: len(facts.outlines) for label, facts in classes.items()})
        yield replace(case, classes=classes)
