"""Files that appear whole or not at all.

Everything medseg writes goes to a temporary name in the target folder, is flushed to the disk, and is then
renamed over the old file: whenever the process dies, the old file or the new one is there. What a killed process
leaves is called ``.tmp-<8 hex digits>-...``; no reader takes it for a result (`is_leftover`), and it can be deleted.
"""

import csv
import errno
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from medseg.errors import InputError

_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{8}-")


def is_leftover(path: Path) -> bool:
    """Tell by its name whether this is, or lies in, what a killed process did not finish."""
    return any(_TEMPORARY.match(part) for part in path.parts)


@contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """Give a temporary path beside ``target`` (same suffixes) that is renamed to it when the block ends well.

    The target's folder is made where it is missing. On an error the temporary file is removed and the
    target stays as it was.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    target = Path(target)
    temporary = _beside(target)
    with _one_line(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
            _fsync_folder(target.parent)
        finally:
            with suppress(OSError):  # the first error is the one to tell
                temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``target`` that takes its place when the block ends well.

    ``target`` must not exist or be empty by then; a block that removes the temporary folder leaves it as it is.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    temporary = _beside(target)
    with _one_line(target):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            if temporary.exists():
                _fsync_folder(temporary)
                temporary.replace(target)
                _fsync_folder(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _beside(target: Path) -> Path:
    # The end of the name, because writers go by the suffix; not all of it, because names have at most 255 bytes.
    return target.with_name(f".tmp-{secrets.token_hex(4)}-{target.name[-40:]}")


def _fsync_folder(folder: Path) -> None:
    """Flush a folder, so that a rename in it survives a power cut; some file systems cannot."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


@contextmanager
def _one_line(target: Path) -> Iterator[None]:
    """Tell an OSError as what could not be written and what to look at."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{target}: cannot be written ({error.strerror or error}); check the folder, its permissions and free space"
        ) from None


def check_folder(folder: Path | str) -> None:
    """Refuse a folder that could not be made or written, before time is spent on what should go there.

    Raises:
        InputError: it, or the part of its path that exists, is no writable folder.
    """
    folder = Path(folder).absolute()
    known = next(part for part in (folder, *folder.parents) if part.exists())
    if not known.is_dir() or not os.access(known, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: cannot be written ({known} is not a writable folder); name another folder")


def check_apart(target: Path | str, source: Path | str) -> None:
    """Refuse an output that would replace its input, or lie among the files of its input folder.

    Raises:
        InputError: ``target`` is ``source``, or lies in the folder ``source``.
    """
    target, source = Path(target), Path(source)
    place = target.resolve()
    if source.is_dir() and source.resolve() in (place, *place.parents):
        raise InputError(f"{target}: lies in the input folder {source}, where it would mix with the input; move it out")
    if source.is_file() and target.exists() and target.samefile(source):
        raise InputError(f"{target}: is the input itself, which is never changed; name another file")


def write_text(target: Path | str, text: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(target: Path | str, data: Any) -> None:
    """Write JSON (NaN as null, keys in the order given) whole or not at all."""
    write_text(target, json.dumps(_without_nan(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(target: Path | str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV table (floats to 6 digits, NaN as ``nan``, None as an empty cell) whole or not at all.

    A key that is not a column, or a column that a row lacks, is a programming error (ValueError, KeyError).
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = {column: row[column] for column in columns} | dict(row)
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in cells.items()})
    write_text(target, buffer.getvalue())


def _without_nan(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _without_nan(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_without_nan(value) for value in data]
    if hasattr(data, "item") and getattr(data, "ndim", None) == 0:
        data = data.item()
    if isinstance(data, float) and (data != data or data in (float("inf"), float("-inf"))):
        return None
    return data
