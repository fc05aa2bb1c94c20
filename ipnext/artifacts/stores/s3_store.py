"""Artifacts in a bucket: `s3://bucket/prefix`, on AWS or any server that is compatible with S3."""

import hashlib
from base64 import b64encode
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from botocore.exceptions import BotoCoreError, ClientError

from ipnext.artifacts import layout
from ipnext.artifacts.disk_reserve import DiskReserve
from ipnext.artifacts.download import lay_out, lay_signature
from ipnext.artifacts.hashing import regroup_chunks, verify_chunks
from ipnext.artifacts.port import StoredItem
from ipnext.artifacts.stores.s3_client import S3Client, answering, s3_client, status_of
from ipnext.artifacts.stores.s3_stream import open_object
from ipnext.errors import ArtifactDigestMismatch, ArtifactMissing
from ipnext.model.registry.registry import SNAPSHOT_FILE, ArtifactFile, SnapshotManifest
from ipnext.model.registry.signing import SignatureEnvelope

PART_BYTES = 16 << 20
"""A blob up to this size is one request, a larger one is sent in parts of it; at most this much is in memory."""

ASKED_AT_ONCE = 8
"""Blobs that are checked at the same time: half of the client's connections."""


class S3ArtifactStore:
    """An ArtifactStore below a key prefix of an existing bucket. Threads and processes may share it.

    The server checks a SHA-256 of every part, so that it refuses data damaged on the network.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        endpoint_url: str | None = None,
        *,
        part_bytes: int = PART_BYTES,
        client: S3Client | None = None,
        reserve_bytes: int = 0,
    ) -> None:
        """`reserve_bytes`: free space that a fetch leaves on the disk that it writes to."""
        self._reserve_bytes = reserve_bytes
        self._bucket = bucket
        self._prefix = prefix.strip("/")
        self._part_bytes = part_bytes
        self._client = client or s3_client(endpoint_url)

    @property
    def uri(self) -> str:
        """`s3://bucket/prefix`."""
        return f"s3://{self._bucket}" + (f"/{quote(self._prefix)}" if self._prefix else "")

    def missing(self, digests: Iterable[str]) -> frozenset[str]:
        """Return those of the given digests that are not in the store."""
        asked = tuple(frozenset(digests))
        with self._lookers() as threads:
            sizes = threads.map(lambda digest: self._size(layout.blob_key(digest)), asked)
            return frozenset(digest for digest, size in zip(asked, sizes, strict=True) if size is None)

    def check_room(self, size_bytes: int) -> None:
        """Return: a bucket has no disk of this machine's."""

    def put_blob(self, sha256: str, chunks: Iterator[bytes]) -> None:
        """Store a blob whole or not at all, streaming it in parts; an existing one is replaced."""
        key = layout.blob_key(sha256)
        parts = regroup_chunks(verify_chunks(chunks, sha256=sha256, subject=f"blob {sha256}"), size=self._part_bytes)
        first = next(parts)
        second = next(parts, None)
        if second is None:
            with answering(self._name(key)):
                self._client.put_object(**self._at(key), Body=first, ChecksumSHA256=_checksum(first))
        else:
            self._put_parts(key, chain((first, second), parts))

    def open_blob(self, sha256: str) -> BinaryIO:
        """Open a stream of the blob that resumes after a cut connection; the caller closes it.

        Raises ArtifactMissing.
        """
        return open_object(self._client, self._bucket, self._key(layout.blob_key(sha256)))

    def check_whole(self, manifest: SnapshotManifest) -> None:
        """Check paths and size of the manifest, and that all its blobs are in the store.

        Each once, ASKED_AT_ONCE in parallel.
        """
        layout.check_manifest(manifest)
        files: dict[tuple[str, int], ArtifactFile] = {}
        for file in manifest.files:
            files.setdefault((file.sha256, file.size_bytes), file)
        with self._lookers() as threads:
            for _ in threads.map(lambda f: self._check_blob(f.path, f.sha256, f.size_bytes), files.values()):
                pass  # the first fault is raised, and the remaining checks are skipped

    def commit(self, manifest: SnapshotManifest) -> str:
        """Write the manifest of a snapshot whose blobs are all in the store; return its uri.

        Written only if there is none (If-None-Match): of several writers one wins, the others find the same bytes.
        """
        self.check_whole(manifest)
        digest, content = manifest.digest, layout.manifest_bytes(manifest)
        key = layout.snapshot_key(digest)
        with answering(self._name(key)):
            try:
                self._client.put_object(
                    **self._at(key), Body=content, ChecksumSHA256=_checksum(content), IfNoneMatch="*"
                )
            except ClientError as error:
                if status_of(error) not in {409, 412}:
                    raise
                layout.read_stored(self._read(key), digest, f"manifest {self._name(key)}")
        return layout.snapshot_uri(self.uri, digest)

    def manifest(self, uri: str) -> SnapshotManifest:
        """Return the manifest of a snapshot of this store, checked against its digest."""
        digest = layout.digest_in(uri, self.uri)
        try:
            content = self._read(layout.snapshot_key(digest))
        except ArtifactMissing as error:
            msg = f"snapshot {uri} is not there, or was never committed"
            raise ArtifactMissing(msg) from error
        return layout.read_stored(content, digest, f"manifest of {uri}")

    def put_signature(
        self, digest: str, envelope: SignatureEnvelope, *, keep: Callable[[], Collection[str]] | None = None
    ) -> None:
        """Store signatures next to the manifest; existing ones stay."""
        self.manifest(layout.snapshot_uri(self.uri, digest))
        changes = layout.signature_changes(self._signatures(digest), envelope, digest, keep)
        for name, content in changes.added.items():
            key = layout.signature_key(digest, name)
            with answering(self._name(key)):
                self._client.put_object(**self._at(key), Body=content, ChecksumSHA256=_checksum(content))
        for name in changes.dropped:
            self._delete(layout.signature_key(digest, name))

    def signature(self, uri: str) -> bytes | None:
        """Return the signature file of a snapshot of this store; None if it is not signed."""
        digest = layout.digest_in(uri, self.uri)
        return layout.joined_signatures(self._signatures(digest), digest)

    def _signatures(self, digest: str) -> Mapping[str, bytes]:
        """Map the names of the stored signatures to their content."""
        found: dict[str, bytes] = {}
        for name in self._signature_names(digest):
            with suppress(ArtifactMissing):  # it has just been removed
                found[name] = self._read(layout.signature_key(digest, name))
        return found

    def _signature_names(self, digest: str) -> tuple[str, ...]:
        prefix = layout.signatures_prefix(digest)
        names = (item["Key"].removeprefix(self._key(prefix)) for item in self._list_objects(prefix))
        return tuple(name for name in names if layout.is_digest(name))

    def fetch(self, uri: str, directory: Path) -> Path:
        """Write the snapshot's files into `directory/<digest>`."""
        digest = layout.digest_in(uri, self.uri)
        reserve = DiskReserve(directory, self._reserve_bytes)
        final = lay_out(self.manifest(uri), directory, digest=digest, open_blob=self.open_blob, reserve=reserve)
        lay_signature(final, self.signature(uri))
        return final

    def items(self) -> Iterator[StoredItem]:
        """Yield all blobs and manifests."""
        for folder, is_manifest in (("blobs/", False), ("snapshots/", True)):
            for found in self._list_objects(folder):
                digest, _, file = found["Key"].removeprefix(self._key(folder)).partition("/")
                if layout.is_digest(digest) and file == (SNAPSHOT_FILE if is_manifest else ""):
                    yield StoredItem(digest, found["Size"], found["LastModified"], is_manifest)

    def remove(self, item: StoredItem) -> None:
        """Remove a blob, or a manifest with its signatures: the manifest first, since it makes the snapshot exist."""
        if not item.is_manifest:
            self._delete(layout.blob_key(item.digest))
            return
        self._delete(layout.snapshot_key(item.digest))
        for name in self._signature_names(item.digest):
            self._delete(layout.signature_key(item.digest, name))

    def remove_leftovers(self, *, older_than_seconds: float = 86_400.0) -> int:  # noqa: ARG002 - the port's form
        """Return 0: a rule of the bucket ends incomplete uploads."""
        return 0

    def close(self) -> None:
        """End the connections."""
        self._client.close()

    def _put_parts(self, key: str, parts: Iterable[bytes]) -> None:
        """Upload in parts: the object appears when the upload is completed, and an exception removes its parts."""
        with answering(self._name(key)):
            upload = self._client.create_multipart_upload(**self._at(key), ChecksumAlgorithm="SHA256")["UploadId"]
        where = self._at(key) | {"UploadId": upload}
        try:
            done = [self._put_part(key, where, number, part) for number, part in enumerate(parts, start=1)]
            with answering(self._name(key)):
                self._client.complete_multipart_upload(**where, MultipartUpload={"Parts": done})
        except BaseException:
            with suppress(BotoCoreError, ClientError):  # a rule of the bucket ends incomplete uploads
                self._client.abort_multipart_upload(**where)
            raise

    def _put_part(self, key: str, where: Any, number: int, part: bytes) -> Any:
        checksum = _checksum(part)
        with answering(self._name(key)):
            answer = self._client.upload_part(**where, PartNumber=number, Body=part, ChecksumSHA256=checksum)
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum}

    def _list_objects(self, prefix: str) -> Iterator[Any]:
        """Yield the objects below a prefix, in any order."""
        with answering(self._name(prefix)):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._key(prefix)
            )
            for page in pages:
                yield from page.get("Contents", ())

    def _delete(self, key: str) -> None:
        with answering(self._name(key)):
            self._client.delete_object(**self._at(key))

    def _read(self, key: str) -> bytes:
        with open_object(self._client, self._bucket, self._key(key)) as stream:
            return stream.read(layout.LARGEST_MANIFEST_BYTES)

    def _size(self, key: str) -> int | None:
        with answering(self._name(key)):
            try:
                return self._client.head_object(**self._at(key))["ContentLength"]
            except ClientError as error:
                if status_of(error) == 404:
                    return None
                raise

    @staticmethod
    def _lookers() -> ThreadPoolExecutor:
        """Return the threads of one call that look at many blobs."""
        return ThreadPoolExecutor(ASKED_AT_ONCE, thread_name_prefix="s3-look")

    def _check_blob(self, path: str, sha256: str, size_bytes: int) -> None:
        found = self._size(layout.blob_key(sha256))
        if found is None:
            msg = f"file {path!r}: blob {sha256} is not in {self.uri}; put it before the manifest"
            raise ArtifactMissing(msg)
        if found != size_bytes:
            msg = f"file {path!r}: blob {sha256} has {found} bytes, the manifest says {size_bytes}"
            raise ArtifactDigestMismatch(msg)

    def _key(self, key: str) -> str:
        return f"{self._prefix}/{key}" if self._prefix else key

    def _at(self, key: str) -> Any:
        return {"Bucket": self._bucket, "Key": self._key(key)}

    def _name(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._key(key)}"


def _checksum(content: bytes) -> str:
    return b64encode(hashlib.sha256(content).digest()).decode()
