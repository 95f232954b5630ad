"""Corpus: what DICOM pixels mean: rescale, signs, bits, syntaxes, multi-frame files; and tilted gantries."""

import struct
from pathlib import Path

import numpy as np
import pydicom
from dicom_fixtures import SERIES, ct_dataset, save, write_series
from highdicom import VolumeGeometry
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, EnhancedCTImageStorage, ExplicitVRBigEndian, RLELossless

from corpus import Exact, Refused, case
from corpus.grids import HU, OBLIQUE, STORED, slice_name, write_ct

RESCALE = "per-slice rescale"
MONOCHROME1 = "MONOCHROME1 (HU never inverted)"
BITS = "signed, unsigned and 12-bit; overlay bits; padding value"
MULTIFRAME = "enhanced multi-frame CT/MR"
COMPRESSED = "compressed syntaxes (RLE, JPEG lossless, JPEG-LS, JPEG 2000)"
ENCODINGS = "big-endian; deflated"
TILT = "gantry tilt: an error that says the angle, with an opt-in that resamples correctly"


@case(RESCALE)
def rescale_differs_by_slice(folder: Path) -> Exact:
    """PET-like: slope and intercept of each slice, fractions among them."""
    slopes = np.array([1.0, 0.5, 2.25, 0.001953125, 3.0])

    def edit(ds: Dataset, index: int) -> None:
        ds.RescaleSlope, ds.RescaleIntercept = f"{slopes[index]:.9f}", index * 10.5

    write_ct(folder, edit=edit)
    scaled = STORED * slopes[:, None, None] + (np.arange(5) * 10.5)[:, None, None]
    return Exact(source=folder, array=scaled.astype(np.float32), affine=OBLIQUE.affine)


@case(RESCALE)
def whole_slopes_other_than_one(folder: Path) -> list[Exact | Refused]:
    """A slope of -1 or 3 keeps whole numbers; one that leaves int16 widens."""
    outcomes: list[Exact | Refused] = []
    for slope in (-1, 3, 20, 100001):
        place = folder / str(slope)
        write_ct(place, edit=lambda ds, i, s=slope: setattr(ds, "RescaleSlope", s) if i == 2 else None)
        expected = HU.astype(np.int64)
        expected[2] = STORED[2].astype(np.int64) * slope - 1024
        if slope == 100001:
            outcomes.append(Refused(source=place, says=(slice_name(2), "float32")))
        else:
            outcomes.append(Exact(source=place, array=expected, affine=OBLIQUE.affine))
    return outcomes


@case(RESCALE)
def no_rescale_at_all(folder: Path) -> Exact:
    """MR: stored values are the values."""

    def edit(ds: Dataset, index: int) -> None:
        del ds.RescaleSlope, ds.RescaleIntercept
        ds.Modality, ds.SOPClassUID = "MR", "1.2.840.10008.5.1.4.1.1.4"

    write_ct(folder, edit=edit)
    return Exact(source=folder, array=STORED, affine=OBLIQUE.affine)


@case(RESCALE)
def one_slice_without_rescale(folder: Path) -> Refused:
    """The last slice lost its rescale: its values would be 1024 too high."""

    def edit(ds: Dataset, index: int) -> None:
        if index == 4:
            del ds.RescaleSlope, ds.RescaleIntercept

    write_ct(folder, edit=edit)
    return Refused(source=folder, says=("rescale", slice_name(4)))


@case(RESCALE)
def rescale_that_is_no_number(folder: Path) -> list[Exact | Refused]:
    """A slope of zero, NaN or letters; an intercept alone; a lookup table instead."""

    def table(ds: Dataset, index: int) -> None:
        item = Dataset()
        item.LUTDescriptor, item.ModalityLUTType, item.LUTData = [2, 0, 16], "HU", bytes(4)
        item["LUTDescriptor"].VR = "US"
        ds.ModalityLUTSequence = Sequence([item])
        del ds.RescaleSlope, ds.RescaleIntercept

    edits = {
        "zero": lambda ds, i: setattr(ds, "RescaleSlope", 0),
        "nan": lambda ds, i: setattr(ds, "RescaleSlope", "nan"),
        "infinite": lambda ds, i: setattr(ds, "RescaleIntercept", "inf"),
        "steep": lambda ds, i: setattr(ds, "RescaleSlope", "1e20"),
        "far": lambda ds, i: ds.update({"RescaleSlope": "0.5", "RescaleIntercept": "1e39"}),
        "alone": lambda ds, i: delattr(ds, "RescaleSlope"),
        "table": table,
    }
    for name, edit in edits.items():
        write_ct(folder / name, edit=edit)
    says = {name: ("lookup table",) if name == "table" else ("RescaleSlope",) for name in edits}
    return [Refused(source=folder / name, says=says[name]) for name in edits]


@case(MONOCHROME1)
def monochrome1_keeps_hu(folder: Path) -> Exact:
    """All slices, or some of them: HU are HU, however a viewer is to paint them."""
    return write_ct(folder, edit=lambda ds, i: setattr(ds, "PhotometricInterpretation", f"MONOCHROME{1 + i % 2}"))


@case(BITS)
def signed_sixteen_bits(folder: Path) -> Exact:
    """Signed HU with padding of -2000, rescaled like any value."""
    hu = HU.copy()
    hu[:, :2] = -2000

    def edit(ds: Dataset, index: int) -> None:
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 15, 1
        ds.RescaleIntercept = 0
        ds.add_new("PixelPaddingValue", "SS", -2000)
        ds.PixelData = hu[index].astype("<i2").tobytes()

    write_ct(folder, edit=edit)
    return Exact(source=folder, array=hu, affine=OBLIQUE.affine)


@case(BITS)
def padding_below_int16(folder: Path) -> Exact:
    """Padding of -32768 with an intercept of -1024: the volume widens, nothing wraps."""
    stored = HU.copy()
    stored[:, 0] = -32768

    def edit(ds: Dataset, index: int) -> None:
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 15, 1
        ds.add_new("PixelPaddingValue", "SS", -32768)
        ds.PixelData = stored[index].astype("<i2").tobytes()

    write_ct(folder, edit=edit)
    return Exact(source=folder, array=stored.astype(int) - 1024, affine=OBLIQUE.affine)


@case(BITS)
def padding_that_does_not_fit(folder: Path) -> list[Exact | Refused]:
    """Padding of 63536 in cells of 12 stored bits would be read as 2096; declared but absent it does no harm."""

    def declare(ds: Dataset, index: int) -> None:
        ds.add_new("PixelPaddingValue", "US", 63536)

    def use(ds: Dataset, index: int) -> None:
        declare(ds, index)
        cells = STORED[index].copy()
        cells[0] = 63536
        ds.PixelData = cells.astype("<u2").tobytes()

    made = write_ct(folder / "declared", edit=declare)
    write_ct(folder / "used", edit=use)
    return [made, Refused(source=folder / "used", says=("PixelPaddingValue 63536", "12 stored bits"))]


@case(BITS)
def unsigned_sixteen_bits(folder: Path) -> Exact:
    """Values up to 65535: float32, not wrapped."""
    stored = np.random.default_rng(3).integers(0, 65536, STORED.shape).astype(np.uint16)
    stored[2, 3, 4] = 65535

    def edit(ds: Dataset, index: int) -> None:
        ds.BitsStored, ds.HighBit = 16, 15
        ds.PixelData = stored[index].astype("<u2").tobytes()

    write_ct(folder, edit=edit)
    return Exact(source=folder, array=stored.astype(int) - 1024, affine=OBLIQUE.affine)


@case(BITS)
def signed_twelve_bits(folder: Path) -> Exact:
    """The sign is in bit 11, and the bits above it are zero."""
    values = STORED.astype(int) - 2048

    def edit(ds: Dataset, index: int) -> None:
        ds.PixelRepresentation, ds.RescaleIntercept = 1, 0
        ds.PixelData = (values[index] & 0x0FFF).astype("<u2").tobytes()

    write_ct(folder, edit=edit)
    return Exact(source=folder, array=values, affine=OBLIQUE.affine)


@case(BITS)
def signed_and_unsigned_slices(folder: Path) -> Exact:
    """One slice is stored as signed numbers, with a rescale of its own."""

    def edit(ds: Dataset, index: int) -> None:
        if index == 1:
            ds.PixelRepresentation, ds.RescaleIntercept, ds.BitsStored, ds.HighBit = 1, 0, 16, 15
            ds.PixelData = HU[index].astype("<i2").tobytes()

    return write_ct(folder, edit=edit)


@case(BITS)
def overlay_in_unused_bits(folder: Path) -> Exact:
    """Overlays of old scanners lie in bits 12 to 15 of the pixel cells."""

    def edit(ds: Dataset, index: int) -> None:
        noise = np.random.default_rng(index).integers(0, 16, (7, 11)).astype(np.uint16) << 12
        ds.PixelData = (STORED[index] | noise).astype("<u2").tobytes()
        ds.add_new(0x60000010, "US", 7)
        ds.add_new(0x60000011, "US", 11)
        ds.add_new(0x60000100, "US", 16)
        ds.add_new(0x60000102, "US", 12)

    return write_ct(folder, edit=edit)


@case(BITS)
def values_in_the_upper_bits(folder: Path) -> Exact:
    """HighBit 15 of 12 stored bits: the values lie above four bits of overlay."""

    def edit(ds: Dataset, index: int) -> None:
        ds.HighBit = 15
        ds.PixelData = (STORED[index] << 4 | 0b1010).astype("<u2").tobytes()

    return write_ct(folder, edit=edit)


@case(BITS)
def overlay_planes_beside_the_pixels(folder: Path) -> Exact:
    """Overlay data in group 6000, before and after the pixels in tag order."""

    def edit(ds: Dataset, index: int) -> None:
        for group in (0x6000, 0x6002):
            ds.add_new(group << 16 | 0x10, "US", 7)
            ds.add_new(group << 16 | 0x11, "US", 11)
            ds.add_new(group << 16 | 0x100, "US", 1)
            ds.add_new(group << 16 | 0x3000, "OW", bytes(10))
        ds.DataSetTrailingPadding = bytes(100)
        ds["DataSetTrailingPadding"].VR = "OB"

    return write_ct(folder, edit=edit)


@case(BITS)
def eight_and_thirty_two_bits(folder: Path) -> list[Exact | Refused]:
    """8-bit cells with an odd length, and 32-bit ones."""

    def eight(ds: Dataset, index: int) -> None:
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
        ds.PixelData = (STORED[index] >> 4).astype("u1").tobytes() + b"\0"

    def thirty_two(ds: Dataset, index: int) -> None:
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 32, 32, 31
        ds.PixelData = (STORED[index].astype("<u4") * 100).tobytes()

    write_ct(folder / "8", edit=eight)
    write_ct(folder / "32", edit=thirty_two)
    return [
        Exact(source=folder / "8", array=(STORED >> 4).astype(int) - 1024, affine=OBLIQUE.affine),
        Exact(source=folder / "32", array=STORED.astype(int) * 100 - 1024, affine=OBLIQUE.affine),
    ]


@case(BITS)
def bits_that_make_no_sense(folder: Path) -> list[Exact | Refused]:
    """More bits stored than allocated, one bit, or 12 bits allocated."""
    outcomes: list[Exact | Refused] = []
    for bits in ((16, 17, 16), (16, 12, 5), (12, 12, 11), (1, 1, 0), (16, 16, 31)):
        place = folder / "-".join(map(str, bits))

        def edit(ds: Dataset, index: int, bits: tuple[int, int, int] = bits) -> None:
            ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits

        write_ct(place, edit=edit)
        outcomes.append(Refused(source=place, says=("bits",)))
    return outcomes


@case(BITS)
def floating_point_pixels(folder: Path) -> Refused:
    """Float pixel data in an image class that cannot have it."""

    def edit(ds: Dataset, index: int) -> None:
        del ds.PixelData
        ds.BitsAllocated = 32
        ds.FloatPixelData = STORED[index].astype("<f4").tobytes()

    write_ct(folder, edit=edit)
    return Refused(source=folder, says=("floating-point",))


def enhanced(stored: NDArray, *, order: list[int] | None = None, grid: VolumeGeometry = OBLIQUE) -> Dataset:
    """Return a multi-frame CT; ``order`` says which slice each frame shows (default: against the positions)."""
    order = list(reversed(range(len(stored)))) if order is None else order
    ds = ct_dataset(grid, 0, stored[0])
    ds.SOPClassUID = EnhancedCTImageStorage
    frames = []
    for index in order:
        one = ct_dataset(grid, index, stored[index])
        one.RescaleIntercept = -1024 + index
        frame = Dataset()
        frame.PlanePositionSequence = Sequence([_part(one, "ImagePositionPatient")])
        frame.PixelValueTransformationSequence = Sequence([_part(one, "RescaleSlope", "RescaleIntercept")])
        frames.append(frame)
    shared = Dataset()
    shared.PlaneOrientationSequence = Sequence([_part(ds, "ImageOrientationPatient")])
    shared.PixelMeasuresSequence = Sequence([_part(ds, "PixelSpacing", "SliceThickness")])
    for keyword in ("ImagePositionPatient", "RescaleSlope", "RescaleIntercept", "ImageOrientationPatient",
                    "PixelSpacing", "SliceThickness"):  # fmt: skip
        del ds[keyword]
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    ds.PerFrameFunctionalGroupsSequence = Sequence(frames)
    ds.NumberOfFrames = len(frames)
    ds.PixelData = stored[order].astype("<u2").tobytes()
    return ds


def _part(ds: Dataset, *keywords: str) -> Dataset:
    item = Dataset()
    for keyword in keywords:
        item[keyword] = ds[keyword]
    return item


ENHANCED = HU + np.arange(5, dtype=np.int16)[:, None, None]


@case(MULTIFRAME)
def frames_against_the_positions(folder: Path) -> Exact:
    """Frames in another order than the positions, rescale per frame."""
    save(enhanced(STORED, order=[3, 0, 4, 1, 2]), folder / "mf.dcm")
    return Exact(source=folder / "mf.dcm", array=ENHANCED, affine=OBLIQUE.affine)


@case(MULTIFRAME)
def orientation_and_spacing_per_frame(folder: Path) -> Exact:
    """What may be shared is repeated in every frame, and rescale is shared."""
    ds = enhanced(STORED)
    shared = ds.SharedFunctionalGroupsSequence[0]
    for frame in ds.PerFrameFunctionalGroupsSequence:
        frame.PlaneOrientationSequence = shared.PlaneOrientationSequence
        frame.PixelMeasuresSequence = shared.PixelMeasuresSequence
        shared.PixelValueTransformationSequence = frame.PixelValueTransformationSequence
        del frame.PixelValueTransformationSequence
    del shared.PlaneOrientationSequence, shared.PixelMeasuresSequence
    shared.PixelValueTransformationSequence[0].RescaleIntercept = -1024
    save(ds, folder / "mf.dcm")
    return Exact(source=folder / "mf.dcm", array=HU, affine=OBLIQUE.affine)


@case(MULTIFRAME)
def compressed_frames(folder: Path) -> Exact:
    """Frames run-length coded, read by their own offsets."""
    ds = enhanced(STORED)
    save(ds, folder / "mf.dcm")
    ds = pydicom.dcmread(folder / "mf.dcm")
    ds.compress(RLELossless)
    ds.save_as(folder / "mf.dcm")
    return Exact(source=folder, array=ENHANCED, affine=OBLIQUE.affine)


@case(MULTIFRAME)
def one_series_in_two_files(folder: Path) -> Exact:
    """A concatenation: frames of one stack in two files."""
    save(enhanced(STORED, order=[3, 0]), folder / "a.dcm")
    second = enhanced(STORED, order=[4, 1, 2])
    second.SOPInstanceUID += ".2"
    save(second, folder / "b.dcm")
    return Exact(source=folder, array=ENHANCED, affine=OBLIQUE.affine)


@case(MULTIFRAME)
def several_time_points(folder: Path) -> Refused:
    """Two phases in one file: every position twice."""
    save(enhanced(STORED, order=[0, 1, 2, 3, 4, 0, 1, 2, 3, 4]), folder / "mf.dcm")
    ds = pydicom.dcmread(folder / "mf.dcm")
    ds.PixelData = ds.PixelData[: 5 * 154] + bytes(5 * 154)
    ds.save_as(folder / "mf.dcm")
    return Refused(source=folder, says=("same place", "frame"))


@case(MULTIFRAME)
def frames_without_positions(folder: Path) -> list[Exact | Refused]:
    """More frames than positions, or one frame without its own."""
    ds = enhanced(STORED)
    del ds.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence
    save(ds, folder / "one" / "mf.dcm")
    del ds.PerFrameFunctionalGroupsSequence
    save(ds, folder / "all" / "mf.dcm")
    return [
        Refused(source=folder / "one", says=("frame 3", "ImagePositionPatient")),
        Refused(source=folder / "all", says=("5 frames with 0 positions",)),
    ]


@case(MULTIFRAME)
def frames_that_are_missing(folder: Path) -> list[Exact | Refused]:
    """A file cut after four frames, native and compressed, and NumberOfFrames left away."""
    ds = enhanced(STORED)
    save(ds, folder / "cut" / "mf.dcm")
    path = folder / "cut" / "mf.dcm"
    path.write_bytes(path.read_bytes()[:-154])
    lost = enhanced(STORED)
    del lost.NumberOfFrames
    save(lost, folder / "lost" / "mf.dcm")
    save(ds, folder / "packed" / "mf.dcm")
    packed = pydicom.dcmread(folder / "packed" / "mf.dcm")
    packed.compress(RLELossless)
    fragments = [bytes(f) for f in pydicom.encaps.generate_fragments(packed.PixelData)][-5:]
    packed.PixelData = encapsulate(fragments[:4])
    packed.save_as(folder / "packed" / "mf.dcm")
    return [
        Refused(source=folder / "cut", says=("truncated",)),
        Refused(source=folder / "lost", says=("770 bytes of pixel data, expected 154",)),
        Refused(source=folder / "packed", says=("4 compressed frames, expected 5",)),
    ]


@case(MULTIFRAME)
def a_frame_missing_in_the_middle(folder: Path) -> Refused:
    """Frames 1, 2, 4, 5 of a stack."""
    save(enhanced(STORED, order=[0, 1, 3, 4]), folder / "mf.dcm")
    return Refused(source=folder, says=("6.00 mm", "1 slice"))


def transcode(path: Path, syntax: str) -> None:
    """Compress a file in place: JPEG and JPEG-LS with GDCM, the others with pydicom."""
    import gdcm

    if syntax in (SYNTAXES["RLE"], SYNTAXES["JPEG 2000"]):
        ds = pydicom.dcmread(path)
        ds.compress(syntax, generate_instance_uid=False)
        ds.save_as(path)
        return
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change(), syntax
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(path))
    assert writer.Write()
    assert pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID == syntax


SYNTAXES = {
    "RLE": "1.2.840.10008.1.2.5",
    "JPEG lossless": "1.2.840.10008.1.2.4.57",
    "JPEG lossless SV1": "1.2.840.10008.1.2.4.70",
    "JPEG-LS": "1.2.840.10008.1.2.4.80",
    "JPEG 2000": "1.2.840.10008.1.2.4.90",
}


#: Large enough for the five resolutions of JPEG 2000.
LARGE = VolumeGeometry(OBLIQUE.affine, (5, 37, 45), "PATIENT")


def _compressed(folder: Path, syntax: str) -> list[Exact | Refused]:
    """Every slice compressed: unsigned 12 bits, signed 16 bits, unsigned 16 bits, and signed 12 bits."""
    hu = write_ct(folder / "12", LARGE).array
    stored = hu.astype(int) + 1024

    def signed(ds: Dataset, index: int) -> None:
        ds.PixelRepresentation, ds.RescaleIntercept, ds.BitsStored, ds.HighBit = 1, 0, 16, 15
        ds.PixelData = hu[index].astype("<i2").tobytes()

    def unsigned(ds: Dataset, index: int) -> None:
        ds.BitsStored, ds.HighBit = 16, 15
        ds.PixelData = (stored[index] * 15).astype("<u2").tobytes()

    def short(ds: Dataset, index: int) -> None:
        ds.PixelRepresentation, ds.RescaleIntercept = 1, 0
        ds.PixelData = (stored[index] - 2048).astype("<i2").tobytes()

    write_ct(folder / "16", LARGE, edit=signed)
    write_ct(folder / "u16", LARGE, edit=unsigned)
    write_ct(folder / "s12", LARGE, edit=short)
    for path in folder.glob("*/*.dcm"):
        transcode(path, syntax)
    arrays = {"12": hu, "16": hu, "u16": stored * 15 - 1024, "s12": stored - 2048}
    return [Exact(source=folder / name, array=array, affine=LARGE.affine) for name, array in arrays.items()]


@case(COMPRESSED)
def run_length(folder: Path) -> list[Exact | Refused]:
    """RLE lossless."""
    return _compressed(folder, SYNTAXES["RLE"])


@case(COMPRESSED)
def jpeg_lossless(folder: Path) -> list[Exact | Refused]:
    """JPEG lossless, first-order prediction and any prediction."""
    return [
        *_compressed(folder / "1", SYNTAXES["JPEG lossless SV1"]),
        *_compressed(folder / "2", SYNTAXES["JPEG lossless"]),
    ]


@case(COMPRESSED)
def jpeg_ls(folder: Path) -> list[Exact | Refused]:
    """JPEG-LS lossless."""
    return _compressed(folder, SYNTAXES["JPEG-LS"])


@case(COMPRESSED)
def jpeg_2000(folder: Path) -> list[Exact | Refused]:
    """JPEG 2000 lossless."""
    return _compressed(folder, SYNTAXES["JPEG 2000"])


@case(COMPRESSED)
def syntaxes_differ_by_slice(folder: Path) -> Exact:
    """Five slices in five syntaxes."""
    made = write_ct(folder, LARGE)
    for index, syntax in enumerate(SYNTAXES.values()):
        transcode(folder / slice_name(index), syntax)
    return made


@case(COMPRESSED)
def truncated_code_stream(folder: Path) -> list[Exact | Refused]:
    """The file of a compressed slice ends early, or its code stream does within a whole file."""
    outcomes: list[Exact | Refused] = []
    for name, syntax in SYNTAXES.items():
        for place in (folder / name / "file", folder / name / "stream"):
            write_ct(place, LARGE)
            path = place / slice_name(2)
            transcode(path, syntax)
            if place.name == "file":
                path.write_bytes(path.read_bytes()[:-40])
            else:
                ds = pydicom.dcmread(path)
                (coded,) = list(pydicom.encaps.generate_fragments(ds.PixelData))[-1:]
                ds.PixelData = encapsulate([coded[: len(coded) // 2 // 2 * 2]])
                ds.save_as(path)
            outcomes.append(Refused(source=place, says=(path.name,)))
    return outcomes


@case(COMPRESSED)
def code_stream_of_another_size(folder: Path) -> list[Exact | Refused]:
    """The header says 45 x 37, the code stream holds 37 x 45."""
    outcomes: list[Exact | Refused] = []
    for name, syntax in SYNTAXES.items():
        if name == "RLE":
            continue
        write_ct(folder / name, LARGE)
        path = folder / name / slice_name(2)
        transcode(path, syntax)
        ds = pydicom.dcmread(path)
        ds.Rows, ds.Columns = 45, 37
        ds.save_as(path)
        outcomes.append(Refused(source=folder / name, says=(path.name, "37 x 45")))
    return outcomes


@case(COMPRESSED)
def a_syntax_that_no_decoder_knows(folder: Path) -> Refused:
    """Video, and a transfer syntax that is none."""
    write_ct(folder)
    path = folder / slice_name(2)
    ds = pydicom.dcmread(path)
    ds.PixelData = encapsulate([bytes(200)])
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"
    ds["PixelData"].is_undefined_length = True
    ds.save_as(path)
    return Refused(source=folder, says=(path.name, "cannot be decoded"))


@case(ENCODINGS)
def big_endian(folder: Path) -> list[Exact | Refused]:
    """Explicit VR big endian, 16 and 8 bits."""

    def swap(ds: Dataset, index: int) -> None:
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
        ds["PixelData"].VR = "OW"

    def eight(ds: Dataset, index: int) -> None:
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
        ds.PixelData = (STORED[index] >> 4).astype("u1").tobytes() + b"\0"
        ds["PixelData"].VR = "OB"

    write_ct(folder / "16", edit=swap, syntax=ExplicitVRBigEndian)
    write_ct(folder / "8", edit=eight, syntax=ExplicitVRBigEndian)
    return [
        Exact(source=folder / "16", array=HU, affine=OBLIQUE.affine),
        Exact(source=folder / "8", array=(STORED >> 4).astype(int) - 1024, affine=OBLIQUE.affine),
    ]


@case(ENCODINGS)
def deflated(folder: Path) -> list[Exact | Refused]:
    """Deflated explicit VR; cut short; and with too few pixels inside."""
    made = write_ct(folder / "whole", syntax=DeflatedExplicitVRLittleEndian)
    write_ct(folder / "cut", syntax=DeflatedExplicitVRLittleEndian)
    path = folder / "cut" / slice_name(1)
    path.write_bytes(path.read_bytes()[:-50])

    def edit(ds: Dataset, index: int) -> None:
        if index == 1:
            ds.PixelData = ds.PixelData[:-20]

    write_ct(folder / "few", syntax=DeflatedExplicitVRLittleEndian, edit=edit)
    return [
        made,
        Refused(source=folder / "cut", says=(path.name,)),
        Refused(source=folder / "few", says=(path.name, "134 bytes")),
    ]


@case(ENCODINGS)
def a_file_meta_that_lies(folder: Path) -> list[Exact | Refused]:
    """Implicit VR is announced and explicit follows; a transfer syntax is absent."""
    outcomes: list[Exact | Refused] = []
    for name in ("lie", "none"):
        made = write_ct(folder / name)
        for path in (folder / name).iterdir():
            data = path.read_bytes()
            explicit = b"1.2.840.10008.1.2.1\0"
            assert explicit in data
            place = data.index(explicit)
            if name == "lie":
                data = data.replace(explicit, b"1.2.840.10008.1.2\0\0\0")
            else:  # cut the element out and shorten the group
                data = data[: place - 8] + data[place + 20 :]
                length = data.index(b"\2\0\0\0UL\4\0") + 8
                group = struct.unpack("<I", data[length : length + 4])[0] - 28
                data = data[:length] + struct.pack("<I", group) + data[length + 4 :]
            path.write_bytes(data)
        outcomes.append(made)
    return outcomes


TILT_DEGREES = 14.0
#: Two balls (centre in LPS mm, radius in mm) that a tilted scan must bring back where they are.
BALLS = ((np.array([12.3, -14.6, 21.1]), 9.0), (np.array([-17.2, 11.4, 52.7]), 7.5))
TILT_SPACING = (4.0, 0.8, 0.8)


def tilted_scan(folder: Path, degrees: float = TILT_DEGREES, places_mm: NDArray | None = None) -> None:
    """Write a scan of `BALLS` whose table moves along z while the slices are tilted about x.

    Every slice is averaged over its thickness of 4 mm, as a scanner does.
    """
    places = np.arange(21) * TILT_SPACING[0] if places_mm is None else places_mm
    angle = np.deg2rad(degrees)
    row, column = np.array([1.0, 0, 0]), np.array([0, np.cos(angle), -np.sin(angle)])
    normal = np.cross(row, column)
    size = 96
    index = (np.arange(size) - (size - 1) / 2) * TILT_SPACING[1]
    for number, place in enumerate(places):
        centre = np.array([0.0, 0, place])
        points = centre + index[:, None, None] * column + index[None, :, None] * row
        hu = np.full((size, size), -1000.0)
        for middle, radius in BALLS:
            for part in (np.arange(8) - 3.5) / 8 * TILT_SPACING[0]:
                depth = radius - np.linalg.norm(points + part * normal - middle, axis=-1)
                hu += 1100.0 / 8 * np.clip(depth / 0.8 + 0.5, 0, 1)
        origin = points[0, 0]
        affine = np.eye(4)
        affine[:3, :3] = np.column_stack([normal * TILT_SPACING[0], column * 0.8, row * 0.8])
        affine[:3, 3] = origin - number * affine[:3, 0]  # `ct_dataset` steps along the first axis
        grid = VolumeGeometry(affine, (len(places), size, size), "PATIENT")
        save(ct_dataset(grid, number, np.rint(hu + 1024).astype(np.uint16)), folder / f"{number:02d}.dcm")


@case(TILT)
def a_tilted_gantry(folder: Path) -> Refused:
    """The table moves along z, the slices lean: refused with the angle and the spacing."""
    tilted_scan(folder)
    return Refused(source=folder, says=(r"tilted by 14\.0 degrees", "3.88 mm", "--resample-tilt"))


@case(TILT)
def tilted_and_uneven(folder: Path) -> list[Exact | Refused]:
    """Both faults are told, and both have to be allowed."""
    tilted_scan(folder, places_mm=np.array([0, 4.0, 8, 12, 13, 14, 19, 26, 30]))
    return [
        Refused(source=folder, says=("tilted by 14.0", "0.97 to 6.79 mm", "--resample-tilt", "--resample-uneven")),
        Refused(source=folder, says=("0.97 to 6.79 mm", "--resample-uneven"), options={"resample_tilt": True}),
        Refused(source=folder, says=("tilted by 14.0", "--resample-tilt"), options={"resample_uneven": True}),
    ]


@case(TILT)
def a_sheared_stack_by_whole_pixels(folder: Path) -> Exact:
    """A shear of one pixel a slice needs no interpolation: the straightened voxels are the stored ones."""
    down = OBLIQUE.affine[:3, 1]

    def edit(ds: Dataset, index: int) -> None:
        ds.ImagePositionPatient = [f"{v:.9f}" for v in np.array(ds.ImagePositionPatient, float) + index * down]

    write_series(folder, OBLIQUE, edit=edit)
    expected = np.full((5, 11, 11), HU.min())
    for index in range(5):
        expected[index, index : index + 7] = HU[index]
    return Exact(source=folder, array=expected, affine=OBLIQUE.affine, options={"resample_tilt": True})


@case(TILT)
def an_even_stack_needs_no_resampling(folder: Path) -> Exact:
    """The switches change nothing where nothing is tilted or uneven."""
    made = write_ct(folder)
    options = {"resample_tilt": True, "resample_uneven": True}
    return Exact(source=folder, array=made.array, affine=made.affine, options=options)


assert SERIES
