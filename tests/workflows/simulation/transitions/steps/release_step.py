"""The activity that releases the replicas that a wave no longer needs."""

from collections.abc import Generator
from typing import Any, cast

from activities.transition import revert as undoing
from activities.transition import scale_down as releasing
from ipnext.errors import Unavailable
from ipnext.model.lifecycle.changes.transition_run import WaveResult
from tests.workflows.simulation.runs.activity_attempts import Attempt

from . import route_updates, wave_deployments, wave_progress
from .revert_regions import find_not_reverted, find_unchanged, find_waiting
from .wave import Wave, peak_of, regions_counted_on, state_of
from .wave_deployments import choose_spared, list_answering, release
from .wave_progress import record_rest
from .wave_shares import find_unready, keep_answered, wanted_shares

Steps = Generator[Any, Any, WaveResult]


def release_capacity(world: Any, wave: Wave, attempt: Attempt) -> Steps:
    """Release what the wave no longer needs: out of the routers first, then the replicas."""
    record, state = world.journal.records[wave.model], state_of(world, wave, "released")
    last = wave.last
    target, counted_on = wave_deployments.wanted_deployments(world, wave, state), regions_counted_on(world, wave, state)
    wanted_sets = whole = choose_spared(world, wave, counted_on, target)
    if wave.back and wave.by_waves:
        wanted_sets = cast("Any", undoing.none_more)(wanted_sets, record.deployments)
    keys = {d.key for d in wanted_sets}
    left_over = [d for key, d in record.deployments.items() if key not in keys]
    gone = [d for d in left_over if last or (d.key.part, d.key.region, d.key.hardware) in peak_of(world, wave)]
    unready = find_unready(world, wave)
    shares = keep_answered(world, wave, state, wanted_shares(world, wave.model, state, wanted_sets, unready))
    if last:
        shares = {region: found for region, found in shares.items() if found or region in record.tables}
    kept = wanted_sets if last else (*wanted_sets, *(d for d in left_over if d not in gone))
    if wave.back:
        able = (*target, *list_answering(world, wave, counted_on, target))
        kept = cast("Any", undoing.heard)(kept, whole, able)
    unreachable: Unavailable | None = None
    lost, stored = world.out.lost, dict(record.deployments)
    record_rest(wave, attempt, rests=False)
    try:
        waits = find_waiting(world, wave, shares, {d.key.region for d in wanted_sets})
        apart = find_unchanged(world, wave)
        if apart:
            world.faults.count("a silent region is no part of a way back")
        wanted_sets = tuple(d for d in wanted_sets if d.key.region not in apart)
        gone = [d for d in gone if d.key.region not in apart]
        keeping = find_not_reverted(world, wave, state)
        yield from route_updates.follow(world, wave.model, shares, kept, attempt, waits, keeping=keeping, apart=apart)
    except Unavailable as error:
        unreachable = error
    needed = route_updates.find_still_sent(record, shares)
    if wave.back and wave.by_waves:
        needed |= cast("Any", undoing.find_unrestored)(whole, stored, shares)
    for deployment in (*wanted_sets, *gone):
        then = deployment.generations if deployment.key in keys else ()
        if cast("Any", releasing.is_needed)(stored.get(deployment.key), needed, then):
            continue
        try:
            yield from release(world, record, deployment, (deployment.key in keys, lost), attempt)
        except Unavailable as error:
            unreachable = error
    if unreachable is not None:
        raise unreachable
    attempt.check()
    if world.out.lost != lost:
        msg = "a region that was lost or came back has to be told where this led to"
        raise Unavailable(msg)
    wave_progress.write_progress(wave)
    yield "progress is written down"
    return WaveResult(ok=True)
