"""Differences of placements, and their application: `apply_diff(before, diff(before, after))` is `after`."""

from collections.abc import Mapping
from typing import TypeVar

from ipnext.errors import InvalidInput
from ipnext.model.planning.plan import (
    CurrentState,
    Plan,
    PlanDiff,
    ReplicaChange,
    ReplicaCount,
    TrafficChange,
    TrafficShare,
)

Placement = tuple[str, str, str, str]
Route = tuple[str, str, str]
Key = TypeVar("Key", Placement, Route)


def state_of(plan: Plan | CurrentState) -> CurrentState:
    """Return replicas and traffic alone: sorted, without zero counts and zero shares."""
    return _state(_replicas(plan), _traffic(plan))


def diff(before: Plan | CurrentState, after: Plan) -> PlanDiff:
    """Return placements and shares that differ, sorted. A CurrentState has no cost: it counts as 0."""
    old = {key: row.count for key, row in _replicas(before).items()}
    new = {key: row.count for key, row in _replicas(after).items()}
    was = {key: row.fraction for key, row in _traffic(before).items()}
    now = {key: row.fraction for key, row in _traffic(after).items()}
    replicas = _find_changed(old, new)
    return PlanDiff(
        replicas=tuple(ReplicaChange.from_trusted(*key, old.get(key, 0), new.get(key, 0)) for key in replicas),
        traffic=tuple(
            TrafficChange.from_trusted(*key, was.get(key, 0.0), now.get(key, 0.0)) for key in _find_changed(was, now)
        ),
        moves=sum(max(0, new.get(key, 0) - old.get(key, 0)) for key in replicas),
        cost_per_hour_before=before.cost_per_hour if isinstance(before, Plan) else 0.0,
        cost_per_hour_after=after.cost_per_hour,
    )


def apply_diff(before: Plan | CurrentState, change: PlanDiff) -> CurrentState:
    """Return the state after `change`. Raises InvalidInput if `before` is not the state that the diff was made from."""
    replicas, traffic = _replicas(before), _traffic(before)
    for item in change.replicas:
        key = (item.model, item.part, item.region, item.hardware)
        running = replicas.pop(key, None)
        _expect("/".join(key), running.count if running else 0, item.before)
        if item.after:
            replicas[key] = replica_of(key, item.after)
    for moved in change.traffic:
        route = (moved.model, moved.origin, moved.to)
        share = traffic.pop(route, None)
        _expect("/".join(route), share.fraction if share else 0.0, moved.before)
        if moved.after:
            traffic[route] = share_of(route, moved.after)
    return _state(replicas, traffic)


def replica_of(key: Placement, count: int) -> ReplicaCount:
    """Return the wire form of one placement. `count` is a whole number from 0; it is not checked here."""
    return ReplicaCount.from_trusted(*key, int(count))


def share_of(key: Route, fraction: float) -> TrafficShare:
    """Return the wire form of one share. `fraction` is from 0 to 1; it is not checked here."""
    return TrafficShare.from_trusted(*key, float(fraction))


def _expect(subject: str, found: float, expected: float) -> None:
    if found != expected:
        msg = (
            f"{subject}: the diff starts at {expected:g}, the state has {found:g}; make the diff again from this state"
        )
        raise InvalidInput(msg, field=subject, value=found, allowed=[f"{expected:g}"])


def _replicas(plan: Plan | CurrentState) -> dict[Placement, ReplicaCount]:
    return {(row.model, row.part, row.region, row.hardware): row for row in plan.replicas if row.count}


def _traffic(plan: Plan | CurrentState) -> dict[Route, TrafficShare]:
    return {(row.model, row.origin, row.to): row for row in plan.traffic if row.fraction}


def _find_changed(old: Mapping[Key, float], new: Mapping[Key, float]) -> list[Key]:
    """Return keys whose figures differ, sorted; an absent one counts as 0."""
    changed = [key for key in old if key not in new]
    changed += [key for key, figure in new.items() if old.get(key, 0) != figure]
    return sorted(changed)


def _state(replicas: Mapping[Placement, ReplicaCount], traffic: Mapping[Route, TrafficShare]) -> CurrentState:
    return CurrentState(
        replicas=tuple(replicas[key] for key in sorted(replicas)),
        traffic=tuple(traffic[key] for key in sorted(traffic)),
    )
