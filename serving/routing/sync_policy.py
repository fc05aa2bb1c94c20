"""Candidate hosts and snapshots for a part of a generation, by the model's sync policy. Pure.

`serving.routing.table` computes them once per table; a request only picks one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ipnext.model.deployment.served_generation import SnapshotFacts
from ipnext.model.registry.registry import SyncPolicy


@dataclass(frozen=True, slots=True)
class Version:
    """A snapshot of a part, as a generation names it. Without `facts` it replaces no other snapshot."""

    generation: int
    snapshot: int
    facts: SnapshotFacts | None = None

    @property
    def published(self) -> int:
        """Number of the published snapshot that it is, or was derived from."""
        return (self.facts.published if self.facts is not None else None) or self.snapshot


@dataclass(frozen=True, slots=True)
class HostCandidate:
    """A host and the snapshot that it would use; `generation` is the number that the request names."""

    url: str
    generation: int
    snapshot: int


CandidateTiers = tuple[tuple[HostCandidate, ...], ...]
"""Each host once, the better choices first. The first tier has the hosts that the policy prefers, and may be empty."""


def candidates_for(policy: SyncPolicy, wanted: Version, held: Mapping[str, Sequence[Version]]) -> CandidateTiers:
    """Return the candidate hosts for the snapshot `wanted`.

    `held` maps each URL to the versions that it is ready to serve.
    """
    best: dict[str, tuple[int, HostCandidate]] = {}
    for url, versions in held.items():
        ranked = [(rank, version) for version in versions if (rank := _rank(policy, wanted, version)) is not None]
        if ranked:
            (tier, _, _), version = min(ranked, key=lambda pair: pair[0])
            best[url] = (tier, HostCandidate(url, version.generation, version.snapshot))
    tiers = sorted({0, *(tier for tier, _ in best.values())})
    return tuple(tuple(candidate for at, candidate in best.values() if at == tier) for tier in tiers)


def of_snapshot(tiers: CandidateTiers, snapshot: int) -> CandidateTiers:
    """Return the candidates with one snapshot: a part that a request calls twice must use the same one."""
    return tuple(tuple(candidate for candidate in tier if candidate.snapshot == snapshot) for tier in tiers)


def _stands_in(policy: SyncPolicy, wanted: Version, version: Version) -> bool:
    """Whether a snapshot may replace the wanted one.

    The bounds apply in both directions; if both are given, both must hold.
    """
    if version.published == wanted.published:
        return True
    if wanted.facts is None or version.facts is None or version.facts.signature != wanted.facts.signature:
        return False
    apart = abs(version.published - wanted.published)
    seconds_apart = abs((version.facts.created_at - wanted.facts.created_at).total_seconds())
    if policy.max_snapshots is not None and apart > policy.max_snapshots:
        return False
    return policy.max_seconds is None or seconds_apart <= policy.max_seconds


def _rank(policy: SyncPolicy, wanted: Version, version: Version) -> tuple[int, int, int] | None:
    """Return tier, order in it, and whether the generation differs (a tie-break between names).

    None if it may not answer. Under `locked` the generation must match. Under `bounded` nearer snapshots are better; of
    two equally near, the older. Under `unsynced` all snapshots up to the wanted one are equally good on different
    hosts, and the newest is best on one host. Newer snapshots come last, so that neither a canary nor a rollback is
    bypassed.
    """
    same_name = version.generation == wanted.generation
    if policy.policy == "locked":
        return (0, 0, 0) if same_name else None
    if not _stands_in(policy, wanted, version):
        return None
    ahead = version.published - wanted.published
    if policy.policy == "unsynced":
        return int(ahead > 0), abs(ahead), not same_name
    return 2 * abs(ahead) - (ahead < 0), 0, not same_name
