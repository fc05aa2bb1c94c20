"""What the regions report, read at once, with a short wait: a region that hangs is a fact, never an error.

Callers: status, regions, metrics, the page. Observations are shared for a moment, so that many readers cost one call
for each region, and a region that hangs holds one thread, however many ask.
"""

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait

import structlog

from ipnext.errors import IPnextError
from ipnext.infra.port import Infrastructure
from ipnext.model.deployment import RegionState


class RegionObserver:
    """Observes all regions in parallel. `timeout_seconds` bounds the wait, `keep_seconds` the age of an answer."""

    def __init__(
        self, infrastructure: Infrastructure, *, timeout_seconds: float = 1.0, keep_seconds: float = 0.25
    ) -> None:
        self._infrastructure = infrastructure
        self._timeout = timeout_seconds
        self._keep = keep_seconds
        self._pool = ThreadPoolExecutor(max_workers=32, thread_name_prefix="observe")
        self._lock = threading.Lock()
        self._asked: dict[str, tuple[float, Future[RegionState]]] = {}

    def states(self) -> Mapping[str, RegionState | None]:
        """Region -> what it reports; None where it did not answer in time. Never raises for a region's sake."""
        futures = {region: self._ask(region) for region in self._infrastructure.regions()}
        wait(futures.values(), timeout=self._timeout)
        return {region: self._answer(region, future) for region, future in futures.items()}

    def close(self) -> None:
        """Stop asking; does not wait for a region that hangs."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, region: str) -> Future[RegionState]:
        with self._lock:
            at, future = self._asked.get(region, (0.0, None))
            if future is not None and (not future.done() or time.monotonic() - at < self._keep):
                return future
            future = self._pool.submit(self._infrastructure.observe, region)
            self._asked[region] = (time.monotonic(), future)
            return future

    def _answer(self, region: str, future: Future[RegionState]) -> RegionState | None:
        if not future.done() or future.cancelled():
            return None
        error = future.exception()
        if error is None:
            return future.result()
        if not isinstance(error, IPnextError):
            structlog.get_logger().error("observation_failed", region=region, error=repr(error))
        return None
