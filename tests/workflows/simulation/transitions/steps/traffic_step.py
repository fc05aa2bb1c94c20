"""The activity that shifts the traffic of a wave."""

from collections.abc import Generator, Mapping
from types import SimpleNamespace
from typing import Any, cast

from activities.transition import admission as admitting
from activities.transition import step_limit as pacing
from ipnext.errors import Unavailable
from ipnext.model.deployment.route_table import RouteShare
from ipnext.model.lifecycle.changes.transition_run import WaveResult
from tests.workflows.simulation.runs.activity_attempts import Attempt

from . import route_updates
from .revert_regions import find_not_reverted, find_unchanged, find_waiting
from .wave import Wave, regions_counted_on, state_of
from .wave_deployments import list_answering, list_routable
from .wave_progress import record_rest
from .wave_shares import find_unready, keep_answered, wanted_shares

Steps = Generator[Any, Any, WaveResult]


def shift_traffic(world: Any, wave: Wave, attempt: Attempt) -> Steps:
    """Send traffic by the shares of the wave, in every gateway."""
    record, state = world.journal.records[wave.model], state_of(world, wave, "routed")
    deployments = list_routable(world, wave, tuple(record.deployments.values()))
    if wave.back and world.out.lost:
        deployments += list_answering(world, wave, regions_counted_on(world, wave, state), deployments)
    unready = find_unready(world, wave)
    shares = keep_answered(world, wave, state, wanted_shares(world, wave.model, state, deployments, unready))
    regions_seen = {*shares, *(region for _, region, _ in state.slots)}
    waits = find_waiting(world, wave, shares, regions_seen) if wave.back else frozenset()
    if (hurried := _check_pace(world, wave, shares)) is not None:
        return hurried
    if not (wave.back or world.journal.by_id[wave.moving.id].kind in admitting.AT_ONCE):
        _check_reached(world, record, shares)
    keeping = find_not_reverted(world, wave, state)
    record_rest(wave, attempt, rests=False)
    apart = find_unchanged(world, wave)
    yield from route_updates.follow(
        world, wave.model, shares, deployments, attempt, waits, keeping=keeping, apart=apart
    )
    yield "all gateways follow"
    record_rest(wave, attempt, rests=True)
    hold = 0.0 if wave.back else wave.moving.transition.waves[wave.index].hold_seconds
    return WaveResult(ok=True, hold_seconds=hold)


def _check_pace(world: Any, wave: Wave, shares: Mapping[str, tuple[RouteShare, ...]]) -> WaveResult | None:
    """By the real function: a run goes no faster for a region that was lost on the way."""
    record = world.journal.records[wave.model]
    if wave.back or world.journal.by_id[wave.moving.id].kind in admitting.AT_ONCE:
        return None
    facts, rollout = (
        SimpleNamespace(model=wave.model, tables=record.tables, lost=world.out.lost),
        record.in_force.spec.rollout,
    )
    found: WaveResult | None = cast("Any", pacing.check_growth)(
        facts, wave.moving.transition, wave.index, shares, rollout
    )
    if found is not None:
        world.faults.count("goes back, not to hurry")
    return found


def _check_reached(world: Any, record: Any, shares: Mapping[str, tuple[RouteShare, ...]]) -> None:
    """No gateway moves on while another one that has to can't be reached."""
    for region in sorted(shares.keys() - world.out.lost):
        table = record.tables.get(region)
        if not world.infra.reachable(region) and shares[region] != (table.shares if table else ()):
            msg = f"region {region!r} can't be reached"
            raise Unavailable(msg)
