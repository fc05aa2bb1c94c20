"""Tight ends: during a move a model gives up capacity above its traffic, and below it by an allowed dip.

Both ends of a line are trimmed by the same fraction, so that on the whole line each generation misses at most that
fraction of its traffic. Processes that hold several generations are left alone.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping

from planner.transition.instance import TransitionInstance
from planner.transition.model_state import CapacityKey, ModelState, ReplicaKey, SupplyKey, compute_loads
from planner.transition.paths import EPSILON
from planner.transition.searches.shortage import find_short_rows, with_surge
from planner.transition.trajectory import Trajectory

DipKey = tuple[str, str, str]
"""Model, part, region."""
Dips = Mapping[DipKey, float]
NO_DIPS: Dips = {}


def trim_state(
    instance: TransitionInstance, model: str, standing: ModelState, rows: Collection[SupplyKey], dips: Dips
) -> ModelState:
    """Return the state without the replicas in `rows` that the traffic, less the dip, does not need."""
    if not instance.is_divisible(model, standing):
        return standing
    counts, spare = dict(standing.counts), _spare(instance, model, standing, dips)
    for copy in sorted(counts, key=lambda copy: (-_units(instance, model, copy), copy)):
        part, region, hardware, generation = copy
        if (region, hardware) not in rows:
            continue
        qps = instance.options[model][part, hardware].qps
        room = spare[part, region, generation]
        gone = max(0, min(counts[copy], int(room / qps + EPSILON)))
        counts[copy] -= gone
        spare[part, region, generation] = room - gone * qps
    return ModelState({copy: count for copy, count in counts.items() if count}, standing.shares)


def lean(trajectory: Trajectory, to: Mapping[str, ModelState], dips: Dips = NO_DIPS) -> Trajectory:
    """Advance to `to` through tight ends, in the rows that are short; as far as possible."""
    rows: set[SupplyKey] = set()
    instance, pending = trajectory.instance, trajectory.pending_models(to)

    def tight(ends: Mapping[str, ModelState]) -> dict[str, ModelState]:
        return {m: trim_state(instance, m, ends.get(m, ModelState()), rows, dips) for m in pending}

    new = find_short_rows(trajectory, to)
    while new:
        rows |= new
        goal = tight(to)
        reached = trajectory.advance(tight(trajectory.states)).advance(goal)
        if not [m for m in pending if reached.state_of(m) != goal[m]]:
            return reached.advance(to)
        new = find_short_rows(reached, {**to, **goal}) - rows
    return trajectory


def lean_with_surge(trajectory: Trajectory, to: Mapping[str, ModelState]) -> Trajectory:
    """Advance to `to` through tight ends in all rows, with additional units, as few as were found."""
    instance, rows = trajectory.instance, trajectory.instance.rows
    pending = trajectory.pending_models(to)
    now, goal = (
        {m: trim_state(instance, m, ends.get(m, ModelState()), rows, NO_DIPS) for m in pending}
        for ends in (trajectory.states, to)
    )
    return with_surge(with_surge(trajectory.advance(now), {**trajectory.states, **goal}), to)


def list_dip_levels(trajectory: Trajectory, to: Mapping[str, ModelState], places: Collection[DipKey]) -> list[float]:
    """Return the fractions at which one more replica may go, at either end, ascending."""
    found: set[float] = set()
    for model in sorted({place[0] for place in places}):
        for end in (trajectory.state_of(model), to.get(model, ModelState())):
            spare = _spare(trajectory.instance, model, end, {})
            load = _loads(trajectory.instance, model, end)
            for (part, region, hardware, generation), count in end.counts.items():
                hold = part, region, generation
                if (model, part, region) in places and load.get(hold, 0.0) > 0:
                    qps = trajectory.instance.options[model][part, hardware].qps
                    found |= {(k * qps - spare[hold]) / load[hold] for k in range(1, count + 1)}
    return sorted(level for level in found if 0 < level <= 1 + EPSILON)


def measure_dips(
    trajectory: Trajectory, start: Mapping[str, ModelState], places: Collection[DipKey]
) -> dict[DipKey, float]:
    """Return the most that each place misses of a generation's traffic on the trajectory, beyond the shortage at the start."""
    instance, worst = trajectory.instance, dict[DipKey, float]()
    models = {place[0] for place in places}
    lacking = {m: _spare(instance, m, start.get(m, ModelState()), {}) for m in models}
    for schedule in trajectory.schedules:
        for model, ends in zip(schedule.paths.models, schedule.paths.ends, strict=True):
            for end in ends if model in models else ():
                spare, load = _spare(instance, model, end, {}), _loads(instance, model, end)
                for hold, qps in load.items():
                    missing = -spare[hold] - max(0.0, -lacking[model].get(hold, 0.0))
                    place = model, *hold[:2]
                    worst[place] = max(worst.get(place, 0.0), missing / qps if qps > 0 else 0.0)
    return {place: fraction for place, fraction in sorted(worst.items()) if fraction > EPSILON}


def _units(instance: TransitionInstance, model: str, copy: ReplicaKey) -> float:
    return instance.options[model][copy[0], copy[2]].units


def _loads(instance: TransitionInstance, model: str, standing: ModelState) -> dict[CapacityKey, float]:
    return compute_loads(
        standing.shares, instance.demand[model], instance.parts[model], instance.policy_of(model).calls
    )


def _spare(instance: TransitionInstance, model: str, standing: ModelState, dips: Dips) -> dict[CapacityKey, float]:
    """Return QPS of each hold above its traffic less its dip."""
    spare: dict[CapacityKey, float] = defaultdict(float)
    for (part, region, hardware, generation), count in standing.counts.items():
        spare[part, region, generation] += count * instance.options[model][part, hardware].qps
    for (part, region, generation), qps in _loads(instance, model, standing).items():
        spare[part, region, generation] -= qps * (1.0 - dips.get((model, part, region), 0.0))
    return spare
