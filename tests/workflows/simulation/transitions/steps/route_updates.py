"""Route tables of a model, put in force one by one in the order of the real function."""

from collections.abc import Generator, Iterable, Mapping
from typing import Any, cast

from activities.state import wave_state as waves
from activities.transition.route_updates import RouteUpdates, follow_routes
from ipnext.errors import Unavailable
from ipnext.model.deployment.route_table import RouteShare
from tests.workflows.simulation.infrastructure import Deployment
from tests.workflows.simulation.runs.activity_attempts import Attempt

from .gateway_tables import GatewayTables
from .wave_shares import served_generations


def follow(
    world: Any,
    model: str,
    shares: dict[str, tuple[RouteShare, ...]],
    deployments: Iterable[Deployment],
    attempt: Attempt,
    waits: frozenset[str] = frozenset(),
    *,
    keeping: frozenset[str] = frozenset(),
    apart: frozenset[str] = frozenset(),
) -> Generator[Any, Any, None]:
    """Update every gateway that answers: first what its region holds, then its shares. Unavailable at the end."""
    record, held, lost = world.journal.records[model], tuple(deployments), world.out.lost
    reached = [region for region in sorted(shares.keys() - lost) if world.infra.reachable(region)]
    if any(share.to in lost and share.fraction > 0 for region in reached for share in _shares_now(record, region)):
        world.invariants.excuses.strained.add(model)  # these users were answered by nobody, and come on top now
    served = {region: served_generations(record, region, held) for region in shares}
    tables = GatewayTables(world, model, lost, attempt)
    regaining = [region for region in reached if region not in waits and tables.regains(region, shares[region])]
    for region in sorted(reached, key=regaining.__contains__):
        now = (
            shares[region]
            if region in regaining and tables.are_known(region, shares[region])
            else tables.find(region).shares
        )
        yield from tables.put(region, now, served[region] | tables.find(region).served)
    moves = {region: shares[region] for region in reached if region not in waits and tables.knows(shares[region])}
    staying = {region for region in reached if region not in moves and shares[region] != tables.find(region).shares}
    following = _order_updates(record, moves, held, lost)
    stays = any(shares[region] != tables.find(region).shares for region in shares.keys() - moves.keys() - lost)
    if following.beyond > 0 or stays:
        world.invariants.excuses.crossing.add(model)
    for region, found in following.tables:
        yield from tables.put(region, found, served[region] | tables.find(region).served)
    needed = find_still_sent(record, shares) | {
        (share.to, share.generation) for found in shares.values() for share in found
    }
    for region in (name for name in reached if name not in keeping):
        now = tables.find(region)
        kept = {number for number in now.served if (region, number) in needed}
        yield from tables.put(region, now.shares, served[region] | kept, forgets=True)
    for region in sorted((shares.keys() & lost) - waits):
        known = [
            (s.to, s.generation) for s in shares[region] if s.to in reached or s.generation in tables.find(s.to).served
        ]
        kept = {number for number in tables.find(region).served if (region, number) in needed}
        tables.store_lost(region, waves.keep_held_shares(shares[region], known), served[region] | kept)
    same = {region for region in apart & record.tables.keys() if shares.get(region) == _shares_now(record, region)}
    refusing = {item.region for item in record.in_force.spec.demand if not shares.get(item.region)}
    silent = sorted(shares.keys() - set(reached) - lost - same - (refusing - record.tables.keys()))
    if silent:
        msg = f"region {silent[0]!r} can't be reached"
        raise Unavailable(msg)
    if waits := (waits | staying) - lost:
        msg = f"users of {min(waits)!r} stay where they are"
        raise Unavailable(msg)
    if not keeping:
        world.invariants.excuses.settle(model)


def find_still_sent(record: Any, shares: dict[str, tuple[RouteShare, ...]]) -> frozenset[tuple[str, int]]:
    """(Region, generation) pairs that gateways still send to, as activities/transition/traffic_shift.py has it."""
    return frozenset(
        (share.to, share.generation)
        for region, table in record.tables.items()
        if table.shares != shares.get(region, table.shares)
        for share in table.shares
        if share.fraction > 0
    )


def _shares_now(record: Any, region: str) -> tuple[RouteShare, ...]:
    """What a region's stored table sends."""
    table = record.tables.get(region)
    return table.shares if table is not None else ()


def _order_updates(
    record: Any, then: Mapping[str, tuple[RouteShare, ...]], held: Iterable[Deployment], lost: frozenset[str]
) -> RouteUpdates:
    """By the real function: shares that gateways are told, in their order."""
    now = {region: table.shares for region, table in record.tables.items() if region not in lost}
    demand = {item.region: item.qps for item in record.transitions[-1].transition.demand}
    parts = {number: generation.parts for number, generation in record.generations.items()}
    return follow_routes(now, then, cast("Any", held), demand=demand, parts=parts)
