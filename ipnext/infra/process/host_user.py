"""User of a region's hosts and their engines: one with fewer rights, if the agent runs as root.

Chosen at the agent's start. As that user, hosts must reach their code and the agent's state directory. The files that
they read there are opened to the user's group; other files there stay private to the agent.
"""

import os
import pwd
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import structlog

from ipnext.components.private_files import let_group_enter
from ipnext.errors import InvalidInput
from ipnext.settings import NativeCodeSettings

SETTING: Final = "IPNEXT_AGENT_HOST_USER"
DEFAULT: Final = "nobody"
_NOBODY: Final = 65_534
"""User id if the system has no user of that name."""
_PACKAGES: Final = ("ipnext", "serving")
_GOOD: Final = "good"
_MEND: Final = (
    f"open the path to all users, have Python, code and --state elsewhere, or name a user in {SETTING} that gets there"
)
_CACHE_MODE: Final = 0o2750
"""New files get the directory's group, which may read them."""


@dataclass(frozen=True, slots=True)
class HostUser:
    """A user other than root."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    """All groups of the user, none of root's."""

    @property
    def argument(self) -> str:
        """The user as an argument of a host."""
        return ":".join((str(self.uid), str(self.gid), *map(str, self.groups)))


def host_user(setting: str, *, state: Path, above: Sequence[Path] = ()) -> HostUser | None:
    """Return the user of hosts, to whose group the snapshot cache in `state` is opened; None: the agent's user.

    `above` are directories over `state`, the highest first, that this user may enter. InvalidInput if the setting names
    a user that hosts can't run as. Without a setting the log explains why they run as root. Call it while this process
    has one thread.
    """
    if os.geteuid() != 0:
        return _own_user(setting)
    user = find_user(setting or DEFAULT)
    if user is None:
        structlog.get_logger().warning("hosts and engines run as root", reason=f"{SETTING} says so")
        return None
    why = refusal(user, reads=(*_code(), *_keys()), enters=((*above, state)[0].resolve().parent,))
    if why is not None:
        if setting:
            msg = f"{SETTING}: hosts can't run as {setting!r}: {why}; {_MEND}, or set it to root"
            raise InvalidInput(msg, field="host_user", value=setting)
        reason = f"{user.name} (user {user.uid}): {why}"
        structlog.get_logger().warning("hosts and engines run as root", reason=reason, mend=_MEND)
        return None
    for directory in above:
        let_group_enter(directory, user.gid)
    open_state(state, user.gid)
    structlog.get_logger().info(
        "hosts and engines have a user of their own", user=user.name, uid=user.uid, gid=user.gid
    )
    return user


def find_user(name: str) -> HostUser | None:
    """Find a user by name or number; None: root. InvalidInput if there is no such user."""
    try:
        entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except KeyError:
        if name.isdecimal() and 0 < int(name) < 2**32 - 1:
            return HostUser(name, int(name), int(name))
        if name == DEFAULT:
            return HostUser(name, _NOBODY, _NOBODY)
        msg = (
            f"{SETTING}: {name!r} is no user of this machine; allowed: the name or the number of one, root, "
            f"or nothing for {DEFAULT}"
        )
        raise InvalidInput(msg, field="host_user", value=name) from None
    if entry.pw_uid == 0:
        return None
    groups = tuple(group for group in os.getgrouplist(entry.pw_name, entry.pw_gid) if group != 0)
    return HostUser(entry.pw_name, entry.pw_uid, entry.pw_gid, groups)


def refusal(user: HostUser, *, reads: Iterable[Path], enters: Iterable[Path] = ()) -> str | None:
    """Try in a child process to become the user; return why that fails or which path it may not read or enter.

    None if it works.
    """
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(tell, _try_user(user, reads, enters).encode(errors="replace"))
        finally:
            os._exit(0)
    os.close(tell)
    with os.fdopen(told, "rb") as answer:
        found = answer.read().decode(errors="replace")
    os.waitpid(pid, 0)
    return None if found == _GOOD else found or "the process that tried it has ended"


def open_state(state: Path, group: int) -> None:
    """Let a group enter the directory and read the snapshot cache in it, nothing else."""
    cache = state / "cache"
    cache.mkdir(exist_ok=True)
    found = cache.stat()
    if found.st_gid != group or not found.st_mode & stat.S_ISGID:
        for path in (cache, *cache.rglob("*")):
            if not path.is_symlink():
                os.chown(path, -1, group)
                path.chmod(_CACHE_MODE if path.is_dir() else path.stat().st_mode & 0o777 | stat.S_IRGRP)
    let_group_enter(state, group)


def _own_user(setting: str) -> HostUser | None:
    user = find_user(setting) if setting else None
    if setting and (user is None or user.uid != os.geteuid()):
        msg = (
            f"{SETTING}: only an agent that runs as root can start hosts as {setting!r}; allowed here: "
            f"nothing, or {os.geteuid()}"
        )
        raise InvalidInput(msg, field="host_user", value=setting)
    return None


def _try_user(user: HostUser, reads: Iterable[Path], enters: Iterable[Path]) -> str:
    try:
        os.setgroups(user.groups)
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
    except OSError as error:
        return f"this process can't become it: {error.strerror}"
    closed = next(_unreachable(reads, enters), None)
    return _GOOD if closed is None else f"it may not enter or read {closed}"


def _unreachable(reads: Iterable[Path], enters: Iterable[Path]) -> Iterator[Path]:
    for path in reads:
        yield from (above for above in reversed(path.parents) if not os.access(above, os.X_OK))
        if not os.access(path, os.R_OK) or (path.is_dir() and not os.access(path, os.X_OK)):
            yield path
    for path in enters:
        yield from (above for above in (*reversed(path.parents), path) if not os.access(above, os.X_OK))


def _code() -> Iterator[Path]:
    """Yield the code of hosts, and of vLLM if it is next to them. What a link leads to comes before the link."""
    vllm = Path(os.environ.get("IPNEXT_VLLM_PYTHON") or f"{sys.prefix}-genai/bin/python")
    for program in (Path(sys.executable), *([vllm] if vllm.exists() else [])):
        yield program.resolve()
        yield program
    yield from (Path(entry).resolve() for entry in sys.path if entry and Path(entry).exists())
    for package in _PACKAGES:
        found = find_spec(package)
        if found is not None and found.origin is not None:
            yield Path(found.origin).resolve()


def _keys() -> Iterator[Path]:
    keys = NativeCodeSettings().native_library_keys_file
    if keys is not None and keys.exists():
        yield keys.absolute()
