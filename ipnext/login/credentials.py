"""Credentials of this user, by the address of the API: one file that only the user can read.

`ipnext dev` stores the path of its admin key and its process, `ipnext login` a key or token. The entry of a login goes
before that of `ipnext dev`, until it is deleted. A credential is sent only to the address that it was stored for; an
API key only after the API there has proved that it knows it (`ipnext.client.credential`).
"""

import contextlib
import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import platformdirs

from ipnext.errors import InvalidInput
from ipnext.login.running_platform import Life, life_of, name_this_process

FILE: Final = "credentials.json"
_PLATFORM: Final = "ipnext dev "
"""Prefix of the address in the name of an entry that `ipnext dev` stored: a login at it does not replace that."""
_PORTS: Final = {"http": 80, "https": 443}


def credentials_file(given: Path | None = None) -> Path:
    """Return the file of this user, or the one of the settings."""
    return given or Path(platformdirs.user_config_dir("ipnext", appauthor=False)) / FILE


class StoredCredential(NamedTuple):
    """A stored credential for an API."""

    text: str
    is_of_platform: bool
    """Whether `ipnext dev` stored it: then the API is at exactly this port."""


def find_credential(url: str, file: Path | None = None) -> StoredCredential | None:
    """Return the credential for an API, or None.

    InvalidInput if the file is not the user's, or others may read the key. The credential of a platform that has ended
    counts as none, and its entry is deleted.
    """
    entry = find_entry(url, file)
    if entry is None:
        return None
    if isinstance(entry.get("credential"), str):
        return StoredCredential(str(entry["credential"]), is_of_platform=False)
    named = entry.get("key_file")
    if not isinstance(named, str) or life_of(entry) is not Life.RUNS:
        with contextlib.suppress(InvalidInput):  # the file can't be written: the entry is invalid nevertheless
            strike_off_ended(file)
        return None
    text = read_key(Path(named))
    return None if text is None else StoredCredential(text, is_of_platform=True)


def strike_off_ended(file: Path | None = None) -> None:
    """Delete the keys of killed platforms. InvalidInput if the file can't be written."""
    found = credentials_file(file)
    if any(_has_ended(entry) for entry in _read(found).values()):
        with changing(found) as entries:
            _drop_ended(entries)


def _drop_ended(entries: dict[str, Any]) -> None:
    for origin in [origin for origin, entry in entries.items() if _has_ended(entry)]:
        del entries[origin]


def _has_ended(entry: object) -> bool:
    return isinstance(entry, Mapping) and "key_file" in entry and life_of(entry) is Life.ENDED


def find_entry(url: str, file: Path | None = None) -> Mapping[str, Any] | None:
    """Return the whole stored entry for an API, or None. InvalidInput if the file is not JSON."""
    entries = _read(credentials_file(file))
    entry = entries.get(_name_in(entries, url))
    return entry if isinstance(entry, Mapping) else None


def _name_in(entries: Mapping[str, Any], url: str) -> str:
    """Return the name of an API's entry: that of a login if there is one, else of `ipnext dev`."""
    login = origin_of(url)
    return login if login in entries else _PLATFORM + login


def read_key(file: Path) -> str | None:
    """Return the key in a file; None if there is no such file. InvalidInput if others than its owner may read it."""
    try:
        with file.open(encoding="utf-8") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            text = opened.read(512).strip()
    except OSError:
        return None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        msg = f"the key file {file} may be read by others than its owner; `chmod 600` it, and replace the key"
        raise InvalidInput(msg, field="api_key")
    return text or None


def write_private(file: Path, text: str) -> None:
    """Write a file that only this user can read, in one step."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
        Path(name).replace(file)
    finally:
        Path(name).unlink(missing_ok=True)  # only of a failed write; otherwise the file was renamed


def note_key_file(url: str, key_file: Path, file: Path | None = None) -> None:
    """Store the path of the key for an API that this process serves.

    After the process has ended, the key is not sent there. A login at the address of a former platform and entries of
    killed platforms are deleted.
    """
    with changing(credentials_file(file)) as entries:
        _drop_ended(entries)
        entries.pop(origin_of(url), None)
        entries[_PLATFORM + origin_of(url)] = _entry_of_platform(key_file)


def note_credential(url: str, entry: Mapping[str, Any], file: Path | None = None) -> None:
    """Store a credential for an API: `credential` and the fields that renew it."""
    with changing(credentials_file(file)) as entries:
        entries[origin_of(url)] = dict(entry)


def forget_credential(url: str, file: Path | None = None) -> Mapping[str, Any] | None:
    """Delete the entry that counts for an API, and return it; None if there was none."""
    with changing(credentials_file(file)) as entries:
        entry = entries.pop(_name_in(entries, url), None)
        return entry if isinstance(entry, Mapping) else None


def forget_key_file(url: str, key_file: Path, file: Path | None = None) -> None:
    """Delete the entry of an API's key that this process stored, if it is still there."""
    name = _PLATFORM + origin_of(url)
    with changing(credentials_file(file)) as entries:
        if entries.get(name) == _entry_of_platform(key_file):
            del entries[name]


def _entry_of_platform(key_file: Path) -> dict[str, Any]:
    return {"key_file": str(key_file), **name_this_process()}


def origin_of(url: str) -> str:
    """Return scheme, host and port of an address, the key of a stored credential. `localhost` is 127.0.0.1."""
    parts = urlsplit(str(url))
    host = "127.0.0.1" if parts.hostname in {"localhost", None} else parts.hostname
    return f"{parts.scheme}://{host}:{parts.port or _PORTS.get(parts.scheme, 0)}"


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open(encoding="utf-8") as opened:
            mode, text = os.fstat(opened.fileno()).st_mode, opened.read()
    except OSError:
        return {}
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        msg = f"{file} may be read by others than its owner; `chmod 600` it, and log in again"
        raise InvalidInput(msg, field="credentials_file", value=str(file))
    try:
        entries = json.loads(text)
    except ValueError as error:
        msg = f"{file} is not JSON ({error}); remove it, and `ipnext login` or start `ipnext dev` again"
        raise InvalidInput(msg, field="credentials_file", value=str(file)) from error
    return entries if isinstance(entries, dict) else {}


@contextlib.contextmanager
def changing(file: Path) -> Iterator[dict[str, Any]]:
    """Lock and yield the entries by origin, to change them. An error leaves the file unchanged."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (file.parent / f".{file.name}.lock").open("a")
    except OSError as error:
        raise _not_writable(file, error) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        entries = _read(file)
        yield entries
        write_entries(file, entries)


def write_entries(file: Path, entries: Mapping[str, Any]) -> None:
    """Write the file, in one step. InvalidInput if it can't be written, as on a full disk."""
    try:
        write_private(file, json.dumps(entries, indent=2, sort_keys=True))
    except OSError as error:
        raise _not_writable(file, error) from error


def _not_writable(file: Path, error: OSError) -> InvalidInput:
    msg = f"credentials_file (IPNEXT_CREDENTIALS_FILE): {file} can't be written: {error.strerror}"
    return InvalidInput(msg, field="credentials_file", value=str(file))
