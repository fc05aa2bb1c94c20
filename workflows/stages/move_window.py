"""A window over the models of a replan: starts the next moves as earlier ones end, and reports the progress.

Part of workflow `replan`. The models to move, and a pause of the moves, are in the store: continue-as-new carries one
small value, however many models there are.
"""

from collections.abc import Sequence

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from ipnext.model.lifecycle.replans.moves import MoverState, MoveTurn, ReplanProgress
    from workflows import policies
    from workflows.errors import raise_if_cancelled
    from workflows.policies import perform

NAMED = 3
"""Troubles that the end's message names at most."""


class Mover:
    """Moves models to their placements in a plan, at most `window` at a time."""

    def __init__(self, plan_id: str, window: int, state: MoverState, *, wait: bool) -> None:
        self._plan_id = plan_id
        self._window = window
        self._wait = wait
        self.state = state
        self.repair_waits = False
        """True if the repair of a disaster waits for this replan's end, by the last turn."""
        self._turns = 0

    @property
    def is_finished(self) -> bool:
        """True if no move is left to start, and no model moves by itself: paused ones continue when they may."""
        progress = self.state.progress
        return not progress.busy and (not progress.waiting or bool(self.state.cancelled))

    @property
    def idle(self) -> bool:
        """True if moves are paused, and none is in progress."""
        progress = self.state.progress
        return bool(progress.paused) and not progress.busy and not self.state.cancelled

    @property
    def busy(self) -> bool:
        """True if models move by themselves: started, not ended, not paused."""
        return self.state.progress.busy > 0

    def cancel(self, why: str) -> None:
        """Start no further move at all."""
        self._change(cancelled=why)

    async def turn(self, *, asking: bool = True) -> None:
        """Check once, start as many moves as there is room for, and wait a moment."""
        began, state = workflow.now(), self.state
        asking = asking and not state.cancelled
        turn = MoveTurn(
            plan_id=self._plan_id,
            window=self._window,
            asking=asking,
            wait=self._wait,
            patience_seconds=policies.RUNNING_MOVES_PATIENCE.total_seconds(),
            busy_seconds=state.busy_seconds,
        )
        seen = state.progress
        answer = await perform(policies.MOVE_MODELS, turn, f"{seen.moving} move, {seen.waiting} wait")
        self.repair_waits = answer.repair_waits
        self._change(progress=answer.progress)
        self._turns += 1
        if not self.is_finished and not self.idle:
            raise_if_cancelled()
            soon = self._turns <= policies.MOVER_LOOKS_SOON
            await workflow.sleep(policies.MOVER_LOOK_SOON if soon else policies.MOVER_LOOK, summary="models move")
        if asking and not answer.progress.paused:
            self._change(busy_seconds=self.state.busy_seconds + (workflow.now() - began).total_seconds())

    def progress(self) -> ReplanProgress:
        """Return the progress."""
        return self.state.progress

    def describe_left(self) -> str:
        """Describe the models that are left at the end; empty if there are none."""
        state, progress, told = self.state, self.state.progress, list[str]()
        if state.cancelled:
            told.append(f"{state.cancelled}: {progress.waiting} models stay where they are until the next replan")
        if progress.held and not progress.waiting:
            told.append(f"held, and moving when they may: {_some(progress.held_models, progress.held)}")
        if progress.failed:
            shown = progress.troubles[:NAMED]
            told.append("; ".join(f"{trouble.model} {trouble.message}" for trouble in shown))
            more = progress.failed - len(shown)
            told += [f"{more} models more did not come through"] if more > 0 else []
        return "; ".join(told)

    def table(self) -> str:
        """Return the progress as markdown."""
        now = self.progress()
        lines = ["| | models | |", "|---|---|---|", f"| moved | {now.moved} of {now.total} | {now.percent:.0f} % |"]
        lines.append(f"| moving now | {now.busy} | {_some(now.moving_models, now.busy)} |")
        if now.held:
            lines.append(f"| held (frozen or paused) | {now.held} | {_some(now.held_models, now.held)} |")
        lines.append(f"| waiting | {now.waiting} | {now.per_minute:g} a minute |")
        lines.append(f"| failed | {now.failed} | |")
        lines += [f"| {trouble.model} | | {trouble.message.replace('|', ' ')} |" for trouble in now.troubles]
        paused = f"**paused**: {now.paused}\n\n" if now.paused else ""
        return paused + "\n".join(lines)

    def _change(self, **changes: object) -> None:
        self.state = self.state.model_copy(update=changes)


def _some(models: Sequence[str], count: int) -> str:
    more = count - len(models)
    return ", ".join(models) + (f" and {more} more" if more > 0 else "")
