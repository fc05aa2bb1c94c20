"""The state machine of one region in memory: replicas load step by step, routes replace each other."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ipnext.infra.assignment import assign_processes, replica_sets
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.deployment.replica import LoadFailure, Replica, ReplicaPhase
from ipnext.model.deployment.traffic import ChosenTraffic, GenerationTraffic
from ipnext.model.gate.sketch import PredictionSketch, latency_bucket, prediction_bucket


@dataclass(frozen=True, kw_only=True)
class SimulatedAnswers:
    """Answers of a generation: fractions of 5xx and of non-finite answers; duration and value of the others."""

    errors: float = 0.0
    non_finite: float = 0.0
    seconds: float = 0.002
    prediction: float = 0.5


@dataclass(kw_only=True)
class SimulatedFaults:
    """Faults that tests switch on. All regions of one MemoryInfrastructure share them."""

    failing: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Snapshot digest -> (error code, message) of the load failure."""
    unreachable: set[str] = field(default_factory=set)
    stalled: set[DeploymentKey] = field(default_factory=set)
    """Replica sets that load nothing until they are released."""
    crashing: set[DeploymentKey] = field(default_factory=set)
    """Replica sets whose replicas crash at each step."""
    everything_stalled: bool = False
    answers: dict[tuple[str, int], "SimulatedAnswers"] = field(default_factory=dict)
    """(model, generation) -> its answers."""

    def stalls(self, key: DeploymentKey) -> bool:
        """Return whether this replica set makes no progress."""
        return self.everything_stalled or key in self.stalled


@dataclass(kw_only=True)
class MemoryReplica:
    """A simulated process: counts down to zero for each snapshot that it loads."""

    number: int
    remaining: dict[tuple[str | None, int], int] = field(default_factory=dict)
    """(Segment, snapshot) -> steps until it is loaded."""
    holds: tuple[AssignedSnapshot, ...] = ()
    restarts: int = 0
    leaving: bool = False

    def step(self) -> None:
        """Load for one step."""
        self.remaining = {held: max(0, steps - 1) for held, steps in self.remaining.items()}

    def has_loaded(self, held: AssignedSnapshot) -> bool:
        """Return whether the load of a snapshot has ended, successfully or not."""
        return self.remaining.get((held.part, held.snapshot)) == 0

    def crash(self, steps: int) -> None:
        """Lose all loaded snapshots and load them again."""
        self.restarts += 1
        self.remaining = dict.fromkeys(self.remaining, steps)


@dataclass(kw_only=True)
class SimulatedReplicaSet:
    """A deployment and its simulated replicas."""

    deployment: Deployment
    replicas: list[MemoryReplica] = field(default_factory=list)

    def follow(self, deployment: Deployment, steps: int) -> None:
        """Apply a new desired state: new snapshots start to load, removed ones are gone, surplus replicas leave."""
        self.deployment = deployment
        sets = replica_sets(deployment)
        staying = [(r, frozenset(held.content for held in r.holds)) for r in self.replicas if not r.leaving]
        members, surplus = assign_processes(sets, staying, swap=deployment.swap)
        for replica in surplus:
            replica.leaving = True
        for wanted, found in zip(sets, members, strict=True):
            found += [self._add_replica() for _ in range(wanted.replicas - len(found))]
            for replica in found:
                replica.holds = wanted.holds
                names = [(held.part, held.snapshot) for held in wanted.holds]
                replica.remaining = {name: replica.remaining.get(name, steps) for name in names}

    def _add_replica(self) -> MemoryReplica:
        taken = {replica.number for replica in self.replicas}
        added = MemoryReplica(number=next(n for n in range(len(taken) + 1) if n not in taken))
        self.replicas.append(added)
        return added

    def step(self, faults: SimulatedFaults) -> None:
        """Advance all replicas by one step of loading, or crash them."""
        if self.deployment.key in faults.crashing:
            for replica in self.replicas:
                replica.crash(1)
        elif not faults.stalls(self.deployment.key):
            for replica in self.replicas:
                replica.step()

    def moves(self, faults: SimulatedFaults) -> bool:
        """Return whether the next step changes anything."""
        if any(replica.leaving for replica in self.replicas):
            return True
        stalled = faults.stalls(self.deployment.key) and self.deployment.key not in faults.crashing
        return not stalled and any(any(replica.remaining.values()) for replica in self.replicas)

    def sweep(self) -> None:
        """Remove the replicas that were reported as draining."""
        self.replicas = [replica for replica in self.replicas if not replica.leaving]

    def ready(self, replica: MemoryReplica, faults: SimulatedFaults) -> tuple[int, ...]:
        """Return the generations of which a replica has all snapshots, ascending."""
        if replica.leaving:
            return ()
        having: set[int] = set()
        lacking: set[int] = set()
        for held in replica.holds:
            usable = replica.has_loaded(held) and held.digest not in faults.failing
            (having if usable else lacking).update(held.generations)
        return tuple(sorted(having - lacking))

    def find_loaded(self, replica: MemoryReplica) -> Iterable[AssignedSnapshot]:
        """Return the snapshots whose load has ended, successfully or not."""
        return filter(replica.has_loaded, replica.holds)

    def report(self, faults: SimulatedFaults) -> tuple[Replica, ...]:
        """Return every replica as the port reports it."""
        return tuple(self._report_replica(replica, faults) for replica in self.replicas)

    def _report_replica(self, replica: MemoryReplica, faults: SimulatedFaults) -> Replica:
        key = self.deployment.key
        return Replica(
            id=f"{key.model}.{key.part}.{key.hardware}.{replica.number}",
            key=key,
            phase=ReplicaPhase.FAILED if key in faults.crashing else self._phase(replica),
            url=f"memory://{key}/{replica.number}",
            ready=self.ready(replica, faults),
            failures=tuple(self._failures(replica, faults.failing)),
            restarts=replica.restarts,
            message="ended by SIGKILL" if key in faults.crashing else None,
        )

    def _phase(self, replica: MemoryReplica) -> ReplicaPhase:
        if replica.leaving:
            return ReplicaPhase.DRAINING
        idle = not replica.remaining or 0 in replica.remaining.values()
        return ReplicaPhase.RUNNING if idle else ReplicaPhase.STARTING

    def _failures(self, replica: MemoryReplica, failing: Mapping[str, tuple[str, str]]) -> Iterable[LoadFailure]:
        for held in self.find_loaded(replica):
            if held.digest in failing:
                code, message = failing[held.digest]
                yield LoadFailure(
                    snapshot=held.snapshot,
                    generations=held.generations,
                    code=code,
                    message=message,
                    adapter=held.part if held.adapter else None,
                )


@dataclass(kw_only=True)
class TrafficCount:
    """Counts of one generation, as in a router."""

    requests: int = 0
    errors: int = 0
    non_finite: int = 0
    seconds: float = 0.0
    latency: Counter[int] = field(default_factory=Counter)
    predictions: Counter[float] = field(default_factory=Counter)
    chosen: dict[str, "TrafficCount"] = field(default_factory=dict)
    """By the region of the gateway that chose the generation."""

    def add(
        self,
        requests: int,
        *,
        gateway: str | None = None,
        errors: int = 0,
        non_finite: int = 0,
        seconds: float = 0.002,
        prediction: float = 0.5,
    ) -> None:
        """Count further answers. `gateway`: the region whose gateway chose the generation.

        Those without error took `seconds`, and had the value `prediction` if they were finite.
        """
        if gateway is not None:
            chosen = self.chosen.setdefault(gateway, TrafficCount())
            chosen.add(requests, errors=errors, non_finite=non_finite, seconds=seconds, prediction=prediction)
        self.requests += requests
        self.errors += errors
        self.non_finite += non_finite
        self.seconds += seconds * requests
        self.latency[latency_bucket(seconds)] += max(0, requests - errors)
        self.predictions[prediction] += max(0, requests - errors - non_finite)

    def report(self, model: str, generation: int) -> GenerationTraffic:
        """Return the counts as the port reports them."""
        return GenerationTraffic(
            model=model,
            generation=generation,
            requests=self.requests,
            errors=self.errors,
            non_finite=self.non_finite,
            latency_seconds_sum=self.seconds,
            latency={bucket: count for bucket, count in self.latency.items() if count},
            predictions={"output": self._sketch()},
            chosen={gateway: count.chosen_traffic for gateway, count in self.chosen.items()},
        )

    @property
    def chosen_traffic(self) -> ChosenTraffic:
        """The counts of one gateway's choices."""
        return ChosenTraffic(
            requests=self.requests,
            errors=self.errors,
            non_finite=self.non_finite,
            failed=min(self.requests, self.errors + self.non_finite),
            latency={bucket: count for bucket, count in self.latency.items() if count},
        )

    def _sketch(self) -> PredictionSketch:
        values = self.predictions.total()
        bins: Counter[int] = Counter()
        for prediction, count in self.predictions.items():
            bins[prediction_bucket(prediction)] += count
        return PredictionSketch(
            answers=values,
            values=values,
            total=sum(prediction * count for prediction, count in self.predictions.items()),
            squares=sum(prediction**2 * count for prediction, count in self.predictions.items()),
            bins=bins,
        )


@dataclass(kw_only=True)
class MemoryRegion:
    """Replica sets and traffic counts of one region."""

    name: str
    sets: dict[DeploymentKey, SimulatedReplicaSet] = field(default_factory=dict)
    traffic: dict[tuple[str, int], TrafficCount] = field(default_factory=dict)

    def count(self, model: str, generation: int) -> TrafficCount:
        """Return the counter of a generation; create it at its first use."""
        return self.traffic.setdefault((model, generation), TrafficCount())

    def ready(self, faults: SimulatedFaults, model: str | None = None) -> dict[tuple[DeploymentKey, int], int]:
        """Return (replica set, generation) -> replicas that serve it, of one model or of all."""
        counts: dict[tuple[DeploymentKey, int], int] = {}
        for key, replica_set in self.sets.items():
            if model is not None and key.model != model:
                continue
            for replica in replica_set.replicas:
                for generation in replica_set.ready(replica, faults):
                    counts[key, generation] = counts.get((key, generation), 0) + 1
        return counts
