"""Collects from the regions when each API key last requested predictions, and stores it: the API runs it.

A lost report is no error: the next one has the same time or a later one. No request to a gateway waits for it.
"""

import threading
from concurrent.futures import Future
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Final, Protocol

import structlog

from ipnext.errors import IPnextError
from ipnext.model.access.predictions import KeyUseReport
from ipnext.platform.region_poller import RegionPoller
from ipnext.store.store import Store

ASK_SECONDS: Final = 10.0
"""Interval of the reports of a region."""
NOTED_EVERY_SECONDS: Final = 60.0
"""Interval at which the use of a constantly used key is stored."""
_MOST_THREADS: Final = 8


class KeyUseRegions(Protocol):
    """The operations of the infrastructure that a collector uses."""

    def regions(self) -> tuple[str, ...]:
        """Return the names of the regions."""

    def key_uses(self, region: str) -> KeyUseReport:
        """Return when keys were last used there. Raises Unavailable."""


class KeyUseCollector:
    """Reads reports and stores the newest use of each key."""

    def __init__(self, store: Store, infrastructure: KeyUseRegions) -> None:
        self._store, self._infrastructure = store, infrastructure
        self._noted: dict[str, float] = {}
        """Uses that this process stored last: a report without news begins no unit of work."""
        self._lock = threading.Lock()
        self._under_way: set[str] = set()
        self._poller = RegionPoller("key-uses", self.look, every_seconds=ASK_SECONDS, threads=_MOST_THREADS)

    def running(self) -> AbstractContextManager[None]:
        """Collect in the background while the context is open."""
        return self._poller.running()

    def close(self) -> None:
        """Begin no collection any more."""
        self._poller.close()

    def look(self) -> list[Future[None]]:
        """Begin to collect from every region without a collection under way."""
        free = [region for region in self._infrastructure.regions() if region not in self._under_way]
        self._under_way.update(free)
        return [self._poller.submit(self._collect, region) for region in free]

    def _collect(self, region: str) -> None:
        try:
            self._note(self._infrastructure.key_uses(region))
        except IPnextError as error:
            structlog.get_logger().info("key_uses_not_collected", region=region, error=error.message)
        except Exception:  # noqa: BLE001 - the edge of the thread: logged, and tried again
            structlog.get_logger().exception("key_uses_failed", region=region)
        finally:
            self._under_way.discard(region)

    def _note(self, report: KeyUseReport) -> None:
        with self._lock:
            later = {k: at for k, at in report.uses.items() if at >= self._noted.get(k, 0.0) + NOTED_EVERY_SECONDS}
            if later:
                with self._store.read() as unit:  # a region may report what it likes
                    known = unit.known_keys(later)
                later = {key: at for key, at in later.items() if key in known}
            if not later:
                return
            now = datetime.now(UTC)
            with self._store.begin_free(()) as unit:
                for key, at in later.items():
                    unit.touch_key(key, min(now, datetime.fromtimestamp(at, UTC)))
            self._noted |= later
