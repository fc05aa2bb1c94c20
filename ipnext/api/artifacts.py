"""Artifacts: upload what is missing, then commit the snapshot whose blobs are all there."""

from collections.abc import AsyncIterator, Iterator

import anyio.from_thread
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from ipnext.api.platform import Rooms
from ipnext.errors import TooLarge
from ipnext.model.registry import SnapshotManifest
from ipnext.model.resource import BlobQuery, MissingBlobs, StoredSnapshot
from ipnext.model.signing import SignatureEnvelope
from ipnext.model.value import Sha256

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"])

PIECE_BYTES = 2**20
"""Handed to the artifact store's thread at once: large enough that changing threads costs nothing. Chunks are not joined."""

_BINARY = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string"}}}}}


@router.post("/missing", summary="Ask which blobs to upload")
def missing(query: BlobQuery, rooms: Rooms) -> MissingBlobs:
    """Those of the given SHA-256 digests that the store does not hold: upload these only."""
    return MissingBlobs(missing=tuple(sorted(rooms.artifacts.missing(query.digests))))


@router.put("/blobs/{sha256}", status_code=204, summary="Upload a blob", openapi_extra=_BINARY)
async def put_blob(sha256: Sha256, request: Request, rooms: Rooms) -> Response:
    """Store a blob. Content of another digest is refused (422) and leaves nothing behind."""
    limit = rooms.settings.max_upload_bytes
    _check_size(int(request.headers.get("content-length", "0") or 0), limit)
    await run_in_threadpool(rooms.artifacts.put_blob, sha256, _from_thread(_pieces(request.stream(), limit)))
    return Response(status_code=204)


@router.post("/snapshots", status_code=201, summary="Commit a snapshot")
def commit(manifest: SnapshotManifest, rooms: Rooms) -> StoredSnapshot:
    """Write a snapshot's manifest. Every blob it names must be there (422 names the first that is not)."""
    return StoredSnapshot(uri=rooms.artifacts.commit(manifest), digest=manifest.digest)


@router.put("/snapshots/{digest}/signature", status_code=204, summary="Upload a signature")
def put_signature(digest: Sha256, envelope: SignatureEnvelope, rooms: Rooms) -> Response:
    """Keep a signature of a committed snapshot beside those that it has. One of another snapshot is refused (422)."""
    rooms.artifacts.put_signature(digest, envelope)
    return Response(status_code=204)


def _check_size(size_bytes: int, limit: int) -> None:
    if size_bytes > limit:
        msg = f"the blob is larger than {limit} bytes, the limit of this server (IPNEXT_MAX_UPLOAD_BYTES)"
        raise TooLarge(msg)


async def _pieces(stream: AsyncIterator[bytes], limit: int) -> AsyncIterator[list[bytes]]:
    """The body's chunks as they come, so many at once that they have PIECE_BYTES. Raises TooLarge as soon as the limit is passed."""
    size, gathered = 0, 0
    piece: list[bytes] = []
    async for chunk in stream:
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
