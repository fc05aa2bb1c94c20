"""What a denial does: its snapshots are noted, and models that serve one go back to a former generation.

Called by the API after a denial and by the reconciler, in its passes: whatever ended in between is repeated.
"""

import random
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import timedelta
from enum import Enum, auto
from itertools import count, groupby, islice
from typing import Final, NamedTuple

from ipnext.errors import NotFound
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.registry.denials import CoveredSnapshot, Denial
from ipnext.names import denial_rollback_id
from ipnext.store.changes.denied_uses import DeniedUse
from ipnext.store.operations.change_end import note_waiting
from ipnext.store.operations.rollback_targets import denied_generations, former_generations, kept_generations
from ipnext.store.repository import Repository
from ipnext.store.store import Store
from ipnext.store.unit_of_work import utc_now

RETRY_AFTER: Final = timedelta(minutes=5)
"""From the end of a rollback that failed to the next one from the same denied snapshot."""
NOTED_AT_ONCE: Final = 200
"""Snapshots that one unit of work notes as denied."""
VISITED_AT_ONCE: Final = 2_000
"""Models that one pass writes to, of each kind of work."""
_BRINGS: Final = frozenset({ChangeKind.PUBLISH, ChangeKind.APPLY, ChangeKind.ROLLBACK})
_LEAVES: Final = frozenset({ChangeKind.ROLLBACK, ChangeKind.RETIRE})


class Departures(NamedTuple):
    """Models that serve, or begin to serve, a denied snapshot, by name; those that this pass came to."""

    going_back: tuple[str, ...]
    """Those whose rollback was recorded now."""
    staying: tuple[str, ...]
    """Those without a former generation to go back to."""

    def among(self, models: Collection[str]) -> "Departures":
        """Return those of these models."""
        return Departures(*(tuple(model for model in of if model in models) for of in self))


class _Departure(Enum):
    NONE = auto()
    BACK = auto()
    NOWHERE = auto()


def carry_out_denials(store: Store, *, most: int = VISITED_AT_ONCE) -> Departures:
    """Note the snapshots of new denials, let go those of ended ones, and record the rollbacks that are due.

    Of each it does so for `most` models at once; the next call goes on.
    """
    with store.read() as unit:
        pending, ended = unit.denials_to_carry_out(), unit.ended_denials()
    for denial in ended:
        _let_go(store, denial, most)
    new, covered = set[str](), dict[Denial, frozenset[str]]()
    for denial in pending:
        noted = _note_covered(store, denial, most - len(new))
        new |= noted.new
        if noted.is_whole:
            covered[denial] = noted.models
    with store.read() as unit:
        due = {use.model: left for use in unit.denied_uses() if (left := _find_left(use)) is not None}
        chosen = _choose(due, new, most)
        old = (model for model in chosen if model not in new and due[model].is_serving)
        stay = {model for model in old if _find_target(unit, model) is None}
    found = dict.fromkeys(stay, _Departure.NOWHERE)
    found.update({model: _leave_denied(store, model, is_new=model in new) for model in chosen if model not in stay})
    missed = due.keys() - found.keys()
    for denial, models in covered.items():
        if not missed & models:
            with store.begin() as unit:
                unit.mark_carried_out(denial)
    ends = (tuple(model for model in chosen if found[model] is end) for end in (_Departure.BACK, _Departure.NOWHERE))
    return Departures(*ends)


def _choose(due: Collection[str], new: Collection[str], most: int) -> list[str]:
    """Choose the models to come to, by name: those of new denials first.

    The others by chance, so that models which stay for want of a former generation keep no other one waiting.
    """
    order = random.sample(sorted(due), len(due))
    return sorted(sorted(order, key=lambda model: model not in new)[:most])


class _Noted(NamedTuple):
    """What is noted of a denial."""

    models: frozenset[str]
    """All that it covers snapshots of."""
    new: frozenset[str]
    """Those whose snapshots were noted now."""
    is_whole: bool
    """Whether nothing was left to note, so that no snapshot can be published that is made from one not noted yet."""


def _note_covered(store: Store, denial: Denial, most: int) -> _Noted:
    """Note the snapshots that a denial covers, of at most so many models, few snapshots in each unit of work."""
    lacking = _find_lacking(store, denial)
    models = [model for model, snapshots in lacking.items() if snapshots]
    for model in models[:most]:
        snapshots = iter(lacking[model])
        while some := tuple(islice(snapshots, NOTED_AT_ONCE)):
            with store.begin(model) as unit:
                unit.mark_denied(model, denial, some)
                unit.tell_denials(model)
    is_whole = not models or not any(_find_lacking(store, denial).values())
    return _Noted(frozenset(lacking), frozenset(models[:most]), is_whole)


def _find_lacking(store: Store, denial: Denial) -> Mapping[str, list[CoveredSnapshot]]:
    """Map each model that a denial covers snapshots of to those that are not noted."""
    with store.read() as unit:
        covered, known = unit.find_covered(denial), unit.noted_snapshots(denial)
    return {model: [each for each in of if each[:3] not in known] for model, of in _by_model(covered)}


def _by_model(covered: Iterable[CoveredSnapshot]) -> Iterator[tuple[str, Iterator[CoveredSnapshot]]]:
    return groupby(covered, key=lambda each: each.model)


def _let_go(store: Store, denial: Denial, most: int) -> None:
    """Let hosts load the snapshots of an ended denial again."""
    with store.read() as unit:
        models = unit.models_denied(denial)
    for model in models[:most]:
        with store.begin(model) as unit:
            unit.let_go(model, denial)
            unit.tell_denials(model)
    if len(models) <= most:
        with store.begin() as unit:
            unit.remove_denial(denial)


def _leave_denied(store: Store, model: str, *, is_new: bool) -> _Departure:
    """Record a rollback if a model serves, or begins to serve, a denied snapshot. `is_new`: noted in this pass."""
    with store.begin(model) as unit:
        left = next(filter(None, map(_find_left, unit.denied_uses([model]))), None)
        if left is None:
            return _Departure.NONE
        target = _find_target(unit, model) if left.is_serving else unit.model(model).serving_generation
        if target is None:
            if is_new:
                unit.add_event(model, "DeniedServes", _describe_lack(left))
            return _Departure.NOWHERE
        change_id = _next_id(unit, model, left.denial)
        if change_id is None:
            return _Departure.NONE
        change = unit.add_change(model, ChangeKind.ROLLBACK, change_id=change_id, generation=target)
        note_waiting(unit, change)
        text = f"from generation {left.generation} back to {target}: {left.denial.text}"
        unit.add_event(model, "DeniedRollback", text)
    return _Departure.BACK


def _find_target(unit: Repository, model: str) -> int | None:
    """Return the newest former generation without a denied snapshot."""
    kept = kept_generations(unit, model)
    denied = denied_generations(unit, model, kept)
    former = former_generations(kept, unit.model(model).serving_generation)
    return next((number for number in former if number not in denied), None)


class _Left(NamedTuple):
    """A generation that is to be left."""

    generation: int
    denial: Denial
    is_serving: bool
    """Whether the serving generation is to be left."""


def _find_left(use: DeniedUse) -> _Left | None:
    """Return the generation that is to be left.

    None if there is none, or if a change that leaves it for one without a denied snapshot is open.
    """
    if any(each.kind in _LEAVES and each.denial is None for each in use.changes):
        return None
    for each in use.changes:
        if each.denial is not None and each.kind is ChangeKind.ROLLBACK:
            return _Left(each.generation or 0, each.denial, use.denial is not None)
    if use.serving is not None and use.denial is not None:
        return _Left(use.serving, use.denial, is_serving=True)
    rolled_out = (each for each in use.changes if each.kind in _BRINGS and each.state is ChangeState.RUNNING)
    found = (_Left(each.generation or 0, each.denial, is_serving=False) for each in rolled_out if each.denial)
    return next(found, None)


def _describe_lack(left: _Left) -> str:
    does = "serves" if left.is_serving else "rolls out"
    return (
        f"generation {left.generation} {does} although {left.denial.text}; there is no former generation to go back to"
    )


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
