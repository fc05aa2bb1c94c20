"""Proof of a caller on a Unix socket: a secret in a file beside the socket, for the agent's user alone.

The kernel reports the user at the other end of a socket, but hosts may have the user of the agent. A confined process
can connect to any socket whose path it knows: before version 9, Landlock does not restrict this. It reads no file of
the agent's state directory, so it has no proof. Each listener has a proof of its own, which it shares with its callers.
"""

import hmac
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from ipnext.errors import Forbidden

SUFFIX: Final = ".proof"
_BYTES: Final = 32
_LONGEST: Final = 256
"""Bytes of a proof that are read."""


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
        kept = _read(file)
    return kept


def read_proof(file: Path) -> str | None:
    """Return the proof of the file; None if there is none, or if this process may not read it.

    None, too, if the file or its directory is a link, or if others than this user may have written it: a process that
    was taken over could have the proof of another listener sent to its own.
    """
    try:
        return _read(file)
    except OSError:
        return None


def _read(file: Path) -> str:
    directory = os.open(file.parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        descriptor = os.open(file.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    finally:
        os.close(directory)
    with os.fdopen(descriptor, "rb") as opened:
        if not _is_own(os.fstat(descriptor)):
            msg = f"{file} is not a file of this user alone"
            raise PermissionError(msg)
        return opened.read(_LONGEST).decode("ascii", "replace")


def _is_own(found: os.stat_result) -> bool:
    private = not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and private


def check_proof(expected: str, given: object) -> None:
    """Raise Forbidden unless the caller has sent the proof of this listener."""
    if not isinstance(given, str) or not hmac.compare_digest(expected.encode(), given.encode()):
        msg = (
            f"the caller has not proved itself; allowed: callers that send the content of the {SUFFIX} file "
            "beside the socket"
        )
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
