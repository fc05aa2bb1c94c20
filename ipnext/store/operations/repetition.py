"""Changes that are carried out once more: after a lost region, or past a check that refused them."""

from typing import Final

from ipnext import names
from ipnext.errors import Conflict
from ipnext.model.lifecycle.changes.change import Change, ChangeKind, ChangeState
from ipnext.model.lifecycle.checks import CheckOverride
from ipnext.model.registry.registry import GenerationState
from ipnext.store.operations.change_end import note_waiting
from ipnext.store.repository import Repository

VALIDATED: Final = frozenset({ChangeKind.PUBLISH, ChangeKind.APPLY})
"""Kinds of changes with a validation."""

_REFUSED: Final = frozenset({ChangeState.REFUSED, ChangeState.ROLLED_BACK})
"""Ends by a check: of the validation, or of live replicas, after which the transition is reverted."""
_REPLACES: Final = frozenset({ChangeKind.PUBLISH, ChangeKind.ROLLBACK, ChangeKind.RETIRE})


def record_repetition(repository: Repository, change: Change) -> Change:
    """Record a change of the same kind and generation, with the overrides of `change`. Once for each change."""
    change_id = names.again_id(change.model, change.sequence)
    again = repository.record_again(change, change_id=change_id)
    given = repository.freeze_override(change.id)
    if given is not None and change.kind is not ChangeKind.ROLLBACK:
        repository.override_freezes(change_id, who=given.who, reason=given.reason, passes=None)
    for check, override in repository.check_overrides(change.id).items():
        repository.override_check(change_id, check, who=override.who, reason=override.reason)
    repository.add_event(
        change.model, "RecordedAgain", f"{change.kind} {change.id} is carried out again as {change_id}"
    )
    return again


def is_replaced(repository: Repository, change: Change) -> bool:
    """Check whether a newer change of the model replaces this one."""
    return repository.has_newer(change, _REPLACES | ({ChangeKind.APPLY} & {change.kind}))


def pend_again(repository: Repository, again: Change) -> None:
    """Set the generation of a repeated publish to pending, as if just published.

    Called after the end of the former change.
    """
    if again.kind is ChangeKind.PUBLISH and again.generation is not None:
        repository.set_generation_state(again.model, again.generation, GenerationState.PENDING)


def override_check(
    repository: Repository, change: Change, check: str, *, who: str, reason: str
) -> tuple[CheckOverride, Change | None]:
    """Let a change pass although a check refuses it.

    A change that the check has refused is carried out again, by the change that is returned. Repeated, the first
    override stays. Raises Conflict if the change has no validation, has ended otherwise, or a newer one replaces it.
    """
    given = repository.check_overrides(change.id).get(check)
    again = repository.find_change(names.again_id(change.model, change.sequence))
    if given is not None and (again is not None or change.state not in _REFUSED):
        return given, again
    if not change.state.final and change.kind in VALIDATED:
        return repository.override_check(change.id, check, who=who, reason=reason), None
    _check_refused(repository, change, check)
    override = repository.override_check(change.id, check, who=who, reason=reason)
    again = record_repetition(repository, change)
    pend_again(repository, again)
    note_waiting(repository, again)
    return override, again


def _check_refused(repository: Repository, change: Change, check: str) -> None:
    """Raise Conflict unless this check refused the change, and nothing has come after it."""
    again = repository.find_change(names.again_id(change.model, change.sequence))
    report = None if change.generation is None else repository.report(change.model, change.generation)
    refusals = () if report is None else report.refusals
    if change.kind not in VALIDATED:
        why = f"is a {change.kind}, which no check refuses"
    elif change.state not in _REFUSED:
        why = f"is {change.state} already; there is nothing to override"
    elif again is not None:
        why = f"is carried out again as {again.id}: override the check for that one"
    elif is_replaced(repository, change):
        why = "has a newer publish, rollback or retirement after it; publish the snapshots again"
    elif check not in refusals:
        why = f"was not refused by the check {check!r}; checks that refused it: {', '.join(refusals) or 'none'}"
    else:
        return
    msg = f"change {change.id!r} {why}"
    raise Conflict(msg)
