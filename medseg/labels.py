"""The label table: what each integer label is called, how it is drawn, coded and separated into objects."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from medseg.errors import ConfigError

Kind = Literal["single", "components", "ids"]
Colour = tuple[int, int, int]

#: Twelve colours told apart by the common forms of colour blindness (Okabe-Ito, then Paul Tol's muted
#: scheme), given in order to labels that bring no colour of their own.
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167), (136, 204, 238), (153, 153, 51), (136, 34, 85), (68, 170, 153), (170, 68, 153),
)  # fmt: skip


#: Controls, line and paragraph separators, halves of surrogate pairs: what text and XML files cannot carry.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]+")


def one_line(text: str) -> str:
    """Return the text with every run of control characters and line breaks as one space."""
    return _UNPRINTABLE.sub(" ", text)


def palette_colour(index: int) -> Colour:
    """Return the colour for position ``index`` (0-based); the palette repeats."""
    return PALETTE[index % len(PALETTE)]


@dataclass(frozen=True, kw_only=True)
class Code:
    """A coded concept as DICOM writes it (PS3.3 section 8): value, scheme designator, meaning."""

    value: str
    scheme: str
    meaning: str

    def __post_init__(self) -> None:
        for text in (self.value, self.scheme, self.meaning):
            if not isinstance(text, str) or not text.strip() or one_line(text) != text:
                raise ConfigError(f"code {self.value!r}: {text!r} is not a line of text")


@dataclass(frozen=True, kw_only=True)
class Label:
    """One class of object.

    Attributes:
        id: integer in 1..65535; 0 is the background.
        name: what viewers show; not empty, one line.
        colour: RGB, each 0..255.
        kind: how the label's voxels form objects: ``single`` (one object, however many parts),
            ``components`` (each connected component is an object) or ``ids`` (objects come
            numbered from the source, touching ones stay apart).
        category, type, region, laterality: coded terminology for exports, where known.
    """

    id: int
    name: str
    colour: Colour
    kind: Kind = "single"
    category: Code | None = None
    type: Code | None = None
    region: Code | None = None
    laterality: Code | None = None

    def __post_init__(self) -> None:
        if int(self.id) != self.id or not 1 <= self.id <= 65535:
            raise ConfigError(f"label id {self.id} of {self.name!r}: expected 1..65535 (0 is the background)")
        if not self.name.strip() or one_line(self.name) != self.name:
            raise ConfigError(f"label {self.id}: name {self.name!r} is empty, has control characters or several lines")
        if len(self.colour) != 3 or not all(0 <= int(c) <= 255 for c in self.colour):
            raise ConfigError(f"label {self.id} {self.name!r}: colour {self.colour} is not three values in 0..255")
        if self.kind not in get_args(Kind):
            raise ConfigError(
                f"label {self.id} {self.name!r}: kind {self.kind!r} is unknown, expected one of {get_args(Kind)}"
            )


@dataclass(frozen=True)
class LabelTable:
    """Labels by ascending id, names and ids unique. An empty table is allowed."""

    labels: tuple[Label, ...]
    _by_id: Mapping[int, Label] = field(init=False, repr=False, compare=False)

    def __init__(self, labels: Iterable[Label]):
        ordered = tuple(sorted(labels, key=lambda label: label.id))
        by_id = {label.id: label for label in ordered}
        if len(by_id) != len(ordered):
            raise ConfigError(f"label table: ids are not unique: {[label.id for label in ordered]}")
        names = [label.name for label in ordered]
        if len(set(names)) != len(names):
            raise ConfigError(f"label table: names are not unique: {names}")
        object.__setattr__(self, "labels", ordered)
        object.__setattr__(self, "_by_id", by_id)

    @classmethod
    def from_names(cls, names: Iterable[str], *, kinds: Mapping[str, Kind] | None = None) -> "LabelTable":
        """Number names from 1 in their order, with colours from the palette."""
        kinds = kinds or {}
        return cls(
            Label(id=i + 1, name=name, colour=palette_colour(i), kind=kinds.get(name, "single"))
            for i, name in enumerate(names)
        )

    def __iter__(self) -> Iterator[Label]:
        return iter(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __contains__(self, label_id: object) -> bool:
        return label_id in self._by_id

    def __getitem__(self, label_id: int) -> Label:
        try:
            return self._by_id[label_id]
        except KeyError:
            raise ConfigError(f"label id {label_id} is not in the label table {self.describe()}") from None

    def __hash__(self) -> int:
        return hash(self.labels)

    @property
    def ids(self) -> tuple[int, ...]:
        """Label ids in ascending order."""
        return tuple(label.id for label in self.labels)

    @property
    def names(self) -> tuple[str, ...]:
        """Label names by ascending id."""
        return tuple(label.name for label in self.labels)

    def by_name(self, name: str) -> Label:
        """Return the label called ``name``; ConfigError where there is none."""
        for label in self.labels:
            if label.name == name:
                return label
        raise ConfigError(f"label {name!r} is not in the label table {self.describe()}")

    def describe(self) -> str:
        """Return ``{1: 'liver', 2: 'lesion'}`` for messages."""
        return "{" + ", ".join(f"{label.id}: {label.name!r}" for label in self.labels) + "}"

    def to_dict(self) -> list[dict[str, Any]]:
        """Return plain lists and dicts for JSON and YAML; `from_dict` reads them back."""
        rows = []
        for label in self.labels:
            row: dict[str, Any] = {
                "id": label.id, "name": label.name, "colour": list(label.colour), "kind": label.kind,
            }  # fmt: skip
            for key in ("category", "type", "region", "laterality"):
                code = getattr(label, key)
                if code is not None:
                    row[key] = {"value": code.value, "scheme": code.scheme, "meaning": code.meaning}
            rows.append(row)
        return rows

    @classmethod
    def from_dict(cls, rows: Iterable[Mapping[str, Any]]) -> "LabelTable":
        """Read what `to_dict` wrote; unknown keys and wrong types are a ConfigError."""
        if not isinstance(rows, Iterable):
            raise ConfigError(f"label table: {rows!r} is not a list of labels")
        labels = []
        for position, row in enumerate(rows):
            try:
                values = dict(row)
                if "colour" in values:
                    values["colour"] = tuple(int(c) for c in values["colour"])
                else:
                    values["colour"] = palette_colour(position)
                for key in ("category", "type", "region", "laterality"):
                    if values.get(key) is not None:
                        values[key] = Code(**values[key])
                labels.append(Label(**values))
            except (TypeError, KeyError, AttributeError, ValueError) as error:
                raise ConfigError(f"label table, entry {position + 1}: {row!r} is not a label ({error})") from None
        return cls(labels)
