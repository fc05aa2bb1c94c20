"""What a denial does: its snapshots are noted, and models that serve one go back to a former generation.

Called by the API after a denial and by the reconciler, in its passes: whatever ended in between is repeated.
"""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from enum import Enum, auto
from itertools import count, groupby, islice
from typing import Final, NamedTuple

from ipnext.errors import NotFound
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment
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
NOTED_AT_ONCE: Final = 200
"""Snapshots that one unit of work notes as denied."""
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
    """Note the snapshots of new denials, let go those of ended ones, and record the rollbacks that are due."""
    with store.read() as unit:
        pending, ended = unit.denials_to_carry_out(), unit.ended_denials()
    for denial in ended:
        _let_go(store, denial)
    new = {model for denial in pending for model in _note_covered(store, denial)}
    with store.read() as unit:
        models = unit.models_denied()
    found = {model: _leave_denied(store, model, is_new=model in new) for model in models}
    for denial in pending:
        with store.begin() as unit:
            unit.mark_carried_out(denial)
    going_back = tuple(model for model, departure in found.items() if departure is _Departure.BACK)
    return Departures(going_back, tuple(model for model in found if found[model] is _Departure.NOWHERE))


def _note_covered(store: Store, denial: Denial) -> set[str]:
    """Note the snapshots that a denial covers, few in each unit of work; return their models."""
    with store.read() as unit:
        covered = unit.find_covered(denial)
    for model, snapshots in groupby(covered, key=lambda each: each.model):
        while some := tuple(islice(snapshots, NOTED_AT_ONCE)):
            with store.begin(model) as unit:
                unit.mark_denied(model, denial, some)
    return {each.model for each in covered}


def _let_go(store: Store, denial: Denial) -> None:
    """Let hosts load the snapshots of an ended denial again."""
    with store.read() as unit:
        models = unit.models_denied(denial)
    for model in models:
        with store.begin(model) as unit:
            unit.let_go(model, denial)
            _tell_hosts(unit, model)
    with store.begin() as unit:
        unit.remove_denial(denial)


def _tell_hosts(unit: Repository, model: str) -> None:
    """Write into the desired replica sets which snapshots no host may load: regions follow in the next pass."""
    denied = unit.denied_snapshots(model)
    for wanted, holds in _holds_to_tell(unit, model, denied):
        unit.put_deployment(wanted.model_copy(update={"holds": holds}))


def _holds_to_tell(
    unit: Repository, model: str, denied: Mapping[tuple[str, int], Denial]
) -> Iterator[tuple[Deployment, tuple[AssignedSnapshot, ...]]]:
    """Yield replica sets that do not say what is denied, with what they have to say."""
    for wanted in unit.deployments(model):
        found = (denied.get((held.part or wanted.key.part, held.snapshot)) for held in wanted.holds)
        texts = ("" if denial is None else denial.text for denial in found)
        holds = tuple(held.model_copy(update={"denied": text}) for held, text in zip(wanted.holds, texts, strict=True))
        if holds != wanted.holds:
            yield wanted, holds


def _leave_denied(store: Store, model: str, *, is_new: bool) -> _Departure:
    """Record a rollback if a model serves, or begins to serve, a denied snapshot. `is_new`: of a new denial."""
    with store.read() as unit:
        told = next(_holds_to_tell(unit, model, unit.denied_snapshots(model)), None) is None
        if told and _find_denied(unit, model) is None:
            return _Departure.NONE
    with store.begin(model) as unit:
        _tell_hosts(unit, model)
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
    """Return a generation with a denied snapshot that is to be left, its denial, and whether the serving one has one.

    None if there is none, or if a change that leaves it for one without is open.
    """
    record, denied = unit.model(model), unit.denied_snapshots(model)
    if record.retired or not denied:
        return None
    changes = tuple(unit.changes_named(unit.open_kinds(model).values()).values())
    denials = {each.id: _denial_of(unit, model, each.generation, denied) for each in changes}
    if any(each.kind in _LEAVES and denials[each.id] is None for each in changes):
        return None
    serving = _denial_of(unit, model, record.serving_generation, denied)
    for each in changes:
        denial = denials[each.id]
        if denial is not None and each.kind is ChangeKind.ROLLBACK:
            return each.generation or 0, denial, serving is not None
    if record.serving_generation is not None and serving is not None:
        return record.serving_generation, serving, True
    found = ((each.generation or 0, denials[each.id]) for each in changes if _rolls_out(each))
    return next(((number, denial, False) for number, denial in found if denial is not None), None)


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
