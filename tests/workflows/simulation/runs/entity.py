"""The entity that orders a model's changes, as workflows/model.py does it."""

from collections.abc import Generator
from typing import Any

from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState, QueuedChange
from ipnext.model.planning.transition import TransitionState
from tests.workflows.simulation.clock import GONE, Process, Signal
from tests.workflows.simulation.journal import Change
from tests.workflows.simulation.terminations import terminate
from workflows import policies
from workflows.entity import change_queue as ordering

from . import lifecycle, reconciliation, takeover
from .lifecycle_run import ENDED_OUTSIDE, Run
from .stage_activities import Stages

Steps = Generator[Any, Any, Any]
ROLLS_OUT = frozenset({ChangeKind.PUBLISH, ChangeKind.APPLY})


class Entity:
    """The one that orders the changes of a model."""

    def __init__(self, world: Any, model: str) -> None:
        self.world, self.model = world, model
        self.running: Run | None = None
        """The run that is under way, whether the entity knows of it or not."""
        self.process: Process | None = None
        self.news = Signal()
        self._forget()

    def _forget(self) -> None:
        """An entity that begins knows nothing."""
        self.queue: tuple[QueuedChange, ...] = ()
        self.begun: tuple[QueuedChange, ...] = ()
        """Changes whose run has begun before: they are awaited before anything else begins."""
        self.seen: set[str] = set()
        self.marks: list[Process] = []
        self.passed: Run | None = None
        """The run that waits while a repair passes it."""
        self.weighed: set[tuple[str, str]] = set()
        self.turned, self.held, self.rebuilt, self.knows = 0, False, False, False

    @property
    def runs(self) -> bool:
        """Whether the entity runs."""
        return self.process is not None and not self.process.done

    @property
    def busy(self) -> bool:
        """Whether a run is under way. One that was ended after it recorded its end, as its entity was, is not."""
        run = self.running
        return run is not None and (self.runs or run.lives or run.walks)

    def begin(self, *, rebuilt: bool = False) -> None:
        """Start it. `rebuilt`: there is nothing to read, or it was carried over."""
        if not self.runs:
            self.rebuilt = rebuilt
            self.process = self.world.clock.spawn(f"entity {self.model}", self.body())

    def terminate(self) -> None:
        """End it from outside; the run goes on."""
        terminate(self.world, self.process, self.running)
        for mark in self.marks:
            self.world.clock.kill(mark)
        self._forget()

    def forget_ended(self, run: Run) -> None:
        """A run has recorded its end, and no entity knows of it."""
        if self.running is run and not self.knows:
            self.running = None

    def renew(self) -> None:
        """Continue as new, with all that is under way."""
        carried = self.queue, self.begun, self.seen, self.turned, self.held, self.marks
        run = self.running
        if run is not None and run.change.state is not ChangeState.RECORDED and not (run.lives or run.walks):
            return  # it is about to record an end
        terminate(self.world, self.process)
        self.queue, self.begun, self.seen, self.turned, self.held, self.marks = carried
        self.passed = None
        if run is not None and run.change.queued not in self.begun:
            self.begun = (run.change.queued, *self.begun)
        self.begin(rebuilt=True)

    def submit(self, change: Change) -> None:
        """Queue a change; the same one again is none. An entity that does not run begins with it."""
        self.begin()
        new = change.queued
        if change.state is ChangeState.RECORDED:
            change.state = ChangeState.QUEUED
        if new.id in self.seen or new.id in self._at_work:
            return
        self._enqueue(new)
        self._stop_for(new)
        self._tell_of(new)
        self.world.clock.fire(self.news)

    @property
    def _at_work(self) -> set[str]:
        """The change that is carried out, and those whose run has begun before."""
        running = {self.running.change.id} if self.running is not None and self.knows else set()
        return running | {change.id for change in self.begun}

    def _enqueue(self, new: QueuedChange) -> None:
        self.seen.add(new.id)
        self.queue, gone = ordering.enqueue(self.queue, new)
        self.world.invariants.changes.check_queue(self.model, self.queue)
        for found in gone:
            mark = self.world.clock.spawn(
                f"supersede {found.change.id}", self._supersede(found), after=self.world.faults.latency()
            )
            self.marks = [*(m for m in self.marks if not m.done), mark]

    def body(self) -> Steps:
        """Carry out changes, one by one."""
        if not self.rebuilt:
            yield from self._rebuild()
        while True:
            first = self.begun[0] if self.begun else ordering.next_of(self.queue, held=self.held)
            if first is None:
                yield (None, (self.news,))
                continue
            self.queue = tuple(waiting for waiting in self.queue if waiting.id != first.id)
            run = yield from self._carry_out(first)
            self.turned = self.turned + 1 if run.gave_way else 0
            if run.gave_way:
                self.world.invariants.changes.check_superseded(run.change)
            self.world.tell("ended", f"{run.name}: {run.ended}")
            self.begun = tuple(other for other in self.begun if other.id != first.id)
            self.running, self.knows = None, False

    def _rebuild(self) -> Steps:
        """Read from the store what was asked before this entity began."""
        yield self.world.terminations.latency()
        found = [change.queued for change in reconciliation.open_changes(self.world, self.model)]
        begun = {c.id for c in found if self._lives(c) or self.world.journal.by_id[c.id].state is ChangeState.RUNNING}
        yield self.world.terminations.latency()
        first = sorted(found, key=lambda c: (not self._moves(c), c.kind not in ordering.CAN_PASS))
        self.begun = tuple(change for change in first if change.id in begun)
        self.queue = tuple(change for change in self.queue if change.id not in begun)
        for change in found:
            if change.id not in begun | self.seen:
                self._enqueue(change)
        self.held = self.world.journal.records[self.model].held
        if not begun:
            self.running = None
        self.rebuilt = True

    def _moves(self, change: QueuedChange) -> bool:
        moving = self.world.journal.find_transition(change.id)
        return moving is not None and moving.state is not TransitionState.REFUSED

    def _let_pass(self, run: Run) -> Steps:
        """Let a repair pass a run that waits; afterwards the run gets the signals that it missed."""
        waiting = next((c for c in self.queue if self._is_unweighed(c, run)), None)
        if waiting is None:
            return
        self.weighed.add((waiting.id, run.change.id))
        yield self.world.terminations.latency()
        moved = self.world.journal.is_moved(self.model)
        if moved or waiting not in self.queue or not run.lives:
            return
        self.world.faults.count("a repair passes")
        self.queue = tuple(other for other in self.queue if other.id != waiting.id)
        others = (other for other in self.begun if other.id not in {waiting.id, run.change.id})
        self.begun, self.passed = (waiting, run.change.queued, *others), run
        other = yield from self._carry_out(waiting)
        self.world.tell("ended", f"{other.name}: {other.ended}")
        self.begun = tuple(found for found in self.begun if found.id != waiting.id)
        self.passed = None
        self.running = run
        if run.lives:
            run.hold(held=self.held)
            self._tell_all(run)

    def _is_unweighed(self, waiting: QueuedChange, run: Run) -> bool:
        if waiting.kind is not ChangeKind.REPAIR or self.passed is not None or run.change.kind not in ordering.WAITS:
            return False
        urgent = any(other.kind in ordering.URGENT for other in self.queue)
        return not urgent and (waiting.id, run.change.id) not in self.weighed

    def _lives(self, change: QueuedChange) -> bool:
        return change.id in self.world.runs and self.world.runs[change.id].lives

    def _carry_out(self, first: QueuedChange) -> Generator[Any, Any, Run]:
        """Run a change to its end, or follow the run that exists."""
        run = self.world.runs.get(first.id)
        if run is None:
            held = self.held and first.kind not in ordering.PASSES_PAUSE
            run = self.running = self.world.runs[first.id] = Run(
                self.world, self.world.journal.by_id[first.id], held=held
            )
            self.world.tell("run", run.name)
            run.lifecycle = self.world.clock.spawn(run.name, lifecycle.carry_out(run))
            self._tell_all(run)
            while not run.lifecycle.done:
                yield from self._let_pass(run)
                if not run.lifecycle.done and not any(self._is_unweighed(c, run) for c in self.queue):
                    yield (None, (run.lifecycle.ended, self.news))
            if run.lifecycle.result is not GONE:
                return run
            yield from self._end_failed(run)
            return run
        self.running = run
        yield from self._follow(run)
        return run

    def _follow(self, run: Run) -> Steps:
        """Wait for the end of a run that an entity of before started, or that has gone."""
        while True:
            yield self.world.terminations.latency()
            lives = run.lives
            yield self.world.terminations.latency()
            if run.change.state.final:
                run.ended = run.ended or (run.change.state, run.change.message)
                return
            if not lives:
                yield from self._end_failed(run)
                return
            if not self.knows:
                run.hold(held=self.held)
                self._tell_all(run)
            yield from self._let_pass(run)
            ended = (run.lifecycle.ended,) if run.lifecycle else ()
            yield (policies.FOLLOWED_LOOK_SOON.total_seconds(), (*ended, self.news))

    def _end_failed(self, run: Run) -> Steps:
        """End a run that could not record its own end: revert what it moved, then record its end."""
        taken = yield from takeover.settle(run)
        if taken.withdrawn:
            self.world.faults.count("a retirement is completed")
            yield from run.perform("release_model", Stages(run).release_model, shielded=True)
            yield from lifecycle.finish(run, (ChangeState.DONE, ENDED_OUTSIDE))
            return
        state = ChangeState.ROLLED_BACK if taken.moved else ChangeState.REFUSED
        moved = self.world.journal.find_transition(run.change.id)
        if taken.done and moved is not None:
            state, run.generation = ChangeState.DONE, moved.generation
        yield from lifecycle.finish(run, (state, ENDED_OUTSIDE))

    def _tell_all(self, run: Run) -> None:
        self.running, self.knows = run, True
        for waiting in self.queue:
            self._stop_for(waiting)
            self._tell_of(waiting)

    def hold(self, *, held: bool) -> None:
        """Pause or resume; the run that is under way hears of it."""
        self.held = self.world.journal.records[self.model].held = held
        if self.running is not None:
            self.running.hold(held=held)
        self.world.clock.fire(self.news)

    def _stop_for(self, new: QueuedChange) -> None:
        run = self.running
        if run is not None and self.knows and ordering.stops(new, run.change.queued):
            self.world.faults.count("stopped by a newer change")
            run.change.stopped_by = run.change.stopped_by or new.id
            run.stop()

    def _tell_of(self, new: QueuedChange) -> None:
        run = self.running
        if run is None or not self.knows or not {new.kind, run.change.kind} <= ROLLS_OUT:
            return
        if new.sequence > run.change.sequence and ordering.overtakes(new, run.change.queued):
            run.hear_of_newer(may_turn=self.turned < policies.MOST_TURNS)

    def _supersede(self, found: ordering.SupersededEntry) -> Steps:
        change, by = self.world.journal.by_id[found.change.id], found.by.sequence
        self.world.tell("superseded", f"{change.id} by {found.by.id}")
        self.world.journal.end(change, ChangeState.SUPERSEDED, "newer", by)
        self.world.invariants.changes.check_end(change, ChangeState.SUPERSEDED)
        return
        yield
