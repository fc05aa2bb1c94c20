"""Calls that publish snapshots, with the upload of their files."""

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from uuid import uuid4

from ipnext.artifacts.hashing import chunks_of
from ipnext.artifacts.local_links import open_directory
from ipnext.artifacts.sources import ArtifactSource, signature_of
from ipnext.client.connection import Connection
from ipnext.client.upload import published_manifest
from ipnext.errors import Unavailable
from ipnext.model.access.artifact_use import CollectionView
from ipnext.model.api.resources import (
    MOST_ASKED,
    BlobQuery,
    ChangeView,
    MissingBlobs,
    PublishPart,
    PublishRequest,
    StoredSnapshot,
)
from ipnext.model.registry.registry import ArtifactFile, SnapshotManifest
from ipnext.model.registry.signing import SignatureEnvelope
from ipnext.sources.training_record import trained_at_of

SERVER_SIDE = ("file://", "s3://")
"""Sources that the server reads itself."""


class PublicationCalls(Connection):
    """Publications, and the artifact store that they fill."""

    def publish(
        self,
        model: str,
        parts: Mapping[str, Path | str],
        *,
        change_id: str | None = None,
        override_freeze: str | None = None,
        trained_at: datetime | None = None,
        on_upload: Callable[[ArtifactFile], None] | None = None,
    ) -> ChangeView:
        """Publish snapshots.

        Part -> local snapshot or checkpoint directory, or a file:// or s3:// uri that the server reads. Files that the
        server lacks are uploaded first. The same `change_id` twice is one change. With the reason `override_freeze`,
        which is recorded in the audit, it passes every freeze. `trained_at`, with a zone, is when their training ended;
        without it each part's `training.json` says so, if there is one.
        """
        published = {source: self._publish_part(model, source, on_upload) for source in dict.fromkeys(parts.values())}
        if trained_at is not None:
            published = {key: part.model_copy(update={"trained_at": trained_at}) for key, part in published.items()}
        given = {part: published[source] for part, source in parts.items()}
        request = PublishRequest(change_id=change_id or uuid4().hex, parts=given, override_freeze=override_freeze)
        return self._call("POST", f"/v1/models/{model}/publish", ChangeView, body=request)

    def upload(self, model: str, directory: Path) -> str:
        """Upload a local snapshot or checkpoint directory for a model; return its digest. Nothing is published."""
        return self._publish_part(model, directory, None).digest or ""

    def _publish_part(
        self, model: str, source: Path | str, on_upload: Callable[[ArtifactFile], None] | None
    ) -> PublishPart:
        if isinstance(source, str) and source.startswith(SERVER_SIDE):
            return PublishPart(uri=source)
        directory = Path(source)
        files = open_directory(directory)
        manifest = published_manifest(files, directory)
        missing = self._missing(manifest)
        for file in {f.sha256: f for f in manifest.files if f.sha256 in missing}.values():
            if on_upload is not None:
                on_upload(file)
            self._retry(Unavailable, self._upload, model, files, file)
        envelope = signature_of(files, manifest)
        stored = self._call("POST", "/v1/artifacts/snapshots", StoredSnapshot, body=manifest, params={"model": model})
        if envelope is not None:
            self._retry(Unavailable, self._sign, stored.digest, envelope)
        return PublishPart(digest=stored.digest, trained_at=trained_at_of(files))

    def _missing(self, manifest: SnapshotManifest) -> frozenset[str]:
        digests = tuple(sorted({file.sha256 for file in manifest.files}))
        found: set[str] = set()
        for start in range(0, len(digests), MOST_ASKED):
            query = BlobQuery(digests=digests[start : start + MOST_ASKED])
            found.update(self._call("POST", "/v1/artifacts/missing", MissingBlobs, body=query).missing)
        return frozenset(found)

    def _upload(self, model: str, source: ArtifactSource, file: ArtifactFile) -> None:
        headers = {"content-type": "application/octet-stream", "content-length": str(file.size_bytes)}
        with source.open(file.path) as stream:
            path = f"/v1/artifacts/blobs/{file.sha256}"
            self._send("PUT", path, content=chunks_of(stream), headers=headers, params={"model": model})

    def _sign(self, digest: str, envelope: SignatureEnvelope) -> None:
        headers = {"content-type": "application/json"}
        self._send("PUT", f"/v1/artifacts/snapshots/{digest}/signature", content=envelope.content, headers=headers)

    def collect_artifacts(self, *, dry_run: bool = False) -> CollectionView:
        """Remove unreferenced items of the artifact store, or with `dry_run` show them."""
        return self._call("GET" if dry_run else "POST", "/v1/artifacts/collect", CollectionView)
