"""A window over the models of a replan: asks the next ones as those before end, can be paused, and says how far it is.

Part of workflow `replan`. All it remembers is one value, which goes along at continue-as-new.
"""

from collections.abc import Sequence

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from ipnext.model.moving import (
        MoveAsked,
        MoverState,
        MoveSeen,
        MoveTrouble,
        MoveTurn,
        ReplanProgress,
    )
    from workflows import policies
    from workflows.policies import perform

SHOWN = 10
"""Models that the page names of each kind at most."""

NAMED = 3
"""Troubles that the end's message names at most."""

CANDIDATES = 4
"""So many times the window's room are looked at for models that have supply now."""


class Mover:
    """Moves models to where a plan has them, at most `window` at a time."""

    def __init__(self, plan_id: str, window: int, state: MoverState, *, wait: bool) -> None:
        self._plan_id = plan_id
        self._window = window
        self._wait = wait
        self.state = state
        self.repair_waits = False
        """Whether the repair of a disaster waits for this replan's end, by the last look."""
        self._turns = 0
        self._told: ReplanProgress | None = None

    @property
    def finished(self) -> bool:
        """Nothing to ask, and no model left that moves by itself: held ones go on when they may."""
        return not self.busy and (not self.state.waiting or bool(self.state.cancelled))

    @property
    def idle(self) -> bool:
        """Paused, nothing moves, and the store knows it."""
        paused = bool(self.state.paused) and not self.busy and not self.state.cancelled
        return paused and self._told == self.progress()

    @property
    def busy(self) -> list[MoveAsked]:
        """Those that move by themselves: asked, not ended, not held."""
        return [asked for asked in self.state.moving if not asked.held]

    def pause(self, why: str) -> None:
        """Ask no further model until it is resumed."""
        self._change(paused=why)

    def resume(self) -> None:
        """Go on."""
        self._change(paused="")

    def cancel(self, why: str) -> None:
        """Ask no further model at all."""
        self._change(cancelled=why, paused="")

    async def turn(self, *, asking: bool = True) -> None:
        """Look once, ask those there is room for, and wait a moment."""
        began = workflow.now()
        open_ = asking and not self.state.paused and not self.state.cancelled
        room = max(0, self._window - self._taking()) if open_ else 0
        turn = MoveTurn(
            plan_id=self._plan_id,
            moving=self.state.moving,
            candidates=self.state.waiting[: CANDIDATES * room],
            room=room,
            progress=self.progress(),
        )
        answer = await perform(policies.MOVE_MODELS, turn, f"{len(turn.moving)} move, room for {room} more")
        self._told, self.repair_waits = turn.progress, answer.repair_waits
        for seen in answer.seen:
            self._note(seen)
        self._turns += 1
        if not self.finished:
            soon = self._turns <= policies.MOVER_LOOKS_SOON
            await workflow.sleep(policies.MOVER_LOOK_SOON if soon else policies.MOVER_LOOK, summary="models move")
        if open_:
            self._change(busy_seconds=self.state.busy_seconds + (workflow.now() - began).total_seconds())

    def progress(self) -> ReplanProgress:
        """How far it is."""
        state = self.state
        total = state.moved + len(state.failed) + len(state.moving) + len(state.waiting)
        return ReplanProgress(
            total=total,
            moved=state.moved,
            moving=tuple(asked.model for asked in state.moving),
            held=tuple(asked.model for asked in state.moving if asked.held),
            waiting=len(state.waiting),
            failed=state.failed,
            paused=state.paused,
            per_minute=round(60 * state.moved / state.busy_seconds, 1) if state.busy_seconds > 0 else 0.0,
        )

    def left(self) -> str:
        """What is left at the end, in words; empty where nothing is."""
        state, told = self.state, list[str]()
        if state.cancelled:
            told.append(f"{state.cancelled}: {len(state.waiting)} models stay where they are until the next replan")
        held = [asked.model for asked in state.moving if asked.held]
        if held and not state.waiting:
            told.append(f"held, and moving when they may: {_some(held)}")
        if state.failed:
            told.append("; ".join(f"{trouble.model} {trouble.message}" for trouble in state.failed[:NAMED]))
            more = len(state.failed) - NAMED
            told += [f"{more} models more did not come through"] if more > 0 else []
        return "; ".join(told)

    def table(self) -> str:
        """The progress as markdown."""
        now = self.progress()
        lines = ["| | models | |", "|---|---|---|", f"| moved | {now.moved} of {now.total} | {now.percent:.0f} % |"]
        busy = [model for model in now.moving if model not in now.held]
        lines.append(f"| moving now | {len(busy)} | {_some(busy)} |")
        if now.held:
            lines.append(f"| held (frozen or paused) | {len(now.held)} | {_some(now.held)} |")
        lines.append(f"| waiting | {now.waiting} | {now.per_minute:g} a minute |")
        lines.append(f"| failed | {len(now.failed)} | |")
        lines += [f"| {trouble.model} | | {trouble.message.replace('|', ' ')} |" for trouble in now.failed[:SHOWN]]
        paused = f"**paused**: {now.paused}\n\n" if now.paused else ""
        return paused + "\n".join(lines)

    def _taking(self) -> int:
        """Models that take a place of the window: neither held nor slow."""
        long_ago = workflow.now().timestamp() - policies.RUNNING_MOVES_PATIENCE.total_seconds()
        return sum(asked.seconds > long_ago for asked in self.busy)

    def _note(self, seen: MoveSeen) -> None:
        state = self.state
        moving = tuple(asked for asked in state.moving if asked.model != seen.model)
        waiting = tuple(model for model in state.waiting if model != seen.model)
        if seen.state == "failed":
            trouble = MoveTrouble(model=seen.model, message=seen.message)
            self._change(moving=moving, waiting=waiting, failed=(*state.failed, trouble))
        elif seen.state == "moved" or not self._wait:
            self._change(moving=moving, waiting=waiting, moved=state.moved + 1)
        else:
            before = next((asked for asked in state.moving if asked.model == seen.model), None)
            since = before.seconds if before else workflow.now().timestamp()
            asked = MoveAsked(model=seen.model, change_id=seen.change_id, seconds=since, held=seen.state == "held")
            self._change(moving=(*moving, asked), waiting=waiting)

    def _change(self, **changes: object) -> None:
        self.state = self.state.model_copy(update=changes)


def _some(models: Sequence[str]) -> str:
    more = len(models) - SHOWN
    return ", ".join(models[:SHOWN]) + (f" and {more} more" if more > 0 else "")
