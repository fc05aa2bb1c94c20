"""Reconciliation as workflow `reconcile` and the API do it.

Repairs, regions that are told again, entities that are missing. What differs, and whether a model drifted, is decided
by the real functions.
"""

from collections.abc import Collection, Generator, Iterable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from activities.deployment import repetition as again
from activities.planning import drift
from activities.regions import reconciliation
from ipnext.errors import Unavailable
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.lifecycle_run import LifecycleResult
from ipnext.model.lifecycle.status import Reason
from tests.workflows.simulation.infrastructure import Key
from tests.workflows.simulation.journal import Table

Steps = Generator[Any, Any, None]
EVERY_SECONDS = 15.0
RESUBMIT_SECONDS, OPEN_SECONDS = 60.0, 30.0


class Running(NamedTuple):
    """A host as one look saw it."""

    key: Key
    phase: Any
    ready: tuple[int, ...]
    coming: tuple[int, ...]


def record_repair(world: Any, model: str) -> None:
    """By the real function: a model that drifted, and of which no change is open, gets a repair."""
    drift.record_repair(cast("Any", _Repository(world)), model, now=world.journal.now)


def record_again(world: Any, change: Any, state: ChangeState, reason: Reason) -> None:
    """By the real function: a change that a lost region was in the way of is carried out once more."""
    result = LifecycleResult(state=state, generation=change.generation, reason=reason)
    if again.record_again(cast("Any", _Repository(world)), cast("Any", change), result) is not None:
        world.faults.count("a change is carried out again")


def replan_shortage(world: Any, change: Any) -> None:
    """By the real function: a change has ended, and what it left carries less than it gets."""
    aborted = change.id in world.aborted
    result = LifecycleResult(
        state=change.state,
        generation=change.generation,
        reason=Reason.ABORTED if aborted else Reason.INTERNAL_ERROR,
        stopped_by=change.stopped_by,
    )
    again.replan_shortage(cast("Any", _Repository(world)), cast("Any", change), result)


def replan_stopped_move(world: Any, change: Any) -> None:
    """By the real function: a rollback that stopped a move has ended."""
    again.replan_stopped_move(cast("Any", _Repository(world)), cast("Any", change))


def find_drift(world: Any, model: str) -> str:
    """By the real function."""
    return drift.drift_of(cast("Any", _Repository(world)), model)


def describe_difference(world: Any, region: str, model: str) -> str:
    """What of a model a region has otherwise than the store wants it, in words."""
    if region in world.out.lost:
        return ""
    found = _differences(world, region, _observe(world, region))
    told = [f"{name} {key}" for name, keys in vars(found).items() for key in keys if model in {key, key[0]}]
    return "; ".join(told)


def run_passes(world: Any) -> Steps:
    """The platform's reconciler: pass after pass."""
    while not world.over:
        yield world.terminations.latency()
        for model in sorted({*_list_astray(world), *_list_unrepaired(world)}):
            record_repair(world, model)
            yield world.terminations.latency()
        for model in list_unserved(world):
            yield from withdraw(world, model)
        for region in world.infra.regions:
            world.clock.spawn(f"reconcile {region}", reconcile(world, region), after=world.terminations.latency())
        yield EVERY_SECONDS


def reconcile(world: Any, region: str) -> Steps:
    """Compare one region with the store, and tell it again what differs."""
    if region in world.out.lost or not world.infra.reachable(region):
        return
    seen = _observe(world, region)
    yield world.terminations.latency()
    found = _differences(world, region, seen)
    try:
        for key in found.apply:
            yield from _apply(world, cast("Any", key))
        for model in found.route:
            yield world.terminations.latency()
            _route(world, model, region, seen.routes.get(model, 0))
        for model in found.unroute:
            yield world.terminations.latency()
            _unroute(world, model, region)
        for key in found.delete:
            yield world.terminations.latency()
            stored = world.journal.records[key.model].deployments
            if key not in stored and world.journal.is_settled(key.model):
                world.infra.delete(cast("Any", key))
                yield from _follow(world, cast("Any", key))
    except Unavailable:
        return
    for model in found.models:
        world.faults.count("a region is told again")
        world.invariants.look(model, f"{region} is reconciled")


def resubmit(world: Any) -> Steps:
    """The API: an entity that does not run though a change of its model is open is begun."""
    while not world.over:
        yield RESUBMIT_SECONDS
        for model in world.journal.records:
            since = world.clock.now - OPEN_SECONDS
            long_open = any(change.recorded_at <= since for change in open_changes(world, model))
            if long_open and not world.entities[model].runs:
                world.faults.count("an entity is begun again")
                world.entities[model].begin()


def _apply(world: Any, key: Key) -> Steps:
    if world.journal.is_settled(key.model):
        yield from _follow(world, key)


def _follow(world: Any, key: Key) -> Steps:
    told = None
    for _ in range(reconciliation.TRIES):
        stored = world.journal.records[key.model].deployments.get(key)
        if stored == told:
            return
        yield world.terminations.latency()
        if stored is not None:
            world.infra.apply(stored)
        else:
            world.infra.delete(key)
        told = stored


def _unroute(world: Any, model: str, region: str) -> None:
    record, gateway = world.journal.records[model], world.infra.region(region)
    if region not in record.tables and world.journal.is_settled(model):
        gateway.routes.pop(model, None)
        gateway.served.pop(model, None)


def withdraw(world: Any, model: str) -> Steps:
    """Nothing of a model stays of which no generation serves: out of every gateway first."""
    record = world.journal.records[model]
    for region in sorted(world.infra.regions.keys() - world.out.lost):
        if model not in list_unserved(world) or not world.infra.reachable(region):
            return
        world.infra.regions[region].routes.pop(model, None)
        yield world.terminations.latency()
    if model not in list_unserved(world):
        return
    for found in world.infra.regions.values():
        found.served.pop(model, None)
    world.faults.count("a model is withdrawn")
    record.tables.clear()
    record.deployments.clear()
    record.placement = None


def _route(world: Any, model: str, region: str, followed: int) -> None:
    record = world.journal.records[model]
    table = record.tables.get(region)
    if table is None or not world.journal.is_settled(model):
        return
    revision = table.revision if table.revision > followed else followed + 1
    gateway = world.infra.region(region)
    if gateway.routes.get(model, (0, ()))[0] >= revision:
        return
    gateway.routes[model], gateway.served[model] = (revision, table.shares), table.served
    record.tables[region] = Table(region, revision, table.shares, table.served)


def _observe(world: Any, region: str) -> Any:
    found = world.infra.regions[region]
    replicas = tuple(Running(h.key, h.phase, tuple(h.ready), tuple(h.coming)) for h in found.replicas)
    return SimpleNamespace(replicas=replicas, routes={model: revision for model, (revision, _) in found.routes.items()})


def _differences(world: Any, region: str, seen: Any) -> reconciliation.Differences:
    records = world.journal.records
    settled = frozenset(filter(world.journal.is_settled, records))
    stored = {k: d for m in settled for k, d in records[m].deployments.items() if k.region == region}
    desired = reconciliation.DesiredRegion(
        sets=cast(
            "Any",
            {k: reconciliation.DesiredSet(d.replicas, frozenset(d.generations), d.own) for k, d in stored.items()},
        ),
        tables={m: records[m].tables[region].revision for m in settled if region in records[m].tables},
        settled=settled,
        astray=frozenset(_list_astray(world)),
    )
    return reconciliation.differences(desired, seen)


def _list_astray(world: Any) -> Iterable[str]:
    """As the repository's `models_astray`."""
    for model, record in sorted(world.journal.records.items()):
        tables = [table for region, table in record.tables.items() if region not in world.out.lost]
        sent = {s.generation for table in tables for s in table.shares if s.fraction > 0}
        if record.serving is not None and sent - {record.serving} and not world.journal.is_moved(model):
            yield model


def _list_unrepaired(world: Any) -> Iterable[str]:
    """As the repository's `models_unrepaired`."""
    for model, record in world.journal.records.items():
        last = next((change for change in reversed(record.changes) if change.state.final), None)
        failed = last is not None and last.kind is ChangeKind.REPAIR and last.state is not ChangeState.DONE
        open_repair = any(c.kind is ChangeKind.REPAIR and not c.state.final for c in record.changes)
        if failed and not open_repair and not world.journal.is_moved(model):
            yield model


def list_unserved(world: Any) -> Iterable[str]:
    """As the repository's `models_unserved`."""
    for model, record in sorted(world.journal.records.items()):
        left = record.serving is None and (record.tables or record.deployments)
        if left and all(c.state.final for c in record.changes):
            yield model


class _Repository:
    """What the real code asks of a repository to find drift and to record a repair."""

    def __init__(self, world: Any) -> None:
        self.world, self.journal = world, world.journal

    def model(self, model: str) -> SimpleNamespace:
        record = self.journal.records[model]
        return SimpleNamespace(retired=record.retired, serving_generation=record.serving)

    def routes(self, model: str) -> tuple[Table, ...]:
        return tuple(self.journal.records[model].tables.values())

    def deployments(self, model: str) -> tuple[Any, ...]:
        return tuple(self.journal.deployments(model))

    def drains(self) -> list[SimpleNamespace]:
        out = self.world.out
        return [SimpleNamespace(region=r, holds=True, lost=r in out.lost, force=False) for r in sorted(out.regions)]

    def generation(self, model: str, number: int) -> Any:
        return self.journal.records[model].generations[number]

    def have_served(self, model: str, numbers: Iterable[int]) -> frozenset[int]:
        generations = self.journal.records[model].generations
        return frozenset(n for n in numbers if generations[n].serving_at is not None)

    def was_lost_since(self, change_id: str, regions: Iterable[str]) -> bool:
        recorded = self.journal.by_id[change_id].ordinal
        return any(self.world.lost_after.get(region, -1) >= recorded for region in regions)

    def find_transition(self, change_id: str) -> Any:
        return self.journal.find_transition(change_id)

    def placement(self, model: str) -> Any:
        return self.journal.records[model].placement

    def has_newer(self, change: Any, kinds: Collection[ChangeKind]) -> bool:
        changes = self.journal.records[change.model].changes
        return any(other.sequence > change.sequence and other.kind in kinds for other in changes)

    def record_again(self, change: Any, *, change_id: str) -> Any:
        return self.world.requests.record(change.model, change.kind, id=change_id, generation=change.generation)

    def add_shortage_replan(self, model: str, sequence: int, *, delay_seconds: float = 0.0) -> None:
        if (model, sequence) in self.world.shortages:
            return
        self.world.shortages.add((model, sequence))
        self.world.count("a replan for a shortage")
        if delay_seconds:
            self.world.requests.replan_later(delay_seconds)
        else:
            self.world.requests.replan()

    def find_stopped_move(self, model: str) -> Any:
        moves = [c for c in self.journal.records[model].changes if c.kind is ChangeKind.MOVE]
        by = self.journal.by_id.get(moves[-1].stopped_by or "") if moves else None
        return moves[-1] if by is not None and by.kind is ChangeKind.ROLLBACK else None

    def plan_in_force_id(self) -> str:
        return "always one"

    def freeze_override(self, change_id: str) -> None:
        """No change passes freezes here."""

    def check_overrides(self, change_id: str) -> dict[str, Any]:
        """No change passes checks here."""
        del change_id
        return {}

    def is_moved(self, model: str) -> bool:
        return bool(self.journal.is_moved(model))

    def open_kinds(self, model: str) -> dict[ChangeKind, str]:
        return {c.kind: c.id for c in self.journal.records[model].changes if not c.state.final}

    def open_changes(self, model: str) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(
                kind=change.kind,
                reason=Reason.FROZEN if self._is_frozen(change) else None,
                created_at=self.journal.now - timedelta(seconds=self.world.clock.now - change.recorded_at),
            )
            for change in open_changes(self.world, model)
        ]

    def _is_frozen(self, change: Any) -> bool:
        """Whether its run waits for a freeze."""
        run = self.world.runs.get(change.id)
        return run is not None and run.lives and run.waits_for_freeze

    def pause(self, model: str) -> Any:
        return self.journal.records[model].held or None

    def changes(self, model: str, *, limit: int = 50) -> list[Any]:
        return list(reversed(self.journal.records[model].changes))[:limit]

    def add_change(self, model: str, kind: ChangeKind, *, change_id: str) -> Any:
        self.world.faults.count("a repair is recorded")
        return self.world.requests.record(model, kind, id=change_id)

    def add_event(self, model: str, kind: str, text: str) -> None:
        self.world.tell("event", f"{model} {kind}: {text}")


def open_changes(world: Any, model: str) -> list[Any]:
    """Changes of a model that have not ended and that the engine was told of, oldest first."""
    changes = world.journal.records[model].changes
    return [c for c in changes if not c.state.final and c.state is not ChangeState.RECORDED]
