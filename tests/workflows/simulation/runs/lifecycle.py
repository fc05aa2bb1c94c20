"""One change through its stages, as workflows/lifecycle.py does it."""

from collections.abc import Callable, Generator, Sequence
from itertools import takewhile
from typing import Any

from ipnext.errors import FenceLost
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.status import Reason
from tests.workflows.simulation.clock import GONE, join
from tests.workflows.simulation.journal import Moving
from tests.workflows.simulation.transitions import run as transition_run
from tests.workflows.simulation.transitions.walk import Failed, Stopped, Walked
from workflows import policies
from workflows.entity import change_queue as ordering
from workflows.stages import preparation

from . import takeover
from .activity_attempts import Limits, OutOfTries
from .lifecycle_run import ENDED_OUTSIDE, Run
from .stage_activities import Prepared, Stages

Steps = Generator[Any, Any, Any]
WAITING_FOR_SUPPLY = Limits(total=600.0, first_retry=1.0, most_retry=15.0)
IN_ONE = Limits(tries=policies.FEW_TRIES.maximum_attempts, first_retry=0.2, most_retry=10.0)
SHIELDED = frozenset({"withdraw_model", "release_model"})
COMPLETED = SHIELDED | {"transition"}


def carry_out(run: Run) -> Steps:
    """Go through the stages; then, whatever came of them, record the end."""
    staged = Stages(run)
    try:
        begun = yield from run.perform("begin_change", staged.begin)
    except Stopped:
        begun, outcome = None, (ChangeState.SUPERSEDED, "stopped")
    except Failed as error:
        begun, outcome = None, (ChangeState.REFUSED, str(error))
    else:
        if begun.final is not None:
            run.ended = (begun.final, "ended before")
            return
        run.generation = begun.generation
        outcome = yield from _outcome(run, staged)
    yield from finish(run, outcome)


def finish(run: Run, outcome: tuple[ChangeState, str]) -> Steps:
    """Record how a change ended."""
    run.ended = outcome
    yield from run.perform("finish_change", Stages(run).finish, shielded=True)
    run.world.invariants.changes.check_end(run.change, outcome[0])
    run.world.entities[run.change.model].forget_ended(run)


def _outcome(run: Run, staged: Stages) -> Generator[Any, Any, tuple[ChangeState, str]]:
    try:
        return (yield from _go_through_stages(run, staged))
    except Stopped:
        return (ChangeState.ROLLED_BACK if run.moving else ChangeState.SUPERSEDED, "stopped")
    except (Failed, FenceLost) as error:
        return (ChangeState.ROLLED_BACK if run.moving else ChangeState.REFUSED, str(error))


def _go_through_stages(run: Run, staged: Stages) -> Generator[Any, Any, tuple[ChangeState, str]]:
    kind = ChangeKind(run.change.kind)
    if run.generation is None and kind is not ChangeKind.RETIRE:
        return (ChangeState.DONE, "nothing to do")
    prepared = yield from _prepare(run, staged, run.stages)
    for stage in run.stages:
        if not run.applies(stage):
            continue
        done = stage in prepared
        if stage == "place_model" and not done and not (yield from _goes_on(run, lambda: run.held)):
            return (ChangeState.SUPERSEDED, "paused, and a newer one waits")
        if stage == "transition":
            refused = yield from _move(run, staged, prepared.get(stage))
        elif done:
            refused = prepared[stage]
        elif stage == "freeze":
            run.waits_for_freeze = run.change.frozen = run.is_frozen()
            goes_on = yield from _goes_on(run, run.is_frozen)
            run.waits_for_freeze = run.change.frozen = False
            if not goes_on:
                return (ChangeState.SUPERSEDED, "frozen, and a newer one waits")
            refused = ""
        else:
            refused = yield from run.perform(stage, getattr(staged, stage), shielded=stage in SHIELDED)
        if refused:
            return (ChangeState.ROLLED_BACK if run.moving else ChangeState.REFUSED, refused)
        if run.stops and stage not in COMPLETED:
            return (ChangeState.SUPERSEDED, "stopped")
    return (ChangeState.DONE, "")


def _prepare(run: Run, staged: Stages, stages: Sequence[str]) -> Generator[Any, Any, Prepared]:
    """The stages in one activity, in histories that have it: as workflows/stages/preparation.py and lifecycle.py."""
    held = run.held and run.change.kind not in ordering.PASSES_PAUSE
    ends = {"withdraw_model", "place_model"} if held else {"withdraw_model"}
    names = tuple(takewhile(lambda name: name not in ends, stages))
    if not run.world.prepares or len(names) < preparation.FEWEST:
        return {}
    try:
        done: Prepared = yield from run.perform(
            "prepare_change", lambda attempt: staged.prepare(names, attempt), IN_ONE
        )
    except OutOfTries:
        run.world.faults.count("stages are gone through one by one")
        return {}
    return done


def _goes_on(run: Run, waits: Callable[[], bool]) -> Generator[Any, Any, bool]:
    """When nothing holds it any more; False where it gives way to a newer change."""
    before = run.cancels
    while waits():
        if run.newer:
            run.gave_way = True
            return False
        yield (1.0 + 5.0 * run.world.faults.latency(), (run.signal,))
        if run.cancels > before:
            raise Stopped
    return True


def _move(run: Run, staged: Stages, prepared: Moving | None) -> Generator[Any, Any, str]:
    """Why the transition came to nothing; empty where it is done."""
    planned: Moving = prepared or (
        yield from run.perform("plan_transition", staged.plan_transition, WAITING_FOR_SUPPLY)
    )
    if planned.transition.refused is not None:
        run.reason = Reason.TRANSITION_REFUSED
        return planned.transition.refused or "refused"
    run.moving = True
    if run.stops:
        raise Stopped
    run.walk = run.world.clock.spawn(f"transition {run.name}", transition_run.execute(run, planned))
    walked = yield from join(run.walk)
    if walked is GONE:
        taken = yield from takeover.settle(run)
        walked = Walked(done=taken.done, waves_done=0, message=ENDED_OUTSIDE)
    run.reason = None if walked.done else walked.reason
    return "" if walked.done else walked.message or "went back"
