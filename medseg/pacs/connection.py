"""The way to an archive: DICOMweb requests, repeated while a fault may pass, and errors told in one line.

Three services of PS3.18: search (QIDO-RS), retrieve (WADO-RS) and store (STOW-RS), by dicomweb-client. What an archive
says of patients is never looked at, and no message quotes what it answers.
"""

import logging
import ssl
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from medseg.errors import ArchiveError, ConfigError, InputError, UnreachableError
from medseg.pacs.credentials import Credentials, read_private
from medseg.progress import Note, unheard

if TYPE_CHECKING:
    import requests

T = TypeVar("T")
#: Answers that another moment may change (RFC 9110 15.5 and 15.6; RFC 6585 4).
TRANSIENT = {408, 429, 502, 503, 504}
#: What the commonest refusals mean to the one who asked.
REFUSALS = {
    401: "not logged in, or a wrong user, password or token; see docs/pacs.md for where credentials come from",
    403: "these credentials may not do that; ask who runs the archive",
    404: "there is no such thing; check --url, which ends where /studies would follow, and the UIDs",
    409: "it did not store what was sent; its log may say why",
    413: "it is too large for this archive; ask who runs it",
    415: "this archive does not take objects of this kind or transfer syntax",
}
#: Refusals of an object that was sent, not of who sends it; the next may be taken (PS3.18 10.5.3).
OF_THE_OBJECT = {409, 413, 415}
LONGEST_WAIT_S = 60.0
#: Results of a search asked for at once; archives may give fewer.
PAGE = 500
#: Bodies up to this size go with a Content-Length, so that a refusal is read before the connection ends.
WHOLE_BODY_BYTES = 1 << 32
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True, kw_only=True)
class Connection:
    """How to reach an archive.

    Attributes:
        url: of its DICOMweb services, up to where ``/studies`` follows; without user and password.
        credentials: None: none are sent.
        ca_bundle: PEM file of the authorities that its certificate is checked against; None: the usual ones.
        client_certificate: PEM file, for archives that ask who connects.
        client_key: PEM file of its key, readable by its owner only; None: it stands in the certificate's file.
        timeout_s: longest wait for a connection, and for the next bytes of an answer.
        retries: how often a request is repeated after a fault that may pass.

    Raises:
        ConfigError: a URL, file or number that cannot be used.
    """

    url: str
    credentials: Credentials | None = None
    ca_bundle: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    timeout_s: float = 60.0
    retries: int = 4

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            known = False
        if "@" in self.url:  # not shown: it may hold a password
            raise ConfigError("--url: holds an @; a user and password never stand in a URL, see docs/pacs.md")
        if not known or parts.query or parts.fragment or not self.url.isprintable() or " " in self.url:
            raise ConfigError("--url: expected http(s)://HOST[:PORT]/PATH of the DICOMweb services, and nothing behind")
        if not 0 < self.timeout_s <= 3600:
            raise ConfigError(f"--timeout {self.timeout_s:g}: expected seconds, more than 0 and at most 3600")
        if not 0 <= self.retries <= 20:
            raise ConfigError(f"--retries {self.retries}: expected 0 to 20")
        if self.client_key is not None and self.client_certificate is None:
            raise ConfigError("--client-key: belongs to a certificate; give --client-cert too")
        self._check_files()

    def _check_files(self) -> None:
        """Try certificates and keys now, or the first request would, and tell it as a fault of the archive."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for option, path in (("--ca-bundle", self.ca_bundle), ("--client-cert", self.client_certificate)):
            if path is not None and not path.is_file():
                raise ConfigError(f"{option} {path}: no such file, expected certificates in PEM")
        if self.ca_bundle is not None:
            try:
                context.load_verify_locations(self.ca_bundle)
            except OSError:
                raise ConfigError(f"--ca-bundle {self.ca_bundle}: no certificates in PEM in it") from None
        if self.client_certificate is not None:
            key = self.client_key or self.client_certificate
            read_private(key)
            try:
                context.load_cert_chain(self.client_certificate, key, password="")  # or it would ask for a passphrase
            except OSError:
                raise ConfigError(
                    f"--client-cert {self.client_certificate}: cannot be used with the key in {key}; expected PEM, a "
                    "key that belongs to the certificate, and no passphrase"
                ) from None

    @property
    def place(self) -> str:
        """What to call the archive in messages."""
        return self.url.rstrip("/")

    @property
    def tells_secrets(self) -> bool:
        """Tell whether the credentials would cross a network in clear text."""
        parts = urlsplit(self.url)
        return self.credentials is not None and parts.scheme == "http" and parts.hostname not in LOOPBACK


class Archive:
    """An archive that speaks DICOMweb.

    Args:
        connection: how to reach it.
        note: told of every request that is repeated, and of credentials sent in clear text.
        sleep: waits that many seconds.

    Raises:
        ConfigError: dicomweb-client is not installed.
    """

    def __init__(self, connection: Connection, note: Note = unheard, sleep: Callable[[float], None] = time.sleep):
        if find_spec("dicomweb_client") is None:
            raise ConfigError("medseg pacs needs dicomweb-client; install it: pip install 'medseg[pacs]'")
        import requests
        from dicomweb_client.web import DICOMwebClient

        # It logs what an archive says in a Warning header, and without a handler Python prints that.
        logging.getLogger("dicomweb_client").addHandler(logging.NullHandler())
        self.connection = connection
        self.sleep = sleep
        self._note = note
        session = requests.Session()
        session.trust_env = False  # or ~/.netrc, proxies and CA bundles of the environment would be used unasked
        session.max_redirects = 0  # or credentials would go where nobody sent them
        session.headers["Accept-Encoding"] = "identity"  # packing every image takes an archive longer than sending it
        session.auth = _authentication(connection.credentials)
        session.verify = True if connection.ca_bundle is None else str(connection.ca_bundle)
        if connection.client_certificate is not None:
            key = connection.client_key or connection.client_certificate
            session.cert = (str(connection.client_certificate), str(key))
        self._client = DICOMwebClient(
            connection.place,
            session=session,
            chunk_size=WHOLE_BODY_BYTES,
            permissive_uid=True,  # archives hold UIDs with leading zeros; what they may be is checked in `search`
            timeout=connection.timeout_s,
        )
        self._client.set_http_retry_params(retry=False)  # it would repeat every fault, passing or not
        if connection.tells_secrets:
            note(f"{connection.place}: credentials go there without encryption; use https")

    def search_studies(self, filters: Mapping[str, str], fields: Sequence[str]) -> list[dict]:
        """Return the rows (DICOM JSON, PS3.18 F.2) of all studies that match."""
        return self._search("0020000D", self._client.search_for_studies, filters, fields)

    def search_series(self, study: str | None, filters: Mapping[str, str], fields: Sequence[str]) -> list[dict]:
        """Return the rows of all series that match, of one study or (None) of all."""
        return self._search("0020000E", self._client.search_for_series, filters, fields, study_instance_uid=study)

    def search_instances(self, study: str, series: str) -> list[dict]:
        """Return the rows of all instances of a series."""
        search = self._client.search_for_instances
        return self._search("00080018", search, {}, (), study_instance_uid=study, series_instance_uid=series)

    def metadata(self, study: str, series: str) -> list[dict]:
        """Return everything but the pixels of a series, a row per instance."""
        return self._ask("metadata", lambda: _rows(self._client.retrieve_series_metadata(study, series)))

    def retrieve(self, study: str, series: str, instance: str) -> Any:
        """Return one object (a pydicom Dataset) in the transfer syntax it is stored in."""
        any_syntax = (("application/dicom", "*"),)
        return self._ask(
            "an instance",
            lambda: self._client.retrieve_instance(study, series, instance, media_types=any_syntax),
        )

    def store(self, dataset: Any) -> int | None:
        """Store one object; return None, or the FailureReason (PS3.18 I.2.2; 0: none said) of one that was not stored.

        Raises:
            InputError: the archive does not take this object.
        """
        return self._ask(
            "storing an instance",
            lambda: _failure(self._client.store_instances([dataset])),
            of_the_object=OF_THE_OBJECT,
        )

    def _search(
        self, key: str, search: Callable[..., list], filters: Mapping[str, str], fields: Sequence[str], **where: Any
    ) -> list[dict]:
        """Return every row, page by page: archives cap what they give at once, and some ignore the offset."""
        found: dict[str, dict] = {}
        while True:
            page = self._ask(
                "a search",
                lambda: _keyed(
                    search(
                        search_filters=dict(filters),
                        fields=list(fields) or None,
                        limit=PAGE,
                        offset=len(found),
                        **where,
                    ),
                    key,
                ),
            )
            new = {uid: row for uid, row in page.items() if uid not in found}
            if not new:
                return list(found.values())
            found.update(new)

    def _ask(self, what: str, act: Callable[[], T], of_the_object: Collection[int] = ()) -> T:
        """Do a request, again and again while a fault may pass, after 1, 2, 4 ... seconds or what the archive says.

        Raises:
            UnreachableError: the fault did not pass.
            InputError: a status that is `of_the_object` which was sent.
            ArchiveError: another fault that will not pass.
        """
        import requests

        for attempt in count(1):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # they would show values of headers
                    return act()
            except requests.RequestException as error:
                reason, may_pass, wait = _explain(error, self.connection)
                kind = InputError if _status(error) in of_the_object else ArchiveError
            except MemoryError:  # told by whoever starts us
                raise
            except Exception as error:  # an answer of any shape meets parsers that raise whatever it leads to
                raise ArchiveError(
                    f"{self.connection.place}: {what}: the answer cannot be understood ({type(error).__name__}); check "
                    "that --url leads to DICOMweb services"
                ) from None
            if not may_pass:
                raise kind(f"{self.connection.place}: {what}: {reason}")
            if attempt > self.connection.retries:
                raise UnreachableError(
                    f"{self.connection.place}: {what}: {reason}; asked {attempt} times, try again later"
                )
            seconds = min(wait if wait is not None else 2.0 ** (attempt - 1), LONGEST_WAIT_S)
            self._note(
                f"{self.connection.place}: {what}: {reason}; again in {seconds:g} s "
                f"({attempt} of {self.connection.retries})"
            )
            self.sleep(seconds)
        raise AssertionError("the loop ends by return or raise")


def _authentication(credentials: Credentials | None) -> Any:
    """Return what signs requests; the header of a password is in UTF-8 (RFC 7617 2.1)."""
    if credentials is None:
        return None
    if credentials.user:
        return (credentials.user.encode(), credentials.password.encode())
    token = credentials.token

    def sign(request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {token}"  # RFC 6750 2.1
        return request

    return sign


def _rows(answer: Any) -> list[dict]:
    """Return an answer that is a list of DICOM JSON objects, or raise TypeError."""
    if not isinstance(answer, list) or not all(isinstance(row, dict) for row in answer):
        raise TypeError("not a list of objects")
    return answer


def _keyed(answer: Any, key: str) -> dict[str, dict]:
    """Return rows by the UID that stands in an attribute."""
    return {str(row[key]["Value"][0]): row for row in _rows(answer)}


def _failure(answer: Any) -> int | None:
    """Return the FailureReason in the answer to a store, None where nothing failed."""
    refused = answer.get("FailedSOPSequence") or []
    return int(refused[0].get("FailureReason") or 0) if len(refused) else None


def _status(error: "requests.RequestException") -> int | None:
    return None if error.response is None else int(error.response.status_code)


def _explain(error: "requests.RequestException", connection: Connection) -> tuple[str, bool, float | None]:
    """Return what went wrong, whether it may pass, and the seconds that the archive asks to wait."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        code = error.response.status_code
        phrase = HTTPStatus(code).phrase if code in HTTPStatus._value2member_map_ else "unknown status"
        after = str(error.response.headers.get("Retry-After", ""))
        told = REFUSALS.get(code)
        return (
            f"{code} {phrase}{f': {told}' if told else ''}",
            code in TRANSIENT,
            float(after) if after.isdecimal() else None,
        )
    if isinstance(error, requests.exceptions.SSLError):
        reason = getattr(getattr(error.args[0], "reason", None) if error.args else None, "args", ("",))
        why = getattr(reason[0], "verify_message", "") if reason else ""
        return f"no TLS connection ({why or 'refused'}); see --ca-bundle and --client-cert", False, None
    if isinstance(error, requests.Timeout):
        return f"no answer within {connection.timeout_s:g} s", True, None
    if isinstance(error, requests.exceptions.ChunkedEncodingError | requests.exceptions.ContentDecodingError):
        return "the connection was dropped in the middle of an answer", True, None
    if isinstance(error, requests.ConnectionError):
        refused = "refused" in str(error).lower()
        return "the connection is refused" if refused else "the connection failed or was dropped", True, None
    if isinstance(error, requests.TooManyRedirects):
        return "the answer leads to another address; give that one as --url", False, None
    return f"the answer cannot be understood ({type(error).__name__}); check --url", False, None
