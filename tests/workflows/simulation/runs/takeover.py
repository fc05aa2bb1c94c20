"""Handling of a change whose run has gone.

It does as workflows/stages/takeover.py and activities/transition/takeover.py do.
"""

from collections.abc import Generator
from typing import Any, NamedTuple

from ipnext.errors import Unavailable
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.planning.transition import TransitionState
from tests.workflows.simulation.clock import GONE, join
from tests.workflows.simulation.journal import UNDER_WAY, Moving
from tests.workflows.simulation.transitions import run as transition_run
from workflows import policies

from .activity_attempts import Attempt
from .lifecycle_run import Run

Steps = Generator[Any, Any, Any]


class Taken(NamedTuple):
    """How the transition of the change stands."""

    waits: bool = False
    moved: bool = False
    done: bool = False
    reverts: Moving | None = None
    token: int = 0
    withdrawn: bool = False
    """Whether it is a retirement that has removed the routes."""


def settle(run: Run) -> Generator[Any, Any, Taken]:
    """Wait until no run moves the model for the change any more, and what it moved is back as far as it can be."""
    wait, reverts = policies.TAKEOVER_LOOK_SOON.total_seconds(), 0
    while True:
        taken: Taken = yield from run.perform("take_over", lambda attempt: _take_over(run, attempt), shielded=True)
        if taken.waits:
            yield wait
            wait = min(2 * wait, policies.TAKEOVER_LOOK.total_seconds())
            continue
        if taken.reverts is None:
            return taken
        if reverts == policies.MOST_REVERTS:
            run.world.faults.count("a way back is given up")
            run.world.invariants.capacity.give_up(run.change.model)
            return taken
        reverts += 1
        if run.walks:
            continue
        run.world.faults.count("a transition is taken over")
        run.token = taken.token
        run.walk = run.world.clock.spawn(f"revert {run.name}", transition_run.revert(run, taken.reverts))
        if (yield from join(run.walk)) is not GONE:
            return taken


def _take_over(run: Run, attempt: Attempt) -> Steps:
    journal, change = run.world.journal, run.change
    before = journal.find_transition(change.id)
    retires = change.kind is ChangeKind.RETIRE and journal.is_retiring(change.model)
    withdrawn = retires and not journal.records[change.model].tables
    token = before.fence if before else 0
    yield "the store is read"
    if run.walks:
        return Taken(waits=True)
    yield "the engine is asked"
    if before is None or before.state is TransitionState.REFUSED:
        return Taken(withdrawn=withdrawn)
    if before.state is TransitionState.PLANNED:
        before.fence += 1
        before.state = TransitionState.ROLLED_BACK
        return Taken()
    if before.state not in UNDER_WAY:
        return Taken(moved=True, done=before.state is TransitionState.DONE)
    if before.fence != token:
        msg = "another run took it over meanwhile"
        raise Unavailable(msg)
    before.fence += 1
    return Taken(moved=True, reverts=before, token=before.fence)
