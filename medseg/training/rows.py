"""Tables that grow while training runs, and go on where a resumed training does."""

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from medseg.errors import InputError
from medseg.io.atomic import write_text


class Rows:
    """A CSV whose first column is the step; a row outlives this process, however it ends, when `write` returns."""

    def __init__(self, path: Path, columns: Sequence[str], step: int):
        """Open a table and cut it back to the rows up to ``step``; a new one gets its columns."""
        write_text(path, "".join([",".join(columns) + "\n", *_rows_until(path, step)]))
        self.path = path
        self.file = path.open("a", encoding="utf-8", newline="")
        self.csv = csv.writer(self.file, lineterminator="\n")

    def write(self, values: Sequence[float | int]) -> None:
        """Add a row; floats have six digits. InputError where the disk is full."""
        with self._full_disk_told():
            self.csv.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in values])
            self.file.flush()

    def sync(self) -> None:
        """Wait until all rows would survive a power cut, as the checkpoint does that is written next."""
        with self._full_disk_told():
            os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # only of a row that could not be written, which was told
            self.file.close()

    @contextmanager
    def _full_disk_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"{self.path}: cannot be written ({reason}); make room, and go on with --resume") from None


def _rows_until(path: Path, step: int) -> list[str]:
    """Return the whole rows of a table up to a step, without its header."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        lines = file.readlines()[1:]
    whole = [line for line in lines if line.endswith("\n") and line.split(",")[0].isdigit()]
    return [line for line in whole if int(line.split(",")[0]) <= step]
