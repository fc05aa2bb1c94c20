"""The activity that brings up the replicas of a wave."""

from collections.abc import Collection, Generator, Iterable, Sequence
from types import SimpleNamespace
from typing import Any, cast

from activities.state import observed as regions
from activities.state import replica_sets
from activities.state import wave_state as waves
from activities.transition import hot_swap as swapping
from activities.transition import revert as undoing
from activities.transition import scale_down as releasing
from ipnext.errors import Unavailable
from ipnext.model.lifecycle.changes.transition_run import WaveResult
from ipnext.model.lifecycle.status import Reason
from tests.workflows.simulation.infrastructure import Deployment
from tests.workflows.simulation.runs.activity_attempts import Attempt, Cancelled

from . import route_updates, wave_deployments
from .revert_regions import find_unfreed, find_uninvolved
from .wave import Wave, end_of, order_by_region, peak_of, regions_counted_on, state_of, target_of
from .wave_deployments import list_strays, release
from .wave_progress import begin_step, record_rest

Steps = Generator[Any, Any, WaveResult]
POLL_SECONDS = 2.0


def ensure_capacity(world: Any, wave: Wave, attempt: Attempt) -> Steps:
    """Bring up the replicas of a wave, and wait until they are ready, at most until the deadline."""
    record = world.journal.records[wave.model]
    attempt.check()
    begin_step(world, wave)
    state = state_of(world, wave, "scaled_up")
    if _is_stuck(world, wave, state):
        world.invariants.changes.stopped_by_loss.add(wave.moving.id)
        yield "a lost region is in the way"
        return WaveResult(ok=False, reason=Reason.REGION_UNREACHABLE, message="on its way to a lost region")
    full = find_unfreed(world, wave, state)
    wanted_sets = [d for d in wave_deployments.wanted_deployments(world, wave, state) if d.key.region not in full]
    attempt.check()
    running = {key: stored.replicas for key, stored in record.deployments.items()}
    lost = world.out.lost
    facts = SimpleNamespace(deployments=record.deployments, lost=lost)
    fewer = () if wave.back else cast("Any", releasing.shrinking)(facts, wanted_sets)
    drops = not wave.back or (wave.index == 0 and not lost & regions_counted_on(world, wave, state))
    final = state_of(world, wave, "released") if wave.back else None
    later = cast("Any", releasing.find_delayed)(wanted_sets, list_strays(world, wave) if drops else [], final)
    record.deployments |= {d.key: d for d in wanted_sets if d not in fewer and d not in later}
    needed = (state_of(world, wave, "released") if wave.back else target_of(wave)).outside(lost | full)
    yield "capacity is written down"
    fewer = yield from _lower(world, record, fewer, attempt)
    told: Sequence[Deployment] = cast("Any", replica_sets.shrinking_first)(
        cast("Any", undoing.choose_told)(facts, wanted_sets, final), running
    )
    pending = [d for d in told if d not in fewer]
    announced = not (
        waves.swaps(wave.moving.transition, wave.model, wave.index)
        or cast("Any", swapping.leave_what_is_sent)(record.tables.values(), told)
    )
    while True:
        if not announced:
            announced = yield from _announce(world, wave.model, attempt)
        fewer = yield from _lower(world, record, fewer, attempt)
        held = (yield from _remove_strays(world, wave, attempt)) if drops else frozenset()
        pending = _tell(world, pending, held.union(d.key.region for d in fewer), attempt, late=later)
        yield "capacity is told"
        states, silent = world.infra.observe(wave.model, {d.key.region for d in told})
        spared_now = find_uninvolved(world, wave).intersection(silent)
        lacking = regions.missing_replicas(wave.model, needed.outside(spared_now), states)
        untold = [found for found in (*pending, *fewer) if found.key.region not in spared_now]
        failure = (
            None if wave.back else regions.first_failure(wave.model, wave.moving.generation, order_by_region(states))
        )
        if failure is None and not lacking and not untold:
            if spared_now:
                world.faults.count("a way back waits for no silent region")
            record_rest(wave, attempt, rests=not full)
            return WaveResult(ok=not full)
        if failure is None and world.clock.now - attempt.scheduled >= wave.deadline:
            reason = Reason.REGION_UNREACHABLE if silent else Reason.DEADLINE_EXCEEDED
            failure = regions.Failure(reason, "; ".join(lacking))
        if failure is not None:
            return WaveResult(ok=False, reason=failure.reason, message=failure.message)
        yield (POLL_SECONDS, attempt.signals)
        if attempt.cancelled():
            raise Cancelled


def _is_stuck(world: Any, wave: Wave, state: waves.ModelWaveState) -> bool:
    """As activities/transition/wave_context.py.

    On its way to a lost region, and the wave counts on what has to be spared, or nothing is left.
    """
    lost = world.out.lost
    if wave.back or not lost & regions_counted_on(world, wave, state):
        return False
    record = world.journal.records[wave.model]
    if record.generations[wave.moving.generation].serving_at is None and end_of(world, wave).regions <= lost:
        return True
    stored = record.deployments.values()
    return bool(cast("Any", undoing.find_unfreed)(state, stored, (), peak_of(world, wave).keys()) - lost)


def _lower(
    world: Any, record: Any, fewer: Iterable[Deployment], attempt: Attempt
) -> Generator[Any, Any, list[Deployment]]:
    """Shrink replica sets before anything starts in their region. Return those that could not be reached."""
    left = []
    for deployment in fewer:
        try:
            yield from release(world, record, deployment, (True, world.out.lost), attempt)
        except Unavailable:
            left.append(deployment)
    return left


def _tell(
    world: Any, pending: Sequence[Deployment], held: Collection[str], attempt: Attempt, *, late: Collection[Deployment]
) -> list[Deployment]:
    """Tell the regions but `held` ones; what could not be told yet is returned. `late`: it is written down only now."""
    attempt.check()
    told = [d for d in pending if d.key.region not in held]
    for deployment in (found for found in told if found in late):
        world.journal.records[deployment.key.model].deployments[deployment.key] = deployment
    return [*_apply(world, told), *(d for d in pending if d.key.region in held)]


def _apply(world: Any, deployments: Iterable[Deployment]) -> list[Deployment]:
    """Apply deployments in their regions. Return those that could not be reached."""
    untold = []
    for deployment in deployments:
        try:
            world.infra.apply(deployment)
        except Unavailable:
            untold.append(deployment)
    return untold


def _announce(world: Any, model: str, attempt: Attempt) -> Generator[Any, Any, bool]:
    """Whether every router has been told of the generations that processes are about to go over to."""
    record = world.journal.records[model]
    shares = {region: table.shares for region, table in record.tables.items()}
    try:
        yield from route_updates.follow(
            world, model, shares, record.deployments.values(), attempt, keeping=frozenset(shares)
        )
    except Unavailable:
        return False
    return True


def _remove_strays(world: Any, wave: Wave, attempt: Attempt) -> Generator[Any, Any, frozenset[str]]:
    """Remove replicas that serve no users and that the transition does not know before any are added.

    Regions that have some of it and could not let go of it get nothing yet.
    """
    record, lost = world.journal.records[wave.model], world.out.lost
    strays = list_strays(world, wave)
    if not strays:
        return frozenset()
    away = frozenset(d.key.region for d in strays if not world.infra.reachable(d.key.region))
    if away or not _follows_stored_routes(world, wave.model):
        return away
    held: frozenset[str] = frozenset()
    for deployment in strays:
        try:
            yield from release(world, record, deployment, (False, lost), attempt)
        except Unavailable:
            held = frozenset(d.key.region for d in strays)
    return held


def _follows_stored_routes(world: Any, model: str) -> bool:
    """Whether every gateway follows what is stored."""
    for region, table in world.journal.records[model].tables.items():
        if region in world.out.lost:
            continue
        gateway = world.infra.regions[region]
        if not world.infra.reachable(region) or gateway.routes.get(model, (0, ()))[0] > table.revision:
            return False
    return True
