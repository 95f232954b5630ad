"""Pixels of DICOM files: where they lie, whether they are all there, and their stored values.

Uncompressed pixels are read straight from the file; compressed ones are decoded by pydicom and its plugins.
Sources: DICOM PS3.5 sections 8 and A.4; JPEG markers: ISO/IEC 10918-1 B.1, 14495-1 C.1, 15444-1 A.2.
"""

import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import iter_pixels
from pydicom.uid import UID, RLELossless

from medseg.errors import InputError

DEFLATED = "1.2.840.10008.1.2.1.99"
NO_PIXELS = "truncated: the file ends before its pixel data"
#: Explicit VRs of pixel data; an implicit length cannot look like one of them, because lengths are even.
_VRS = (b"OB", b"OW", b"UN")
#: Start-of-frame markers of JPEG and JPEG-LS: what follows are length, precision, rows and columns.
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


class PixelDamageError(Exception):
    """The pixels of a slice are not all there, or not as the header says; the text says how."""


@dataclass(frozen=True, kw_only=True)
class PixelLayout:
    """How the pixels of a file are stored; ``start`` is the byte of the first one, None where pydicom must decode.

    ``parse_first``: pydicom cannot decode from the file alone (deflated, or without a transfer syntax).
    """

    rows: int
    columns: int
    frames: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    syntax: str
    #: PixelPaddingValue as a cell, where the stored bits cannot hold it.
    odd_padding: int | None
    start: int | None
    big_endian: bool
    parse_first: bool

    @property
    def plane_bytes(self) -> int:
        """Bytes of one uncompressed plane."""
        return self.rows * self.columns * (self.bits_allocated // 8)

    @property
    def padding_bytes(self) -> int:
        """Bytes that may follow the pixels: less than a row or column, so that neither can be missing in the header."""
        return max(min(self.rows, self.columns) * (self.bits_allocated // 8) - 1, 1)

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest value that the stored bits can hold."""
        if self.signed:
            return -(1 << (self.bits_stored - 1)), (1 << (self.bits_stored - 1)) - 1
        return 0, (1 << self.bits_stored) - 1


def find_pixels(
    stream: BinaryIO, position: int, syntax: UID, stated: bool, little_endian: bool, **numbers: int
) -> PixelLayout:
    """Find the pixels in a file whose header ends at ``position``; nothing is decoded.

    Args:
        stream: the open file.
        position: where the element of the pixel data starts.
        syntax: the transfer syntax, and ``stated`` whether the file names it.
        little_endian: how the data set was read.
        numbers: rows, columns, frames, bits_allocated, bits_stored, high_bit, signed and padding of the header.

    Raises:
        PixelDamageError: pixels missing, too few or too many, or numbers that make no sense.
    """
    rows, columns, allocated = numbers["rows"], numbers["columns"], numbers["bits_allocated"]
    if not rows and not columns and not allocated:
        raise PixelDamageError(NO_PIXELS)
    if rows < 1 or columns < 1 or allocated not in (8, 16, 32):
        raise PixelDamageError(
            f"{rows} rows, {columns} columns, {allocated} bits: expected one of each at least, and 8, 16 or 32 bits"
        )
    if not 0 < numbers["bits_stored"] <= numbers["high_bit"] + 1 <= allocated:
        raise PixelDamageError(
            f"BitsStored {numbers['bits_stored']} and HighBit {numbers['high_bit']} do not fit into {allocated} bits"
        )
    if syntax.is_compressed and syntax != RLELossless and numbers["high_bit"] != numbers["bits_stored"] - 1:
        raise PixelDamageError(  # a code stream holds values, not cells with room above and below
            f"HighBit {numbers['high_bit']} with {numbers['bits_stored']} stored bits is ambiguous in {syntax.name}"
        )
    layout = PixelLayout(
        rows=rows,
        columns=columns,
        frames=numbers["frames"],
        bits_allocated=allocated,
        bits_stored=numbers["bits_stored"],
        high_bit=numbers["high_bit"],
        signed=numbers["signed"] == 1,
        syntax=str(syntax),
        odd_padding=_odd_padding(numbers),
        start=None,
        big_endian=not little_endian,
        parse_first=not stated or syntax == DEFLATED,
    )
    if syntax == DEFLATED:
        return layout  # the stream says nothing about the inflated data; decoding will
    size = stream.seek(0, os.SEEK_END)
    stream.seek(position)
    header = stream.read(12)
    order = "<" if little_endian else ">"
    tag = struct.unpack(order + "HH", header[:4]) if len(header) == 12 else ()
    if tag in ((0x7FE0, 0x0008), (0x7FE0, 0x0009)):
        raise PixelDamageError("the pixels are floating-point numbers, which only integers are read as")
    if tag != (0x7FE0, 0x0010):
        raise PixelDamageError(NO_PIXELS)
    explicit = header[4:6] in _VRS
    length = struct.unpack(order + "I", header[8:12] if explicit else header[4:8])[0]
    start = position + (12 if explicit else 8)
    if syntax.is_compressed:
        _check_fragments(stream, layout)
        return layout
    if length == 0xFFFFFFFF:
        raise PixelDamageError(f"the pixels are compressed, but the transfer syntax is {syntax.name}")
    expected = layout.plane_bytes * layout.frames
    if min(length, size - start) < expected:
        raise PixelDamageError(
            f"truncated: {max(min(length, size - start), 0)} bytes of pixel data, expected {expected}"
        )
    if length > expected + layout.padding_bytes:
        raise PixelDamageError(
            f"{length} bytes of pixel data, expected {expected} for {layout.frames} x {rows} x {columns} pixels of "
            f"{allocated} bits; the header does not describe these pixels"
        )
    if allocated == 8 and not little_endian:
        return layout  # bytes may be swapped in pairs; pydicom knows
    return replace(layout, start=start)


def _odd_padding(numbers: dict[str, int]) -> int | None:
    """Return the padding value, its 16 bits as an unsigned number, if it is outside what the stored bits hold."""
    padding, stored = numbers["padding"], numbers["bits_stored"]
    if stored >= 16 or numbers["bits_allocated"] != 16:
        return None
    if numbers["signed"]:
        low = -(1 << (stored - 1))
        as_signed = padding - (1 << 16) if padding >> 15 else padding
        return None if low <= as_signed < -low else padding
    return None if padding < 1 << stored else padding


def _check_fragments(stream: BinaryIO, layout: PixelLayout) -> None:
    """Walk the fragments of encapsulated pixel data (PS3.5 A.4) to the sequence delimiter; compare the first."""
    fragments = -1  # the first item is the offset table
    while len(item := stream.read(8)) == 8:
        group, element, length = struct.unpack("<HHI", item)
        if (group, element) == (0xFFFE, 0xE0DD):
            if fragments < layout.frames:
                raise PixelDamageError(f"truncated: {max(fragments, 0)} compressed frames, expected {layout.frames}")
            return
        if (group, element) != (0xFFFE, 0xE000):
            break
        fragments += 1
        end = stream.tell() + length
        if fragments == 1:
            found = _coded_size(stream.read(min(length, 4096)))
            if found is not None and found != (layout.rows, layout.columns):
                raise PixelDamageError(
                    f"the compressed image has {found[0]} x {found[1]} pixels, the header says {layout.rows} x "
                    f"{layout.columns}"
                )
        stream.seek(end)
    raise PixelDamageError("truncated: the compressed pixel data has no end")


def _coded_size(data: bytes) -> tuple[int, int] | None:
    """Return (rows, columns) of a JPEG, JPEG-LS or JPEG 2000 code stream; None where it does not tell."""
    if data[:4] == b"\xff\x4f\xff\x51" and len(data) >= 24:
        right, bottom, left, top = struct.unpack(">4I", data[8:24])
        return bottom - top, right - left
    if data[:2] != b"\xff\xd8":
        return None
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # fill
            place += 1
        elif marker in _FRAME_MARKERS:
            rows, columns = struct.unpack(">HH", data[place + 5 : place + 9])
            return (rows, columns) if rows and columns else None
        else:
            place += 2 + struct.unpack(">H", data[place + 2 : place + 4])[0]
    return None


def decode(path: Path, layout: PixelLayout, frames: Sequence[int]) -> Iterator[NDArray]:
    """Yield the stored values [rows, columns] of frames of one file, bits above the stored ones removed.

    Raises:
        InputError: the pixel data is broken, too short, or in a syntax that cannot be decoded.
    """
    shape = (layout.rows, layout.columns)
    planes = _decoded(path, layout, frames) if layout.start is None else _native(path, layout, frames)
    for plane in planes:
        if plane.shape != shape:
            raise InputError(f"{path}: pixels {plane.shape}, the header says {shape}")
        if layout.odd_padding is not None and (plane.view(np.uint16) == layout.odd_padding).any():
            raise InputError(
                f"{path}: PixelPaddingValue {layout.odd_padding} stands in the pixels, but does not fit into "
                f"{layout.bits_stored} stored bits; what the pixels mean is not clear"
            )
        yield _stored_bits(plane, layout)


def _native(path: Path, layout: PixelLayout, frames: Sequence[int]) -> Iterator[NDArray]:
    assert layout.start is not None
    dtype = np.dtype(f"{'>' if layout.big_endian else '<'}u{layout.bits_allocated // 8}")
    count = layout.rows * layout.columns
    try:
        with path.open("rb") as stream:
            for frame in frames:
                stream.seek(layout.start + frame * layout.plane_bytes)
                plane = np.fromfile(stream, dtype, count)
                if plane.size != count:
                    raise InputError(f"{path}: truncated while it was read")
                yield plane.reshape(layout.rows, layout.columns).astype(dtype.newbyteorder("="), copy=False)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def _decoded(path: Path, layout: PixelLayout, frames: Sequence[int]) -> Iterator[NDArray]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source: Path | Dataset = path
            if layout.parse_first:
                source = dcmread(path, force=True)
                source.file_meta = FileMetaDataset()
                source.file_meta.TransferSyntaxUID = UID(layout.syntax)
            if layout.syntax == DEFLATED:
                assert isinstance(source, Dataset)
                yield from _inflated(source, layout, frames)
                return
            yield from iter_pixels(source, indices=list(frames), raw=True)
    except Exception as error:  # decoders raise whatever a damaged byte leads to
        raise InputError(f"{path}: the pixel data cannot be decoded ({' '.join(str(error).split())[:200]})") from None


def _inflated(dataset: Dataset, layout: PixelLayout, frames: Sequence[int]) -> Iterator[NDArray]:
    expected = layout.plane_bytes * layout.frames
    if not expected <= len(dataset.PixelData) <= expected + layout.padding_bytes:
        raise ValueError(f"{len(dataset.PixelData)} bytes of pixel data, expected {expected}")
    shape = (layout.frames, layout.rows, layout.columns)
    planes = np.frombuffer(dataset.PixelData, f"<u{layout.bits_allocated // 8}", int(np.prod(shape))).reshape(shape)
    yield from (planes[frame] for frame in frames)


def _stored_bits(plane: NDArray, layout: PixelLayout) -> NDArray:
    """Cut the stored bits out of the allocated ones, which may carry overlays above or below (PS3.5 8.1.1)."""
    bits = plane.dtype.itemsize * 8
    unsigned, signed = np.dtype(f"u{plane.dtype.itemsize}"), np.dtype(f"i{plane.dtype.itemsize}")
    plane = plane.view(unsigned)
    if layout.bits_stored >= bits:
        return plane.view(signed) if layout.signed else plane
    high = layout.high_bit
    if layout.signed:
        return (plane << (bits - 1 - high)).view(signed) >> (bits - layout.bits_stored)
    plane = plane >> (high + 1 - layout.bits_stored) if high + 1 > layout.bits_stored else plane
    return plane & unsigned.type((1 << layout.bits_stored) - 1)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
