"""Which series are wanted, which have a result already, and that each is handed on once."""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_fixtures import SERIES, ct_dataset, save, write_series
from dicomweb_server import DicomwebServer, dicomweb_serving, read_series
from highdicom import VolumeGeometry
from network_fixtures import LABELS
from pydicom.dataset import Dataset

from medseg.errors import ArchiveError, ConfigError, InputError, UnreachableError
from medseg.io import write_instances
from medseg.io.dicom_context import read_dicom_context
from medseg.io.dicom_seg_labels import predicted_by
from medseg.pacs.connection import Archive, Connection
from medseg.pacs.results import find_result
from medseg.pacs.search import Rules, SeriesEntry, StudyEntry, find_one_series, find_wanted, parse_date
from medseg.pacs.watch import Watch
from medseg.values.instances import InstanceSet

VERSION = "0.1.0 model 0123456789ab"


@pytest.fixture
def server() -> Iterator[DicomwebServer]:
    with dicomweb_serving([]) as server:
        yield server


@pytest.fixture
def archive(server: DicomwebServer) -> Archive:
    return Archive(Connection(url=server.url, retries=0))


@pytest.fixture
def add(server: DicomwebServer, oblique_geometry: VolumeGeometry, tmp_path: Path) -> Callable[..., None]:
    """Adds images of a series to the archive."""

    def add(series: str, slices: range = range(5), **attributes: str) -> None:
        for index in slices:
            ds = ct_dataset(oblique_geometry, index, np.zeros((7, 11), np.uint16), series)
            ds.StudyInstanceUID, ds.StudyDate, ds.StudyDescription = series + ".9", "20240531", "Abdomen native"
            for keyword, value in attributes.items():
                setattr(ds, keyword, value)
            save(ds, tmp_path / "one.dcm")
            server.objects.append(pydicom.dcmread(tmp_path / "one.dcm"))

    return add


# -- rules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        ({}, ["1.1", "1.2", "1.3"]),
        ({"modality": "CT"}, ["1.1", "1.3"]),
        ({"min_slices": 5}, ["1.1", "1.2"]),
        ({"description": "LIVER|thorax$"}, ["1.1", "1.3"]),  # found anywhere, upper and lower case alike
        ({"description": "^native|head"}, ["1.2"]),
        ({"description": "abdomen"}, ["1.1", "1.3"]),  # of the study
        ({"since": date(2024, 6, 1)}, ["1.3"]),
        ({"until": date(2024, 5, 31)}, ["1.1"]),
        ({"since": date(2024, 5, 31), "until": date(2024, 5, 31)}, ["1.1"]),
        ({"study_uid": "1.2.9"}, ["1.2"]),
        ({"study_uid": "7"}, []),
    ],
)
def test_which_series_are_wanted(archive: Archive, add: Callable[..., None], rules: dict, wanted: list[str]) -> None:
    """The server matches nothing itself: whatever it gives is looked at again."""
    add("1.1", SeriesDescription="ax liver")
    add("1.2", SeriesDescription="x", Modality="MR", StudyDate="", StudyDescription="Head")
    add("1.3", range(4), SeriesDescription="Thorax", StudyDate="20240601")
    found = [series.uid for _, several in find_wanted(archive, Rules(**rules)) for series in several]
    assert sorted(found) == wanted


def test_what_an_archive_is_asked(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(archive, "search_studies", lambda filters, fields: asked.append(filters) or [])
    day = date(2024, 5, 31)
    for rules in (
        {},
        {"since": day},
        {"until": day},
        {"since": day, "until": day, "modality": "CT", "study_uid": "1.2"},
    ):
        assert list(find_wanted(archive, Rules(**rules))) == []
    assert asked == [
        {},
        {"StudyDate": "20240531-"},
        {"StudyDate": "-20240531"},
        {"StudyDate": "20240531-20240531", "ModalitiesInStudy": "CT", "StudyInstanceUID": "1.2"},
    ]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"study_uid": "../1"}, "--study '../1': expected a UID"),
        ({"description": "("}, "--description '(': no regular expression"),
        ({"modality": "C*"}, "--modality 'C*': expected a DICOM modality"),
        ({"min_slices": -1}, "--min-slices -1: expected 0 or more"),
        ({"since": date(2024, 6, 1), "until": date(2024, 5, 1)}, "--since 2024-06-01 is after --until 2024-05-01"),
    ],
)
def test_rules_that_make_no_sense(rules: dict, expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        Rules(**rules)


def test_dates() -> None:
    assert parse_date("20240531", "--since") == parse_date("2024-05-31", "--since") == date(2024, 5, 31)
    for text in ("2024-02-30", "31.5.2024", "", "20240531-", "today"):
        with pytest.raises(ConfigError, match="--since .*: expected a date such as 2024-05-31"):
            parse_date(text, "--since")


def test_pages_of_a_search(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """Archives cap pages where they like; one that ignores the offset does not keep us for ever."""
    rows = [{"0020000D": {"Value": [f"1.{n}"]}} for n in range(7)]
    for cap, heeds in ((3, True), (100, True), (100, False), (3, False)):

        def search(offset: int = 0, cap: int = cap, heeds: bool = heeds, **_: object) -> list:
            return rows[offset if heeds else 0 :][:cap]

        monkeypatch.setattr(archive._client, "search_for_studies", search)
        found = [row["0020000D"]["Value"][0] for row in archive.search_studies({}, ())]
        assert found == [f"1.{n}" for n in range(7 if heeds or cap > 7 else cap)]


def test_what_is_odd_in_an_answer(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"0020000E": {"Value": ["1.2"]}, "00200011": {"Value": ["x"]}, "0008103E": {"Value": ["a\x1b[2Jb\nc"]}}
    monkeypatch.setattr(archive._client, "search_for_series", lambda offset, **_: [] if offset else [row])
    entry = find_one_series(archive, "1.2", "1.1")
    assert entry == SeriesEntry(study_uid="1.1", uid="1.2", modality="", number=None, description="a [2Jb c",
                                n_instances=None)  # fmt: skip
    with pytest.raises(ArchiveError, match="lists something without a UID"):
        find_one_series(archive, "1.2")
    with pytest.raises(ConfigError, match="--series '1/2': expected a UID"):
        find_one_series(archive, "1/2")


# -- results --------------------------------------------------------------------------------------------------


def test_how_a_result_is_recognised(
    archive: Archive, server: DicomwebServer, oblique_geometry: VolumeGeometry, tmp_path: Path
) -> None:
    write_series(tmp_path / "images", oblique_geometry)
    context = read_dicom_context(tmp_path / "images")
    mask = np.zeros((5, 7, 11), bool)
    mask[1:3, 2:5, 3:7] = True
    found = InstanceSet.from_masks([(1, mask)], oblique_geometry, LABELS)

    def seg(name: str, version: str, instances: InstanceSet = found) -> Dataset:
        write_instances(tmp_path / "seg.dcm", instances, context=context, algorithms=[predicted_by(name, version)])
        return pydicom.dcmread(tmp_path / "seg.dcm")

    images = read_series(tmp_path / "images")
    result = seg("medseg", VERSION)
    elsewhere = seg("medseg", VERSION)
    elsewhere.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"
    unsaid = seg("medseg", VERSION)
    del unsaid.ReferencedSeriesSequence
    others = [seg("medseg", "0.1.0 model ba9876543210"), seg("other", VERSION), elsewhere, unsaid]
    for number, ds in enumerate(others):
        ds.SeriesInstanceUID, ds.SOPInstanceUID = f"1.2.7.{number}", f"1.2.8.{number}"
    server.objects += [*images, *others]
    series = find_one_series(archive, SERIES)
    assert find_result(archive, series, VERSION) is None
    server.objects.append(result)
    entry = find_result(archive, series, VERSION)
    assert entry is not None and entry.uid == result.SeriesInstanceUID
    nothing = seg("medseg", "0.1.0 model aaaaaaaaaaaa", InstanceSet.from_masks([], oblique_geometry, LABELS))
    server.objects.append(nothing)  # that nothing was found is a result too
    assert find_result(archive, series, "0.1.0 model aaaaaaaaaaaa") is not None


# -- watching -------------------------------------------------------------------------------------------------


class Made:
    """Notes what is handed on; refuses some of it."""

    def __init__(self) -> None:
        self.uids: list[str] = []
        self.refused: set[str] = set()

    def __call__(self, series: SeriesEntry) -> None:
        self.uids.append(series.uid)
        if series.uid in self.refused:
            raise InputError(f"series {series.uid}: bad")


def test_a_series_is_handed_on_once_it_is_whole(archive: Archive, add: Callable[..., None]) -> None:
    made = Made()
    watch = Watch(archive=archive, rules=Rules(), version=VERSION, process=made, clock=lambda: 0.0)
    add("1.1", range(2))
    watch.look(settled=True)
    add("1.1", range(2, 4))  # still coming in
    watch.look(settled=True)
    assert made.uids == []
    for _ in range(3):
        watch.look(settled=True)
    assert made.uids == ["1.1"]
    add("1.2")
    made.refused = {"1.2"}
    for _ in range(4):
        watch.look(settled=True)
    assert made.uids == ["1.1", "1.2"] and watch.failures == {"1.2": "series 1.2: bad"} and watch.processed == 1
    made.refused = set()
    add("1.2", range(1), SOPInstanceUID="1.2.77")  # another slice came: it is worth another attempt
    watch.look(settled=True)
    watch.look(settled=True)
    assert made.uids == ["1.1", "1.2", "1.2"] and watch.failures == {} and watch.processed == 2
    once = Made()
    Watch(archive=archive, rules=Rules(), version=VERSION, process=once).look(settled=False)
    assert sorted(once.uids) == ["1.1", "1.2"]


def test_a_series_that_failed_is_tried_again(archive: Archive, add: Callable[..., None]) -> None:
    """A full disk, here or there, fails every series that comes meanwhile; none of them may be lost."""
    add("1.1")
    made, now = Made(), [0.0]
    made.refused = {"1.1"}
    watch = Watch(archive=archive, rules=Rules(), version=VERSION, process=made, clock=lambda: now[0])
    tried = []
    for minute in range(20):
        now[0] = 60.0 * minute
        watch.look(settled=False)
        if len(made.uids) > len(tried):
            tried.append(minute)
    assert tried == [0, 1, 3, 7, 15] and list(watch.failures) == ["1.1"]
    made.refused, now[0] = set(), 60.0 * 31
    for _ in range(2):
        watch.look(settled=False)
    assert len(made.uids) == 6 and watch.processed == 1 and watch.failures == {}


@pytest.mark.parametrize("error", [UnreachableError("no answer"), ArchiveError("404")])
def test_one_series_that_cannot_be_had_does_not_stop_the_others(
    archive: Archive, add: Callable[..., None], error: ArchiveError
) -> None:
    add("1.2")
    add("1.1", StudyDate="20240530")  # looked at after the other
    asked = []

    def process(series: SeriesEntry) -> None:
        asked.append(series.uid)
        if series.uid == "1.2":
            raise error

    watch = Watch(archive=archive, rules=Rules(), version=VERSION, process=process, clock=lambda: 0.0)
    for _ in range(3):
        with suppress(UnreachableError):
            watch.look(settled=False)
    assert asked == ["1.2", "1.1"]


def test_an_archive_that_is_away_for_a_while(
    archive: Archive, server: DicomwebServer, add: Callable[..., None]
) -> None:
    add("1.1")
    made, told, waits = Made(), [], []
    watch = Watch(archive=archive, rules=Rules(), version=VERSION, process=made, tell=told.append)

    def wait(seconds: float) -> None:
        waits.append(seconds)
        away = {1: 503, 2: "drop"}.get(len(waits))
        server.fault = lambda method, path, before: away
        if len(waits) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch.forever(7.0, wait)
    assert waits == [7.0] * 5 and made.uids == ["1.1"]
    assert [re.search("503|dropped", line).group() for line in told] == ["503", "dropped"]  # type: ignore[union-attr]
    server.fault = lambda method, path, before: 401
    with pytest.raises(ArchiveError, match="401"):
        watch.forever(7.0, wait)


def test_the_last_days(archive: Archive, add: Callable[..., None]) -> None:
    made = Made()
    add("1.1", StudyDate="20240530")
    add("1.2", StudyDate="20240531")
    today = [date(2024, 5, 31)]
    watch = Watch(archive=archive, rules=Rules(), version=VERSION, process=made, days=1, today=lambda: today[0])
    watch.look(settled=False)
    assert made.uids == ["1.2"]
    add("1.3", StudyDate="20240601")
    today[0] = date(2024, 6, 1)
    watch.look(settled=False)
    assert made.uids == ["1.2", "1.3"]
    with pytest.raises(ConfigError, match="--days 0: expected 1"):
        Watch(archive=archive, rules=Rules(), version=VERSION, process=made, days=0)
    with pytest.raises(ConfigError, match="--days and --since"):
        Watch(archive=archive, rules=Rules(since=today[0]), version=VERSION, process=made, days=2)


def test_a_study_without_a_date_fits_no_dates() -> None:
    study = StudyEntry(uid="1.1", date=None, description="", modalities=())
    assert Rules().fits_study(study) and not Rules(since=date(2024, 1, 1)).fits_study(study)
