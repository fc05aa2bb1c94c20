"""The activities of a transition over the pretended store and regions.

What they decide is decided by the real pure code. Each is a generator: a text is a step that no crash divides, anything
else is a wait.
"""

from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from activities.regions import recovery
from activities.state import failover_shares as rerouting
from activities.state import observed as regions
from activities.state import replica_sets, route_shares
from activities.state import wave_state as waves
from activities.transition import admission as admitting
from activities.transition import hot_swap as swapping
from activities.transition import revert as undoing
from activities.transition import scale_down as releasing
from activities.transition import step_limit as pacing
from activities.transition import traffic_shift as shifting
from activities.transition import wave_context
from activities.transition.gate import verdict as gates
from activities.transition.route_updates import RouteUpdates, follow_routes
from ipnext.errors import Unavailable
from ipnext.model.deployment.deployment import RouteShare
from ipnext.model.gate.comparison import Pair
from ipnext.model.gate.gate import GateSpec, RegionTraffic
from ipnext.model.lifecycle.messages import WaveResult
from ipnext.model.lifecycle.status import Reason
from ipnext.model.planning.transition import TransitionState

from .activity_attempts import Attempt, Cancelled
from .infrastructure import Deployment, Key, Seen
from .journal import Moving, Table

Steps = Generator[Any, Any, WaveResult]
POLL_SECONDS = 2.0


class Wave(NamedTuple):
    """One wave of one transition, on the way there or back."""

    moving: Moving
    index: int
    back: bool
    deadline: float
    early: bool = False
    by_waves: bool = False

    @property
    def last(self) -> bool:
        """Whether nothing follows: the last wave, all of a way back in one step, the first wave undone."""
        if self.back:
            return self.index == 0 or not self.by_waves
        return self.index + 1 == len(self.moving.transition.waves)

    @property
    def model(self) -> str:
        """The model that moves."""
        return self.moving.model


def state_of(world: Any, wave: Wave, phase: waves.Phase) -> waves.ModelWaveState:
    """The state that a phase leads to; the real function, once for each question."""
    key = (wave.moving.id, wave.index, wave.back, wave.by_waves, phase)
    if key not in world.states:
        find = (waves.state_undone if wave.by_waves else waves.state_back) if wave.back else waves.state_at
        world.states[key] = find(wave.moving.transition, wave.model, wave.index, phase)
    return world.states[key]


def ensure_capacity(world: Any, wave: Wave, attempt: Attempt) -> Steps:
    """The wave's replicas, ready, at most until the deadline."""
    record = world.journal.records[wave.model]
    attempt.check()
    _begin_step(world, wave)
    state = state_of(world, wave, "scaled_up")
    if _stuck(world, wave, state):
        world.invariants.stopped_by_loss.add(wave.moving.id)
        yield "a lost region is in the way"
        return WaveResult(ok=False, reason=Reason.REGION_UNREACHABLE, message="on its way to a lost region")
    full = unfreed(world, wave, state)
    wanted_sets = [d for d in wanted_deployments(world, wave, state) if d.key.region not in full]
    attempt.check()
    running = {key: stored.replicas for key, stored in record.deployments.items()}
    lost = world.out.lost
    facts = SimpleNamespace(deployments=record.deployments, lost=lost)
    fewer = () if wave.back else cast("Any", releasing.shrinking)(facts, wanted_sets)
    drops = not wave.back or (wave.index == 0 and not lost & _counted_on(world, wave, state))
    final = state_of(world, wave, "released") if wave.back else None
    later = cast("Any", releasing.find_delayed)(wanted_sets, _stray(world, wave) if drops else [], final)
    record.deployments |= {d.key: d for d in wanted_sets if d not in fewer and d not in later}
    needed = (state_of(world, wave, "released") if wave.back else _brought_up(wave)).outside(lost | full)
    yield "capacity is written down"
    fewer = yield from _lowered(world, record, fewer, attempt)
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
            announced = yield from _announced(world, wave.model, attempt)
        fewer = yield from _lowered(world, record, fewer, attempt)
        held = (yield from _without_strays(world, wave, attempt)) if drops else frozenset()
        pending = _tell(world, pending, held.union(d.key.region for d in fewer), attempt, late=later)
        yield "capacity is told"
        states, silent = world.infra.observe(wave.model, {d.key.region for d in told})
        spared_now = _uninvolved(world, wave).intersection(silent)
        lacking = regions.missing_replicas(wave.model, needed.outside(spared_now), states)
        untold = [found for found in (*pending, *fewer) if found.key.region not in spared_now]
        failure = None if wave.back else regions.first_failure(wave.model, wave.moving.generation, _named(states))
        if failure is None and not lacking and not untold:
            if spared_now:
                world.faults.count("a way back waits for no silent region")
            _rest(wave, attempt, rests=not full)
            return WaveResult(ok=not full)
        if failure is None and world.clock.now - attempt.scheduled >= wave.deadline:
            reason = Reason.REGION_UNREACHABLE if silent else Reason.DEADLINE_EXCEEDED
            failure = regions.Failure(reason, "; ".join(lacking))
        if failure is not None:
            return WaveResult(ok=False, reason=failure.reason, message=failure.message)
        yield (POLL_SECONDS, attempt.signals)
        if attempt.cancelled():
            raise Cancelled


def _lowered(
    world: Any, record: Any, fewer: Iterable[Deployment], attempt: Attempt
) -> Generator[Any, Any, list[Deployment]]:
    """Replica sets that shrink do so before anything starts in their region; those that could not are returned."""
    left = []
    for deployment in fewer:
        try:
            yield from _released(world, record, deployment, (True, world.out.lost), attempt)
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
    return [*_applied(world, told), *(d for d in pending if d.key.region in held)]


def _uninvolved(world: Any, wave: Wave) -> frozenset[str]:
    """By the real function: regions that a way back gives neither replicas nor users of others."""
    if not wave.back or _brings_manifest(world, wave):
        return frozenset()
    return frozenset(world.infra.regions) - undoing.find_needed(wave.moving.transition, wave.model, _begun(wave))


def _unchanged(world: Any, wave: Wave) -> frozenset[str]:
    """By the real function: silent regions that are no part of a way back."""
    if not wave.back or _brings_manifest(world, wave):
        return frozenset()
    origin = _origin(wave)
    changed = undoing.find_changed(wave.moving.transition, wave.model, _begun(wave))
    stored = world.journal.records[wave.model].deployments
    strays = {key.region for key in stored if (key.part, key.region, key.hardware) not in origin.slots}
    silent = {region for region in world.infra.regions if not world.infra.reachable(region)}
    return frozenset(silent - changed - strays - world.out.lost)


def _brings_manifest(world: Any, wave: Wave) -> bool:
    former = world.journal.records[wave.model].former
    return former is not None and former.change_id == wave.moving.id


def _begun(wave: Wave) -> int:
    return len(wave.moving.transition.waves) if wave.by_waves else wave.index + 1


def _announced(world: Any, model: str, attempt: Attempt) -> Generator[Any, Any, bool]:
    """Whether every router has been told of the generations that processes are about to go over to."""
    record = world.journal.records[model]
    shares = {region: table.shares for region, table in record.tables.items()}
    try:
        yield from follow(world, model, shares, record.deployments.values(), attempt, keeping=frozenset(shares))
    except Unavailable:
        return False
    return True


def _brought_up(wave: Wave) -> waves.ModelWaveState:
    return waves.wave_target(wave.moving.transition, wave.model, wave.index, wave.moving.generation)


def _without_strays(world: Any, wave: Wave, attempt: Attempt) -> Generator[Any, Any, frozenset[str]]:
    """Remove replicas that serve no users and that the transition does not know before any are added.

    Regions that have some of it and could not let go of it get nothing yet.
    """
    record, lost = world.journal.records[wave.model], world.out.lost
    strays = _stray(world, wave)
    if not strays:
        return frozenset()
    away = frozenset(d.key.region for d in strays if not world.infra.reachable(d.key.region))
    if away or not _known_routes(world, wave.model):
        return away
    held: frozenset[str] = frozenset()
    for deployment in strays:
        try:
            yield from _released(world, record, deployment, (False, lost), attempt)
        except Unavailable:
            held = frozenset(d.key.region for d in strays)
    return held


def _stray(world: Any, wave: Wave) -> list[Deployment]:
    """As activities/transition/scale_down.py `stray`."""
    record, lost = world.journal.records[wave.model], world.out.lost
    sent = frozenset((s.to, s.generation) for table in record.tables.values() for s in table.shares if s.fraction > 0)
    return [
        found
        for key, found in record.deployments.items()
        if key.region not in lost and not cast("Any", releasing.answers)(found, sent)
        if (key.part, key.region, key.hardware) not in _peak(world, wave)
    ]


def _known_routes(world: Any, model: str) -> bool:
    """Whether every gateway follows what is stored."""
    for region, table in world.journal.records[model].tables.items():
        if region in world.out.lost:
            continue
        gateway = world.infra.regions[region]
        if not world.infra.reachable(region) or gateway.routes.get(model, (0, ()))[0] > table.revision:
            return False
    return True


def unfreed(world: Any, wave: Wave, state: waves.ModelWaveState) -> frozenset[str]:
    """By the real function: regions that a way back wave by wave could not undo so far."""
    if not (wave.back and wave.by_waves):
        return frozenset()
    record = world.journal.records[wave.model]
    stored = record.deployments.values(), record.tables.values()
    meanwhile = swapping.while_swapped(wave.moving.transition, wave.model, wave.index)
    found: frozenset[str] = cast("Any", undoing.find_unfreed)(
        state, *stored, _peak(world, wave).keys(), meanwhile=meanwhile
    )
    return found - world.out.lost


def _stuck(world: Any, wave: Wave, state: waves.ModelWaveState) -> bool:
    """As activities/transition/wave_context.py.

    On its way to a lost region, and the wave counts on what has to be spared, or nothing is left.
    """
    lost = world.out.lost
    if wave.back or not lost & _counted_on(world, wave, state):
        return False
    record = world.journal.records[wave.model]
    if record.generations[wave.moving.generation].serving_at is None and _end(world, wave).regions <= lost:
        return True
    stored = record.deployments.values()
    return bool(cast("Any", undoing.find_unfreed)(state, stored, (), _peak(world, wave).keys()) - lost)


def shift_traffic(world: Any, wave: Wave, attempt: Attempt) -> Steps:
    """The traffic by the wave's shares, in every gateway."""
    record, state = world.journal.records[wave.model], state_of(world, wave, "routed")
    deployments = _led_to(world, wave, tuple(record.deployments.values()))
    if wave.back and world.out.lost:
        deployments += _what_answers(world, wave, _counted_on(world, wave, state), deployments)
    unready = _unready(world, wave)
    shares = _still_answered(world, wave, state, wanted_shares(world, wave.model, state, deployments, unready))
    regions_seen = {*shares, *(region for _, region, _ in state.slots)}
    waits = waiting(world, wave, shares, regions_seen) if wave.back else frozenset()
    if (hurried := _hurried(world, wave, shares)) is not None:
        return hurried
    if not (wave.back or world.journal.by_id[wave.moving.id].kind in admitting.AT_ONCE):
        _check_reached(world, record, shares)
    keeping = not_gone_back(world, wave, state)
    _rest(wave, attempt, rests=False)
    apart = _unchanged(world, wave)
    yield from follow(world, wave.model, shares, deployments, attempt, waits, keeping=keeping, apart=apart)
    yield "all gateways follow"
    _rest(wave, attempt, rests=True)
    hold = 0.0 if wave.back else wave.moving.transition.waves[wave.index].hold_seconds
    return WaveResult(ok=True, hold_seconds=hold)


def _what_answers(
    world: Any, wave: Wave, counted_on: frozenset[str], found: tuple[Deployment, ...]
) -> tuple[Deployment, ...]:
    """Also what answers in the regions that are left, by the real function."""
    record, more = world.journal.records[wave.model], spared(world, wave, counted_on, found)[len(found) :]
    states, _ = world.infra.observe(wave.model, {d.key.region for d in more})
    facts = SimpleNamespace(model=wave.model, generations=record.generations)
    return tuple(d for d in more if cast("Any", undoing.answers_at_all)(facts, d, states))


def _unready(world: Any, wave: Wave) -> frozenset[tuple[str, int]]:
    """By the real functions: replicas of before that nothing has waited for, and that are not ready."""
    if wave.back:
        return frozenset()
    record, origin = world.journal.records[wave.model], _origin(wave)
    tables = cast("Any", record.tables.values())
    unproven = wave_context.find_unproven(origin, tables, wave.moving.generation)
    states, _ = world.infra.observe(wave.model, {region for region, _ in unproven} - world.out.lost)
    facts: Any = SimpleNamespace(model=wave.model, generations=record.generations)
    return frozenset(
        (region, number)
        for region, number in unproven
        if region not in states or not recovery.has_ready_replicas(facts, cast("Any", states[region]), number)
    )


def _still_answered(world: Any, wave: Wave, state: waves.ModelWaveState, shares: Mapping[str, Any]) -> dict[str, Any]:
    """By the real function: no step takes away what a region that came back answers its users with."""
    record = world.journal.records[wave.model]
    facts = SimpleNamespace(model=wave.model, tables=record.tables, lost=world.out.lost, generations=record.generations)
    found: dict[str, Any] = cast("Any", undoing.still_answered)(facts, wave.moving.transition, state, shares)
    return found


def _hurried(world: Any, wave: Wave, shares: Mapping[str, tuple[RouteShare, ...]]) -> WaveResult | None:
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


def check_gate(world: Any, wave: Wave, attempt: Attempt) -> Steps:
    """Whether the target generation answers well enough."""
    state = state_of(world, wave, "routed")
    states, silent = world.infra.observe(wave.model, {region for _, region, _ in state.slots} - world.out.lost)
    if silent and wave.early:
        return WaveResult(ok=True)
    if silent:
        msg = f"region {silent[0]!r} can't be reached"
        raise Unavailable(msg)
    yield "the answers are counted"
    generation = wave.moving.generation
    errors = 40 if world.faults.answers_badly(wave.model, generation) else 0
    rate = world.journal.records[wave.model].in_force.spec.rollout.max_error_rate
    sent = [{share.generation for share in shares if share.fraction > 0} for shares in state.shares.values()]
    compared = any(generation in found and len(found) > 1 for found in sent)
    new = RegionTraffic(region="all", gateway="all", requests=200, errors=errors, failed=errors)
    old = RegionTraffic(region="all", gateway="all", requests=200)
    shares = {"all": tuple(RouteShare(to="all", generation=g, fraction=0.5) for g in (generation, 0))}
    told = (shares if compared else {},)
    asked = gates.GateInput(GateSpec(), rate, wave.early, generation=generation, former=0, shares=told)
    failure = regions.first_failure(wave.model, generation, _named(states))
    if failure is not None:
        return WaveResult(ok=False, reason=failure.reason, message=failure.message)
    verdict = gates.judge(asked, [Pair(new, old)])
    world.invariants.gate(wave, errors=errors if compared else 0, rate=rate, passed=verdict.ok)
    reason = Reason.SUCCEEDED if verdict.ok else Reason.GATE_FAILED
    return WaveResult(ok=verdict.ok, reason=reason, message=verdict.message)


def release_capacity(world: Any, wave: Wave, attempt: Attempt) -> Steps:
    """What the wave no longer needs goes: out of the routers first, then the replicas."""
    record, state = world.journal.records[wave.model], state_of(world, wave, "released")
    last = wave.last
    target, counted_on = wanted_deployments(world, wave, state), _counted_on(world, wave, state)
    wanted_sets = whole = spared(world, wave, counted_on, target)
    if wave.back and wave.by_waves:
        wanted_sets = cast("Any", undoing.none_more)(wanted_sets, record.deployments)
    keys = {d.key for d in wanted_sets}
    left_over = [d for key, d in record.deployments.items() if key not in keys]
    gone = [d for d in left_over if last or (d.key.part, d.key.region, d.key.hardware) in _peak(world, wave)]
    unready = _unready(world, wave)
    shares = _still_answered(world, wave, state, wanted_shares(world, wave.model, state, wanted_sets, unready))
    if last:
        shares = {region: found for region, found in shares.items() if found or region in record.tables}
    kept = wanted_sets if last else (*wanted_sets, *(d for d in left_over if d not in gone))
    if wave.back:
        able = (*target, *_what_answers(world, wave, counted_on, target))
        kept = cast("Any", undoing.heard)(kept, whole, able)
    unreachable: Unavailable | None = None
    lost, stored = world.out.lost, dict(record.deployments)
    _rest(wave, attempt, rests=False)
    try:
        waits = waiting(world, wave, shares, {d.key.region for d in wanted_sets})
        apart = _unchanged(world, wave)
        if apart:
            world.faults.count("a silent region is no part of a way back")
        wanted_sets = tuple(d for d in wanted_sets if d.key.region not in apart)
        gone = [d for d in gone if d.key.region not in apart]
        keeping = not_gone_back(world, wave, state)
        yield from follow(world, wave.model, shares, kept, attempt, waits, keeping=keeping, apart=apart)
    except Unavailable as error:
        unreachable = error
    needed = still_sent(record, shares)
    if wave.back and wave.by_waves:
        needed |= cast("Any", undoing.find_unrestored)(whole, stored, shares)
    for deployment in (*wanted_sets, *gone):
        then = deployment.generations if deployment.key in keys else ()
        if cast("Any", releasing.is_needed)(stored.get(deployment.key), needed, then):
            continue
        try:
            yield from _released(world, record, deployment, (deployment.key in keys, lost), attempt)
        except Unavailable as error:
            unreachable = error
    if unreachable is not None:
        raise unreachable
    attempt.check()
    if world.out.lost != lost:
        msg = "a region that was lost or came back has to be told where this led to"
        raise Unavailable(msg)
    _write_progress(wave)
    yield "progress is written down"
    return WaveResult(ok=True)


def _released(
    world: Any, record: Any, deployment: Deployment, end: tuple[bool, frozenset[str]], attempt: Attempt
) -> Generator[Any, Any, None]:
    """The region first, then the store. Unavailable where a region that was lost has come back in between."""
    keep, lost = end
    attempt.check()
    if world.out.lost != lost:
        msg = "another change came first"
        raise Unavailable(msg)
    if deployment.key.region not in lost:
        if keep:
            world.infra.apply(deployment)
        else:
            world.infra.delete(deployment.key)
    yield "capacity is freed"
    attempt.check()
    if deployment.key.region in lost and deployment.key.region not in world.out.lost:
        msg = f"region {deployment.key.region!r} is back"
        raise Unavailable(msg)
    if keep:
        record.deployments[deployment.key] = deployment
    else:
        record.deployments.pop(deployment.key, None)


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
    """Every gateway that answers learns what its region holds, then sends by `shares`. Unavailable at the end."""
    record, held, lost = world.journal.records[model], tuple(deployments), world.out.lost
    reached = [region for region in sorted(shares.keys() - lost) if world.infra.reachable(region)]
    if any(share.to in lost and share.fraction > 0 for region in reached for share in _now(record, region)):
        world.invariants.strained.add(model)  # these users were answered by nobody, and come on top now
    served = {region: served_generations(record, region, held) for region in shares}
    put = _Putting(world, model, lost, attempt)
    regaining = [region for region in reached if region not in waits and put.regains(region, shares[region])]
    for region in sorted(reached, key=regaining.__contains__):
        now = (
            shares[region] if region in regaining and put.are_known(region, shares[region]) else put.now(region).shares
        )
        yield from put.table(region, now, served[region] | put.now(region).served)
    moves = {region: shares[region] for region in reached if region not in waits and put.knows(shares[region])}
    staying = {region for region in reached if region not in moves and shares[region] != put.now(region).shares}
    following = _one_by_one(record, moves, held, lost)
    stays = any(shares[region] != put.now(region).shares for region in shares.keys() - moves.keys() - lost)
    if following.beyond > 0 or stays:
        world.invariants.crossing.add(model)
    for region, found in following.tables:
        yield from put.table(region, found, served[region] | put.now(region).served)
    needed = still_sent(record, shares) | {(share.to, share.generation) for found in shares.values() for share in found}
    for region in (name for name in reached if name not in keeping):
        now = put.now(region)
        kept = {number for number in now.served if (region, number) in needed}
        yield from put.table(region, now.shares, served[region] | kept, forgets=True)
    for region in sorted((shares.keys() & lost) - waits):
        known = [
            (s.to, s.generation) for s in shares[region] if s.to in reached or s.generation in put.now(s.to).served
        ]
        kept = {number for number in put.now(region).served if (region, number) in needed}
        put.unheard(region, waves.keep_held_shares(shares[region], known), served[region] | kept)
    same = {region for region in apart & record.tables.keys() if shares.get(region) == _now(record, region)}
    refusing = {item.region for item in record.in_force.spec.demand if not shares.get(item.region)}
    silent = sorted(shares.keys() - set(reached) - lost - same - (refusing - record.tables.keys()))
    if silent:
        msg = f"region {silent[0]!r} can't be reached"
        raise Unavailable(msg)
    if waits := (waits | staying) - lost:
        msg = f"users of {min(waits)!r} stay where they are"
        raise Unavailable(msg)
    if not keeping:
        world.invariants.settled(model)


def _now(record: Any, region: str) -> tuple[RouteShare, ...]:
    """What a region's stored table sends."""
    table = record.tables.get(region)
    return table.shares if table is not None else ()


def not_gone_back(world: Any, wave: Wave, state: waves.ModelWaveState) -> frozenset[str]:
    """By the real function: on a way back from a swap, regions whose routers forget nothing."""
    if not wave.back or wave.moving.transition.refresh != "swap":
        return frozenset()
    states, _ = world.infra.observe(wave.model, {region for _, region, _ in state.slots} - world.out.lost)
    found: frozenset[str] = cast("Any", swapping.not_gone_back)(wave.model, state, states)
    return found


def _one_by_one(
    record: Any, then: Mapping[str, tuple[RouteShare, ...]], held: Iterable[Deployment], lost: frozenset[str]
) -> RouteUpdates:
    """By the real function: shares that gateways are told, in their order."""
    now = {region: table.shares for region, table in record.tables.items() if region not in lost}
    demand = {item.region: item.qps for item in record.transitions[-1].transition.demand}
    parts = {number: generation.parts for number, generation in record.generations.items()}
    return follow_routes(now, then, cast("Any", held), demand=demand, parts=parts)


def waiting(
    world: Any, wave: Wave, shares: Mapping[str, tuple[RouteShare, ...]], seen: Iterable[str]
) -> frozenset[str]:
    """By the real function: users' regions that stay as they are."""
    record = world.journal.records[wave.model]
    states, _ = world.infra.observe(wave.model, set(seen) - world.out.lost)
    facts = SimpleNamespace(model=wave.model, tables=record.tables, generations=record.generations)
    found: frozenset[str] = cast("Any", undoing.waiting)(facts, shares, states)
    return found


def still_sent(record: Any, shares: dict[str, tuple[RouteShare, ...]]) -> frozenset[tuple[str, int]]:
    """As activities/transition/traffic_shift.py has it."""
    return frozenset(
        (share.to, share.generation)
        for region, table in record.tables.items()
        if table.shares != shares.get(region, table.shares)
        for share in table.shares
        if share.fraction > 0
    )


class _Putting:
    """Tables of one model, put in force by one activity: another one that comes between makes it begin again."""

    def __init__(self, world: Any, model: str, lost: frozenset[str], attempt: Attempt) -> None:
        self.world, self.model, self.lost, self.attempt = world, model, lost, attempt
        self.record = world.journal.records[model]

    def now(self, region: str) -> Table:
        """The table as stored."""
        return self.record.tables.get(region) or Table(region, 0, (), frozenset())

    def knows(self, shares: tuple[RouteShare, ...]) -> bool:
        """Whether every router that users are sent to knows their generation."""
        return all(share.generation in self.now(share.to).served for share in shares if share.fraction > 0)

    def regains(self, region: str, shares: tuple[RouteShare, ...]) -> bool:
        """Whether a gateway is ahead of a stored table that answers fewer of its users than `shares` do."""
        stored, gateway = self.now(region), self.world.infra.regions[region]
        ahead = gateway.routes.get(self.model, (0, ()))[0] > stored.revision
        return ahead and shifting._answered(stored.shares, self.lost) < shifting._answered(shares, self.lost)

    def are_known(self, region: str, shares: tuple[RouteShare, ...]) -> bool:
        """Whether routers know the generations that a region is sent to; its own learns of them with the table."""
        return all(share.to == region or share.generation in self.now(share.to).served for share in shares)

    def table(
        self, region: str, shares: tuple[RouteShare, ...], served: frozenset[int], *, forgets: bool = False
    ) -> Generator[Any, Any, None]:
        """Infrastructure first, then the store; one by which a router forgets generations is stored first."""
        world, model = self.world, self.model
        self.attempt.check()
        self._check_unchanged()
        gateway, stored = world.infra.region(region), self.now(region)
        revision, before = gateway.routes.get(model, (0, ()))
        if revision == stored.revision and (stored.shares, stored.served) == (shares, served):
            return
        table = Table(region, max(revision, stored.revision) + 1, shares, served)
        if forgets:
            yield from self._saved(table)
            self._check_unchanged()
            gateway = world.infra.region(region)
        world.invariants.routed(model, region, before, shares)
        if gateway.routes.get(model, (0, ()))[0] < table.revision:
            gateway.routes[model], gateway.served[model] = (table.revision, shares), served
        yield f"traffic of {region} is moved"
        self.attempt.check()
        if not forgets:
            yield from self._saved(table)

    def _check_unchanged(self) -> None:
        if self.world.lost != self.lost:
            msg = "another change came first"
            raise Unavailable(msg)

    def _saved(self, table: Table) -> Generator[Any, Any, None]:
        if self.now(table.region).revision >= table.revision:
            msg = "a later table was written"
            raise Unavailable(msg)
        self.record.tables[table.region] = table
        yield f"traffic of {table.region} is written down"
        self.attempt.check()

    def unheard(self, region: str, shares: tuple[RouteShare, ...], served: frozenset[int]) -> None:
        """What a lost region gets once it is back."""
        stored = self.now(region)
        if (stored.shares, stored.served) != (shares, served):
            self.record.tables[region] = Table(region, stored.revision + 1, shares, served)


def wanted_deployments(world: Any, wave: Wave, state: waves.ModelWaveState) -> tuple[Deployment, ...]:
    """One deployment for each slot, as activities/state/replica_sets.py makes them.

    Former generations stay warm where they are loaded. Units are those of the manifest in force, or those that the
    generation served with, by the real function; a revert restores those of before.
    """
    model = wave.model
    record, spec = world.journal.records[model], world.journal.records[model].in_force.spec
    facts = SimpleNamespace(manifest=record.in_force, generations=record.generations, target=wave.moving.generation)
    former = replica_sets.former_generations(record, state.generations)[: spec.rollout.keep_warm]
    slots, processes = state.slots, state.processes
    hosted = {part for part, _, _ in slots}
    warm = {number for number in former if hosted.issuperset(record.generations[number].parts)}
    found = []
    for slot in slots:
        key = Key(model, *slot)
        stored = record.deployments.get(key)
        kept = set() if state.apart or stored is None else set(stored.generations) & warm
        restored = wave.moving.before.get(key, stored) if wave.back else None
        if restored is None:
            _, option = replica_sets._spec_of(cast("Any", facts), state, slot)
            former: Any = replica_sets.find_running(cast("Any", record.deployments), cast("Any", key))
            units, qps = (option.units, option.throughput) if option else (former.units, former.qps)
        else:
            units, qps = restored.units, restored.qps
        held = state.generations_at(slot)
        own = {g: state.counts[slot, g] for g in sorted(held)} if state.apart else {}
        swap = state.apart and record.refresh == "swap"
        found.append(Deployment(key, processes[slot], tuple(sorted(held | kept)), units, qps, own, swap))
    return tuple(found)


def spared(world: Any, wave: Wave, counted_on: frozenset[str], found: tuple[Deployment, ...]) -> tuple[Deployment, ...]:
    """By the real function: a run that counts on a lost region lets go of nothing in those that are left."""
    deployments, lost = world.journal.records[wave.model].deployments, world.out.lost
    facts = cast("Any", SimpleNamespace(lost=lost, deployments=deployments))
    return cast("tuple[Deployment, ...]", replica_sets.choose_kept_sets(facts, counted_on, cast("Any", found)))


def _counted_on(world: Any, wave: Wave, state: waves.ModelWaveState) -> frozenset[str]:
    """As activities/transition/activities.py: where a run goes, and by way of what, but for what it only leaves."""
    return _end(world, wave).regions | (state.regions - _origin(wave).regions)


def _origin(wave: Wave) -> waves.ModelWaveState:
    """The state that a transition began with."""
    return waves.state_of(wave.moving.transition.origin, wave.model, apart=wave.moving.transition.apart)


def _end(world: Any, wave: Wave) -> waves.ModelWaveState:
    """The state that a run is on its way to."""
    index = 0 if wave.back else len(wave.moving.transition.waves) - 1
    return state_of(world, wave._replace(index=index, by_waves=wave.back), "released")


def wanted_shares(
    world: Any,
    model: str,
    state: waves.ModelWaveState,
    deployments: Iterable[Deployment],
    unready: frozenset[tuple[str, int]],
) -> dict[str, tuple[RouteShare, ...]]:
    """The shares of every region, as activities/state/route_shares.py has them."""
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
    able = [found for found in survivors(world, model, held) if (found.region, found.generation) not in unready]
    return around(world, model, shares, able)


def around(
    world: Any, model: str, shares: dict[str, tuple[RouteShare, ...]], able: Sequence[rerouting.Survivor]
) -> dict[str, tuple[RouteShare, ...]]:
    """By the real function."""
    record = world.journal.records[model]
    demand = {item.region: item.qps for item in record.in_force.spec.demand}
    return rerouting.without_regions(shares, world.out.lost, able, demand=demand, serving=record.serving)


def survivors(
    world: Any, model: str, held: Sequence[Deployment], ready: Mapping[tuple[Key, int], int] | None = None
) -> tuple[rerouting.Survivor, ...]:
    """As activities/state/route_shares.py: by the replicas that are wanted, or by those that are `ready`."""
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


def _led_to(world: Any, wave: Wave, deployments: tuple[Deployment, ...]) -> tuple[Deployment, ...]:
    """As activities/transition/wave_context.py `list_routable`: the others may never have started."""
    if not wave.back:
        strays = {found.key for found in _stray(world, wave)}
        return tuple(d for d in deployments if d.key not in strays)
    slots = set(state_of(world, wave, "released").slots)
    return tuple(d for d in deployments if (d.key.part, d.key.region, d.key.hardware) in slots)


def _applied(world: Any, deployments: Iterable[Deployment]) -> list[Deployment]:
    """Tell the regions; what could not be told is returned."""
    untold = []
    for deployment in deployments:
        try:
            world.infra.apply(deployment)
        except Unavailable:
            untold.append(deployment)
    return untold


def _named(states: dict[str, Seen]) -> list[Seen]:
    return [states[name] for name in sorted(states)]


def _peak(world: Any, wave: Wave) -> Any:
    key = (wave.moving.id, "peak")
    if key not in world.states:
        world.states[key] = waves.peak(wave.moving.transition, wave.model)
    return world.states[key]


def _begin_step(world: Any, wave: Wave) -> None:
    wave.moving.rests, wave.moving.state = False, TransitionState.RUNNING
    _begin_to_undo(wave)
    if not wave.back:
        world.invariants.one_mover(wave.model)


def _begin_to_undo(wave: Wave) -> None:
    if wave.back:
        wave.moving.waves_done = min(wave.moving.waves_done, wave.index)


def _write_progress(wave: Wave) -> None:
    moving = wave.moving
    if wave.back:
        if wave.last:
            moving.state = TransitionState.ROLLED_BACK
        else:
            moving.waves_done = min(moving.waves_done, max(wave.index - 1, 0))
        return
    moving.waves_done = max(wave.index + 1, moving.waves_done)
    moving.state = TransitionState.DONE if wave.last else TransitionState.RUNNING
    moving.rests = not wave.last


def _rest(wave: Wave, attempt: Attempt, *, rests: bool) -> None:
    """Whether regions hold now what is stored."""
    attempt.check()
    wave.moving.rests = rests and not wave.back
