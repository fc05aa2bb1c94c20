"""Artifacts: upload what is missing, then commit the snapshot whose blobs are all there."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import anyio.from_thread
import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import APIRouter, Request, Response

from ipnext.api.access import may
from ipnext.api.platform import Rooms
from ipnext.api.recording import record_asked
from ipnext.errors import TooLarge, TooSlow, Unavailable
from ipnext.model.registry import SnapshotManifest
from ipnext.model.resource import BlobQuery, MissingBlobs, StoredSnapshot
from ipnext.model.signing import SignatureEnvelope
from ipnext.model.value import Sha256

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"])

PIECE_BYTES = 2**20
"""Handed to the artifact store's thread at once: large enough that changing threads costs nothing. Chunks are not joined."""

UPLOADS_AT_ONCE = 32
"""Each holds a thread while it comes."""

SILENT_SECONDS = 30.0
LOWEST_BYTES_PER_SECOND = 1024

_BINARY = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string"}}}}}


@router.post("/missing", dependencies=[may("artifacts.upload", only_reads=True)], summary="Ask which blobs to upload")
def missing(query: BlobQuery, rooms: Rooms) -> MissingBlobs:
    """Those of the given SHA-256 digests that the store does not hold: upload these only."""
    return MissingBlobs(missing=tuple(sorted(rooms.artifacts.missing(query.digests))))


@router.put(
    "/blobs/{sha256}",
    dependencies=[may("artifacts.upload")],
    status_code=204,
    summary="Upload a blob",
    openapi_extra=_BINARY,
)
async def put_blob(sha256: Sha256, request: Request, rooms: Rooms) -> Response:
    """Store a blob. Content of another digest is refused (422) and leaves nothing behind."""
    limit = rooms.settings.max_upload_bytes
    _check_size(int(request.headers.get("content-length", "0") or 0), limit)
    pieces = _from_thread(_pieces(request.stream(), limit))
    with _turn(request) as threads:
        await anyio.to_thread.run_sync(lambda: record_asked(rooms.store, object=("Blob", sha256)))
        await anyio.to_thread.run_sync(rooms.artifacts.put_blob, sha256, pieces, limiter=threads)
    return Response(status_code=204)


@router.post("/snapshots", dependencies=[may("artifacts.upload")], status_code=201, summary="Commit a snapshot")
def commit(manifest: SnapshotManifest, rooms: Rooms) -> StoredSnapshot:
    """Write a snapshot's manifest. Every blob it names must be there (422 names the first that is not)."""
    record_asked(rooms.store, object=("Snapshot", manifest.digest))
    return StoredSnapshot(uri=rooms.artifacts.commit(manifest), digest=manifest.digest)


@router.put(
    "/snapshots/{digest}/signature",
    dependencies=[may("artifacts.upload")],
    status_code=204,
    summary="Upload a signature",
)
def put_signature(digest: Sha256, envelope: SignatureEnvelope, rooms: Rooms) -> Response:
    """Keep a signature of a committed snapshot beside those that it has. One of another snapshot is refused (422)."""
    signers = sorted(signature.keyid for signature in envelope.signatures)
    record_asked(rooms.store, object=("Snapshot", digest), after={"signers": signers})
    rooms.artifacts.put_signature(digest, envelope)
    return Response(status_code=204)


@contextmanager
def _turn(request: Request) -> Iterator[CapacityLimiter]:
    """Threads of uploads alone: clients that send slowly hold up no other endpoint. Unavailable if all are taken."""
    state = request.app.state
    if not hasattr(state, "uploads"):
        state.uploads, state.upload_threads = 0, CapacityLimiter(UPLOADS_AT_ONCE)
    if state.uploads >= UPLOADS_AT_ONCE:
        msg = f"{UPLOADS_AT_ONCE} uploads are under way, as many as this server takes at once; try again"
        raise Unavailable(msg)
    state.uploads += 1
    try:
        yield state.upload_threads
    finally:
        state.uploads -= 1


def _check_size(size_bytes: int, limit: int) -> None:
    if size_bytes > limit:
        msg = f"the blob is larger than {limit} bytes, the limit of this server (IPNEXT_MAX_UPLOAD_BYTES)"
        raise TooLarge(msg)


async def _pieces(stream: AsyncIterator[bytes], limit: int) -> AsyncIterator[list[bytes]]:
    """The body's chunks as they come, so many at once that they have PIECE_BYTES.

    Raises:
        TooLarge: as soon as the limit is passed.
        TooSlow: nothing came for SILENT_SECONDS, or the whole comes slower than LOWEST_BYTES_PER_SECOND.
    """
    size, gathered, began = 0, 0, time.monotonic()
    piece: list[bytes] = []
    while True:
        left = SILENT_SECONDS + size / LOWEST_BYTES_PER_SECOND - (time.monotonic() - began)
        try:
            async with asyncio.timeout(max(0.0, min(SILENT_SECONDS, left))):
                chunk = await anext(stream, None)
        except TimeoutError as error:
            msg = f"the body comes too slowly: {size} bytes so far; at least {LOWEST_BYTES_PER_SECOND} bytes/s are wanted, and no pause of {SILENT_SECONDS:g} s"
            raise TooSlow(msg) from error
        if chunk is None:
            break
        size += len(chunk)
        _check_size(size, limit)
        piece.append(chunk)
        gathered += len(chunk)
        if gathered >= PIECE_BYTES:
            yield piece
            piece, gathered = [], 0
    if piece:
        yield piece


def _from_thread(pieces: AsyncIterator[list[bytes]]) -> Iterator[bytes]:
    """The chunks for code that runs in a worker thread of this event loop."""

    async def following() -> list[bytes] | None:
        return await anext(pieces, None)

    while (piece := anyio.from_thread.run(following)) is not None:
        yield from piece
