"""Detections of passes along other axes (coronal, sagittal) as further evidence of what is one object."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from highdicom import VolumeGeometry
from numpy.typing import NDArray

from medseg.errors import GeometryError
from medseg.labels import LabelTable
from medseg.linking.nodes import Nodes, build_nodes
from medseg.values.detections import Detections
from medseg.values.geometry import describe_grid, grid_map

#: (first slice, row, column), and the mask, of one detection of another view; one side of the mask is 1 voxel long.
_Sheet = tuple[tuple[int, int, int], NDArray[np.bool_]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Views:
    """Detections of other passes, in the axes of the volume that is linked.

    Attributes:
        sheets: (label, axis that it is thin along, position there) -> masks.
    """

    sheets: dict[tuple[int, int, int], list[_Sheet]]

    @classmethod
    def build(
        cls,
        passes: Sequence[tuple[Sequence[Detections], VolumeGeometry]],
        geometry: VolumeGeometry,
        labels: LabelTable,
        mask_threshold: float,
    ) -> "Views":
        """Bring the detections of other passes into the axes of a grid.

        Args:
            passes: detections, and the grid whose slices, rows and columns they refer to: that of the volume in
                another axis order.
            geometry: the grid that is linked.
            labels: the label table.
            mask_threshold: probability from which a pixel belongs to a mask.

        Raises:
            GeometryError: a pass whose grid is not that of the volume, or has the same slices.
            InputError: see `build_nodes`.
        """
        sheets: dict[tuple[int, int, int], list[_Sheet]] = {}
        for number, (detections, grid) in enumerate(passes):
            axis_map = grid_map(grid, geometry)
            if axis_map is None:
                raise GeometryError(
                    f"pass {number} along another axis lies on {describe_grid(grid)}, expected the grid of the volume, "
                    f"{describe_grid(geometry)}, in another axis order"
                )
            axis = axis_map.order.index(0)
            if axis == 0:
                raise GeometryError(
                    f"pass {number} along another axis has the slices of the volume itself; expected its rows or "
                    "columns as slices"
                )
            nodes = build_nodes(detections, grid, labels, mask_threshold)
            for i, flat in enumerate(nodes.masks):
                crop = axis_map.array(flat[None])
                start = (int(nodes.slices[i]), int(nodes.windows[i, 0]), int(nodes.windows[i, 1]))
                offset = axis_map.offset(start, (1, *flat.shape), grid.spatial_shape)
                sheets.setdefault((int(nodes.labels[i]), axis, offset[axis]), []).append((offset, crop))
        return cls(sheets=sheets)

    def agreement(self, nodes: Nodes, first: NDArray[np.intp], second: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return [P] in -1..1, what the other passes say of each pair of masks.

        Of the pixels that both masks cover: the share where one detection of another pass holds both voxels, less
        the share where both are held, but only by different ones; averaged over the axes of the passes. Pixels of
        which the other passes hold one voxel or none count 0, as do pairs that share no pixel.
        """
        axes = sorted({axis for _, axis, _ in self.sheets})
        result = np.zeros(len(first))
        for p, (i, j) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
            low = np.maximum(nodes.windows[i, :2], nodes.windows[j, :2])
            high = np.minimum(nodes.windows[i, 2:], nodes.windows[j, 2:])
            if (low >= high).any():
                continue
            both = _crop(nodes, i, low, high) & _crop(nodes, j, low, high)
            pixels = np.count_nonzero(both)
            if not pixels:
                continue
            z = int(nodes.slices[i]), int(nodes.slices[j])
            votes = [self._votes(int(nodes.labels[i]), axis, z, low, both) for axis in axes]
            result[p] = sum(votes) / (len(votes) * pixels) if votes else 0.0
        return result

    def _votes(self, label: int, axis: int, z: tuple[int, int], low: NDArray[np.int64], both: NDArray[np.bool_]) -> int:
        """Return pixels of ``both`` (at ``low``) held as one, less those held as two."""
        total = 0
        along = both if axis == 1 else both.T
        start, across = (int(low[0]), int(low[1])) if axis == 1 else (int(low[1]), int(low[0]))
        for k, wanted in enumerate(along):
            lines = []
            for offset, crop in self.sheets.get((label, axis, start + k), ()):
                flat = crop[:, 0] if axis == 1 else crop[:, :, 0]
                lines.append(_line(flat, z, offset[0], offset[2 if axis == 1 else 1], across, len(wanted)))
            if not lines:
                continue
            held = np.array(lines)  # [sheets, 2 slices, pixels]
            one = held.all(axis=1).any(axis=0)
            two = held.any(axis=0).all(axis=0) & ~one
            total += int(np.count_nonzero(one & wanted)) - int(np.count_nonzero(two & wanted))
        return total


def _line(
    flat: NDArray[np.bool_], z: tuple[int, int], first_z: int, first: int, start: int, size: int
) -> NDArray[np.bool_]:
    """Return [2, size]: a sheet at two slices, ``size`` pixels from ``start``; its own begin at (first_z, first)."""
    line = np.zeros((2, size), np.bool_)
    a, b = max(first, start), min(first + flat.shape[1], start + size)
    for row, at in enumerate(z):
        if a < b and 0 <= at - first_z < flat.shape[0]:
            line[row, a - start : b - start] = flat[at - first_z, a - first : b - first]
    return line


def _crop(nodes: Nodes, i: int, low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.bool_]:
    (r0, c0), (r1, c1) = low - nodes.windows[i, :2], high - nodes.windows[i, :2]
    return nodes.masks[i][r0:r1, c0:c1]
