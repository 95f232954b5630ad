"""3D Slicer segmentations (.seg.nrrd): overlapping segments in layers, with names, colours and terminology.

Format: https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html and, below it,
https://teem.sourceforge.net/nrrd/format.html. Header and voxels are written here, because pynrrd (and slicerio,
which builds on it) cannot write names outside ASCII; SimpleITK, which like 3D Slicer reads by teem, reads them.
"""

import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import SimpleITK as sitk
from highdicom import VolumeGeometry
from numpy.typing import NDArray
from scipy import ndimage

from medseg.errors import InputError, MedsegError
from medseg.io.atomic import atomic_path
from medseg.labels import Code, Colour, Label, LabelTable, one_line, palette_colour
from medseg.values.geometry import check_affine
from medseg.values.instances import Instance, InstanceSet

#: The label table (JSON), so that labels without an object and what Slicer has no field for come back.
TABLE_KEY = "medseg_LabelTable"
_CONTEXT = "Segmentation category and type - 3D Slicer General Anatomy list"
_REGION_CONTEXT = "Anatomic codes - DICOM master list"


def write_seg_nrrd(path: Path, instances: InstanceSet) -> None:
    """Write every instance as a segment; the stored value is the instance id, overlaps go to further layers.

    Memory grows with one slice and the objects, not with the volume.

    Raises:
        InputError: more than 65535 instances, or a file that cannot be written.
    """
    if len(instances) > 65535:
        raise InputError(f"{path}: {len(instances)} instances, at most 65535 fit a .seg.nrrd")
    layers = assign_layers(instances)
    count = max(layers.values(), default=0) + 1
    dtype = np.dtype(np.uint8) if len(instances) <= 255 else np.dtype("<u2")
    compressor = zlib.compressobj(4, zlib.DEFLATED, zlib.MAX_WBITS | 16)  # a gzip header without name or time
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(_header(instances, layers, count, dtype).encode("utf-8"))
        for plane in _planes(instances, layers, count, dtype):
            file.write(compressor.compress(plane.tobytes()))
        file.write(compressor.flush())


def assign_layers(instances: InstanceSet) -> dict[int, int]:
    """Return a layer (0, 1 ...) per instance id so that no two objects of a layer share a voxel."""
    low = np.array([i.offset for i in instances], np.intp).reshape(-1, 3)
    high = low + np.array([i.mask.shape for i in instances], np.intp).reshape(-1, 3)
    layers: dict[int, int] = {}
    for position, instance in enumerate(instances):
        near = (low[:position] < high[position]).all(axis=1) & (high[:position] > low[position]).all(axis=1)
        others = [instances.instances[p] for p in np.flatnonzero(near)]
        taken = {layers[other.id] for other in others if _overlap(instance, other)}
        layers[instance.id] = next(layer for layer in range(len(taken) + 1) if layer not in taken)
    return layers


def _overlap(a: Instance, b: Instance) -> bool:
    inner = [slice(max(s.start, t.start), min(s.stop, t.stop)) for s, t in zip(a.window, b.window, strict=True)]
    in_a, in_b = (tuple(slice(s.start - o, s.stop - o) for s, o in zip(inner, i.offset, strict=True)) for i in (a, b))
    return bool((a.mask[in_a] & b.mask[in_b]).any())


def _planes(instances: InstanceSet, layers: dict[int, int], count: int, dtype: np.dtype) -> Iterator[NDArray]:
    """Yield the [row, column, layer] values of each slice."""
    slices, rows, columns = instances.geometry.spatial_shape
    for index in range(slices):
        plane = np.zeros((rows, columns, count), dtype)
        for instance in instances:
            mask = instance.slice_mask(index)
            if mask is not None:
                plane[(*instance.window[1:], layers[instance.id])][mask] = instance.id
        yield plane


def _header(instances: InstanceSet, layers: dict[int, int], count: int, dtype: np.dtype) -> str:
    geometry = instances.geometry
    sizes = geometry.spatial_shape[::-1]
    # NRRD lists axes fastest first: column, row, slice
    directions = " ".join(_vector(geometry.affine[:3, axis]) for axis in (2, 1, 0))
    several = count > 1
    fields = {
        "type": "uint8" if dtype.itemsize == 1 else "uint16",
        "dimension": 4 if several else 3,
        "space": "left-posterior-superior",
        "sizes": " ".join(str(n) for n in ((count, *sizes) if several else sizes)),
        "space directions": f"none {directions}" if several else directions,
        "kinds": "list domain domain domain" if several else "domain domain domain",
        **({} if dtype.itemsize == 1 else {"endian": "little"}),
        "encoding": "gzip",
        "space origin": _vector(geometry.affine[:3, 3]),
    }
    extent = " ".join(f"0 {n - 1}" for n in sizes)
    values = {
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
        TABLE_KEY: json.dumps(instances.labels.to_dict(), ensure_ascii=False),
    }
    looks = zip(instances, instances.names(), instances.colours(), strict=True)
    for index, (instance, name, colour) in enumerate(looks):
        values |= {
            f"Segment{index}_ID": f"Segment_{instance.id}",
            f"Segment{index}_Name": name,
            f"Segment{index}_NameAutoGenerated": "0",
            f"Segment{index}_Color": " ".join(f"{c / 255:.6g}" for c in colour),
            f"Segment{index}_ColorAutoGenerated": "0",
            f"Segment{index}_Extent": extent,
            f"Segment{index}_LabelValue": str(instance.id),
            f"Segment{index}_Layer": str(layers[instance.id]),
            f"Segment{index}_Tags": _tags(instance, instances.labels[instance.label]),
        }
    head = "".join(f"{key}: {value}\n" for key, value in fields.items())
    return "NRRD0004\n" + head + "".join(f"{key}:={_escape(value)}\n" for key, value in values.items()) + "\n"


def _vector(values: NDArray[np.float64]) -> str:
    return "(" + ",".join(repr(float(v) + 0.0) for v in values) + ")"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")


def _tags(instance: Instance, label: Label) -> str:
    tags = [
        f"medseg.label:{label.id}",
        f"medseg.name:{quote(label.name, safe=' ')}",
        f"medseg.instance:{instance.id}",
        f"medseg.score:{float(instance.score)!r}",
    ]
    if instance.source_id is not None:
        tags.append(f"medseg.source:{instance.source_id}")
    if label.category and label.type:
        organ = label.laterality if not label.region else None  # a left kidney; else a lesion in the left kidney
        side = label.laterality if label.region else None
        entry = (_CONTEXT, _triple(label.category), _triple(label.type), _triple(organ))
        region = (_REGION_CONTEXT, _triple(label.region), _triple(side))
        tags.append("TerminologyEntry:" + "~".join(entry + region))
    return "|".join(tags) + "|"


def _triple(code: Code | None) -> str:
    """Return ``scheme^value^meaning`` without the characters that separate terminology entries."""
    parts = (code.scheme, code.value, code.meaning) if code else ("", "", "")
    return "^".join(re.sub(r"[~^|\r\n]", " ", part) for part in parts)


@dataclass(frozen=True, kw_only=True)
class _Segment:
    """One segment as the header describes it; ``label_id`` and ``instance`` are None where medseg did not write it."""

    name: str
    layer: int
    value: int
    colour: Colour | None
    tags: dict[str, str]

    @property
    def label_id(self) -> int | None:
        return int(self.tags["medseg.label"]) if "medseg.label" in self.tags else None

    @property
    def label_name(self) -> str:
        return one_line(unquote(self.tags["medseg.name"])) if "medseg.name" in self.tags else self.name

    @property
    def instance(self) -> int | None:
        return int(self.tags["medseg.instance"]) if "medseg.instance" in self.tags else None

    @property
    def source_id(self) -> int:
        return int(self.tags.get("medseg.source", self.tags.get("medseg.instance", self.value)))

    @property
    def score(self) -> float:
        return float(self.tags.get("medseg.score", 1.0))


def read_seg_nrrd(path: Path) -> InstanceSet:
    """Read a segmentation of medseg or 3D Slicer; empty segments have a label and no object.

    A segment that medseg did not write is one object of a label of that name.

    Raises:
        InputError: not a readable segmentation.
        GeometryError: no position in the patient, or a sheared grid.
    """
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError:
        raise InputError(f"{path}: not a readable NRRD file (damaged or cut short?); export it again") from None
    header = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    array = sitk.GetArrayViewFromImage(image)
    if image.GetDimension() != 3 or not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{path}: {image.GetDimension()} axes of {array.dtype}, expected 3-D segments of integers")
    if "NRRD_space" not in header:
        raise InputError(f"{path}: no 'space' field, so its place in the patient is unknown; expected a .seg.nrrd")
    layers = array[..., None] if array.ndim == 3 else array
    affine = np.eye(4)
    directions = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, :3], affine[:3, 3] = directions[:, ::-1], image.GetOrigin()
    affine = check_affine(affine, layers.shape[:3], str(path))
    try:
        segments = _segments(header, layers.shape[3])
        labels, table = _labels(header, segments)
        found = _objects(layers, segments, labels)
        return InstanceSet.build(found, VolumeGeometry(affine, layers.shape[:3], "PATIENT"), table)
    except (MedsegError, ValueError, TypeError) as error:
        raise InputError(f"{path}: not a usable segmentation: {error}") from None


def _segments(header: dict[str, str], layers: int) -> list[_Segment]:
    numbers = sorted({int(match[1]) for key in header if (match := re.match(r"Segment(\d+)_", key))})
    if not numbers and TABLE_KEY not in header:
        raise InputError("no segments in the header, expected a 3D Slicer segmentation (.seg.nrrd)")
    segments = []
    for position, number in enumerate(numbers):
        own = {key: header.get(f"Segment{number}_{key}") for key in ("Name", "Layer", "LabelValue", "Color", "Tags")}
        pairs = (tag.strip().partition(":") for tag in (own["Tags"] or "").split("|") if ":" in tag)
        # Slicer before 4.11 stored one binary layer per segment and neither layer nor value
        segment = _Segment(
            name=one_line(own["Name"] or "").strip() or f"segment {number + 1}",
            layer=int(own["Layer"]) if own["Layer"] else position if layers > 1 else 0,
            value=int(own["LabelValue"] or 1),
            colour=_colour(own["Color"]),
            tags={key: value for key, _, value in pairs},
        )
        if not 0 <= segment.layer < layers or not 1 <= segment.value <= 65535:
            raise InputError(
                f"segment {segment.name!r} is value {segment.value} of layer {segment.layer}; "
                f"the file has {layers} layers and values go from 1 to 65535"
            )
        segments.append(segment)
    return segments


def _colour(text: str | None) -> Colour | None:
    if not text:
        return None
    r, g, b = (min(255, max(0, round(float(c) * 255))) for c in text.split())
    return r, g, b


def _labels(header: dict[str, str], segments: list[_Segment]) -> tuple[list[int], LabelTable]:
    """Return the label id of every segment and the table, in which new labels follow the ones that have ids."""
    table = LabelTable.from_dict(json.loads(header[TABLE_KEY])) if TABLE_KEY in header else LabelTable([])
    known = {label.id: label for label in table}
    for segment in segments:
        if segment.label_id is not None and segment.label_id not in known:
            known[segment.label_id] = _label(segment, segment.label_id)
    by_name = {label.name: label.id for label in known.values()}
    ids = []
    for segment in segments:
        label_id = segment.label_id if segment.label_id is not None else by_name.get(segment.name)
        if label_id is None:
            label_id = max(known, default=0) + 1
            known[label_id] = _label(segment, label_id)
            by_name[segment.name] = label_id
        ids.append(label_id)
    several = {label_id for label_id, count in Counter(ids).items() if count > 1}
    return ids, LabelTable(
        replace(label, kind="ids") if label.id in several and label.id not in table else label
        for label in known.values()
    )


def _label(segment: _Segment, label_id: int) -> Label:
    colour = segment.colour or palette_colour(label_id - 1)
    # context, category, type, type modifier, region context, region, region modifier
    parts = (segment.tags.get("TerminologyEntry", "").split("~") + [""] * 7)[:7]
    return Label(
        id=label_id,
        name=segment.label_name,
        colour=colour,
        category=_code(parts[1]),
        type=_code(parts[2]),
        region=_code(parts[5]),
        laterality=_code(parts[6]) or _code(parts[3]),
    )


def _code(text: str) -> Code | None:
    scheme, value, meaning = ([*(one_line(part).strip() for part in text.split("^")), "", "", ""])[:3]
    return Code(scheme=scheme, value=value, meaning=meaning or value) if scheme and value else None


def _objects(layers: NDArray[np.integer], segments: list[_Segment], labels: list[int]) -> list[Instance]:
    """Return the objects of non-empty segments by instance number, those without a number last."""
    found = []
    for layer in sorted({segment.layer for segment in segments}):
        codes = np.ascontiguousarray(layers[..., layer])
        highest = max(segment.value for segment in segments if segment.layer == layer)
        windows = ndimage.find_objects(codes, max_label=highest)
        for position, (segment, label) in enumerate(zip(segments, labels, strict=True)):
            if segment.layer != layer or windows[segment.value - 1] is None:
                continue
            window = windows[segment.value - 1]
            instance = Instance(
                id=1,
                label=label,
                mask=codes[window] == segment.value,
                offset=(window[0].start, window[1].start, window[2].start),
                score=segment.score,
                source_id=segment.source_id,
            )
            order = (segment.instance is None, segment.instance or 0, position)
            found.append((order, instance))
    return [instance for _, instance in sorted(found, key=lambda pair: pair[0])]
