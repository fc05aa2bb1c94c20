"""Artifacts: upload missing blobs, then commit the snapshot once all its blobs exist."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Annotated, NamedTuple

import anyio.from_thread
import anyio.to_thread
from anyio import CancelScope, CapacityLimiter
from fastapi import APIRouter, Query, Request, Response

from ipnext.access.acting import RequestAuthority
from ipnext.api.authorization.access import Access
from ipnext.api.authorization.audit_entries import record_asked
from ipnext.api.authorization.caller import Asker, acting_of
from ipnext.api.authorization.endpoint_permission import may
from ipnext.api.dependencies import PlatformAdapters, Rooms
from ipnext.api.requests.guarded_route import GuardedRoute
from ipnext.api.requests.slots import Slots, holder_of
from ipnext.api.requests.turns import Turns
from ipnext.api.schema import OF_ARTIFACTS, OF_UPLOADS
from ipnext.errors import QuotaExceeded, TooLarge, TooSlow
from ipnext.model.access.artifact_use import Allowance, CollectionView, uploaders_allowance
from ipnext.model.access.rights import Principal
from ipnext.model.api.resources import BlobQuery, MissingBlobs, StoredSnapshot
from ipnext.model.registry.registry import SnapshotManifest
from ipnext.model.registry.signing import SignatureEnvelope
from ipnext.model.registry.snapshot_files import check_files
from ipnext.model.value import Name, Sha256
from ipnext.platform.collection import Collection, Retention
from ipnext.settings import PlatformSettings
from ipnext.store.operations.artifact_quota import allowance_of
from ipnext.store.registry.artifacts import sizes_of

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"], route_class=GuardedRoute)

PIECE_BYTES = 2**20
"""Passed to the artifact store's thread at once: large enough that changing threads costs nothing. Chunks are not
joined."""

UPLOADS_AT_ONCE = 32
"""Each occupies a thread while it arrives."""

LOOKED_AT_ONCE = 16
"""Requests that ask the artifact store for blobs and manifests at once, a quarter of them for one client; the next ones
wait."""

SILENT_SECONDS = 30.0
"""Longest pause of an upload."""

PROVED_SECONDS = 3.0
"""Interval of the checks that an uploader may still upload."""

UploadedFor = Annotated[Name | None, Query(description="The model that it is uploaded for.")]

_BINARY = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string"}}}}}


@router.post("/missing", dependencies=[may("artifacts.upload", only_reads=True)], summary="Ask which blobs to upload")
async def missing(query: BlobQuery, request: Request, rooms: Rooms, asker: Asker) -> MissingBlobs:
    """Those of the given SHA-256 digests, at most 1,000, that the store does not hold: upload these only.

    The others are kept for the grace time.
    """
    return await _lookers(request).run(holder_of(asker), _missing, rooms, frozenset(query.digests))


def _missing(rooms: PlatformAdapters, asked: frozenset[str]) -> MissingBlobs:
    with rooms.store.begin_free(()) as unit:
        known = unit.touch_known(asked)
    absent = rooms.artifacts.missing(asked)
    unknown = asked - known - absent
    if unknown:  # a collection may remove them until they are touched
        with rooms.store.begin_free(()) as unit:
            unit.touch_artifacts(dict.fromkeys(unknown, 0))
        absent |= rooms.artifacts.missing(unknown)
    return MissingBlobs(missing=tuple(sorted(absent)))


@router.put(
    "/blobs/{sha256}",
    dependencies=[may("artifacts.upload")],
    status_code=204,
    summary="Upload a blob",
    openapi_extra=_BINARY,
    responses={**OF_ARTIFACTS, **OF_UPLOADS},
)
async def put_blob(sha256: Sha256, request: Request, rooms: Rooms, asker: Asker, model: UploadedFor = None) -> Response:
    """Store a blob. Content of another digest is refused (422) and leaves nothing behind.

    Its bytes count for the owner of `model`, else for who uploads until it is published; beyond what that may have it
    is refused (409) before it is read. Without `content-length` it counts as the largest blob until it is stored.
    """
    limit = rooms.settings.max_upload_bytes
    stated = _stated_size(request)
    size = limit if stated is None else stated
    _check_size(size, limit)
    upload = _Upload(request.stream(), size, UploadPace.of(rooms.settings), _Proof(rooms.access, acting_of(request)))
    with _turn(request, asker) as threads:
        await anyio.to_thread.run_sync(lambda: _admit(rooms, sha256, stated, asker, model))
        stored: int | None = None
        try:
            await anyio.to_thread.run_sync(rooms.artifacts.put_blob, sha256, upload.content(), limiter=threads)
            stored = upload.size
        finally:
            with CancelScope(shield=True):  # a disconnected client's reservation counts no more
                await anyio.to_thread.run_sync(lambda: _count_ended(rooms, sha256, stored))
    return Response(status_code=204)


@router.post(
    "/snapshots",
    dependencies=[may("artifacts.upload")],
    status_code=201,
    summary="Commit a snapshot",
    responses=OF_ARTIFACTS,
)
async def commit(
    manifest: SnapshotManifest, request: Request, rooms: Rooms, asker: Asker, model: UploadedFor = None
) -> StoredSnapshot:
    """Write a snapshot's manifest. Every blob it names must be there (422 names the first that is not).

    The manifest's own bytes count as those of a blob: for the owner of `model`, else for who commits until it is
    published.
    """
    return await _lookers(request).run(holder_of(asker), _commit, manifest, rooms, asker, model)


def _commit(manifest: SnapshotManifest, rooms: PlatformAdapters, asker: Principal, model: str | None) -> StoredSnapshot:
    check_files(manifest, rooms.plugins.files_of(manifest.engine))
    rooms.artifacts.check_whole(manifest)  # a refused one leaves no row behind
    digest, sizes = manifest.digest, sizes_of(manifest)
    allowance = _allowance_for(rooms, asker, model)
    rooms.artifacts.check_room(sizes[digest])
    record_asked(rooms.store, object=("Snapshot", digest))
    with rooms.store.begin_free(()) as unit:
        unit.reserve_blob(digest, sizes[digest], allowance, field="manifest")
        unit.touch_artifacts(sizes)
    stored: int | None = None
    try:
        uri = rooms.artifacts.commit(manifest)
        stored = sizes[digest]
    finally:
        _count_ended(rooms, digest, stored)
    return StoredSnapshot(uri=uri, digest=digest)


@router.put(
    "/snapshots/{digest}/signature",
    dependencies=[may("artifacts.upload")],
    status_code=204,
    summary="Upload a signature",
    responses=OF_ARTIFACTS,
)
async def put_signature(
    digest: Sha256, envelope: SignatureEnvelope, request: Request, rooms: Rooms, asker: Asker
) -> Response:
    """Keep signatures of a committed snapshot beside those that it has.

    Each has to be valid, by a key that a model which the asker may publish names in
    `spec.validation.signers.publicKeys`, or that the operator trusts for native code. Others, malformed ones and those
    of another snapshot are refused (422); none is kept then.
    """
    await _lookers(request).run(holder_of(asker), _put_signature, digest, envelope, rooms, asker)
    return Response(status_code=204)


def _put_signature(digest: str, envelope: SignatureEnvelope, rooms: PlatformAdapters, asker: Principal) -> None:
    signers = sorted(signature.keyid for signature in envelope.signatures)
    record_asked(rooms.store, object=("Snapshot", digest), after={"signers": signers})
    rooms.signatures.keep(digest, envelope, rooms.access.publishable(asker))


@router.get("/collect", dependencies=[may("artifacts.collect")], summary="Show what a collection would remove")
async def collectable(request: Request, rooms: Rooms, asker: Asker) -> CollectionView:
    """List what a collection would remove now, by class: number, bytes and reasons."""
    collection = Collection(rooms.store, rooms.artifacts, Retention.of(rooms.settings), dry_run=True)
    return await _lookers(request).run(holder_of(asker), collection.run)


@router.post("/collect", dependencies=[may("artifacts.collect")], summary="Collect what retention lets go")
async def collect(request: Request, rooms: Rooms, asker: Asker) -> CollectionView:
    """Release snapshots that nothing needs, remove unused blobs, and delete old rows of the history.

    A blob is unused if no snapshot names it and no client used it for the grace time.

    The platform does so on a schedule. One pass: `unfinished` if more is left.
    """
    return await _lookers(request).run(holder_of(asker), _collect, rooms)


def _collect(rooms: PlatformAdapters) -> CollectionView:
    record_asked(rooms.store, object=("Artifacts", "unnamed"))
    return Collection(rooms.store, rooms.artifacts, Retention.of(rooms.settings)).run()


def _lookers(request: Request) -> Turns:
    """Return the threads that call the artifact store for other requests than uploads.

    No other endpoint waits for a slow one.
    """
    state = request.app.state
    if not hasattr(state, "artifact_lookers"):
        state.artifact_lookers = Turns(LOOKED_AT_ONCE)
    lookers: Turns = state.artifact_lookers
    return lookers


@contextmanager
def _turn(request: Request, asker: Principal) -> Iterator[CapacityLimiter]:
    """Occupy one of the upload threads: clients that send slowly block no other endpoint.

    Raises:
        Unavailable: all are occupied.
        RateLimited: the principal has its share of them.
    """
    state = request.app.state
    if not hasattr(state, "uploads"):
        state.uploads, state.upload_threads = Slots(UPLOADS_AT_ONCE, "uploads"), CapacityLimiter(UPLOADS_AT_ONCE)
    with state.uploads.occupy(holder_of(asker)):
        yield state.upload_threads


def _stated_size(request: Request) -> int | None:
    """Return the bytes that an upload says it has; None if it is sent in chunks, whose number ends it (RFC 9112)."""
    stated = request.headers.get("content-length")
    return None if stated is None or "transfer-encoding" in request.headers else int(stated)


def _admit(rooms: PlatformAdapters, sha256: str, size: int | None, asker: Principal, model: str | None) -> None:
    """Record that a blob is coming, and count it; without a size, as the largest one.

    Raises QuotaExceeded, NotFound, Forbidden or InsufficientStorage.
    """
    allowance = _allowance_for(rooms, asker, model)
    rooms.artifacts.check_room(size or 0)
    record_asked(rooms.store, object=("Blob", sha256))
    counted = rooms.settings.max_upload_bytes if size is None else size
    with rooms.store.begin_free(()) as unit:
        try:
            unit.reserve_blob(sha256, counted, allowance)
        except QuotaExceeded as error:
            if size is not None:
                raise
            msg = (
                "content-length: the upload has none and counts as the largest blob (IPNEXT_MAX_UPLOAD_BYTES) until "
                f"it is stored; {error.message}"
            )
            raise QuotaExceeded(msg, field="content-length", allowed=error.allowed) from error


def _allowance_for(rooms: PlatformAdapters, asker: Principal, model: str | None) -> Allowance:
    """Return the account of uploaded bytes, with its limit. Raises NotFound or Forbidden."""
    default = rooms.settings.artifact_bytes
    if model is None:
        return uploaders_allowance(asker, default=default)
    with rooms.store.read() as unit:
        rooms.access.require_model(asker, "models.publish", unit, model)
        return allowance_of(unit, unit.model(model).manifest.metadata.owner, default=default)


def _count_ended(rooms: PlatformAdapters, sha256: str, size: int | None) -> None:
    """Count a blob with its final size; None: the upload failed."""
    with rooms.store.begin_free(()) as unit:
        if size is None:
            unit.blob_refused(sha256)
        else:
            unit.blob_stored(sha256, size)


class UploadPace(NamedTuple):
    """Lowest rate of an upload."""

    bytes_per_second: int
    grace_seconds: float

    @classmethod
    def of(cls, settings: PlatformSettings) -> "UploadPace":
        """Return the pace of the settings."""
        return cls(settings.upload_bytes_per_second, settings.upload_grace_seconds)

    def allows_seconds(self, size: int) -> float:
        """Return the time by which more than `size` bytes must have arrived.

        It is at most that of a whole blob at the lowest rate.
        """
        return self.grace_seconds + size / self.bytes_per_second


class _Proof:
    """Proof that the uploader may still upload, repeated while its body arrives."""

    def __init__(self, access: Access, acting: RequestAuthority) -> None:
        self._access, self._acting = access, acting
        self._due = time.monotonic() + PROVED_SECONDS

    async def renew(self, *, at_once: bool = False) -> None:
        """Prove the uploader again if it is due. Raises Unauthenticated, Forbidden or NotFound."""
        if at_once or time.monotonic() >= self._due:
            await anyio.to_thread.run_sync(self._access.prove_now, self._acting)
            self._due = time.monotonic() + PROVED_SECONDS


class _Upload:
    """A body that is being stored."""

    def __init__(self, stream: AsyncIterator[bytes], limit: int, pace: UploadPace, proof: _Proof) -> None:
        self.size = 0
        """Bytes so far."""
        self._stream = stream
        self._limit = limit
        self._pace = pace
        self._proof = proof

    def content(self) -> Iterator[bytes]:
        """Yield the chunks, for code in a worker thread."""
        for chunk in _from_thread(_pieces(self._stream, self._limit, self._pace, self._proof)):
            self.size += len(chunk)
            yield chunk


def _check_size(size_bytes: int, limit: int) -> None:
    if size_bytes > limit:
        msg = f"the blob is larger than {limit} bytes, the limit of this server (IPNEXT_MAX_UPLOAD_BYTES)"
        raise TooLarge(msg)


async def _pieces(
    stream: AsyncIterator[bytes], limit: int, pace: UploadPace, proof: _Proof
) -> AsyncIterator[list[bytes]]:
    """Yield the body's chunks as they arrive, grouped to at least PIECE_BYTES.

    Raises:
        TooLarge: as soon as the limit is passed.
        TooSlow: nothing arrived for SILENT_SECONDS, or the body is slower than `pace`.
        Unauthenticated, Forbidden or NotFound: the uploader may not upload any more, at the latest at the body's end.
    """
    size, gathered, began = 0, 0, time.monotonic()
    piece: list[bytes] = []
    while True:
        left = pace.allows_seconds(size) - (time.monotonic() - began)
        try:
            async with asyncio.timeout(max(0.0, min(SILENT_SECONDS, left))):
                chunk = await _next_chunk(stream, proof)
        except TimeoutError as error:
            msg = (
                f"the body comes too slowly: {size} bytes so far; after {pace.grace_seconds:g} s at least "
                f"{pace.bytes_per_second} "
                f"bytes/s are wanted (IPNEXT_UPLOAD_BYTES_PER_SECOND), and no pause of {SILENT_SECONDS:g} s"
            )
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
    await proof.renew(at_once=True)
    if piece:
        yield piece


async def _next_chunk(stream: AsyncIterator[bytes], proof: _Proof) -> bytes | None:
    """Return the next chunk, None at the end, and renew the proof while it does not arrive."""
    waiting = asyncio.ensure_future(anext(stream, None))
    try:
        while not waiting.done():
            await asyncio.wait({waiting}, timeout=PROVED_SECONDS)
            await proof.renew()
        return waiting.result()
    finally:
        waiting.cancel()


def _from_thread(pieces: AsyncIterator[list[bytes]]) -> Iterator[bytes]:
    """Yield the chunks for code that runs in a worker thread of this event loop."""

    async def following() -> list[bytes] | None:
        return await anext(pieces, None)

    while (piece := anyio.from_thread.run(following)) is not None:
        yield from piece
