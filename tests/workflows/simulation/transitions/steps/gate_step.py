"""The activity that judges the gate of a wave."""

from collections.abc import Generator
from typing import Any

from activities.state import observed as regions
from activities.transition.gate import verdict as gates
from ipnext.errors import Unavailable
from ipnext.model.deployment.route_table import RouteShare
from ipnext.model.gate.comparison import Pair
from ipnext.model.gate.gate import GateSpec, RegionTraffic
from ipnext.model.lifecycle.changes.transition_run import WaveResult
from ipnext.model.lifecycle.status import Reason
from tests.workflows.simulation.runs.activity_attempts import Attempt

from .wave import Wave, order_by_region, state_of

Steps = Generator[Any, Any, WaveResult]


def check_gate(world: Any, wave: Wave, attempt: Attempt) -> Steps:
    """Judge whether the target generation answers well enough."""
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
    failure = regions.first_failure(wave.model, generation, order_by_region(states))
    if failure is not None:
        return WaveResult(ok=False, reason=failure.reason, message=failure.message)
    verdict = gates.judge(asked, [Pair(new, old)])
    world.invariants.pace.check_gate(wave, errors=errors if compared else 0, rate=rate, passed=verdict.ok)
    reason = Reason.SUCCEEDED if verdict.ok else Reason.GATE_FAILED
    return WaveResult(ok=verdict.ok, reason=reason, message=verdict.message)
