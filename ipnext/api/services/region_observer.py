"""Reports of the regions, read at once, with a short wait: a region that hangs is a fact, never an error.

Callers: status, regions, metrics, the page. Observations are shared for a moment, so that many readers cost one call
for each region, and a region that hangs occupies one thread, however many requests there are. A report is indexed once
(`States`), and the index is kept until a region's report changes.
"""

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait

import structlog

from ipnext.api.services.region_states import States
from ipnext.errors import IPnextError
from ipnext.infra.port import Infrastructure
from ipnext.model.deployment.region_state import RegionState

REST = 4
"""An observation is kept for this multiple of its duration, so that observing a large fleet leaves time for other
work."""

LONGEST_KEEP = 16
"""Limit of an observation's age from REST, as a multiple of `keep_seconds`."""


class RegionObserver:
    """Observes all regions in parallel. `timeout_seconds` limits the wait, `keep_seconds` the age of an answer."""

    def __init__(
        self, infrastructure: Infrastructure, *, timeout_seconds: float = 1.0, keep_seconds: float = 0.25
    ) -> None:
        self._infrastructure = infrastructure
        self._timeout = timeout_seconds
        self._keep = keep_seconds
        self._pool = ThreadPoolExecutor(max_workers=32, thread_name_prefix="observe")
        self._lock = threading.Lock()
        self._asked: dict[str, tuple[float, Future[RegionState]]] = {}
        self._took: dict[str, float] = {}
        self._states = States({})

    def states(self) -> States:
        """Return each region's report; None if it did not answer in time. A region's failure never raises.

        The same object as before if no region's report has changed.
        """
        regions = self._infrastructure.regions()
        asked = {region: self._ask(region) for region in regions}
        now = time.monotonic()
        hurried = [future for at, future in asked.values() if now - at >= self._timeout]
        left = max((self._timeout - (now - at) for at, _ in asked.values()), default=0.0)
        wait([future for _, future in asked.values() if future not in hurried], timeout=max(0.0, left))
        return self._index_states({region: self._answer(region, future) for region, (_, future) in asked.items()})

    def close(self) -> None:
        """Stop observing; does not wait for a region that hangs."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _index_states(self, reports: Mapping[str, RegionState | None]) -> States:
        before = self._states
        if before.same_as(reports):
            return before
        found = States(reports, revision=before.revision + 1)
        with self._lock:
            found.revision = max(found.revision, self._states.revision + 1)
            self._states = found
        return found

    def _ask(self, region: str) -> tuple[float, Future[RegionState]]:
        with self._lock:
            at, future = self._asked.get(region, (0.0, None))
            if future is not None and (not future.done() or time.monotonic() - at < self._keep_seconds()):
                return at, future
            future = self._pool.submit(self._observe, region)
            self._asked[region] = (time.monotonic(), future)
            return self._asked[region]

    def _keep_seconds(self) -> float:
        return min(max(self._keep, REST * sum(self._took.values())), LONGEST_KEEP * self._keep)

    def _observe(self, region: str) -> RegionState:
        began = time.monotonic()
        found = self._infrastructure.observe(region)
        self._took = {**self._took, region: time.monotonic() - began}
        return found

    def _answer(self, region: str, future: Future[RegionState]) -> RegionState | None:
        if not future.done() or future.cancelled():
            return None
        error = future.exception()
        if error is None:
            return future.result()
        if not isinstance(error, IPnextError):
            structlog.get_logger().error("observation_failed", region=region, error=repr(error))
        return None
