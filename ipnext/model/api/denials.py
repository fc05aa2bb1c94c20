"""The deny-list at the API."""

from datetime import datetime

from ipnext.model.registry.denials import DenialReason
from ipnext.model.value import Name, Sha256, WrittenValue


class DenialRequest(WrittenValue):
    """Body of `PUT /v1/denials/{digest}`."""

    reason: DenialReason
    """Why, in words that publishers read."""


class DeniedSnapshotView(WrittenValue):
    """A snapshot that a denial covers."""

    model: Name
    part: Name
    number: int
    digest: Sha256


class DenialView(WrittenValue):
    """A denied digest."""

    digest: Sha256
    reason: str
    denied_by: str | None = None
    """Shown to principals that see the models of all owners."""
    denied_at: datetime
    is_carried_out: bool
    """Whether all snapshots that it covers were found, and rollbacks from them recorded."""
    snapshots: tuple[DeniedSnapshotView, ...] = ()
    """The first ones that it covers, of visible models; not in lists."""
    going_back: tuple[Name, ...] = ()
    """Answer of `PUT`: models with its snapshots that go back to a former generation now; of many, the first ones."""
    staying: tuple[Name, ...] = ()
    """Answer of `PUT`: those that serve a denied snapshot and have no former generation to go back to."""
