"""Credentials of worker, API and CLI for Temporal.

MTLS, an API key, or both, from files that are reloaded when they change.
"""

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from ipnext.errors import InvalidInput
from ipnext.payload_keys import FIELD, PayloadKeys, PayloadKeysFile

_LONGEST_KEY: Final = 16_384
_READ_ATTEMPTS: Final = 5
_READ_PAUSE_SECONDS: Final = 0.02
"""Files that are replaced one after the other do not fit for a moment."""


class TemporalSettings(BaseSettings):
    """Credentials for the Temporal server. Its address and namespace are TEMPORAL_ADDRESS and TEMPORAL_NAMESPACE."""

    model_config = SettingsConfigDict(env_prefix="IPNEXT_", frozen=True)

    temporal_tls_ca_file: Path | None = None
    """CA certificates (PEM) by which the Temporal server is verified; None: those of the system. With any of these
    TLS is on."""
    temporal_tls_certificate_file: Path | None = None
    """Certificate (PEM) that authenticates this process to the Temporal server. Read again when it changes."""
    temporal_tls_key_file: Path | None = None
    """Its private key (PEM)."""
    temporal_tls_server_name: str | None = None
    """Name in the Temporal server's certificate, if it differs from that of TEMPORAL_ADDRESS."""
    temporal_api_key_file: Path | None = None
    """File with the API key for Temporal, which is sent over TLS only. Read again when it changes."""
    temporal_payload_keys_file: Path | None = None
    """File with the keys by which payloads are encrypted before Temporal stores them (JSON). Read again when it
    changes. None: clear text."""


Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, repr=False, kw_only=True)
class TemporalAccess:
    """Parameters of a connection, all of them optional. It has no `repr`: that would show the key."""

    stamp: Stamp
    """Changes with the files."""
    authorities: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = None
    server_name: str | None = None
    api_key: str | None = None
    payload_keys: Callable[[], PayloadKeys] | None = None
    """Returns the keys of this moment, so that running workers follow their file."""

    @property
    def has_tls(self) -> bool:
        """Whether a parameter of TLS is set; if not, TEMPORAL_TLS... of the environment applies."""
        return any((self.authorities, self.certificate, self.server_name))


def temporal_settings() -> TemporalSettings:
    """Read them from the environment. InvalidInput names the invalid one."""
    try:
        return TemporalSettings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        msg = f"{name} (IPNEXT_{name.upper()}): {first['msg']}"
        raise InvalidInput(msg, field=name) from error


def stamp_of(settings: TemporalSettings) -> Stamp:
    """Return a stamp that changes with the files. InvalidInput if one is missing."""
    return tuple(_stat(name, path) for name, path in _files(settings).items())


def read_access(settings: TemporalSettings) -> TemporalAccess:
    """Read the files. InvalidInput if one is missing, or certificate and key do not fit."""
    certificate, key = settings.temporal_tls_certificate_file, settings.temporal_tls_key_file
    if (certificate is None) != (key is None):
        missing = "temporal_tls_key_file" if key is None else "temporal_tls_certificate_file"
        msg = f"{missing} (IPNEXT_{missing.upper()}): a client certificate needs its key; give both, or none"
        raise InvalidInput(msg, field=missing)
    stamp = stamp_of(settings)
    api_key = _api_key(settings.temporal_api_key_file)
    keys_file = settings.temporal_payload_keys_file
    name, authorities = settings.temporal_tls_server_name, settings.temporal_tls_ca_file
    own = (None, None) if certificate is None or key is None else _pair(certificate, key)
    return TemporalAccess(
        stamp=stamp,
        authorities=None if authorities is None else _read("temporal_tls_ca_file", authorities),
        certificate=own[0],
        key=own[1],
        server_name=name,
        api_key=api_key,
        payload_keys=None if keys_file is None else _payload_keys(keys_file).current,
    )


def _files(settings: TemporalSettings) -> dict[str, Path]:
    """Return the files of a connection; keys of payloads are followed by those who use them."""
    named = settings.model_dump(include=set(TemporalSettings.model_fields) - {FIELD})
    return {name: path for name, path in named.items() if isinstance(path, Path)}


@cache
def _payload_keys(path: Path) -> PayloadKeysFile:
    """Return the file of this process, so that one that becomes invalid stops no new connection. InvalidInput."""
    return PayloadKeysFile(path)


def _pair(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    """Return both files, once they fit."""
    for attempt in range(_READ_ATTEMPTS):
        pair = _read("temporal_tls_certificate_file", certificate), _read("temporal_tls_key_file", key)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key)
        except (OSError, ValueError) as error:
            if attempt + 1 == _READ_ATTEMPTS:
                msg = f"temporal_tls_certificate_file: {certificate} is no certificate of the key {key}: {error}"
                raise InvalidInput(msg, field="temporal_tls_certificate_file", value=str(certificate)) from error
            time.sleep(_READ_PAUSE_SECONDS)
        else:
            break
    return pair


def _api_key(path: Path | None) -> str | None:
    if path is None:
        return None
    text = _read("temporal_api_key_file", path).decode("ascii", "replace").strip()
    if not text or len(text) > _LONGEST_KEY or not text.isprintable() or not text.isascii():
        msg = (
            f"temporal_api_key_file (IPNEXT_TEMPORAL_API_KEY_FILE): {path} must hold one line of printable "
            "ASCII, the key"
        )
        raise InvalidInput(msg, field="temporal_api_key_file", value=str(path))
    return text


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _missing(name, path, error) from error


def _stat(name: str, path: Path) -> tuple[int, int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise _missing(name, path, error) from error
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


def _missing(name: str, path: Path, error: OSError) -> InvalidInput:
    return InvalidInput(f"{name} (IPNEXT_{name.upper()}): {path}: {error.strerror}", field=name, value=str(path))
