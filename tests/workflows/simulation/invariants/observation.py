"""What the invariants read of a world: who moves a model, what swaps, and which gateways count."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from activities.state import wave_state as waves
from tests.workflows.simulation.infrastructure import Key, Region


def find_moving_run(world: Any, model: str) -> Any:
    """The run that moves a model, else the one that the entity carries out; None if there is none.

    The wait of a run that a repair passes may end at any moment: then that run moves the model, and the repair
    waits.
    """
    mover, entity = world.journal.find_mover(model), world.entities.get(model)
    found = world.runs.get(mover.id) if mover is not None else None
    return found if found is not None or entity is None else entity.running


def is_reverting(world: Any, model: str) -> bool:
    """Whether a model's transition is being reverted, capacity first."""
    run = find_moving_run(world, model)
    return run is not None and run.command.back


def name_revert_breach(world: Any, model: str) -> str:
    """I1 ahead: a gateway follows what was never written down, for the run that told it has gone."""
    ahead = any(is_ahead(world, origin, model) for origin in world.infra.regions.values())
    return "I1 ahead" if world.ends and ahead else "I1 way back"


def is_ahead(world: Any, origin: Region, model: str) -> bool:
    """Whether a gateway follows a table that was never written down, until it is told again."""
    stored = world.journal.records[model].tables.get(origin.name)
    return bool(origin.routes.get(model, (0, ()))[0] > (stored.revision if stored else 0))


def is_out(world: Any, origin: Region) -> bool:
    """Whether what a gateway sends says nothing: its region is dead, or was said to be lost and is not back yet.

    One that was lost, stands up again and can't be reached goes by what it held; nobody waits for it.
    """
    return origin.dead_until > world.clock.now or origin.name in world.lost


def find_sent_generations(world: Any, model: str) -> frozenset[int]:
    """Generations that gateways send users to."""
    routes = [region.routes.get(model, (0, ()))[1] for region in world.infra.regions.values()]
    return frozenset(share.generation for shares in routes for share in shares if share.fraction > 0)


def sum_swapping(world: Any, model: str) -> Mapping[tuple[str, str], float]:
    """(Region, part) -> requests/s that the processes carry which go over in the wave at hand."""
    wave = find_swapping_wave(world, model)
    if wave is None:
        return {}
    deployments = world.journal.records[model].deployments
    over: dict[tuple[str, str], float] = defaultdict(float)
    for slot, (gone, _) in count_swapping(model, *wave).items():
        stored = deployments.get(Key(model, *slot))
        over[slot[1], slot[0]] += gone * stored.qps if stored is not None else 0.0
    return dict(over)


def find_swapping_wave(world: Any, model: str) -> tuple[Any, int] | None:
    """Transition and number of the wave at hand, where processes go over in it and its traffic has not moved."""
    run = find_moving_run(world, model) if world.journal.records[model].refresh == "swap" else None
    if run is None or run.step.name not in {"ensure_capacity", "shift_traffic"}:
        return None
    moving = world.journal.find_transition(run.change.id)
    if moving is None or not waves.swaps(moving.transition, model, run.step.index):
        return None
    return moving.transition, run.step.index


def count_swapping(model: str, transition: Any, index: int) -> Mapping[waves.Slot, tuple[int, float]]:
    """Slot -> processes that go over in a wave, or back, and their largest fraction of those of a generation."""
    before = waves.state_undone(transition, model, index, "released").counts
    after = waves.state_at(transition, model, index, "scaled_up").counts
    over: dict[waves.Slot, tuple[int, float]] = {}
    for slot, generation in before.keys() | after.keys():
        held = slot, generation
        count, changed = before.get(held, 0), before.get(held, 0) - after.get(held, 0)
        gone, least = over.get(slot, (0, 0.0))
        if changed > 0:
            over[slot] = gone + changed, max(least, changed / count)
    return over
