"""From tracks to 3-D objects: missed slices are filled and no voxel belongs to two objects of one label."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.linking.bitmasks import BitMasks
from medseg.linking.nodes import Nodes
from medseg.values.instances import crop_to_object
from medseg.values.pasting import paste_masks


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Patch:
    """A mask in one slice: crop [h, w] and the (row, column) of its first pixel; crops may be empty of pixels."""

    mask: NDArray
    row: int
    column: int

    @property
    def window(self) -> tuple[int, int, int, int]:
        """First row, first column, row end, column end."""
        return self.row, self.column, self.row + self.mask.shape[0], self.column + self.mask.shape[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Object3D:
    """An object in the making.

    Attributes:
        label: label id.
        nodes: positions of its detections; ``seen``: slice index -> those in it.
        score: 0..1, see `scores.object_score`.
        key: checksum of its detections; breaks ties without knowing the slice.
        patches: slice index -> its mask there.
        filled: slices that were filled in, without a detection.
    """

    label: int
    nodes: tuple[int, ...]
    seen: dict[int, list[int]] = field(repr=False)
    score: float
    key: int
    patches: dict[int, Patch] = field(repr=False)
    filled: frozenset[int]

    def crop(self) -> tuple[NDArray[np.bool_], tuple[int, int, int]] | None:
        """Return the tight [d, h, w] mask and its offset in the volume; None where no voxel is left."""
        windows = np.array([patch.window for patch in self.patches.values()])
        z0, (r0, c0) = min(self.patches), windows[:, :2].min(axis=0).tolist()
        r1, c1 = windows[:, 2:].max(axis=0).tolist()
        mask = np.zeros((max(self.patches) + 1 - z0, r1 - r0, c1 - c0), np.bool_)
        for z, patch in self.patches.items():
            a, b, c, d = patch.window
            mask[z - z0, a - r0 : c - r0, b - c0 : d - c0] = patch.mask
        tight = crop_to_object(mask)
        return None if tight is None else (tight[0], (z0 + tight[1][0], r0 + tight[1][1], c0 + tight[1][2]))


def build_object(
    nodes: Nodes,
    tracks: Sequence[Sequence[int]],
    score: float,
    spacing_mm: tuple[float, float, float],
    shape: tuple[int, int],
) -> Object3D:
    """Unite tracks (one, or several for a label of kind `single`) into an object, gaps within each track filled.

    Args:
        nodes: all detections.
        tracks: node positions, each track by ascending slice.
        score: of the object.
        spacing_mm: of the grid, (slice, row, column).
        shape: (rows, columns) of a slice.
    """
    members = tuple(i for track in tracks for i in track)
    seen: dict[int, list[int]] = {}
    guessed: dict[int, list[Patch]] = {}
    for track in tracks:
        slices = nodes.slices[list(track)].tolist()
        for i, z in zip(track, slices, strict=True):
            seen.setdefault(z, []).append(i)
        for a, b, z0, z1 in zip(track[:-1], track[1:], slices[:-1], slices[1:], strict=True):
            if z1 <= z0 + 1:
                continue
            between = interpolate(_patch(nodes, a), _patch(nodes, b), z1 - z0, spacing_mm[1:], shape)
            for z, patch in enumerate(between, start=z0 + 1):
                if patch.mask.any():
                    guessed.setdefault(z, []).append(patch)
    rows, columns = (dict(zip(members, line, strict=True)) for line in nodes.windows[list(members), :2].T.tolist())
    patches = {}
    for z in sorted({*seen, *guessed}):
        own = [Patch(mask=nodes.masks[i], row=rows[i], column=columns[i]) for i in seen.get(z, ())]
        patches[z] = _unite([*own, *guessed.get(z, ())])
    return Object3D(
        label=int(nodes.labels[members[0]]),
        nodes=members,
        seen=seen,
        score=score,
        key=sum(nodes.keys[list(members)].tolist()),
        patches=patches,
        filled=frozenset(set(guessed) - set(seen)),
    )


def smooth(
    obj: Object3D,
    nodes: Nodes,
    smooth_mm: float,
    slice_spacing_mm: float,
    mask_threshold: float,
    shape: tuple[int, int],
) -> None:
    """Average the object's probabilities along the slice axis and take its masks from them; patches are changed.

    The weights are normal with a standard deviation of ``smooth_mm``, cut off at twice that, and sum to 1 over the
    slices that the object has a mask in: beyond its ends there is nothing to average with, so its poles stay. A slice
    that was filled in counts as 0 and 1.
    """
    reach = int(2 * smooth_mm / slice_spacing_mm)
    if not reach:
        return
    weight = np.exp(-0.5 * (np.arange(-reach, reach + 1) * slice_spacing_mm / smooth_mm) ** 2)
    maps: dict[int, Patch] = {}
    smoothed = {}
    for z in sorted(obj.patches):
        near = [k for k in range(z - reach, z + reach + 1) if k in obj.patches]
        for k in near:
            if k not in maps:
                maps[k] = _soft(obj, k, nodes, mask_threshold, shape)
        for k in [k for k in maps if k < z - reach]:
            del maps[k]
        windows = np.array([maps[k].window for k in near])
        low, high = windows[:, :2].min(axis=0), windows[:, 2:].max(axis=0)
        total = np.zeros(high - low)
        # From the middle outwards, both sides at once: the sum is the same upside down.
        for step in range(reach + 1):
            pair = np.zeros_like(total)
            for k in {z - step, z + step} & set(near):
                r0, c0, r1, c1 = (maps[k].window - np.tile(low, 2)).tolist()
                pair[r0:r1, c0:c1] += maps[k].mask
            total += weight[reach + step] * pair
        norm = sum(sorted(float(weight[k - z + reach]) for k in near))
        smoothed[z] = Patch(mask=total >= mask_threshold * norm - 1e-9, row=int(low[0]), column=int(low[1]))
    obj.patches.update(smoothed)


def _soft(obj: Object3D, z: int, nodes: Nodes, mask_threshold: float, shape: tuple[int, int]) -> Patch:
    """Return the probabilities of an object in a slice, on the boxes of its detections."""
    patch = obj.patches[z]
    boxes = [nodes.detected[s][0] for i in obj.seen.get(z, ()) for s in nodes.sources[i]]
    if not boxes:
        return Patch(mask=patch.mask.astype(np.float32), row=patch.row, column=patch.column)
    x0, y0 = np.floor(np.min(boxes, axis=0)[:2]).astype(np.intp)
    x1, y1 = np.ceil(np.max(boxes, axis=0)[2:]).astype(np.intp)
    r0, c0, r1, c1 = patch.window
    window = max(0, min(r0, y0)), max(0, min(c0, x0)), min(shape[0], max(r1, y1)), min(shape[1], max(c1, x1))
    inside = np.zeros((window[2] - window[0], window[3] - window[1]), np.bool_)
    inside[r0 - window[0] : r1 - window[0], c0 - window[1] : c1 - window[1]] = patch.mask
    soft = _probabilities([obj], z, nodes, [window], shape)[0]
    soft[(soft >= mask_threshold) & ~inside] = 0  # the other parts of a mask that was divided
    return Patch(mask=np.where(inside, np.maximum(soft, mask_threshold), soft), row=window[0], column=window[1])


def interpolate(a: Patch, b: Patch, steps: int, pixel_mm: tuple[float, float], shape: tuple[int, int]) -> list[Patch]:
    """Return the masks 1, 2 .. ``steps`` - 1 of ``steps`` of the way from a to b.

    Both masks are moved so that their centroids lie where the object's centroid should (on the straight line
    between them), and their signed distances to the boundary, in mm, are averaged by nearness (Raya & Udupa,
    "Shape-based interpolation of multidimensional objects", IEEE TMI 1990). Swapping a and b gives the same masks,
    bit for bit, in the other order.

    Args:
        a, b: masks in two slices, neither empty.
        steps: slices from a to b.
        pixel_mm: (row, column) spacing.
        shape: (rows, columns) of a slice; what leaves it is cut off.
    """
    centre_a, centre_b = _centroid(a), _centroid(b)
    # Room for either mask wherever it is moved to, and a margin of background around it.
    margin = np.ceil(np.abs(centre_b - centre_a)).astype(np.intp) + 2
    window_a, window_b = np.array(a.window), np.array(b.window)
    low = np.minimum(window_a, window_b)[:2] - margin
    size = np.maximum(window_a, window_b)[2:] + margin - low
    distances = []
    for patch in (a, b):
        mask = np.zeros(size, np.bool_)
        r0, c0, r1, c1 = patch.window
        mask[r0 - low[0] : r1 - low[0], c0 - low[1] : c1 - low[1]] = patch.mask
        distances.append(_signed_distance(mask, pixel_mm))
    rows = slice(max(0, -low[0]), min(size[0], shape[0] - low[0]))
    columns = slice(max(0, -low[1]), min(size[1], shape[1] - low[1]))
    found = []
    for step in range(1, steps):
        weight_a, weight_b = (steps - step) / steps, step / steps
        total = weight_a * _moved(distances[0], weight_b * (centre_b - centre_a))
        total += weight_b * _moved(distances[1], weight_a * (centre_a - centre_b))
        inside = total > 1e-9  # not 0: a boundary through a pixel centre must not hang on rounding
        row, column = int(low[0] + rows.start), int(low[1] + columns.start)
        found.append(Patch(mask=inside[rows, columns], row=row, column=column))
    return found


def _moved(image: NDArray[np.float64], move: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return [h, w] an image moved by (rows, columns), linear between pixels; at its border it goes on as it ends."""
    for axis, by in enumerate(move.tolist()):
        whole = int(np.floor(by))
        place = np.arange(image.shape[axis]) - whole
        near, far = (np.clip(p, 0, image.shape[axis] - 1) for p in (place, place - 1))
        part = by - whole
        image = (1 - part) * image.take(near, axis) + part * image.take(far, axis)
    return image


def settle(objects: Sequence[Object3D], nodes: Nodes, shape: tuple[int, int]) -> None:
    """Give every voxel that several objects of one label claim to one of them.

    The higher probability wins; a slice that was filled in has none and loses to one that was seen. Equal
    probabilities go to the object of higher score, then to the larger, then by content. Objects of other
    labels are left to overlap. The objects' patches are changed.
    """
    rank = {id(o): (o.score, int(nodes.areas[list(o.nodes)].sum()), o.key) for o in objects}
    by_slice: dict[tuple[int, int], list[Object3D]] = {}
    for obj in objects:
        for z in obj.patches:
            by_slice.setdefault((obj.label, z), []).append(obj)
    places = [(z, sorted(g, key=lambda o: rank[id(o)], reverse=True)) for (_, z), g in by_slice.items() if len(g) > 1]
    for (z, group), pairs in zip(places, _sharing(places), strict=True):
        masks = [o.patches[z].mask for o in group]
        corners = [o.patches[z].window for o in group]
        contested = []  # pairs, the one that ranks higher first, their common window in either, and what both claim
        for i, j in pairs:
            (r0, c0, r1, c1), (p0, q0, p1, q1) = corners[i], corners[j]
            a, b, c, d = max(r0, p0), max(c0, q0), min(r1, p1), min(c1, q1)
            in_i = slice(a - r0, c - r0), slice(b - c0, d - c0)
            in_j = slice(a - p0, c - p0), slice(b - q0, d - q0)
            contested.append((i, j, in_i, in_j, masks[i][in_i] & masks[j][in_j]))
        if not contested:
            continue
        some = sorted({k for pair in contested for k in pair[:2]})
        maps = _probabilities([group[k] for k in some], z, nodes, [corners[k] for k in some], shape)
        soft = dict(zip(some, maps, strict=True))
        lost = {k: np.zeros_like(masks[k]) for k in some}
        for i, j, in_i, in_j, both in contested:
            i_wins = soft[i][in_i] >= soft[j][in_j]
            lost[j][in_j] |= both & i_wins
            lost[i][in_i] |= both & ~i_wins
        for k, gone in lost.items():
            if gone.any():
                patch = group[k].patches[z]
                group[k].patches[z] = Patch(mask=patch.mask & ~gone, row=patch.row, column=patch.column)


def _sharing(places: Sequence[tuple[int, list[Object3D]]]) -> Iterator[list[tuple[int, int]]]:
    """Yield, for each slice and its objects, the positions of every two of them whose masks there share a pixel."""
    patches = [obj.patches[z] for z, group in places for obj in group]
    windows = np.array([patch.window for patch in patches], np.int64).reshape(-1, 4)
    ends = np.cumsum([len(group) for _, group in places], dtype=np.intp)
    touching = []
    for end, (_, group) in zip(ends.tolist(), places, strict=True):
        own = windows[end - len(group) : end]
        low, high = np.maximum(own[:, None, :2], own[:, :2]), np.minimum(own[:, None, 2:], own[:, 2:])
        touching.append(np.argwhere(np.triu((high > low).all(axis=-1), k=1)) + (end - len(group)))
    pairs = np.concatenate([np.zeros((0, 2), np.intp), *touching])
    some, number = np.unique(pairs, return_inverse=True)
    bits = BitMasks.pack([patches[k].mask for k in some.tolist()], windows[some])
    pairs = pairs[bits.intersections(*number.reshape(pairs.shape).T) > 0]
    place = np.searchsorted(ends, pairs[:, 0], side="right")
    starts = np.searchsorted(place, np.arange(len(places) + 1))
    for k, (_, group) in enumerate(places):
        yield [(i, j) for i, j in (pairs[starts[k] : starts[k + 1]] - (ends[k] - len(group))).tolist()]


def _probabilities(
    objects: Sequence[Object3D],
    z: int,
    nodes: Nodes,
    windows: Sequence[tuple[int, int, int, int]],
    shape: tuple[int, int],
) -> list[NDArray[np.float32]]:
    """Return the detected probability of each object on a window of a slice; 0 where it was filled in."""
    results = [np.zeros((r1 - r0, c1 - c0), np.float32) for r0, c0, r1, c1 in windows]
    wanted = [(k, source) for k, obj in enumerate(objects) for i in obj.seen.get(z, ()) for source in nodes.sources[i]]
    if not wanted:
        return results
    boxes, masks = zip(*(nodes.detected[source] for _, source in wanted), strict=True)
    for (k, _), (pasted, row, column) in zip(wanted, paste_masks(np.stack(masks), np.stack(boxes), shape), strict=True):
        r0, c0, r1, c1 = windows[k]
        a, b = max(r0, row), max(c0, column)
        c, d = min(r1, row + pasted.shape[0]), min(c1, column + pasted.shape[1])
        if a < c and b < d:
            view = results[k][a - r0 : c - r0, b - c0 : d - c0]
            np.maximum(view, pasted[a - row : c - row, b - column : d - column], out=view)
    return results


def _patch(nodes: Nodes, i: int) -> Patch:
    return Patch(mask=nodes.masks[i], row=int(nodes.windows[i, 0]), column=int(nodes.windows[i, 1]))


def _unite(patches: Sequence[Patch]) -> Patch:
    if len(patches) == 1:
        return patches[0]
    windows = np.array([patch.window for patch in patches])
    row, column = windows[:, :2].min(axis=0).tolist()
    mask = np.zeros(windows[:, 2:].max(axis=0) - (row, column), np.bool_)
    for patch in patches:
        r0, c0, r1, c1 = patch.window
        mask[r0 - row : r1 - row, c0 - column : c1 - column] |= patch.mask
    return Patch(mask=mask, row=row, column=column)


def _centroid(patch: Patch) -> NDArray[np.float64]:
    counts = np.count_nonzero(patch.mask, axis=1), np.count_nonzero(patch.mask, axis=0)
    sums = np.array([counts[0] @ np.arange(len(counts[0])), counts[1] @ np.arange(len(counts[1]))])
    return sums / counts[0].sum() + (patch.row, patch.column)


def _signed_distance(mask: NDArray[np.bool_], pixel_mm: tuple[float, float]) -> NDArray[np.float64]:
    return _distance(mask, pixel_mm) - _distance(~mask, pixel_mm)


def _distance(mask: NDArray[np.bool_], pixel_mm: tuple[float, float]) -> NDArray[np.float64]:
    """Return [h, w] mm to the nearest pixel that is not set: SciPy's, which takes as long again for the distances."""
    nearest = ndimage.distance_transform_edt(mask, sampling=pixel_mm, return_distances=False, return_indices=True)
    row = (nearest[0] - np.arange(mask.shape[0])[:, None]) * pixel_mm[0]
    column = (nearest[1] - np.arange(mask.shape[1])) * pixel_mm[1]
    return np.sqrt(row * row + column * column)
