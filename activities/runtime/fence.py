"""Fencing: a run that no longer owns its model's transition writes nothing more, to the infrastructure or to the store.

`activities.runtime.lease` covers attempts of one run, this module covers runs: one that was terminated may have an
activity in progress while another run takes its transition over. The fencing token is in the store, and is compared in
the unit of work that writes, and before each call that changes the infrastructure.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from temporalio import activity

from activities.runtime import lease as pulse
from ipnext.errors import FenceLost
from ipnext.model.lifecycle.changes.transition_run import WaveInput
from ipnext.store.repository import Repository
from ipnext.store.store import Store

R = TypeVar("R")


@dataclass(frozen=True)
class _Fence:
    store: Store
    change_id: str
    token: int


_FENCE: ContextVar[_Fence | None] = ContextVar("fence", default=None)


@contextmanager
def fencing(store: Store, change_id: str, token: int = 0) -> Iterator[None]:
    """Let `still_ours` compare the token of a change inside."""
    set_before = _FENCE.set(_Fence(store, change_id, token))
    try:
        yield
    finally:
        _FENCE.reset(set_before)


def of_a_wave(method: Callable[[Any, WaveInput], R]) -> Callable[[Any, WaveInput], R]:
    """Decorate an activity of a wave: it writes only while its run owns the transition. The object has a `_store`."""

    @functools.wraps(method)
    def wrapper(self: Any, wave: WaveInput) -> R:
        with fencing(self._store, wave.transition_id, wave.fence):
            return method(self, wave)

    return wrapper


def still_ours(repository: Repository | None = None) -> None:
    """Check before each write that this attempt and its run may write; inside a unit of work, pass its repository.

    Raises:
        Unavailable: another worker may be at this activity (`activities.runtime.lease`).
        FenceLost: the run has ended, or lost its transition to another run.
    """
    pulse.still_ours()
    if activity.in_activity() and (details := activity.cancellation_details()) is not None and details.not_found:
        msg = "the run of this activity has ended; it writes nothing more"
        raise FenceLost(msg)
    fence = _FENCE.get()
    if fence is None:
        return
    if repository is not None:
        repository.check_fence(fence.change_id, fence.token)
        return
    with fence.store.read() as reading:
        reading.check_fence(fence.change_id, fence.token)
