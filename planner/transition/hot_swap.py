"""Hot swaps: running replicas change to another generation in place, a few at a time, and take no further unit.

Called by `planner.transition.planner` before anything moves to another place. A replica that swaps answers for neither
generation for a while. In a serving region all old replicas are divided into as many equal shares as possible (the
greatest common divisor of their counts); a share of the traffic moves with a share of the replicas, so that afterwards
every generation has the capacity that its traffic needs. A wave swaps as many shares as `canary` and `max_step` allow,
at least one, and never more than half of a region's if it has two or more.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from ipnext.model.planning.transition import GenerationReplicas, Swap, Wave
from planner.core.step_policy import StepPolicy
from planner.transition.instance import TransitionInstance
from planner.transition.model_state import (
    ModelState,
    ReplicaKey,
    RouteKey,
    compute_loads,
    list_route_changes,
    replica_row,
)
from planner.transition.paths import EPSILON, LEAST_STEP


@dataclass(frozen=True)
class SwapPlan:
    """Waves in which replicas swap, the state of the models after them, and the price of the swaps."""

    waves: tuple[Wave, ...]
    states: Mapping[str, ModelState]
    swaps: tuple[Swap, ...]


@dataclass(frozen=True)
class _SwapStep:
    model: str
    before: ModelState
    after: ModelState
    canary: bool


@dataclass(frozen=True)
class _SwapRegion:
    """The old replicas of one serving region and the traffic to them."""

    name: str
    counts: Mapping[ReplicaKey, int]
    shares: Mapping[RouteKey, float]

    @property
    def share_count(self) -> int:
        """Number of equal shares of all replicas that swap."""
        return math.gcd(*self.counts.values())


def plan_swaps(
    instance: TransitionInstance, origin: Mapping[str, ModelState], to: Mapping[str, ModelState]
) -> SwapPlan:
    """Compute the swaps from `origin` to `to`, of all models in parallel. Models with another refresh policy stay."""
    steps: list[list[_SwapStep]] = []
    states = dict(origin)
    for model in sorted(origin):
        if instance.policy_of(model).refresh == "swap":
            found = list(_plan_steps(instance, model, origin[model], to.get(model, ModelState())))
            steps += [found] if found else []
            states[model] = found[-1].after if found else origin[model]
    sides = [[step for step in side if step is not None] for side in zip_longest(*steps)]
    arrived = [model for model in states if states[model] != to.get(model, ModelState())]
    waves = [_build_wave(instance, side, final=not arrived and side is sides[-1]) for side in sides]
    return SwapPlan(tuple(waves), states, tuple(_list_swaps(instance, [step for side in steps for step in side])))


def _plan_steps(instance: TransitionInstance, model: str, now: ModelState, end: ModelState) -> Iterator[_SwapStep]:
    generation = _find_target(instance, model, now, end)
    regions = [] if generation is None else list(_list_regions(instance, model, (now, end), generation))
    if generation is None or not regions:
        return
    at = now
    for done in _pace_shares(regions, instance.policy_of(model), fresh=generation not in now.generations):
        after = _snap_shares(_state_after(now, generation, zip(regions, done, strict=True)), end)
        yield _SwapStep(model, at, after, canary=generation not in at.generations and after.generations != {generation})
        at = after


def _find_target(instance: TransitionInstance, model: str, now: ModelState, end: ModelState) -> int | None:
    """Return the one generation of the end if the running ones have the same parts; else nothing can swap to it."""
    there = {key[3] for key in end.counts} | end.generations
    if len(there) != 1:
        return None
    (generation,) = there
    calls, parts = instance.policy_of(model).calls, instance.parts[model]
    alike = {frozenset(calls.get(number, parts)) for number in {*(key[3] for key in now.counts), generation}}
    return generation if len(alike) == 1 else None


def _list_regions(
    instance: TransitionInstance, model: str, ends: tuple[ModelState, ModelState], generation: int
) -> Iterator[_SwapRegion]:
    """Yield regions that keep replicas of every part in a slot of a running one. Others start and end replicas."""
    now, end = ends
    parts = set(instance.policy_of(model).calls.get(generation, instance.parts[model]))
    for region in sorted({key[1] for key in now.counts}):
        old = {key: count for key, count in now.counts.items() if key[1] == region and key[3] != generation}
        kept = {key[0] for key in now.counts if key[1] == region and (*key[:3], generation) in end.counts}
        if old and kept >= parts:
            shares = {f: share for f, share in now.shares.items() if f[1] == region and f[2] != generation}
            yield _SwapRegion(region, old, shares)


def _pace_shares(regions: Sequence[_SwapRegion], policy: StepPolicy, *, fresh: bool) -> Iterator[tuple[int, ...]]:
    """Yield the shares of each region that have swapped after each wave.

    A region in which one share is more than the policy's step swaps in a wave in which no other such region does.
    """
    done = (0,) * len(regions)
    reach = 0.0
    while any(k < region.share_count for k, region in zip(done, regions, strict=True)):
        begins = fresh and not any(done)
        step = max(min(policy.canary, policy.max_step) if begins else policy.max_step, LEAST_STEP)
        reach = min(1.0, reach + step)
        rounded, after = False, []
        for k, region in zip(done, regions, strict=True):
            most = math.floor(step * region.share_count + EPSILON)
            goal = math.floor(reach * region.share_count + EPSILON)
            alone = most < 1 and goal > k
            after.append(k if alone and rounded else _next_share(k, goal, most, region.share_count))
            rounded = rounded or alone
        if tuple(after) != done:
            done = tuple(after)
            yield done


def _next_share(done: int, goal: int, most: int, whole: int) -> int:
    step = max(1, min(most, whole // 2))
    return max(done, min(goal, done + step))


def _state_after(now: ModelState, generation: int, reached: Iterable[tuple[_SwapRegion, int]]) -> ModelState:
    """Return the model's state once this many shares of each region have swapped."""
    counts: dict[ReplicaKey, int] = defaultdict(int, now.counts)
    shares: dict[RouteKey, float] = defaultdict(float, now.shares)
    for region, done in reached:
        for key, count in region.counts.items():
            gone = count * done // region.share_count
            counts[key] -= gone
            counts[*key[:3], generation] += gone
        for route, share in region.shares.items():
            left = share * (1.0 - done / region.share_count) if done < region.share_count else 0.0
            shares[route] = round(left, 12)
            shares[*route[:2], generation] += share - left
    return ModelState(
        {key: count for key, count in counts.items() if count},
        {key: round(share, 12) for key, share in shares.items() if share > 0},
    )


def _snap_shares(at: ModelState, end: ModelState) -> ModelState:
    """Return the same state, with the end's exact figure for each share that differs only by rounding."""
    near = {key for key, share in at.shares.items() if abs(share - end.shares.get(key, -1.0)) < EPSILON}
    return ModelState(at.counts, {key: end.shares[key] if key in near else at.shares[key] for key in at.shares})


def _build_wave(instance: TransitionInstance, steps: Sequence[_SwapStep], *, final: bool) -> Wave:
    scale = [row for step in steps for row in _list_changed(step)]
    route = [
        change for step in steps for change in list_route_changes(step.model, step.before.shares, step.after.shares)
    ]
    return Wave(
        scale_up=tuple(scale),
        route=tuple(route),
        hold_seconds=max(instance.policy_of(step.model).hold_seconds for step in steps),
        gate="canary" if any(step.canary for step in steps) else "final" if final else "step",
    )


def _list_changed(step: _SwapStep) -> Iterator[GenerationReplicas]:
    before, after = step.before.counts, step.after.counts
    for key in sorted(before.keys() | after.keys()):
        if before.get(key, 0) != after.get(key, 0):
            yield replica_row(step.model, key, after.get(key, 0))


def _list_swaps(instance: TransitionInstance, steps: Iterable[_SwapStep]) -> Iterator[Swap]:
    """Yield the number of replicas of a part that swap in a region, and the most that its traffic misses."""
    replicas: dict[tuple[str, str, str], int] = defaultdict(int)
    missing: dict[tuple[str, str, str], float] = defaultdict(float)
    for step in steps:
        for (part, region), (count, fraction) in _measure_missing(instance, step).items():
            place = step.model, part, region
            replicas[place] += count
            missing[place] = max(missing[place], fraction)
    for (model, part, region), count in sorted(replicas.items()):
        fraction = min(1.0, math.ceil(missing[model, part, region] * 1e9) / 1e9)
        yield Swap(model=model, part=part, region=region, replicas=count, fraction=fraction)


def _measure_missing(instance: TransitionInstance, step: _SwapStep) -> Mapping[tuple[str, str], tuple[int, float]]:
    """Return (part, region) -> replicas that swap, and the missing fraction of the capacity that its traffic needs."""
    able: dict[tuple[str, str, int], float] = defaultdict(float)
    leaving: dict[tuple[str, str, int], float] = defaultdict(float)
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for key in step.before.counts:
        part, region, hardware, generation = key
        qps, left = instance.options[step.model][part, hardware].qps, step.after.counts.get(key, 0)
        gone = max(0, step.before.counts[key] - left)
        able[part, region, generation] += min(left, step.before.counts[key]) * qps
        leaving[part, region, generation] += gone * qps
        counts[part, region] += gone
    policy = instance.policy_of(step.model)
    load = compute_loads(step.before.shares, instance.demand[step.model], instance.parts[step.model], policy.calls)
    whole: dict[tuple[str, str], float] = defaultdict(float)
    short: dict[tuple[str, str], float] = defaultdict(float)
    for hold, qps in load.items():
        whole[hold[:2]] += qps
        short[hold[:2]] += min(leaving[hold], max(0.0, qps - able[hold]))
    return {place: (n, short[place] / whole[place] if whole[place] > 0 else 0.0) for place, n in counts.items() if n}
