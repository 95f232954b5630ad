"""A small DICOMweb server on loopback that misbehaves as it is told; it says names and secrets wherever it can."""

import json
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

#: What a fault does: a status; ``drop`` (half the body that it announced); ``cut`` and ``cut end`` (half, or not quite
#: all, of a body whose length it did not announce); ``page`` (HTML); ``list`` (JSON of another shape); ``away`` (a
#: redirect); ``full`` and ``forget`` (nothing is stored, and that is said or not); ``twice`` (stored, but 503, and
#: what it has is refused, 409); None: the right answer.
Fault = int | str | None
MARK = "Zqxw"
BOUNDARY = "b0undary"
SHOWN = (
    "PatientName", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "Modality", "InstanceNumber",
    "SeriesDescription", "StudyDate", "StudyDescription",
)  # fmt: skip


class DicomwebServer:
    """Serves data sets; ``fault`` is asked with method, path and how often that pair came before.

    Attributes:
        url: of the services.
        objects: what it holds.
        requests: method and path of every request, in their order.
        secrets: Authorization headers that came.
        counts: number of instances that it says a series has, where that is not what it holds.
        retry_after: header of refusals, where not empty.
    """

    def __init__(self, objects: list[Dataset]):
        self.objects = objects
        self.fault: Callable[[str, str, int], Fault] = lambda method, path, before: None
        self.requests: list[tuple[str, str]] = []
        self.secrets: list[str] = []
        self.counts: dict[str, int] = {}
        self.retry_after = ""
        self.url = ""

    def rows(self, path: str) -> list[dict] | None:
        """Return the answer to a search or for metadata, None where the path is neither."""
        parts = path.strip("/").split("/")
        level = parts[-1]
        where = dict(zip(parts[0::2], parts[1::2], strict=False))
        keys = {"studies": "StudyInstanceUID", "series": "SeriesInstanceUID", "instances": "SOPInstanceUID"}
        keyword = keys.get(level, "SOPInstanceUID" if level == "metadata" else None)
        if keyword is None:
            return None
        rows = {}
        for ds in self.objects:
            if all(ds[keys[name]].value == uid for name, uid in where.items()):
                rows[str(ds[keyword].value)] = self._row(ds, level)
        return list(rows.values())

    def _row(self, ds: Dataset, level: str) -> dict:
        if level == "metadata":
            return {tag: element for tag, element in ds.to_json_dict().items() if tag != "7FE00010"}
        row = Dataset()
        for keyword in SHOWN:
            if keyword in ds:
                row.add(ds[keyword])
        row.ModalitiesInStudy = sorted({each.Modality for each in self.objects})
        held = sum(each.SeriesInstanceUID == ds.SeriesInstanceUID for each in self.objects)
        row.NumberOfSeriesRelatedInstances = self.counts.get(str(ds.SeriesInstanceUID), held)
        return row.to_json_dict()


class _Handler(BaseHTTPRequestHandler):
    dicomweb: DicomwebServer

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(body)

    def _answer(self, body: bytes) -> None:
        server, (path, _, query) = self.dicomweb, self.path.partition("?")
        before = server.requests.count((self.command, path))
        server.requests.append((self.command, path))
        server.secrets.append(self.headers.get("Authorization", ""))
        fault = server.fault(self.command, path, before)
        gossip = f"{MARK} {self.headers.get('Authorization', '')}"
        if isinstance(fault, int):
            self._send(fault, "text/plain", gossip.encode())
        elif fault == "page":
            self._send(200, "text/html", f"<html>{gossip}</html>".encode())
        elif fault == "list":
            self._send(200, "application/dicom+json", json.dumps([gossip]).encode())
        elif fault == "away":
            self._send(302, "text/plain", b"", Location="http://127.0.0.1:9/elsewhere")
        elif self.command == "POST":
            self._store(body, fault)
        elif (rows := server.rows(path)) is not None:
            if "offset=0" not in query and "metadata" not in path:
                rows = []
            self._send(200, "application/dicom+json", json.dumps(rows).encode(), fault)
        else:
            uid = path.split("/")[-1]
            found = next((ds for ds in server.objects if ds.SOPInstanceUID == uid), None)
            if found is None:
                self._send(404, "text/plain", gossip.encode())
                return
            with BytesIO() as file:
                found.save_as(file, enforce_file_format=True)
                part = file.getvalue()
            head = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
            kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
            self._send(200, kind, head + part + f"\r\n--{BOUNDARY}--".encode(), fault)

    def _store(self, body: bytes, fault: Fault) -> None:
        content = body.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0]
        ds = pydicom.dcmread(BytesIO(content))
        answer = Dataset()
        if fault == "twice":
            held = any(each.SOPInstanceUID == ds.SOPInstanceUID for each in self.dicomweb.objects)
            if not held:
                self.dicomweb.objects.append(ds)
            self._send(409 if held else 503, "text/plain", b"")
            return
        if fault == "full":
            failed = Dataset()
            failed.ReferencedSOPInstanceUID, failed.FailureReason = ds.SOPInstanceUID, 0xA700
            answer.FailedSOPSequence = [failed]
        elif fault != "forget":
            self.dicomweb.objects.append(ds)
        self._send(200, "application/dicom+json", answer.to_json().encode())

    def _send(self, code: int, kind: str, body: bytes, fault: Fault = None, **headers: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Warning", f'299 archive "{MARK} {self.headers.get("Authorization", "")}"')
        for name, value in headers.items():
            self.send_header(name, value)
        if self.dicomweb.retry_after and code >= 400:
            self.send_header("Retry-After", self.dicomweb.retry_after)
        if fault not in ("cut", "cut end"):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        end = {"drop": len(body) // 2, "cut": len(body) // 2, "cut end": -40}
        self.wfile.write(body[: end[fault]] if fault in end else body)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError | ssl.SSLError):  # who asked may go away
            super().handle_error(request, client_address)


@contextmanager
def dicomweb_serving(objects: list[Dataset], tls: ssl.SSLContext | None = None) -> Iterator[DicomwebServer]:
    """Serve data sets until the block ends, over TLS where a context is given."""
    server = DicomwebServer(objects)
    handler = type("Handler", (_Handler,), {"dicomweb": server})
    with _Server(("127.0.0.1", 0), handler) as http:
        if tls is not None:
            http.socket = tls.wrap_socket(http.socket, server_side=True)
        server.url = f"http{'s' if tls else ''}://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


def read_series(folder: Path) -> list[Dataset]:
    """Return the data sets of a folder by InstanceNumber."""
    return sorted((pydicom.dcmread(path) for path in folder.iterdir()), key=lambda ds: int(ds.InstanceNumber))
