"""Who did what by hand, and why: freezes, and changes that were let through them."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from ipnext.model.freeze import ReasonText
from ipnext.model.value import Name, Value, Written

AuditAction = Literal["freeze_applied", "freeze_deleted", "freeze_overridden"]


class AuditEntry(Value):
    """One line of the audit. It is never changed and never deleted."""

    at: datetime
    who: str
    """As the caller said (header `X-IPnext-User`); it is not proved."""
    action: AuditAction
    subject: str
    """A freeze by its name, or a change by its id."""
    model: Name | None = None
    reason: str
    detail: Mapping[str, Any] | None = None
    """What was written; for an override, the freezes it passes."""


class OverrideRequest(Written):
    """Body of an override: lets one change through all freezes."""

    reason: ReasonText


class Override(Value):
    """A change that may pass every freeze."""

    change_id: str
    model: Name
    at: datetime
    who: str
    reason: str
    freezes: tuple[Name, ...] = ()
    """Freezes that bound it when the override was given."""
