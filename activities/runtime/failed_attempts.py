"""Failed attempts at a step, recorded with the step's change while the step is tried again.

A step is tried again by its run or by Temporal, in whose history the failure would stay. With the change it is shown
by the condition `Progressing`, by `ipnext explain` and by an event.
"""

import functools
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from temporalio.exceptions import TemporalError

from activities.runtime.fence import still_ours
from ipnext.errors import Conflict, FenceLost, IPnextError, Unavailable
from ipnext.model.echoes import cut_text
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.changes.transition_run import WaveInput
from ipnext.model.lifecycle.status import Reason, reason_of
from ipnext.store.repository import Repository
from ipnext.store.store import Store

R = TypeVar("R")
S = TypeVar("S", bound=StageInput | WaveInput)

EVENT = "StepRetried"
"""Kind of the event that repeats a failure."""

MOST_EVENTS = 10
"""Of these events among the newest LOOKED_AT of a model: a message with a figure in it is new each time."""

LOOKED_AT = 50

_RETRIED = " is tried again: "


class Deferred(Unavailable):
    """Work that an activity of several steps leaves to that of the step: no failure."""


def of_a_step(method: Callable[[Any, S], R]) -> Callable[[Any, S], R]:
    """Decorate an activity of a change: its change tells a failed attempt until the next one succeeds.

    The object has a `_store`. For an activity of a wave the decorator goes inside of `of_a_wave`.
    """
    name = method.__name__.replace("_", " ")

    @functools.wraps(method)
    def wrapper(self: Any, step: S) -> R:
        try:
            result = method(self, step)
        except (Deferred, FenceLost, TemporalError):
            raise
        except Exception as error:
            if _is_retried(error):
                _note(self._store, step, name, error)
            raise
        _clear(self._store, step)
        return result

    return wrapper


def _is_retried(error: Exception) -> bool:
    return not isinstance(error, IPnextError) or error.retryable or isinstance(error, Conflict)


def _note(store: Store, step: StageInput | WaveInput, name: str, error: Exception) -> None:
    """Record a failure as far as the database answers. The event is written when the step fails for the second time."""
    text = error.message if isinstance(error, IPnextError) else f"{type(error).__name__}: {error}"
    begin = name + (" of the revert" if isinstance(step, WaveInput) and step.back else "") + _RETRIED
    message = cut_text(begin + text)
    code = error.code if isinstance(error, IPnextError) else None
    reason = Reason.UNAVAILABLE if isinstance(error, OSError) else reason_of(code)
    with suppress(IPnextError), store.begin(step.model) as repository:
        still_ours(repository)
        change = repository.change(_change_id(step))
        if change.state is not ChangeState.RUNNING or change.reason is Reason.FROZEN:
            return
        is_repeated = change.message.startswith(begin)
        repository.update_change(change.id, state=change.state, reason=reason, message=message)
        if is_repeated and _is_new(repository, step.model, message):
            repository.add_event(step.model, EVENT, message)


def _is_new(repository: Repository, model: str, message: str) -> bool:
    """Return whether the newest events lack the message. Digits don't count."""
    written = [event.message for event in repository.events(model, limit=LOOKED_AT) if event.kind == EVENT]
    return len(written) < MOST_EVENTS and _shape(message) not in {_shape(each) for each in written}


def _shape(message: str) -> str:
    return re.sub(r"\d+", "#", message)


def _clear(store: Store, step: StageInput | WaveInput) -> None:
    """Record that the step no longer fails, as far as the database answers.

    The first attempt of a wave forward has nothing to clear: no step before it has failed and ended.
    """
    if isinstance(step, WaveInput) and not (step.waited_seconds > 0 or step.back):
        return
    with suppress(IPnextError):
        with store.read() as reading:
            change = reading.change(_change_id(step))
        if change.state is not ChangeState.RUNNING or _RETRIED not in change.message:
            return
        with store.begin(step.model) as repository:
            still_ours(repository)
            repository.update_change(change.id, state=change.state, reason=Reason.PROGRESSING, message="")


def _change_id(step: StageInput | WaveInput) -> str:
    """Return the id of the step's change. A transition has the id of its change."""
    return step.transition_id if isinstance(step, WaveInput) else step.change_id
