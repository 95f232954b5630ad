"""Objects as the channels of a 4-D NIfTI file: one 0/1 volume per object, so that overlaps are kept.

The JSON beside it (``<stem>.json``) says what each channel is. Written and read channel by channel: memory grows with
the objects and one volume, not with volume x objects.
"""

import json
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from highdicom import VolumeGeometry
from numpy.typing import NDArray

from medseg.errors import InputError, MedsegError
from medseg.io.atomic import atomic_path, write_json
from medseg.io.labelmap import sidecar_of
from medseg.io.nifti import read_nifti_channels
from medseg.labels import Label, LabelTable, palette_colour
from medseg.values.geometry import check_affine
from medseg.values.instances import Instance, InstanceSet, crop_to_object


def write_nifti4d(path: Path, instances: InstanceSet) -> None:
    """Write a uint8 volume per object in the order of their ids (one empty volume for none), and the JSON.

    Args:
        path: ends in .nii or .nii.gz.
        instances: the objects.

    Raises:
        InputError: a file that cannot be written.
    """
    header = _header(instances.geometry, max(len(instances), 1), path)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        packed = path.name.lower().endswith(".gz")
        # a gzip header without name or time: the same objects, the same bytes
        compressor = zlib.compressobj(4, zlib.DEFLATED, zlib.MAX_WBITS | 16) if packed else None
        _write(file, header, compressor)
        empty = np.zeros(instances.geometry.spatial_shape[1:], np.uint8)
        for instance in instances:
            for index in range(instances.geometry.spatial_shape[0]):
                mask, plane = instance.slice_mask(index), empty
                if mask is not None and mask.any():
                    plane = empty.copy()
                    plane[instance.window[1:]] = mask
                _write(file, plane.tobytes(), compressor)
        if not len(instances):
            for _ in range(instances.geometry.spatial_shape[0]):
                _write(file, empty.tobytes(), compressor)
        if compressor is not None:
            file.write(compressor.flush())
    rows = [
        {
            "label": instance.label,
            "name": name,
            "score": float(instance.score),
            "voxels": instance.voxels,
            **({} if instance.source_id is None else {"source_id": instance.source_id}),
        }
        for instance, name in zip(instances, instances.names(), strict=True)
    ]
    write_json(sidecar_of(path), {"channels": rows, "labels": instances.labels.to_dict()})


def _write(file: BinaryIO, data: bytes, compressor: Any) -> None:
    file.write(data if compressor is None else compressor.compress(data))


def _header(geometry: VolumeGeometry, channels: int, path: Path) -> bytes:
    """Return header and the mark of no extension, up to the first voxel."""
    import nibabel as nib

    affine = check_affine(geometry.affine, geometry.spatial_shape, str(path))
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine[:, [2, 1, 0, 3]]
    shape = (*(int(n) for n in geometry.spatial_shape[::-1]), channels)
    header = nib.Nifti1Header() if max(shape) <= np.iinfo(np.int16).max else nib.Nifti2Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header.set_sform(ras, code=1)
    header.set_qform(ras, code=1)
    header.set_xyzt_units("mm")
    header.set_slope_inter(1, 0)
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    return header.binaryblock + struct.pack("4B", 0, 0, 0, 0)


def read_nifti4d(path: Path) -> InstanceSet:
    """Read a file of one object per channel; without its JSON channel k is one object of a label ``channel k``.

    Raises:
        InputError: values other than 0 and 1, a JSON that does not fit, or a damaged file.
        GeometryError: a place in the patient that is missing or broken.
    """
    found: list[tuple[int, NDArray[np.bool_], tuple[int, int, int]]] = []
    geometry, number = None, 0
    for number, volume in enumerate(read_nifti_channels(path), 1):
        geometry = volume.get_geometry()
        crop = crop_to_object(_mask(volume.array, number, path))
        if crop is not None:
            found.append((number, *crop))
    assert geometry is not None
    rows, labels = _channels(path, number)
    instances = []
    try:
        for channel, mask, offset in found:
            row = rows[channel - 1]
            instances.append(
                Instance(
                    id=1,
                    label=int(row["label"]),
                    mask=mask,
                    offset=offset,
                    score=float(row.get("score", 1.0)),
                    source_id=int(row.get("source_id", channel)),
                )
            )
        return InstanceSet.build(instances, geometry, labels)
    except (MedsegError, ValueError, TypeError, KeyError, IndexError) as error:
        raise InputError(f"{sidecar_of(path)}: does not fit the channels of {path.name}: {error}") from None


def _mask(array: NDArray, channel: int, path: Path) -> NDArray[np.bool_]:
    odd = (array != 0) & (array != 1)
    if odd.any():
        raise InputError(
            f"{path}: value {float(array[odd].flat[0]):g} in channel {channel}, expected 0 and 1 in every channel; "
            "is this a series of images and not of objects?"
        )
    return array == 1


def _channels(path: Path, count: int) -> tuple[list[dict[str, Any]], LabelTable]:
    record = channels_record(path)
    if record is None:
        table = LabelTable(
            Label(id=k, name=f"channel {k}", colour=palette_colour(k - 1), kind="ids") for k in range(1, count + 1)
        )
        return [{"label": k} for k in range(1, count + 1)], table
    try:
        return list(record["channels"]), LabelTable.from_dict(record["labels"])
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{sidecar_of(path)}: cannot be read as the channels of {path.name} ({error})") from None


def channels_record(path: Path) -> dict[str, Any] | None:
    """Return the JSON that describes the channels of a file; None where there is none."""
    sidecar = sidecar_of(path)
    if not sidecar.is_file():
        return None
    try:
        data = json.loads(sidecar.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) and isinstance(data.get("channels"), list) else None
