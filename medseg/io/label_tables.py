"""Names and colours of the numbers in a label map, in the formats that other tools read.

The numbers are instance ids (from an InstanceSet) or label ids (from a LabelTable):

- BIDS derivatives ``*_dseg.tsv`` (BIDS 1.10, "Segmentations": index, name, abbreviation, color, mapping);
- ITK-SNAP label descriptions (index, RGB 0-255, alpha 0-1, visibility, mesh visibility, name in quotes);
- 3D Slicer colour tables (``.ctbl``: index, name without spaces, RGBA 0-255);
- the Caret label table that Connectome Workbench keeps in a NIfTI extension.
"""

import csv
import io
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from medseg.io.atomic import write_text
from medseg.labels import Colour, Label, LabelTable
from medseg.values.instances import InstanceSet

#: SNOMED CT codes whose objects are "Lesion", 7 in BIDS' table of common image-derived labels.
_LESION_CODES = {"49755003", "52988006", "108369006"}
_ITKSNAP_HEAD = """\
################################################
# ITK-SnAP Label Description File
# File format:
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
# Fields:
#    IDX:   Zero-based index
#    -R-:   Red color component (0..255)
#    -G-:   Green color component (0..255)
#    -B-:   Blue color component (0..255)
#    -A-:   Label transparency (0.00 .. 1.00)
#    VIS:   Label visibility (0 or 1)
#    MSH:   Label mesh visibility (0 or 1)
#  LABEL:   Label description
################################################
"""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """What a number stands for."""

    index: int
    name: str
    colour: Colour
    label: Label


def _entries(source: InstanceSet | LabelTable) -> list[_Entry]:
    if isinstance(source, LabelTable):
        return [_Entry(index=label.id, name=label.name, colour=label.colour, label=label) for label in source]
    return [
        _Entry(index=instance.id, name=name, colour=colour, label=source.labels[instance.label])
        for instance, name, colour in zip(source, source.names(), source.colours(), strict=True)
    ]


def write_bids_table(path: Path | str, source: InstanceSet | LabelTable) -> Path:
    """Write a BIDS ``*_dseg.tsv`` of the instance or label ids (without the background).

    ``mapping`` is BIDS' standard label where one fits (lesions), else ``n/a``.
    """
    entries = _entries(source)
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter="\t", lineterminator="\n")
    writer.writerow(["index", "name", "abbreviation", "color", "mapping"])
    for entry, short in zip(entries, abbreviations(tuple(entry.name for entry in entries)), strict=True):
        r, g, b = entry.colour
        mapping = 7 if _is_lesion(entry.label) else "n/a"
        writer.writerow([entry.index, entry.name, short, f"#{r:02x}{g:02x}{b:02x}", mapping])
    write_text(path, buffer.getvalue())
    return Path(path)


def abbreviations(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return a unique short form per name: initials of several words, else three letters; numbers are kept."""
    short = []
    for name in names:
        words = re.findall(r"[^\W\d_]+|\d+", name)
        letters = [word for word in words if not word.isdigit()]
        start = letters[0][:3] if len(letters) == 1 else "".join(word[0] for word in letters)
        short.append(start.upper() + "".join(word for word in words if word.isdigit()) or "X")
    often = Counter(short)
    return tuple(f"{text}-{i}" if often[text] > 1 else text for i, text in enumerate(short, start=1))


def _is_lesion(label: Label) -> bool:
    return any(code is not None and code.value in _LESION_CODES for code in (label.category, label.type))


def write_itksnap_table(path: Path | str, source: InstanceSet | LabelTable) -> Path:
    """Write an ITK-SNAP label description of the ids; double quotes in names become single ones."""
    lines = ['    0     0    0    0        0  0  0    "Clear Label"\n']
    for entry in _entries(source):
        (r, g, b), plain = entry.colour, entry.name.replace('"', "'")
        lines.append(f'{entry.index:5d} {r:5d} {g:4d} {b:4d}        1  1  1    "{plain}"\n')
    write_text(path, _ITKSNAP_HEAD + "".join(lines))
    return Path(path)


def write_slicer_table(path: Path | str, source: InstanceSet | LabelTable) -> Path:
    """Write a 3D Slicer colour table of the ids; Slicer shows the underscores in names as spaces."""
    entries = _entries(source)
    lines = ["# Color table file\n", f"# {len(entries) + 1} values\n", "0 Background 0 0 0 0\n"]
    for entry in entries:
        (r, g, b), joined = entry.colour, re.sub(r"\s+", "_", entry.name)
        lines.append(f"{entry.index} {joined} {r} {g} {b} 255\n")
    write_text(path, "".join(lines))
    return Path(path)


def caret_label_table(source: InstanceSet | LabelTable) -> bytes:
    """Return the Caret volume extension (XML, UTF-8) that names the ids, for a NIfTI extension of code 30."""
    extension = ElementTree.Element("CaretExtension")
    volume = ElementTree.SubElement(extension, "VolumeInformation", Index="0")
    table = ElementTree.SubElement(volume, "LabelTable")
    rows = [(0, "???", (0.0, 0.0, 0.0, 0.0))]
    for entry in _entries(source):
        r, g, b = entry.colour
        rows.append((entry.index, entry.name, (r / 255, g / 255, b / 255, 1.0)))
    for key, name, rgba in rows:
        channels = {k: f"{v:.6g}" for k, v in zip(("Red", "Green", "Blue", "Alpha"), rgba, strict=True)}
        ElementTree.SubElement(table, "Label", {"Key": str(key), **channels}).text = name
    ElementTree.SubElement(volume, "VolumeType").text = "Label"
    return ElementTree.tostring(extension, encoding="utf-8", xml_declaration=True)
