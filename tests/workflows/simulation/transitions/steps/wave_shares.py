"""The traffic shares of every region, and the generations that it can serve."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

from activities.regions import recovery
from activities.state import wave_state as waves
from activities.state.routes import failover_shares as rerouting
from activities.state.routes import route_shares
from activities.transition import revert as undoing
from activities.transition import wave_context
from ipnext.model.deployment.route_table import RouteShare
from tests.workflows.simulation.infrastructure import Deployment, Key

from .wave import Wave, origin_of


def wanted_shares(
    world: Any,
    model: str,
    state: waves.ModelWaveState,
    deployments: Iterable[Deployment],
    unready: frozenset[tuple[str, int]],
) -> dict[str, tuple[RouteShare, ...]]:
    """The shares of every region, as activities/state/routes/route_shares.py has them."""
    record, held = world.journal.records[model], tuple(deployments)
    hosting = {d.key.region for d in held if d.replicas}
    main = route_shares._main_generation(state)
    demanding = {item.region for item in record.in_force.spec.demand}
    routed = hosting | state.shares.keys() | record.tables.keys() | demanding
    shares = {region: state.shares.get(region, ()) for region in sorted(routed)}
    for region in sorted(hosting - demanding):
        if not shares[region] and main in served_generations(record, region, held) and (region, main) not in unready:
            shares[region] = (waves.route_share(region, main, 1.0),)
    if not world.out.lost:
        return shares
    able = [found for found in list_survivors(world, model, held) if (found.region, found.generation) not in unready]
    return send_around(world, model, shares, able)


def find_unready(world: Any, wave: Wave) -> frozenset[tuple[str, int]]:
    """By the real functions: replicas of before that nothing has waited for, and that are not ready."""
    if wave.back:
        return frozenset()
    record, origin = world.journal.records[wave.model], origin_of(wave)
    tables = cast("Any", record.tables.values())
    unproven = wave_context.find_unproven(origin, tables, wave.moving.generation)
    states, _ = world.infra.observe(wave.model, {region for region, _ in unproven} - world.out.lost)
    facts: Any = SimpleNamespace(model=wave.model, generations=record.generations)
    return frozenset(
        (region, number)
        for region, number in unproven
        if region not in states or not recovery.has_ready_replicas(facts, cast("Any", states[region]), number)
    )


def keep_answered(world: Any, wave: Wave, state: waves.ModelWaveState, shares: Mapping[str, Any]) -> dict[str, Any]:
    """By the real function: no step takes away what a region that came back answers its users with."""
    record = world.journal.records[wave.model]
    facts = SimpleNamespace(model=wave.model, tables=record.tables, lost=world.out.lost, generations=record.generations)
    found: dict[str, Any] = cast("Any", undoing.still_answered)(facts, wave.moving.transition, state, shares)
    return found


def send_around(
    world: Any, model: str, shares: dict[str, tuple[RouteShare, ...]], able: Sequence[rerouting.Survivor]
) -> dict[str, tuple[RouteShare, ...]]:
    """By the real function."""
    record = world.journal.records[model]
    demand = {item.region: item.qps for item in record.in_force.spec.demand}
    return rerouting.without_regions(shares, world.out.lost, able, demand=demand, serving=record.serving)


def list_survivors(
    world: Any, model: str, held: Sequence[Deployment], ready: Mapping[tuple[Key, int], int] | None = None
) -> tuple[rerouting.Survivor, ...]:
    """As activities/state/routes/route_shares.py: by the replicas that are wanted, or by those that are `ready`."""
    record = world.journal.records[model]
    leaving = frozenset(route_shares._leaving(record.serving, cast("Any", held), cast("Any", ready or {})))
    return tuple(
        rerouting.Survivor(region, number, _throughput(record, region, number, held, ready))
        for region in sorted({d.key.region for d in held} - world.out.lost)
        for number in sorted(served_generations(record, region, held, cast("Any", leaving)))
    )


def _throughput(
    record: Any, region: str, number: int, held: Sequence[Deployment], ready: Mapping[tuple[Key, int], int] | None
) -> float:
    able = dict.fromkeys(record.generations[number].parts, 0.0)
    for d in held:
        if d.key.region == region and d.key.part in able:
            count = d.replicas_of(number) if ready is None else ready.get((d.key, number), 0)
            able[d.key.part] += count * d.qps
    return min(able.values(), default=0.0)


def served_generations(
    record: Any, region: str, deployments: Iterable[Deployment], leaving: Collection[tuple[Key, int]] = ()
) -> frozenset[int]:
    """Generations that a region holds completely, also with what its processes are to leave."""
    held: dict[int, set[str]] = {}
    for d in deployments:
        if d.key.region == region and d.replicas:
            for generation in d.generations:
                held.setdefault(generation, set()).add(d.key.part)
    for key, generation in leaving:
        if key.region == region:
            held.setdefault(generation, set()).add(key.part)
    return frozenset(g for g, parts in held.items() if parts.issuperset(record.generations[g].parts))
