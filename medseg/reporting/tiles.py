"""One picture of a slice: the image in its window, outlines of objects, letters of orientation, place, scale bar.

Every stored axis order is displayed alike, in the radiological convention: seen from the feet, the patient's
right on the left of the picture, anterior on top. Positions in a picture are millimetres, so that pixels that
are not square keep their shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from highdicom import Volume
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from skimage.measure import find_contours

from medseg.errors import GeometryError
from medseg.values.geometry import Orientation, describe_grid, grid_map, orientation_map, spacing_of
from medseg.values.instances import InstanceSet

Window = tuple[float, float]
Rgb = tuple[float, float, float]

BACKGROUND = "#101214"
FOREGROUND = "#e8e8e8"
#: Radiological axial display: slices towards the head, rows towards posterior, columns towards the left.
RADIOLOGICAL: Orientation = "HPL"
OPPOSITE = {"L": "R", "R": "L", "P": "A", "A": "P", "H": "F", "F": "H"}


@dataclass(frozen=True)
class Layer:
    """Objects in display order and how they are drawn."""

    instances: InstanceSet
    colours: dict[int, Rgb]
    dashed: bool


def displayed(instances: InstanceSet, volume: Volume, orientation: Orientation) -> InstanceSet:
    """Return the objects on the volume's own grid in the display orientation."""
    to_volume = grid_map(instances.geometry, volume)
    if to_volume is None:
        raise GeometryError(
            f"overlay: the objects lie on another grid than the image: {describe_grid(instances.geometry)} "
            f"against {describe_grid(volume)}; resample one onto the other first"
        )
    return instances.moved(to_volume).moved(orientation_map(volume, orientation))


def colours_of(instances: InstanceSet) -> dict[int, Rgb]:
    """Return id -> RGB in 0..1 as matplotlib takes it."""
    return {
        instance.id: (r / 255, g / 255, b / 255)
        for instance, (r, g, b) in zip(instances, instances.colours(), strict=True)
    }


def window_of(images: Sequence[NDArray[np.float32]]) -> Window:
    """Return a window for images of no known unit: their 1st and 99.5th percentile."""
    low, high = np.percentile(np.stack(images), (1.0, 99.5))
    return float(low), float(max(high, low + 1e-6 * max(1.0, abs(low))))


def place(shown: Volume, index: int) -> str:
    """Return which slice this is and where its centre lies, so that any viewer finds it."""
    depth, rows, columns = shown.spatial_shape
    direction = shown.affine[:3, 0]
    world = int(np.argmax(np.abs(direction)))
    centre = shown.affine @ (index, (rows - 1) / 2, (columns - 1) / 2, 1)
    return f"slice {index + 1} of {depth}\n{'xyz'[world]} {centre[world]:.1f} mm"


def letters(shown: Volume) -> tuple[str, str, str, str]:
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


def draw_tile(
    axes: Axes,
    shown: Volume,
    index: int,
    image: NDArray[np.float32],
    layers: Sequence[Layer],
    window: Window,
    *,
    scale_bar: bool,
) -> None:
    """Draw slice ``index`` of a volume in display order, and the outlines of every layer in it.

    Args:
        axes: filled by the picture, in mm from its upper left corner.
        shown: in display order.
        index: along its slices.
        image: [row, column] what is shown of that slice.
        layers: drawn one over the other.
        window: what is black and what is white.
        scale_bar: whether there is one.
    """
    _, row_mm, column_mm = spacing_of(shown)
    height_mm, width_mm = image.shape[0] * row_mm, image.shape[1] * column_mm
    axes.imshow(
        image, cmap="gray", vmin=window[0], vmax=window[1], extent=(0.0, width_mm, height_mm, 0.0), aspect="equal"
    )
    for layer in layers:
        _draw_outlines(axes, layer, index, (row_mm, column_mm))
    axes.set(xlim=(0, width_mm), ylim=(height_mm, 0), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    _draw_letters(axes, letters(shown))
    _write(axes, 0.03, 0.97, place(shown, index), ha="left", va="top")
    if scale_bar:
        _draw_scale_bar(axes, width_mm, height_mm)


def _draw_outlines(axes: Axes, layer: Layer, index: int, pixel_mm: tuple[float, float]) -> None:
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


def _draw_letters(axes: Axes, directions: tuple[str, str, str, str]) -> None:
    left, right, top, bottom = directions
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
