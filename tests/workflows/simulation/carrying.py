"""One change through its stages, and the entity that orders a model's changes: as workflows/lifecycle.py and model.py do it."""

from collections.abc import Callable, Generator
from typing import Any

from ipnext.model.lifecycle import ChangeKind, ChangeState, QueuedChange, WaveResult
from workflows import ordering, policies

from . import moving, staging
from .clock import Signal
from .journal import Change, Moving
from .performing import Attempt, Limits, perform
from .planning import way_back
from .walking import WAITS, Command, Failed, Stopped, Walked, Way, walk

Steps = Generator[Any, Any, Any]
WAITING_FOR_SUPPLY = Limits(total=600.0, first_retry=1.0, most_retry=15.0)
QUICK = Limits(first_retry=0.2, most_retry=10.0)

STAGES = {
    ChangeKind.PUBLISH: ("resolve_snapshots", "validate_generation", "freeze", "place_model", "transition"),
    ChangeKind.APPLY: ("resolve_snapshots", "validate_generation", "freeze", "place_model", "transition"),
    ChangeKind.ROLLBACK: ("resolve_snapshots", "transition"),
    ChangeKind.MOVE: ("freeze", "transition"),
    ChangeKind.RETIRE: ("freeze", "withdraw_model", "release_model"),
}
ROLLS_OUT = frozenset({ChangeKind.PUBLISH, ChangeKind.APPLY})
SHIELDED = frozenset({"withdraw_model", "release_model"})
UNASKED = frozenset({ChangeKind.ROLLBACK, ChangeKind.MOVE})


class Run:
    """One lifecycle run and, while it walks, its transition."""

    def __init__(self, world: Any, change: Change, *, held: bool = False) -> None:
        self.world, self.change, self.name = world, change, f"{change.kind} {change.id}"
        self.stops, self.cancels, self.signal, self.moving = 0, 0, Signal(), False
        self.command = Command("none", 0)
        self.way: Way | None = None
        self.held, self.newer, self.may_turn, self.turning, self.gave_way = held, False, False, False, False
        self.approved = self.promoted = False
        self.generation: int | None = None
        self.ended: tuple[ChangeState, str] | None = None

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
        if not self.urgent:
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
        rollout = self.world.journal.records[self.change.model].manifest.spec.rollout
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
    change, staged = run.change, staging.Stages(run)
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
    run.ended = outcome
    yield from run.perform("finish_change", staged.finish, shielded=True)
    run.world.invariants.ended(change, outcome[0])


def _outcome(run: Run, staged: "staging.Stages") -> Generator[Any, Any, tuple[ChangeState, str]]:
    try:
        return (yield from _stages(run, staged))
    except Stopped:
        return (ChangeState.ROLLED_BACK if run.moving else ChangeState.SUPERSEDED, "stopped")
    except Failed as error:
        return (ChangeState.ROLLED_BACK if run.moving else ChangeState.REFUSED, str(error))


def _stages(run: Run, staged: "staging.Stages") -> Generator[Any, Any, tuple[ChangeState, str]]:
    kind = ChangeKind(run.change.kind)
    if run.generation is None and kind is not ChangeKind.RETIRE:
        return (ChangeState.DONE, "nothing to do")
    for stage in STAGES[kind]:
        if stage == "place_model" and not (yield from _goes_on(run, lambda: run.held)):
            return (ChangeState.SUPERSEDED, "paused, and a newer one waits")
        if stage == "freeze":
            if not (yield from _goes_on(run, run.frozen)):
                return (ChangeState.SUPERSEDED, "frozen, and a newer one waits")
            refused = ""
        elif stage == "transition":
            refused = yield from _move(run, staged)
        else:
            refused = yield from run.perform(stage, getattr(staged, stage), shielded=stage in SHIELDED)
        if refused:
            return (ChangeState.ROLLED_BACK if run.moving else ChangeState.REFUSED, refused)
        if run.stops and stage != "transition":
            return (ChangeState.SUPERSEDED, "stopped")
    return (ChangeState.DONE, "")


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


def _move(run: Run, staged: "staging.Stages") -> Generator[Any, Any, str]:
    """Why the transition came to nothing; empty where it is done."""
    planned: Moving = yield from run.perform("plan_transition", staged.plan_transition, WAITING_FOR_SUPPLY)
    if planned.transition.refused is not None:
        return planned.transition.refused or "refused"
    run.moving = True
    walked = yield from walked_through(run, planned)
    return "" if walked.done else walked.message or "went back"


def _way(run: Run, planned: Moving) -> Way:
    rollout = run.world.journal.records[planned.model].manifest.spec.rollout
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
    """Drive the walk: its commands are performed, what comes of them is its next input."""
    if run.stops:
        raise Stopped
    run.way = _way(run, planned)
    if run.way.back == "by_waves":
        run.world.faults.count("a way back by waves")
    way = walk(run.way)
    if run.newer:
        run.hear_of_newer(may_turn=run.may_turn)
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
    if command.name in WAITS:
        return (yield from _waited(run, command))
    deadline = run.world.journal.records[planned.model].manifest.spec.rollout.deadline_seconds
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
        self.queue: tuple[QueuedChange, ...] = ()
        self.seen: set[str] = set()
        self.running: Run | None = None
        self.news, self.turned, self.held = Signal(), 0, False

    def submit(self, change: Change) -> None:
        """Queue a change; the same one again is none."""
        new = change.queued
        if new.id in self.seen:
            return
        self.seen.add(new.id)
        self.queue, gone = ordering.enqueue(self.queue, new)
        self.world.invariants.queued(self.model, self.queue)
        for found in gone:
            self.world.clock.spawn(
                f"supersede {found.change.id}", self._supersede(found), after=self.world.faults.latency()
            )
        if change.state is ChangeState.RECORDED:
            change.state = ChangeState.QUEUED
        self._stop_for(new)
        self._tell_of(new)
        self.world.clock.fire(self.news)

    def body(self) -> Steps:
        """Carry out changes, one by one."""
        while True:
            first = ordering.next_of(self.queue, held=self.held)
            if first is None:
                yield (None, (self.news,))
                continue
            self.queue = tuple(waiting for waiting in self.queue if waiting.id != first.id)
            held = self.held and first.kind not in ordering.URGENT
            run = self.running = Run(self.world, self.world.journal.by_id[first.id], held=held)
            self.world.tell("run", run.name)
            for waiting in self.queue:
                self._stop_for(waiting)
                self._tell_of(waiting)
            yield from carry_out(run)
            self.turned = self.turned + 1 if run.gave_way else 0
            if run.gave_way:
                self.world.invariants.gave_way(run.change)
            self.world.tell("ended", f"{run.name}: {run.ended}")
            self.running = None

    def hold(self, *, held: bool) -> None:
        """Pause or resume; the run that is under way hears of it."""
        self.held = held
        if self.running is not None:
            self.running.hold(held=held)
        self.world.clock.fire(self.news)

    def _stop_for(self, new: QueuedChange) -> None:
        if self.running is not None and ordering.stops(new, self.running.change.queued):
            self.world.faults.count("stopped by a newer change")
            self.running.stop()

    def _tell_of(self, new: QueuedChange) -> None:
        run = self.running
        kinds = {new.kind, run.change.kind} if run is not None else {ChangeKind.MOVE}
        newer = kinds <= ROLLS_OUT and new.sequence > run.change.sequence
        if newer and ordering.overtakes(new, run.change.queued):
            run.hear_of_newer(may_turn=self.turned < policies.MOST_TURNS)

    def _supersede(self, found: ordering.Superseded) -> Steps:
        change, by = self.world.journal.by_id[found.change.id], found.by.sequence
        self.world.tell("superseded", f"{change.id} by {found.by.id}")
        self.world.journal.end(change, ChangeState.SUPERSEDED, "newer", by)
        self.world.invariants.ended(change, ChangeState.SUPERSEDED)
        return
        yield
