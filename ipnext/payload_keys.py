"""Keys by which payloads are encrypted before Temporal stores them: one encrypts, all decrypt.

A file of them is JSON: `{"encrypt": "2026-12", "keys": {"2026-12": "BASE64 of 32 bytes"}}`. Used by
`ipnext.temporal_access` and `ipnext.payloads`.
"""

import json
import re
import time
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from ipnext.errors import InvalidInput

FIELD: Final = "temporal_payload_keys_file"
KEY_BYTES: Final = 32
MOST_KEYS: Final = 64
LOOK_SECONDS: Final = 1.0
"""Interval between two checks of the file."""
MAX_BYTES: Final = 2**16
LONGEST_NAME: Final = 40
"""Shorter than a key in base64 or hexadecimal digits, so that a key in the place of a name is refused unseen."""
_NAME: Final = re.compile(rf"[A-Za-z0-9._-]{{1,{LONGEST_NAME}}}")
_FORM: Final = f'{{"encrypt": NAME or null, "keys": {{NAME: "BASE64 of {KEY_BYTES} bytes"}}}}'


@dataclass(frozen=True, repr=False)
class PayloadKeys:
    """The keys of a file. It has no `repr`: that would show them."""

    encrypt: str | None
    """Name of the key that encrypts; None: payloads are only decrypted."""
    keys: Mapping[str, bytes]
    """Name -> key."""


class PayloadKeysFile:
    """The keys of a file, which is read again when it changes. Use it from any thread."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Raise InvalidInput if the file is invalid."""
        self._path = path
        self._clock = clock
        self._stamp = _stamp(path)
        self._keys = read_payload_keys(path)
        self._looked_at = clock()

    def current(self) -> PayloadKeys:
        """Return the keys. While the file is invalid, the former ones stay in use, with a warning."""
        if self._clock() - self._looked_at >= LOOK_SECONDS:
            self._looked_at = self._clock()
            self._look()
        return self._keys

    def _look(self) -> None:
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        try:
            self._keys, self._stamp = read_payload_keys(self._path), stamp
        except InvalidInput as error:
            import structlog  # noqa: PLC0415 - not of the base dependencies, which the client has alone

            structlog.get_logger().warning("temporal_payload_keys_not_in_use", error=error.message)


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        stat = path.stat()
    except OSError:  # reading it says why
        return 0, 0, 0
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


def read_payload_keys(path: Path) -> PayloadKeys:
    """Read a file of keys. InvalidInput names what is wrong, and shows no key."""
    given = _content(path)
    if not isinstance(given, dict) or given.keys() != {"encrypt", "keys"} or not isinstance(given["keys"], dict):
        raise _invalid(path, "has another form")
    keys = {_name(path, name): _key(path, name, text) for name, text in given["keys"].items()}
    if not 0 < len(keys) <= MOST_KEYS:
        raise _invalid(path, f"keys: {len(keys)} of them; allowed: 1 to {MOST_KEYS}")
    encrypt = given["encrypt"]
    if encrypt is not None and (not isinstance(encrypt, str) or encrypt not in keys):
        raise _invalid(path, f"encrypt: is none of the keys; allowed: {', '.join(keys)}, null")
    return PayloadKeys(encrypt, keys)


def _content(path: Path) -> Any:
    """Return the JSON of a file."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise _invalid(path, f"is larger than {MAX_BYTES} bytes")
        return json.loads(content, object_pairs_hook=partial(_unique, path))
    except OSError as error:
        raise _invalid(path, str(error.strerror)) from error
    except (ValueError, RecursionError) as error:
        raise _invalid(path, "is no JSON") from error


def _unique(path: Path, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object, whose names have to differ: of two keys of one name, one would be lost."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _invalid(path, "has a name twice")
    return found


def _name(path: Path, name: str) -> str:
    """Return a name. It is not shown if it is invalid: it may be a key that stands in the wrong place."""
    if not _NAME.fullmatch(name):
        raise _invalid(path, f"keys: a name is none; allowed: 1 to {LONGEST_NAME} letters, digits, '.', '_', '-'")
    return name


def _key(path: Path, name: str, text: Any) -> bytes:
    try:
        key = b64decode(text, validate=True)
    except (TypeError, ValueError) as error:
        raise _invalid(path, f"keys.{name}: is no base64") from error
    if len(key) != KEY_BYTES:
        raise _invalid(path, f"keys.{name}: has {len(key)} bytes; allowed: {KEY_BYTES}")
    return key


def _invalid(path: Path, why: str) -> InvalidInput:
    msg = f"{FIELD} (IPNEXT_{FIELD.upper()}): {path}: {why}; the form is {_FORM}"
    return InvalidInput(msg, field=FIELD, value=str(path))
