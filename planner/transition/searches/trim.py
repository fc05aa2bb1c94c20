"""Tight ends: during a move a model gives up capacity above its traffic, and below it by an allowed dip.

Both ends of a path are trimmed by the same fraction, so that on the whole path each generation misses at most that
fraction of its traffic. Processes that hold several generations are left alone.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from planner.transition.instance import TransitionInstance
from planner.transition.model_state import CapacityKey, DipKey, ModelState, ReplicaKey, SupplyKey, compute_loads
from planner.transition.paths import EPSILON
from planner.transition.searches.shortage import find_short_rows
from planner.transition.trajectory import Goal, Trajectory

Dips = Mapping[DipKey, float]
NO_DIPS: Dips = {}


@dataclass(frozen=True)
class TightEndSearch:
    """Advances to the trimmed states, to the trimmed goal and to the goal: trimmed in the rows that are short."""

    dips: Dips

    def improve(self, trajectory: Trajectory, goal: Goal) -> Trajectory | None:
        """Return a trajectory through tight ends, as far as it leads; None if no trimmed row is enough."""
        instance, pending = trajectory.instance, trajectory.pending_models(goal)
        rows: set[SupplyKey] = set()
        new = find_short_rows(trajectory, goal)
        while new:
            rows |= new
            now, tight = (trim_states(instance, ends, pending, rows, self.dips) for ends in (trajectory.states, goal))
            reached = trajectory.advance(now).advance(tight)
            if all(reached.state_of(model) == tight[model] for model in pending):
                return reached.advance(goal)
            new = find_short_rows(reached, {**goal, **tight}) - rows
        return None


def trim_states(
    instance: TransitionInstance,
    states: Mapping[str, ModelState],
    models: Collection[str],
    rows: Collection[SupplyKey],
    dips: Dips = NO_DIPS,
) -> dict[str, ModelState]:
    """Return the trimmed states of these models."""
    return {model: trim_state(instance, model, states.get(model, ModelState()), rows, dips) for model in models}


def trim_state(
    instance: TransitionInstance, model: str, state: ModelState, rows: Collection[SupplyKey], dips: Dips
) -> ModelState:
    """Return the state without the replicas in `rows` that the traffic, less the dip, does not need."""
    if not instance.is_divisible(model, state):
        return state
    counts, spare = dict(state.counts), _compute_spare(instance, model, state, dips)
    for key in sorted(counts, key=lambda key: (-_units_of(instance, model, key), key)):
        part, region, hardware, generation = key
        if (region, hardware) not in rows:
            continue
        qps = instance.options[model][part, hardware].qps
        room = spare[part, region, generation]
        gone = max(0, min(counts[key], int(room / qps + EPSILON)))
        counts[key] -= gone
        spare[part, region, generation] = room - gone * qps
    return ModelState({key: count for key, count in counts.items() if count}, state.shares)


def list_dip_levels(trajectory: Trajectory, goal: Goal, places: Collection[DipKey]) -> list[float]:
    """Return the fractions at which one more replica may go, at either end, ascending."""
    instance, levels = trajectory.instance, set[float]()
    for model in sorted({place[0] for place in places}):
        for end in (trajectory.state_of(model), goal.get(model, ModelState())):
            spare, load = _compute_spare(instance, model, end, NO_DIPS), _compute_load(instance, model, end)
            for (part, region, hardware, generation), count in end.counts.items():
                key = part, region, generation
                if (model, part, region) in places and load.get(key, 0.0) > 0:
                    qps = instance.options[model][part, hardware].qps
                    levels |= {(k * qps - spare[key]) / load[key] for k in range(1, count + 1)}
    return sorted(level for level in levels if 0 < level <= 1 + EPSILON)


def measure_dips(trajectory: Trajectory, places: Collection[DipKey]) -> dict[DipKey, float]:
    """Return the most that each place misses of a generation's traffic, beyond the shortage at the origin."""
    instance, worst = trajectory.instance, dict[DipKey, float]()
    models = {place[0] for place in places}
    short = {m: _compute_spare(instance, m, trajectory.origin.get(m, ModelState()), NO_DIPS) for m in models}
    for schedule in trajectory.schedules:
        for model, ends in zip(schedule.paths.models, schedule.paths.ends, strict=True):
            for end in ends if model in models else ():
                spare, load = _compute_spare(instance, model, end, NO_DIPS), _compute_load(instance, model, end)
                for key, qps in load.items():
                    missing = -spare[key] - max(0.0, -short[model].get(key, 0.0))
                    place = model, *key[:2]
                    worst[place] = max(worst.get(place, 0.0), missing / qps if qps > 0 else 0.0)
    return {place: fraction for place, fraction in sorted(worst.items()) if fraction > EPSILON}


def _units_of(instance: TransitionInstance, model: str, key: ReplicaKey) -> float:
    return instance.options[model][key[0], key[2]].units


def _compute_load(instance: TransitionInstance, model: str, state: ModelState) -> dict[CapacityKey, float]:
    return compute_loads(state.shares, instance.demand[model], instance.parts[model], instance.policy_of(model).calls)


def _compute_spare(instance: TransitionInstance, model: str, state: ModelState, dips: Dips) -> dict[CapacityKey, float]:
    """Return QPS of capacity above the traffic less its dip."""
    spare: dict[CapacityKey, float] = defaultdict(float)
    for (part, region, hardware, generation), count in state.counts.items():
        spare[part, region, generation] += count * instance.options[model][part, hardware].qps
    for (part, region, generation), qps in _compute_load(instance, model, state).items():
        spare[part, region, generation] -= qps * (1.0 - dips.get((model, part, region), 0.0))
    return spare
