"""Reference and predictions of a case side by side, over the same slices."""

import io
from collections.abc import Mapping

import numpy as np
from highdicom import Volume
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medseg.reporting.slices import choose_slices
from medseg.reporting.tiles import (
    BACKGROUND,
    FOREGROUND,
    RADIOLOGICAL,
    Layer,
    Window,
    colours_of,
    displayed,
    draw_tile,
    window_of,
)
from medseg.values.geometry import orientation_map, spacing_of
from medseg.values.instances import InstanceSet

DPI = 130
TILE_INCHES = 2.9
HEAD_INCHES = 0.28
QUALITY = 88
#: A volume that reaches below this is a CT, as `medseg plan` sees it.
AIR_HU = -200
SOFT_TISSUE: Window = (-160.0, 240.0)


def side_by_side(volume: Volume | None, sets: Mapping[str, InstanceSet], *, slices: int = 2) -> bytes:
    """Draw objects in columns, a row per slice of those that show them best.

    Args:
        volume: the image, on the grid of the objects in world space; None draws them on black.
        sets: what stands above a column -> its objects, the reference first.
        slices: rows, at most.

    Returns:
        A JPEG.

    Raises:
        GeometryError: objects on another grid.
    """
    if volume is None:
        grid = next(iter(sets.values())).geometry
        volume = Volume(np.zeros(grid.spatial_shape, np.uint8), grid.affine, "PATIENT")
    shown = orientation_map(volume, RADIOLOGICAL).volume(volume)
    layers = {
        title: Layer(displayed(objects, volume, RADIOLOGICAL), colours_of(objects), dashed=False)
        for title, objects in sets.items()
    }
    indices = choose_slices([layer.instances for layer in layers.values()], slices)
    images = [np.asarray(shown.array[index], np.float32) for index in indices]
    window = SOFT_TISSUE if min(float(image.min()) for image in images) < AIR_HU else window_of(images)
    _, row_mm, column_mm = spacing_of(shown)
    aspect = float(np.clip(images[0].shape[0] * row_mm / (images[0].shape[1] * column_mm), 0.3, 2.0))
    width = TILE_INCHES * len(sets)
    height = HEAD_INCHES + TILE_INCHES * aspect * len(indices)
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    for column, (title, layer) in enumerate(layers.items()):
        figure.text(
            (column + 0.5) / len(sets), 1 - HEAD_INCHES / 2 / height, title, color=FOREGROUND, fontsize=9,
            ha="center", va="center", parse_math=False,
        )  # fmt: skip
        for row, (index, image) in enumerate(zip(indices, images, strict=True)):
            bottom = 1 - (HEAD_INCHES + (row + 1) * TILE_INCHES * aspect) / height
            place = (
                column / len(sets) + 0.004,
                bottom + 0.004,
                1 / len(sets) - 0.008,
                TILE_INCHES * aspect / height - 0.008,
            )
            draw_tile(figure.add_axes(place), shown, index, image, [layer], window, scale_bar=row == column == 0)
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="jpeg", dpi=DPI, facecolor=BACKGROUND, pil_kwargs={"quality": QUALITY, "subsampling": 0}
    )
    return buffer.getvalue()
