"""`medseg pacs` against an archive that misbehaves: named errors, nothing half-stored, nobody named, no secret told."""

import base64
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import pydicom
import pytest
from cli_runs import Run, run_all, run_here
from dicom_fixtures import SERIES, write_series
from dicomweb_server import MARK, DicomwebServer, dicomweb_serving, read_series
from highdicom import VolumeGeometry
from pydicom.dataset import Dataset

import medseg.cli.pacs
from medseg.errors import ArchiveError, ConfigError, InputError, UnreachableError
from medseg.pacs.connection import Archive, Connection
from medseg.pacs.credentials import Credentials
from medseg.pacs.search import find_one_series
from medseg.pacs.transfer import fetch_series, send_object

Pacs = Callable[..., Run]
SECRET = "s3cret-ÄΩ"
STUDY = SERIES + ".9"


def mark(ds: Dataset, index: int) -> None:
    ds.PatientName, ds.PatientID, ds.StudyDate = f"{MARK}^Name", f"{MARK}-ID", "20240531"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, oblique_geometry: VolumeGeometry) -> Path:
    """A series of five oblique slices of a patient with a name."""
    folder = tmp_path_factory.mktemp("series") / "images"
    write_series(folder, oblique_geometry, edit=mark)
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[DicomwebServer]:
    with dicomweb_serving(read_series(folder)) as server:
        yield server


@pytest.fixture
def pacs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> Iterator[Pacs]:
    """Runs `medseg pacs` with a password; nothing printed or left behind may tell it, or name the patient."""
    monkeypatch.setenv("MEDSEG_PACS_USER", "tester")
    monkeypatch.setenv("MEDSEG_PACS_PASSWORD", SECRET)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    runs = []

    def run(*arguments: object) -> Run:
        runs.append(run_here(monkeypatch, capsys, "pacs", *arguments))
        return runs[-1]

    yield run
    for each in runs:
        assert not re.search(f"{MARK}|{SECRET}|Basic |tester", each.out + each.err, re.IGNORECASE), each
    assert not list(tmp_path.rglob(".tmp-*"))


def fetch(pacs: Pacs, server: DicomwebServer, out: Path, *more: object) -> Run:
    return pacs("fetch", "--url", server.url, "--series", SERIES, "-o", out, "--retries", 0, *more)


def of_instance(fault: int | str, number: int = 2, times: int = 99) -> Callable[[str, str, int], int | str | None]:
    """Return a fault in retrieving one instance of the series, the first so many times."""
    return lambda method, path, before: (
        fault if path.endswith(f"instances/{SERIES}.{number}") and before < times else None
    )


def test_a_series_comes_as_it_is(pacs: Pacs, server: DicomwebServer, folder: Path, tmp_path: Path) -> None:
    assert fetch(pacs, server, tmp_path / "out").code == 0
    got = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in got] == [f"000{n}.dcm" for n in range(1, 6)]
    expected = read_series(folder)
    assert [pydicom.dcmread(path) for path in got] == expected
    assert set(server.secrets) == {server.secrets[0]} and server.secrets[0].startswith("Basic ")
    again = fetch(pacs, server, tmp_path / "out")
    assert again.refusal().endswith("out: exists and is no empty folder; name another")


def test_a_dry_run_asks_and_writes_nothing(pacs: Pacs, server: DicomwebServer, tmp_path: Path) -> None:
    run = fetch(pacs, server, tmp_path / "out", "--dry-run")
    assert run.code == 0 and "would fetch 5 instances (CT)" in run.out
    assert not (tmp_path / "out").exists() and not any(SERIES + ".1" in path for _, path in server.requests)
    (tmp_path / "a.dcm").write_bytes(b"")
    run = pacs("send", "--url", server.url, tmp_path / "a.dcm", "--dry-run")
    assert "no DICOM object, and only those can be sent" in run.refusal()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (401, "401 Unauthorized: not logged in, or a wrong user, password or token; see docs/pacs.md"),
        (403, "403 Forbidden: these credentials may not do that"),
        (404, "404 Not Found: there is no such thing; check --url"),
        (500, "500 Internal Server Error"),
        (599, "599 unknown status"),
        (503, "503 Service Unavailable; asked 1 times, try again later"),
        ("drop", "the connection was dropped in the middle of an answer; asked 1 times"),
        ("page", "the answer cannot be understood ("),
        ("list", "the answer cannot be understood ("),
        ("away", "the answer leads to another address; give that one as --url"),
    ],
)
def test_faults_of_the_archive(
    pacs: Pacs, server: DicomwebServer, tmp_path: Path, fault: int | str, expected: str
) -> None:
    for place in ("/series", f"{SERIES}.4"):  # of a search, and in the middle of the transfer
        server.fault = lambda method, path, before, place=place: fault if path.endswith(place) else None
        line = fetch(pacs, server, tmp_path / "out").refusal()
        assert expected in line and line.startswith(f"error: {server.url}: ")
        assert not (tmp_path / "out").exists()


def test_a_server_that_is_down(pacs: Pacs) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/dicom-web"
        line = pacs("query", "--url", url, "--retries", 0).refusal()
    assert line == f"error: {url}: a search: the connection is refused; asked 1 times, try again later"


def test_a_server_that_says_nothing(pacs: Pacs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        line = pacs("query", "--url", url, "--retries", 0, "--timeout", 0.2).refusal()
    assert "no answer within 0.2 s; asked 1 times" in line


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("cut", f"asked for instance {SERIES}.2, and the archive sent another or a part; try again"),
        ("cut end", "(5 instances fetched, none kept): 0004.dcm: truncated: 128 bytes of pixel data, expected 154"),
    ],
)
def test_an_instance_cut_without_notice(
    pacs: Pacs, server: DicomwebServer, tmp_path: Path, fault: str, expected: str
) -> None:
    server.fault = of_instance(fault)
    assert expected in fetch(pacs, server, tmp_path / "out").refusal()
    assert not (tmp_path / "out").exists()


def test_counts_that_differ(pacs: Pacs, server: DicomwebServer, tmp_path: Path) -> None:
    server.counts[SERIES] = 6
    line = fetch(pacs, server, tmp_path / "out").refusal()
    assert f"series {SERIES}: the archive says 6 instances and lists 5; it may still be receiving them" in line
    assert fetch(pacs, server, tmp_path / "out", "--dry-run").refusal() == line
    assert not (tmp_path / "out").exists()


def test_a_slice_that_is_missing(pacs: Pacs, server: DicomwebServer, tmp_path: Path) -> None:
    del server.objects[2]
    line = fetch(pacs, server, tmp_path / "out").refusal()
    assert f"series {SERIES} (4 instances fetched, none kept): " in line and "tmp" not in line
    assert line.endswith("; medseg pacs fetch --any-geometry keeps them as they are")
    assert not (tmp_path / "out").exists()
    assert fetch(pacs, server, tmp_path / "out", "--any-geometry").code == 0
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_an_instance_of_another_series(pacs: Pacs, server: DicomwebServer, tmp_path: Path) -> None:
    right = server.objects[3]
    other = deepcopy(right)
    other.SeriesInstanceUID = "1.2.3"

    def swap(method: str, path: str, before: int) -> None:
        server.objects[3] = other if path.endswith(f"/{right.SOPInstanceUID}") else right

    server.fault = swap
    line = fetch(pacs, server, tmp_path / "out").refusal()
    assert f"asked for instance {right.SOPInstanceUID}, and the archive sent another" in line
    assert not (tmp_path / "out").exists()


def test_a_series_that_is_not_there(pacs: Pacs, server: DicomwebServer, tmp_path: Path) -> None:
    line = pacs("fetch", "--url", server.url, "--series", "1.2.3", "-o", tmp_path / "out").refusal()
    assert "0 series 1.2.3, expected one; look with medseg pacs query, or give --study too" in line


def test_passing_faults_are_repeated(server: DicomwebServer, tmp_path: Path) -> None:
    waits: list[float] = []
    notes: list[str] = []
    archive = Archive(Connection(url=server.url, retries=3), note=notes.append, sleep=waits.append)
    series = find_one_series(archive, SERIES)
    server.fault = of_instance("drop", times=2)
    assert fetch_series(archive, series, tmp_path / "a") == 5 and len(list((tmp_path / "a").iterdir())) == 5
    assert waits == [1.0, 2.0]
    assert notes[1].endswith("the connection was dropped in the middle of an answer; again in 2 s (2 of 3)")
    server.fault, server.retry_after = of_instance(429), "7"
    with pytest.raises(UnreachableError, match="429 Too Many Requests; asked 4 times"):
        fetch_series(archive, series, tmp_path / "b")
    assert waits[2:] == [7.0, 7.0, 7.0] and not (tmp_path / "b").exists()
    for code in (400, 401, 403, 404, 409, 500, 501):  # another moment changes nothing
        server.fault = of_instance(code, number=1)
        with pytest.raises(ArchiveError, match=str(code)) as refused:
            fetch_series(archive, series, tmp_path / "b")
        assert not isinstance(refused.value, UnreachableError)
    assert len(waits) == 5 and sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_what_libraries_log_is_not_printed(server: DicomwebServer) -> None:
    """In a process of its own, where Python prints what nobody handles; every answer has a Warning header."""
    (run,) = run_all([["pacs", "query", "--url", server.url]])
    assert run.code == 0 and SERIES in run.out and run.err == "1 series in 1 study\n"


def test_no_room_for_a_temporary_folder(
    pacs: Pacs, server: DicomwebServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(prefix: str) -> None:
        raise OSError(28, "No space left on device", "/somewhere")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    monkeypatch.setattr(medseg.cli.pacs, "_open_predictor", lambda *_: None)
    line = pacs("predict", "--url", server.url, "--series", SERIES, "-m", tmp_path, "-o", tmp_path).refusal()
    assert f"series {SERIES}: no temporary folder for its images (No space left on device); make room" in line


# -- storing --------------------------------------------------------------------------------------------------


def test_sending(pacs: Pacs, folder: Path, tmp_path: Path) -> None:
    with dicomweb_serving([]) as server:
        run = pacs("send", "--url", server.url, folder)
        assert run.code == 0 and "5 of 5 objects stored and found again" in run.out
        assert sorted(server.objects, key=lambda ds: int(ds.InstanceNumber)) == read_series(folder)


@pytest.mark.parametrize(
    ("fault", "code", "expected"),
    [
        ("full", 2, "the archive did not store it: it is full (failure reason A700)"),
        ("forget", 2, f"took 1 instances of series {SERIES} and lists 0; ask who runs the archive"),
        (409, 2, "IM0000.dcm: http://127.0.0.1:"),
        (413, 2, "storing an instance: 413 "),
    ],
)
def test_faults_of_storing(pacs: Pacs, folder: Path, fault: int | str, code: int, expected: str) -> None:
    with dicomweb_serving([]) as server:
        server.fault = lambda method, path, before: fault if method == "POST" else None
        line = pacs("send", "--url", server.url, folder / "IM0000.dcm", "--retries", 0).refusal()
        assert expected in line
        once = "full" if fault == "forget" else fault
        server.fault = lambda method, path, before: once if method == "POST" and before == 2 else None
        run = pacs("send", "--url", server.url, folder)
        assert run.code == 1 and "1 of 5 objects failed" in run.err and "4 of 5 objects stored and found" in run.out


def test_an_archive_that_refuses_what_it_has(folder: Path, tmp_path: Path) -> None:
    with dicomweb_serving([]) as server:
        server.fault = lambda method, path, before: "twice" if method == "POST" else None
        archive = Archive(Connection(url=server.url, retries=1), sleep=lambda seconds: None)
        for _ in range(2):  # stored, not told, and refused when it is asked again
            assert send_object(archive, folder / "IM0000.dcm").instance == f"{SERIES}.1"
        assert len(server.objects) == 1
        changed = pydicom.dcmread(folder / "IM0000.dcm")
        changed.SeriesDescription = "another object of this UID"
        changed.save_as(tmp_path / "changed.dcm")
        with pytest.raises(InputError, match="changed.dcm: .* 409 Conflict"):
            send_object(archive, tmp_path / "changed.dcm")


# -- who we are -----------------------------------------------------------------------------------------------


def test_credentials_from_a_file(pacs: Pacs, server: DicomwebServer, tmp_path: Path) -> None:
    file = tmp_path / "who.toml"
    file.write_text('token = "abc.DEF-123"\n')
    for mode in (0o644, 0o640, 0o604, 0o660):
        file.chmod(mode)
        run = pacs("query", "--url", server.url, "--credentials", file)
        assert f"who.toml: others may read this file (mode {mode:03o}), expected 600" in run.refusal()
        assert "abc" not in run.err
    assert server.requests == []
    file.chmod(0o600)
    assert pacs("query", "--url", server.url, "--credentials", file).code == 0
    assert set(server.secrets) == {"Bearer abc.DEF-123"}
    for text in ('token = "abc', 'token = "a c"', 'user = "u"', "token = 5", 'token = "t"\nuser = "u"\npassword = "p"',
                 'user = "a:b"\npassword = "abc"', 'tokn = "abc"', 'user = "u"\npassword = "ab\\nc"', ""):  # fmt: skip
        file.write_text(text)
        line = pacs("query", "--url", server.url, "--credentials", file).refusal()
        assert line.startswith(f"error: {file}: ") and "abc" not in line, text
    assert "cannot be read (No such file" in pacs("query", "--url", server.url, "--credentials", "/nowhere").refusal()


def test_credentials_are_not_shown() -> None:
    secret = Credentials(user="tester", password=SECRET)
    assert "tester" not in repr(secret) and SECRET not in repr(Connection(url="https://x/y", credentials=secret))


def test_a_password_of_any_letters(server: DicomwebServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Archive(Connection(url=server.url, credentials=Credentials(user="ü", password=SECRET))).search_studies({}, ())
    assert base64.b64decode(server.secrets[-1].removeprefix("Basic ")).decode() == f"ü:{SECRET}"
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login other password unasked\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    Archive(Connection(url=server.url, retries=0)).search_studies({}, ())
    assert server.secrets[-1] == ""


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"url": "https://tester:hidden@x/y"}, "holds an @; a user and password never stand in a URL"),
        ({"url": "ftp://x/y"}, "--url: expected http"),
        ({"url": "https:///y"}, "--url: expected http"),
        ({"url": "https://x:99999/y"}, "--url: expected http"),
        ({"url": "https://x/y?a=1"}, "--url: expected http"),
        ({"url": "https://x", "timeout_s": 0}, "--timeout 0: expected seconds"),
        ({"url": "https://x", "retries": -1}, "--retries -1: expected 0 to 20"),
        ({"url": "https://x", "ca_bundle": Path("/nowhere")}, "--ca-bundle /nowhere: no such file"),
        ({"url": "https://x", "client_key": Path("/nowhere")}, "--client-key: belongs to a certificate"),
    ],
)
def test_connections_that_make_no_sense(settings: dict, expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)) as refused:
        Connection(**settings)
    assert "hidden" not in str(refused.value)


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a certificate for loopback that nobody signed, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    what = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-nodes"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command = ["openssl", "req", "-x509", *curve, *what, "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    key.chmod(0o600)
    return certificate, key


def test_tls(pacs: Pacs, folder: Path, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    client, client_key = make_certificate(tmp_path, "client")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with dicomweb_serving(read_series(folder), context) as server:
        query = ["query", "--url", server.url, "--retries", 1]
        assert "no TLS connection (self-signed certificate); see --ca-bundle" in pacs(*query).refusal()
        assert pacs(*query, "--ca-bundle", certificate).code == 0
        assert "no TLS connection (self-signed certificate)" in pacs(*query, "--ca-bundle", client).refusal()
        assert (
            "IM0000.dcm: no certificates in PEM in it" in pacs(*query, "--ca-bundle", folder / "IM0000.dcm").refusal()
        )
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(client)
    with dicomweb_serving(read_series(folder), context) as server:
        query = ["query", "--url", server.url, "--retries", 0, "--ca-bundle", certificate]
        assert pacs(*query).code == 2
        assert pacs(*query, "--client-cert", client, "--client-key", client_key).code == 0
        line = pacs(*query, "--client-cert", client, "--client-key", key).refusal()
        assert "cannot be used with the key in" in line and "and no passphrase" in line
        client_key.chmod(0o640)
        line = pacs(*query, "--client-cert", client, "--client-key", client_key).refusal()
        assert "client.key: others may read this file (mode 640)" in line
    client_key.chmod(0o600)
    locked = tmp_path / "locked.key"
    encrypt = ["openssl", "pkey", "-in", client_key, "-aes256", "-passout", "pass:secret", "-out", locked]
    subprocess.run(encrypt, check=True, capture_output=True)
    locked.chmod(0o600)
    line = pacs(*query, "--client-cert", client, "--client-key", locked).refusal()
    assert "cannot be used with the key in" in line


def test_clear_text_is_warned_of() -> None:
    notes: list[str] = []
    who = Credentials(token="abc")
    for url in ("http://pacs.example/x", "https://pacs.example/x", "http://localhost:8042/x"):
        Archive(Connection(url=url, credentials=who), note=notes.append)
    assert notes == ["http://pacs.example/x: credentials go there without encryption; use https"]
