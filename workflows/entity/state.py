"""State of an entity: the queue of its model's changes, the running one, and the pause that blocks them.

`EntityState` decides which change runs next, which one may pass, and what is open; workflow `model` acts on it. It
waits for nothing and calls nothing of Temporal, so that every rule is tested without a server.
"""

from collections.abc import Iterable

from temporalio import workflow
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState, QueuedChange
    from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAnswer, ControlAsked
    from ipnext.model.lifecycle.changes.entity import ModelEntityInput, StopAsked, SupersededChange, ToldHold
    from ipnext.model.lifecycle.changes.lifecycle_run import LifecycleResult
    from ipnext.model.lifecycle.changes.takeover import OpenChange, OpenChanges
    from ipnext.model.lifecycle.status import Reason
    from workflows.entity.change_queue import (
        CAN_PASS,
        PASSES_PAUSE,
        PASSES_RETIREMENT,
        URGENT,
        SupersededEntry,
        can_pass,
        enqueue,
        next_of,
        overtakes,
        stops,
    )

ROLLS_OUT = frozenset({ChangeKind.PUBLISH, ChangeKind.APPLY})
"""Kinds of changes that may supersede a run of these kinds."""

REMEMBERED = 500
"""Ids of handled changes that are remembered, so that one submitted again is not run again."""


class EntityState:
    """All that the entity of one model knows of its changes."""

    def __init__(self, input: ModelEntityInput) -> None:  # noqa: A002 - as the workflow names it
        self.model = input.model
        self.queue = input.queue
        self.recent = input.recent
        self.serving = input.serving_generation
        self.handled = 0
        self.retired = input.retired
        self.rebuilt = input.rebuilt
        self.updates = 0
        """Updates to this run of the entity."""

        self.running: QueuedChange | None = None
        self.begun = input.begun
        """Changes whose run has begun before: they are awaited, or settled, before any other change begins."""
        self.passed = tuple(change for change in input.begun[1:] if change.id in input.passed_ids)[::-1]
        """The changes whose runs wait while the running one passes them. Each of them passes the ones before it."""
        self.reachable = set[str]()
        """Changes whose run this run of the entity started, or follows: it can be signaled and stopped."""
        self.passing = input.passing
        """Changes that run although the model is paused, or an older change waits."""
        self.weighed = set[tuple[str, str | None]]()
        """A change, and the one that was in its way; None: the pause."""

        self.stop_reasons = {stop.change_id: stop.reason for stop in input.stops}
        """Change -> the reason why its run was cancelled: a run that had not begun can't record it."""
        self.held = input.held
        self.told_hold = {told.change_id: told.held for told in input.told_hold}
        """Change -> the pause that its run knows of, None: none. A run that is not in here has to be told."""
        self.heard_of_hold = False
        """True if a pause or a resumption came before the store was read."""
        self.turned = input.turned
        """Number of runs in a row that a newer one superseded."""
        self.newer: QueuedChange | None = None
        """A newer change to report to the running one."""
        self.told_newer = input.told_newer
        """True if the running change knows that a newer one waits: once is enough."""

        self.superseded = input.superseded
        """Changes still to be marked as superseded."""
        self.unmarked: tuple[SupersededChange, ...] = ()
        """Changes that could not be marked; the next look at the store tries again."""
        self.looks_again = input.looks_again
        """True if the store may have open changes that this entity lost."""

    # which change runs

    @property
    def is_open(self) -> bool:
        """True until nothing is left of a model that is retired."""
        return not self.retired or bool(self.queue or self.superseded or self.unmarked or self.begun)

    @property
    def at_work(self) -> tuple[QueuedChange, ...]:
        """The running change, and the begun ones that are settled after it."""
        running = () if self.running is None else (self.running,)
        return (*running, *(change for change in self.begun if change not in running))

    @property
    def tracked_ids(self) -> frozenset[str]:
        """Ids of the changes that this entity still works on."""
        works_on = (self.running, *self.passed, *self.begun, *self.queue)
        marked = (item.change_id for item in (*self.superseded, *self.unmarked))
        return frozenset((*(change.id for change in works_on if change is not None), *marked))

    @property
    def takes_up(self) -> bool:
        """True if this run of the entity has yet to follow the run that an earlier entity started."""
        return not self.rebuilt or (bool(self.begun) and not self.handled and not self.reaches(self.running))

    @property
    def is_look_due(self) -> bool:
        """True if a look is due while a change runs that does not pass another one."""
        return self.looks_again and not self.passed

    @property
    def goes_behind(self) -> bool:
        """True if nothing would run next but a repair, which a failover goes before."""
        following = self.next()
        return following is None or following.kind is ChangeKind.REPAIR

    def next(self) -> QueuedChange | None:
        """Return the waiting change to run next."""
        return next_of(self.queue, held=self.held is not None, passing=self.passing)

    def reaches(self, change: QueuedChange | None) -> bool:
        """Check whether the change has a run to signal and to stop."""
        return change is not None and change.id in self.reachable

    def passes_pause(self, change: QueuedChange) -> bool:
        """Check whether the change runs although the model is paused."""
        return change.kind in PASSES_PAUSE or change.id in self.passing

    # submissions and ends

    def knows(self, change: QueuedChange) -> bool:
        """Check whether the change has begun or ended."""
        return change.id in self.recent or any(change.id == other.id for other in self.at_work)

    def is_queued(self, change: QueuedChange) -> bool:
        """Check whether the change waits."""
        return any(waiting.id == change.id for waiting in self.queue)

    def enqueue(self, change: QueuedChange) -> None:
        """Add a change to the queue, without those that it supersedes."""
        self.recent = (*self.recent, change.id)[-REMEMBERED:]
        self.queue, gone = enqueue(self.queue, change)
        self.superseded += tuple(map(_pair, gone))

    def begin(self, change: QueuedChange) -> bool:
        """Make the change the running one; return whether its run has begun before."""
        self.queue = tuple(waiting for waiting in self.queue if waiting.id != change.id)
        before = change in self.begun
        self.begun = (change, *(other for other in self.begun if other != change))
        self.running = change
        return before

    def end(self, change: QueuedChange, result: LifecycleResult) -> None:
        """Record the end of a change."""
        if not self.passed:  # one that passes a run leaves the count of those before that run
            gave_way = change.kind in ROLLS_OUT and result.reason is Reason.SUPERSEDED
            self.turned = self.turned + 1 if gave_way else 0
        self.running, self.newer, self.told_newer = None, None, False
        self.reachable.discard(change.id)
        self.told_hold.pop(change.id, None)
        self.stop_reasons.pop(change.id, None)
        self.passing = tuple(other for other in self.passing if other != change.id)
        self.begun = tuple(other for other in self.begun if other.id != change.id)
        self.handled += 1
        if result.state is ChangeState.DONE:
            self.serving = result.generation or self.serving
            self.retired = change.kind is ChangeKind.RETIRE
            if self.retired and self.held is not None:  # its pause has ended in the store, which may have a new one
                self.held, self.heard_of_hold, self.looks_again = None, False, True
        elif result.retired:
            self._note_retired()

    def note_newer(self, change: QueuedChange) -> None:
        """Remember a newer change that may supersede the running one, to signal it to the run."""
        running = self.running
        told = self.told_newer or not self.reaches(running)
        if running is None or told or not {running.kind, change.kind} <= ROLLS_OUT:
            return
        if change.sequence > running.sequence and overtakes(change, running):
            self.newer = change

    # changes that pass

    @property
    def unweighed(self) -> QueuedChange | None:
        """The oldest waiting change that may pass what is in its way, if the store was not asked yet."""
        kinds, running = self._passable, self.running
        if not kinds or (running is not None and any(stops(waiting, running) for waiting in self.queue)):
            return None
        in_way = None if running is None else running.id
        found = (waiting for waiting in self.queue if waiting.kind in kinds and not self._is_stopped(waiting))
        return next((waiting for waiting in found if (waiting.id, in_way) not in self.weighed), None)

    def forget_weighing(self, change: QueuedChange) -> bool:
        """Take a move that is submitted again as one that was not weighed: a region was lost meanwhile.

        Return whether it is a move that the entity works on.
        """
        asked = {found for found in self.weighed if found[0] == change.id}
        if change.kind is not ChangeKind.MOVE or not (asked or self.reaches(change)):
            return False
        self.weighed -= asked
        return True

    def _is_stopped(self, change: QueuedChange) -> bool:
        """Check whether a waiting rollback or retirement would stop the change as soon as it runs."""
        return any(stops(waiting, change) for waiting in self.queue)

    @property
    def _passable(self) -> frozenset[ChangeKind]:
        """Kinds that may pass what is in their way now.

        A run that may wait, a pause, or a repair that would run first.
        """
        if self.running is not None:
            return can_pass(self.running.kind) if self.reaches(self.running) else frozenset()
        repairs = any(waiting.kind is ChangeKind.REPAIR for waiting in self.queue)
        return CAN_PASS - PASSES_PAUSE if self.held is not None or repairs else frozenset()

    # open changes of the store

    def rebuild(self, found: OpenChanges) -> None:
        """Take up the changes that were requested before this entity began. Later submissions are in the queue."""
        self._take_up(found.changes)
        for item in found.changes:
            if not item.begun and item.change.id not in self.recent:
                self.enqueue(item.change)
        if not self.heard_of_hold:
            self.held = found.held
        self.serving = found.serving_generation
        self.rebuilt = True
        if found.retired:
            self._note_retired()

    def recover(self, found: OpenChanges, known: frozenset[str]) -> tuple[OpenChange, ...]:
        """Take up the open changes that this entity lost, and return them: first the one that moves the model.

        `known` has the ids that were tracked when the store was asked.
        """
        self.superseded, self.unmarked = (*self.superseded, *self.unmarked), ()
        known |= self.tracked_ids
        lost = tuple(item for item in found.changes if item.change.id not in known)
        self._take_up(lost)
        for item in lost:
            if not item.begun:
                self.enqueue(item.change)
        if not self.heard_of_hold:
            self.held = found.held
        if found.retired:
            self._note_retired()
        return tuple(_in_order(lost))

    def _note_retired(self) -> None:
        """Take the model as retired, as the store has it, unless a change is left that may undo that."""
        self.retired = self.retired or not self.tracked_ids

    def _take_up(self, changes: tuple[OpenChange, ...]) -> None:
        """Await, or settle, the changes that have begun."""
        self.passing = (*self.passing, *(item.change.id for item in changes if item.passes))
        begun = tuple(item.change for item in _in_order(changes) if item.begun)
        ids = {change.id for change in begun}
        self.begun = (*self.begun, *begun)
        self.queue = tuple(change for change in self.queue if change.id not in ids)
        self.superseded = tuple(item for item in self.superseded if item.change_id not in ids)

    # controls

    def check_held(self) -> None:
        """Refuse to resume a model that is not paused."""
        if self.held is None:
            msg = f"{self.model} is not paused"
            raise ApplicationError(msg, type="Conflict", non_retryable=True)

    def meant(self, asked: ControlAsked) -> QueuedChange | None:
        """Return the change that an abort means: the first passed one that can be aborted, else the running one."""
        passed = (change for change in self.passed if change.kind not in URGENT or change.id == asked.waiting)
        return next(passed, self.running)

    def check_running(self, asked: ControlAsked) -> None:
        """Refuse to abort a rollback (a publish moves forward instead), or a retirement that waits for nothing.

        It always completes.
        """
        meant = self.meant(asked)
        if meant is None or (meant.kind in URGENT and meant.id != asked.waiting):
            what = "nothing" if meant is None else f"a {meant.kind}"
            msg = f"{what} of {self.model} runs: there is nothing to abort"
            raise ApplicationError(msg, type="Conflict", non_retryable=True)

    def answer(self, action: ControlAction, message: str) -> ControlAnswer:
        """Return the answer to a control of the running change."""
        change_id = self.running.id if self.running else None
        return ControlAnswer(model=self.model, action=action, change_id=change_id, message=message)

    # the next run of the entity, and the Web UI

    def build_input(self, *, looks_again: bool) -> ModelEntityInput:
        """Return the input of the entity that continues as new."""
        return ModelEntityInput(
            model=self.model,
            queue=self.queue,
            recent=self.recent,
            serving_generation=self.serving,
            held=self.held,
            turned=self.turned,
            rebuilt=True,
            begun=self.begun,
            superseded=(*self.unmarked, *self.superseded),
            told_newer=self.told_newer,
            stops=tuple(StopAsked(change_id=change, reason=why) for change, why in self.stop_reasons.items()),
            retired=self.retired,
            passing=tuple(sorted(self.tracked_ids.intersection(self.passing))),
            told_hold=tuple(ToldHold(change_id=told, held=held) for told, held in self.told_hold.items()),
            passed_ids=tuple(passed.id for passed in self.passed),
            looks_again=looks_again,
        )

    @property
    def stage(self) -> str:
        """The kind of the running change, or `paused` or `idle`."""
        idle = "paused" if self.held else "idle"
        return self.running.kind.value if self.running else idle

    def describe(self) -> str:
        """Return the state as Markdown."""
        running = self.running
        doing = f"{running.kind}{of_generation(running.generation)} (`{running.id}`)" if running else "nothing to do"
        waiting = "".join(
            f"\n- {change.kind}{of_generation(change.generation)} (`{change.id}`)" for change in self.queue
        )
        doing = f"paused {self.held.text}; {doing}" if self.held else doing
        serving = f"\n\nServing: generation {self.serving}" if self.serving else ""
        return f"**{self.model}**: {doing}" + (f"\n\nWaiting:{waiting}" if waiting else "") + serving


def of_generation(generation: int | None) -> str:
    """Return ` of generation 3`, or an empty text."""
    return f" of generation {generation}" if generation is not None else ""


def _in_order(changes: Iterable[OpenChange]) -> list[OpenChange]:
    """Order changes that have begun: first the one that moves the model, then those that may pass others."""
    return sorted(changes, key=lambda item: (not item.moves, item.change.kind not in PASSES_RETIREMENT))


def _pair(found: SupersededEntry) -> SupersededChange:
    return SupersededChange(change_id=found.change.id, by=found.by.id)
