"""I4 and I6: the order of changes, and their ends."""

from typing import Any

from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.status import Reason
from tests.workflows.simulation.journal import UNDER_WAY
from tests.workflows.simulation.runs.activity_attempts import HEARTBEAT_SECONDS, Limits

from .excuses import Excuses
from .report import Violated

LONGEST_QUEUE = 1
"""Publishes of one model that may wait."""


class Changes:
    """The changes of all models."""

    def __init__(self, world: Any, excuses: Excuses) -> None:
        self.world, self.excuses = world, excuses
        self.published: dict[str, int] = {}
        self.stopped_by_loss: set[str] = set()
        """Changes that were stopped for a lost region."""

    def check_mover(self, model: str) -> None:
        """No two transitions of a model are open."""
        open_ones = [m.id for m in self.world.journal.records[model].transitions if m.state in UNDER_WAY]
        if len(open_ones) > 1:
            raise Violated("one mover", f"{' and '.join(open_ones)} move {model} at the same time")

    def check_superseded(self, change: Any) -> None:
        """I4: a run gives way only to what brings its own change, too."""
        kinds = {ChangeKind.PUBLISH, ChangeKind.ROLLBACK, ChangeKind.RETIRE} | ({change.kind} & {ChangeKind.APPLY})
        newer = [c for c in self.world.journal.records[change.model].changes if c.sequence > change.sequence]
        if not any(c.kind in kinds for c in newer):
            raise Violated("I4 lost", f"{change.id} gave way, and nothing newer brings it")

    def check_queue(self, model: str, queue: Any) -> None:
        """I6: publishes do not pile up, and what waits is in order."""
        waiting = [change for change in queue if change.kind is ChangeKind.PUBLISH]
        if len(waiting) > LONGEST_QUEUE:
            raise Violated("I6 queue", f"{model}: {len(waiting)} publishes wait")
        if [change.sequence for change in queue] != sorted(change.sequence for change in queue):
            raise Violated("I4 order", f"{model}: what waits is not in order")

    def check_end(self, change: Any, state: ChangeState) -> None:
        """I4: a superseded change has a newer one. One that is done has cleared up what was left behind."""
        if state is ChangeState.DONE and change.kind is not ChangeKind.RETIRE:
            self.excuses.left_behind.discard(change.model)
        if state is ChangeState.SUPERSEDED and change.by is not None and change.by <= change.sequence:
            raise Violated("I4 order", f"{change.id} is superseded by the older {change.by}")

    def check_publish(self, change: Any, generation: int) -> None:
        """I4: generations become serving in rising order, but for rollbacks."""
        if change.kind is not ChangeKind.PUBLISH:
            return
        newest = self.published.get(change.model, 0)
        if generation <= newest:
            raise Violated("I4 order", f"{change.model}: generation {generation} serves after {newest}")
        self.published[change.model] = generation

    def check_unchanged(self, change: Any, generation: int) -> None:
        """I4: a move or a repair ends on the generation that serves, so it undoes no publish."""
        serving = self.world.journal.records[change.model].serving
        if generation != serving:
            raise Violated("I4 undone", f"{change.id} moved {change.model} to {generation}; {serving} serves")

    def check_deadline(self, name: str, seconds: float, limits: Limits) -> None:
        """I6: no wait beyond its deadline; one attempt may have begun just before."""
        if limits.all is not None and seconds > limits.all + 2 * HEARTBEAT_SECONDS:
            raise Violated("I6 deadline", f"{name} took {seconds:g} s of {limits.all:g}")

    def check_newest(self, model: str, record: Any) -> None:
        """I4: the newest of what was asked is never given up for something older."""
        asked = [c for c in record.changes if c.kind in {ChangeKind.PUBLISH, ChangeKind.ROLLBACK, ChangeKind.RETIRE}]
        if asked and asked[-1].state is ChangeState.SUPERSEDED and asked[-1].id not in self.world.aborted:
            raise Violated("I4 lost", f"{asked[-1].id} is the newest of {model}, and superseded")
        runs = self.world.runs
        stopped = (
            asked and asked[-1].id in self.stopped_by_loss and runs[asked[-1].id].reason is Reason.REGION_UNREACHABLE
        )
        if self.world.ends and stopped:
            raise Violated("I4 lost", f"{asked[-1].id} is the newest of {model}, and was given up for a lost region")
