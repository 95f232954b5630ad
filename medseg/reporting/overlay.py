"""A sheet of pictures made for looking: outlines of the objects over the slices that show them best, and a legend."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from highdicom import Volume
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from medseg.errors import ConfigError, GeometryError
from medseg.io.atomic import atomic_path
from medseg.reporting.slices import choose_slices
from medseg.reporting.tiles import (
    BACKGROUND,
    FOREGROUND,
    RADIOLOGICAL,
    Layer,
    Rgb,
    Window,
    colours_of,
    displayed,
    draw_tile,
    window_of,
)
from medseg.values.geometry import Orientation, orientation_map, spacing_of
from medseg.values.instances import Instance, InstanceSet

CAPTION = "Research use only"
DPI = 130
TILE_INCHES = 3.0
#: Legend entries beyond these are summed up in one line.
MAX_ENTRIES = 32
REFERENCE: Rgb = (1.0, 1.0, 1.0)


def overlay_montage(
    volume: Volume,
    instances: InstanceSet,
    *,
    window: Window | None = (-160.0, 240.0),
    slices: Sequence[int] | None = None,
    columns: int = 4,
    orientation: Orientation = RADIOLOGICAL,
) -> Figure:
    """Draw the outlines of the objects over chosen slices, with names and volumes.

    Args:
        volume: (slice, row, column), any axis order.
        instances: on the same grid, whatever its axis order; none gives the bare image.
        window: (low, high) shown as black and white, in the units of the volume; None takes the 1st and
            99.5th percentile of the slices shown.
        slices: positions along the displayed slice axis (0 is the lowest); None chooses up to two rows of
            slices, so that every object is seen where that is possible, and large in its slice.
        columns: pictures side by side, at most.
        orientation: the display, as in `orientation_map`.

    Returns:
        A figure with an Agg canvas (no pyplot state); `save_figure` writes it.

    Raises:
        GeometryError: the objects lie on another grid than the volume.
        ConfigError: a slice, window or number of columns that makes no sense.
    """
    colours = colours_of(instances)
    layers = [Layer(displayed(instances, volume, orientation), colours, dashed=False)]
    entries = _legend_entries(instances, colours)
    return _montage(volume, layers, entries, window, slices, columns, orientation)


def compare_montage(
    volume: Volume,
    reference: InstanceSet,
    prediction: InstanceSet,
    *,
    window: Window | None = (-160.0, 240.0),
    slices: Sequence[int] | None = None,
    columns: int = 4,
    orientation: Orientation = RADIOLOGICAL,
) -> Figure:
    """Draw the prediction in colours and the reference in dashed white over the same slices.

    The arguments are those of `overlay_montage`; slices are chosen for the objects of both.
    """
    colours = colours_of(prediction)
    white = {instance.id: REFERENCE for instance in reference}
    layers = [
        Layer(displayed(prediction, volume, orientation), colours, dashed=False),
        Layer(displayed(reference, volume, orientation), white, dashed=True),
    ]
    count = f"{len(reference)} object{'' if len(reference) == 1 else 's'}"
    entries = [_Entry(f"reference ({count})", REFERENCE, dashed=True), *_legend_entries(prediction, colours)]
    return _montage(volume, layers, entries, window, slices, columns, orientation)


def save_overlay(
    path: Path | str,
    volume: Volume,
    instances: InstanceSet,
    *,
    reference: InstanceSet | None = None,
    window: Window | None = (-160.0, 240.0),
    slices: Sequence[int] | None = None,
    columns: int = 4,
    orientation: Orientation = RADIOLOGICAL,
) -> None:
    """Write an overlay PNG, whole or not at all; with a reference it is that of `compare_montage`."""
    if reference is None:
        figure = overlay_montage(
            volume, instances, window=window, slices=slices, columns=columns, orientation=orientation
        )
    else:
        figure = compare_montage(
            volume, reference, instances, window=window, slices=slices, columns=columns, orientation=orientation
        )
    save_figure(path, figure)


def save_figure(path: Path | str, figure: Figure) -> None:
    """Write a figure as PNG, whole or not at all."""
    with atomic_path(path) as temporary, warnings.catch_warnings():
        # Names may hold letters that the font lacks; they show as boxes, the picture is still good.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(
            temporary, format="png", dpi=DPI, facecolor=figure.get_facecolor(), metadata={"Software": "medseg"}
        )


@dataclass(frozen=True)
class _Entry:
    """One line of the legend."""

    text: str
    colour: Rgb | None
    dashed: bool = False


def _legend_entries(instances: InstanceSet, colours: dict[int, Rgb]) -> list[_Entry]:
    """One entry per object; per label where they are too many; the rest summed up."""
    if not len(instances):
        return [_Entry("nothing found", None)]
    groups: dict[int, list[Instance]] = {}
    for instance in instances:
        groups.setdefault(instance.label, []).append(instance)
    ml = {instance.id: instances.volume_ml(instance.id) for instance in instances}
    names = instances.names()
    entries = []
    for label in instances.labels:
        members = groups.get(label.id, [])
        if len(instances) <= MAX_ENTRIES:
            entries += [_Entry(f"{names[i.id - 1]}  {_millilitres(ml[i.id])}", colours[i.id]) for i in members]
        elif members:
            name = f"{label.name} ({len(members)} objects)" if len(members) > 1 else label.name
            volume_ml = sum(ml[instance.id] for instance in members)
            entries.append(_Entry(f"{name}  {_millilitres(volume_ml)}", colours[members[0].id]))
    if len(entries) > MAX_ENTRIES:
        hidden = len(entries) - MAX_ENTRIES + 1
        entries = [*entries[: MAX_ENTRIES - 1], _Entry(f"and {hidden} more labels", None)]
    return entries


def _millilitres(volume_ml: float) -> str:
    return f"{volume_ml:.0f} ml" if volume_ml >= 100 else f"{volume_ml:.3g} ml"


def _montage(
    volume: Volume,
    layers: Sequence[Layer],
    entries: Sequence[_Entry],
    window: Window | None,
    slices: Sequence[int] | None,
    columns: int,
    orientation: Orientation,
) -> Figure:
    if volume.array.ndim != 3:
        raise GeometryError(f"overlay: array of shape {volume.array.shape}, expected (slice, row, column)")
    if columns < 1:
        raise ConfigError(f"overlay: columns {columns}, expected 1 or more")
    shown = orientation_map(volume, orientation).volume(volume)
    depth = shown.spatial_shape[0]
    indices = choose_slices([layer.instances for layer in layers], 2 * columns) if slices is None else list(slices)
    if not indices or any(not 0 <= index < depth for index in indices):
        raise ConfigError(f"overlay: slices {indices}, expected at least one in 0..{depth - 1}")
    images = [np.asarray(shown.array[index], np.float32) for index in indices]
    low, high = window_of(images) if window is None else window
    if not low < high:
        raise ConfigError(f"overlay: window {(low, high)}, expected (low, high) with low < high")

    _, row_mm, column_mm = spacing_of(shown)
    height_mm, width_mm = images[0].shape[0] * row_mm, images[0].shape[1] * column_mm
    sheet = _Sheet.plan(len(indices), columns, height_mm / width_mm, entries)
    figure = Figure(figsize=sheet.size, dpi=DPI, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    for position, (index, image) in enumerate(zip(indices, images, strict=True)):
        axes = figure.add_axes(sheet.tile(position), facecolor="black")
        draw_tile(axes, shown, index, image, layers, (low, high), scale_bar=position == 0)
    _draw_legend(figure, sheet, entries)
    return figure


@dataclass(frozen=True)
class _Sheet:
    """Where tiles and legend lie on the sheet, inches."""

    columns: int
    rows: int
    tile_width: float
    tile_height: float
    legend_columns: int
    legend_height: float

    GAP = 0.06
    LINE = 0.17
    FOOT = 0.24

    @classmethod
    def plan(cls, tiles: int, columns: int, aspect: float, entries: Sequence[_Entry]) -> "_Sheet":
        rows = -(-tiles // columns)
        columns = -(-tiles // rows)
        # Long and narrow pictures keep their shape inside a tile of bounded height.
        width = TILE_INCHES
        height = width * float(np.clip(aspect, 0.3, 2.0))
        longest = max(len(entry.text) for entry in entries)
        legend_columns = max(1, int(columns * (width + cls.GAP) / (0.45 + 0.066 * longest)))
        lines = -(-len(entries) // legend_columns)
        return cls(columns, rows, width, height, legend_columns, 0.12 + lines * cls.LINE)

    @property
    def size(self) -> tuple[float, float]:
        width = self.columns * (self.tile_width + self.GAP) + self.GAP
        height = self.rows * (self.tile_height + self.GAP) + self.GAP + self.legend_height + self.FOOT
        return width, height

    def tile(self, position: int) -> tuple[float, float, float, float]:
        """Return left, bottom, width, height as shares of the sheet."""
        row, column = divmod(position, self.columns)
        width, height = self.size
        left = self.GAP + column * (self.tile_width + self.GAP)
        top = self.GAP + row * (self.tile_height + self.GAP)
        return left / width, 1 - (top + self.tile_height) / height, self.tile_width / width, self.tile_height / height


def _draw_legend(figure: Figure, sheet: _Sheet, entries: Sequence[_Entry]) -> None:
    """Write the entries column by column below the tiles (matplotlib's own legend drops names that start with _)."""
    width, height = sheet.size
    lines = -(-len(entries) // sheet.legend_columns)
    used_columns = -(-len(entries) // lines)
    for position, entry in enumerate(entries):
        column, line = divmod(position, lines)
        x = sheet.GAP + 0.04 + column * (width - 2 * sheet.GAP) / max(used_columns, 1)
        y = sheet.FOOT + (lines - line - 0.5) * sheet.LINE
        if entry.colour is not None:
            figure.add_artist(
                Line2D(
                    [x / width, (x + 0.25) / width], [y / height] * 2, color=entry.colour, linewidth=2,
                    linestyle=(0, (2, 1)) if entry.dashed else "solid",
                )
            )  # fmt: skip
        figure.text(
            (x + (0.0 if entry.colour is None else 0.33)) / width,
            y / height,
            entry.text,
            color=FOREGROUND,
            fontsize=8,
            va="center",
            parse_math=False,
        )
    figure.text(
        1 - 0.1 / width, 0.1 / height, CAPTION, color=FOREGROUND, fontsize=7, ha="right", va="center", alpha=0.8
    )
