"""Pictures made for looking: outlines of the objects over the image, in the slices that show them best.

Every stored axis order is displayed alike, in the radiological convention: seen from the feet, the patient's
right on the left of the picture, anterior on top. Positions in a picture are millimetres, so that pixels that
are not square keep their shape.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from highdicom import Volume
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from skimage.measure import find_contours

from medseg.errors import ConfigError, GeometryError
from medseg.io.atomic import atomic_path
from medseg.reporting.slices import choose_slices
from medseg.values.geometry import Orientation, describe_grid, grid_map, orientation_map, spacing_of
from medseg.values.instances import Instance, InstanceSet

Window = tuple[float, float]
Rgb = tuple[float, float, float]

CAPTION = "Research use only"
BACKGROUND = "#101214"
FOREGROUND = "#e8e8e8"
#: Radiological axial display: slices towards the head, rows towards posterior, columns towards the left.
RADIOLOGICAL: Orientation = "HPL"
OPPOSITE = {"L": "R", "R": "L", "P": "A", "A": "P", "H": "F", "F": "H"}
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
    colours = _colours(instances)
    layers = [_Layer(_displayed(instances, volume, orientation), colours, dashed=False)]
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
    colours = _colours(prediction)
    white = {instance.id: REFERENCE for instance in reference}
    layers = [
        _Layer(_displayed(prediction, volume, orientation), colours, dashed=False),
        _Layer(_displayed(reference, volume, orientation), white, dashed=True),
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
class _Layer:
    """Objects in display order and how they are drawn."""

    instances: InstanceSet
    colours: dict[int, Rgb]
    dashed: bool


@dataclass(frozen=True)
class _Entry:
    """One line of the legend."""

    text: str
    colour: Rgb | None
    dashed: bool = False


def _displayed(instances: InstanceSet, volume: Volume, orientation: Orientation) -> InstanceSet:
    """Return the objects on the volume's own grid in the display orientation."""
    to_volume = grid_map(instances.geometry, volume)
    if to_volume is None:
        raise GeometryError(
            f"overlay: the objects lie on another grid than the image: {describe_grid(instances.geometry)} "
            f"against {describe_grid(volume)}; resample one onto the other first"
        )
    return instances.moved(to_volume).moved(orientation_map(volume, orientation))


def _colours(instances: InstanceSet) -> dict[int, Rgb]:
    """Return id -> RGB in 0..1 as matplotlib takes it."""
    return {
        instance.id: (r / 255, g / 255, b / 255)
        for instance, (r, g, b) in zip(instances, instances.colours(), strict=True)
    }


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
    layers: Sequence[_Layer],
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
    low, high = _window_of(images) if window is None else window
    if not low < high:
        raise ConfigError(f"overlay: window {(low, high)}, expected (low, high) with low < high")

    _, row_mm, column_mm = spacing_of(shown)
    height_mm, width_mm = images[0].shape[0] * row_mm, images[0].shape[1] * column_mm
    letters = _letters(shown)
    sheet = _Sheet.plan(len(indices), columns, height_mm / width_mm, entries)
    figure = Figure(figsize=sheet.size, dpi=DPI, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    for position, (index, image) in enumerate(zip(indices, images, strict=True)):
        axes = figure.add_axes(sheet.tile(position), facecolor="black")
        extent = (0.0, width_mm, height_mm, 0.0)
        axes.imshow(image, cmap="gray", vmin=low, vmax=high, extent=extent, aspect="equal")
        for layer in layers:
            _draw_outlines(axes, layer, index, (row_mm, column_mm))
        axes.set(xlim=(0, width_mm), ylim=(height_mm, 0), xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_visible(False)
        _draw_letters(axes, letters)
        _write(axes, 0.03, 0.97, _place(shown, index), ha="left", va="top")
        if position == 0:
            _draw_scale_bar(axes, width_mm, height_mm)
    _draw_legend(figure, sheet, entries)
    return figure


def _window_of(images: Sequence[NDArray[np.float32]]) -> Window:
    low, high = np.percentile(np.stack(images), (1.0, 99.5))
    return float(low), float(max(high, low + 1e-6 * max(1.0, abs(low))))


def _place(shown: Volume, index: int) -> str:
    """Return which slice this is and where its centre lies, so that any viewer finds it."""
    depth, rows, columns = shown.spatial_shape
    direction = shown.affine[:3, 0]
    world = int(np.argmax(np.abs(direction)))
    centre = shown.affine @ (index, (rows - 1) / 2, (columns - 1) / 2, 1)
    return f"slice {index + 1} of {depth}\n{'xyz'[world]} {centre[world]:.1f} mm"


def _letters(shown: Volume) -> tuple[str, str, str, str]:
    """Return the patient directions at the left, right, top and bottom of the picture."""
    names = np.array([["L", "R"], ["P", "A"], ["H", "F"]])
    towards = []
    for axis in (2, 1):
        direction = shown.affine[:3, axis]
        world = int(np.argmax(np.abs(direction)))
        towards.append(str(names[world, 0 if direction[world] > 0 else 1]))
    right, bottom = towards
    return OPPOSITE[right], right, OPPOSITE[bottom], bottom


def outlines(mask: NDArray[np.bool_], offset: tuple[int, int]) -> list[NDArray[np.float64]]:
    """Return the closed outlines of a 2-D mask, holes too, as [K, 2] (row, column) in pixels.

    They run at level 0.5, half-way between pixel centres inside and outside; pixel i covers [i, i + 1).
    """
    padded = np.pad(mask, 1).astype(np.float32)
    return [line + (np.array(offset) - 0.5) for line in find_contours(padded, 0.5)]


def _draw_outlines(axes: Axes, layer: _Layer, index: int, pixel_mm: tuple[float, float]) -> None:
    for instance in layer.instances:
        mask = instance.slice_mask(index)
        if mask is None or not mask.any():
            continue
        lines = [(line * pixel_mm)[:, ::-1] for line in outlines(mask, instance.offset[1:])]
        style = (0, (3, 2)) if layer.dashed else "solid"
        width = 0.9 if layer.dashed else 1.3
        collection = LineCollection(lines, colors=[layer.colours[instance.id]], linewidths=width, linestyles=[style])
        # A dark rim keeps light colours readable on bright tissue.
        collection.set_path_effects([withStroke(linewidth=width + 0.9, foreground="black", alpha=0.7)])
        axes.add_collection(collection)


def _write(axes: Axes, x: float, y: float, text: str, *, ha: str, va: str) -> None:
    """Write small text at a place in 0..1 of the axes, readable on black and on white."""
    axes.text(
        x, y, text, transform=axes.transAxes, color=FOREGROUND, fontsize=7, parse_math=False,
        path_effects=[withStroke(linewidth=2, foreground="black")], ha=ha, va=va,
    )  # fmt: skip


def _draw_letters(axes: Axes, letters: tuple[str, str, str, str]) -> None:
    left, right, top, bottom = letters
    _write(axes, 0.02, 0.5, left, ha="left", va="center")
    _write(axes, 0.98, 0.5, right, ha="right", va="center")
    _write(axes, 0.5, 0.98, top, ha="center", va="top")
    _write(axes, 0.5, 0.02, bottom, ha="center", va="bottom")


def _draw_scale_bar(axes: Axes, width_mm: float, height_mm: float) -> None:
    """Draw a bar of a round length, about a quarter of the picture wide."""
    exponent = 10 ** np.floor(np.log10(width_mm / 4))
    length = max(step * exponent for step in (1, 2, 5) if step * exponent <= width_mm / 4)
    x, y = 0.03 * width_mm, 0.95 * height_mm
    stroke = [withStroke(linewidth=4, foreground="black")]
    axes.plot([x, x + length], [y, y], color=FOREGROUND, linewidth=2, solid_capstyle="butt", path_effects=stroke)
    _write(axes, 0.03, 0.06, f"{length:g} mm", ha="left", va="bottom")


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
