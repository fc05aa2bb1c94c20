"""The stored progress of a transition."""

from typing import Any

from ipnext.model.planning.transition import TransitionState
from tests.workflows.simulation.runs.activity_attempts import Attempt

from .wave import Wave


def begin_step(world: Any, wave: Wave) -> None:
    """Write down that a step of a wave is under way."""
    wave.moving.rests, wave.moving.state = False, TransitionState.RUNNING
    _begin_to_undo(wave)
    if not wave.back:
        world.invariants.changes.check_mover(wave.model)


def _begin_to_undo(wave: Wave) -> None:
    if wave.back:
        wave.moving.waves_done = min(wave.moving.waves_done, wave.index)


def write_progress(wave: Wave) -> None:
    """Write down that a wave is done, or undone."""
    moving = wave.moving
    if wave.back:
        if wave.last:
            moving.state = TransitionState.ROLLED_BACK
        else:
            moving.waves_done = min(moving.waves_done, max(wave.index - 1, 0))
        return
    moving.waves_done = max(wave.index + 1, moving.waves_done)
    moving.state = TransitionState.DONE if wave.last else TransitionState.RUNNING
    moving.rests = not wave.last


def record_rest(wave: Wave, attempt: Attempt, *, rests: bool) -> None:
    """Write down whether regions hold now what is stored."""
    attempt.check()
    wave.moving.rests = rests and not wave.back
