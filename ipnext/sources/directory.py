"""Kind `directory`: snapshot directories that are moved into a watched one.

A snapshot counts once its `snapshot.json` is there, which is written last: copies under way are seen, and left. Names
that begin with a dot are left, too. The whole directory is listed at each poll, since moved directories keep their
times; the cursor is a digest of the listing.
"""

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from ipnext.artifacts.layout import LARGEST_MANIFEST_BYTES
from ipnext.artifacts.sources import ArtifactSource, DirectorySource
from ipnext.errors import ArtifactMissing, InvalidInput, IPnextError, NotFound, PathNotAllowed, Unavailable
from ipnext.model.manifest.sources import DirectoryStream
from ipnext.model.registry.registry import SNAPSHOT_FILE
from ipnext.model.registry.sources import FoundVersion, Listing
from ipnext.sources.access import ReadAccess
from ipnext.sources.port import StreamRequest
from ipnext.sources.training_record import TRAINING_FILE, TrainingRecord, read_training_record

MOST_ENTRIES: Final = 100_000
KEPT_DIGESTS: Final = 20_000
LONGEST_NAME: Final = 255
DIGITS: Final = 16
"""Of a manifest's SHA-256 in the key of a version: other content under the same name is another version."""


class _Entry(NamedTuple):
    """A snapshot directory, by what changes if it is replaced. Times in nanoseconds."""

    arrived: int
    name: str
    inode: int
    size: int
    written: int
    record: tuple[int, int]
    """Time and size of its training record; zeros without one."""

    @property
    def sign(self) -> str:
        return "/".join(map(str, self))


class WatchedDirectory:
    """One watched directory; nothing outside `roots` is read."""

    def __init__(self, path: Path, roots: Sequence[Path]) -> None:
        self._path = path
        self._roots = roots

    def list_since(self, cursor: str) -> Listing:
        """See `Source`. Versions are in the order in which they arrived."""
        entries = sorted(self._entries())
        mark = hashlib.sha256("\n".join(entry.sign for entry in entries).encode()).hexdigest()
        if mark == cursor:
            return Listing(cursor=cursor)
        return Listing(cursor=mark, versions=tuple(map(self._version, entries)), whole=True)

    def open(self, version: FoundVersion) -> ArtifactSource:
        """See `Source`."""
        return self._source(version.place)

    def _source(self, name: str) -> DirectorySource:
        try:
            return DirectorySource(self._path / name, roots=self._roots)
        except PathNotAllowed:
            raise
        except InvalidInput as error:
            msg = f"{self._path / name} is gone"
            raise ArtifactMissing(msg) from error

    def _entries(self) -> Iterator[_Entry]:
        try:
            DirectorySource(self._path, roots=self._roots)
        except PathNotAllowed:
            raise
        except InvalidInput as error:
            msg = f"{self._path} is not there, or is no directory"
            raise NotFound(msg) from error
        try:
            with os.scandir(self._path) as found:
                for number, entry in enumerate(found):
                    if number >= MOST_ENTRIES:
                        msg = f"{self._path} has more than {MOST_ENTRIES} entries; move older ones away"
                        raise Unavailable(msg)
                    seen = _entry_of(entry)
                    if seen is not None:
                        yield seen
        except OSError as error:
            msg = f"{self._path} can't be listed: {error.strerror}"
            raise Unavailable(msg) from error

    def _version(self, entry: _Entry) -> FoundVersion:
        written = _time_of(entry.written)
        digest, facts = _read_facts(self, entry)
        return FoundVersion(key=f"{entry.name}@{digest}", place=entry.name, **facts.facts(trained_at=written))

    def read(self, name: str) -> tuple[str, TrainingRecord]:
        """Return the start of a manifest's SHA-256, and the training record; marks of faults for unreadable ones.

        A fault ends the version once its content is read, where it is reported; here it would hide the other versions.
        """
        try:
            source = self._source(name)
            with source.open(SNAPSHOT_FILE) as stream:
                digest = hashlib.sha256(stream.read(LARGEST_MANIFEST_BYTES + 1)).hexdigest()[:DIGITS]
        except IPnextError as error:
            return error.code, TrainingRecord()
        try:
            return digest, read_training_record(source)
        except IPnextError:
            return digest, TrainingRecord()


@lru_cache(maxsize=KEPT_DIGESTS)
def _read_facts_of(path: str, roots: tuple[Path, ...], entry: _Entry) -> tuple[str, TrainingRecord]:
    return WatchedDirectory(Path(path), roots).read(entry.name)


def _read_facts(watched: WatchedDirectory, entry: _Entry) -> tuple[str, TrainingRecord]:
    return _read_facts_of(str(watched._path), tuple(watched._roots), entry)  # noqa: SLF001 - of this module


def _time_of(nanoseconds: int) -> datetime | None:
    """Return a time of a file; None for one that a calendar does not have."""
    try:
        return datetime.fromtimestamp(nanoseconds / 1e9, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _entry_of(entry: "os.DirEntry[str]") -> _Entry | None:
    """Return a complete snapshot directory; None for anything else."""
    if entry.name.startswith(".") or not entry.name.isprintable() or len(entry.name.encode()) > LONGEST_NAME:
        return None
    try:
        directory, manifest = entry.stat(), (Path(entry.path) / SNAPSHOT_FILE).stat()
    except OSError:
        return None
    if not (stat.S_ISDIR(directory.st_mode) and stat.S_ISREG(manifest.st_mode)):
        return None
    arrived = max(directory.st_ctime_ns, manifest.st_ctime_ns)
    record = _sign_of_record(Path(entry.path))
    return _Entry(arrived, entry.name, manifest.st_ino, manifest.st_size, manifest.st_mtime_ns, record)


def _sign_of_record(directory: Path) -> tuple[int, int]:
    try:
        found = (directory / TRAINING_FILE).stat()
    except OSError:
        return 0, 0
    return found.st_ctime_ns, found.st_size


class DirectoryKind:
    """Directories that the workers can read."""

    name = "directory"

    def upstream(self, settings: DirectoryStream) -> str:
        """See `SourceKind`."""
        return settings.path

    def check(self, settings: DirectoryStream, access: ReadAccess) -> None:
        """See `SourceKind`."""
        try:
            DirectorySource(Path(settings.path), roots=access.readable_roots)
        except PathNotAllowed:
            raise
        except InvalidInput as error:
            msg = f"directory.path: {settings.path} is not a directory that the platform can read; make it first"
            raise InvalidInput(msg, field="directory.path", value=settings.path) from error

    def connect(self, streams: Sequence[StreamRequest]) -> Sequence[WatchedDirectory]:
        """See `SourceKind`."""
        return [WatchedDirectory(Path(each.settings.path), each.access.readable_roots) for each in streams]
