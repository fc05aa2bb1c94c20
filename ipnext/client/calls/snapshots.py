"""Calls about single snapshots: lineage, holds, and their deletion."""

from ipnext.client.connection import Connection
from ipnext.client.lists import Listing, params_of
from ipnext.model.api.lineage import HoldRequest, HoldView, SnapshotLineage
from ipnext.model.registry.registry import Snapshot


class SnapshotCalls(Connection):
    """Lineage and holds of snapshots."""

    def lineage(self, model: str, *, part: str | None = None, limit: int | None = None) -> Listing[SnapshotLineage]:
        """List the lineage of a model's snapshots by part, the newest of each part first. NotFound."""
        return self._list(f"/v1/models/{model}/lineage", SnapshotLineage, limit, **params_of(part=part))

    def snapshot_lineage(self, model: str, part: str, number: int) -> SnapshotLineage:
        """Return training run, derived snapshots, generations and placements of a snapshot. NotFound."""
        return self._get(f"/v1/models/{model}/snapshots/{part}/{number}/lineage", SnapshotLineage)

    def holds(self, model: str | None = None, *, limit: int | None = None) -> Listing[HoldView]:
        """List holds of snapshots by model, part and number, of one model or of all."""
        return self._list("/v1/holds", HoldView, limit, **params_of(model=model))

    def hold_snapshot(self, model: str, part: str, number: int, *, reason: str) -> HoldView:
        """Keep a snapshot's bytes until its hold is released. NotFound; Conflict if they were released before."""
        path = f"/v1/models/{model}/snapshots/{part}/{number}/hold"
        return self._call("PUT", path, HoldView, body=HoldRequest(reason=reason))

    def release_hold(self, model: str, part: str, number: int, *, reason: str = "") -> HoldView:
        """Let retention decide about a snapshot again. NotFound if it is not held."""
        path = f"/v1/models/{model}/snapshots/{part}/{number}/hold"
        return self._call("DELETE", path, HoldView, params=params_of(reason=reason or None))

    def delete_snapshot(self, model: str, part: str, number: int) -> Snapshot:
        """Release the bytes of a snapshot that nothing needs. NotFound; Conflict names what needs it."""
        return self._call("DELETE", f"/v1/models/{model}/snapshots/{part}/{number}", Snapshot)
