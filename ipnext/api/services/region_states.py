"""Reports of the regions, indexed by model once for each observation, so that no model needs a scan of all replicas."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from heapq import nsmallest

from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.replica import Replica, ReplicaPhase
from ipnext.model.deployment.traffic import GenerationTraffic

SHOWN = 20
"""Replicas of a region in its summary."""


@dataclass(frozen=True, slots=True)
class RegionSummary:
    """A region's report in counts."""

    shown: tuple[Replica, ...]
    """At most `SHOWN` replicas, those that do not answer first."""
    phases: Mapping[str, int]
    """Phase -> number of replicas."""
    requests: int
    errors: int

    @classmethod
    def of(cls, state: RegionState) -> "RegionSummary":
        """Summarise a report."""
        short = [replica for replica in state.replicas if is_short(replica)]
        shown = nsmallest(SHOWN, short, key=_by_key)
        if len(shown) < SHOWN:
            shown += nsmallest(SHOWN - len(shown), (r for r in state.replicas if not is_short(r)), key=_by_key)
        return cls(
            shown=tuple(shown),
            phases=Counter(replica.phase.value for replica in state.replicas),
            requests=sum(counted.requests for counted in state.traffic),
            errors=sum(counted.errors for counted in state.traffic),
        )


class States(Mapping[str, RegionState | None]):
    """Region -> its report; None if it did not answer. `of(model)` returns a model's replicas without a scan."""

    def __init__(
        self, reports: Mapping[str, RegionState | None], *, revision: int = 0, at: datetime | None = None
    ) -> None:
        self._reports = dict(reports)
        self.revision = revision
        """Rises when the content changes, within one process."""
        self.at = at or datetime.now(UTC)
        """Time at which this content was first observed."""
        replicas: dict[str, list[Replica]] = defaultdict(list)
        traffic: dict[str, dict[str, list[GenerationTraffic]]] = defaultdict(lambda: defaultdict(list))
        for region, report in self._reports.items():
            for replica in report.replicas if report is not None else ():
                replicas[replica.key.model].append(replica)
            for counted in report.traffic if report is not None else ():
                traffic[counted.model][region].append(counted)
        self._replicas = {model: tuple(sorted(found, key=_by_key)) for model, found in replicas.items()}
        self._summaries = {r: RegionSummary.of(report) for r, report in self._reports.items() if report is not None}
        self._traffic = {model: {region: tuple(t) for region, t in of.items()} for model, of in traffic.items()}
        self.troubled = frozenset(model for model, found in self._replicas.items() if any(map(is_short, found)))
        """Models with a replica that does not answer: the only reachable ones whose status may differ from the
        store."""

    @classmethod
    def like(cls, states: "Mapping[str, RegionState | None]") -> "States":
        """Return the same reports, indexed."""
        return states if isinstance(states, States) else cls(states)

    def of(self, model: str) -> tuple[Replica, ...]:
        """Return the model's replicas in every region that answers, by key and id."""
        return self._replicas.get(model, ())

    def traffic_of(self, model: str) -> Mapping[str, tuple[GenerationTraffic, ...]]:
        """Map each region to the counters of the model's generations there."""
        return self._traffic.get(model, {})

    @property
    def unreachable(self) -> frozenset[str]:
        """Regions that did not answer."""
        return frozenset(region for region, report in self._reports.items() if report is None)

    def summary(self, region: str) -> RegionSummary | None:
        """Return a region's report in counts; None if it did not answer."""
        return self._summaries.get(region)

    def same_as(self, reports: Mapping[str, RegionState | None]) -> bool:
        """Return whether these reports are the ones that are indexed here."""
        return self._reports.keys() == reports.keys() and all(
            mine is reports[region] or mine == reports[region] for region, mine in self._reports.items()
        )

    def __getitem__(self, region: str) -> RegionState | None:
        return self._reports[region]

    def __iter__(self) -> Iterator[str]:
        return iter(self._reports)

    def __len__(self) -> int:
        return len(self._reports)


def _by_key(replica: Replica) -> tuple[str, str, str, str, str]:
    key = replica.key
    return (key.model, key.part, key.region, key.hardware, replica.id)


def is_short(replica: Replica) -> bool:
    """Return whether a replica does not answer for all of its desired snapshots."""
    return replica.phase is not ReplicaPhase.RUNNING or not replica.ready or bool(replica.failures)
