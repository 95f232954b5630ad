"""What an archive holds: studies and series by date, modality and description. No patient is asked for or kept."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from medseg.errors import ArchiveError, ConfigError, InputError
from medseg.labels import one_line
from medseg.pacs.connection import Archive
from medseg.progress import Track, silent

_UID = re.compile(r"[0-9.]{1,64}")
_STUDY_FIELDS = ("StudyDescription", "ModalitiesInStudy")
_SERIES_FIELDS = ("SeriesDescription", "NumberOfSeriesRelatedInstances")


@dataclass(frozen=True, kw_only=True)
class SeriesEntry:
    """A series as an archive lists it.

    Attributes:
        study_uid, uid: StudyInstanceUID and SeriesInstanceUID.
        modality: DICOM modality, such as ``CT``.
        number: SeriesNumber, None where there is none.
        description: SeriesDescription, on one line.
        n_instances: how many objects the archive says it has; None where it does not say.
    """

    study_uid: str
    uid: str
    modality: str
    number: int | None
    description: str
    n_instances: int | None


@dataclass(frozen=True, kw_only=True)
class StudyEntry:
    """A study as an archive lists it; ``date`` is StudyDate, None where there is none."""

    uid: str
    date: date | None
    description: str
    modalities: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Which series are wanted; what is None or empty is no rule.

    Attributes:
        study_uid: of one study.
        since, until: StudyDate, both included.
        modality: such as ``CT``.
        description: regular expression, found anywhere in the SeriesDescription or the StudyDescription, upper and
            lower case alike.
        min_slices: instances that a series has at least.

    Raises:
        ConfigError: a rule that makes no sense.
    """

    study_uid: str = ""
    since: date | None = None
    until: date | None = None
    modality: str = ""
    description: str = ""
    min_slices: int = 0

    def __post_init__(self) -> None:
        if self.study_uid:
            check_uid(self.study_uid, "--study")
        if self.since and self.until and self.since > self.until:
            raise ConfigError(f"--since {self.since} is after --until {self.until}; expected the earlier date first")
        if not re.fullmatch(r"[A-Z0-9_ ]{0,16}", self.modality):
            raise ConfigError(f"--modality {one_line(self.modality)!r}: expected a DICOM modality such as CT")
        try:
            re.compile(self.description)
        except re.error as error:
            raise ConfigError(f"--description {self.description!r}: no regular expression ({error})") from None
        if self.min_slices < 0:
            raise ConfigError(f"--min-slices {self.min_slices}: expected 0 or more")

    def fits_study(self, study: StudyEntry) -> bool:
        """Tell whether series of a study may be wanted; archives may ignore what they were asked to match."""
        if self.study_uid and study.uid != self.study_uid:
            return False
        if (self.since or self.until) and study.date is None:
            return False
        return not (
            study.date is not None
            and ((self.since and study.date < self.since) or (self.until and study.date > self.until))
        )

    def fits(self, study: StudyEntry, series: SeriesEntry) -> bool:
        """Tell whether a series of a study that fits is wanted."""
        if self.modality and series.modality != self.modality:
            return False
        if (series.n_instances or 0) < self.min_slices:
            return False
        texts = (series.description, study.description)
        return not self.description or any(re.search(self.description, text, re.IGNORECASE) for text in texts)


def parse_date(text: str, option: str) -> date:
    """Return a date written as 2024-05-31 or 20240531.

    Raises:
        ConfigError: it is none.
    """
    for layout in ("%Y-%m-%d", "%Y%m%d"):
        try:
            return datetime.strptime(text, layout).date()
        except ValueError:
            continue
    raise ConfigError(f"{option} {one_line(text)!r}: expected a date such as 2024-05-31")


def check_uid(uid: str, option: str) -> None:
    """Refuse a text that is no UID (PS3.5 9.1); zeros in front of its numbers are let pass.

    Raises:
        ConfigError: digits and dots, at most 64, were expected.
    """
    if not _UID.fullmatch(uid):
        raise ConfigError(f"{option} {one_line(uid)[:80]!r}: expected a UID of digits and dots, at most 64")


def find_studies(archive: Archive, rules: Rules) -> list[StudyEntry]:
    """Return the studies that may hold what is wanted, latest first.

    Raises:
        ArchiveError: the archive refuses, or does not answer.
    """
    filters = {}
    if rules.study_uid:
        filters["StudyInstanceUID"] = rules.study_uid
    if rules.since or rules.until:  # PS3.4 C.2.2.2.5: range matching, open at either end
        filters["StudyDate"] = "-".join(f"{day:%Y%m%d}" if day else "" for day in (rules.since, rules.until))
    if rules.modality:
        filters["ModalitiesInStudy"] = rules.modality
    rows = archive.search_studies(filters, _STUDY_FIELDS)
    studies = [_study(row, archive) for row in rows]
    return sorted(
        (study for study in studies if rules.fits_study(study)), key=lambda s: (s.date or date.min, s.uid), reverse=True
    )


def find_series(archive: Archive, study_uid: str) -> list[SeriesEntry]:
    """Return all series of a study, by number.

    Raises:
        ArchiveError: the archive refuses, or does not answer.
    """
    rows = archive.search_series(study_uid, {}, _SERIES_FIELDS)
    entries = [_series(row, study_uid, archive) for row in rows]
    return sorted(entries, key=lambda s: (s.number is None, s.number or 0, s.uid))


def find_wanted(
    archive: Archive, rules: Rules, track: Track = silent
) -> Iterator[tuple[StudyEntry, list[SeriesEntry]]]:
    """Yield each study that holds wanted series, with these; asks once for each study.

    Raises:
        ArchiveError: the archive refuses, or does not answer.
    """
    studies = find_studies(archive, rules)
    for study in track(studies, "asking for series", total=len(studies)):
        wanted = [series for series in find_series(archive, study.uid) if rules.fits(study, series)]
        if wanted:
            yield study, wanted


def find_one_series(archive: Archive, uid: str, study_uid: str | None = None) -> SeriesEntry:
    """Return the series of a SeriesInstanceUID; archives that cannot search all series want the study's UID too.

    Raises:
        ConfigError: no UID.
        InputError: the archive has no such series, or has it in several studies.
        ArchiveError: the archive refuses, or does not answer.
    """
    check_uid(uid, "--series")
    if study_uid is not None:
        check_uid(study_uid, "--study")
    rows = archive.search_series(study_uid, {"SeriesInstanceUID": uid}, _SERIES_FIELDS)
    found = [series for row in rows if (series := _series(row, study_uid or "", archive)).uid == uid]
    if len(found) != 1:
        raise InputError(
            f"{archive.connection.place}: {len(found)} series {uid}, expected one; look with medseg pacs query"
            + ("" if study_uid else ", or give --study too")
        )
    return found[0]


def list_instances(archive: Archive, series: SeriesEntry) -> list[str]:
    """Return the SOPInstanceUIDs of a series, by InstanceNumber.

    Raises:
        InputError: the archive lists another number of instances than it says the series has.
        ArchiveError: the archive refuses, or does not answer.
    """
    rows = archive.search_instances(series.study_uid, series.uid)
    listed = sorted((_number(row, "00200013") or 0, _uid(row, "00080018", archive)) for row in rows)
    if series.n_instances is not None and series.n_instances != len(listed):
        raise InputError(
            f"series {series.uid}: the archive says {series.n_instances} instances and lists {len(listed)}; it may "
            "still be receiving them, try again later"
        )
    if not listed:
        raise InputError(f"series {series.uid}: the archive lists no instance; try again later")
    return [uid for _, uid in listed]


def _study(row: dict, archive: Archive) -> StudyEntry:
    day = text_of(row, "00080020")
    try:
        when = parse_date(day, "StudyDate")
    except ConfigError:
        when = None
    return StudyEntry(
        uid=_uid(row, "0020000D", archive),
        date=when,
        description=text_of(row, "00081030"),
        modalities=tuple(one_line(str(value)) for value in values_of(row, "00080061")),
    )


def _series(row: dict, study_uid: str, archive: Archive) -> SeriesEntry:
    return SeriesEntry(
        study_uid=study_uid or _uid(row, "0020000D", archive),
        uid=_uid(row, "0020000E", archive),
        modality=text_of(row, "00080060"),
        number=_number(row, "00200011"),
        description=text_of(row, "0008103E"),
        n_instances=_number(row, "00201209"),
    )


def values_of(row: dict, tag: str) -> list[Any]:
    """Return the values of an attribute in DICOM JSON (PS3.18 F.2.2); empty where it is absent or odd."""
    element = row.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return [value for value in values if value is not None] if isinstance(values, list) else []


def text_of(row: dict, tag: str) -> str:
    """Return the first value of an attribute as one line of text; empty where there is none."""
    return one_line(str(next(iter(values_of(row, tag)), ""))).strip()


def _number(row: dict, tag: str) -> int | None:
    text = text_of(row, tag)
    return int(text) if text.isdecimal() and len(text) <= 12 else None  # IS has at most 12 characters (PS3.5 6.2)


def _uid(row: dict, tag: str, archive: Archive) -> str:
    uid = text_of(row, tag)
    if not _UID.fullmatch(uid):
        raise ArchiveError(f"{archive.connection.place}: lists something without a UID; ask who runs the archive")
    return uid
