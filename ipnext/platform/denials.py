"""What a denial does: its snapshots are noted, and models that serve one go back to a former generation.

Called by the API after a denial and by the reconciler, in its passes: whatever ended in between is repeated.
"""

from collections.abc import Mapping
from datetime import timedelta
from enum import Enum, auto
from itertools import count, groupby
from typing import Final, NamedTuple

from ipnext.errors import NotFound
from ipnext.model.lifecycle.messages import Change, ChangeKind, ChangeState
from ipnext.model.registry.denials import Denial
from ipnext.names import denial_rollback_id
from ipnext.store.operations.change_end import note_waiting
from ipnext.store.operations.rollback_targets import denied_generations, former_generations, kept_generations
from ipnext.store.repository import Repository
from ipnext.store.store import Store
from ipnext.store.unit_of_work import utc_now

RETRY_AFTER: Final = timedelta(minutes=5)
"""From the end of a rollback that failed to the next one from the same denied snapshot."""
_BRINGS: Final = frozenset({ChangeKind.PUBLISH, ChangeKind.APPLY, ChangeKind.ROLLBACK})
_LEAVES: Final = frozenset({ChangeKind.ROLLBACK, ChangeKind.RETIRE})


class Departures(NamedTuple):
    """Models that serve, or begin to serve, a denied snapshot, by name."""

    going_back: tuple[str, ...]
    """Those whose rollback was recorded now."""
    staying: tuple[str, ...]
    """Those without a former generation to go back to."""


class _Departure(Enum):
    NONE = auto()
    BACK = auto()
    NOWHERE = auto()


def carry_out_denials(store: Store) -> Departures:
    """Note the snapshots of new denials, and record the rollbacks that are due."""
    with store.read() as unit:
        pending = unit.denials_to_carry_out()
    new: set[str] = set()
    for denial in pending:
        with store.read() as unit:
            covered = unit.find_covered(denial)
        for model, snapshots in groupby(covered, key=lambda each: each.model):
            with store.begin(model) as unit:
                unit.mark_denied(model, denial, snapshots)
            new.add(model)
    with store.read() as unit:
        models = unit.models_denied()
    found = {model: _leave_denied(store, model, is_new=model in new) for model in models}
    for denial in pending:
        with store.begin() as unit:
            unit.mark_carried_out(denial)
    going_back = tuple(model for model, departure in found.items() if departure is _Departure.BACK)
    return Departures(going_back, tuple(model for model in found if found[model] is _Departure.NOWHERE))


def _leave_denied(store: Store, model: str, *, is_new: bool) -> _Departure:
    """Record a rollback if a model serves, or begins to serve, a denied snapshot. `is_new`: of a new denial."""
    with store.read() as unit:
        if _find_denied(unit, model) is None:
            return _Departure.NONE
    with store.begin(model) as unit:
        found = _find_denied(unit, model)
        if found is None:
            return _Departure.NONE
        number, denial, is_serving = found
        record, kept = unit.model(model), kept_generations(unit, model)
        denied = denied_generations(unit, model, kept)
        former = [each for each in former_generations(kept, record.serving_generation) if each not in denied]
        target = (former[0] if former else None) if is_serving else record.serving_generation
        if target is None:
            if is_new:
                unit.add_event(model, "DeniedServes", _describe_lack(number, denial, is_serving=is_serving))
            return _Departure.NOWHERE
        change_id = _next_id(unit, model, denial)
        if change_id is None:
            return _Departure.NONE
        change = unit.add_change(model, ChangeKind.ROLLBACK, change_id=change_id, generation=target)
        note_waiting(unit, change)
        text = f"from generation {number} back to {target}: {denial.text}"
        unit.add_event(model, "DeniedRollback", text)
    return _Departure.BACK


def _describe_lack(number: int, denial: Denial, *, is_serving: bool) -> str:
    does = "serves" if is_serving else "rolls out"
    return f"generation {number} {does} although {denial.text}; there is no former generation to go back to"


def _find_denied(unit: Repository, model: str) -> tuple[int, Denial, bool] | None:
    """Return a generation that has a denied snapshot, its denial, and whether it serves (or else rolls out).

    None if there is none, or if a change that leaves it is open.
    """
    record, denied = unit.model(model), unit.denied_snapshots(model)
    if record.retired or not denied:
        return None
    changes = tuple(unit.changes_named(unit.open_kinds(model).values()).values())
    if any(each.kind in _LEAVES and _denial_of(unit, model, each.generation, denied) is None for each in changes):
        return None
    serving = _denial_of(unit, model, record.serving_generation, denied)
    if record.serving_generation is not None and serving is not None:
        return record.serving_generation, serving, True
    found = ((each, _denial_of(unit, model, each.generation, denied)) for each in changes if _rolls_out(each))
    return next(((each.generation or 0, denial, False) for each, denial in found if denial is not None), None)


def _rolls_out(change: Change) -> bool:
    return change.kind in _BRINGS and change.state is ChangeState.RUNNING


def _denial_of(
    unit: Repository, model: str, number: int | None, denied: Mapping[tuple[str, int], Denial]
) -> Denial | None:
    if number is None:
        return None
    generation = unit.generation(model, number)
    named = (*generation.snapshots.items(), *generation.answering.items())
    return next((denied[key] for key in named if key in denied), None)


def _next_id(unit: Repository, model: str, denial: Denial) -> str | None:
    """Return the id of the next rollback; None while the pause after one that failed lasts."""
    for attempt in count(1):
        change_id = denial_rollback_id(model, denial.number, attempt)
        try:
            before = unit.change(change_id)
        except NotFound:
            return change_id
        if before.finished_at is None or utc_now() - before.finished_at < RETRY_AFTER:
            return None
    return None
