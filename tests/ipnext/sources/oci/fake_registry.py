"""A registry in memory behind httpx.MockTransport, whose answers a test may replace."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import httpx

from ipnext.model.manifest.sources import OciStream
from ipnext.model.registry.sources import FoundVersion
from ipnext.sources.access import ReadAccess
from ipnext.sources.oci.image import IMAGE, TITLE
from ipnext.sources.oci.kind import OciKind, WatchedTag
from ipnext.sources.oci.registry import Connections
from ipnext.sources.port import StreamRequest

HOST = "registry.example.com"
NAME = "team/ranker"
BASE = f"https://{HOST}"
ORAS_FILE = "application/vnd.oci.image.layer.v1.tar"
Answer = Callable[[httpx.Request], httpx.Response]


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def layer(content: bytes, path: str, kind: str = ORAS_FILE, **changes: Any) -> dict[str, Any]:
    """The descriptor of a file as `oras push` writes it."""
    found = {"mediaType": kind, "digest": digest_of(content), "size": len(content), "annotations": {TITLE: path}}
    return found | changes


def image(layers: Sequence[Mapping[str, Any]], **changes: Any) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": IMAGE, "layers": list(layers)} | changes


class Chunks(httpx.SyncByteStream):
    """A body in pieces; an exception among them is raised."""

    def __init__(self, *pieces: Any) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece


class FakeRegistry:
    """One repository; `answers` replaces answers by the end of their path, `seen` are all requests."""

    def __init__(self) -> None:
        self.manifests: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.blobs: dict[str, bytes] = {}
        self.answers: dict[str, Answer] = {}
        self.elsewhere: Answer = lambda _: httpx.Response(500)
        """Of all other hosts."""
        self.seen: list[httpx.Request] = []
        self.connections = Connections(httpx.MockTransport(self.answer))

    def push(self, files: Mapping[str, bytes], tag: str = "prod", **changes: Any) -> str:
        """Push an image of plain files, and return its digest."""
        for content in files.values():
            self.blobs[digest_of(content)] = content
        return self.put(image([layer(content, path) for path, content in files.items()], **changes), tag)

    def put(self, manifest: Any, tag: str = "prod") -> str:
        """Put a manifest, a document or bytes, below a tag."""
        content = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        self.manifests[digest_of(content)] = content
        self.tags[tag] = digest_of(content)
        return digest_of(content)

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        if request.url.host != HOST:
            return _streamed(self.elsewhere(request))
        found = next((answer for end, answer in self.answers.items() if request.url.path.endswith(end)), self.usual)
        return _streamed(found(request))

    def usual(self, request: httpx.Request) -> httpx.Response:
        _, _, path = request.url.path.partition(f"/v2/{NAME}/")
        kind, _, reference = path.partition("/")
        if kind == "blobs":
            content = self.blobs.get(reference)
            return httpx.Response(404) if content is None else _part(content, request.headers.get("range"))
        content = self.manifests.get(self.tags.get(reference, reference))
        if content is None:
            return httpx.Response(404)
        body = b"" if request.method == "HEAD" else content
        return httpx.Response(200, content=body, headers={"Docker-Content-Digest": digest_of(content)})

    @property
    def lines(self) -> list[str]:
        """Methods and ends of the paths of all requests."""
        return [f"{each.method} {each.url.path.removeprefix(f'/v2/{NAME}/')}" for each in self.seen]

    def watch(self, **access: Any) -> WatchedTag:
        """Connect one stream of the tag `prod`."""
        (found,) = self.watch_all(ReadAccess(**{"urls": (BASE,)} | access))
        return found

    def watch_all(self, *accesses: ReadAccess) -> Sequence[WatchedTag]:
        settings = OciStream(repository=f"{HOST}/{NAME}", tag="prod")
        return OciKind(self.connections).connect([StreamRequest(settings, access) for access in accesses])

    def open(self, **access: Any) -> Any:
        """Open the content of what the tag names."""
        return self.watch(**access).open(FoundVersion(key="1", place=self.tags["prod"]))

    def read(self, path: str = "weights", **access: Any) -> bytes:
        """Read a file of what the tag names."""
        with self.open(**access).open(path) as stream:
            return stream.read()


def _streamed(answer: httpx.Response) -> httpx.Response:
    """The same as a transport gives it: not read yet."""
    if not answer.is_stream_consumed:
        return answer
    return httpx.Response(answer.status_code, headers=answer.headers, stream=Chunks(answer.content))


def _part(content: bytes, wanted: str | None) -> httpx.Response:
    if wanted is None:
        return httpx.Response(200, content=content)
    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
    headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
    return httpx.Response(206, content=content[start:], headers=headers)
