"""How the notebooks draw: one look, letters large enough to read, colours told apart by the colour-blind."""

import io
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from IPython.display import Image, Markdown, display
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike, NDArray
from PIL import Image as Pixels

from medseg.reporting.plots import COLOURS as COLOURS
from medseg.reporting.tiles import outlines

#: The checkout that the notebooks belong to.
ROOT = Path(__file__).resolve().parents[1]
#: Lines are told apart by their markers as well.
MARKERS = "os^Dvp*X"
SOFT_TISSUE = (-160.0, 240.0)
WIDTH_INCHES = 9.5
LOOK = {
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "axes.prop_cycle": f"cycler('color', {list(COLOURS)!r})",
}


def panels(rows: int, columns: int, height: float, width: float = WIDTH_INCHES, **settings: Any) -> Any:
    """Return a figure and its axes, as many as asked for (one of them bare); sides in inches."""
    with rc_context(LOOK):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        return figure, figure.subplots(rows, columns, **settings)


def show(figure: Figure, dpi: int = 85) -> None:
    """Show a figure under the cell."""
    drawn, png = io.BytesIO(), io.BytesIO()
    with rc_context(LOOK):
        figure.savefig(drawn, format="png", dpi=dpi, facecolor=figure.get_facecolor())
    # Rounded to 32 shades of each colour: half the bytes in the saved notebook.
    shades = np.asarray(Pixels.open(drawn).convert("RGB")).astype(int)
    rounded = np.where(shades == 255, 255, np.minimum((shades + 4) // 8 * 8, 255)).astype(np.uint8)
    Pixels.fromarray(rounded).save(png, format="png", optimize=True)
    display(Image(png.getvalue()))


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Show rows under the cell as a table."""
    lines = [header, ["---"] * len(header), *rows]
    display(Markdown("\n".join("| " + " | ".join(str(c).replace("|", "\\|") for c in line) + " |" for line in lines)))


def slice_picture(
    axes: Axes,
    image: NDArray,
    title: str,
    pixel_mm: tuple[float, float],
    window: tuple[float, float] = SOFT_TISSUE,
    bar_mm: float = 0.0,
) -> None:
    """Draw a slice [row, column] with the patient's right on the left.

    The axes count pixels as medseg does (pixel i covers [i, i + 1)), so boxes and outlines go in as they are.
    ``bar_mm``: length of the scale bar, none for 0.
    """
    height, width = image.shape
    axes.imshow(
        image,
        cmap="gray",
        vmin=window[0],
        vmax=window[1],
        extent=(0, width, height, 0),
        aspect=pixel_mm[0] / pixel_mm[1],
    )
    axes.set_title(title)
    axes.axis("off")
    if bar_mm:
        x, y = 0.04 * width, 0.95 * height
        rim = [withStroke(linewidth=4, foreground="black")]
        axes.plot([x, x + bar_mm / pixel_mm[1]], [y, y], color="white", linewidth=2.5, path_effects=rim)
        label(axes, x, y - 0.02 * height, f"{bar_mm:g} mm", "white")


def heat(axes: Axes, image: NDArray, values: NDArray, title: str, top: float = 1.0, window: Any = SOFT_TISSUE) -> Any:
    """Lay values [h, w], 0 to ``top``, of any number of cells over a slice; returns what a colour bar needs."""
    height, width = image.shape
    extent = (0, width, height, 0)
    axes.imshow(image, cmap="gray", vmin=window[0], vmax=window[1], extent=extent)
    shares = np.clip(0.1 + 0.9 * values / top, 0, 1)
    axes.imshow(values, cmap="viridis", vmin=0, vmax=top, extent=extent, alpha=shares)
    drawn = ScalarMappable(Normalize(0, top), "viridis")
    axes.set_title(title)
    axes.axis("off")
    return drawn


def outline(
    axes: Axes, mask: NDArray, colour: Any, offset: tuple[float, float] = (0, 0), *, rim: bool = True, **style: Any
) -> None:
    """Draw the outline of a mask [row, column] whose first pixel is ``offset``; a dark rim helps on images."""
    lines = [line[:, ::-1] for line in outlines(np.asarray(mask, bool), offset)]
    drawn = LineCollection(lines, colors=[colour], linewidths=style.pop("linewidth", 1.6), **style)
    if rim:
        drawn.set_path_effects([withStroke(linewidth=2.6, foreground="black", alpha=0.5)])
    axes.add_collection(drawn)


def boxes(axes: Axes, found: ArrayLike, colour: Any, **style: Any) -> None:
    """Draw boxes [N, 4] (x1 y1 x2 y2)."""
    for x1, y1, x2, y2 in np.asarray(found, float).reshape(-1, 4):
        settings = {"fill": False, "edgecolor": colour, "linewidth": 1.4, **style}
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, **settings))


def label(axes: Axes, x: float, y: float, text: str, colour: Any, **style: Any) -> None:
    """Write into a picture, readable on black and on white."""
    rim = [withStroke(linewidth=2, foreground="black")]
    axes.text(x, y, text, color=colour, fontsize=style.pop("fontsize", 9.5), path_effects=rim, **style)


def lines(axes: Axes, x: Sequence[float], curves: dict[str, Sequence[float]], **style: Any) -> None:
    """Draw named curves in colours and markers of their own, with a legend."""
    for (name, values), colour, marker in zip(curves.items(), cycle(COLOURS), cycle(MARKERS)):
        axes.plot(x, values, marker=marker, color=colour, label=name, **style)
    axes.legend()
    axes.grid(alpha=0.25)
