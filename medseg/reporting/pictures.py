"""Pictures for pages: one slice each, small files, with a text that says what they show."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from highdicom import Volume
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from medseg.reporting.html import data_uri
from medseg.reporting.slices import choose_slices
from medseg.reporting.tiles import RADIOLOGICAL, Layer, Window, colours_of, displayed, draw_tile, place, window_of
from medseg.values.geometry import Orientation, orientation_map, spacing_of
from medseg.values.instances import InstanceSet

#: Orientation of each plane for display: the patient's right or front on the left, head or front on top.
PLANES: dict[str, Orientation] = {"axial": RADIOLOGICAL, "coronal": "PFL", "sagittal": "LFP"}
#: Longer side of a picture, pixels.
SIZE = 560
DPI = 150
QUALITY = 88


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture in a page.

    Attributes:
        jpeg: the file.
        width, height: pixels.
        title: what stands below it.
        description: what it shows, for who does not see it.
    """

    jpeg: bytes
    width: int
    height: int
    title: str
    description: str

    @property
    def uri(self) -> str:
        """A data URI that holds it."""
        return data_uri(self.jpeg, "jpeg")


def slice_pictures(volume: Volume, instances: InstanceSet, *, window: Window | None, count: int) -> list[Picture]:
    """Return up to ``count`` axial pictures of the slices that show the objects best, and one of each other plane.

    Args:
        volume: (slice, row, column), any axis order.
        instances: on the same grid in world space.
        window: black and white, in the units of the volume; None takes percentiles.
        count: of axial pictures.

    Raises:
        GeometryError: the objects lie on another grid.
    """
    pictures = plane_pictures(volume, instances, plane="axial", window=window, count=count)
    for plane in ("coronal", "sagittal"):
        pictures += plane_pictures(volume, instances, plane=plane, window=window, count=1)
    return pictures


def plane_pictures(
    volume: Volume,
    instances: InstanceSet,
    *,
    plane: str,
    window: Window | None,
    count: int,
    slices: Sequence[int] | None = None,
    size: int = SIZE,
) -> list[Picture]:
    """Return pictures in one of `PLANES`.

    Args:
        volume, instances, window: see `slice_pictures`.
        plane: axial, coronal or sagittal.
        count: at most, of those slices that show the objects best.
        slices: these instead, along the slices of the display.
        size: longer side, pixels.

    Raises:
        GeometryError: the objects lie on another grid.
    """
    orientation = PLANES[plane]
    shown = orientation_map(volume, orientation).volume(volume)
    objects = displayed(instances, volume, orientation)
    layer = Layer(objects, colours_of(instances), dashed=False)
    indices = choose_slices([objects], count) if slices is None else list(slices)
    images = [np.asarray(shown.array[index], np.float32) for index in indices]
    limits = window_of(images) if window is None else window
    return [
        _picture(shown, index, image, layer, limits, plane, size) for index, image in zip(indices, images, strict=True)
    ]


def _picture(
    shown: Volume, index: int, image: NDArray[np.float32], layer: Layer, window: Window, plane: str, size: int
) -> Picture:
    _, row_mm, column_mm = spacing_of(shown)
    height_mm, width_mm = image.shape[0] * row_mm, image.shape[1] * column_mm
    longer = max(height_mm, width_mm)
    # Long and narrow slices get black beside them, rather than a picture of a few lines.
    width, height = (max(round(size * side / longer), size // 3) for side in (width_mm, height_mm))
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="black")
    FigureCanvasAgg(figure)
    draw_tile(figure.add_axes((0, 0, 1, 1)), shown, index, image, [layer], window, scale_bar=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", dpi=DPI, facecolor="black", pil_kwargs={"quality": QUALITY, "subsampling": 0})
    names = layer.instances.names()
    seen = [names[i.id - 1] for i in layer.instances if (mask := i.slice_mask(index)) is not None and mask.any()]
    where = place(shown, index).replace("\n", ", ")
    return Picture(
        jpeg=buffer.getvalue(),
        width=width,
        height=height,
        title=f"{plane}, {where}",
        description=f"{plane.capitalize()}, {where}: " + (", ".join(seen) if seen else "no object"),
    )
