"""Each rule broken on purpose is caught by an invariant of the simulation: it can see what it looks for."""

import math
from random import Random

import numpy as np
import pytest

import planner.transition.paths
import planner.transition.planner
from activities.planning import problem as problems
from activities.state import observed as regions
from activities.state import serving_basis
from activities.state import wave_state as waves
from activities.transition import admission as admitting
from activities.transition import hot_swap as swapping
from activities.transition import revert as undoing
from activities.transition import scale_down as releasing
from activities.transition import step_limit as pacing
from activities.transition import wave_context
from activities.transition.gate import verdict as gates
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.planning.transition import Transition, TransitionState
from ipnext.store.operations import change_end
from ipnext.store.registry.models import Models
from tests.workflows.simulation import region_loss, world
from tests.workflows.simulation.infrastructure import Deployment, Infrastructure, Region
from tests.workflows.simulation.invariants.capacity import Capacity
from tests.workflows.simulation.invariants.report import Violated
from tests.workflows.simulation.journal import Journal, Moving
from tests.workflows.simulation.runs import (
    activity_attempts,
    entity,
    lifecycle_run,
    reconciliation,
    stage_activities,
    takeover,
)
from tests.workflows.simulation.specs import draw_scenario
from tests.workflows.simulation.transitions import run as transition_run
from tests.workflows.simulation.transitions import walk as transition_walk
from tests.workflows.simulation.transitions.steps import capacity_step, route_updates, wave_deployments, wave_progress
from tests.workflows.simulation.transitions.steps.gateway_tables import GatewayTables
from tests.workflows.simulation.world import history
from workflows.entity import change_queue as ordering

SEEDS = 1000
"""Within so many histories each is caught, from the one on that `SEEN_BY` names."""


def traffic_before_ready(patch):
    patch.setattr(regions, "missing_replicas", lambda *_: ())


def release_before_route(patch):
    real = waves.state_at

    def early(found, model, index, phase):
        if phase != "scaled_up":
            return real(found, model, index, phase)
        up, down = real(found, model, index, phase), real(found, model, index, "released")
        return waves.ModelWaveState(down.counts, up.shares, up.apart)

    patch.setattr(waves, "state_at", early)


def rounding_down(patch):
    def floor(x, old, new):
        grown = old + np.floor(x * (new - old))
        return np.where(new >= old, grown, old - np.ceil(x * (old - new))).astype(np.int64)

    patch.setattr(planner.transition.paths, "interpolate_counts", floor)
    patch.setattr(planner.transition.planner, "check_transition", lambda *_: ())


def way_back_releases_first(patch):
    real = waves.state_back

    def early(found, model, index, phase):
        state = real(found, model, index, phase)
        return waves.ModelWaveState(real(found, model, index, "released").counts, state.shares, state.apart)

    patch.setattr(waves, "state_back", early)


def way_back_without_capacity(patch):
    real = waves.state_back

    def poor(found, model, index, phase):
        state = real(found, model, index, phase)
        there = waves.state_at(found, model, index, "scaled_up")
        return state if phase == "released" else waves.ModelWaveState(there.counts, state.shares, state.apart)

    patch.setattr(waves, "state_back", poor)
    patch.setattr(GatewayTables, "knows", lambda *_: True)  # else users stay where they are answered


def dead_region_counts(patch):
    real = regions.missing_replicas

    def generous(model, state, seen):
        counts = {held: count for held, count in state.counts.items() if held[0][1] in seen}
        return real(model, waves.ModelWaveState(counts, state.shares, state.apart), seen)

    apply = capacity_step._apply
    patch.setattr(regions, "missing_replicas", generous)
    patch.setattr(capacity_step, "_apply", lambda world, pending: [apply(world, pending), []][1])


def newest_is_superseded(patch):
    def reversed_order(queue, new):
        same = [waiting for waiting in queue if waiting.kind is new.kind]
        if same:
            return queue, (ordering.SupersededEntry(new, same[0]),)
        return tuple(sorted((*queue, new), key=lambda c: c.sequence)), ()

    patch.setattr(ordering, "enqueue", reversed_order)


def publishes_pile_up(patch):
    patch.setattr(ordering, "overtakes", lambda *_: False)


def change_is_lost(patch):
    real = ordering.enqueue
    patch.setattr(ordering, "enqueue", lambda queue, new: (queue, ()) if queue else real(queue, new))


def newest_first(patch):
    """A waiting change runs before an older one that is still there."""
    patch.setattr(ordering, "overtakes", lambda *_: False)
    patch.setattr(ordering, "next_of", lambda queue, **_: queue[-1] if queue else None)


def other_models_ignored(patch):
    patch.setattr(problems, "units_in_use", lambda *_, **__: {})


def canary_skipped(patch):
    real = admitting.step_policy

    def bold(*given):
        return real(*given).model_copy(update={"canary": 1.0, "max_step": 1.0})

    patch.setattr(admitting, "step_policy", bold)


def applying_twice_adds(patch):
    real = Infrastructure.apply

    def adding(self, wanted):
        known = self.region(wanted.key.region).wanted.get(wanted.key)
        if known is None or known.own or known.replicas < wanted.replicas or known.generations != wanted.generations:
            return real(self, wanted)
        more = Deployment(wanted.key, known.replicas + 1, wanted.generations, wanted.units, wanted.qps, wanted.own)
        return real(self, more)

    patch.setattr(Infrastructure, "apply", adding)


def gate_ignored(patch):
    patch.setattr(gates, "judge", lambda *_: gates.GateVerdict(ok=True, message=""))


def wait_without_deadline(patch):
    real = transition_run.Wave
    patch.setattr(
        transition_run, "Wave", lambda found, index, back, _, *rest: real(found, index, back, math.inf, *rest)
    )


def nothing_is_validated(patch):
    def passed(self, attempt):
        yield "passed"
        return ""

    patch.setattr(stage_activities.Stages, "validate_generation", passed)


def replicas_are_forgotten(patch):
    """What is released is struck off the store, and goes on running."""
    patch.setattr(Infrastructure, "delete", lambda self, key: self.region(key.region))


def waves_undone_in_the_wrong_order(patch):
    """The way back wave by wave begins with the first one."""
    patch.setattr(
        transition_walk,
        "list_undone_waves",
        lambda way, index: range(index + 1) if way.back == "by_waves" else (index,),
    )
    patch.setattr(GatewayTables, "knows", lambda *_: True)  # else users stay where they are answered


def stop_is_not_heard(patch):
    """What runs is not cut short, and between two steps nobody asks whether it was to stop."""
    patch.setattr(lifecycle_run.Run, "_cancel", lambda _: None)
    patch.setattr(transition_walk, "_wait_for_resume", _goes_on)
    patch.setattr(transition_walk, "_until", _waits)


def _goes_on(way, index):
    return None
    yield


def _waits(way, wait):
    return (yield wait)


def late_workers_write(patch):
    """A worker that stood still goes on where it stood."""
    real = world.history
    patch.setattr(activity_attempts.Attempt, "check", lambda _: None)
    patch.setitem(globals(), "history", lambda seed, **more: real(seed, stalls=True, **more))


def freed_though_a_gateway_sends_there(patch):
    patch.setattr(route_updates, "find_still_sent", lambda *_: frozenset())


def publish_gives_way_to_anything(patch):
    patch.setattr(ordering, "overtakes", lambda later, _: later.kind is not ChangeKind.MOVE)


def back_before_its_gateway_follows(patch):
    """A region that was lost counts again while its gateway goes by what it held."""
    real = region_loss.return_region

    def returned(world, region):
        found = world.infra.regions[region]
        held = dict(found.routes), dict(found.served)
        yield from real(world, region)
        found.routes, found.served = held

    patch.setattr(region_loss, "return_region", returned)


def gateways_follow_by_their_names(patch):
    real = route_updates.follow_routes

    def by_name(now, then, *given, **more):
        tables = tuple((region, then[region]) for region in sorted(then) if then[region] != now.get(region, ()))
        return real(now, then, *given, **more)._replace(tables=tables)

    patch.setattr(route_updates, "follow_routes", by_name)


def routers_do_not_hear_of_swaps(patch):
    def told(*_):
        return True
        yield

    patch.setattr(capacity_step, "_announce", told)


def routers_forget_before_processes_go_back(patch):
    real = route_updates.follow
    patch.setattr(route_updates, "follow", lambda *given, **_: real(*given))


def processes_go_over_one_by_one(patch):
    patch.setattr(Region, "together", lambda *_: None)


def fence_off(patch):
    """A run that has gone, or has lost its transition, goes on writing."""
    patch.setattr(Journal, "check_fence", lambda *_: None)
    patch.setattr(activity_attempts.Attempt, "check", lambda _: None)


def takeover_off(patch):
    """What a run moved that has gone stays as it is."""
    patch.setattr(takeover, "settle", _nothing_taken)


def _nothing_taken(_):
    return takeover.Taken()
    yield


def rebuild_off(patch):
    """An entity that begins knows of nothing."""

    def forgetful(entity):
        entity.rebuilt = True
        return
        yield

    patch.setattr(entity.Entity, "_rebuild", forgetful)


def resubmission_off(patch):
    patch.setattr(reconciliation, "resubmit", _nothing_done)


def repair_off(patch):
    patch.setattr(reconciliation, "record_repair", lambda *_: None)


def reconciler_off(patch):
    """Repairs are recorded; no region is told again."""
    patch.setattr(reconciliation, "reconcile", _nothing_done)


def withdrawal_off(patch):
    """What a first publish left that was not reverted everywhere stays."""
    patch.setattr(reconciliation, "withdraw", _nothing_done)


def _nothing_done(*_):
    return
    yield


def manifest_stays_after_a_failure(patch):
    """A change that came to nothing leaves its manifest in force."""
    real = Models.end_force

    def kept(store, name, *, change_id, done):
        real(store, name, change_id=change_id, done=done is not None)

    patch.setattr(Models, "end_force", kept)


def manifest_counts_once_accepted(patch):
    """A freeze, or a lack of supply, may still hold its change up."""
    real = Models.accept_revision

    def early(store, name, *more):
        real(store, name, *more)
        store._judge(name, accepted=store.model(name).validated)

    patch.setattr(Models, "accept_revision", early)


def manifest_never_counts(patch):
    patch.setattr(Models, "put_in_force", lambda *_: None)


def repair_goes_by_what_waits(patch):
    patch.setattr(serving_basis, "go_by_what_serves", lambda *_: None)


def parts_are_not_kept(patch):
    """A generation keeps none of the parts that it served with."""
    patch.setattr(change_end, "_keep_parts", lambda *_: None)


def parts_end_with_their_manifest(patch):
    """What a manifest no longer names ends, also if the generation that serves has it."""
    real = wave_deployments.wanted_deployments

    def newest(found, wave, state):
        named = {part.name for part in found.journal.records[wave.model].in_force.spec.parts}
        return tuple(wanted for wanted in real(found, wave, state) if wave.back or wanted.key.part in named)

    patch.setattr(wave_deployments, "wanted_deployments", newest)


def rollbacks_are_not_placed(patch):
    """A rollback goes by the placement in force, whatever parts that has."""
    patch.setattr(stage_activities, "needs_placement", lambda *_: False)


MUTANTS = {
    traffic_before_ready: ("I1 capacity", "I2 ready", "I5 answer"),
    release_before_route: ("I1 capacity", "I2 ready", "I5 answer"),
    rounding_down: ("I1 capacity", "I2 ready", "I5 answer"),
    way_back_releases_first: ("I1 way back", "I2 undemanded"),
    way_back_without_capacity: ("I1 way back", "I3 way back"),
    dead_region_counts: ("I1 capacity", "I2 ready", "I5 answer"),
    newest_is_superseded: ("I4 order", "I4 lost"),
    publishes_pile_up: ("I6 queue",),
    change_is_lost: ("I4 lost",),
    newest_first: ("I4 order", "I6 queue"),
    other_models_ignored: ("I3 supply",),
    canary_skipped: ("pace",),
    applying_twice_adds: ("I3 supply", "I3 way back"),
    gate_ignored: ("gate",),
    wait_without_deadline: ("I6 deadline", "I6 end"),
    nothing_is_validated: ("I2 validated",),
    replicas_are_forgotten: ("I6 orphan",),
    waves_undone_in_the_wrong_order: ("I1 way back", "I2 ready", "I3 way back"),
    stop_is_not_heard: ("stop",),
    late_workers_write: ("I1 way back", "I2 ready", "I1 capacity", "one mover"),
    freed_though_a_gateway_sends_there: ("I1 way back", "I2 ready", "I5 answer"),
    publish_gives_way_to_anything: ("I4 lost",),
    back_before_its_gateway_follows: ("I1 capacity", "I2 ready", "I5 answer"),
    gateways_follow_by_their_names: ("I1 capacity",),
    processes_go_over_one_by_one: ("I2 ready", "I5 answer"),
    routers_do_not_hear_of_swaps: ("I2 ready", "I5 answer"),
    routers_forget_before_processes_go_back: ("I1 way back", "I2 undemanded"),
    fence_off: ("I1 way back", "I2 ready"),
    takeover_off: ("I2 ready", "I5 answer", "rest generation"),
    rebuild_off: ("I4 lost",),
    resubmission_off: ("I4 lost",),
    repair_off: ("rest generation",),
    reconciler_off: ("rest region",),
    withdrawal_off: ("rest generation", "rest region"),
    manifest_stays_after_a_failure: ("in force",),
    manifest_counts_once_accepted: ("in force",),
    manifest_never_counts: ("in force",),
    repair_goes_by_what_waits: ("in force",),
    parts_are_not_kept: ("parts",),
    parts_end_with_their_manifest: ("I1 capacity", "I2 ready", "I5 answer"),
    rollbacks_are_not_placed: ("parts",),
}


OF_ENDS = {fence_off, takeover_off, rebuild_off, resubmission_off, repair_off, reconciler_off, withdrawal_off}
"""Those of histories in which runs are ended from outside; the others are looked for where nothing is repaired."""

OF_MANIFESTS = {
    manifest_stays_after_a_failure,
    manifest_counts_once_accepted,
    manifest_never_counts,
    repair_goes_by_what_waits,
}
"""Those of histories in which manifests are refused, not placeable, or not in force yet. They have ends, too."""

OF_PARTS = {
    parts_are_not_kept,
    parts_end_with_their_manifest,
    rollbacks_are_not_placed,
}
"""Those of histories in which manifests add and remove parts, too."""

SEEN_BY = {
    way_back_without_capacity: 790,
    waves_undone_in_the_wrong_order: 790,
    late_workers_write: 230,
    freed_though_a_gateway_sends_there: 700,
    publish_gives_way_to_anything: 118,
    routers_forget_before_processes_go_back: 796,
    fence_off: 726,
    takeover_off: 200,
    reconciler_off: 122,
    repair_goes_by_what_waits: 43,
    rounding_down: 29,
    dead_region_counts: 50,
    other_models_ignored: 52,
    gate_ignored: 85,
    wait_without_deadline: 56,
    gateways_follow_by_their_names: 52,
    processes_go_over_one_by_one: 47,
    rebuild_off: 29,
    resubmission_off: 39,
    withdrawal_off: 94,
    parts_are_not_kept: 22,
    parts_end_with_their_manifest: 15,
    rollbacks_are_not_placed: 75,
}
"""The first history of those that few see. The search begins there and goes on behind the last one with the first."""

DAILY = {release_before_route, newest_first, change_is_lost, gate_ignored, replicas_are_forgotten}
"""Those of `make test`; `make test-all` runs all."""


@pytest.mark.parametrize(
    "mutate",
    [pytest.param(mutate, marks=() if mutate in DAILY else pytest.mark.deep) for mutate in MUTANTS],
    ids=lambda mutate: mutate.__name__,
)
def test_a_rule_broken_on_purpose_is_caught(mutate, monkeypatch):
    mutate(monkeypatch)

    seeds = ((SEEN_BY.get(mutate, 0) + number) % SEEDS for number in range(SEEDS))
    parts = mutate in OF_PARTS
    manifests = parts or mutate in OF_MANIFESTS
    ends = manifests or mutate in OF_ENDS
    histories = (history(seed, ends=ends, prepares=False, manifests=manifests, parts=parts) for seed in seeds)
    found = next((outcome for outcome in histories if outcome.violated), None)

    assert found is not None, f"{SEEDS} histories did not see it"
    assert found.violated in MUTANTS[mutate], found.told


@pytest.mark.parametrize("seed", [3083, 6174])
def test_a_way_back_that_drops_users_whom_the_new_generation_still_answers_is_caught(seed, monkeypatch):
    """Where a lost region alone held the former one: so rare that the histories in which it happens are named."""
    assert history(seed, ends=False).violated is None
    monkeypatch.setattr(undoing, "answers_at_all", lambda *_: False)

    found = history(seed, ends=False)

    assert found.violated == "I5 dropped", found.told


def test_users_who_come_to_a_new_generation_too_fast_after_a_loss_are_seen(monkeypatch):
    """So rare that the history in which it happens is named."""
    monkeypatch.setattr(pacing, "check_growth", lambda *_: None)

    found = history(72593, ends=False)

    assert found.violated == "pace", found.told


@pytest.mark.parametrize(
    ("module", "rule", "broken", "seed", "invariant"),
    [
        (wave_context, "find_unproven", lambda *_: frozenset(), 13105, "I2 undemanded"),
        (releasing, "is_needed", lambda stored, needed, _then: releasing.answers(stored, needed), 9450, "I1 way back"),
        (undoing, "_is_whole", lambda *_: True, 668, "I2 undemanded"),
        (swapping, "_leaves", lambda *_: False, 2979, "I1 way back"),
        (GatewayTables, "regains", lambda *_: False, 33586, "I5 dropped"),
        (GatewayTables, "knows", lambda *_: True, 23247, "I1 way back"),
        (wave_progress, "_begin_to_undo", lambda _: None, 78660, "I1 way back"),
    ],
)
def test_a_rule_that_few_histories_need_is_caught(module, rule, broken, seed, invariant, monkeypatch):
    """So rare that the histories in which they are needed are named."""
    monkeypatch.setattr(module, rule, broken)

    found = history(seed, manifests=True, parts=seed in {668, 2979})

    assert found.violated == invariant, found.told


def test_two_transitions_of_a_model_that_are_open_at_once_are_seen():
    found = world.World(1, draw_scenario(Random("scenario 1")))
    model, record = next(iter(found.journal.records.items()))
    nothing = Transition.model_validate({"from": {}, "to": {}})
    record.transitions += [Moving(name, model, 1, nothing, TransitionState.PLANNED) for name in ("one", "other")]

    with pytest.raises(Violated, match="one and other move"):
        found.invariants.changes.check_mover(model)


def test_a_revert_that_begins_again_where_another_one_had_been_further_is_caught(monkeypatch):
    """So rare that the history in which it happens is named."""
    real = wave_progress.write_progress

    def forgetful(wave):
        if not wave.back or wave.last:
            real(wave)

    monkeypatch.setattr(wave_progress, "write_progress", forgetful)
    monkeypatch.setattr(wave_progress, "_begin_to_undo", lambda _: None)

    found = history(1769, prepares=False)

    assert found.violated == "I1 way back", found.told


def test_a_process_more_than_its_wave_had_that_a_way_back_which_is_given_up_lets_go_is_caught(monkeypatch):
    """What the wave at hand took may stay missing until the next change has told all processes, no more."""
    real = Capacity.give_up

    def careless(self, model):
        real(self, model)
        region = self.world.infra.regions["ap"]
        next(host for host in region.replicas if host.key.model == model and 1 in host.ready).ready_at.clear()
        region.forget_able(model)

    monkeypatch.setattr(Capacity, "give_up", careless)

    found = history(2742, prepares=False)

    assert found.violated == "I1 way back", found.told
    assert "ap sends m0 generation 1 to ap, not whole there" in found.told
