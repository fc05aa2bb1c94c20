"""Prefetch: announces a change's snapshots to regions, which fetch them during its validation and planning."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import BoundedSemaphore

from ipnext.errors import IPnextError
from ipnext.infra.port import Infrastructure
from ipnext.store.store import Store

MOST_AT_ONCE = 64
"""Calls in progress or waiting. Snapshots beyond it are fetched by the hosts that load them."""


class SnapshotPrefetcher:
    """Prefetches snapshots; needs the store and the infrastructure. Nothing waits for it, and it fails nothing."""

    def __init__(self, store: Store, infrastructure: Infrastructure) -> None:
        self._store = store
        self._infrastructure = infrastructure
        self._room = BoundedSemaphore(MOST_AT_ONCE)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="prefetch")

    def begin(self, model: str, generation: int) -> None:
        """Prefetch in the regions that the model runs in now: the new generation will mostly run there, too."""
        with self._store.read() as repository:
            regions = {found.key.region for found in repository.deployments(model)}
            parts = repository.generation(model, generation).snapshots
            uris = tuple(repository.snapshot(model, part, number).uri for part, number in parts.items())
        for region in sorted(regions):
            if self._room.acquire(blocking=False):
                self._threads.submit(self._tell, region, uris)

    def _tell(self, region: str, uris: Iterable[str]) -> None:
        try:
            self._infrastructure.prefetch(region, tuple(uris))
        except IPnextError:
            return  # the region's hosts fetch the snapshots when they load them
        finally:
            self._room.release()
