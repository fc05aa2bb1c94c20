"""What changes from one placement to another, and the way back: `apply_diff(before, diff(before, after))` is `after`."""

from ipnext.errors import InvalidInput
from ipnext.model.plan import CurrentState, Plan, PlanDiff, ReplicaChange, ReplicaCount, TrafficChange, TrafficShare

Placement = tuple[str, str, str, str]
Route = tuple[str, str, str]


def state_of(plan: Plan | CurrentState) -> CurrentState:
    """Replicas and traffic alone: sorted, without zero counts and zero shares."""
    counts, shares = _counts(plan), _shares(plan)
    return CurrentState(
        replicas=tuple(replica_of(key, count) for key, count in sorted(counts.items())),
        traffic=tuple(share_of(key, fraction) for key, fraction in sorted(shares.items())),
    )


def diff(before: Plan | CurrentState, after: Plan) -> PlanDiff:
    """Placements and shares that differ, sorted. A CurrentState carries no cost: its cost stands as 0."""
    old, new = _counts(before), _counts(after)
    return PlanDiff(
        replicas=tuple(
            _replica_change(key, old.get(key, 0), new.get(key, 0))
            for key in sorted(old.keys() | new.keys())
            if old.get(key, 0) != new.get(key, 0)
        ),
        traffic=_traffic_changes(_shares(before), _shares(after)),
        moves=sum(max(0, count - old.get(key, 0)) for key, count in new.items()),
        cost_per_hour_before=before.cost_per_hour if isinstance(before, Plan) else 0.0,
        cost_per_hour_after=after.cost_per_hour,
    )


def apply_diff(before: Plan | CurrentState, change: PlanDiff) -> CurrentState:
    """The state after `change`. Raises InvalidInput where `before` is not the state that the diff was made from."""
    counts, shares = _counts(before), _shares(before)
    for item in change.replicas:
        key = (item.model, item.part, item.region, item.hardware)
        _expect("/".join(key), counts.pop(key, 0), item.before)
        if item.after:
            counts[key] = item.after
    for moved in change.traffic:
        route = (moved.model, moved.origin, moved.to)
        _expect("/".join(route), shares.pop(route, 0.0), moved.before)
        if moved.after:
            shares[route] = moved.after
    return CurrentState(
        replicas=tuple(replica_of(key, count) for key, count in sorted(counts.items())),
        traffic=tuple(share_of(key, fraction) for key, fraction in sorted(shares.items())),
    )


def _expect(subject: str, found: float, expected: float) -> None:
    if found != expected:
        msg = (
            f"{subject}: the diff starts at {expected:g}, the state has {found:g}; make the diff again from this state"
        )
        raise InvalidInput(msg, field=subject, value=found, allowed=[f"{expected:g}"])


def _counts(plan: Plan | CurrentState) -> dict[Placement, int]:
    return {(r.model, r.part, r.region, r.hardware): r.count for r in plan.replicas if r.count}


def _shares(plan: Plan | CurrentState) -> dict[Route, float]:
    return {(t.model, t.origin, t.to): t.fraction for t in plan.traffic if t.fraction}


def replica_of(key: Placement, count: int) -> ReplicaCount:
    """The wire form of one placement."""
    model, part, region, hardware = key
    return ReplicaCount(model=model, part=part, region=region, hardware=hardware, count=count)


def share_of(key: Route, fraction: float) -> TrafficShare:
    """The wire form of one share."""
    model, origin, to = key
    return TrafficShare(model=model, origin=origin, to=to, fraction=fraction)


def _replica_change(key: Placement, before: int, after: int) -> ReplicaChange:
    model, part, region, hardware = key
    return ReplicaChange(model=model, part=part, region=region, hardware=hardware, before=before, after=after)


def _traffic_changes(old: dict[Route, float], new: dict[Route, float]) -> tuple[TrafficChange, ...]:
    return tuple(
        TrafficChange(model=key[0], origin=key[1], to=key[2], before=old.get(key, 0.0), after=new.get(key, 0.0))
        for key in sorted(old.keys() | new.keys())
        if old.get(key, 0.0) != new.get(key, 0.0)
    )
