"""Detours: a model that blocks itself or others temporarily moves to units that are free elsewhere.

To another hardware kind in the same region, or with its traffic to another region that its latency rule admits. It then
moves to its target like all others.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from planner.transition.instance import SLACK, TransitionInstance
from planner.transition.model_state import ModelState, ReplicaKey, RouteKey, SupplyKey
from planner.transition.paths import EPSILON
from planner.transition.searches.shortage import compute_shortage
from planner.transition.trajectory import Goal, Trajectory

FRACTIONS = (1.0, 0.5, 0.25)
"""Of a model's replicas, that may move aside."""


@dataclass(frozen=True)
class DetourSearch:
    """Advances one model to another place, then all models, as long as each detour lets some model arrive."""

    max_detours: int
    max_tried: int
    """For one detour."""

    def improve(self, trajectory: Trajectory, goal: Goal) -> Trajectory | None:
        """Return a trajectory with as many detours as lead on; None if none does."""
        best: Trajectory | None = None
        for _ in range(self.max_detours):
            further = self._add_detour(best or trajectory, goal)
            if further is None:
                break
            best = further
            if not best.pending_models(goal):
                break
        return best

    def _add_detour(self, trajectory: Trajectory, goal: Goal) -> Trajectory | None:
        """Return the trajectory after a detour: the first with which all arrive, else that which leaves the fewest."""
        fewest, best = len(trajectory.pending_models(goal)), None
        for model, aside in islice(_list_detours(trajectory, goal), self.max_tried):
            reached = trajectory.advance({**goal, model: aside}, attempts=1).advance(goal, attempts=2)
            pending = len(reached.pending_models(goal))
            if not pending:
                return reached
            if pending < fewest:
                fewest, best = pending, reached
        return best


@dataclass(frozen=True)
class _FreeUnits:
    """Units that are free by row, less those that a detour of one model took."""

    instance: TransitionInstance
    model: str
    units: dict[SupplyKey, float]

    def take_for(self, part: str, region: str, qps: float, but: SupplyKey) -> dict[SupplyKey, int] | None:
        """Return replicas for this load on the kind that fits with the fewest units; None if none fits."""
        fitting = []
        for (of, kind), option in sorted(self.instance.options[self.model].items()):
            count = math.ceil(qps / option.qps - EPSILON)
            row = region, kind
            if of == part and row != but and count * option.units <= self.units.get(row, 0.0) + SLACK:
                fitting.append((count * option.units, row, count))
        if not fitting:
            return None
        units, row, count = min(fitting)
        self.units[row] -= units
        return {row: count} if count else {}


def _list_detours(trajectory: Trajectory, goal: Goal) -> Iterator[tuple[str, ModelState]]:
    """Yield other placements of each model that others wait for, the cheapest first."""
    instance = trajectory.instance
    free = dict(zip(instance.rows, map(float, trajectory.free_units()), strict=True))
    waits = list(compute_shortage(trajectory, goal).waits())
    wanted = sorted({(wait.row, model) for wait in waits for model in (wait.model, *wait.holders)})
    found: list[tuple[float, str, ModelState]] = []
    for fraction in FRACTIONS:
        for row, model in wanted:
            now = trajectory.state_of(model)
            if not instance.is_divisible(model, now):
                continue
            for aside in (
                *_to_other_hardware(instance, model, now, (row, fraction), free),
                *_to_other_regions(instance, model, now, (row, fraction), free),
            ):
                grown = instance.used_units(model, aside.counts) - instance.used_units(model, now.counts)
                found.append((float(grown.clip(min=0.0).sum()) - fraction * 1e-3, model, aside))
    for _, model, aside in sorted(found, key=lambda item: item[:2]):
        yield model, aside


def _to_other_hardware(
    instance: TransitionInstance,
    model: str,
    now: ModelState,
    piece: tuple[SupplyKey, float],
    free: Mapping[SupplyKey, float],
) -> Iterator[ModelState]:
    """Yield the state with a fraction of the replicas of a row on other kinds in the same region; the traffic stays."""
    (row, fraction), units = piece, _FreeUnits(instance, model, dict(free))
    counts = dict(now.counts)
    for key, count in now.counts.items():
        if key[1:3] == row:
            gone = math.ceil(count * fraction)
            qps = gone * instance.options[model][key[0], row[1]].qps
            added = units.take_for(key[0], row[0], qps, row)
            if added is None:
                return
            counts[key] -= gone
            _add_replicas(counts, key, added)
    yield _without_zeros(counts, now.shares)


def _to_other_regions(
    instance: TransitionInstance,
    model: str,
    now: ModelState,
    piece: tuple[SupplyKey, float],
    free: Mapping[SupplyKey, float],
) -> Iterator[ModelState]:
    """Yield states with a fraction of a region's traffic and replicas in another one, near enough to its users."""
    (region, _), fraction = piece
    for other in instance.regions:
        if other == region:
            continue
        shares = {
            k: share for k, share in now.shares.items() if k[1] == region and instance.is_near(model, k[0], other)
        }
        units = _FreeUnits(instance, model, dict(free))
        found = _move_traffic(units, now, (shares, region, other, fraction)) if shares else None
        if found is not None:
            yield found


def _move_traffic(
    units: _FreeUnits, now: ModelState, move: tuple[Mapping[RouteKey, float], str, str, float]
) -> ModelState | None:
    """Return the state with a fraction of these shares in another region; None if that has no room."""
    (moved, region, other, fraction), instance, model = move, units.instance, units.model
    shares, counts = dict(now.shares), dict(now.counts)
    demand, calls = instance.demand[model], instance.policy_of(model).calls
    for generation in sorted({key[2] for key in moved}):
        leaving = {key: share * fraction for key, share in moved.items() if key[2] == generation}
        qps = sum(share * demand.get(key[0], 0.0) for key, share in leaving.items())
        served = (key for key in now.shares if key[1] == region and key[2] == generation)
        total = sum(now.shares[key] * demand.get(key[0], 0.0) for key in served)
        for part in calls.get(generation, instance.parts[model]):
            added = units.take_for(part, other, qps, ("", ""))
            if added is None:
                return None
            _add_replicas(counts, (part, other, "", generation), added)
        for key, count in now.counts.items():
            if key[1] == region and key[3] == generation and total > 0:
                counts[key] = math.ceil(count * (1.0 - qps / total) - EPSILON)
        for (origin, _, _), share in leaving.items():
            here, there = (origin, region, generation), (origin, other, generation)
            shares[here] = round(shares[here] - share, 12)
            shares[there] = round(shares.get(there, 0.0) + share, 12)
    return _without_zeros(counts, shares)


def _add_replicas(counts: dict[ReplicaKey, int], like: ReplicaKey, added: Mapping[SupplyKey, int]) -> None:
    for (region, hardware), count in added.items():
        key = like[0], region, hardware, like[3]
        counts[key] = counts.get(key, 0) + count


def _without_zeros(counts: Mapping[ReplicaKey, int], shares: Mapping[RouteKey, float]) -> ModelState:
    return ModelState({k: n for k, n in counts.items() if n}, {k: share for k, share in shares.items() if share > 0})
