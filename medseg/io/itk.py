"""NRRD and MetaImage files through SimpleITK, which keeps them in LPS.

ITK fills in an identity where a header says nothing about position, and takes damaged voxels for good ones, so header
and voxels are looked at first (`itk_header`): nothing geometric ever has a default. Formats:
NRRD (https://teem.sourceforge.net/nrrd/format.html), MetaImage (https://itk.org/Wiki/ITK/MetaIO/Documentation).
"""

from pathlib import Path
from typing import Any

import numpy as np
from highdicom import Volume, VolumeGeometry

from medseg.errors import GeometryError, InputError
from medseg.io.image_values import to_image
from medseg.io.itk_header import Header, check_voxels, read_header
from medseg.values.geometry import check_affine, make_volume

ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
SPACES = {
    "left-posterior-superior", "lps", "right-anterior-superior", "ras", "left-anterior-superior", "las",
}  # fmt: skip
#: What must stand in a header before ITK's geometry is believed: one word of each group.
_NRRD_FIELDS = (("space",), ("space directions",), ("space origin",))
_META_FIELDS = (
    ("elementspacing",), ("offset", "position", "origin"), ("transformmatrix", "rotation", "orientation"),
)  # fmt: skip


def read_itk(path: Path) -> Volume:
    """Read an NRRD or MetaImage file.

    Returns:
        Volume (slice, row, column); int16 where whole numbers fit, else float32.

    Raises:
        InputError: unreadable, truncated, colours or vectors, not three axes, NaN or infinite values.
        GeometryError: no position in the header, or a broken one.
    """
    volume = read_itk_labels(path)
    return make_volume(to_image(volume.array, str(path)), volume.affine, str(path))


def read_itk_labels(path: Path) -> Volume:
    """Read a label map or probabilities with the type they are stored in (see `read_itk`)."""
    import SimpleITK as sitk

    reader, grid = _open(path)
    try:
        image = reader.Execute()
    except (RuntimeError, MemoryError) as error:
        raise InputError(f"{path}: the voxels cannot be read ({_reason(error)}); copy the file again") from None
    return make_volume(sitk.GetArrayFromImage(image).reshape(grid.spatial_shape), grid.affine, str(path))


def read_itk_grid(path: Path) -> VolumeGeometry:
    """Read the grid alone."""
    return _open(path)[1]


def _open(path: Path) -> tuple[Any, VolumeGeometry]:
    """Return a SimpleITK reader whose header is read, and its checked grid."""
    import SimpleITK as sitk

    header = read_header(path)
    _check_place(header)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's own prints would land on the user's screen
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if header.nrrd else "MetaImageIO")  # ITK goes by the suffix, in lower case
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path}: the header cannot be read ({_reason(error)})") from None
    size = reader.GetSize()
    if reader.GetNumberOfComponents() != 1 or reader.GetPixelID() in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64):
        raise InputError(
            f"{path}: several or complex numbers a voxel (colours, vectors or several volumes), expected one number"
        )
    volumes = int(np.prod(size[3:], dtype=float))
    if len(size) < 3 or volumes != 1:
        raise InputError(f"{path}: axes {list(size)}, expected one volume with three axes")
    n = len(size)
    spacing = np.array(reader.GetSpacing())[:3]
    direction = np.array(reader.GetDirection()).reshape(n, n)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = (direction * spacing)[:, ::-1]
    affine[:3, 3] = reader.GetOrigin()[:3]
    if not np.isfinite(spacing).all() or spacing.min() <= 0:
        raise GeometryError(f"{path}: voxel spacing {spacing.tolist()} mm, expected three positive numbers")
    shape = (size[2], size[1], size[0])
    grid = VolumeGeometry(check_affine(affine, shape, str(path)), shape, "PATIENT")
    if np.abs(np.linalg.norm(direction, axis=0) - 1).max() > 0.01:
        raise GeometryError(f"{path}: directions {direction.round(4).tolist()}, expected vectors of length 1")
    check_voxels(header, int(np.prod(shape)) * _bytes_per_voxel(reader), shape[0])
    return reader, grid


def _bytes_per_voxel(reader: Any) -> int:
    import SimpleITK as sitk

    return int(sitk.GetArrayViewFromImage(sitk.Image([1, 1, 1], reader.GetPixelID())).itemsize)


def _check_place(header: Header) -> None:
    """Refuse a header without position, direction and spacing, or in an unknown space or unit."""
    path, fields = header.path, header.fields
    groups = _NRRD_FIELDS if header.nrrd else _META_FIELDS
    missing = [group[0] for group in groups if not any(w in fields for w in group)]
    if missing:
        raise GeometryError(
            f"{path}: the header has no {' and no '.join(missing)}, so the place in the patient is unknown; "
            "write the image with its geometry"
        )
    if header.nrrd:
        space = fields["space"].lower()
        if space not in SPACES:
            raise GeometryError(f"{path}: space {fields['space']!r}, expected one of LPS, RAS or LAS")
        units = set(fields.get("space units", "").replace('"', "").split()) - {"mm"}
        if units:
            raise GeometryError(f"{path}: space units {sorted(units)}, expected mm")
        if "nan" in (fields["space directions"] + fields["space origin"]).lower():
            raise GeometryError(f"{path}: space directions or origin hold NaN")
        return
    for name in (name for group in _META_FIELDS for name in group if name in fields):
        if not np.isfinite([_number(word) for word in fields[name].split()]).all():  # ITK would take them for 0
            raise GeometryError(f"{path}: {name} {fields[name]!r} holds values that are no finite numbers")
    if fields.get("distanceunits", "mm") not in ("mm", "?"):
        raise GeometryError(f"{path}: distances in {fields['distanceunits']!r}, expected mm")
    slope, offset = (fields.get(f"elementtointensityfunction{name}") for name in ("slope", "offset"))
    if _number(slope or "1") != 1 or _number(offset or "0") != 0:
        raise InputError(
            f"{path}: its voxels are to be scaled (slope {slope}, offset {offset}), which no reader of MetaImage does; "
            "scale them and write the image again"
        )


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return float("nan")


def _reason(error: BaseException) -> str:
    """Return the last line of an ITK error, which is the one that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][-160:] if lines else type(error).__name__
