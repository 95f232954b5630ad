"""Headers of NRRD and MetaImage files as text, and whether the voxels behind them are all there.

ITK hands out memory that it never filled where a compressed MetaImage is damaged, checks no size before it takes
memory, and misses some checksums of NRRD; so the voxels are measured before it reads them.
"""

import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from medseg.errors import InputError

#: A header that is longer than this is none.
MAX_HEADER = 16 << 20
CHUNK = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Header:
    """The fields of a header, names in lower case, and the byte behind it."""

    path: Path
    nrrd: bool
    fields: dict[str, str]
    #: File names that follow ``LIST`` in the header.
    listed: tuple[str, ...]
    end: int


def read_header(path: Path) -> Header:
    """Read the text of a header.

    Raises:
        InputError: neither NRRD nor MetaImage, or a file that cannot be opened.
    """
    try:
        with path.open("rb") as stream:
            return _parse(path, stream)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror})") from None


def _parse(path: Path, stream: BinaryIO) -> Header:
    start = stream.read(200)
    nrrd = start.startswith(b"NRRD")
    if not nrrd and b"=" not in start:
        raise InputError(f"{path}: neither an NRRD nor a MetaImage header was found")
    stream.seek(0)
    fields: dict[str, str] = {}
    listed: list[str] = []
    pieces = False
    while stream.tell() < MAX_HEADER and (line := stream.readline(MAX_HEADER)):
        text = line.decode("latin-1").strip()
        if nrrd and not text:
            break
        if pieces:
            listed.append(text)
            continue
        name, separator, value = text.partition(":" if nrrd else "=")
        if not separator or text.startswith("#") or (nrrd and value.startswith("=")):  # := is a free-text pair
            continue
        name, value = name.strip().lower(), value.strip()
        fields[name] = value
        if name in ("elementdatafile", "data file", "datafile"):
            pieces = value.upper().startswith("LIST")
            if not nrrd and not pieces:
                break
    return Header(path=path, nrrd=nrrd, fields=fields, listed=tuple(n for n in listed if n), end=stream.tell())


def check_voxels(header: Header, expected: int, slices: int) -> None:
    """Measure the voxels before memory is taken for them.

    Args:
        header: from `read_header`.
        expected: bytes of all voxels.
        slices: number of slices; less than one of them may follow as padding.

    Raises:
        InputError: too few bytes or too many, a wrong checksum, or a packing that cannot be checked.
    """
    path, fields = header.path, header.fields
    if header.nrrd:
        target = fields.get("data file", fields.get("datafile"))
        packing = fields.get("encoding", "raw").lower()
        skip = fields.get("byte skip", fields.get("byteskip", "0"))
        if fields.get("line skip", fields.get("lineskip", "0")) != "0":
            raise InputError(f"{path}: lines to skip before the voxels, expected a header that is all text")
    else:
        target = fields.get("elementdatafile", "")
        target = None if target.upper() == "LOCAL" else target
        packing = "zlib" if fields.get("compresseddata", "False").lower() == "true" else "raw"
        packing = "ascii" if fields.get("binarydata", "True").lower() == "false" else packing
        skip = fields.get("headersize", "0")
        if packing == "zlib" and target is None and not fields.get("compresseddatasize", "").isdigit():
            raise InputError(f"{path}: compressed voxels without CompressedDataSize; write the image again")
    if packing in ("ascii", "text", "txt", "hex"):
        if not header.nrrd:
            raise InputError(f"{path}: voxels written as text, expected binary ones")
        return  # read number by number, and counted
    if packing not in ("raw", "gzip", "gz", "zlib"):
        raise InputError(f"{path}: voxels packed as {packing!r}, expected raw, gzip or text")
    if packing != "raw" and skip != "0":
        raise InputError(f"{path}: {skip} bytes to skip before compressed voxels, expected none")
    if "\0" in (target or "") + "".join(header.listed):
        raise InputError(f"{path}: the name of the file with its voxels is broken")
    files = [path] if target is None else [path.parent / name for name in _pieces(header, target)]
    if packing != "raw" and len(files) > 1:
        raise InputError(f"{path}: compressed voxels in {len(files)} files, expected one")
    start = (header.end if target is None else 0) + max(int(skip) if skip.lstrip("-").isdigit() else 0, 0)
    stated = fields.get("compresseddatasize", "")
    try:
        if packing == "zlib" and stated.isdigit() and int(stated) != files[0].stat().st_size - start:
            found = files[0].stat().st_size - start
            raise InputError(f"{path}: {found} bytes of compressed voxels, but CompressedDataSize {stated}; truncated?")
        length = sum(_length(file, start, packing) for file in files)
    except EOFError:
        raise InputError(f"{path}: truncated: the compressed voxels end too early; copy the file again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: the compressed voxels are damaged ({error}); copy the file again") from None
    except OSError as error:
        raise InputError(f"{path}: its voxels cannot be opened ({error.filename}: {error.strerror})") from None
    if length < expected:
        raise InputError(f"{path}: truncated: {length} bytes of voxels, expected {expected}; copy the file again")
    if length - expected >= max(expected // slices, 1) and not skip.startswith("-"):
        raise InputError(
            f"{path}: {length} bytes of voxels, expected {expected}; it holds more than the header describes"
        )


def _pieces(header: Header, target: str) -> list[str]:
    """Return the names of the files that hold the voxels: one, a list, or a pattern with first, last and step."""
    if header.listed:
        return list(header.listed)
    words = target.split()
    if len(words) >= 3 and "%" in words[0]:
        numbers = [int(word) for word in words[1:4] if word.lstrip("-").isdigit()]
        first, last, step = (*numbers, 1)[:3] if len(numbers) >= 2 else (0, -1, 1)
        try:
            return [words[0] % n for n in range(first, last + 1, step or 1)]
        except (TypeError, ValueError):
            return []
    return [target]


def _length(file: Path, start: int, packing: str) -> int:
    """Return the bytes of voxels in a file; what is compressed is unpacked to its end, and checked."""
    with file.open("rb") as stream:
        if packing == "raw":
            return max(stream.seek(0, 2) - start, 0)
        stream.seek(start)
        if packing in ("gzip", "gz"):
            with gzip.GzipFile(fileobj=stream) as unpacked:
                return _count(unpacked.read)
        unpacker = zlib.decompressobj()
        total = 0
        while data := stream.read(CHUNK):
            while data and not unpacker.eof:
                total += len(unpacker.decompress(data, CHUNK))
                data = unpacker.unconsumed_tail
        if not unpacker.eof:
            raise EOFError
        return total


def _count(read: Callable[[int], bytes]) -> int:
    return sum(len(chunk) for chunk in iter(lambda: read(CHUNK), b""))
