"""Corpus: NIfTI, NRRD, MetaImage and zip archives."""

import gzip
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from corpus import Exact, Refused, case
from corpus.grids import HU, OBLIQUE, slice_name, write_ct

NIFTI = "NIfTI-1/2"
FORMS = "sform/qform rules (disagreeing forms: refused unless told)"
UNITS = "metre units"
TYPES = "int64, float labels, scl_slope 0"
AXES = "4-D with one volume read and with several refused, RGB refused"
ITK = "NRRD/MHA"
NUMBERS = "NaN/Inf, zero or negative spacing, sheared directions: refused by name"
SIZES = "sizes in headers are checked before memory is taken; a wrong gzip CRC and a truncated file are refused"
ZIP = "zip: no traversal, bounded sizes"

#: Rows of the corpus' grid as NIfTI has them: (i, j, k) to RAS.
RAS = np.diag([-1.0, -1, 1, 1]) @ OBLIQUE.affine[:, [2, 1, 0, 3]]
DATA = HU.transpose(2, 1, 0)  # [i, j, k]


def nifti(data: NDArray = DATA, sform: NDArray | None = RAS, qform: NDArray | None = RAS, kind: type = nib.Nifti1Image,
          unit: str = "mm") -> nib.Nifti1Image:  # fmt: skip
    """Return an image with the forms given."""
    image = kind(data, RAS, dtype=data.dtype)
    image.set_sform(sform, code=0 if sform is None else 1)
    image.set_qform(qform, code=0 if qform is None else 1)
    image.header.set_xyzt_units(unit)
    return image


def put(path: Path, image: nib.Nifti1Image, patches: dict[int, bytes] | None = None) -> Path:
    """Save an image and overwrite bytes of its header (offsets as in nifti1.h)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    if patches:
        data = bytearray(path.read_bytes())
        for offset, values in patches.items():
            data[offset : offset + len(values)] = values
        path.write_bytes(data)
    return path


def exact(path: Path, array: NDArray = HU, affine: NDArray = OBLIQUE.affine, **options: object) -> Exact:
    """Return that the volume of the corpus comes out."""
    return Exact(source=path, array=array, affine=affine, options=options)


def f4(*values: float) -> bytes:
    """Return numbers as a NIfTI-1 header holds them."""
    return np.array(values, "<f4").tobytes()


def i2(*values: int) -> bytes:
    """Return whole numbers as a NIfTI-1 header holds them."""
    return np.array(values, "<i2").tobytes()


@case(NIFTI)
def versions_and_byte_orders(folder: Path) -> list[Exact | Refused]:
    """NIfTI-1, NIfTI-2, big endian, gzipped and not, whatever the suffix says."""
    swapped = nib.Nifti1Image(DATA.astype(">i2"), RAS, nib.Nifti1Header(endianness=">"), dtype=">i2")
    swapped.set_sform(RAS, code=1)
    paths = [
        put(folder / "one.nii", nifti()),
        put(folder / "packed.nii.gz", nifti()),
        put(folder / "two.nii", nifti(kind=nib.Nifti2Image)),
        put(folder / "big.nii", swapped),
    ]
    (folder / "really.nii").write_bytes(paths[1].read_bytes())
    (folder / "plain.nii.gz").write_bytes(paths[0].read_bytes())
    (folder / "no suffix").write_bytes(paths[0].read_bytes())
    (folder / "twice.nii.gz").write_bytes(
        gzip.compress(paths[0].read_bytes()[:500]) + gzip.compress(paths[0].read_bytes()[500:])
    )
    others = [folder / name for name in ("really.nii", "plain.nii.gz", "no suffix", "twice.nii.gz")]
    return [exact(path) for path in paths + others]


@case(NIFTI)
def header_extensions(folder: Path) -> list[Exact | Refused]:
    """Text between header and voxels; and a data offset of 0, which means none."""
    image = nifti()
    image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"a remark of some length"))
    return [exact(put(folder / "a.nii", image)), exact(put(folder / "b.nii", nifti(), {108: f4(0)}))]


@case(NIFTI)
def pairs_and_other_formats(folder: Path) -> list[Exact | Refused]:
    """Half of a .hdr/.img pair, and a file that is no NIfTI at all."""
    pair = nib.Nifti1Pair(DATA, RAS)
    folder.mkdir(parents=True)
    nib.save(pair, folder / "a.img")
    shutil.copy(folder / "a.hdr", folder / "hidden.nii")
    (folder / "b.nii.gz").write_bytes(gzip.compress(b"no image" * 100))
    (folder / "c.nii").write_bytes(b"")
    write_ct(folder / "dicom")
    shutil.copy(folder / "dicom" / slice_name(0), folder / "d.nii")
    return [
        Refused(source=folder / "a.hdr", says=(r"a\.hdr", "pair")),
        Refused(source=folder / "a.img", says=(r"a\.img",)),
        Refused(source=folder / "hidden.nii", says=("pair",)),
        Refused(source=folder / "b.nii.gz", says=(r"b\.nii\.gz", "not a NIfTI")),
        Refused(source=folder / "c.nii", says=(r"c\.nii", "not a NIfTI")),
        Refused(source=folder / "d.nii", says=(r"d\.nii", "not a NIfTI")),
    ]


@case(FORMS)
def one_form_alone(folder: Path) -> list[Exact | Refused]:
    """Only the sform or only the qform is set."""
    return [
        exact(put(folder / "s.nii", nifti(qform=None))),
        exact(put(folder / "q.nii", nifti(sform=None))),
        exact(put(folder / "both.nii", nifti()), nifti_form="qform"),
        Refused(source=folder / "s.nii", says=("qform", "not set"), options={"nifti_form": "qform"}),
        Refused(source=folder / "s.nii", says=("expected sform or qform",), options={"nifti_form": "best"}),
    ]


@case(FORMS)
def no_form_at_all(folder: Path) -> Refused:
    """Codes of 0: spacing is known, the place in the patient is not."""
    return Refused(source=put(folder / "a.nii", nifti(sform=None, qform=None)), says=("neither sform nor qform",))


@case(FORMS)
def forms_that_disagree(folder: Path) -> list[Exact | Refused]:
    """Shifted, turned, mirrored, or another spacing: refused unless told which to believe."""
    changes = {"shift": np.eye(4), "turn": np.eye(4), "mirror": np.diag([-1.0, 1, 1, 1])}
    changes["shift"][0, 3] = 1.5
    changes["turn"][:2, :2] = [[0.98, -0.198997], [0.198997, 0.98]]
    outcomes: list[Exact | Refused] = []
    for name, change in changes.items():
        path = put(folder / f"{name}.nii", nifti(qform=change @ RAS))
        other = np.diag([-1.0, -1, 1, 1]) @ (change @ RAS)[:, [2, 1, 0, 3]]
        outcomes += [
            Refused(source=path, says=("sform and qform disagree", "mm", "--nifti-form")),
            exact(path, nifti_form="sform"),
            exact(path, affine=other, nifti_form="qform"),
        ]
    return outcomes


@case(FORMS)
def a_left_handed_grid(folder: Path) -> list[Exact | Refused]:
    """Voxel axes that are mirrored against the world: qfac of -1, in either form."""
    mirrored = RAS @ np.diag([-1.0, 1, 1, 1])
    affine = np.diag([-1.0, -1, 1, 1]) @ mirrored[:, [2, 1, 0, 3]]
    return [
        exact(put(folder / "q.nii", nifti(sform=None, qform=mirrored)), affine=affine),
        exact(put(folder / "s.nii", nifti(sform=mirrored, qform=None)), affine=affine),
    ]


@case(UNITS)
def metres_and_micrometres(folder: Path) -> list[Exact | Refused]:
    """The affine in metres or micrometres; an unknown unit is millimetres, a nonsensical one refused."""
    metres, microns = (np.diag([f, f, f, 1.0]) @ RAS for f in (1e-3, 1e3))
    return [
        exact(put(folder / "m.nii", nifti(sform=metres, qform=metres, unit="meter"))),
        exact(put(folder / "um.nii.gz", nifti(sform=microns, qform=microns, unit="micron"))),
        exact(put(folder / "unknown.nii", nifti(unit="unknown"))),
        Refused(source=put(folder / "odd.nii", nifti(), {123: b"\5"}), says=("unit code 5",)),
    ]


@case(TYPES)
def integer_types(folder: Path) -> list[Exact | Refused]:
    """All integer types, whole numbers kept exact; those that float32 would round are refused."""
    outcomes: list[Exact | Refused] = []
    for name in ("u1", "i1", "u2", "i4", "u4", "i8", "u8"):
        data = np.arange(385).reshape(DATA.shape).astype(np.dtype(name)) % 100 + 7
        if name not in ("u1", "i1"):
            data[3, 2, 1] = 60000
        outcomes.append(exact(put(folder / f"{name}.nii", nifti(data.astype(name))), data.transpose(2, 1, 0)))
    large = DATA.astype(np.int64)
    large[1, 2, 3] = 2**40 + 1
    outcomes.append(Refused(source=put(folder / "large.nii", nifti(large)), says=(str(2**40 + 1), "float32")))
    return outcomes


@case(TYPES)
def labels_as_floating_point(folder: Path) -> list[Exact | Refused]:
    """Label maps that a tool wrote as float32 or float64."""
    labels = (DATA % 5).astype(np.float64)
    expected = labels.transpose(2, 1, 0)
    return [
        exact(put(folder / "4.nii.gz", nifti(labels.astype(np.float32))), expected),
        exact(put(folder / "8.nii.gz", nifti(labels)), expected),
    ]


@case(TYPES)
def scaling(folder: Path) -> list[Exact | Refused]:
    """A slope of 0 or NaN means none; whole and fractional ones are applied; infinity is refused."""
    stored = HU.astype(float)
    outcomes: list[Exact | Refused] = [
        Refused(source=put(folder / "inf.nii", nifti(), {112: f4(np.inf, 0)}), says=("scl_slope",)),
        Refused(source=put(folder / "nan.nii", nifti(), {112: f4(1, np.nan)}), says=("NIfTI header|scl_inter",)),
        Refused(source=put(folder / "over.nii", nifti(), {112: f4(3e38, 0)}), says=("infinite",)),
        Refused(
            source=put(folder / "int64.nii", nifti(DATA.astype(np.int64) + (1 << 40)), {112: f4(2, 0)}),
            says=("float32",),
        ),
    ]
    for name, slope, inter, array in (
        ("none", 0.0, 5.0, stored), ("nothing", np.nan, 0.0, stored), ("whole", 2.0, -1000.0, stored * 2 - 1000),
        ("part", 0.25, 0.5, stored * 0.25 + 0.5), ("minus", -1.0, 0.0, -stored), ("wide", 100.0, 0.0, stored * 100),
        ("beyond int64", 2.0**62, 0.0, stored * 2.0**62), ("beyond any integer", 2.0**100, 0.0, stored * 2.0**100),
    ):  # fmt: skip
        outcomes.append(exact(put(folder / f"{name}.nii", nifti(), {112: f4(slope, inter)}), array))
    return outcomes


@case(AXES)
def four_axes(folder: Path) -> list[Exact | Refused]:
    """One volume in four or five axes is one; several are refused with their number."""
    return [
        exact(put(folder / "1.nii", nifti(DATA[..., None]))),
        exact(put(folder / "11.nii.gz", nifti(DATA[..., None, None]))),
        Refused(source=put(folder / "3.nii.gz", nifti(np.repeat(DATA[..., None], 3, 3))), says=("3 volumes",)),
        Refused(source=put(folder / "v.nii", nifti(np.repeat(DATA[..., None, None], 3, 4))), says=("3 volumes",)),
        Refused(source=put(folder / "flat.nii", nifti(DATA[:, :, 0])), says=("2 axes",)),
    ]


@case(AXES)
def colours_and_complex_numbers(folder: Path) -> list[Exact | Refused]:
    """RGB, RGBA and complex voxels are no intensities."""
    rgb = np.zeros(DATA.shape, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    rgba = np.zeros(DATA.shape, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")]))
    return [
        Refused(source=put(folder / f"{i}.nii", nifti(data)), says=("colours or complex",))
        for i, data in enumerate((rgb, rgba, DATA.astype(np.complex64)))
    ]


@case(NUMBERS)
def voxels_that_are_no_numbers(folder: Path) -> list[Exact | Refused]:
    """NaN, infinity, and what only float64 can hold."""
    outcomes: list[Exact | Refused] = []
    for name, value in (("nan", np.nan), ("inf", -np.inf), ("large", 1e300)):
        data = DATA.astype(np.float64)
        data[1, 2, 3] = value
        path = put(folder / f"{name}.nii.gz", nifti(data))
        outcomes.append(Refused(source=path, says=(path.name, "1 voxels are NaN or infinite")))
    return outcomes


@case(NUMBERS)
def nifti_spacing_and_directions(folder: Path) -> list[Exact | Refused]:
    """Spacing of zero, below zero or NaN; a sform that is sheared, singular or not finite."""
    sheared, singular = RAS.copy(), RAS.copy()
    sheared[:3, 1] += 0.1 * sheared[:3, 2]
    singular[:3, 1] = 0
    patches = {80: f4(0), 84: f4(-0.8), 88: f4(np.nan)}
    outcomes: list[Exact | Refused] = [
        Refused(source=put(folder / f"{offset}.nii", nifti(), {offset: value}), says=("voxel spacing",))
        for offset, value in patches.items()
    ]
    return [
        *outcomes,
        Refused(source=put(folder / "sheared.nii", nifti(sform=sheared, qform=None)), says=("sheared", "mm")),
        Refused(source=put(folder / "flat.nii", nifti(sform=None), {252: i2(0, 1), 284: f4(0, 0, 0, 0)}),
                says=("voxel spacing|sheared|sform",)),
        Refused(source=put(folder / "nan.nii", nifti(qform=None), {280: f4(np.nan)}), says=("finite",)),
        Refused(source=put(folder / "quaternion.nii", nifti(sform=None), {256: f4(0.9, 0.9, 0.9)}),
                says=("quaternion",)),
    ]  # fmt: skip


@case(SIZES)
def nifti_headers_that_lie(folder: Path) -> list[Exact | Refused]:
    """Terabytes in a small file, no axes, negative axes, slices that the header does not mention, unknown types."""
    huge = put(folder / "huge.nii", nifti(), {42: i2(30000, 30000, 30000)})
    (folder / "huge.nii.gz").write_bytes(gzip.compress(huge.read_bytes()))
    return [
        Refused(source=huge, says=("its header asks for 54000000000352",)),
        Refused(source=folder / "huge.nii.gz", says=("its header asks for 54000000000352",)),
        Refused(source=put(folder / "none.nii", nifti(), {40: i2(0)}), says=("axes",)),
        Refused(source=put(folder / "minus.nii", nifti(), {42: i2(-11)}), says=("axes",)),
        Refused(source=put(folder / "fewer.nii", nifti(), {46: i2(3)}), says=("its header asks for",)),
        Refused(source=put(folder / "type.nii", nifti(), {70: i2(999)}), says=("broken NIfTI header",)),
        Refused(source=put(folder / "offset.nii", nifti(), {108: f4(10)}), says=("inside the header",)),
        Refused(source=put(folder / "far.nii", nifti(), {108: f4(1e9)}), says=("its header asks for",)),
    ]


@case(SIZES)
def truncated_and_damaged_nifti(folder: Path) -> list[Exact | Refused]:
    """Cut at many places, a wrong CRC, a wrong length, flipped bytes, garbage at the end."""
    plain, packed = put(folder / "a.nii", nifti()), put(folder / "a.nii.gz", nifti())
    outcomes: list[Exact | Refused] = []

    def broken(name: str, data: bytes) -> None:
        (folder / name).write_bytes(data)
        outcomes.append(Refused(source=folder / name, says=(name.replace(".", r"\."),)))

    for share in (0.2, 0.5, 0.97):
        broken(f"cut{share}.nii", plain.read_bytes()[: int(share * plain.stat().st_size)])
        broken(f"cut{share}.nii.gz", packed.read_bytes()[: int(share * packed.stat().st_size)])
    whole = packed.read_bytes()
    broken("trailer.nii.gz", whole[:-4])
    broken("crc.nii.gz", whole[:-8] + bytes([whole[-8] ^ 255]) + whole[-7:])
    broken("length.nii.gz", whole[:-1] + bytes([whole[-1] ^ 1]))
    broken("flip.nii.gz", whole[:400] + bytes([whole[400] ^ 16]) + whole[401:])
    broken("garbage.nii.gz", whole + b"garbage")
    return outcomes


LINES = {
    "type": "short", "dimension": "3", "space": "left-posterior-superior", "sizes": "11 7 5", "endian": "little",
    "encoding": "raw",
}  # fmt: skip


def vectors(affine: NDArray) -> dict[str, str]:
    """Return NRRD's fields of an affine, columns first."""
    columns = [affine[:3, axis] for axis in (2, 1, 0)]
    written = ["(" + ",".join(f"{v:.12g}" for v in column) + ")" for column in (*columns, affine[:3, 3])]
    return {"space directions": " ".join(written[:3]), "space origin": written[3]}


def nrrd(path: Path, data: bytes | None = None, drop: Iterable[str] = (), **fields: str) -> Path:
    """Write an NRRD file; fields replace those of the corpus' grid."""
    given = {name.replace("_", " "): value for name, value in fields.items()}
    lines = {**LINES, **vectors(OBLIQUE.affine), **given}
    text = "".join(f"{name}: {value}\n" for name, value in lines.items() if name not in drop)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"NRRD0005\n" + text.encode() + b"\n" + (HU.astype("<i2").tobytes() if data is None else data))
    return path


def mha(path: Path, data: bytes | None = None, drop: Iterable[str] = (), **fields: str) -> Path:
    """Write a MetaImage; fields replace those of the corpus' grid."""
    spacing = np.linalg.norm(OBLIQUE.affine[:3, :3], axis=0)
    directions = (OBLIQUE.affine[:3, :3] / spacing)[:, ::-1].T.ravel()  # a line an axis
    lines = {
        "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False", "TransformMatrix": " ".join(f"{v:.12g}" for v in directions),
        "Offset": " ".join(str(v) for v in OBLIQUE.affine[:3, 3]),
        "ElementSpacing": " ".join(f"{v:.12g}" for v in spacing[::-1]), "DimSize": "11 7 5",
        "ElementType": "MET_SHORT", **fields, "ElementDataFile": fields.get("ElementDataFile", "LOCAL"),
    }  # fmt: skip
    lines["ElementDataFile"] = lines.pop("ElementDataFile")
    text = "".join(f"{name} = {value}\n" for name, value in lines.items() if name not in drop)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() + (HU.astype("<i2").tobytes() if data is None else data))
    return path


@case(ITK)
def nrrd_spaces(folder: Path) -> list[Exact | Refused]:
    """LPS, RAS and LAS are turned to LPS; other spaces and units have no place in the patient."""
    outcomes: list[Exact | Refused] = []
    for space, signs in (("left-posterior-superior", (1, 1, 1)), ("RAS", (-1, -1, 1)),
                         ("right-anterior-superior", (-1, -1, 1)), ("left-anterior-superior", (1, -1, 1))):  # fmt: skip
        fields = vectors(np.diag([*signs, 1.0]) @ OBLIQUE.affine)
        path = nrrd(folder / f"{space}.nrrd", space=space,
                    **{name.replace(" ", "_"): value for name, value in fields.items()})  # fmt: skip
        outcomes.append(exact(path))
    return [
        *outcomes,
        Refused(source=nrrd(folder / "xyz.nrrd", space="scanner-xyz"), says=("space 'scanner-xyz'",)),
        Refused(source=nrrd(folder / "m.nrrd", space_units='"m" "m" "m"'), says=("space units",)),
    ]


@case(ITK)
def nrrd_packings(folder: Path) -> list[Exact | Refused]:
    """Gzip, text, big endian, detached, a skip, notes in the header, and one volume in four axes."""
    raw = HU.astype("<i2").tobytes()
    folder.mkdir(parents=True)
    (folder / "voxels.raw").write_bytes(b"skipped!" + raw)
    columns = vectors(OBLIQUE.affine)["space directions"]
    return [
        exact(nrrd(folder / "a.nrrd", gzip.compress(raw), encoding="gzip")),
        exact(nrrd(folder / "b.nrrd", " ".join(map(str, HU.ravel())).encode(), encoding="ascii")),
        exact(nrrd(folder / "c.nrrd", HU.astype(">i2").tobytes(), endian="big")),
        exact(nrrd(folder / "d.nhdr", b"", data_file="voxels.raw", byte_skip="8")),
        exact(nrrd(folder / "e.nrrd", encoding="raw\n# space: scanner-xyz\nspace:=nonsense")),
        exact(nrrd(folder / "f.nrrd", dimension="4", sizes="1 11 7 5", space_directions="none " + columns,
                   kinds="vector domain domain domain")),
        Refused(source=nrrd(folder / "g.nrrd", raw * 3, dimension="4", sizes="3 11 7 5",
                            space_directions="none " + columns, kinds="RGB-color domain domain domain"),
                says=("several or complex",)),
        Refused(source=nrrd(folder / "h.nrrd", encoding="bzip2"), says=("bzip2",)),
    ]  # fmt: skip


@case(ITK)
def meta_image_packings(folder: Path) -> list[Exact | Refused]:
    """Compressed, big endian, detached, and a fourth axis of one."""
    raw = HU.astype("<i2").tobytes()
    packed = zlib.compress(raw)
    folder.mkdir(parents=True)
    (folder / "voxels.raw").write_bytes(raw)
    return [
        exact(mha(folder / "a.mha")),
        exact(mha(folder / "UPPER.MHA")),
        exact(shutil.copy(folder / "a.mha", folder / "no suffix")),
        exact(mha(folder / "b.mha", packed, CompressedData="True", CompressedDataSize=str(len(packed)))),
        exact(mha(folder / "c.mha", HU.astype(">i2").tobytes(), BinaryDataByteOrderMSB="True")),
        exact(mha(folder / "d.mhd", b"", ElementDataFile="voxels.raw")),
        Refused(source=mha(folder / "e.mha", raw * 3, ElementNumberOfChannels="3"), says=("several or complex",)),
        Refused(source=mha(folder / "f.mhd", b"", ElementDataFile="gone.raw"), says=("gone.raw",)),
        Refused(source=mha(folder / "g.mha", DistanceUnits="cm"), says=("'cm'",)),
        Refused(source=mha(folder / "h.mha", ElementToIntensityFunctionSlope="2"), says=("scaled",)),
    ]


@case(NUMBERS)
def itk_places(folder: Path) -> list[Exact | Refused]:
    """NRRD and MetaImage: no place at all, NaN, infinity, spacing of zero or below, sheared or long directions."""
    sheared = OBLIQUE.affine.copy()
    sheared[:3, 1] += 0.1 * sheared[:3, 0]
    sheared_fields = {name.replace(" ", "_"): value for name, value in vectors(sheared).items()}
    files: list[tuple[Callable[..., Path], str, dict[str, str], tuple[str, ...], str]] = [
        (nrrd, "a.nrrd", {}, ("space",), "no space"),
        (nrrd, "b.nrrd", {}, ("space directions",), "no space directions"),
        (nrrd, "c.nrrd", {}, ("space origin",), "no space origin"),
        (nrrd, "d.nrrd", {"space_origin": "(nan,0,0)"}, (), "NaN"),
        (nrrd, "e.nrrd", {"space_directions": "(0,0,0) (0,1,0) (0,0,1)"}, (), "spacing"),
        (nrrd, "f.nrrd", sheared_fields, (), "sheared"),
        (nrrd, "n.nrrd", {"spacings": "1 1 1"}, ("space directions",), "no space directions"),
        (mha, "g.mha", {}, ("ElementSpacing",), "no elementspacing"),
        (mha, "h.mha", {}, ("Offset",), "no offset"),
        (mha, "i.mha", {}, ("TransformMatrix",), "no transformmatrix"),
        (mha, "j.mha", {"ElementSpacing": "0 1 1"}, (), "spacing"),
        (mha, "k.mha", {"ElementSpacing": "-1 1 1"}, (), "spacing"),
        (mha, "l.mha", {"Offset": "nan 0 0"}, (), "finite"),
        (mha, "m.mha", {"TransformMatrix": "1 0 0 0.3 0.95 0 0 0 1"}, (), "sheared"),
        (mha, "o.mha", {"TransformMatrix": "2 0 0 0 1 0 0 0 1"}, (), "length 1"),
    ]
    return [
        Refused(source=write(folder / name, None, drop, **fields), says=(text,))
        for write, name, fields, drop, text in files
    ]


@case(SIZES)
def truncated_and_damaged_itk_files(folder: Path) -> list[Exact | Refused]:
    """NRRD and MetaImage: too few or too many voxels, terabytes, wrong checksums (which ITK reads as noise)."""
    raw = HU.astype("<i2").tobytes()
    zipped, packed = gzip.compress(raw), zlib.compress(raw)
    wrong = packed[:300] + bytes([packed[300] ^ 16]) + packed[301:]
    short = zlib.compress(raw[:-100])
    files = [
        nrrd(folder / "a.nrrd", raw[:-30]),
        nrrd(folder / "b.nrrd", raw * 2),
        nrrd(folder / "c.nrrd", sizes="30000 30000 30000"),
        nrrd(folder / "d.nrrd", zipped[:-30], encoding="gzip"),
        nrrd(folder / "e.nrrd", zipped[:-8] + bytes([zipped[-8] ^ 1]) + zipped[-7:], encoding="gzip"),
        nrrd(folder / "f.nrrd", " ".join(map(str, HU.ravel()[:-4])).encode(), encoding="ascii"),
        mha(folder / "g.mha", raw[:-30]),
        mha(folder / "h.mha", raw * 2),
        mha(folder / "i.mha", DimSize="30000 30000 30000"),
        mha(folder / "j.mha", wrong, CompressedData="True", CompressedDataSize=str(len(packed))),
        mha(folder / "k.mha", packed[:-40], CompressedData="True", CompressedDataSize=str(len(packed))),
        mha(folder / "l.mha", packed, CompressedData="True"),
        mha(folder / "m.mha", short, CompressedData="True", CompressedDataSize=str(len(short))),
    ]
    (folder / "junk.mha").write_bytes(b"\xff" * 500)
    (folder / "empty.nrrd").write_bytes(b"")
    files += [folder / "junk.mha", folder / "empty.nrrd"]
    return [Refused(source=path, says=(path.name.replace(".", r"\."),)) for path in files]


def packed_ct(folder: Path) -> Path:
    """Return a zip of the CT in a folder of its own."""
    write_ct(folder / "study")
    return Path(shutil.make_archive(str(folder / "study"), "zip", folder, "study"))


@case(ZIP)
def a_zipped_study(folder: Path) -> list[Exact | Refused]:
    """Read like the folder, whatever its suffix; a file in it that is broken is named."""
    archive = packed_ct(folder)
    shutil.copy(archive, folder / "export.bin")
    shutil.copy(archive, folder / "broken.zip")
    with zipfile.ZipFile(folder / "broken.zip", "a") as file:
        file.writestr("study/IM0009.dcm", b"")
    return [
        exact(archive),
        exact(folder / "export.bin"),
        Refused(source=folder / "broken.zip", says=(r"broken\.zip/study/IM0009\.dcm", "empty")),
    ]


@case(ZIP)
def members_that_lead_out(folder: Path) -> list[Exact | Refused]:
    """Traversal: parents, absolute names, drives, backslashes."""
    outcomes: list[Exact | Refused] = []
    folder.mkdir(parents=True)
    for index, name in enumerate(("../out.dcm", "/abs.dcm", "a/../../out.dcm", "..\\out.dcm", "C:\\out.dcm")):
        path = folder / f"{index}.zip"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(name, b"x")
        outcomes.append(Refused(source=path, says=("leads out of the archive",)))
    return outcomes


@case(ZIP)
def bombs(folder: Path) -> list[Exact | Refused]:
    """A member of 320 MiB of zeros; and one whose header lies about its size."""
    folder.mkdir(parents=True)
    zeros = zipfile.ZipInfo("a.dcm")
    zeros.compress_type = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(folder / "bomb.zip", "w") as file, file.open(zeros, "w", force_zip64=True) as member:
        for _ in range(20):
            member.write(bytes(16 << 20))
    with zipfile.ZipFile(folder / "lie.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.dcm", bytes(1 << 20))
    data = (folder / "lie.zip").read_bytes()
    (folder / "lie.zip").write_bytes(data.replace(struct.pack("<I", 1 << 20), struct.pack("<I", 1000)))
    return [
        Refused(source=folder / "bomb.zip", says=("320 MiB", "not safe")),
        Refused(source=folder / "lie.zip", says=(r"lie\.zip",)),
    ]


@case(ZIP)
def archives_that_are_damaged(folder: Path) -> list[Exact | Refused]:
    """Cut, a wrong CRC, encrypted, empty, a name that stands twice, an archive within, no archive at all."""
    whole = packed_ct(folder).read_bytes()
    (folder / "cut.zip").write_bytes(whole[: len(whole) // 2])
    place = whole.rindex(b"PK\1\2")  # the directory: flags at 8, CRC at 16
    (folder / "crc.zip").write_bytes(whole[: place + 16] + bytes([whole[place + 16] ^ 1]) + whole[place + 17 :])
    (folder / "none.zip").write_bytes(b"no archive at all" * 20)
    with zipfile.ZipFile(folder / "empty.zip", "w"):
        pass
    with zipfile.ZipFile(folder / "inner.zip", "w") as file:
        file.writestr("study.zip", whole)
    with zipfile.ZipFile(folder / "locked.zip", "w") as file:
        file.writestr("a.dcm", b"secret")
    locked = bytearray((folder / "locked.zip").read_bytes())
    locked[6] |= 1
    locked[locked.index(b"PK\1\2") + 8] |= 1
    (folder / "locked.zip").write_bytes(locked)
    shutil.copy(folder / "study.zip", folder / "twice.zip")
    with zipfile.ZipFile(folder / "twice.zip", "a") as file:
        file.write(folder / "study" / slice_name(2), "study/" + slice_name(1))
    with zipfile.ZipFile(folder / "again.zip", "w") as file:
        for index, inside in enumerate(("a/", "a/", "a/", "a/./")):  # the last one would replace the one before
            file.writestr(inside + slice_name(min(index, 2)), (folder / "study" / slice_name(index)).read_bytes())
    return [
        Refused(source=folder / "again.zip", says=("twice",)),
        Refused(source=folder / "cut.zip", says=("damaged",)),
        Refused(source=folder / "crc.zip", says=("damaged", "CRC|Bad|bad")),
        Refused(source=folder / "none.zip", says=("damaged",)),
        Refused(source=folder / "empty.zip", says=(r"empty\.zip", "empty")),
        Refused(source=folder / "inner.zip", says=("no DICOM image series", r"study\.zip")),
        Refused(source=folder / "locked.zip", says=("encrypted",)),
        Refused(source=folder / "twice.zip", says=("twice", slice_name(1))),
    ]
