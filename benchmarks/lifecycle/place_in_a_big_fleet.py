"""What a publish costs the planning module when thousands of other models serve.

Read, place, adopt, and the supply left.

    .venv/bin/python -m benchmarks.lifecycle.place_in_a_big_fleet  (ARGS: --models 10000 --publishes 20 --json out.json)

A store in a SQLite file holds N models of one to three parts in 20 regions on 4 kinds of hardware, all placed by one
plan of the whole fleet and running as it says. Drawn from a seed. Then models are published one after another. Beside
the wall time stands the process's CPU time: on a busy machine only the latter says what the work is. The baseline is
the same store with a hundredth of the models: what does not grow with the fleet costs the same there.
"""

import argparse
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table
from temporalio.testing import ActivityEnvironment

from activities.planning.activities import PlanningActivities
from activities.planning.adoption import settle
from activities.planning.problem import residual_problem, units_in_use
from activities.planning.solver import ThreadSolver
from benchmarks.lifecycle.drawn_plan import adopt_drawn_plan
from ipnext.model.deployment.deployment import Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.fleet import FleetSpec, OwnerBudget, SupplyItem
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.planning.plan import ReplicaCount, TrafficShare
from ipnext.model.registry.registry import Signature, SnapshotManifest, SnapshotSource, TensorSpec
from ipnext.store.repository import Repository
from ipnext.store.store import Store
from planner.solve import place

REGIONS, KINDS, OWNERS = 20, 4, 50
SEED = 7
BATCH = 50
"""Models written in one unit of work."""

_TENSOR = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
_SOURCE = SnapshotSource(
    uri="file:///nowhere",
    manifest=SnapshotManifest(engine="torch", signature=Signature(inputs=(_TENSOR,), outputs=(_TENSOR,)), files=()),
)

T = TypeVar("T")

Stages = Mapping[str, Sequence[tuple[float, float]]]
"""What was done -> (wall, CPU) milliseconds of each time."""


def fleet_spec(models: int) -> FleetSpec:
    """Regions on a ring, 10 ms apart, and supply for twice the models."""
    regions = tuple(f"r{n:02}" for n in range(REGIONS))
    trips = tuple(
        tuple(1.0 + 10.0 * min(abs(i - j), REGIONS - abs(i - j)) for j in range(REGIONS)) for i in range(REGIONS)
    )
    hardware = tuple(f"h{n}" for n in range(KINDS))
    units = 40.0 * models / REGIONS
    supply = tuple(
        SupplyItem(region=r, hardware=h, units=units, unit_cost=1.0 + n + i / 100)
        for i, r in enumerate(regions)
        for n, h in enumerate(hardware)
    )
    owners = tuple(OwnerBudget(owner=f"owner-{n:02}", budget_per_hour=1e6) for n in range(OWNERS))
    return FleetSpec(regions=regions, rtt_ms=trips, hardware=hardware, supply=supply, owners=owners)


def manifest(number: int, fleet: FleetSpec, draw: random.Random) -> ModelManifest:
    """Return a model of one to three parts with demand in one to three regions."""
    parts = [
        {
            "name": f"part{n}",
            "hardware": [
                {"kind": kind, "units": draw.choice([0.25, 1, 2]), "qps": draw.choice([50, 100, 400])}
                for kind in draw.sample(fleet.hardware, draw.randint(1, 3))
            ],
        }
        for n in range(draw.randint(1, 3))
    ]
    nodes = [{"name": part["name"], "part": part["name"], "inputs": {"x": "request.x"}} for part in parts]
    demand = [{"region": r, "qps": draw.choice([20, 80, 300])} for r in draw.sample(fleet.regions, draw.randint(1, 3))]
    return ModelManifest.model_validate(
        {
            "apiVersion": "ipnext/v1",
            "kind": "Model",
            "metadata": {"name": f"model-{number:05}", "owner": f"owner-{draw.randrange(OWNERS):02}"},
            "spec": {
                "parts": parts,
                "graph": {"nodes": nodes, "outputs": {"score": f"{nodes[0]['name']}.score"}},
                "demand": demand,
                "latencyToleranceMs": draw.choice([15, 45, 100]),
            },
        }
    )


def require_qps(qps: float | None) -> float:
    """Return the QPS, which `manifest` gives to all parts and regions; ValueError if it is missing."""
    if qps is None:
        msg = "a manifest without QPS"
        raise ValueError(msg)
    return qps


def rows_of(model: ModelManifest) -> tuple[list[ReplicaCount], list[TrafficShare]]:
    """Everything served at home by each part's first option."""
    replicas = [
        ReplicaCount(
            model=model.name,
            part=part.name,
            region=item.region,
            hardware=part.hardware[0].kind,
            count=math.ceil(require_qps(item.qps) / require_qps(part.hardware[0].qps)),
        )
        for item in model.spec.demand
        for part in model.spec.parts
    ]
    shares = [
        TrafficShare.model_validate({"model": model.name, "from": item.region, "to": item.region, "fraction": 1.0})
        for item in model.spec.demand
    ]
    return replicas, shares


def filled(store: Store, count: int) -> FleetSpec:
    """Models that serve, one plan of the whole fleet in force, and what it says running."""
    fleet, draw = fleet_spec(count), random.Random(SEED)
    models = [manifest(number, fleet, draw) for number in range(count)]
    rows = {model.name: rows_of(model) for model in models}
    with store.begin() as repository:
        repository.put_fleet(fleet, expected_version=None)
    for start in range(0, count, BATCH):
        with store.begin() as repository:
            for model in models[start : start + BATCH]:
                _serving(repository, model, *rows[model.name])
    _adopt(store, fleet, models, rows)
    return fleet


def _serving(
    repository: Repository, model: ModelManifest, replicas: Sequence[ReplicaCount], traffic: Sequence[TrafficShare]
) -> None:
    """Record the model as it is when it serves by its rows."""
    repository.put_model(model, expected_version=None)
    repository.update_model(model.name, serving_generation=1, target_generation=1)
    options = {(part.name, o.kind): o for part in model.spec.parts for o in part.hardware}
    for row in replicas:
        key = DeploymentKey(model=row.model, part=row.part, region=row.region, hardware=row.hardware)
        option = options[row.part, row.hardware]
        repository.put_deployment(
            Deployment(key=key, replicas=row.count, engine="torch", units=option.units, qps=option.qps)
        )
    for share in traffic:
        shares = (RouteShare(to=share.to, generation=1, fraction=1.0),)
        repository.put_route(RouteTable(model=model.name, region=share.origin, revision=1, shares=shares, served=()))


def _adopt(store: Store, fleet: FleetSpec, models: Sequence[ModelManifest], rows: Mapping[str, Any]) -> None:
    replicas = [row for model in models for row in rows[model.name][0]]
    traffic = [row for model in models for row in rows[model.name][1]]
    adopt_drawn_plan(store, fleet, models, replicas, traffic)


class Watch:
    """Times of named pieces of work."""

    def __init__(self) -> None:
        self.found: dict[str, list[tuple[float, float]]] = {}

    def timed(self, stage: str, work: Callable[[], T]) -> T:
        """Do it and note how long it took, by the clock and in CPU time of this process."""
        wall, cpu = time.perf_counter(), time.process_time()
        value = work()
        taken = ((time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3)
        self.found.setdefault(stage, []).append(taken)
        return value


def measured(store: Store, fleet: FleetSpec, publishes: int) -> Stages:
    """Publish new models one after another. The first one imports and compiles, and does not count."""
    planning, draw = PlanningActivities(store, ThreadSolver()), random.Random(SEED + 1)
    watch = Watch()
    for number in range(publishes + 1):
        if number == 1:
            watch.found.clear()
        _publish(store, planning, manifest(90000 + number, fleet, draw), watch)
    return watch.found


def _publish(store: Store, planning: PlanningActivities, model: ModelManifest, watch: Watch) -> None:
    """Plan one publish as the planning activity does, as a whole and piece by piece."""
    name, environment = model.name, ActivityEnvironment()
    with store.begin() as repository:
        repository.put_model(model, expected_version=None)
        repository.publish(name, {part.name: _SOURCE for part in model.spec.parts}, change_id=f"{name}-c")
    with store.read() as repository:
        problem = watch.timed("read what the others leave", lambda: residual_problem(repository, name))
        watch.timed("supply left for the transition", lambda: units_in_use(repository, but=name))
    watch.timed("planner.solve.place", lambda: place(problem, [name]))
    stage = StageInput(model=name, change_id=f"{name}-c", kind=ChangeKind.PUBLISH, generation=1)
    watch.timed("place_model, whole: placed", lambda: environment.run(planning.place_model, stage))
    again = stage.model_copy(update={"change_id": f"{name}-d"})
    watch.timed("place_model, whole: kept", lambda: environment.run(planning.place_model, again))
    with store.begin() as repository:
        watch.timed("settle after a failed change", lambda: settle(repository, name, change_id=f"{name}-e"))


def bytes_of(store: Store) -> Mapping[str, int]:
    """Size of the plan documents: of the whole fleet's, and of one model's."""
    query = "SELECT scope IS NULL, max(length(problem) + length(plan) + length(diff)) FROM plans GROUP BY 1"
    with store.read() as repository:
        rows = repository.connection().exec_driver_sql(query).all()
    return {("whole fleet" if fleet else "one model"): size for fleet, size in rows}


def run(models: int, publishes: int) -> tuple[Stages, Mapping[str, int]]:
    """One store of that many models."""
    with tempfile.TemporaryDirectory() as directory:
        store = Store.open(f"sqlite:///{Path(directory) / 'bench.db'}")
        store.migrate()
        fleet = filled(store, models)
        stages = measured(store, fleet, publishes)
        sizes = bytes_of(store)
        store.close()
    return stages, sizes


def main() -> None:
    """Measure the big store and the small one, and show both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--publishes", type=int, default=20)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    (small, _), (big, sizes) = run(given.models // 100, given.publishes), run(given.models, given.publishes)
    table = Table(title=f"milliseconds; median of {given.publishes}, (fastest), CPU; seed {SEED}")
    for head in ("stage", f"{given.models} models", "CPU", f"{given.models // 100} models", "CPU"):
        table.add_column(head, justify="left" if head == "stage" else "right")
    for stage, times in big.items():
        table.add_row(stage, *_shown(times), *_shown(small[stage]))
    console = Console(width=120)
    console.print(table)
    console.print(f"bytes of plan documents: {dict(sizes)}")
    if given.json:
        given.json.write_text(json.dumps({"big": big, "small": small, "bytes": sizes}, indent=1))


def _shown(times: Sequence[tuple[float, float]]) -> tuple[str, str]:
    walls, cpus = [wall for wall, _ in times], [cpu for _, cpu in times]
    return f"{statistics.median(walls):.1f} ({min(walls):.1f})", f"{statistics.median(cpus):.1f}"


if __name__ == "__main__":
    main()
