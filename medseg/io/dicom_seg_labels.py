"""Segment descriptions of DICOM SEG (PS3.3 C.8.20.4): labels, colours, codes and algorithm, read and written.

Labels and scores stand in a private block besides, because segments have no attribute for them; without it (files of
others, or after de-identification) each distinct SegmentLabel is a label.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import SegmentDescription
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset

from medseg.labels import Code, Colour, Label, LabelTable, one_line, palette_colour
from medseg.values.instances import InstanceSet

#: Private block (PS3.5 7.8) with labels and scores, which the segments have no attribute for.
PRIVATE_GROUP, PRIVATE_CREATOR, PRIVATE_ELEMENT = 0x0063, "MEDSEG", 0x01
_TISSUE = CodedConcept("85756007", "SCT", "Tissue")


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """How a segment came about (PS3.3 C.8.20.2).

    Attributes:
        type: SegmentAlgorithmType: AUTOMATIC, SEMIAUTOMATIC or MANUAL.
        name, version: of the algorithm; empty for MANUAL.
        family: its kind (CID 7162), where known.
    """

    type: str
    name: str = ""
    version: str = ""
    family: Code | None = None


#: For objects whose origin a file does not say: neither a claim that a machine made them nor that a person did.
UNKNOWN_ORIGIN = Algorithm(type="SEMIAUTOMATIC", name="unknown")


def predicted_by(name: str, version: str) -> Algorithm:
    """Return the algorithm of objects that a network found without help."""
    family = Code(value="123110", scheme="DCM", meaning="Artificial Intelligence")
    return Algorithm(type="AUTOMATIC", name=name, version=version, family=family)


def noted_by_medseg(dataset: Dataset) -> dict:
    """Return what medseg noted in its private block, empty for files of others."""
    try:
        block = dataset.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)
        value = block[PRIVATE_ELEMENT].value
    except KeyError:
        return {}
    data = json.loads(value.decode() if isinstance(value, bytes) else str(value))
    return data if isinstance(data, dict) else {}


def segment_labels(dataset: Dataset, items: list[Dataset]) -> tuple[list[int], LabelTable]:
    """Return the label id of every segment, and the table."""
    noted = noted_by_medseg(dataset)
    if "labels" in noted and "segments" in noted:
        rows = noted["segments"]
        if not rows:  # no object: the segments stand for the labels alone
            return [0] * len(items), LabelTable.from_dict(noted["labels"])
        return [int(rows[str(int(item.SegmentNumber))]["label"]) for item in items], LabelTable.from_dict(
            noted["labels"]
        )
    names = [one_line(str(item.get("SegmentLabel") or "")).strip() or f"segment {item.SegmentNumber}" for item in items]
    ids = {name: position + 1 for position, name in enumerate(dict.fromkeys(names))}
    counts = Counter(names)
    labels: dict[str, Label] = {}
    for name, item in zip(names, items, strict=True):
        if name not in labels:
            label = _label(item, ids[name], name)
            labels[name] = replace(label, kind="ids") if counts[name] > 1 else label
    return [ids[name] for name in names], LabelTable(labels.values())


def _label(item: Dataset, label_id: int, name: str) -> Label:
    kind, region = _code(item, "SegmentedPropertyTypeCodeSequence"), _code(item, "AnatomicRegionSequence")
    sides = [
        _code(sequence[0], modifier)
        for outer, modifier in (
            ("AnatomicRegionSequence", "AnatomicRegionModifierSequence"),
            ("SegmentedPropertyTypeCodeSequence", "SegmentedPropertyTypeModifierCodeSequence"),
        )
        if (sequence := item.get(outer))
    ]
    return Label(
        id=label_id,
        name=name,
        colour=_colour(item) or palette_colour(label_id - 1),
        category=_code(item, "SegmentedPropertyCategoryCodeSequence"),
        type=kind,
        region=region,
        laterality=next((side for side in sides if side), None),
    )


def _colour(item: Dataset) -> Colour | None:
    value = item.get("RecommendedDisplayCIELabValue")
    if value is None or len(value) != 3:
        return None
    r, g, b = CIELabColor.from_dicom_value([int(v) for v in value]).to_rgb(clip=True)
    return int(r), int(g), int(b)


def _code(item: Dataset, keyword: str) -> Code | None:
    sequence = item.get(keyword)
    if not sequence:
        return None
    code = sequence[0]
    value = str(code.get("CodeValue") or code.get("LongCodeValue") or code.get("URNCodeValue") or "").strip()
    scheme = one_line(str(code.get("CodingSchemeDesignator") or "")).strip()
    meaning = one_line(str(code.get("CodeMeaning") or "")).strip() or value
    return Code(value=value, scheme=scheme, meaning=meaning) if value and scheme else None


def algorithm_of(item: Dataset) -> Algorithm:
    """Return how a segment came about."""
    identification = item.get("SegmentationAlgorithmIdentificationSequence")
    return Algorithm(
        type=str(item.get("SegmentAlgorithmType") or ""),
        name=str(item.get("SegmentAlgorithmName") or ""),
        version=str(identification[0].get("AlgorithmVersion") or "") if identification else "",
        family=_code(identification[0], "AlgorithmFamilyCodeSequence") if identification else None,
    )


def describe_segments(instances: InstanceSet, tracking: Sequence[tuple[str, str]]) -> list[SegmentDescription]:
    """Return a segment per instance, segment number = instance id; `name_algorithm` says how it came about.

    Args:
        instances: the objects.
        tracking: TrackingID and TrackingUID of each.
    """
    looks = zip(instances, instances.names(), instances.colours(), tracking, strict=True)
    return [
        _describe(instance.id, name, instances.labels[instance.label], colour, track)
        for instance, name, colour, track in looks
    ]


def describe_labels(labels: LabelTable) -> list[SegmentDescription]:
    """Return an empty segment per label, for a set without objects: the standard wants one at least."""
    return [_describe(number, label.name, label, label.colour, None) for number, label in enumerate(labels, 1)]


def _describe(
    number: int, name: str, label: Label, colour: Colour, tracking: tuple[str, str] | None
) -> SegmentDescription:
    item = SegmentDescription(
        segment_number=number,
        segment_label=short_text(name, 64),
        segmented_property_category=coded(label.category) or _TISSUE,
        segmented_property_type=coded(label.type) or _TISSUE,
        algorithm_type="MANUAL",
        tracking_id=tracking[0] if tracking else None,
        tracking_uid=tracking[1] if tracking else None,
        display_color=CIELabColor.from_rgb(*colour),
    )
    region, side = coded(label.region), coded(label.laterality)
    if region is not None:
        if side is not None:
            region.AnatomicRegionModifierSequence = [side]
        item.AnatomicRegionSequence = [region]
    elif side is not None:
        item.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [side]
    return item


def name_algorithm(item: Dataset, algorithm: Algorithm) -> None:
    """Say in a segment how it came about; what is no type of the standard is unknown."""
    if algorithm.type not in ("AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"):
        algorithm = UNKNOWN_ORIGIN
    item.SegmentAlgorithmType = algorithm.type
    if algorithm.type != "MANUAL":
        item.SegmentAlgorithmName = short_text(algorithm.name, 64) or "unknown"
    family = coded(algorithm.family)
    if family is not None and algorithm.name:
        item.SegmentationAlgorithmIdentificationSequence = AlgorithmIdentificationSequence(
            name=short_text(algorithm.name, 64), family=family, version=short_text(algorithm.version, 64) or "unknown"
        )


def note_labels(dataset: Dataset, instances: InstanceSet) -> None:
    """Add the private block with the label table and each segment's label, score and original number."""
    segments = {str(i.id): {"label": i.label, "score": float(i.score), "source_id": i.source_id} for i in instances}
    text = json.dumps({"labels": instances.labels.to_dict(), "segments": segments}, ensure_ascii=True)
    dataset.private_block(PRIVATE_GROUP, PRIVATE_CREATOR, create=True).add_new(PRIVATE_ELEMENT, "UT", text)


def coded(code: Code | None) -> CodedConcept | None:
    """Return a code as DICOM writes it, its meaning cut to 64 characters; None for none."""
    if code is None or len(code.scheme) > 16:
        return None
    return CodedConcept(value=code.value, scheme_designator=code.scheme, meaning=short_text(code.meaning, 64))


def short_text(text: str, limit: int) -> str:
    """Return text that fits an LO attribute (PS3.5 6.2): one line, no backslash, at most ``limit`` bytes of UTF-8.

    The standard counts characters, many readers bytes. What is too long loses its middle: names end in numbers.
    """
    plain = one_line(text).replace("\\", "/").strip()
    code = plain.encode()
    if len(code) <= limit:
        return plain
    return code[: limit - 12].decode(errors="ignore") + "..." + code[-9:].decode(errors="ignore")
