"""A real archive for tests: Orthanc with its DICOMweb plugin, started on loopback and stopped afterwards."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
USER, PASSWORD = "tester", "Zqxw-secret-äß"
START_SECONDS = 60


@dataclass(frozen=True)
class Orthanc:
    """A running archive: ``url`` of its DICOMweb services, ``rest`` of its own interface."""

    url: str
    rest: str

    def ask(self, path: str, method: str = "GET", **more: object) -> requests.Response:
        """Ask Orthanc's own interface, which has nothing to do with DICOMweb."""
        auth = (USER.encode(), PASSWORD.encode())
        answer = requests.request(method, self.rest + path, auth=auth, timeout=30, **more)  # type: ignore[arg-type]
        answer.raise_for_status()
        return answer

    def empty(self) -> None:
        """Delete every patient."""
        for patient in self.ask("/patients").json():
            self.ask(f"/patients/{patient}", "DELETE")


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def orthanc_running(folder: Path) -> Iterator[Orthanc]:
    """Start Orthanc with everything in a folder of its own; skip the test where it is not installed."""
    program = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None or not PLUGIN.exists():
        pytest.skip("needs Orthanc and its DICOMweb plugin (Debian: orthanc, orthanc-dicomweb)")
    port = free_port()
    settings = {
        "Name": "medseg tests",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings), encoding="utf-8")
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log, cwd=folder)
    archive = Orthanc(url=f"http://127.0.0.1:{port}/dicom-web", rest=f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with suppress(requests.ConnectionError):
                archive.ask("/system")
                break
            assert process.poll() is None and time.monotonic() < deadline, (folder / "orthanc.log").read_text()
            time.sleep(0.05)
        yield archive
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Orthanc for a whole session; empty it (`Orthanc.empty`) before a test that counts."""
    with orthanc_running(tmp_path_factory.mktemp("orthanc")) as archive:
        yield archive
