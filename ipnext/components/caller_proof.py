"""Proof of a caller on a Unix socket: a secret in a file beside the socket, for the agent's user alone.

The kernel reports the user at the other end of a socket, but hosts may have the user of the agent. A confined process
can connect to any socket whose path it knows: before version 9, Landlock does not restrict this. It reads no file of
the agent's state directory, so it has no proof. Each listener has a proof of its own, which it shares with its callers.
"""

import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

from ipnext.errors import Forbidden

SUFFIX: Final = ".proof"
_BYTES: Final = 32


def proof_file(socket: Path) -> Path:
    """Return the file with the proof of a socket's callers."""
    return socket.with_suffix(SUFFIX)


def keep_proof(file: Path, proof: str | None = None) -> str:
    """Return the proof of the file; create it if there is none, with this proof or a new one. OSError.

    It stays the same for the next process that listens there. Concurrent callers get the same one.
    """
    kept = read_proof(file)
    if kept is None:
        _create(file, proof or secrets.token_urlsafe(_BYTES))
        kept = file.read_text(encoding="ascii")
    return kept


def read_proof(file: Path) -> str | None:
    """Return the proof of the file; None if there is none, or if this process may not read it."""
    try:
        return file.read_text(encoding="ascii")
    except OSError:
        return None


def check_proof(expected: str, given: object) -> None:
    """Raise Forbidden unless the caller has sent the proof of this listener."""
    if not isinstance(given, str) or not hmac.compare_digest(expected.encode(), given.encode()):
        msg = f"the caller has not proved itself; allowed: callers that send the content of the {SUFFIX} file beside the socket"
        raise Forbidden(msg, policy="components")


def _create(file: Path, proof: str) -> None:
    """Create the file as a whole, unless another process has created it."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as content:
            content.write(proof)
        with suppress(FileExistsError):
            file.hardlink_to(temporary)
    finally:
        temporary.unlink()
