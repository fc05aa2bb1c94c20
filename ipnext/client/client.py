"""The Python client of the API. Needs only the base dependencies; the CLI and notebooks use it.

Idempotent calls are retried for a moment while the API can't be reached. Errors are those of `ipnext.errors`, with the
server's text. `connection` has the constructor, `calls` all methods about one noun.
"""

from ipnext.client.calls.access import AccessCalls
from ipnext.client.calls.audit import AuditCalls
from ipnext.client.calls.changes import ChangeCalls
from ipnext.client.calls.denials import DenialCalls
from ipnext.client.calls.freezes import FreezeCalls
from ipnext.client.calls.history import HistoryCalls
from ipnext.client.calls.models import ModelCalls
from ipnext.client.calls.owners import OwnerCalls
from ipnext.client.calls.plans import PlanCalls
from ipnext.client.calls.publications import PublicationCalls
from ipnext.client.calls.regions import RegionCalls
from ipnext.client.calls.snapshots import SnapshotCalls
from ipnext.client.calls.sources import SourceCalls
from ipnext.model.access.owner import OwnerManifest, OwnerView
from ipnext.model.api.plugins import StageView, ValidatorView
from ipnext.model.api.resources import FleetView, ModelApplied, Readiness
from ipnext.model.fleet import FleetManifest
from ipnext.model.manifest.freeze import FreezeManifest, FreezeView
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.manifest.parser import Manifest, parse_manifests

_ORDER: tuple[type, ...] = (FleetManifest, OwnerManifest, FreezeManifest, ModelManifest)
"""Order of application: objects that others refer to come first."""


class Client(
    ModelCalls,
    PublicationCalls,
    ChangeCalls,
    HistoryCalls,
    OwnerCalls,
    FreezeCalls,
    DenialCalls,
    AuditCalls,
    AccessCalls,
    PlanCalls,
    RegionCalls,
    SnapshotCalls,
    SourceCalls,
):
    """Client of one API. Safe to use from several threads; close it, or use it as a context manager."""

    def apply(
        self, manifest: str | Manifest, *, dry_run: bool = False
    ) -> tuple[ModelApplied | FleetView | FreezeView | OwnerView, ...]:
        """Apply YAML text (one or more documents, fleets first) or one manifest. Raises InvalidInput before sending."""
        manifests = parse_manifests(manifest) if isinstance(manifest, str) else (manifest,)
        ordered = sorted(manifests, key=lambda m: _ORDER.index(type(m)))
        return tuple(self._apply_one(each, dry_run=dry_run) for each in ordered)

    def _apply_one(self, manifest: Manifest, *, dry_run: bool) -> ModelApplied | FleetView | FreezeView | OwnerView:
        if isinstance(manifest, ModelManifest):
            return self.put_model(manifest, dry_run=dry_run)
        if isinstance(manifest, OwnerManifest):
            return self.put_owner(manifest, dry_run=dry_run)
        if isinstance(manifest, FreezeManifest):
            return self.put_freeze(manifest, dry_run=dry_run)
        return self.put_fleet(manifest, dry_run=dry_run)

    def validators(self) -> tuple[ValidatorView, ...]:
        """Return the built-in validators and plug-ins, refused ones included."""
        return self._get("/v1/validators", tuple[ValidatorView, ...])

    def stages(self) -> tuple[StageView, ...]:
        """Return the built-in stages of changes and those of other distributions, refused ones included."""
        return self._get("/v1/stages", tuple[StageView, ...])

    def readiness(self) -> Readiness:
        """Return whether the API is up, and the state of its dependencies."""
        return self._get("/readyz", Readiness)
