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

    @property
    def window(self) -> tuple[slice, slice]:
        rows, columns = self.inside.shape
        return slice(self.offset[0], self.offset[0] + rows), slice(self.offset[1], self.offset[1] + columns)


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
    if not exclusive and len(polygons) > 1:
        polygons = _without_copies(polygons)
    rasters = [raster for polygon in polygons if (raster := _rasterize(polygon, shape)) is not None]
    if not rasters:
        return None
    first = np.min([r.offset for r in rasters], axis=0)
    last = np.max([np.add(r.offset, r.inside.shape) for r in rasters], axis=0)
    mask = np.zeros(last - first, np.bool_)

    def place(raster: _Raster) -> NDArray[np.bool_]:
        rows, columns = raster.window
        return mask[rows.start - first[0] : rows.stop - first[0], columns.start - first[1] : columns.stop - first[1]]

    crossing = 0
    if exclusive:
        for raster in rasters:
            part = place(raster)
            part ^= raster.inside
        for raster in rasters:
            part = place(raster)
            part |= raster.path
    else:
        rasters.sort(key=lambda raster: -raster.area)
        depths, crossing = _depths(rasters)
        for raster, depth in zip(rasters, depths, strict=True):
            part = place(raster)
            if depth % 2 == 0:
                part |= raster.inside | raster.path
            else:
                part &= ~raster.inside | raster.path
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


def _rasterize(polygon: Polygon, shape: tuple[int, int]) -> _Raster | None:
    """Return one polygon in pixels of the slice; None where it covers no centre of the slice."""
    points = np.asarray(polygon, np.float64) - 0.5  # centres at whole numbers
    margin = ON_PATH_PIXELS
    low = np.maximum(np.ceil(points.min(axis=0) - margin), 0).astype(np.intp)
    high = np.minimum(np.floor(points.max(axis=0) + margin) + 1, shape).astype(np.intp)
    if (high <= low).any():
        return None
    rows, columns = (int(n) for n in high - low)
    points = points - low
    ends = np.roll(points, -1, axis=0)
    inside = _crossings(points, ends, rows, columns)
    path = _path(points, ends, rows, columns)
    area = abs(float(np.sum(points[:, 0] * ends[:, 1] - ends[:, 0] * points[:, 1]))) / 2
    return _Raster(inside=inside, path=path, offset=(int(low[0]), int(low[1])), area=area)


def _crossings(points: Polygon, ends: Polygon, rows: int, columns: int) -> NDArray[np.bool_]:
    """Fill by the even-odd rule: every edge toggles the centres to the right of where it crosses their row."""
    upper = np.minimum(points[:, 0], ends[:, 0])
    lower = np.maximum(points[:, 0], ends[:, 0])
    # an edge owns its upper end and not its lower one: a vertex on a row is crossed once
    first = np.clip(np.ceil(upper), 0, rows).astype(np.intp)
    count = np.clip(np.ceil(lower), 0, rows).astype(np.intp) - first
    edge = np.repeat(np.arange(len(points)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    (r0, c0), (r1, c1) = points[edge].T, ends[edge].T
    column = c0 + (row - r0) * ((c1 - c0) / (r1 - r0))
    start = np.clip(np.ceil(column), 0, columns).astype(np.intp)
    toggles = np.bincount(row * (columns + 1) + start, minlength=rows * (columns + 1)).reshape(rows, columns + 1)
    return np.logical_xor.accumulate((toggles[:, :columns] & 1).astype(np.bool_), axis=1)


def _path(points: Polygon, ends: Polygon, rows: int, columns: int) -> NDArray[np.bool_]:
    """Mark the centres that lie on an edge, to within `ON_PATH_PIXELS`."""
    marked = np.zeros((rows, columns), np.bool_)
    for r0, r1, c0, c1, grid in (
        (points[:, 0], ends[:, 0], points[:, 1], ends[:, 1], marked),
        (points[:, 1], ends[:, 1], points[:, 0], ends[:, 0], marked.T),
    ):
        # a steep edge is met by each row at one point, a flat one by each column
        steep = np.abs(r1 - r0) >= np.abs(c1 - c0)
        r0, r1, c0, c1 = r0[steep], r1[steep], c0[steep], c1[steep]
        first = np.clip(np.ceil(np.minimum(r0, r1) - ON_PATH_PIXELS), 0, len(grid)).astype(np.intp)
        last = np.clip(np.floor(np.maximum(r0, r1) + ON_PATH_PIXELS) + 1, 0, len(grid)).astype(np.intp)
        count = np.maximum(last - first, 0)
        edge = np.repeat(np.arange(len(r0)), count)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
        length = (r1 - r0)[edge]
        share = np.divide(row - r0[edge], length, out=np.zeros(len(edge)), where=length != 0)
        column = c0[edge] + np.clip(share, 0, 1) * (c1 - c0)[edge]
        nearest = np.rint(column).astype(np.intp)
        hit = (np.abs(column - nearest) <= ON_PATH_PIXELS) & (nearest >= 0) & (nearest < grid.shape[1])
        grid[row[hit], nearest[hit]] = True
    return marked


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
