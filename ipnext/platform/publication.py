"""Publishes, recorded by the API for clients and by workers for sources: quotas, announcements, the change."""

from collections.abc import Mapping
from dataclasses import dataclass

from ipnext.artifacts.port import ArtifactStore
from ipnext.errors import Conflict, SnapshotDenied
from ipnext.model.lifecycle.changes.change import Change
from ipnext.model.registry.registry import SnapshotManifest, SnapshotSource
from ipnext.model.registry.snapshot_files import check_files
from ipnext.plugins import Plugins
from ipnext.store.operations.artifact_quota import admit_documents, allowance_of
from ipnext.store.operations.change_end import note_waiting
from ipnext.store.registry.artifacts import sizes_of
from ipnext.store.repository import Repository
from ipnext.store.store import Store


@dataclass(frozen=True, slots=True)
class Publisher:
    """Records new snapshots of models. `owner_bytes` is the quota of owners that have none of their own."""

    store: Store
    artifacts: ArtifactStore
    plugins: Plugins
    owner_bytes: int

    def announce(self, owner: str, manifest: SnapshotManifest) -> None:
        """Count the artifacts that are about to be read or named, and protect them from a collection.

        Raises QuotaExceeded; InvalidInput for a file that the engine's snapshots do not have.
        """
        check_files(manifest, self.plugins.files_of(manifest.engine))
        with self.store.begin_free(()) as unit:
            self._charge(unit, owner, manifest)

    def check_there(self, sources: Mapping[str, SnapshotSource]) -> None:
        """Check that no collection removed a snapshot before its announcement.

        A manifest is removed before its blobs. Raises ArtifactMissing.
        """
        for source in sources.values():
            self.artifacts.manifest(source.uri)

    def record(
        self, unit: Repository, model: str, owner: str, sources: Mapping[str, SnapshotSource], *, change_id: str
    ) -> Change:
        """Record announced snapshots by part as the next generation, in a unit of work of the model.

        `owner` is the one whose directories were read and whose quota was charged. Raises as `Repository.publish`;
        Conflict if the model has another owner now; SnapshotDenied; QuotaExceeded.
        """
        if unit.owner_of(model) != owner:
            msg = f"model {model!r} got another owner while its snapshots were read; publish them again"
            raise Conflict(msg)
        for part, source in sources.items():
            check_denial(unit, source.manifest, f"parts.{part}")
            self._charge(unit, owner, source.manifest)
        had = unit.document_bytes(model)
        change = unit.publish(model, sources, change_id=change_id)
        note_waiting(unit, change)
        allowance = allowance_of(unit, owner, default=self.owner_bytes)
        admit_documents(unit, allowance, unit.document_bytes(model) - had, field="parts", counted=True)
        return change

    def _charge(self, unit: Repository, owner: str, manifest: SnapshotManifest) -> None:
        """Charge the owner for artifacts that no owner is charged for. Raises QuotaExceeded."""
        unit.charge_artifacts(sizes_of(manifest), allowance_of(unit, owner, default=self.owner_bytes))


def check_denial(unit: Repository, manifest: SnapshotManifest, subject: str) -> None:
    """Check that no digest of a snapshot is denied. Raises SnapshotDenied."""
    denial = unit.find_denial(manifest)
    if denial is not None:
        msg = f"{subject}: snapshot {manifest.digest:.16} can't serve: {denial.text}"
        raise SnapshotDenied(msg)
