"""Repair of a host that differs from its agent's orders.

It has other snapshots than it was sent, or drains without an order.
"""

import time
from collections.abc import Iterable
from signal import SIGKILL, SIGTERM, Signals

from ipnext.infra.assignment import differs
from ipnext.infra.settings import AgentSettings
from ipnext.model.deployment.host_control import HostedSnapshot, HostFailure, HostHolds, HostState


class HostRepair:
    """Decides for one host, from each state that it reports."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._sent_at = float("-inf")
        self._agreed = True
        self._draining_since: float | None = None
        self._signalled = False

    def reset(self) -> None:
        """Start over: another process has replaced the host."""
        self._agreed, self._draining_since, self._signalled = True, None, False

    def must_send(self, state: HostState, sent: HostHolds, *, stamp: str = "") -> bool:
        """Return whether to send the holds again: at once if they were in sync before, else every `load_retry_seconds`.

        A host that reports holds of another stamp has applied those of another sender, whichever snapshots it has.
        """
        self._draining_since, self._signalled = None, False
        followed = state.stamped in (None, HostHolds(holds=(), stamp=stamp).stamp_digest)
        agreed, self._agreed = self._agreed, followed and not differs(state, sent)
        now = time.monotonic()
        if self._agreed or not (agreed or now - self._sent_at > self._settings.load_retry_seconds):
            return False
        self._sent_at = now
        return True

    def ending(self, *, idle: bool, drain_seconds: float) -> Signals | None:
        """Return the signal for a host that drains without an order.

        A host that was signalled elsewhere ends by itself. SIGTERM once it is `idle`, or after its drain; SIGKILL after
        the grace time.
        """
        now = time.monotonic()
        if self._draining_since is None:
            self._draining_since = now
        seconds = now - self._draining_since
        if seconds > drain_seconds + self._settings.grace_seconds:
            return SIGKILL
        if self._signalled or not ((idle and seconds > self._settings.settle_seconds) or seconds > drain_seconds):
            return None
        self._signalled = True
        return SIGTERM


class FailedLoads:
    """Failed loads of one host, including those being retried.

    An observation during a retry reports the failure too.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[str, int], HostFailure] = {}

    def reset(self) -> None:
        """Forget all failures: another process has replaced the host."""
        self._last = {}

    def see(self, state: HostState, wanted: Iterable[HostedSnapshot], coming: Iterable[HostedSnapshot]) -> None:
        """Keep the newest failure of each missing snapshot: `wanted` are to be ready, `coming` to be fetched."""
        self._last.update({(failure.part, failure.snapshot): failure for failure in state.failures})
        ready = {(held.part, held.snapshot) for held in state.ready}
        lacking = {(held.part, held.snapshot) for held in wanted} - ready
        lacking |= {(held.part, held.snapshot) for held in coming if held.digest not in state.fetched}
        self._last = {key: failure for key, failure in self._last.items() if key in lacking}

    @property
    def all(self) -> tuple[HostFailure, ...]:
        """All current failures."""
        return tuple(self._last.values())
