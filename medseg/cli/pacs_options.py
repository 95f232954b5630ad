"""Options of every `medseg pacs` verb: how to reach the archive, and which series are wanted."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.cli import console
from medseg.errors import ConfigError

if TYPE_CHECKING:
    from medseg.pacs.connection import Archive
    from medseg.pacs.credentials import Credentials
    from medseg.pacs.search import Rules

#: Where credentials are looked for, unless --credentials names a file.
USER, PASSWORD, TOKEN = "MEDSEG_PACS_USER", "MEDSEG_PACS_PASSWORD", "MEDSEG_PACS_TOKEN"

URL = Annotated[
    str, typer.Option("--url", help="DICOMweb services of the archive: http(s)://HOST[:PORT]/PATH, without a user.")
]
CREDENTIALS = Annotated[
    Path | None,
    typer.Option(
        "--credentials",
        metavar="FILE",
        help="TOML file with user and password, or token, readable by its owner only (mode 600). Else the environment: "
        f"{USER} and {PASSWORD}, or {TOKEN}; else none are sent.",
    ),
]
CA_BUNDLE = Annotated[
    Path | None, typer.Option("--ca-bundle", metavar="PEM", help="Authorities to trust, in place of the usual ones.")
]
CLIENT_CERT = Annotated[
    Path | None, typer.Option("--client-cert", metavar="PEM", help="Certificate, where the archive asks for one.")
]
CLIENT_KEY = Annotated[
    Path | None, typer.Option("--client-key", metavar="PEM", help="Its key (mode 600), where in a file of its own.")
]
TIMEOUT = Annotated[float, typer.Option("--timeout", help="Longest wait for the next bytes of an answer, seconds.")]
RETRIES = Annotated[int, typer.Option("--retries", help="How often a request is repeated after a fault that may pass.")]
DRY_RUN = Annotated[
    bool, typer.Option("--dry-run", help="Search and check, say what would be done, and do nothing of it.")
]
STUDY = Annotated[str | None, typer.Option("--study", metavar="UID", help="StudyInstanceUID.")]
MODALITY = Annotated[str, typer.Option("--modality", help="Series of this modality, such as CT.")]
DESCRIPTION = Annotated[
    str,
    typer.Option(
        "--description",
        metavar="REGEX",
        help="Regular expression found in the series' or study's description, upper and lower case alike.",
    ),
]
SINCE = Annotated[
    str | None, typer.Option("--since", metavar="DATE", help="StudyDate from then on, such as 2024-05-31.")
]
UNTIL = Annotated[str | None, typer.Option("--until", metavar="DATE", help="StudyDate up to then.")]
MIN_SLICES = Annotated[int, typer.Option("--min-slices", help="Series of at least this many instances.")]


def open_archive(
    url: str,
    credentials: Path | None,
    ca_bundle: Path | None,
    client_cert: Path | None,
    client_key: Path | None,
    timeout: float,
    retries: int,
) -> "Archive":
    """Return the archive that the options name; nothing is asked of it yet.

    Raises:
        ConfigError: an option that cannot be used.
    """
    from medseg.pacs.connection import Archive, Connection

    connection = Connection(
        url=url,
        credentials=_credentials(credentials),
        ca_bundle=ca_bundle,
        client_certificate=client_cert,
        client_key=client_key,
        timeout_s=timeout,
        retries=retries,
    )
    return Archive(connection, note=console.warn)


def _credentials(path: Path | None) -> "Credentials | None":
    from medseg.pacs.credentials import Credentials, read_credentials

    if path is not None:
        return read_credentials(path)
    user, password, token = (os.environ.get(name, "") for name in (USER, PASSWORD, TOKEN))
    if not (user or password or token):
        return None
    try:
        return Credentials(user=user, password=password, token=token)
    except ConfigError as error:
        raise ConfigError(f"{USER}, {PASSWORD}, {TOKEN}: {error}") from None


def read_rules(
    study: str | None, modality: str, description: str, since: str | None, until: str | None, min_slices: int
) -> "Rules":
    """Return what the options say of the series wanted.

    Raises:
        ConfigError: an option that makes no sense.
    """
    from medseg.pacs.search import Rules, parse_date

    return Rules(
        study_uid=study or "",
        since=parse_date(since, "--since") if since else None,
        until=parse_date(until, "--until") if until else None,
        modality=modality.strip().upper(),
        description=description,
        min_slices=min_slices,
    )
