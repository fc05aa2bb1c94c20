"""Log files of a region's replicas: found by their names, read at their ends. Called by the agent."""

import re
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from ipnext.infra.host.log_retention import FORMER
from ipnext.model.deployment.logs import LogQuery, ReplicaLog

MOST_BYTES: Final = 2**20
"""Most bytes of one file in one answer."""

_NAME: Final = re.compile(
    r"(?P<replica>(?P<model>[^.]+)\.(?P<part>[^.]+)\.(?P<hardware>[^.]+)\.(?P<number>\d+))"
    r"(\.engine-(?P<engine>[^.]+))?\.log(?P<former>\.1)?"
)


class _Found(NamedTuple):
    """A file of a replica, and the fields of its name."""

    path: Path
    words: re.Match[str]


def read_logs(directory: Path, query: LogQuery, *, region: str, running: Collection[str]) -> tuple[ReplicaLog, ...]:
    """Return the logs of the query, by the time of the last write. `running` are the ids of running replicas."""
    logs = (_log(found, query, region=region, running=running) for found in _find_logs(directory, query, running))
    return tuple(sorted((log for log in logs if log is not None), key=lambda log: (log.written_at, log.file)))


def _find_logs(directory: Path, query: LogQuery, running: Collection[str]) -> Iterator[_Found]:
    for path in directory.glob(f"{query.model}.*"):
        words = _NAME.fullmatch(path.name)
        if words is None or (query.part or words["part"]) != words["part"]:
            continue
        if query.replica is not None and query.replica != int(words["number"]):
            continue
        goes_on = words["replica"] in running and not words["former"]
        if query.after is None or goes_on or path.name in query.after:
            yield _Found(path, words)


def _log(found: _Found, query: LogQuery, *, region: str, running: Collection[str]) -> ReplicaLog | None:
    """Read one log; None if the file has been deleted since."""
    path, words = found
    try:
        with path.open("rb") as file:
            size, written_at = path.stat().st_size, path.stat().st_mtime
            known = (query.after or {}).get(path.name)
            start = _start(size, known)
            file.seek(start)
            content = file.read(min(MOST_BYTES, max(0, size - start)))
        missed = b"" if known is None or known <= size else _read_missed(path, known)
    except FileNotFoundError:
        return None
    text = (missed + content).decode(errors="replace")
    return ReplicaLog(
        region=region,
        replica=words["replica"],
        part=words["part"],
        engine=words["engine"],
        former=bool(words["former"]),
        ended=words["replica"] not in running,
        file=str(path),
        written_at=datetime.fromtimestamp(written_at, UTC),
        text=text if known is not None else _last_lines(text, query.tail),
        end=start + len(content),
    )


def _read_missed(path: Path, known: int) -> bytes:
    """Return the bytes after the known position that a rotation moved to the former log."""
    try:
        with path.with_name(path.name + FORMER).open("rb") as file:
            file.seek(known)
            return file.read(MOST_BYTES)
    except FileNotFoundError:
        return b""


def _start(size: int, known: int | None) -> int:
    """Return the position to read from: the known one, or 0 if the file was rotated.

    Without a known one, it is at most MOST_BYTES from the end.
    """
    if known is None:
        return max(0, size - MOST_BYTES)
    return known if known <= size else 0


def _last_lines(text: str, count: int) -> str:
    return "".join(text.splitlines(keepends=True)[-count:]) if count else ""
