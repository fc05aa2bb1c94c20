"""Which hosts may answer for a part of a generation, and with which snapshot: a model's sync policy made into choices. Pure.

`serving.routing.table` asks once for each table; a request only picks from the answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ipnext.model.deployment import SnapshotFacts
from ipnext.model.registry import SyncPolicy


@dataclass(frozen=True, slots=True)
class Version:
    """A snapshot of a part, as a generation names it. Without `facts` it stands in for no other snapshot."""

    generation: int
    snapshot: int
    facts: SnapshotFacts | None = None


@dataclass(frozen=True, slots=True)
class HostCandidate:
    """A host and the snapshot that it would answer with; `generation` is the name to ask for it by."""

    url: str
    generation: int
    snapshot: int


CandidateTiers = tuple[tuple[HostCandidate, ...], ...]
"""Each host once, the better choices first. The first tier holds what the policy wishes, and may be empty."""


def candidates_for(policy: SyncPolicy, wanted: Version, held: Mapping[str, Sequence[Version]]) -> CandidateTiers:
    """The hosts that may answer where a generation wants `wanted`. `held` maps each url to what it is ready to answer with."""
    best: dict[str, tuple[int, HostCandidate]] = {}
    for url, versions in held.items():
        ranked = [(rank, version) for version in versions if (rank := _rank(policy, wanted, version)) is not None]
        if ranked:
            (tier, _, _), version = min(ranked, key=lambda pair: pair[0])
            best[url] = (tier, HostCandidate(url, version.generation, version.snapshot))
    tiers = sorted({0, *(tier for tier, _ in best.values())})
    return tuple(tuple(candidate for at, candidate in best.values() if at == tier) for tier in tiers)


def of_snapshot(tiers: CandidateTiers, snapshot: int) -> CandidateTiers:
    """The candidates of one snapshot: a part that a request calls twice answers twice with the same."""
    return tuple(tuple(candidate for candidate in tier if candidate.snapshot == snapshot) for tier in tiers)


def _stands_in(policy: SyncPolicy, wanted: Version, version: Version) -> bool:
    """Whether a snapshot may answer where another is wanted; both bounds hold where both are given, to either side."""
    if version.snapshot == wanted.snapshot:
        return True
    if wanted.facts is None or version.facts is None or version.facts.signature != wanted.facts.signature:
        return False
    apart = abs(version.snapshot - wanted.snapshot)
    seconds_apart = abs((version.facts.created_at - wanted.facts.created_at).total_seconds())
    if policy.max_snapshots is not None and apart > policy.max_snapshots:
        return False
    return policy.max_seconds is None or seconds_apart <= policy.max_seconds


def _rank(policy: SyncPolicy, wanted: Version, version: Version) -> tuple[int, int, int] | None:
    """Tier, order in it, and the name to prefer where two generations have one snapshot; None: may not answer.

    Under `locked` the name counts too. Under `bounded` nearer snapshots are better, and of two equally near the older.
    Under `unsynced` all up to the wanted one are equally good on different hosts, the newest on one host; newer
    ones come last, so that neither a canary nor a rollback is passed by.
    """
    same_name = version.generation == wanted.generation
    if policy.policy == "locked":
        return (0, 0, 0) if same_name else None
    if not _stands_in(policy, wanted, version):
        return None
    ahead = version.snapshot - wanted.snapshot
    if policy.policy == "unsynced":
        return int(ahead > 0), abs(ahead), not same_name
    return 2 * abs(ahead) - (ahead < 0), 0, not same_name
