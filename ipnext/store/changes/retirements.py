"""Changes that retire their model now: the one definition for failover, reconciler and the check for a single mover.

A retirement that waits for a freeze moves nothing: its model serves on, and the retirement can be aborted.
"""

from sqlalchemy import and_, func

from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.status import Reason
from ipnext.store.tables.changes import ChangeRow
from ipnext.store.tables.row import METADATA

CHANGES = METADATA.tables[ChangeRow.__tablename__]

NOT_FROZEN = func.coalesce(CHANGES.c.reason, "") != Reason.FROZEN.value
"""A change that runs waits for no freeze."""

RETIRES = and_(CHANGES.c.kind == ChangeKind.RETIRE.value, CHANGES.c.state == ChangeState.RUNNING.value, NOT_FROZEN)
"""A change moves its model by retiring it."""
