"""Label tables: order, look-up, round trips and refusals."""

import json

import pytest

from medseg.errors import ConfigError
from medseg.labels import PALETTE, Code, Label, LabelTable, one_line, palette_colour

MASS = Code(value="4147007", scheme="SCT", meaning="Mass")


@pytest.fixture
def table() -> LabelTable:
    return LabelTable(
        [
            Label(id=7, name="lesion", colour=(255, 0, 3), kind="ids", type=MASS),
            Label(id=2, name="liver", colour=(10, 20, 30)),
        ]
    )


def test_order_and_look_up(table: LabelTable) -> None:
    assert table.ids == (2, 7) and table.names == ("liver", "lesion")
    assert [label.id for label in table] == [2, 7] and len(table) == 2
    assert 7 in table and 1 not in table
    assert table[7].name == "lesion" and table.by_name("liver").id == 2
    assert table.describe() == "{2: 'liver', 7: 'lesion'}"
    with pytest.raises(ConfigError, match="label id 3 is not in the label table .2: 'liver', 7: 'lesion'"):
        table[3]
    with pytest.raises(ConfigError, match="label 'Liver' is not in the label table"):
        table.by_name("Liver")


def test_equal_tables_whatever_the_order(table: LabelTable) -> None:
    again = LabelTable(reversed(table.labels))
    assert again == table and hash(again) == hash(table)
    assert again != LabelTable([])


def test_round_trip_through_json(table: LabelTable) -> None:
    assert LabelTable.from_dict(json.loads(json.dumps(table.to_dict()))) == table
    assert LabelTable.from_dict(LabelTable([]).to_dict()) == LabelTable([])


def test_names_are_numbered_from_one_with_colours_of_the_palette() -> None:
    table = LabelTable.from_names(["liver", "lesion"], kinds={"lesion": "components"})
    assert [(label.id, label.kind) for label in table] == [(1, "single"), (2, "components")]
    assert [label.colour for label in table] == list(PALETTE[:2])
    assert palette_colour(len(PALETTE)) == PALETTE[0]
    assert len(set(PALETTE)) == len(PALETTE)


def test_a_row_without_a_colour_takes_one_of_the_palette() -> None:
    assert LabelTable.from_dict([{"id": 5, "name": "x"}, {"id": 4, "name": "y"}])[4].colour == PALETTE[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 0}, "expected 1..65535"),
        ({"id": -1}, "expected 1..65535"),
        ({"id": 65536}, "expected 1..65535"),
        ({"name": ""}, "empty"),
        ({"name": "  "}, "empty"),
        ({"name": "two\nlines"}, "control characters"),
        ({"name": "tab\t"}, "control characters"),
        ({"name": "next line\x85"}, "control characters"),
        ({"name": "separator\u2028"}, "several lines"),
        ({"name": "half \ud800"}, "control characters"),
        ({"colour": (1, 2)}, "not three values in 0..255"),
        ({"colour": (1, 2, 256)}, "not three values in 0..255"),
        ({"kind": "many"}, "kind 'many' is unknown"),
    ],
)
def test_labels_that_make_no_sense_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Label(**({"id": 1, "name": "x", "colour": (1, 2, 3)} | change))


def test_quotes_markup_and_other_scripts_are_names() -> None:
    for name in ("\"a\" 'b'", "<script>alert(1)</script>", "Läsion, 左腎 🫀", "a|b~c^d:e\\n"):
        assert Label(id=1, name=name, colour=(0, 0, 0)).name == name
    assert one_line("a\r\nb\x00\u2029c") == "a b c"


def test_ids_and_names_are_unique() -> None:
    a = Label(id=1, name="a", colour=(0, 0, 0))
    with pytest.raises(ConfigError, match="ids are not unique"):
        LabelTable([a, Label(id=1, name="b", colour=(0, 0, 0))])
    with pytest.raises(ConfigError, match="names are not unique"):
        LabelTable([a, Label(id=2, name="a", colour=(0, 0, 0))])


@pytest.mark.parametrize(
    "row",
    [
        {"id": 1},
        {"name": "x"},
        {"id": 1, "name": "x", "color": [1, 2, 3]},
        {"id": "1", "name": "x"},
        {"id": 1.5, "name": "x"},
        {"id": 1, "name": 3},
        {"id": 1, "name": "x", "colour": 5},
        {"id": 1, "name": "x", "colour": "red"},
        {"id": 1, "name": "x", "type": {"value": "1"}},
        {"id": 1, "name": "x", "type": "4147007"},
        {"id": 1, "name": "x", "type": {"value": 4147007, "scheme": "SCT", "meaning": "Mass"}},
        "liver",
        None,
    ],
)
def test_rows_that_are_no_labels_are_refused_by_position(row: object) -> None:
    with pytest.raises(ConfigError, match="label"):
        LabelTable.from_dict([row])  # type: ignore[list-item]
