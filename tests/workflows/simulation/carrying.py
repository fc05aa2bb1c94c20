"""One change through its stages, and the entity that orders a model's changes.

They do as workflows/lifecycle.py and model.py do.
"""

from collections.abc import Callable, Generator, Sequence
from itertools import takewhile
from typing import Any

from ipnext.errors import FenceLost
from ipnext.model.lifecycle.messages import ChangeKind, ChangeState, QueuedChange, WaveResult
from ipnext.model.lifecycle.status import Reason
from ipnext.model.planning.transition import TransitionState
from workflows import policies
from workflows.entity import change_queue as ordering
from workflows.stages import preparation

from . import moving, reconciliation, stage_activities, takeover
from .activity_attempts import Attempt, AtWork, Limits, OutOfTries, perform
from .clock import GONE, Process, Signal, joined
from .journal import Change, Moving
from .terminations import terminate
from .transition_plan import way_back
from .transition_walk import WAITS, Command, Failed, Stopped, Walk, Walked, Way, walk, walk_back

Steps = Generator[Any, Any, Any]
WAITING_FOR_SUPPLY = Limits(total=600.0, first_retry=1.0, most_retry=15.0)
IN_ONE = Limits(tries=policies.FEW_TRIES.maximum_attempts, first_retry=0.2, most_retry=10.0)
QUICK = Limits(first_retry=0.2, most_retry=10.0)

STAGES = {
    ChangeKind.PUBLISH: ("resolve_snapshots", "validate_generation", "freeze", "place_model", "transition"),
    ChangeKind.APPLY: ("resolve_snapshots", "validate_generation", "freeze", "place_model", "transition"),
    ChangeKind.ROLLBACK: ("resolve_snapshots", "transition"),
    ChangeKind.MOVE: ("freeze", "transition"),
    ChangeKind.RETIRE: ("freeze", "withdraw_model", "release_model"),
    ChangeKind.REPAIR: ("transition",),
}
PLACED_FIRST = ("resolve_snapshots", "place_model", "transition")
"""The stages of a rollback, in histories in which generations may have other parts than those that are placed."""

ROLLS_OUT = frozenset({ChangeKind.PUBLISH, ChangeKind.APPLY})
SHIELDED = frozenset({"withdraw_model", "release_model"})
COMPLETED = SHIELDED | {"transition"}
UNASKED = frozenset({ChangeKind.ROLLBACK, ChangeKind.MOVE, ChangeKind.REPAIR})
ENDED_OUTSIDE = "its run was ended from outside"


class Run:
    """One lifecycle run and, while it walks, its transition."""

    def __init__(self, world: Any, change: Change, *, held: bool = False) -> None:
        self.world, self.change, self.name = world, change, f"{change.kind} {change.id}"
        self.stops, self.cancels, self.signal, self.moving = 0, 0, Signal(), False
        self.command = self.step = Command("none", 0)
        """What it does, and what it did last that was no wait for the end of a pause."""
        self.way: Way | None = None
        self.held, self.newer, self.may_turn, self.turning, self.gave_way = held, False, False, False, False
        self.approved = self.promoted = False
        self.waits_for_freeze = False
        self.generation: int | None = None
        self.places = False
        """Whether its generation has other parts than those that are placed."""
        self.ended: tuple[ChangeState, str] | None = None
        self.reason: Reason | None = None
        """Why it came to nothing, if a step said so."""
        self.lifecycle: Process | None = None
        self.walk: Process | None = None
        """The run of its transition, or of a revert of it."""
        self.reverts = False
        self.token = 0
        self.at_work: dict[Process | None, AtWork] = {}
        """By the process that waits for it."""

    @property
    def lives(self) -> bool:
        """Whether its lifecycle runs."""
        return self.lifecycle is not None and not self.lifecycle.done

    @property
    def walks(self) -> bool:
        """Whether a run of its transition does."""
        return self.walk is not None and not self.walk.done

    def terminate(self) -> None:
        """End the lifecycle. Its transition is asked to stop and goes back; a revert goes on."""
        walks = self.walks
        terminate(self.world, self.lifecycle, self)
        if walks and not self.reverts:
            self.stop()

    def terminate_walk(self) -> None:
        """End the transition."""
        terminate(self.world, self.walk, self)

    @property
    def stages(self) -> Sequence[str]:
        """Names of its stages, in order."""
        kind = ChangeKind(self.change.kind)
        placed_first = kind is ChangeKind.ROLLBACK and self.world.manifests.parts
        return PLACED_FIRST if placed_first else STAGES[kind]

    def applies(self, stage: str) -> bool:
        """Whether it goes through a stage; known once the snapshots are found."""
        return stage != "place_model" or self.places or self.change.kind is not ChangeKind.ROLLBACK

    @property
    def urgent(self) -> bool:
        """Whether no pause holds it."""
        return self.change.kind in ordering.URGENT

    def frozen(self) -> bool:
        """Whether a freeze holds it back now."""
        return bool(self.world.clock.now < self.world.frozen.get(self.change.model, 0.0))

    def stop(self) -> None:
        """Ask it to end in order."""
        self.stops += 1
        self._cancel()

    def hold(self, *, held: bool) -> None:
        """The model is paused, or goes on."""
        if self.change.kind not in ordering.PASSES_PAUSE:
            self.held = held
            self.world.clock.fire(self.signal)

    def approve(self) -> None:
        """Let the wave that waits go on."""
        if self.command.name == "person":
            self.approved = True
            self.world.clock.fire(self.signal)

    def promote(self) -> None:
        """Hold no more and ask no one any more."""
        if self.way is not None and not self.command.back:
            self.promoted = True
            self.world.clock.fire(self.signal)

    def hear_of_newer(self, *, may_turn: bool) -> None:
        """A newer publish waits: with `onNewer: turn` all waves but the last end for it."""
        self.newer, self.may_turn = True, may_turn
        self.world.clock.fire(self.signal)
        rollout = self.world.journal.records[self.change.model].in_force.spec.rollout
        if self.way is None or rollout.on_newer != "turn" or not may_turn:
            return
        if self.command.index + 1 < self.way.waves and not self.command.back:
            self.world.faults.count("turned for a newer publish")
            self.turning = self.gave_way = True
            self._cancel()

    def _cancel(self) -> None:
        self.cancels += 1
        self.world.clock.fire(self.signal)

    def perform(
        self, name: str, body: Callable[[Attempt], Steps], limits: Limits = QUICK, *, shielded: bool = False
    ) -> Steps:
        """An activity of this run."""
        return perform(self.world, self, name, body, limits, shielded=shielded)


def carry_out(run: Run) -> Steps:
    """The stages; then, whatever came of them, the end is recorded."""
    staged = stage_activities.Stages(run)
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
    yield from finished(run, outcome)


def finished(run: Run, outcome: tuple[ChangeState, str]) -> Steps:
    """Record how a change ended."""
    run.ended = outcome
    yield from run.perform("finish_change", stage_activities.Stages(run).finish, shielded=True)
    run.world.invariants.ended(run.change, outcome[0])
    run.world.entities[run.change.model].unheard(run)


def _outcome(run: Run, staged: "stage_activities.Stages") -> Generator[Any, Any, tuple[ChangeState, str]]:
    try:
        return (yield from _stages(run, staged))
    except Stopped:
        return (ChangeState.ROLLED_BACK if run.moving else ChangeState.SUPERSEDED, "stopped")
    except (Failed, FenceLost) as error:
        return (ChangeState.ROLLED_BACK if run.moving else ChangeState.REFUSED, str(error))


def _stages(run: Run, staged: "stage_activities.Stages") -> Generator[Any, Any, tuple[ChangeState, str]]:
    kind = ChangeKind(run.change.kind)
    if run.generation is None and kind is not ChangeKind.RETIRE:
        return (ChangeState.DONE, "nothing to do")
    prepared = yield from _prepared(run, staged, run.stages)
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
            run.waits_for_freeze = run.change.frozen = run.frozen()
            goes_on = yield from _goes_on(run, run.frozen)
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


def _prepared(
    run: Run, staged: "stage_activities.Stages", stages: Sequence[str]
) -> Generator[Any, Any, "stage_activities.Prepared"]:
    """The stages in one activity, in histories that have it: as workflows/stages/preparation.py and lifecycle.py."""
    held = run.held and run.change.kind not in ordering.PASSES_PAUSE
    ends = {"withdraw_model", "place_model"} if held else {"withdraw_model"}
    names = tuple(takewhile(lambda name: name not in ends, stages))
    if not run.world.prepares or len(names) < preparation.FEWEST:
        return {}
    try:
        done: stage_activities.Prepared = yield from run.perform(
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


def _move(run: Run, staged: "stage_activities.Stages", prepared: Moving | None) -> Generator[Any, Any, str]:
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
    run.walk = run.world.clock.spawn(f"transition {run.name}", _walk(run, planned))
    walked = yield from joined(run.walk)
    if walked is GONE:
        taken = yield from takeover.settled(run)
        walked = Walked(done=taken.done, waves_done=0, message=ENDED_OUTSIDE)
    run.reason = None if walked.done else walked.reason
    return "" if walked.done else walked.message or "went back"


def _walk(run: Run, planned: Moving) -> Steps:
    try:
        return (yield from walked_through(run, planned))
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


def walked_through(run: Run, planned: Moving) -> Generator[Any, Any, Walked]:
    """Walk all waves, or some and then back."""
    run.way = _way(run, planned)
    if run.way.back == "by_waves":
        run.world.faults.count("a way back by waves")
    if run.newer:
        run.hear_of_newer(may_turn=run.may_turn)
    return (yield from _driven(run, planned, walk(run.way)))


def reverted(run: Run, planned: Moving) -> Generator[Any, Any, Walked]:
    """Walk back only, from the wave that was under way: the run that walked before has gone."""
    run.way, run.reverts = _way(run, planned), True
    index = min(planned.waves_done, run.way.waves - 1)
    failed = WaveResult(ok=False, reason=Reason.INTERNAL_ERROR, message=ENDED_OUTSIDE)
    return (yield from _driven(run, planned, walk_back(run.way, index, failed)))


def _driven(run: Run, planned: Moving, way: Walk) -> Generator[Any, Any, Walked]:
    """Drive a walk: its commands are performed, what comes of them is its next input."""
    command = next(way, None)
    try:
        while command is not None:
            try:
                answer = yield from _commanded(run, planned, command)
                if command.back and isinstance(answer, WaveResult) and not answer.ok:
                    run.world.invariants.left(planned.model)
            except (Failed, Stopped) as error:
                if command.back:
                    run.world.invariants.left(planned.model)
                command = way.throw(error)
            else:
                command = way.send(answer)
    except StopIteration as ended:
        walked: Walked = ended.value
        return walked
    return Walked(done=True, waves_done=0)


def _waited(run: Run, command: Command) -> Steps:
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


def _commanded(run: Run, planned: Moving, command: Command) -> Steps:
    run.world.invariants.commanded(run, command)
    run.command = command
    run.step = run.step if command.name == "pause" else command
    if command.name in WAITS:
        return (yield from _waited(run, command))
    deadline = run.world.journal.records[planned.model].in_force.spec.rollout.deadline_seconds
    wave = moving.Wave(planned, command.index, command.back, deadline, command.early, command.by_waves)
    run.world.tell("wave", f"{planned.model} {command.index + 1} {'back' if command.back else 'on'}")
    limits = Limits(total=deadline, keeps=command.name == "ensure_capacity")
    body = getattr(moving, command.name)
    return (
        yield from run.perform(
            command.name, lambda attempt: body(run.world, wave, attempt), limits, shielded=command.back
        )
    )


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

    def unheard(self, run: Run) -> None:
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
        self.world.invariants.queued(self.model, self.queue)
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
            run = yield from self._carried_out(first)
            self.turned = self.turned + 1 if run.gave_way else 0
            if run.gave_way:
                self.world.invariants.gave_way(run.change)
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

    def _passing(self, run: Run) -> Steps:
        """Let a repair pass a run that waits; the run is told afterwards what it missed."""
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
        other = yield from self._carried_out(waiting)
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

    def _carried_out(self, first: QueuedChange) -> Generator[Any, Any, Run]:
        """Run a change to its end, or follow the run that exists."""
        run = self.world.runs.get(first.id)
        if run is None:
            held = self.held and first.kind not in ordering.PASSES_PAUSE
            run = self.running = self.world.runs[first.id] = Run(
                self.world, self.world.journal.by_id[first.id], held=held
            )
            self.world.tell("run", run.name)
            run.lifecycle = self.world.clock.spawn(run.name, carry_out(run))
            self._tell_all(run)
            while not run.lifecycle.done:
                yield from self._passing(run)
                if not run.lifecycle.done and not any(self._is_unweighed(c, run) for c in self.queue):
                    yield (None, (run.lifecycle.ended, self.news))
            if run.lifecycle.result is not GONE:
                return run
            yield from self._failed(run)
            return run
        self.running = run
        yield from self._followed(run)
        return run

    def _followed(self, run: Run) -> Steps:
        """Wait for the end of a run that an entity of before started, or that has gone."""
        while True:
            yield self.world.terminations.latency()
            lives = run.lives
            yield self.world.terminations.latency()
            if run.change.state.final:
                run.ended = run.ended or (run.change.state, run.change.message)
                return
            if not lives:
                yield from self._failed(run)
                return
            if not self.knows:
                run.hold(held=self.held)
                self._tell_all(run)
            yield from self._passing(run)
            ended = (run.lifecycle.ended,) if run.lifecycle else ()
            yield (policies.FOLLOWED_LOOK_SOON.total_seconds(), (*ended, self.news))

    def _failed(self, run: Run) -> Steps:
        """A run that could not record its own end: what it moved goes back, then the entity does."""
        taken = yield from takeover.settled(run)
        if taken.withdrawn:
            self.world.faults.count("a retirement is completed")
            yield from run.perform("release_model", stage_activities.Stages(run).release_model, shielded=True)
            yield from finished(run, (ChangeState.DONE, ENDED_OUTSIDE))
            return
        state = ChangeState.ROLLED_BACK if taken.moved else ChangeState.REFUSED
        moved = self.world.journal.find_transition(run.change.id)
        if taken.done and moved is not None:
            state, run.generation = ChangeState.DONE, moved.generation
        yield from finished(run, (state, ENDED_OUTSIDE))

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
        self.world.invariants.ended(change, ChangeState.SUPERSEDED)
        return
        yield
