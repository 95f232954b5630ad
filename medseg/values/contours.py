"""Polygons and masks of one slice: even-odd filling, and outlines along the edges of pixels.

Points are (row, column) in continuous pixels, pixel (i, j) covers [i, i + 1) x [j, j + 1). A pixel belongs to a
polygon if its centre lies inside, or on the path: DICOM PS3.3 C.8.8.6.3, "points in space lying along the path
defined by the contour are considered to be part of the ROI". Inside is by the even-odd rule, so that a channel that is
walked there and back (the "keyhole" of the same section) encloses nothing.

Outlines run along the edges of pixels, half a pixel from every centre, so that filling them returns the mask bit by
bit whatever the rounding. Each is the border of one 4-connected part; its holes are joined to it by channels of no
width, also along edges: readers that unite the contours of a slice and readers that combine them by exclusive or
find the same mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Polygon = NDArray[np.float64]

#: How near (pixels) to the path a centre lies on it: contours that other programs draw through pixel centres come
#: rounded to a few decimals.
ON_PATH_PIXELS = 1e-3
_SMOOTHING_PASSES = 10
#: How many pixels are filled at a time, which bounds the memory.
_CANVAS_CELLS = 1 << 20


class Filled(NamedTuple):
    """A mask [h, w] bool within a slice, the (row, column) of its first pixel, and which contours cross each other."""

    mask: NDArray[np.bool_]
    offset: tuple[int, int]
    crossing: int


@dataclass(frozen=True, kw_only=True)
class _Raster:
    """One polygon in pixels: what lies inside by the even-odd rule, and on its path; both [h, w] within a window."""

    inside: NDArray[np.bool_]
    path: NDArray[np.bool_]
    offset: tuple[int, int]
    area: float


def fill_polygons(polygons: Sequence[Polygon], shape: tuple[int, int], *, exclusive: bool = False) -> Filled | None:
    """Return the mask of the polygons of one object in one slice.

    Args:
        polygons: each [n, 2] float (row, column), closed without repeating the first point; they may leave the slice.
        shape: (rows, columns) of the slice.
        exclusive: combine by exclusive or, whatever their order (DICOM's CLOSEDPLANAR_XOR). Else (CLOSED_PLANAR) a
            polygon inside another is a hole in it, one inside a hole an island; polygons that only overlap are united
            and counted as ``crossing``, and one that is there twice counts once.

    Returns:
        The mask in its own window, None where no pixel centre is covered.
    """
    return fill_slices([polygons], shape, [exclusive])[0]


def fill_slices(
    slices: Sequence[Sequence[Polygon]], shape: tuple[int, int], exclusive: Sequence[bool]
) -> list[Filled | None]:
    """Return what `fill_polygons` returns for each of many slices, ten times as fast where polygons are small."""
    kept = [p if x or len(p) < 2 else _without_copies(p) for p, x in zip(slices, exclusive, strict=True)]
    rasters = iter(_rasterize([polygon for polygons in kept for polygon in polygons], shape))
    return [
        _combined([raster for _ in polygons if (raster := next(rasters)) is not None], x)
        for polygons, x in zip(kept, exclusive, strict=True)
    ]


def _combined(rasters: list[_Raster], exclusive: bool) -> Filled | None:
    if not rasters:
        return None
    first = np.min([r.offset for r in rasters], axis=0)
    last = np.max([np.add(r.offset, r.inside.shape) for r in rasters], axis=0)
    mask = np.zeros(last - first, np.bool_)
    rasters = sorted(rasters, key=lambda raster: -raster.area)
    depths, crossing = ([0] * len(rasters), 0) if exclusive else _depths(rasters)
    for raster, depth in zip(rasters, depths, strict=True):
        (top, left), (height, width) = raster.offset - first, raster.inside.shape
        part = mask[top : top + height, left : left + width]
        if exclusive:
            part ^= raster.inside
        elif depth % 2 == 0:
            part |= raster.inside | raster.path
        else:
            part &= ~raster.inside | raster.path
    if exclusive:
        for raster in rasters:
            (top, left), (height, width) = raster.offset - first, raster.inside.shape
            mask[top : top + height, left : left + width] |= raster.path
    return Filled(mask, (int(first[0]), int(first[1])), crossing) if mask.any() else None


def _without_copies(polygons: Sequence[Polygon]) -> list[Polygon]:
    """Leave out polygons of the same points, wherever they begin and whichever way they run."""
    kept: dict[bytes, Polygon] = {}
    for polygon in polygons:
        a = np.asarray(polygon, np.float64) + 0.0  # no negative zero
        b = np.roll(a, -1, axis=0)
        ahead = (a[:, 0] < b[:, 0]) | ((a[:, 0] == b[:, 0]) & (a[:, 1] <= b[:, 1]))
        edges = np.where(ahead[:, None], np.hstack([a, b]), np.hstack([b, a]))
        kept.setdefault(edges[np.lexsort(edges.T)].tobytes(), polygon)
    return list(kept.values())


def _depths(rasters: Sequence[_Raster]) -> tuple[list[int], int]:
    """Return by how many larger polygons each lies enclosed, and how many cross another; largest first."""
    low = np.array([r.offset for r in rasters])
    high = low + [r.inside.shape for r in rasters]
    depths, crossing = [0], 0
    for index in range(1, len(rasters)):
        small = rasters[index]
        inner = small.inside & ~small.path
        near = (low[:index] < high[index]).all(axis=1) & (high[:index] > low[index]).all(axis=1)
        depth, crosses = 0, False
        for other in np.flatnonzero(near):
            shared, size = _inside(inner, small, rasters[int(other)])
            depth += size > 0 and shared == size
            crosses |= 0 < shared < size
        depths.append(depth)
        crossing += crosses
    return depths, crossing


def _inside(inner: NDArray[np.bool_], small: _Raster, large: _Raster) -> tuple[int, int]:
    """Return how many pixels of ``inner`` (in the window of ``small``) the larger polygon covers, and of how many."""
    starts = np.maximum(small.offset, large.offset)
    stops = np.minimum(np.add(small.offset, inner.shape), np.add(large.offset, large.inside.shape))
    a, b = (
        tuple(slice(i - o, j - o) for i, j, o in zip(starts, stops, raster.offset, strict=True))
        for raster in (small, large)
    )
    shared = np.count_nonzero(inner[a] & (large.inside[b] | large.path[b]))
    return int(shared), int(np.count_nonzero(inner))


def _rasterize(polygons: Sequence[Polygon], shape: tuple[int, int]) -> list[_Raster | None]:
    """Return each polygon in pixels of the slice; None where it covers no centre of the slice.

    Polygons are worked on many at a time, their windows stacked on one canvas.
    """
    rasters: list[_Raster | None] = []
    batch: list[Polygon] = []
    windows: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    cells = 0
    for polygon in polygons:
        points = np.asarray(polygon, np.float64) - 0.5  # centres at whole numbers
        low = np.clip(np.ceil(points.min(axis=0) - ON_PATH_PIXELS), 0, shape).astype(np.intp)
        high = np.clip(np.floor(points.max(axis=0) + ON_PATH_PIXELS) + 1, 0, shape).astype(np.intp)
        high = low if (high <= low).any() else high
        if batch and cells > _CANVAS_CELLS:
            rasters += _rasterize_batch(batch, windows)
            batch, windows, cells = [], [], 0
        batch.append(points - low)
        windows.append((low, high))
        cells += int(np.prod(high - low))
    return rasters + _rasterize_batch(batch, windows) if batch else rasters


def _rasterize_batch(
    polygons: list[Polygon], windows: list[tuple[NDArray[np.intp], NDArray[np.intp]]]
) -> list[_Raster | None]:
    """Rasterize polygons, relative to the low corners of their windows; windows of no pixel give None."""
    sizes = np.array([high - low for low, high in windows])
    tops = np.cumsum(sizes[:, 0]) - sizes[:, 0]
    lengths = np.array([len(polygon) for polygon in polygons])
    points = np.concatenate(polygons)
    ends = np.roll(points, -1, axis=0)
    last = np.cumsum(lengths) - 1
    ends[last] = points[last - lengths + 1]
    areas = np.add.reduceat(points[:, 0] * ends[:, 1] - ends[:, 0] * points[:, 1], last - lengths + 1) / 2
    size, top = np.repeat(sizes, lengths, axis=0), np.repeat(tops, lengths)
    canvas = (int(sizes[:, 0].sum()), int(sizes[:, 1].max()))
    inside = _crossings(points, ends, size, top, canvas)
    path = np.zeros(canvas, np.bool_)
    _mark_path(points, ends, size, top, path)
    rasters: list[_Raster | None] = []
    for (low, _), (height, width), first, area in zip(windows, sizes.tolist(), tops.tolist(), areas, strict=True):
        window = (slice(first, first + height), slice(0, width))
        offset = (int(low[0]), int(low[1]))
        raster = _Raster(inside=inside[window], path=path[window], offset=offset, area=abs(float(area)))
        rasters.append(raster if height else None)
    return rasters


def _whole_numbers(
    first: NDArray[np.float64], stop: NDArray[np.float64], limit: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return every whole number of first <= n < stop within 0 <= n < limit, and the position of the edge it is of."""
    start = np.clip(np.ceil(first), 0, limit).astype(np.intp)
    count = np.maximum(np.clip(np.ceil(stop), 0, limit).astype(np.intp) - start, 0)
    edge = np.repeat(np.arange(len(first)), count)
    return np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + start[edge], edge


def _crossings(
    points: Polygon, ends: Polygon, size: NDArray[np.intp], top: NDArray[np.intp], canvas: tuple[int, int]
) -> NDArray[np.bool_]:
    """Fill by the even-odd rule: every edge toggles the centres to the right of where it crosses their row."""
    rows, columns = canvas
    # an edge owns its upper end and not its lower one: a vertex on a row is crossed once
    row, edge = _whole_numbers(np.minimum(points[:, 0], ends[:, 0]), np.maximum(points[:, 0], ends[:, 0]), size[:, 0])
    a, b = points[edge], ends[edge]
    column = a[:, 1] + (row - a[:, 0]) * ((b[:, 1] - a[:, 1]) / (b[:, 0] - a[:, 0]))
    start = np.clip(np.ceil(column), 0, columns).astype(np.intp)
    cells = (row + top[edge]) * (columns + 1) + start
    toggles = np.bincount(cells, minlength=rows * (columns + 1)).reshape(rows, columns + 1)
    return np.logical_xor.accumulate((toggles[:, :columns] & 1).astype(np.bool_), axis=1)


def _mark_path(
    points: Polygon, ends: Polygon, size: NDArray[np.intp], top: NDArray[np.intp], canvas: NDArray[np.bool_]
) -> None:
    """Mark the centres that lie on an edge, to within `ON_PATH_PIXELS`."""
    extent = np.abs(ends - points)
    for axis in (0, 1):
        # a steep edge is met by each row at one point, a flat one by each column
        pick = np.flatnonzero(extent[:, axis] >= extent[:, 1 - axis])
        a, b, limit = points[pick], ends[pick], size[pick]
        low, high = np.minimum(a[:, axis], b[:, axis]), np.maximum(a[:, axis], b[:, axis])
        along, edge = _whole_numbers(low - ON_PATH_PIXELS, np.floor(high + ON_PATH_PIXELS) + 1, limit[:, axis])
        length = (b - a)[:, axis]
        share = np.divide(along - a[edge, axis], length[edge], out=np.zeros(len(edge)), where=length[edge] != 0)
        across = a[edge, 1 - axis] + np.clip(share, 0, 1) * (b - a)[edge, 1 - axis]
        nearest = np.rint(across)
        hit = (np.abs(across - nearest) <= ON_PATH_PIXELS) & (nearest >= 0) & (nearest < limit[edge, 1 - axis])
        place = np.empty((2, int(hit.sum())), np.intp)
        place[axis], place[1 - axis] = along[hit], nearest[hit]
        canvas[place[0] + top[pick[edge[hit]]], place[1]] = True


@dataclass(frozen=True, kw_only=True)
class _Loop:
    """A closed outline, clockwise, from its top-left corner; a hole names the loop it is joined to and where."""

    corners: NDArray[np.intp]
    parent: int | None
    #: Pixels along the parent's outline from its first corner, and the point there.
    distance: int
    joint: tuple[int, int]


def outline(mask: NDArray[np.bool_], *, smooth: bool = False) -> list[list[Polygon]]:
    """Return the polygons of every slice of a mask.

    Args:
        mask: [d, h, w] bool.
        smooth: round the staircase (Taubin, "A signal processing approach to fair surface design", 1995, on the
            middles of the pixel edges). Filling then no longer returns the mask exactly.

    Returns:
        Per slice its polygons, each [n, 2] float (row, column). One polygon per 4-connected part of the slice, its
        holes joined to it by channels. Without ``smooth`` all points are corners of pixels.
    """
    slices: list[list[Polygon]] = []
    for loops in _loops(mask):
        shapes = [_smoothed(loop.corners) if smooth else loop.corners.astype(np.float64) for loop in loops]
        holes: dict[int, list[int]] = {}
        for index, loop in enumerate(loops):
            if loop.parent is not None:
                holes.setdefault(loop.parent, []).append(index)
        # a hole is joined to a loop found before it, so by going backwards every loop is complete when it is joined
        for index in sorted(holes, reverse=True):
            shapes[index] = _joined(loops, shapes, index, holes[index], smooth)
        slices.append([shape for loop, shape in zip(loops, shapes, strict=True) if loop.parent is None])
    return slices


def _joined(loops: list[_Loop], shapes: list[Polygon], index: int, holes: list[int], smooth: bool) -> Polygon:
    """Return a loop with holes walked into: to the hole, once around it against the clock, and back."""
    outer = loops[index].corners
    steps = np.abs(np.diff(outer, axis=0)).sum(axis=1)
    along = np.concatenate([[0], np.cumsum(steps)])  # pixels from the first corner to each
    pieces, last = [], 0
    for hole in sorted(holes, key=lambda h: loops[h].distance):
        distance = loops[hole].distance
        around = np.concatenate([shapes[hole][:1], shapes[hole][::-1]])
        if smooth:  # one point per pixel edge
            position = distance
            back = shapes[index][position : position + 1]
            pieces += [shapes[index][last : position + 1], around, back]
        else:
            position = int(np.searchsorted(along, distance, side="right")) - 1
            joint = np.array([loops[hole].joint], np.float64)
            there = joint if along[position] != distance else joint[:0]
            pieces += [shapes[index][last : position + 1], there, around, joint]
        last = position + 1
    return np.concatenate([*pieces, shapes[index][last:]])


def _smoothed(corners: NDArray[np.intp]) -> Polygon:
    """Return the outline through the middles of its pixel edges, smoothed without shrinking."""
    ends = np.roll(corners, -1, axis=0)
    lengths = np.abs(ends - corners).sum(axis=1)
    steps = np.repeat(np.sign(ends - corners), lengths, axis=0)
    offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    points = np.repeat(corners, lengths, axis=0) + steps * (offsets[:, None] + 0.5)
    for _ in range(_SMOOTHING_PASSES):
        for factor in (0.5, -0.53):
            points = points + factor * ((np.roll(points, 1, axis=0) + np.roll(points, -1, axis=0)) / 2 - points)
    return points


def _loops(mask: NDArray[np.bool_]) -> list[list[_Loop]]:
    """Trace every slice of a [d, h, w] mask.

    A corner is where an outline turns. On each grid line the corners pair up as ends of straight pieces, along rows
    and along columns alike; following both pairings in turn walks the outline. Where two pixels touch at a corner
    only, two corners lie in one place, one for each pixel.
    """
    depth, rows, columns = mask.shape
    padded = np.zeros((depth, rows + 2, columns + 2), np.bool_)
    padded[:, 1:-1, 1:-1] = mask
    nw, ne, sw, se = padded[:, :-1, :-1], padded[:, :-1, 1:], padded[:, 1:, :-1], padded[:, 1:, 1:]
    touching = (nw == se) & (ne == sw) & (nw != ne)
    turns = (nw ^ ne ^ sw ^ se).astype(np.uint8)
    turns[touching] = 2
    z, r, c = np.nonzero(turns)
    times = turns[z, r, c]
    z, r, c = (np.repeat(v, times) for v in (z, r, c))
    # Of two corners in one place the first in this order ends the piece from the left. It belongs to the upper pixel
    # where that one is on the left (nw), else to the lower one, and so comes second along the column.
    place = np.arange(len(z)) - np.repeat(np.cumsum(times) - times, times)
    second = np.where((np.repeat(times, times) == 2) & ne[z, r, c], 1 - place, place)
    by_column = np.lexsort((second, r, c, z))
    across, down = np.empty(len(z), np.intp), np.empty(len(z), np.intp)
    across[0::2], across[1::2] = np.arange(1, len(z), 2), np.arange(0, len(z), 2)
    down[by_column[0::2]], down[by_column[1::2]] = by_column[1::2], by_column[0::2]

    order, starts = _walk(across.tolist(), down.tolist())
    loop_of, position = np.empty(len(z), np.intp), np.empty(len(z), np.intp)
    lengths = np.diff([*starts, len(order)])
    loop_of[order] = np.repeat(np.arange(len(starts)), lengths)
    position[order] = np.arange(len(order)) - np.repeat(starts, lengths)
    corners = np.column_stack([r, c])[order]
    along = np.concatenate([[0], np.cumsum(np.abs(np.diff(corners, axis=0)).sum(axis=1))])[: len(corners)]
    heads = np.array(order, np.intp)[starts]
    is_hole = ~se[z[heads], r[heads], c[heads]]  # the top-left corner of an outline has the object below it

    first_of_slice = np.searchsorted(z[heads], np.arange(depth + 1))
    column_keys = (z[by_column] * (columns + 1) + c[by_column]) * (rows + 1) + r[by_column]
    loops: list[list[_Loop]] = [[] for _ in range(depth)]
    for index, head in enumerate(heads):
        own = corners[starts[index] : starts[index] + lengths[index]]
        slice_index = int(z[head])
        if not is_hole[index]:
            loops[slice_index].append(_Loop(corners=own, parent=None, distance=0, joint=(0, 0)))
            continue
        row, column = int(r[head]), int(c[head])
        # to the left, along the upper edge of the hole, until the object ends above or below the line
        solid = mask[slice_index, row - 1, :column] & mask[slice_index, row, :column]
        empty = np.flatnonzero(~solid)
        joint = (row, int(empty[-1]) + 1 if len(empty) else 0)
        # the piece of an outline along that column which holds the point, and its end that comes first in its loop
        key = (slice_index * (columns + 1) + joint[1]) * (rows + 1) + row
        at = int(np.searchsorted(column_keys, key, side="right")) - 1
        at -= at % 2
        a, b = sorted(by_column[at : at + 2], key=lambda node: position[node])
        parent = int(loop_of[a])
        if position[a] == 0 and position[b] == lengths[parent] - 1:
            a, b = b, a  # the closing piece, from the last corner to the first
        distance = int(along[starts[parent] + position[a]] - along[starts[parent]]) + abs(row - int(r[a]))
        loops[slice_index].append(
            _Loop(corners=own, parent=parent - int(first_of_slice[slice_index]), distance=distance, joint=joint)
        )
    return loops


def _walk(across: list[int], down: list[int]) -> tuple[list[int], list[int]]:
    """Follow the pairings from every corner not yet seen; return the corners loop by loop and where loops start."""
    seen = bytearray(len(across))
    order: list[int] = []
    starts: list[int] = []
    for head in range(len(across)):
        if seen[head]:
            continue
        starts.append(len(order))
        node = head
        while not seen[node]:
            other = across[node]
            seen[node] = seen[other] = 1
            order.append(node)
            order.append(other)
            node = down[other]
    return order, starts
