"""The run of a transition: the commands of a walk are performed, their answers are its next input."""

from collections.abc import Generator
from typing import Any

from ipnext.errors import FenceLost
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.transition_run import WaveResult
from ipnext.model.lifecycle.status import Reason
from tests.workflows.simulation.clock import GONE
from tests.workflows.simulation.journal import Moving
from tests.workflows.simulation.runs.activity_attempts import Limits
from tests.workflows.simulation.runs.lifecycle_run import ENDED_OUTSIDE, Run
from tests.workflows.simulation.transitions.steps.capacity_step import ensure_capacity
from tests.workflows.simulation.transitions.steps.gate_step import check_gate
from tests.workflows.simulation.transitions.steps.release_step import release_capacity
from tests.workflows.simulation.transitions.steps.traffic_step import shift_traffic
from tests.workflows.simulation.transitions.steps.wave import Wave

from .plan import way_back
from .walk import WAITS, Command, Failed, Stopped, Walk, Walked, Way, walk, walk_back

Steps = Generator[Any, Any, Any]
STEPS = {
    "ensure_capacity": ensure_capacity,
    "shift_traffic": shift_traffic,
    "check_gate": check_gate,
    "release_capacity": release_capacity,
}
"""The activities of the commands that do more than wait."""

UNASKED = frozenset({ChangeKind.ROLLBACK, ChangeKind.MOVE, ChangeKind.REPAIR})


def execute(run: Run, planned: Moving) -> Steps:
    """Execute a transition; GONE if another run took it over."""
    try:
        return (yield from _walk_through(run, planned))
    except FenceLost:
        return GONE


def revert(run: Run, planned: Moving) -> Steps:
    """Revert a transition whose run has gone; GONE if another run took it over."""
    try:
        return (yield from _walk_back(run, planned))
    except FenceLost:
        return GONE


def _way(run: Run, planned: Moving) -> Way:
    rollout = run.world.journal.records[planned.model].in_force.spec.rollout
    gates = [wave.gate for wave in planned.transition.waves]
    asks = [rollout.approval == "each" or (rollout.approval == "canary" and gate == "canary") for gate in gates]
    asked = run.change.kind not in UNASKED
    return Way(
        waves=len(gates),
        back=way_back(run.world, planned),
        asks=tuple(ask and asked and n + 1 < len(gates) for n, ask in enumerate(asks)),
        patience=rollout.manual_deadline_seconds,
        stopping=lambda: run.stops > 0 or run.turning,
        held=lambda: run.held,
        promoted=lambda: run.promoted,
    )


def _walk_through(run: Run, planned: Moving) -> Generator[Any, Any, Walked]:
    """Walk all waves, or some and then back."""
    run.way = _way(run, planned)
    if run.way.back == "by_waves":
        run.world.faults.count("a way back by waves")
    if run.newer:
        run.hear_of_newer(may_turn=run.may_turn)
    return (yield from _drive(run, planned, walk(run.way)))


def _walk_back(run: Run, planned: Moving) -> Generator[Any, Any, Walked]:
    """Walk back only, from the wave that was under way: the run that walked before has gone."""
    run.way, run.reverts = _way(run, planned), True
    index = min(planned.waves_done, run.way.waves - 1)
    failed = WaveResult(ok=False, reason=Reason.INTERNAL_ERROR, message=ENDED_OUTSIDE)
    return (yield from _drive(run, planned, walk_back(run.way, index, failed)))


def _drive(run: Run, planned: Moving, way: Walk) -> Generator[Any, Any, Walked]:
    """Drive a walk: its commands are performed, what comes of them is its next input."""
    command = next(way, None)
    try:
        while command is not None:
            try:
                answer = yield from _perform_command(run, planned, command)
                if command.back and isinstance(answer, WaveResult) and not answer.ok:
                    run.world.invariants.excuses.leave(planned.model)
            except (Failed, Stopped) as error:
                if command.back:
                    run.world.invariants.excuses.leave(planned.model)
                command = way.throw(error)
            else:
                command = way.send(answer)
    except StopIteration as ended:
        walked: Walked = ended.value
        return walked
    return Walked(done=True, waves_done=0)


def _wait(run: Run, command: Command) -> Steps:
    """What ended a wait: the time, or what it waits for."""
    before, end = run.cancels, run.world.clock.now + command.seconds
    run.approved = False
    while True:
        if run.cancels > before:
            raise Stopped
        if command.name == "person":
            if run.approved or run.promoted:
                run.world.faults.count("approved")
                return "approved"
            if run.newer:
                run.gave_way = True
                return "newer"
        elif run.promoted if command.name == "timer" else not run.held:
            return "over"
        if run.world.clock.now >= end:
            return None
        yield (end - run.world.clock.now, (run.signal,))


def _perform_command(run: Run, planned: Moving, command: Command) -> Steps:
    run.world.invariants.pace.check_command(run, command)
    run.command = command
    run.step = run.step if command.name == "pause" else command
    if command.name in WAITS:
        return (yield from _wait(run, command))
    deadline = run.world.journal.records[planned.model].in_force.spec.rollout.deadline_seconds
    wave = Wave(planned, command.index, command.back, deadline, command.early, command.by_waves)
    run.world.tell("wave", f"{planned.model} {command.index + 1} {'back' if command.back else 'on'}")
    limits = Limits(total=deadline, keeps=command.name == "ensure_capacity")
    body = STEPS[command.name]
    return (
        yield from run.perform(
            command.name, lambda attempt: body(run.world, wave, attempt), limits, shielded=command.back
        )
    )
