"""Removes unreferenced items from the artifact store, after releasing snapshots that nothing can need any more.

A worker runs it on a schedule, and the API for `ipnext artifacts collect`. `ipnext.store.registry.artifacts` explains
why a publish never loses a blob that it is about to name.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final, TypeVar

from ipnext.artifacts.port import ArtifactStore, StoredItem
from ipnext.model.access.artifact_use import CollectedItem, CollectionView, Kind
from ipnext.settings import PlatformSettings
from ipnext.store.store import Store

REMOVED_AT_ONCE: Final = 50
"""Blobs of one unit of work, which blocks uploads and publishes while it lasts."""
SHOWN: Final = 100
"""Items of an answer."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Grace:
    """Retention of unneeded items."""

    unused: timedelta
    unserved: timedelta
    retired: timedelta

    @classmethod
    def of(cls, settings: PlatformSettings) -> "Grace":
        """Take the values from the settings."""
        return cls(
            timedelta(hours=settings.artifact_grace_hours),
            timedelta(days=settings.artifact_unserved_days),
            timedelta(days=settings.artifact_retired_days),
        )


DEFAULT_GRACE: Final = Grace(timedelta(hours=24), timedelta(days=7), timedelta(days=30))
"""The defaults of the settings."""


@dataclass(slots=True)
class _Tally:
    """Counts of one collection so far."""

    blobs: int = 0
    size_bytes: int = 0
    snapshots: int = 0
    kept: int = 0
    items: list[CollectedItem] = field(default_factory=list)

    def add(self, item: CollectedItem) -> None:
        if item.kind == "blob":
            self.blobs, self.size_bytes = self.blobs + 1, self.size_bytes + item.size_bytes
        self.snapshots += item.kind == "snapshot"
        if len(self.items) < SHOWN:
            self.items.append(item)


class Collection:
    """One pass over database and artifact store."""

    def __init__(
        self,
        store: Store,
        artifacts: ArtifactStore,
        grace: Grace,
        *,
        dry_run: bool = False,
        beat: Callable[[str], None] = lambda _: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`beat` is called periodically with the present step."""
        self._store = store
        self._artifacts = artifacts
        self._grace = grace
        self._dry_run = dry_run
        self._beat = beat
        self._began = clock()
        self._unused_since = self._began - grace.unused
        self._tally = _Tally()
        self._listed = set[str]()
        """Digests in the artifact store, as listed."""

    def run(self) -> CollectionView:
        """Collect, or report the removals of a dry run. Raises Unavailable."""
        self._give_snapshots_free()
        self._remove_unnamed()
        if not self._dry_run:
            self._forget_absent()
            self._artifacts.remove_leftovers(older_than_seconds=self._grace.unused.total_seconds())
        tally = self._tally
        return CollectionView(
            dry_run=self._dry_run,
            blobs=tally.blobs,
            size_bytes=tally.size_bytes,
            snapshots=tally.snapshots,
            kept_blobs=tally.kept,
            unused_since=self._unused_since,
            items=tuple(tally.items),
        )

    def _give_snapshots_free(self) -> None:
        """Release snapshots model by model, so that no unit is long."""
        with self._store.read() as unit:
            models = unit.models_with_snapshots()
        for model in models:
            self._beat(f"looking at {model}")
            with self._store.read() as unit:
                unwanted = unit.unwanted_snapshots(model, **self._ages)
            if unwanted and not self._dry_run:
                with self._store.begin(model) as unit:
                    unwanted = unit.unwanted_snapshots(model, **self._ages)
                    unit.give_free(model, unwanted)
            for (part, number), why in unwanted.items():
                self._tally.add(CollectedItem(kind="snapshot", name=f"{model}/{part}/{number}", reason=why))

    @property
    def _ages(self) -> dict[str, datetime]:
        return {
            "retired_before": self._began - self._grace.retired,
            "made_before": self._began - self._grace.unserved,
        }

    def _remove_unnamed(self) -> None:
        """Remove manifests before blobs: a manifest means that all of its blobs exist."""
        with self._store.read() as unit:
            kept = frozenset(unit.kept_artifacts())
            used = unit.artifacts_in_use(self._unused_since)
        self._beat("listing the artifact store")
        blobs: list[StoredItem] = []
        manifests: list[StoredItem] = []
        for item in self._artifacts.items():
            self._listed.add(item.digest)
            if item.digest in kept or item.digest in used or item.changed_at >= self._unused_since:
                self._tally.kept += not item.is_manifest
            else:
                (manifests if item.is_manifest else blobs).append(item)
        for some in _batches((*manifests, *blobs)):
            self._beat(f"{self._tally.blobs} blobs removed")
            self._remove(some)

    def _remove(self, items: Sequence[StoredItem]) -> None:
        """Remove items within a unit that blocks new users of them; items that were used since the listing stay."""
        if self._dry_run:
            free = frozenset(item.digest for item in items)
        else:
            with self._store.begin_free(()) as unit:
                digests = [item.digest for item in items]
                free = unit.free_artifacts(digests, unused_since=self._unused_since, began=self._began)
                for item in items:
                    if item.digest in free:
                        self._artifacts.remove(item)
                unit.forget_artifacts(free)
        for item in items:
            if item.digest in free:
                kind: Kind = "manifest" if item.is_manifest else "blob"
                self._tally.add(
                    CollectedItem(
                        kind=kind, name=item.digest, size_bytes=item.size_bytes, reason="no snapshot names it"
                    )
                )
            else:
                self._tally.kept += not item.is_manifest

    def _forget_absent(self) -> None:
        """Forget uploads that ended with their server, and items that others removed: they count for no owner."""
        with self._store.read() as unit:
            unused = unit.unused_artifacts(self._unused_since) - frozenset(unit.kept_artifacts())
        for some in _batches(sorted(unused - self._listed)):
            with self._store.begin_free(()) as unit:
                unit.forget_artifacts(unit.free_artifacts(some, unused_since=self._unused_since, began=self._began))


def _batches(items: Iterable[T]) -> Iterator[Sequence[T]]:
    left = iter(items)
    while some := tuple(islice(left, REMOVED_AT_ONCE)):
        yield some
