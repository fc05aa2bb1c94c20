"""Artifacts of a version of MLflow: by the server's artifact proxy, or where it says that they are, if allowed."""

import io
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, BinaryIO, Final, cast
from urllib.parse import unquote

import httpx

from ipnext.artifacts.layout import CHUNK_BYTES
from ipnext.artifacts.sources import ArtifactSource
from ipnext.artifacts.stores.locations import open_source
from ipnext.components.bounded_http import ending_at
from ipnext.errors import ArtifactMissing, InvalidInput, NotFound, Unavailable
from ipnext.model.registry.registry import SNAPSHOT_FILE
from ipnext.model.registry.sources import Reach
from ipnext.sources.access import ReadAccess
from ipnext.sources.mlflow.server import ARTIFACTS, ListedFile, MlflowServer

if TYPE_CHECKING:
    from typing_extensions import Buffer

MOST_DIRECTORIES: Final = 100
"""Subdirectories in which a snapshot is looked for."""
FORMS: Final = ("mlflow-artifacts:/PATH", "runs:/RUN/PATH", "models:/m-ID", "s3://BUCKET/PREFIX", "file:///DIRECTORY")
PROXIED: Final = "mlflow-artifacts:"
KEPT_LISTINGS: Final = 1_000


def open_artifacts(server: MlflowServer, uri: str, access: ReadAccess) -> ArtifactSource:
    """Return the snapshot directory at a uri of artifacts: that directory, or its one subdirectory with a snapshot.

    Raises InvalidInput (another form of uri, no snapshot or several), PathNotAllowed, ArtifactMissing, Unavailable.
    """
    resolved = _resolve(server, uri)
    steps = _proxied_steps(server, resolved)
    if steps is not None:
        return _find_snapshot(server, steps)
    if not resolved.startswith(("s3://", "file:///")):
        raise _unknown_form(uri)
    buckets = access.buckets
    if access.reach is Reach.ANY and resolved.startswith("s3://"):
        buckets = (resolved.removeprefix("s3://").partition("/")[0],)
    return open_source(resolved, roots=access.readable_roots, buckets=buckets, endpoint_url=access.s3_endpoint_url)


class ProxiedDirectory:
    """A directory of the server's artifact proxy. Its listings are read once."""

    def __init__(self, server: MlflowServer, steps: Sequence[str]) -> None:
        self._server, self._steps = server, tuple(steps)
        self._list = lru_cache(maxsize=KEPT_LISTINGS)(self._read_listing)

    @property
    def uri(self) -> str:
        """URL of the directory."""
        return f"{self._server.uri}/{ARTIFACTS}/{'/'.join(self._steps)}"

    def size_bytes(self, path: str) -> int:
        """Return the size of a file, as the server lists it: MLflow leaves out that of an empty one."""
        return self._entry(path).file_size or 0

    def open(self, path: str) -> BinaryIO:
        """Open a stream of a file. It gives exactly the bytes that are listed, or ends with Unavailable."""
        size = self.size_bytes(path)
        place = "/".join((*self._steps, *_steps_of(path)))
        answer, ends_at = self._server.open_artifact(place, size)
        stream = _FileStream(self._server, answer, f"file {path!r} in {self.uri}", size, ends_at)
        return cast("BinaryIO", io.BufferedReader(stream, CHUNK_BYTES))

    def _entry(self, path: str) -> ListedFile:
        *parents, name = _steps_of(path)
        entry = self._list(tuple(parents)).get(name)
        if entry is None:
            msg = f"file {path!r} is not in {self.uri}"
            raise ArtifactMissing(msg)
        if entry.is_dir:
            msg = f"{path!r} in {self.uri} is not a regular file"
            raise InvalidInput(msg, field="files.path", value=path)
        return entry

    def _read_listing(self, below: tuple[str, ...]) -> dict[str, ListedFile]:
        files = self._server.list_artifacts("/".join((*self._steps, *below)))
        return {file.path.rstrip("/").rpartition("/")[2]: file for file in files}

    def subdirectories(self) -> Sequence[str]:
        """Return the names of its subdirectories. Raises InvalidInput if one of them leads elsewhere."""
        return [name for name, entry in sorted(self._list(()).items()) if entry.is_dir and _steps_of(name)]

    @property
    def has_snapshot(self) -> bool:
        """Whether there is a `snapshot.json` in it."""
        return SNAPSHOT_FILE in self._list(())


class _FileStream(io.RawIOBase):
    """The body of an answer, of exactly the size that was listed."""

    def __init__(self, server: MlflowServer, answer: httpx.Response, subject: str, size: int, ends_at: float) -> None:
        super().__init__()
        self._server, self._answer, self._subject, self._size, self._ends_at = server, answer, subject, size, ends_at
        self._position = 0
        self._rest = memoryview(b"")
        self._chunks: Iterator[bytes] = answer.iter_raw()
        length = answer.headers.get("content-length", "")
        if length.isdecimal() and int(length) != size:
            self.close()
            raise self._other_size(length)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "Buffer", /) -> int:
        """Fill the buffer; return 0 at the end of the file."""
        view = memoryview(buffer)
        if not view:
            return 0
        if not self._rest:
            self._rest = memoryview(self._next())
        piece, self._rest = self._rest[: len(view)], self._rest[len(view) :]
        view[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            self._answer.close()
        super().close()

    def _next(self) -> bytes:
        """Return the next bytes; none at the end. Raises Unavailable."""
        try:
            with ending_at(self._ends_at):
                chunk = next((chunk for chunk in self._chunks if chunk), b"")
        except httpx.HTTPError as error:
            at = f"{self._subject} at byte {self._position} of {self._size}"
            raise self._server.broken(at, error) from error
        if time.monotonic() > self._ends_at:
            msg = f"{self._subject} comes too slowly: byte {self._position} of {self._size} at its time limit"
            raise Unavailable(msg)
        self._position += len(chunk)
        if self._position > self._size or (not chunk and self._position < self._size):
            raise self._other_size(str(self._position) if not chunk else f"more than {self._size}")
        return chunk

    def _other_size(self, found: str) -> Unavailable:
        return Unavailable(f"the server sends {found} bytes of {self._subject}, and lists it with {self._size}")


def _resolve(server: MlflowServer, uri: str) -> str:
    """Return the uri of artifacts that a run or a logged model names."""
    try:
        if uri.startswith("runs:/"):
            run, _, path = uri.removeprefix("runs:/").strip("/").partition("/")
            return _join(server.get_run(run).info.artifact_uri, path)
        if uri.startswith("models:/m-"):
            name, _, path = uri.removeprefix("models:/").strip("/").partition("/")
            return _join(server.locate_logged_model(name), path)
    except NotFound as error:
        raise ArtifactMissing(error.message) from error
    return uri


def _join(uri: str, path: str) -> str:
    if not path:
        return uri
    return f"{uri.rstrip('/')}/{'/'.join(_steps_of(path))}"


def _proxied_steps(server: MlflowServer, uri: str) -> tuple[str, ...] | None:
    """Return the path of a uri of the server's artifact proxy; None for a uri of another scheme.

    Raises InvalidInput if it names another server, or a path outside the proxy's root.
    """
    if uri.startswith(PROXIED):
        rest = uri.removeprefix(PROXIED)
        if rest.startswith("//"):
            host, _, rest = rest.removeprefix("//").partition("/")
            if host and host.lower() != httpx.URL(server.uri).netloc.decode("ascii").lower():
                raise _other_server(server, uri)
        return _steps_of(rest.strip("/"), whole=uri)
    if uri.startswith(("http://", "https://")):
        base = f"{server.uri}/{ARTIFACTS}/"
        if not uri.startswith(base):
            raise _other_server(server, uri)
        return _steps_of(uri.removeprefix(base).strip("/"), whole=uri)
    return None


def _steps_of(path: str, *, whole: str | None = None) -> tuple[str, ...]:
    """Return the steps of a relative path. Raises InvalidInput if it leads elsewhere, also if that is encoded."""
    steps = tuple(path.split("/"))
    if whole is not None:
        steps = tuple(map(unquote, steps))
    for step in steps:
        plain = unquote(unquote(step))
        if plain in {"", ".", ".."} or {"/", "\\"} & set(plain) or not plain.isprintable():
            shown = (whole or path)[:200]
            msg = f"{shown!r} is not a path below the artifacts of a version"
            raise InvalidInput(msg, field="files.path", value=shown)
    return steps


def _find_snapshot(server: MlflowServer, steps: Sequence[str]) -> ProxiedDirectory:
    top = ProxiedDirectory(server, steps)
    if top.has_snapshot:
        return top
    names = top.subdirectories()
    if len(names) > MOST_DIRECTORIES:
        msg = f"{top.uri} has {len(names)} directories and no {SNAPSHOT_FILE}; register the snapshot's own directory"
        raise InvalidInput(msg, field="uri", value=top.uri)
    found = [below for name in names if (below := ProxiedDirectory(server, (*steps, name))).has_snapshot]
    if len(found) == 1:
        return found[0]
    has = f"{len(found)} directories with a {SNAPSHOT_FILE}" if found else f"no {SNAPSHOT_FILE}"
    msg = f"{top.uri} has {has}; the artifacts of a version are one snapshot directory"
    raise InvalidInput(msg, field="uri", value=top.uri)


def _other_server(server: MlflowServer, uri: str) -> InvalidInput:
    msg = f"the artifacts are at {uri[:200]!r}, which is not the artifact proxy of {server.uri}"
    return InvalidInput(msg, field="uri", value=uri[:200])


def _unknown_form(uri: str) -> InvalidInput:
    msg = f"the artifacts are at {uri[:200]!r}; allowed: {', '.join(FORMS)}"
    return InvalidInput(msg, field="uri", value=uri[:200], allowed=FORMS)
