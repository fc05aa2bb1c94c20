"""The fake infrastructure: the same port, all in memory, with faults that a test switches on.

Replicas become ready while they are observed, so no test has to sleep. Every call is recorded in `history`.
"""

import math
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

from ipnext.errors import IPnextError, NotFound, RegionUnreachable
from ipnext.infra.fake.history import Moment
from ipnext.infra.fake.region import MemoryRegion, SimulatedAnswers, SimulatedFaults, SimulatedReplicaSet
from ipnext.infra.route_rules import check_access, check_destinations, check_revision
from ipnext.infra.state_token import with_token
from ipnext.model.access.predictions import AccessList, AccessRevision, KeyUseReport
from ipnext.model.deployment.applied_state import AppliedState
from ipnext.model.deployment.deployment import Deployment, DeploymentKey
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.gate.live import ReplicaTimes, RoundTimes, TimedReplica, TimingRound
from ipnext.model.gate.shadow import ShadowComparison

LONGEST_WAIT_SECONDS = 0.05
"""Longest wait for a change: faults that a test switches on are seen within it."""


class MemoryInfrastructure:
    """Infrastructure whose replicas become ready at the `observes_until_ready`-th observe after a change.

    Each observe of a region also counts `requests_per_observe` requests for each gateway, by its route shares, so that
    health gates see traffic. Safe to use from several threads.
    """

    def __init__(
        self, regions: Iterable[str], *, observes_until_ready: int = 1, requests_per_observe: int = 100
    ) -> None:
        self._regions = {name: MemoryRegion(name=name) for name in regions}
        self._steps = observes_until_ready
        self._requests = requests_per_observe
        self._routes: dict[tuple[str, str], RouteTable] = {}
        self._faults = SimulatedFaults()
        self._planned: list[tuple[str, IPnextError, bool]] = []
        self._history: list[Moment] = []
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._prefetched: dict[str, list[str]] = {}
        self._access: dict[str, AccessList] = {}
        self._access_behind: dict[str, float] = {}
        self._key_uses: dict[str, dict[str, float]] = {}
        self._comparisons: dict[tuple[str, tuple[str, int, int]], ShadowComparison] = {}
        """(Region, key of the comparison) -> what the region's router reports."""

    # the port

    def regions(self) -> tuple[str, ...]:
        """Return the names of the regions."""
        return tuple(self._regions)

    def apply(self, deployment: Deployment) -> None:
        """See the port. Surplus replicas are draining at the next observe and gone at the one after."""
        key = deployment.key
        with self._call("apply", key.region, str(key)) as region:
            replica_set = region.sets.setdefault(key, SimulatedReplicaSet(deployment=deployment))
            replica_set.follow(deployment, self._steps)

    def route(self, table: RouteTable) -> None:
        """See the port."""
        with self._call("route", table.region, f"{table.model}@{table.revision}"):
            check_destinations(table, self._regions)
            check_revision(table, self._routes.get((table.model, table.region)))
            self._routes[table.model, table.region] = table

    def observe(self, region: str, models: Collection[str] | None = None) -> RegionState:
        """See the port. Each call is one step of time for the region, whichever models it names."""
        with self._call("observe", region, region) as state:
            for replica_set in state.sets.values():
                replica_set.step(self._faults)
            self._count_traffic(state)
            whole = self._observe_region(state)
            observed = whole if models is None else with_token(whole.only(models))
            for replica_set in state.sets.values():
                replica_set.sweep()
            state.sets = {key: found for key, found in state.sets.items() if found.replicas}
            return observed

    def read_applied(self, region: str) -> AppliedState:
        """See the port. Recorded outside the history: the call changes no state."""
        with self._lock:
            self._reach(region)
            sets = [found.deployment for found in self._region(region).sets.values() if found.deployment.replicas]
            return AppliedState.of(sets, [table for (_, name), table in self._routes.items() if name == region])

    def await_change(self, region: str, models: Collection[str], token: str, *, seconds: float) -> None:
        """See the port.

        Time passes by observations: while replicas are becoming ready it returns at once, else soon.
        """
        with self._changed:
            self._reach(region)
            found = self._region(region)
            moving = any(s.moves(self._faults) for s in found.sets.values() if s.deployment.key.model in models)
            if not moving and with_token(self._observe_region(found).only(models)).token == token:
                self._changed.wait(min(seconds, LONGEST_WAIT_SECONDS))

    def prefetch(self, region: str, uris: Sequence[str]) -> None:
        """See the port.

        Nothing is fetched: the call is recorded outside the history, since it changes no relevant state.
        """
        with self._lock:
            self._reach(region)
            self._prefetched.setdefault(region, []).extend(uris)

    def list_prefetched(self, region: str) -> tuple[str, ...]:
        """Return the snapshots that the region was requested to prefetch."""
        with self._lock:
            return tuple(self._prefetched.get(region, ()))

    def time_replicas(self, region: str, asked: TimingRound) -> RoundTimes:
        """See the port. Times are those of `answer_with`; no time passes."""
        with self._call("time_replicas", region, f"{asked.model}/{asked.part}") as found:
            return RoundTimes(
                new=self._times_of(found, asked, asked.new), serving=self._times_of(found, asked, asked.serving)
            )

    def delete(self, key: DeploymentKey) -> None:
        """See the port. Remaining replicas are draining at the next observe."""
        with self._call("delete", key.region, str(key)) as region:
            if key in region.sets:
                empty = region.sets[key].deployment.model_copy(update={"replicas": 0})
                region.sets[key].follow(empty, self._steps)

    def unroute(self, model: str, region: str) -> None:
        """See the port."""
        with self._call("unroute", region, model):
            self._routes.pop((model, region), None)

    def put_access(self, region: str, access: AccessList) -> AccessRevision:
        """See the port. Recorded outside the history, like prefetches."""
        with self._lock:
            self._reach(region)
            check_access(access, self._access.get(region), region=region)
            self._access[region] = access
            return AccessRevision.of(access)

    def access_revision(self, region: str) -> AccessRevision:
        """See the port."""
        with self._lock:
            self._reach(region)
            return AccessRevision.of(self._access.get(region))

    def key_uses(self, region: str) -> KeyUseReport:
        """See the port."""
        with self._lock:
            self._reach(region)
            return KeyUseReport(uses=dict(self._key_uses.get(region, {})))

    # read by tests

    def access(self, region: str) -> AccessList | None:
        """Return the list in force in a region."""
        with self._lock:
            return self._access.get(region)

    @property
    def history(self) -> tuple[Moment, ...]:
        """Every call so far with the state after it, in order."""
        with self._lock:
            return tuple(self._history)

    def calls(self, *names: str) -> tuple[Moment, ...]:
        """Return the part of the history made of the named port methods, such as "apply" or "route"."""
        return tuple(moment for moment in self.history if moment.call in names)

    def deployment(self, key: DeploymentKey) -> Deployment | None:
        """Return the desired state in force for a replica set."""
        with self._lock:
            found = self._regions[key.region].sets.get(key)
            return found.deployment if found else None

    def table(self, model: str, region: str) -> RouteTable | None:
        """Return the route table in force for a model in a region."""
        with self._lock:
            return self._routes.get((model, region))

    # faults for tests

    def leave_access_behind(self, region: str, seconds: float) -> None:
        """Have the region report that its router goes by an old access list."""
        with self._lock:
            self._access_behind[region] = seconds

    def fail_load(self, digest: str, *, code: str = "LoadFailed", message: str = "broken on purpose") -> None:
        """Make loads of this snapshot fail, even if it was loaded before."""
        with self._lock:
            self._faults.failing[digest] = (code, message)

    def heal_load(self, digest: str) -> None:
        """Make loads of this snapshot work again."""
        with self._lock:
            self._faults.failing.pop(digest, None)

    def cut(self, region: str) -> None:
        """Make every call for this region raise Unavailable."""
        with self._lock:
            self._faults.unreachable.add(self._region(region).name)

    def mend(self, region: str) -> None:
        """Make the region reachable again."""
        with self._lock:
            self._faults.unreachable.discard(region)

    def stall(self, key: DeploymentKey | None = None) -> None:
        """Keep replicas of this set (None: of all) from becoming ready, until `release`."""
        with self._lock:
            if key is None:
                self._faults.everything_stalled = True
            else:
                self._faults.stalled.add(key)

    def release(self, key: DeploymentKey | None = None) -> None:
        """End a `stall` or `crash_always` of this set; None ends all of them."""
        with self._lock:
            if key is None:
                self._faults.everything_stalled = False
                self._faults.stalled.clear()
                self._faults.crashing.clear()
            else:
                self._faults.stalled.discard(key)
                self._faults.crashing.discard(key)

    def answer_with(
        self,
        model: str,
        generation: int,
        *,
        errors: float = 0.0,
        non_finite: float = 0.0,
        seconds: float = 0.002,
        prediction: float = 0.5,
    ) -> None:
        """Set a generation's answers.

        The fractions that are 5xx or contain NaN, and the duration and value of the others.
        """
        with self._lock:
            self._faults.answers[model, generation] = SimulatedAnswers(
                errors=errors, non_finite=non_finite, seconds=seconds, prediction=prediction
            )

    def count(
        self, model: str, region: str, generation: int, *, requests: int, errors: int = 0, non_finite: int = 0
    ) -> None:
        """Add to the traffic counts of a generation by hand."""
        with self._lock:
            found = self._region(region).count(model, generation)
            found.add(requests, gateway=region, errors=errors, non_finite=non_finite)

    def compare(self, region: str, comparison: ShadowComparison) -> None:
        """Set what the region's router reports while the comparison's shadow is in its table."""
        with self._lock:
            self._comparisons[region, comparison.key] = comparison

    def use_key(self, region: str, key_id: str, at: float) -> None:
        """Record that an API key requested predictions, at a Unix time."""
        with self._lock:
            self._key_uses.setdefault(region, {})[key_id] = at

    def crash(self, key: DeploymentKey, number: int = 0) -> None:
        """Restart one replica: it loads everything again."""
        with self._lock:
            found = self._region(key.region).sets.get(key)
            for replica in found.replicas if found else ():
                if replica.number == number:
                    replica.crash(self._steps)
                    return
            msg = f"no replica {number} of {key}"
            raise NotFound(msg)

    def crash_always(self, key: DeploymentKey) -> None:
        """Let replicas of this set crash repeatedly before they have loaded anything, until `release`."""
        with self._lock:
            self._faults.crashing.add(key)

    def fail_next(self, call: str, error: IPnextError, *, times: int = 1, after_effect: bool = False) -> None:
        """Make the next calls of a port method raise `error`.

        With `after_effect` they take effect first (a lost answer).
        """
        with self._lock:
            self._planned.extend([(call, error, after_effect)] * times)

    # inside

    def _region(self, name: str) -> MemoryRegion:
        if name not in self._regions:
            msg = f"region {name!r} has no agent; known: {', '.join(self._regions) or 'none'}"
            raise RegionUnreachable(msg)
        return self._regions[name]

    @contextmanager
    def _call(self, call: str, region: str, subject: str) -> Iterator[MemoryRegion]:
        """Run one call under the lock: planned faults, the work, an entry in the history."""
        with self._lock:
            try:
                found = self._region(region)
                self._reach(region)
                self._raise_planned(call, after_effect=False)
                yield found
                self._raise_planned(call, after_effect=True)
            except IPnextError as error:
                self._remember(call, subject, error.code)
                raise
            self._remember(call, subject, None)
            if call != "observe":  # else two that wait would wake each other without a pause
                self._changed.notify_all()

    def _reach(self, region: str) -> None:
        if region in self._faults.unreachable:
            msg = f"region {region!r} can't be reached; try again once it is back"
            raise RegionUnreachable(msg)

    def _raise_planned(self, call: str, *, after_effect: bool) -> None:
        for index, (planned, error, after) in enumerate(self._planned):
            if (planned, after) == (call, after_effect):
                del self._planned[index]
                raise error

    def _remember(self, call: str, subject: str, refused: str | None) -> None:
        ready: dict[tuple[DeploymentKey, int], int] = {}
        for region in self._regions.values():
            ready |= region.ready(self._faults)
        moment = Moment(
            number=len(self._history) + 1,
            call=call,
            subject=subject,
            refused=refused,
            deployments={k: s.deployment for region in self._regions.values() for k, s in region.sets.items()},
            routes=dict(self._routes),
            ready=ready,
        )
        self._history.append(moment)

    def _observe_region(self, region: MemoryRegion) -> RegionState:
        return RegionState(
            region=region.name,
            gateway_url=f"http://{region.name}.memory",
            replicas=tuple(r for found in region.sets.values() for r in found.report(self._faults)),
            routes={model: t.revision for (model, name), t in self._routes.items() if name == region.name},
            traffic=tuple(count.report(model, number) for (model, number), count in region.traffic.items()),
            access_behind_seconds=self._access_behind.get(region.name),
            shadows=tuple(self._shadows(region.name)),
        )

    def _shadows(self, region: str) -> Iterator[ShadowComparison]:
        for (model, name), table in self._routes.items():
            if name == region and table.shadow is not None:
                generation, seed = table.shadow.generation, table.shadow.seed
                nothing = ShadowComparison(model=model, generation=generation, seed=seed)
                yield self._comparisons.get((region, nothing.key), nothing)

    def _times_of(self, region: MemoryRegion, asked: TimingRound, wanted: TimedReplica) -> ReplicaTimes:
        replicas = (replica for found in region.sets.values() for replica in found.report(self._faults))
        ready = {replica.id for replica in replicas if wanted.generation in replica.ready}
        if wanted.id not in ready:
            msg = f"no replica {wanted.id!r} of {asked.model}/{asked.part} is ready for generation {wanted.generation}"
            raise NotFound(msg)
        answers = self._faults.answers.get((asked.model, wanted.generation), SimulatedAnswers())
        half = asked.requests // 2
        failed = math.ceil(asked.requests * answers.errors)
        return ReplicaTimes(
            single=(answers.seconds,) * (0 if failed else half),
            together=(answers.seconds * asked.concurrency,) * (0 if failed else max(1, half // asked.concurrency)),
            failed=failed,
            error="simulated error" if failed else "",
        )

    def _count_traffic(self, region: MemoryRegion) -> None:
        """Count the requests that every gateway sent here since the last observe.

        Without ready replicas they are errors.
        """
        for table in self._routes.values():
            for share in table.shares:
                if share.to == region.name and share.fraction > 0:
                    self._count_share(region, table, share)

    def _count_share(self, region: MemoryRegion, table: RouteTable, share: RouteShare) -> None:
        requests = max(1, round(self._requests * share.fraction))
        found = self._faults.answers.get((table.model, share.generation), SimulatedAnswers())
        errors = found.errors if self._answers(region, table, share.generation) else 1.0
        region.count(table.model, share.generation).add(
            requests,
            gateway=table.region,
            errors=math.ceil(requests * errors),
            non_finite=math.ceil(requests * found.non_finite),
            seconds=found.seconds,
            prediction=found.prediction,
        )

    def _answers(self, region: MemoryRegion, table: RouteTable, generation: int) -> bool:
        """Return whether every part or segment of the generation has a ready replica here."""
        ready = (key for key, held in region.ready(self._faults, table.model) if held == generation)
        found = {piece for key in ready for piece in region.sets[key].deployment.pieces(generation)}
        parts = (part for served in table.served if served.generation == generation for part in served.snapshots)
        return all(part in found for part in parts)
