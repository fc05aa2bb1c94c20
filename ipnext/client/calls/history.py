"""Calls about the history of models: generations, snapshots, profiles, reports, transitions, events."""

from ipnext.client.connection import Connection
from ipnext.client.lists import Listing, params_of
from ipnext.model.api.resources import EventView, SnapshotView, TransitionView
from ipnext.model.lifecycle.checks import ValidationReport
from ipnext.model.registry.profile import Profile, ProfileView
from ipnext.model.registry.registry import Generation


class HistoryCalls(Connection):
    """Generations of models, snapshots with their profiles, reports, transitions and events."""

    def generations(self, model: str, *, limit: int | None = None) -> Listing[Generation]:
        """List a model's generations, newest first."""
        return self._list(f"/v1/models/{model}/generations", Generation, limit)

    def snapshots(self, model: str, *, part: str | None = None, limit: int | None = None) -> Listing[SnapshotView]:
        """List a model's snapshots by part, the newest of each part first."""
        return self._list(f"/v1/models/{model}/snapshots", SnapshotView, limit, **params_of(part=part))

    def snapshot(self, model: str, part: str, number: int) -> SnapshotView:
        """Return one snapshot, with when it was trained, published and first served. Raises NotFound."""
        return self._get(f"/v1/models/{model}/snapshots/{part}/{number}", SnapshotView)

    def profiles(self, model: str, part: str, snapshot: int, *, limit: int | None = None) -> Listing[ProfileView]:
        """List the measurements of a snapshot's replicas, newest first."""
        return self._list(f"/v1/models/{model}/snapshots/{part}/{snapshot}/profiles", ProfileView, limit)

    def put_profile(self, model: str, part: str, snapshot: int, profile: Profile) -> ProfileView:
        """Store a measurement of a snapshot; an equal one changes nothing."""
        path = f"/v1/models/{model}/snapshots/{part}/{snapshot}/profiles"
        return self._put(path, profile, ProfileView, params={})

    def report(self, model: str, generation: int) -> ValidationReport:
        """Return the validation report of a generation."""
        return self._get(f"/v1/models/{model}/reports/{generation}", ValidationReport)

    def transitions(self, model: str, *, limit: int | None = 20) -> Listing[TransitionView]:
        """List a model's transitions, newest first."""
        return self._list(f"/v1/models/{model}/transitions", TransitionView, limit)

    def events(self, model: str | None = None, *, limit: int | None = 100) -> Listing[EventView]:
        """List the events of a model, or of all, newest first."""
        path = "/v1/events" if model is None else f"/v1/models/{model}/events"
        return self._list(path, EventView, limit)
