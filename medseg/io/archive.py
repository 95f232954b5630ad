"""Zip archives: unpacked into a temporary folder that is removed again, nothing outside it, bounded in size."""

import re
import shutil
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from medseg.errors import InputError

MAX_FILES = 100_000
MAX_BYTES = 64 << 30
#: An archive of more than this may not unpack to more than this many times its own size: images never do.
BOMB_BYTES = 256 << 20
BOMB_RATIO = 200
#: Left free on the disk that holds the temporary folder.
SPARE_BYTES = 256 << 20


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Give a folder with the archive's files; it is removed when the block ends.

    Errors that name a file in that folder are rewritten to name it inside the archive.

    Raises:
        InputError: no zip, damaged, encrypted, too large, or names that lead out of the folder.
    """
    with tempfile.TemporaryDirectory(prefix="medseg-") as name:
        folder = Path(name)
        try:
            with zipfile.ZipFile(path) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
                _check_members(path, members, folder)
                for member in members:
                    archive.extract(member, folder)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise InputError(f"{path}: the archive is damaged or encrypted ({error}); copy it again") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be unpacked ({error.strerror or error})") from None
        try:
            yield folder
        except InputError as error:
            raise type(error)(str(error).replace(f"{folder}/", f"{path}/").replace(str(folder), str(path))) from None


def _check_members(path: Path, members: list[zipfile.ZipInfo], folder: Path) -> None:
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or re.match("[A-Za-z]:", str(name)):
            raise InputError(f"{path}: member {member.filename!r} leads out of the archive; this archive is not safe")
    names = Counter(str(PurePosixPath(member.filename)) for member in members)  # a/./b is unpacked to a/b
    if twice := [name for name, count in names.items() if count > 1]:
        raise InputError(f"{path}: {len(twice)} names stand twice in the archive, such as {twice[0]!r}; pack it again")
    total = sum(member.file_size for member in members)
    size = path.stat().st_size
    if total > max(BOMB_BYTES, BOMB_RATIO * size):
        raise InputError(
            f"{path}: {size} bytes that would unpack to {total / 2**20:.0f} MiB, more than {BOMB_RATIO} times as much; "
            "this archive is not safe"
        )
    limit = min(MAX_BYTES, max(shutil.disk_usage(folder).free - SPARE_BYTES, 0))
    if len(members) > MAX_FILES or total > limit:
        raise InputError(
            f"{path}: {len(members)} files of {total / 2**20:.0f} MiB unpacked, at most {MAX_FILES} files and "
            f"{limit / 2**20:.0f} MiB are taken; unpack it yourself and give the folder"
        )
