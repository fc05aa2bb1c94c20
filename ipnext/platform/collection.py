"""Collection by retention: snapshots, their bytes in the artifact store, and the history in the database.

A worker runs it on a schedule, and the API for `ipnext artifacts collect`. It writes in small units of work, and leaves
twice the time of the former one between two of them, so that a publish never waits for long.
`ipnext.store.registry.artifacts` explains why a publish never loses a blob that it is about to name.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, Self, TypeVar

from ipnext.artifacts.layout import snapshot_uri
from ipnext.artifacts.port import ArtifactStore, StoredItem
from ipnext.errors import ArtifactDigestMismatch, ArtifactMissing
from ipnext.model.access.artifact_use import CollectedClass, CollectedItem, CollectionView, Kind
from ipnext.model.registry.retention import Keep, SnapshotKeep, SnapshotRule, Unneeded
from ipnext.settings import PlatformSettings
from ipnext.store.changes.history import HistoryKind
from ipnext.store.registry.artifacts import Place
from ipnext.store.registry.retention import UnneededSnapshots
from ipnext.store.store import Store

UNIT_SECONDS: Final = 0.05
"""Longest time that a unit of work is to take, with its commit: units adapt their size to it, between two limits."""
MOST_AT_ONCE: Final = 200
"""Items of the artifact store, or snapshots, of one unit of work."""
MODELS_AT_ONCE: Final = 100
"""Models that one statement reads."""
ROWS_AT_ONCE: Final = 500
"""Rows of the history of one unit of work, and names that one statement reads."""
PAGE: Final = 2000
"""Manifests, or digests, that one statement reads."""
SHOWN: Final = 100
"""Items of an answer."""
STAGE_SECONDS: Final = 10.0
"""Time of a stage of a pass (snapshots, artifacts, history) for its units of work and the pauses between them.

What is left is for the next pass. Reading has no limit: a pass that never reached the last model would leave it out.
"""
PREFIX_DIGITS: Final = 15
"""Hexadecimal digits of a digest that are compared: two that share them are kept for each other's sake."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Retention:
    """How long what nothing needs is kept."""

    unused: timedelta = timedelta(hours=24)
    unserved: timedelta = timedelta(days=7)
    retired: timedelta = timedelta(days=30)
    snapshots: SnapshotKeep = field(default_factory=lambda: SnapshotKeep(Keep(20, timedelta(days=90)), 10))
    history: Mapping[HistoryKind, Keep] = field(
        default_factory=lambda: {
            "event": Keep(200, timedelta(days=90)),
            "change": Keep(100, timedelta(days=365)),
            "plan": Keep(50, timedelta(days=90)),
            "replan": Keep(50, timedelta(days=90)),
            "source version": Keep(200, timedelta(days=90)),
        }
    )

    @classmethod
    def of(cls, settings: PlatformSettings) -> Self:
        """Take the values from the settings."""
        plans = Keep(settings.retention_plan_count, timedelta(days=settings.retention_plan_days))
        snapshots = Keep(settings.retention_snapshot_count, timedelta(days=settings.retention_snapshot_days))
        return cls(
            unused=timedelta(hours=settings.artifact_grace_hours),
            unserved=timedelta(days=settings.artifact_unserved_days),
            retired=timedelta(days=settings.artifact_retired_days),
            snapshots=SnapshotKeep(snapshots, settings.retention_rollbacks),
            history={
                "event": Keep(settings.retention_event_count, timedelta(days=settings.retention_event_days)),
                "change": Keep(settings.retention_change_count, timedelta(days=settings.retention_change_days)),
                "plan": plans,
                "replan": plans,
                "source version": Keep(
                    settings.retention_version_count, timedelta(days=settings.retention_version_days)
                ),
            },
        )


DEFAULT_RETENTION: Final = Retention()
"""The defaults of the settings."""
_OF_FLEET: Final = frozenset[HistoryKind]({"event", "plan", "replan"})
"""Classes that have rows of the fleet."""


class _Tally:
    """What one collection has removed so far."""

    def __init__(self) -> None:
        self.kept = 0
        self.items: list[CollectedItem] = []
        self._counts: dict[Kind, int] = {}
        self._bytes: dict[Kind, int] = {}
        self._reasons: dict[Kind, dict[str, int]] = {}

    def add(self, item: CollectedItem) -> None:
        """Count one item."""
        self.add_many(item.kind, 1, item.size_bytes, item.reason)
        if len(self.items) < SHOWN:
            self.items.append(item)

    def add_many(self, kind: Kind, count: int, size_bytes: int, reason: str) -> None:
        """Count items of one reason."""
        if not count:
            return
        self._counts[kind] = self._counts.get(kind, 0) + count
        self._bytes[kind] = self._bytes.get(kind, 0) + size_bytes
        of = self._reasons.setdefault(kind, {})
        of[reason] = of.get(reason, 0) + count

    def count(self, kind: Kind) -> int:
        """Return the number of items of a class."""
        return self._counts.get(kind, 0)

    def size_bytes(self, kind: Kind) -> int:
        """Return the bytes of the items of a class."""
        return self._bytes.get(kind, 0)

    @property
    def classes(self) -> tuple[CollectedClass, ...]:
        """The sums of each class that has any."""
        return tuple(
            CollectedClass(kind=kind, count=count, size_bytes=self._bytes[kind], reasons=self._reasons[kind])
            for kind, count in self._counts.items()
        )


class _Pace:
    """Size of the next unit of work, and the pause before it: other writers get two thirds of the time."""

    def __init__(self, most: int, *, least: int) -> None:
        self._most, self._least = most, least
        self.size = least

    def rest(self, seconds: float) -> float:
        """Adapt to a unit that took so long, and let others write. Return the time of both."""
        if seconds > UNIT_SECONDS:
            self.size = max(self._least, self.size // 2)
        elif seconds < UNIT_SECONDS / 2:
            self.size = min(self._most, self.size * 2)
        pause = min(2 * seconds, 4 * UNIT_SECONDS)
        time.sleep(pause)
        return seconds + pause


class Collection:
    """One pass over database and artifact store."""

    def __init__(  # noqa: PLR0913 - what a test replaces is by name
        self,
        store: Store,
        artifacts: ArtifactStore,
        retention: Retention,
        *,
        dry_run: bool = False,
        beat: Callable[[str], None] = lambda _: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        stage_seconds: float = STAGE_SECONDS,
    ) -> None:
        """`beat` is called periodically with the present step; `stage_seconds` limits the writes of each stage."""
        self._store = store
        self._artifacts = artifacts
        self._retention = retention
        self._dry_run = dry_run
        self._beat = beat
        self._began = clock()
        self._unused_since = self._began - retention.unused
        self._stage_seconds = stage_seconds
        self._left_seconds = 0.0
        self._tally = _Tally()
        self._unfinished = False

    def run(self) -> CollectionView:
        """Collect, or report the removals of a dry run. Raises Unavailable."""
        released = self._release_snapshots()
        self._remove_unnamed(released)
        self._delete_history()
        if not self._dry_run:
            self._artifacts.remove_leftovers(older_than_seconds=self._retention.unused.total_seconds())
        tally = self._tally
        return CollectionView(
            dry_run=self._dry_run,
            blobs=tally.count("blob"),
            size_bytes=tally.size_bytes("blob"),
            snapshots=tally.count("snapshot"),
            kept_blobs=tally.kept,
            unused_since=self._unused_since,
            classes=tally.classes,
            items=tuple(tally.items),
            unfinished=self._unfinished,
        )

    # snapshots

    def _release_snapshots(self) -> frozenset[Place]:
        """Release snapshots that nothing needs, some models at a time; return them."""
        rule = SnapshotRule(self._began, self._retention.unserved, self._retention.retired)
        released = set[Place]()
        pace, after = _Pace(MOST_AT_ONCE, least=MOST_AT_ONCE // 8), ""
        left = list[tuple[str, UnneededSnapshots]]()
        self._begin_stage()
        while not self._is_over():
            with self._store.read() as unit:
                models = unit.models_after(after, limit=MODELS_AT_ONCE)
                chosen = unit.unneeded_snapshots(models, rule, self._retention.snapshots)
            self._beat(f"looking at snapshots up to model {models[-1] if models else after}")
            left += chosen.items()
            while left and (not models or _count(left) >= pace.size) and not self._is_over():
                some, left = _take(left, pace.size)
                for model, one in self._release(some, pace):
                    released.add((model, *one.line.key))
                    self._tally.add(_released_item(model, one))
            if not models:
                break
            after = models[-1]
        return frozenset(released)

    def _release(self, chosen: Sequence[tuple[str, UnneededSnapshots]], pace: _Pace) -> Sequence[tuple[str, Unneeded]]:
        if self._dry_run:
            return [(model, one) for model, each in chosen for one in each.found]
        with self._store.begin_free(tuple(model for model, _ in chosen)) as unit:
            began = time.monotonic()
            found = unit.release_unneeded(dict(chosen), self._retention.snapshots)
        self._rest(pace, began)
        return found

    # artifact store

    def _remove_unnamed(self, released: frozenset[Place]) -> None:
        """Remove manifests before blobs: a manifest means that all of its blobs exist."""
        named = self._read_named(released if self._dry_run else frozenset())
        with self._store.read() as unit:
            used = unit.artifacts_in_use(self._unused_since)
        self._beat("listing the artifact store")
        unnamed: list[StoredItem] = []
        young = set[str]()
        for item in self._artifacts.items():
            if _prefix(item.digest) in named:
                self._tally.kept += not item.is_manifest
            elif item.digest in used or item.changed_at >= self._unused_since:
                self._tally.kept += not item.is_manifest
                young.add(item.digest)
            else:
                unnamed.append(item)
        unnamed.sort(key=lambda item: not item.is_manifest)
        left = self._remove_all(unnamed)
        if not self._dry_run:
            self._forget_absent(named, frozenset(young | {item.digest for item in left}))

    def _read_named(self, but: frozenset[Place]) -> frozenset[int]:
        """Return the prefixes of all digests that a kept snapshot, or a version that is to be published, names."""
        named, after = set[int](), None
        while True:
            with self._store.read() as unit:
                digests, after = unit.kept_page(after, limit=PAGE, but=but)
            named.update(map(_prefix, digests))
            self._beat(f"{len(named)} names read")
            if after is None:
                break
        with self._store.read() as unit:
            waiting = unit.waiting_digests()
        for digest in waiting:
            named.add(_prefix(digest))
            with suppress(ArtifactMissing, ArtifactDigestMismatch):
                manifest = self._artifacts.manifest(snapshot_uri(self._artifacts.uri, digest))
                named.update(_prefix(file.sha256) for file in manifest.files)
            self._beat("reading what versions of sources need")
        return frozenset(named)

    def _remove_all(self, items: Sequence[StoredItem]) -> Sequence[StoredItem]:
        """Remove items; return those that are left at the time limit."""
        pace, left = _Pace(MOST_AT_ONCE, least=1), list(items)
        self._begin_stage()
        while left and not self._is_over():
            self._beat(f"{self._tally.count('blob')} blobs removed")
            some, left = left[: pace.size], left[pace.size :]
            began = time.monotonic()
            self._remove(some)
            if not self._dry_run:
                self._rest(pace, began)
        return left

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

    def _forget_absent(self, named: frozenset[int], there: frozenset[str]) -> None:
        """Forget uploads that ended with their server, and items that others removed: they count for no owner."""
        pace, after = _Pace(ROWS_AT_ONCE, least=ROWS_AT_ONCE // 8), ""
        while not self._is_over():
            with self._store.read() as unit:
                digests = unit.unused_page(self._unused_since, after, limit=PAGE)
            if not digests:
                break
            after = digests[-1]
            self._beat("looking for uploads that did not end")
            absent = [digest for digest in digests if _prefix(digest) not in named and digest not in there]
            for some in _batches(absent, lambda: pace.size):
                began = time.monotonic()
                with self._store.begin_free(()) as unit:
                    unit.forget_artifacts(unit.free_artifacts(some, unused_since=self._unused_since, began=self._began))
                self._rest(pace, began)

    # history

    def _delete_history(self) -> None:
        self._begin_stage()
        for kind, keep in self._retention.history.items():
            if kind in _OF_FLEET:
                self._delete_rows(kind, None, keep)
            after = ""
            while not self._is_over():
                with self._store.read() as unit:
                    models = unit.history_models(kind, after, limit=MODELS_AT_ONCE)
                    aged = unit.models_aged(kind, models, keep, now=self._began)
                if not models:
                    break
                after = models[-1]
                self._beat(f"looking at the {kind}s of models up to {after}")
                if aged:
                    self._delete_rows(kind, aged, keep)

    def _delete_rows(self, kind: HistoryKind, models: Sequence[str] | None, keep: Keep) -> None:
        if self._dry_run:
            with self._store.read() as unit:
                found = unit.count_aged(kind, models, keep, now=self._began)
            self._tally.add_many(kind, found.count, found.size_bytes, keep.reason)
            return
        pace = _Pace(ROWS_AT_ONCE, least=ROWS_AT_ONCE // 8)
        while not self._is_over():
            with self._store.read() as unit:
                rows = unit.aged_rows(kind, models, keep, now=self._began, limit=MODELS_AT_ONCE * ROWS_AT_ONCE)
            for some in _batches(sorted(rows), lambda: pace.size):
                began = time.monotonic()
                with self._store.begin_free(()) as unit:
                    gone = unit.delete_aged(kind, some)
                self._rest(pace, began)
                self._tally.add_many(kind, len(gone), sum(rows[ordinal] for ordinal in gone), keep.reason)
                if self._is_over():
                    return
            if len(rows) < MODELS_AT_ONCE * ROWS_AT_ONCE:
                return

    def _rest(self, pace: _Pace, began: float) -> None:
        """Pause after a unit of work that began then, and count both."""
        self._left_seconds -= pace.rest(time.monotonic() - began)

    def _begin_stage(self) -> None:
        self._left_seconds = self._stage_seconds

    def _is_over(self) -> bool:
        """Whether the time limit of the stage is reached. A dry run has none."""
        over = not self._dry_run and self._left_seconds <= 0
        self._unfinished = self._unfinished or over
        return over


def _count(chosen: Sequence[tuple[str, UnneededSnapshots]]) -> int:
    return sum(len(each.found) for _, each in chosen)


def _take(
    chosen: Sequence[tuple[str, UnneededSnapshots]], size: int
) -> tuple[list[tuple[str, UnneededSnapshots]], list[tuple[str, UnneededSnapshots]]]:
    """Return the first `size` snapshots, and the others."""
    some, left = list[tuple[str, UnneededSnapshots]](), list[tuple[str, UnneededSnapshots]]()
    for model, each in chosen:
        first, more = each.found[:size], each.found[size:]
        size -= len(first)
        some += [(model, UnneededSnapshots(each.needs, first))] if first else []
        left += [(model, UnneededSnapshots(each.needs, more))] if more else []
    return some, left


def _released_item(model: str, one: Unneeded) -> CollectedItem:
    name = f"{model}/{one.line.part}/{one.line.number}"
    return CollectedItem(kind="snapshot", name=name, size_bytes=one.line.size_bytes, reason=one.reason)


def _prefix(digest: str) -> int:
    return int(digest[:PREFIX_DIGITS], 16)


def _batches(items: Sequence[T], size: Callable[[], int]) -> Iterator[Sequence[T]]:
    start = 0
    while start < len(items):
        end = start + size()
        yield items[start:end]
        start = end
