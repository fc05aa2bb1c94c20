"""Detours: a model that blocks itself or others temporarily moves to units that are free elsewhere.

To another hardware kind in the same region, or with its traffic to another region that its latency rule admits. It then
moves to its target like all others.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from planner.transition.instance import SLACK, TransitionInstance
from planner.transition.model_state import ModelState, ReplicaKey, RouteKey, SupplyKey
from planner.transition.paths import EPSILON
from planner.transition.searches.shortage import compute_shortage
from planner.transition.trajectory import Trajectory

PARTS = (1.0, 0.5, 0.25)
"""Fractions of a model's replicas that may move aside."""
MAX_TRIED = 24
MAX_DETOURS = 6


@dataclass(frozen=True)
class _Aside:
    """Room in one place: units that are free by row, less those that were taken."""

    instance: TransitionInstance
    model: str
    free: dict[SupplyKey, float]

    def house_load(self, part: str, region: str, qps: float, but: SupplyKey) -> dict[tuple[str, str], int] | None:
        """Return (region, hardware) -> replicas for this load, on the kind that fits with the fewest units; None if none fits."""
        fitting = []
        for (of, kind), option in sorted(self.instance.options[self.model].items()):
            count = math.ceil(qps / option.qps - EPSILON)
            row = region, kind
            if of == part and row != but and count * option.units <= self.free.get(row, 0.0) + SLACK:
                fitting.append((count * option.units, row, count))
        if not fitting:
            return None
        units, row, count = min(fitting)
        self.free[row] -= units
        return {row: count} if count else {}


def add_detours(trajectory: Trajectory, to: Mapping[str, ModelState]) -> Trajectory:
    """Advance to `to` with detours, one after another, as long as each lets some model move; as far as possible."""
    for _ in range(MAX_DETOURS):
        found = _one(trajectory, to)
        if found is None:
            return trajectory
        trajectory = found
        if not trajectory.pending_models(to):
            return trajectory
    return trajectory


def _one(trajectory: Trajectory, to: Mapping[str, ModelState]) -> Trajectory | None:
    """Return the trajectory after the first detour with which all arrive, or else after the one that leaves the fewest models."""
    best: tuple[int, Trajectory] | None = None
    for tried, (model, aside) in enumerate(_asides(trajectory, to)):
        if tried == MAX_TRIED:
            break
        reached = trajectory.advance({**to, model: aside}, attempts=1).advance(to, attempts=2)
        left = len(reached.pending_models(to))
        if not left:
            return reached
        if left < len(trajectory.pending_models(to)) and (best is None or left < best[0]):
            best = left, reached
    return None if best is None else best[1]


def _asides(trajectory: Trajectory, to: Mapping[str, ModelState]) -> Iterator[tuple[str, ModelState]]:
    """Yield alternative placements of each model that others wait for, the cheapest first."""
    free = dict(zip(trajectory.instance.rows, map(float, trajectory.free_units()), strict=True))
    waits = list(compute_shortage(trajectory, to).waits())
    wanted = sorted({(wait.row, model) for wait in waits for model in (wait.model, *wait.holders)})
    found: list[tuple[float, str, ModelState]] = []
    for part in PARTS:
        for row, model in wanted:
            if not trajectory.instance.is_divisible(model, trajectory.state_of(model)):
                continue
            for aside in (
                *_other_hardware(trajectory, model, row, part, free),
                *_other_regions(trajectory, model, row, part, free),
            ):
                grown = trajectory.instance.used_units(model, aside.counts) - trajectory.instance.used_units(
                    model, trajectory.state_of(model).counts
                )
                found.append((float(grown.clip(min=0.0).sum()) - part * 1e-3, model, aside))
    for _, model, aside in sorted(found, key=lambda item: item[:2]):
        yield model, aside


def _other_hardware(
    trajectory: Trajectory, model: str, row: SupplyKey, part: float, free: Mapping[SupplyKey, float]
) -> Iterator[ModelState]:
    """Yield the state with the replicas of a row on other kinds in the same region; the traffic stays."""
    standing, aside = trajectory.state_of(model), _Aside(trajectory.instance, model, dict(free))
    counts = dict(standing.counts)
    for copy, count in standing.counts.items():
        if copy[1:3] == row:
            gone = math.ceil(count * part)
            qps = gone * trajectory.instance.options[model][copy[0], row[1]].qps
            housed = aside.house_load(copy[0], row[0], qps, row)
            if housed is None:
                return
            counts[copy] -= gone
            _add(counts, copy, housed)
    yield _standing(counts, standing.shares)


def _other_regions(
    trajectory: Trajectory, model: str, row: SupplyKey, part: float, free: Mapping[SupplyKey, float]
) -> Iterator[ModelState]:
    """Yield states with a region's traffic and replicas in another region that is near enough to its users."""
    instance, standing = trajectory.instance, trajectory.state_of(model)
    for region in instance.regions:
        if region == row[0]:
            continue
        moved = {
            f: share for f, share in standing.shares.items() if f[1] == row[0] and instance.is_near(model, f[0], region)
        }
        found = _move_traffic(instance, model, standing, (moved, row[0], region, part), free) if moved else None
        if found is not None:
            yield found


def _move_traffic(
    instance: TransitionInstance,
    model: str,
    standing: ModelState,
    move: tuple[Mapping[RouteKey, float], str, str, float],
    free: Mapping[SupplyKey, float],
) -> ModelState | None:
    moved, region, other, part = move
    shares, counts = dict(standing.shares), dict(standing.counts)
    aside = _Aside(instance, model, dict(free))
    demand, calls = instance.demand[model], instance.policy_of(model).calls
    for generation in sorted({flow[2] for flow in moved}):
        flows = {flow: share * part for flow, share in moved.items() if flow[2] == generation}
        qps = sum(share * demand.get(flow[0], 0.0) for flow, share in flows.items())
        served = (f for f in standing.shares if f[1] == region and f[2] == generation)
        total = sum(standing.shares[f] * demand.get(f[0], 0.0) for f in served)
        for name in calls.get(generation, instance.parts[model]):
            housed = aside.house_load(name, other, qps, ("", ""))
            if housed is None:
                return None
            _add(counts, (name, other, "", generation), housed)
        for copy, count in standing.counts.items():
            if copy[1] == region and copy[3] == generation and total > 0:
                counts[copy] = math.ceil(count * (1.0 - qps / total) - EPSILON)
        for (origin, _, _), share in flows.items():
            left, beside = (origin, region, generation), (origin, other, generation)
            shares[left] = round(shares[left] - share, 12)
            shares[beside] = round(shares.get(beside, 0.0) + share, 12)
    return _standing(counts, shares)


def _add(counts: dict[ReplicaKey, int], like: ReplicaKey, housed: Mapping[SupplyKey, int]) -> None:
    for (region, hardware), count in housed.items():
        copy = like[0], region, hardware, like[3]
        counts[copy] = counts.get(copy, 0) + count


def _standing(counts: Mapping[ReplicaKey, int], shares: Mapping[RouteKey, float]) -> ModelState:
    return ModelState({c: n for c, n in counts.items() if n}, {f: share for f, share in shares.items() if share > 0})
