"""Overrides of checks, as the API gives them."""

from ipnext.errors import InvalidInput
from ipnext.model.lifecycle.changes.change import Change
from ipnext.model.lifecycle.checks import SAFETY_CRITICAL
from ipnext.model.manifest.freeze import Override
from ipnext.plugins import Plugins
from ipnext.store.operations.repetition import override_check
from ipnext.store.repository import Repository


def check_overridable(name: str, plugins: Plugins) -> None:
    """Refuse a check that is unknown, or that no operator may override. Raises InvalidInput."""
    allowed = tuple(dict.fromkeys(view.name for view in plugins.validator_views if view.overridable))
    if name in allowed:
        return
    why = "is safety-critical and can't be overridden" if name in SAFETY_CRITICAL else "is no active check"
    msg = f"check: {name!r} {why}; allowed: {', '.join(allowed)}"
    raise InvalidInput(msg, field="check", value=name, allowed=allowed)


def pass_check(unit: Repository, change: Change, check: str, *, who: str, reason: str) -> Override:
    """Override a check for a change, and record it once."""
    given, again = override_check(unit, change, check, who=who, reason=reason)
    text = f"{change.kind} {change.id} passes the check {check}, by {given.who}: {given.reason}"
    if all(event.message != text for event in unit.events(change.model, limit=50)):
        unit.add_event(change.model, "CheckOverridden", text)
    return Override(
        change_id=change.id,
        model=change.model,
        at=given.at,
        who=given.who,
        reason=given.reason,
        check=check,
        again=None if again is None else again.id,
    )
