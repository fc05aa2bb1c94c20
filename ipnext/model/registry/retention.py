"""Retention of snapshots: which of them nothing needs any more. Pure values."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import accumulate
from typing import Final, NamedTuple

Key = tuple[str, int]
"""Part or segment, and number of a snapshot."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Retention of one class: the newest `count` are kept, and those younger than `age`."""

    count: int
    age: timedelta

    @property
    def reason(self) -> str:
        """Why an item beyond both limits goes."""
        return f"older than {format_age(self.age)}, and not among the newest {self.count}"


class SnapshotKeep(NamedTuple):
    """Retention of the snapshots of one model."""

    snapshots: Keep
    rollbacks: int
    """The newest generations that have served, whose snapshots are kept."""


class SnapshotLine(NamedTuple):
    """A snapshot whose bytes are kept, without its manifest."""

    part: str
    number: int
    digest: str
    parent: str | None
    """Digest of the snapshot of which it is a delta; None: it is whole."""
    created_at: datetime
    served_at: datetime | None
    size_bytes: int
    is_derived: bool = False
    """Whether the platform derived it: a publish of another part takes the newest published one."""

    @property
    def key(self) -> Key:
        """Part and number."""
        return self.part, self.number

    @property
    def used_at(self) -> datetime:
        """When it was published, or last began to serve."""
        return self.created_at if self.served_at is None else max(self.created_at, self.served_at)


@dataclass(frozen=True, slots=True)
class SnapshotNeeds:
    """What needs snapshots of one model. Reasons are whole phrases, for a person."""

    keep: SnapshotKeep
    retired_at: datetime | None = None
    """When the model was retired; None: it is in service."""
    named: Mapping[Key, str] = field(default_factory=dict)
    """Snapshot -> what names it: a generation, a deployment or a hold."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Digest -> the version of a source that waits with these bytes."""


class Unneeded(NamedTuple):
    """A snapshot whose bytes may go, and the reason."""

    line: SnapshotLine
    reason: str


NEVER_SERVED_REASON: Final = "no generation with it has served or can serve"
RETIRED_REASON: Final = "its model is retired"


def format_age(age: timedelta) -> str:
    """Return a duration for a person, in days or hours."""
    hours = age.total_seconds() / 3600
    return f"{hours / 24:g} d" if hours >= 24 and hours % 24 == 0 else f"{hours:g} h"


class SnapshotRule(NamedTuple):
    """The points in time that decide, and what they follow from."""

    now: datetime
    unserved: timedelta
    """A snapshot that has not served, and can't, goes after this time."""
    retired: timedelta
    """All snapshots of a model go this long after its retirement."""

    def choose(self, lines: Sequence[SnapshotLine], needs: SnapshotNeeds) -> tuple[Unneeded, ...]:
        """Return the snapshots of a model that nothing needs, the highest number of each part first.

        `lines` are all of its snapshots whose bytes are kept. The parent of a kept snapshot is kept, and its parent.
        """
        by_part: dict[str, list[SnapshotLine]] = {}
        for line in sorted(lines, key=lambda line: (line.part, -line.number)):
            by_part.setdefault(line.part, []).append(line)
        return tuple(found for part in by_part.values() for found in self._choose_of_part(part, needs))

    def explain_need(self, line: SnapshotLine, needs: SnapshotNeeds) -> str | None:
        """Return what needs one snapshot, whatever its age; None: neither a name, nor a waiting version."""
        return needs.named.get(line.key) or needs.digests.get(line.digest)

    def _choose_of_part(self, newest_first: Sequence[SnapshotLine], needs: SnapshotNeeds) -> Iterable[Unneeded]:
        published = accumulate((not line.is_derived for line in newest_first), initial=0)
        ranks = (max(rank, line.is_derived) for line, rank in zip(newest_first, published, strict=False))
        reasons = [self._reason(line, rank, needs) for line, rank in zip(newest_first, ranks, strict=True)]
        judged = tuple(zip(newest_first, reasons, strict=True))
        kept = [line for line, reason in judged if reason is None or self.explain_need(line, needs) is not None]
        parents = _close((line.parent for line in kept), {line.digest: line.parent for line in newest_first})
        for line, reason in judged:
            if reason is not None and line.digest not in parents and self.explain_need(line, needs) is None:
                yield Unneeded(line, reason)

    def _reason(self, line: SnapshotLine, rank: int, needs: SnapshotNeeds) -> str | None:
        """Return why age and place of a snapshot let it go; None if they keep it."""
        if needs.retired_at is not None:
            return RETIRED_REASON if self.now - needs.retired_at > self.retired else None
        if rank == 0:
            return None
        if line.served_at is None:
            return NEVER_SERVED_REASON if self.now - line.created_at > self.unserved else None
        keep = needs.keep.snapshots
        return keep.reason if rank >= keep.count and self.now - line.used_at > keep.age else None


def _close(wanted: Iterable[str | None], parents: Mapping[str, str | None]) -> frozenset[str]:
    """Return these digests with their parents, their parents' parents and so on."""
    found = set[str]()
    left = [digest for digest in wanted if digest is not None]
    while left:
        digest = left.pop()
        if digest not in found:
            found.add(digest)
            above = parents.get(digest)
            left += [] if above is None else [above]
    return frozenset(found)
