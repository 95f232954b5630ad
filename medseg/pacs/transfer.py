"""Series from an archive to a folder, and objects from files to an archive; both are checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medseg.errors import ArchiveError, GeometryError, InputError
from medseg.io.atomic import atomic_folder
from medseg.io.dicom_transfer import ObjectUids, check_series, read_to_send, save_received, uids_of
from medseg.pacs.connection import LONGEST_WAIT_S, Archive
from medseg.pacs.search import SeriesEntry, list_instances, text_of
from medseg.progress import Track, silent

#: FailureReason of an instance that was not stored (PS3.18 I.2.2); of others the number is told.
FAILURES = {0x0110: "it cannot process it", 0x0122: "it does not take this kind of object", 0xA700: "it is full",
            0xA900: "it finds it does not fit its kind", 0xC000: "it cannot understand it"}  # fmt: skip


def fetch_series(
    archive: Archive, series: SeriesEntry, target: Path, *, any_geometry: bool = False, track: Track = silent
) -> int:
    """Fetch a series into a folder, instance by instance; the folder appears whole and checked, or not at all.

    Args:
        archive: that has it.
        series: from a search.
        target: folder that does not exist, or is empty.
        any_geometry: take images too that are no even stack of slices.
        track: progress over instances.

    Returns:
        How many instances were fetched.

    Raises:
        InputError: the folder holds files; counts that differ; an instance that is not what was asked for, or damaged.
        GeometryError: a slice is missing, or the slices are no even stack for another reason.
        ArchiveError: the archive refuses, or does not answer.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"{target}: exists and is no empty folder; name another")
    listed = list_instances(archive, series)
    with atomic_folder(target) as folder:
        for number, uid in enumerate(track(listed, "fetching", total=len(listed)), 1):
            dataset = archive.retrieve(series.study_uid, series.uid, uid)
            got, wanted = uids_of(dataset), ObjectUids(study=series.study_uid, series=series.uid, instance=uid)
            if got != wanted:
                raise InputError(
                    f"series {series.uid}: asked for instance {uid}, and the archive sent another or a part; try again"
                )
            save_received(folder / f"{number:04d}.dcm", dataset)
        try:
            check_series(folder, any_geometry=any_geometry)
        except InputError as error:
            told = f"series {series.uid} ({len(listed)} instances fetched, none kept): {error}"
            if isinstance(error, GeometryError):
                raise GeometryError(f"{told}; medseg pacs fetch --any-geometry keeps them as they are") from None
            raise InputError(told) from None
    return len(listed)


def send_object(archive: Archive, path: Path) -> ObjectUids:
    """Store the object in a file; sending it again does no harm, for it has the same UID.

    Some archives refuse what they have, and a request that is repeated may have been carried out the first time: an
    object that the archive does not take counts as stored if it has the very same one.

    Returns:
        Its UIDs.

    Raises:
        InputError: the file cannot be read, or the archive does not take its object.
        ArchiveError: the archive refuses, or does not answer.
    """
    dataset = read_to_send(path)
    uids = uids_of(dataset)
    try:
        failure = archive.store(dataset)
    except InputError as error:
        if _has(archive, uids, dataset):
            return uids
        raise InputError(f"{path}: {error}") from None
    if failure is not None and not _has(archive, uids, dataset):
        known = (FAILURES[code] for code in (failure, failure & 0xFF00, failure & 0xF000) if code in FAILURES)
        why = next(known, "no reason that is known")
        raise InputError(f"{path}: the archive did not store it: {why} (failure reason {failure:04X})")
    return uids


def _has(archive: Archive, uids: ObjectUids, dataset: Any) -> bool:
    """Tell whether the archive has an object, equal in all that it says."""
    listed = _listed(archive, uids.study, uids.series)
    return uids.instance in listed and bool(archive.retrieve(uids.study, uids.series, uids.instance) == dataset)


def _listed(archive: Archive, study: str, series: str) -> set[str]:
    """Return the SOPInstanceUIDs that the archive lists of a series."""
    return {text_of(row, "00080018") for row in archive.search_instances(study, series)}


def verify_sent(archive: Archive, sent: Sequence[ObjectUids]) -> None:
    """Ask whether the archive lists what was sent, again and again for a while: some file it later.

    Raises:
        ArchiveError: it does not; or it refuses, or does not answer.
    """
    places = {(uids.study, uids.series): {u.instance for u in sent if u.series == uids.series} for uids in sent}
    for (study, series), instances in places.items():
        missing = instances
        for attempt in range(archive.connection.retries + 1):
            missing = instances - _listed(archive, study, series)
            if not missing:
                break
            if attempt < archive.connection.retries:
                archive.sleep(min(2.0**attempt, LONGEST_WAIT_S))
        if missing:
            raise ArchiveError(
                f"{archive.connection.place}: took {len(instances)} instances of series {series} and lists "
                f"{len(instances) - len(missing)}; ask who runs the archive"
            )
