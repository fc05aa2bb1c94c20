"""Where a snapshot directory is read from when it is published: a local directory, or a bucket."""

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from ipnext.errors import ArtifactMissing, InvalidInput, PathNotAllowed, Unavailable
from ipnext.model.registry import SIGNATURE_FILE, SnapshotManifest
from ipnext.model.signing import LARGEST_SIGNATURE_BYTES, SignatureEnvelope, read_envelope


class Source(Protocol):
    """A directory of snapshot.json and the files it names."""

    @property
    def uri(self) -> str:
        """For messages."""

    def size_bytes(self, path: str) -> int:
        """Size of a file. ArtifactMissing where there is none."""

    def open(self, path: str) -> BinaryIO:
        """A stream of a file; the caller closes it. ArtifactMissing, PathNotAllowed."""


class DirectorySource:
    """A directory on this machine. Nothing outside `roots` is read, whatever links lie in it."""

    def __init__(self, directory: Path, *, roots: Sequence[Path]) -> None:
        self._roots = tuple(root.resolve() for root in roots)
        self._directory = self._inside(directory)
        if not self._directory.is_dir():
            msg = f"{directory} is not a directory; a snapshot is a directory with a snapshot.json"
            raise InvalidInput(msg, field="uri", value=str(directory))

    @property
    def uri(self) -> str:
        """`file:///...`."""
        return self._directory.as_uri()

    def size_bytes(self, path: str) -> int:
        """Size of a regular file."""
        file = self._inside(self._directory / path)
        try:
            status = file.stat()
        except OSError as error:
            raise self._missing(path, error) from error
        if not stat.S_ISREG(status.st_mode):
            msg = f"{path!r} in {self.uri} is not a regular file"
            raise InvalidInput(msg, field="files.path", value=path)
        return status.st_size

    def open(self, path: str) -> BinaryIO:
        """A stream of a regular file."""
        self.size_bytes(path)
        try:
            return self._inside(self._directory / path).open("rb")
        except OSError as error:
            raise self._missing(path, error) from error

    def _missing(self, path: str, error: OSError) -> ArtifactMissing | Unavailable:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return ArtifactMissing(f"file {path!r} is not in {self.uri}")
        return Unavailable(f"file {path!r} in {self.uri} cannot be read: {error.strerror}")

    def _inside(self, path: Path) -> Path:
        """The path with all links followed. PathNotAllowed outside the roots."""
        try:
            resolved = path.resolve()
        except (OSError, RuntimeError) as error:  # a circle of links
            msg = f"{path} cannot be resolved: {error}"
            raise InvalidInput(msg, field="uri", value=str(path)) from error
        if any(resolved.is_relative_to(root) for root in self._roots):
            return resolved
        allowed = tuple(str(root) for root in self._roots)
        shown = ", ".join(allowed) or "none (publish by upload instead)"
        msg = f"{path} lies outside the directories that may be read; allowed roots: {shown}"
        raise PathNotAllowed(msg, field="uri", value=str(path), allowed=allowed)


def signature_of(source: Source, manifest: SnapshotManifest) -> SignatureEnvelope | None:
    """The signature of a snapshot directory, if it has one. SignatureInvalid for one of another snapshot; no key is looked at."""
    try:
        stream = source.open(SIGNATURE_FILE)
    except ArtifactMissing:
        return None
    with stream:
        content = stream.read(LARGEST_SIGNATURE_BYTES)
    return read_envelope(content, manifest.digest, f"{SIGNATURE_FILE} in {source.uri}")
