"""Sources of a publish: a local directory, or a bucket."""

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from ipnext.errors import ArtifactMissing, InvalidInput, PathNotAllowed, Unavailable
from ipnext.model.registry.registry import SIGNATURE_FILE, SnapshotManifest
from ipnext.model.registry.signing import LARGEST_SIGNATURE_BYTES, SignatureEnvelope, read_envelope


class ArtifactSource(Protocol):
    """A directory of snapshot.json and the files that it names."""

    @property
    def uri(self) -> str:
        """For messages."""

    def size_bytes(self, path: str) -> int:
        """Return the size of a file. ArtifactMissing if there is none."""

    def open(self, path: str) -> BinaryIO:
        """Open a stream of a file; the caller closes it. Raises ArtifactMissing or PathNotAllowed."""


class DirectorySource:
    """A directory on this machine. No file outside `roots` is read, whatever the links in it."""

    def __init__(self, directory: Path, *, roots: Sequence[Path]) -> None:
        self._roots = tuple(root.resolve() for root in roots)
        self._named = directory.absolute()
        self._directory = Path().joinpath(*self._inside(directory, str(directory)))
        if not self._directory.is_dir():
            msg = f"{directory} is not a directory; a snapshot is a directory with a snapshot.json"
            raise InvalidInput(msg, field="uri", value=str(directory))

    @property
    def uri(self) -> str:
        """`file:///...` as given: targets of links are not disclosed."""
        return self._named.as_uri()

    def size_bytes(self, path: str) -> int:
        """Return the size of a regular file."""
        with self.open(path) as stream:
            return os.fstat(stream.fileno()).st_size

    def open(self, path: str) -> BinaryIO:
        """Open a stream of a regular file."""
        root, steps = self._inside(self._directory / path, str(self._named / path))
        try:
            descriptor = open_beneath(root, steps)
        except OSError as error:
            raise self._missing(path, error) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            msg = f"{path!r} in {self.uri} is not a regular file"
            raise InvalidInput(msg, field="files.path", value=path)
        return os.fdopen(descriptor, "rb")

    def _missing(self, path: str, error: OSError) -> ArtifactMissing | Unavailable:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return ArtifactMissing(f"file {path!r} is not in {self.uri}")
        return Unavailable(f"file {path!r} in {self.uri} cannot be read: {error.strerror}")

    def _inside(self, path: Path, named: str) -> tuple[Path, Path]:
        """Return a root, and the path below it, with all links followed.

        PathNotAllowed if it is outside, or in a circle of links.
        """
        with suppress(OSError, RuntimeError):
            resolved = path.resolve()
            circular = any(step.is_symlink() for step in (resolved, *resolved.parents))  # since Python 3.13 no error
            for root in self._roots:
                if resolved.is_relative_to(root) and not circular:
                    return root, resolved.relative_to(root)
        allowed = tuple(str(root) for root in self._roots)
        fault = f"{named} lies outside the directories that may be read"
        raise not_allowed(fault, named, "roots", allowed)


def open_beneath(root: Path, steps: Path) -> int:
    """Return a descriptor of a file below a directory, for reading. OSError if a step is a link.

    Links were followed and judged before; one that took a step's place since would lead out of the directory.
    """
    passed = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
    found = os.open(root, passed)
    for step in steps.parts[:-1]:
        found = _step(found, step, passed)
    return _step(found, steps.name or ".", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)


def _step(directory: int, name: str, flags: int) -> int:
    """Open an entry of a directory, and close the directory."""
    try:
        return os.open(name, flags, dir_fd=directory)
    finally:
        os.close(directory)


def not_allowed(
    fault: str, value: str, what: str, allowed: Sequence[str], *, setting: str | None = None
) -> PathNotAllowed:
    """Return the error for a source that may not be read. `what` is roots, buckets or urls.

    Only administrators see the allowed ones.
    """
    shown = ", ".join(allowed) or "none (publish by upload instead)"
    error = PathNotAllowed(f"{fault}; allowed {what}: {shown}", field="uri", value=value, allowed=allowed)
    error.public_message = (
        f"{fault}; allowed {what}: those of {setting or f'IPNEXT_ARTIFACT_{what.upper()}'} of the server, "
        "for the model's owner; ask its operator, or publish by upload"
    )
    return error


def signature_of(source: ArtifactSource, manifest: SnapshotManifest) -> SignatureEnvelope | None:
    """Return the signature of a snapshot directory, if there is one.

    SignatureInvalid if it is of another snapshot; keys are not checked.
    """
    try:
        stream = source.open(SIGNATURE_FILE)
    except ArtifactMissing:
        return None
    with stream:
        content = stream.read(LARGEST_SIGNATURE_BYTES)
    return read_envelope(content, manifest.digest, f"{SIGNATURE_FILE} in {source.uri}")
