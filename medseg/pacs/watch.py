"""Watching an archive: new series that match rules are handed on, once each, however often this is started."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import date, timedelta

from medseg.errors import ConfigError, MedsegError, UnreachableError
from medseg.pacs.connection import Archive
from medseg.pacs.results import find_result
from medseg.pacs.search import Rules, SeriesEntry, find_wanted
from medseg.progress import Note, unheard

#: A series that failed is tried again after this long, then twice as long, and so on.
FIRST_PAUSE_S = 60.0
LONGEST_PAUSE_S = 86400.0


@dataclass(frozen=True, kw_only=True)
class _Pause:
    """Until when (of the clock) a series that failed is left alone, with how many instances, and for how long."""

    until: float
    seconds: float
    n_instances: int | None


@dataclass(kw_only=True)
class Watch:
    """Looks for series that match rules and have no result of a model version yet.

    A series is handed on when two looks in a row see the same number of instances, because an archive lists what it is
    still receiving; a single look (`once`) takes it as it is. One that fails is left alone until its number of
    instances changes, or for 1, 2, 4 ... minutes, at most a day: a full disk may have been the reason, and one series
    that the archive cannot send must not keep the others waiting.

    Attributes:
        archive: to watch.
        rules: which series.
        version: of the model, as `find_result` wants it.
        process: makes a result of a series and stores it; raises MedsegError where it cannot.
        days: studies of the last so many days only, today included; None: as the rules say.
        tell: told what is done and why something is not.
        failures: why series failed, by SeriesInstanceUID.
        processed: how many results were made.
        skipped: how many series had one already.
    """

    archive: Archive
    rules: Rules
    version: str
    process: Callable[[SeriesEntry], None]
    days: int | None = None
    tell: Note = unheard
    today: Callable[[], date] = date.today
    clock: Callable[[], float] = time.monotonic
    failures: dict[str, str] = field(default_factory=dict)
    processed: int = 0
    skipped: int = 0
    _counts: dict[str, int | None] = field(default_factory=dict)
    _finished: dict[str, int | None] = field(default_factory=dict)
    _pauses: dict[str, _Pause] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.days is not None and self.days < 1:
            raise ConfigError(f"--days {self.days}: expected 1 (today) or more")
        if self.days is not None and self.rules.since is not None:
            raise ConfigError("--days and --since both say where to begin; give one of them")

    def look(self, settled: bool) -> None:
        """Look once and hand on what is wanted, settled series only or all.

        Raises:
            ArchiveError: the archive refuses, or does not answer.
        """
        rules = self.rules
        if self.days is not None:
            rules = replace(rules, since=self.today() - timedelta(days=self.days - 1))
        for _, wanted in find_wanted(self.archive, rules):
            for series in wanted:
                self._consider(series, settled)

    def forever(self, interval_s: float, wait: Callable[[float], None] = time.sleep) -> None:
        """Look, wait, look again, until an exception such as KeyboardInterrupt ends it.

        An archive that does not answer is asked again at the next look.

        Raises:
            ArchiveError: the archive refuses.
        """
        while True:
            try:
                self.look(settled=True)
            except UnreachableError as error:
                self.tell(str(error))
            wait(interval_s)

    def _consider(self, series: SeriesEntry, settled: bool) -> None:
        uid, number = series.uid, series.n_instances
        if uid in self._finished and self._finished[uid] == number:
            return
        pause = self._pauses.get(uid)
        if pause is not None and pause.n_instances != number:
            pause = None
        if pause is not None and self.clock() < pause.until:
            return
        before = self._counts.get(uid, -1)
        self._counts[uid] = number
        if settled and before != number:
            return
        try:
            if (found := find_result(self.archive, series, self.version)) is not None:
                self.tell(f"series {uid}: skipped, series {found.uid} is its result by {self.version}")
                self.skipped += 1
            else:
                self.process(series)
                self.processed += 1
        except MedsegError as error:
            seconds = FIRST_PAUSE_S if pause is None else min(2 * pause.seconds, LONGEST_PAUSE_S)
            self._pauses[uid] = _Pause(until=self.clock() + seconds, seconds=seconds, n_instances=number)
            if isinstance(error, UnreachableError):
                raise
            self.failures[uid] = str(error)
            self.tell(f"failed: {error}")
            return
        self.failures.pop(uid, None)
        self._pauses.pop(uid, None)
        self._finished[uid] = number
