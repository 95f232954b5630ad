"""Who we are to an archive. Secrets are never shown: not in messages, not by ``repr``."""

import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from medseg.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """User and password (HTTP basic), or a bearer token.

    Raises:
        ConfigError: neither of both, half of one, or characters that a header cannot carry.
    """

    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if bool(self.user) != bool(self.password) or bool(self.user) == bool(self.token):
            raise ConfigError("credentials: expected user and password, or a token alone")
        if ":" in self.user or not (self.user + self.password).isprintable():
            raise ConfigError("credentials: a user without colons and no control characters are expected")
        if not all("!" <= character <= "~" for character in self.token):  # a refusal further down would show it
            raise ConfigError("credentials: the token holds spaces, line breaks or characters that are not ASCII")


def read_credentials(path: Path) -> Credentials:
    """Read a TOML file with ``user`` and ``password``, or ``token``, that nobody but its owner may read.

    Raises:
        ConfigError: others may read it, it cannot be read, or holds something else.
    """
    text = read_private(path)
    try:
        entries = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):  # whose messages may quote the file
        raise ConfigError(f'{path}: no TOML, expected lines such as user = "..." and password = "..."') from None
    known = {"user", "password", "token"}
    if not set(entries) <= known or not all(isinstance(value, str) for value in entries.values()):
        raise ConfigError(f"{path}: expected user and password, or token, as text, and nothing else")
    try:
        return Credentials(**entries)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def read_private(path: Path) -> bytes:
    """Read a file that only its owner may read or write.

    Raises:
        ConfigError: others may, or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            if mode & 0o077:
                raise ConfigError(
                    f"{path}: others may read this file (mode {mode:03o}), expected 600; chmod 600 it, and change what "
                    "it held"
                )
            return file.read()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); expected a file that only you can read"
        ) from None
