"""The run of one change: its state, the signals that it gets, and its stages by the kind of the change."""

from collections.abc import Callable, Generator, Sequence
from typing import Any

from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.status import Reason
from tests.workflows.simulation.clock import Process, Signal
from tests.workflows.simulation.journal import Change
from tests.workflows.simulation.terminations import terminate
from tests.workflows.simulation.transitions.walk import Command, Way
from workflows.entity import change_queue as ordering

from .activity_attempts import Attempt, AtWork, Limits, perform

Steps = Generator[Any, Any, Any]
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

    def is_frozen(self) -> bool:
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
