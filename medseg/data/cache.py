"""Prepared cases on disk: the network's grid as a memory-mapped array, and its objects as mapped bits.

Reading 2.5-D windows out of .nii.gz costs hundreds of milliseconds a sample; out of a mapped .npy, one or two. What is
mapped takes no memory of the process: the system drops its pages when it needs them, and workers share them.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from highdicom import Volume, VolumeGeometry
from numpy.typing import NDArray

from medseg.data.grid import GridPlace, array_type, grid_planes, place_grid
from medseg.errors import GeometryError, InputError
from medseg.io.atomic import atomic_path, write_json
from medseg.values.geometry import describe_grid, grid_map
from medseg.values.instances import Instance, InstanceSet, crop_to_object
from medseg.values.plan import InputPlan
from medseg.values.resampling import resample_crop

#: Slices of an object that are resampled at once.
SLICES_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class CachedObject:
    """One object on the network's grid, cut out of it.

    Attributes:
        label: label id.
        offset: (slice, row, column) of the cut-out in the grid.
        shape: (d, h, w) of the cut-out.
        bits: [d, h, ceil(w / 8)] uint8, mapped from disk: its mask, eight pixels of a row in a byte.
        areas: [d] pixels in each slice.
    """

    label: int
    offset: tuple[int, int, int]
    shape: tuple[int, int, int]
    bits: NDArray[np.uint8]
    areas: NDArray[np.int64]

    @classmethod
    def of(cls, label: int, mask: NDArray[np.bool_], offset: tuple[int, int, int]) -> "CachedObject":
        """Return the object of a [d, h, w] mask at an offset."""
        return cls(
            label=label,
            offset=offset,
            shape=(mask.shape[0], mask.shape[1], mask.shape[2]),
            bits=np.packbits(mask, axis=2),
            areas=mask.sum(axis=(1, 2)),
        )

    def slices(self) -> NDArray[np.intp]:
        """Return the slices of the grid in which the object has voxels."""
        return np.flatnonzero(self.areas) + self.offset[0]

    def plane(self, index: int) -> NDArray[np.bool_]:
        """Return the [h, w] mask in slice ``index`` of the grid, one that the cut-out covers."""
        return np.unpackbits(self.bits[index - self.offset[0]], axis=1, count=self.shape[2]).view(np.bool_)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The whole [d, h, w] mask, unpacked anew each time."""
        return np.unpackbits(self.bits, axis=2, count=self.shape[2]).view(np.bool_)


@dataclass(frozen=True, kw_only=True, eq=False)
class CachedCase:
    """A case ready for training.

    Attributes:
        name: of the case.
        array: [N, Z, H, W], mapped from disk, see `NetworkGrid`.
        geometry: place of the array in the patient.
        slice_spacing_mm: distance of slices.
        objects: what is to be found.
    """

    name: str
    array: NDArray
    geometry: VolumeGeometry
    slice_spacing_mm: float
    objects: tuple[CachedObject, ...]

    def empty_slices(self) -> NDArray[np.intp]:
        """Return the slices without any object."""
        filled = np.zeros(self.array.shape[1], np.bool_)
        for item in self.objects:
            filled[item.slices()] = True
        return np.flatnonzero(~filled)


def prepare_case(name: str, volumes: tuple[Volume, ...], instances: InstanceSet, plan: InputPlan, folder: Path) -> None:
    """Bring one case to the network's grid and write it to ``folder`` (three files named after the case).

    Images are written slice by slice and objects one by one: beside what it is given, this takes the memory of the
    largest object.

    Args:
        name: of the case and its files.
        volumes: one per channel of the plan, on one grid up to axis order and flips.
        instances: the labelled objects, on the same grid.
        plan: the input's.
        folder: made where missing.

    Raises:
        InputError: another number of images than the plan's, or the folder cannot be written.
        GeometryError: images, or image and label, do not lie on the same grid.
    """
    axis_map = grid_map(instances.geometry, volumes[0])
    if axis_map is None:
        raise GeometryError(
            f"case {name}: image and label are in different places: image {describe_grid(volumes[0])}, "
            f"label {describe_grid(instances.geometry)}; they must be on the same grid"
        )
    place = place_grid(volumes, plan)
    with atomic_path(folder / f"{name}.npy") as temporary:
        shape = (len(volumes), place.geometry.spatial_shape[0], *place.size)
        # Not through a writable map: where the disk is full, that would end the process and not raise.
        with temporary.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(array_type(plan)), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for plane in grid_planes(volumes, place, plan):
                file.write(np.ascontiguousarray(plane).data)
    rows: list[dict[str, Any]] = []
    bits: list[NDArray[np.uint8]] = [np.zeros(1, np.uint8)]  # a file without any cannot be mapped
    for item in _on_grid(instances.moved(axis_map).moved(place.axis_map), place):
        bits.append(item.bits.ravel())
        rows.append(
            {"label": item.label, "offset": item.offset, "shape": item.shape, "areas": item.areas.tolist()},
        )
    with atomic_path(folder / f"{name}.masks.npy") as temporary:
        np.save(temporary, np.concatenate(bits))
    meta = {
        "name": name,
        "slice_spacing_mm": place.slice_spacing_mm,
        "affine": place.array_geometry.affine.tolist(),
        "objects": rows,
    }
    write_json(folder / f"{name}.json", meta)


def _on_grid(objects: Iterable[Instance], place: GridPlace) -> Iterable[CachedObject]:
    """Bring objects to the network's pixels; those outside of it, or smaller than half a pixel, are left out."""
    size = (place.rows[1] - place.rows[0], place.columns[1] - place.columns[0])
    for instance in objects:
        z, y, x = instance.offset
        inside = _clip(instance.mask, (y - place.rows[0], x - place.columns[0]), size)
        if inside is None:
            continue
        mask, offset = inside
        parts = []
        for start in range(0, len(mask), SLICES_AT_ONCE):
            share, corner = resample_crop(mask[start : start + SLICES_AT_ONCE], offset, size, place.size)
            parts.append(share >= 0.5)
        crop = crop_to_object(np.concatenate(parts))
        if crop is not None:
            solid, (slice_, row, column) = crop
            yield CachedObject.of(instance.label, solid, (z + slice_, corner[0] + row, corner[1] + column))


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
        geometry = VolumeGeometry(np.array(meta["affine"], np.float64), array.shape[1:], "PATIENT")
        bits = np.load(folder / f"{name}.masks.npy", mmap_mode="r", allow_pickle=False)
        objects = []
        used = 1
        for row in meta["objects"]:
            depth, height, width = row["shape"]
            packed = (depth, height, -(-width // 8))
            part = bits[used : used + int(np.prod(packed))].reshape(packed)
            used += part.size
            offset = (int(row["offset"][0]), int(row["offset"][1]), int(row["offset"][2]))
            areas = np.array(row["areas"], np.int64)
            shape = (depth, height, width)
            objects.append(CachedObject(label=row["label"], offset=offset, shape=shape, bits=part, areas=areas))
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError) as error:
        raise InputError(f"{folder / name}: not a readable prepared case ({error}); train into a new folder") from None
    return CachedCase(
        name=name, array=array, geometry=geometry, slice_spacing_mm=slice_spacing_mm, objects=tuple(objects)
    )
