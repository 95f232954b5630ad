"""Label tables for BIDS, ITK-SNAP and Caret, with names that try to break them."""

import csv
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from highdicom import VolumeGeometry
from nibabel.cifti2 import Cifti2Label, Cifti2LabelTable

from medseg.io.label_tables import (
    abbreviations,
    caret_label_table,
    write_bids_table,
    write_itksnap_table,
    write_slicer_table,
)
from medseg.labels import Code, Label, LabelTable
from medseg.values.instances import InstanceSet

NASTY = '"Läsion" <script>alert(1)</script>, a\'b & 左腎'
LABELS = LabelTable(
    [
        Label(id=3, name="left kidney", colour=(200, 100, 0)),
        Label(
            id=8,
            name=NASTY,
            colour=(10, 20, 250),
            kind="components",
            type=Code(value="52988006", scheme="SCT", meaning="Lesion"),
        ),
    ]
)


@pytest.fixture
def instances(oblique_geometry: VolumeGeometry) -> InstanceSet:
    array = np.zeros((5, 7, 11), np.uint8)
    array[0], array[2, :, :4], array[2, :, 6:] = 3, 8, 8
    return InstanceSet.from_labelmap(array, oblique_geometry, LABELS)


@pytest.fixture
def empty(oblique_geometry: VolumeGeometry) -> InstanceSet:
    return InstanceSet.build([], oblique_geometry, LabelTable([]))


def test_bids_table(instances: InstanceSet, empty: InstanceSet, tmp_path: Path) -> None:
    path = write_bids_table(tmp_path / "a_dseg.tsv", instances)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", strict=True))
    assert list(rows[0]) == ["index", "name", "abbreviation", "color", "mapping"]
    assert [row["index"] for row in rows] == ["1", "2", "3"]
    assert [row["name"] for row in rows] == ["left kidney", f"{NASTY} 1", f"{NASTY} 2"]
    assert [row["mapping"] for row in rows] == ["n/a", "7", "7"]  # 7 is BIDS' lesion
    assert rows[0]["color"] == "#c86400" and rows[1]["color"] == "#0a14fa"
    assert len({row["abbreviation"] for row in rows}) == 3
    assert path.read_bytes().count(b"\n") == 4 and b"\r" not in path.read_bytes()
    assert write_bids_table(tmp_path / "b_dseg.tsv", empty).read_text() == "index\tname\tabbreviation\tcolor\tmapping\n"


def test_abbreviations_are_short_and_unique() -> None:
    names = ("liver", "left kidney", "lesion 1", "lesion 2", "live", "???", "!", "inferior_vena_cava")
    assert abbreviations(names) == ("LIV-1", "LK", "LES1", "LES2", "LIV-5", "X-6", "X-7", "IVC")
    assert abbreviations(()) == ()


def test_itksnap_table(instances: InstanceSet, empty: InstanceSet, tmp_path: Path) -> None:
    path = write_itksnap_table(tmp_path / "a.txt", instances)
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line and not line.startswith("#")]
    pattern = re.compile(r'^\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+([\d.]+)\s+([01])\s+([01])\s+"([^"]*)"$')
    rows = [match.groups() if (match := pattern.match(line)) else None for line in lines]
    assert rows[0] == ("0", "0", "0", "0", "0", "0", "0", "Clear Label")
    assert rows[1] == ("1", "200", "100", "0", "1", "1", "1", "left kidney")
    assert rows[2] is not None and rows[2][:4] == ("2", "10", "20", "250")
    assert rows[2][7] == NASTY.replace('"', "'") + " 1"
    assert len(rows) == 4 and None not in rows
    assert write_itksnap_table(tmp_path / "b.txt", empty).read_text().endswith('"Clear Label"\n')


def test_caret_table_is_what_nibabel_writes(instances: InstanceSet, empty: InstanceSet) -> None:
    root = ElementTree.fromstring(caret_label_table(instances))
    assert root.tag == "CaretExtension" and root.findtext("VolumeInformation/VolumeType") == "Label"
    table = root.find("VolumeInformation/LabelTable")
    assert table is not None
    expected = Cifti2LabelTable()
    expected.append(Cifti2Label(0, "???", 0.0, 0.0, 0.0, 0.0))
    for instance, name, rgb in zip(instances, instances.names(), instances.colours(), strict=True):
        expected.append(Cifti2Label(instance.id, name, *(float(f"{c / 255:.6g}") for c in rgb), 1.0))
    reference = ElementTree.fromstring(expected.to_xml())
    assert [(e.tag, e.attrib, e.text) for e in table] == [(e.tag, e.attrib, e.text) for e in reference]
    assert len(ElementTree.fromstring(caret_label_table(empty)).findall(".//Label")) == 1


def test_slicer_table(instances: InstanceSet, empty: InstanceSet, tmp_path: Path) -> None:
    lines = write_slicer_table(tmp_path / "a.ctbl", instances).read_text(encoding="utf-8").splitlines()
    assert lines[:3] == ["# Color table file", "# 4 values", "0 Background 0 0 0 0"]
    assert [line.split() for line in lines[3:]] == [
        [str(i.id), name.replace(" ", "_"), *map(str, colour), "255"]
        for i, name, colour in zip(instances, instances.names(), instances.colours(), strict=True)
    ]
    assert len(write_slicer_table(tmp_path / "b.ctbl", empty).read_text().splitlines()) == 3


def test_tables_of_label_ids(tmp_path: Path) -> None:
    rows = list(csv.DictReader(write_bids_table(tmp_path / "a.tsv", LABELS).open(encoding="utf-8"), delimiter="\t"))
    assert [(row["index"], row["name"], row["color"]) for row in rows] == [
        ("3", "left kidney", "#c86400"),
        ("8", NASTY, "#0a14fa"),
    ]
    assert write_itksnap_table(tmp_path / "a.txt", LABELS).read_text(encoding="utf-8").count("\n    8    10") == 1
    assert b'Key="8"' in caret_label_table(LABELS)
