"""Prepared cases on disk: the network's grid as a memory-mapped array, and its objects.

Reading 2.5-D windows out of .nii.gz costs hundreds of milliseconds a sample; out of a mapped .npy, one or two.
"""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray

from medseg.data.grid import to_network_grid
from medseg.errors import GeometryError, InputError
from medseg.io.atomic import atomic_path, write_json
from medseg.values.geometry import describe_grid, grid_map
from medseg.values.instances import InstanceSet, crop_to_object
from medseg.values.plan import InputPlan
from medseg.values.resampling import resample_crop


@dataclass(frozen=True, kw_only=True, eq=False)
class CachedObject:
    """One object on the network's grid: label id, [d, h, w] bool crop and its offset (slice, row, column)."""

    label: int
    mask: NDArray[np.bool_]
    offset: tuple[int, int, int]

    def slices(self) -> NDArray[np.intp]:
        """Return the slices of the volume in which the object has voxels."""
        return np.flatnonzero(self.mask.any(axis=(1, 2))) + self.offset[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class CachedCase:
    """A case ready for training; ``array`` is mapped from disk, [Z, H, W]."""

    name: str
    array: NDArray
    slice_spacing_mm: float
    objects: tuple[CachedObject, ...]


def prepare_case(name: str, volume: Volume, instances: InstanceSet, plan: InputPlan, folder: Path) -> None:
    """Bring one case to the network's grid and write it to ``folder`` (three files named after the case).

    Raises:
        GeometryError: image and label do not lie on the same grid.
    """
    axis_map = grid_map(instances.geometry, volume)
    if axis_map is None:
        raise GeometryError(
            f"case {name}: image and label are in different places: image {describe_grid(volume)}, "
            f"label {describe_grid(instances.geometry)}; they must be on the same grid"
        )
    grid = to_network_grid(volume, plan)
    objects = instances.moved(axis_map).moved(grid.axis_map)
    size = (grid.rows[1] - grid.rows[0], grid.columns[1] - grid.columns[0])
    packed: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for instance in objects:
        z, y, x = instance.offset
        inside = _clip(instance.mask, (y - grid.rows[0], x - grid.columns[0]), size)
        if inside is None:
            continue
        share, (row, column) = resample_crop(*inside, size, (grid.array.shape[1], grid.array.shape[2]))
        crop = crop_to_object(share >= 0.5)
        if crop is None:  # smaller than half a pixel of the network
            continue
        mask, inner = crop
        packed[str(len(rows))] = np.packbits(mask)
        rows.append(
            {"label": instance.label, "shape": mask.shape, "offset": [z + inner[0], row + inner[1], column + inner[2]]}
        )
    with atomic_path(folder / f"{name}.npy") as temporary:
        np.save(temporary, grid.array)
    with atomic_path(folder / f"{name}.npz") as temporary:
        np.savez(temporary, **packed)
    write_json(folder / f"{name}.json", {"name": name, "slice_spacing_mm": grid.slice_spacing_mm, "objects": rows})


def _clip(
    mask: NDArray[np.bool_], offset: tuple[int, int], size: tuple[int, int]
) -> tuple[NDArray[np.bool_], tuple[int, int]] | None:
    """Cut a [d, h, w] crop at ``offset`` to a slice of ``size``; None where nothing is left."""
    top, left = (max(0, -o) for o in offset)
    bottom, right = (min(m, n - o) for m, n, o in zip(mask.shape[1:], size, offset, strict=True))
    if bottom <= top or right <= left:
        return None
    return mask[:, top:bottom, left:right], (offset[0] + top, offset[1] + left)


def load_case(folder: Path, name: str) -> CachedCase:
    """Map a prepared case; InputError where it is not whole."""
    try:
        meta = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        slice_spacing_mm = float(meta["slice_spacing_mm"])
        array = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        with np.load(folder / f"{name}.npz", allow_pickle=False) as packed:
            objects = tuple(
                CachedObject(
                    label=row["label"],
                    mask=np.unpackbits(packed[str(i)], count=int(np.prod(row["shape"])))
                    .astype(np.bool_)
                    .reshape(row["shape"]),
                    offset=(row["offset"][0], row["offset"][1], row["offset"][2]),
                )
                for i, row in enumerate(meta["objects"])
            )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{folder / name}: not a readable prepared case ({error}); train into a new folder") from None
    return CachedCase(name=name, array=array, slice_spacing_mm=slice_spacing_mm, objects=objects)
