"""Instances: one cropped 3-D mask per object, overlaps kept.

Memory grows with the objects, not with volume x objects. Flattening to a label map, where overlaps are
lost, is always an explicit choice (`InstanceSet.to_labelmap`).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import cc3d
import numpy as np
from highdicom import Volume, VolumeGeometry
from numpy.typing import NDArray
from scipy import ndimage

from medseg.errors import ConfigError, GeometryError, InputError
from medseg.labels import Colour, LabelTable
from medseg.values.geometry import AxisMap, describe_grid, spacing_of
from medseg.values.shades import shade

Overlap = Literal["error", "higher_score", "smaller", "later"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Instance:
    """One object.

    Attributes:
        id: 1..N within its set.
        label: id of the LabelTable.
        score: 0..1; 1 for a reference.
        mask: [d, h, w] bool, the object's own box of the volume; at least one voxel is set.
        offset: (slice, row, column) of the mask's first voxel in the volume.
        source_id: the number the object carried in the file it came from, where it had one.
    """

    id: int
    label: int
    mask: NDArray[np.bool_]
    offset: tuple[int, int, int]
    score: float = 1.0
    source_id: int | None = None

    def __post_init__(self) -> None:
        if self.id < 1:
            raise ConfigError(f"instance id {self.id}: expected 1 or more")
        if self.mask.ndim != 3 or self.mask.dtype != np.bool_ or not self.mask.any():
            raise InputError(
                f"instance {self.id}: mask {self.mask.dtype}{self.mask.shape} is not a non-empty 3-D bool array"
            )
        if not 0.0 <= self.score <= 1.0:
            raise ConfigError(f"instance {self.id}: score {self.score}, expected 0..1")

    @property
    def voxels(self) -> int:
        """Number of voxels of the object."""
        return int(np.count_nonzero(self.mask))

    @property
    def window(self) -> tuple[slice, slice, slice]:
        """Where the mask lies in the volume."""
        a, b, c = (slice(o, o + n) for o, n in zip(self.offset, self.mask.shape, strict=True))
        return a, b, c

    def slice_mask(self, index: int) -> NDArray[np.bool_] | None:
        """Return the [h, w] mask in slice ``index`` of the volume (same row and column offset), None outside."""
        z = index - self.offset[0]
        return self.mask[z] if 0 <= z < self.mask.shape[0] else None


def crop_to_object(mask: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], tuple[int, int, int]] | None:
    """Return the tight [d, h, w] crop (a copy) of a 3-D bool array and its offset; None where it is empty."""
    window = []
    plane: NDArray[np.bool_] = np.logical_or.reduce(mask, axis=0)
    for line in (mask.any(axis=(1, 2)), plane.any(axis=1), plane.any(axis=0)):
        hit = np.flatnonzero(line)
        if not len(hit):
            return None
        window.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return np.ascontiguousarray(mask[tuple(window)]), (window[0].start, window[1].start, window[2].start)


class FlatMap(NamedTuple):
    """A label map of instance ids and what was lost in making it."""

    array: NDArray[np.uint16]
    lost_voxels: dict[int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class InstanceSet:
    """The objects of one volume, ids 1..N in order, overlapping freely.

    Attributes:
        instances: the objects; none is an ordinary value.
        geometry: the grid that masks and offsets refer to.
        labels: names and colours of the label ids.
    """

    instances: tuple[Instance, ...]
    geometry: VolumeGeometry
    labels: LabelTable

    def __post_init__(self) -> None:
        shape = self.geometry.spatial_shape
        for position, instance in enumerate(self.instances):
            if instance.id != position + 1:
                raise ConfigError(f"instance ids are {[i.id for i in self.instances]}, expected 1..N in order")
            self.labels[instance.label]
            ends = [o + n for o, n in zip(instance.offset, instance.mask.shape, strict=True)]
            if min(instance.offset) < 0 or any(e > n for e, n in zip(ends, shape, strict=True)):
                raise GeometryError(
                    f"instance {instance.id}: voxels {instance.offset}..{tuple(ends)} leave the volume {shape}"
                )

    def __len__(self) -> int:
        return len(self.instances)

    def __iter__(self) -> Iterator[Instance]:
        return iter(self.instances)

    def __getitem__(self, instance_id: int) -> Instance:
        """Return the instance with this id (1..N)."""
        if not 1 <= instance_id <= len(self.instances):
            raise ConfigError(f"instance {instance_id}: the set has ids 1..{len(self.instances)}")
        return self.instances[instance_id - 1]

    @classmethod
    def build(
        cls, instances: Iterable[Instance], geometry: VolumeGeometry | Volume, labels: LabelTable
    ) -> "InstanceSet":
        """Number instances 1..N in the order given and set them on a grid."""
        numbered = tuple(replace(instance, id=i + 1) for i, instance in enumerate(instances))
        if isinstance(geometry, Volume):
            geometry = geometry.get_geometry()
        return cls(instances=numbered, geometry=geometry, labels=labels)

    @classmethod
    def from_masks(
        cls,
        masks: Iterable[tuple[int, NDArray[np.bool_]]],
        geometry: VolumeGeometry | Volume,
        labels: LabelTable,
    ) -> "InstanceSet":
        """Build from (label id, full-size bool mask) pairs; empty masks are left out."""
        found = []
        for label, mask in masks:
            if tuple(mask.shape) != tuple(geometry.spatial_shape):
                raise GeometryError(
                    f"mask of label {label} has shape {mask.shape}, expected that of the grid {geometry.spatial_shape}"
                )
            crop = crop_to_object(mask)
            if crop is not None:
                found.append(Instance(id=1, label=label, mask=crop[0], offset=crop[1]))
        return cls.build(found, geometry, labels)

    @classmethod
    def from_labelmap(
        cls,
        array: NDArray[np.integer],
        geometry: VolumeGeometry | Volume,
        labels: LabelTable,
        *,
        instance_labels: Mapping[int, int] | None = None,
        source: str = "label map",
    ) -> "InstanceSet":
        """Build from a label map.

        Args:
            array: integers (slice, row, column), 0 = background.
            geometry: the grid of the array.
            labels: the label table. Without ``instance_labels`` each value of the array is a label id and
                its ``kind`` says what the objects are: ``components`` are split into connected components
                (26-neighbourhood), any other kind is one object.
            instance_labels: where the array holds instance ids: instance id -> label id.
            source: what to call the map in an error.

        Raises:
            InputError: a value that is in neither table.
        """
        if array.shape != tuple(geometry.spatial_shape):
            raise GeometryError(f"{source}: shape {array.shape}, expected that of its grid {geometry.spatial_shape}")
        low, high = int(array.min()), int(array.max())
        if low < 0:
            raise InputError(f"{source}: value {low} found, expected labels of 0 and above")
        if high <= 65535:
            values: Sequence[int] | NDArray[np.integer] = range(high + 1)
            codes = array.astype(np.uint16, copy=False)
        else:  # rare, and a sort of the whole volume: number the values that occur
            values = np.unique(np.append(array, 0))
            codes = np.searchsorted(values, array).astype(np.int32)
        windows = [(int(values[i]), i, w) for i, w in enumerate(ndimage.find_objects(codes), start=1) if w is not None]
        known = set(labels.ids if instance_labels is None else instance_labels)
        unknown = [value for value, _, _ in windows if value not in known]
        if unknown:
            table = labels.describe() if instance_labels is None else f"instance ids {sorted(known)[:20]}"
            raise InputError(
                f"{source}: values {unknown[:10]} are not in the table {table}; add them to the labels or mend the file"
            )
        found = []
        for value, code, window in windows:
            mask = codes[window] == code
            origin = (window[0].start, window[1].start, window[2].start)
            label = value if instance_labels is None else int(instance_labels[value])
            if instance_labels is None and labels[label].kind == "components":
                parts = cc3d.connected_components(mask, connectivity=26)
                for part, inner in enumerate(ndimage.find_objects(parts), start=1):
                    start = (origin[0] + inner[0].start, origin[1] + inner[1].start, origin[2] + inner[2].start)
                    found.append(Instance(id=1, label=label, mask=parts[inner] == part, offset=start, source_id=value))
            else:
                found.append(Instance(id=1, label=label, mask=mask, offset=origin, source_id=value))
        return cls.build(found, geometry, labels)

    def to_labelmap(self, overlap: Overlap) -> FlatMap:
        """Flatten to one uint16 map of instance ids.

        Args:
            overlap: who keeps a voxel that several objects claim: ``higher_score`` (ties: the smaller
                object), ``smaller``, ``later`` (the higher id), or ``error`` to refuse.

        Returns:
            The map and, per instance id, how many of its voxels another object took (only where any).

        Raises:
            InputError: with ``overlap="error"``, two objects share a voxel; or more than 65535 instances.
        """
        if len(self) > 65535:
            raise InputError(f"{len(self)} instances do not fit a 16-bit label map; write .seg.nrrd instead")
        size = {i.id: i.voxels for i in self.instances}
        order = {
            "higher_score": lambda i: (i.score, -size[i.id], -i.id),
            "smaller": lambda i: (-size[i.id], -i.id),
            "later": lambda i: (i.id,),
            "error": lambda i: (i.id,),
        }
        array = np.zeros(self.geometry.spatial_shape, np.uint16)
        for instance in sorted(self.instances, key=order[overlap]):  # the last painted wins
            window = array[instance.window]
            if overlap == "error" and window[instance.mask].any():
                other = int(window[instance.mask].max())
                raise InputError(f"instances {other} and {instance.id} overlap; choose who keeps the shared voxels")
            window[instance.mask] = instance.id
        kept = {i.id: int(np.count_nonzero(array[i.window] == i.id)) for i in self.instances}
        return FlatMap(array, {key: size[key] - kept[key] for key in size if kept[key] < size[key]})

    def semantic(self, label: int) -> NDArray[np.bool_]:
        """Return the full-size union of all objects of one label."""
        array = np.zeros(self.geometry.spatial_shape, np.bool_)
        for instance in self.instances:
            if instance.label == label:
                array[instance.window] |= instance.mask
        return array

    def full_mask(self, instance_id: int) -> NDArray[np.bool_]:
        """Return one object's mask in the size of the volume."""
        instance = self[instance_id]
        array = np.zeros(self.geometry.spatial_shape, np.bool_)
        array[instance.window] = instance.mask
        return array

    def names(self) -> tuple[str, ...]:
        """Return what each instance is called, in order: ``liver``, ``lesion 1``, ``lesion 2``.

        The one object of a label of kind ``single`` has the label's name; all others are numbered within
        their label, so that a name does not change its form with the number of lesions. Where two labels
        would give the same name, the id is added: names are unique.
        """
        totals = Counter(instance.label for instance in self.instances)
        seen: Counter[int] = Counter()
        names = []
        for instance in self.instances:
            label = self.labels[instance.label]
            seen[label.id] += 1
            alone = label.kind == "single" and totals[label.id] == 1
            names.append(label.name if alone else f"{label.name} {seen[label.id]}")
        often = Counter(names)
        return tuple(f"{n} (object {k})" if often[n] > 1 else n for k, n in enumerate(names, start=1))

    def colours(self) -> tuple[Colour, ...]:
        """Return the RGB colour of each instance, in order: the label's own, then shades of it (`values.shades`)."""
        seen: Counter[int] = Counter()
        colours = []
        for instance in self.instances:
            colours.append(shade(self.labels[instance.label].colour, seen[instance.label]))
            seen[instance.label] += 1
        return tuple(colours)

    def moved(self, axis_map: AxisMap) -> "InstanceSet":
        """Return the same objects in the same place, array axes in another order; exact."""
        shape = self.geometry.spatial_shape
        instances = tuple(
            replace(
                i,
                mask=np.ascontiguousarray(axis_map.array(i.mask)),
                offset=axis_map.offset(i.offset, i.mask.shape, shape),
            )
            for i in self.instances
        )
        return InstanceSet(instances=instances, geometry=axis_map.geometry(self.geometry), labels=self.labels)

    def with_labels(self, labels: LabelTable) -> "InstanceSet":
        """Return the same objects under another label table."""
        return InstanceSet(instances=self.instances, geometry=self.geometry, labels=labels)

    def volume_ml(self, instance_id: int) -> float:
        """Return the volume of one object in millilitres."""
        return self[instance_id].voxels * float(np.prod(spacing_of(self.geometry))) / 1000.0

    def __repr__(self) -> str:
        return f"InstanceSet({len(self)} instances of {len(self.labels)} labels on {describe_grid(self.geometry)})"
