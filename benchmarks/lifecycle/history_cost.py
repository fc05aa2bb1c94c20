"""What the age of a fleet costs.

The read of one step of a rollout, and the time until a lost region's users go elsewhere.

    .venv/bin/python -m benchmarks.lifecycle.history_cost
        (ARGS: --models 10000 --routed 450 --history 100 --directory DIR --fill --json out.json)

On SQLite and on PostgreSQL, see benchmarks/databases.py for `--engines`, `--directory` and `--fill`.

Steps: a model with 10, 1,000 and 5,000 snapshots, the last but one serves, the last one rolls out. CPU time of the
process, for what an activity of a wave reads and for what validation reads. The baseline reads all generations and
snapshots of the model beside it, in the same run.

A lost region: so many models, each with a history of so many generations and snapshots (10,000 x 100 are a million);
users of `routed` of them are sent to the region. Gateways are in memory and take 25 ms to confirm a table. Wall time
until the first table is confirmed, until all are, and the CPU time of all. The baseline is to read the history of every
routed model before the first table is pushed: measured for some of them, and multiplied. A database that is kept gets
its former tables back first.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, delete, insert

from activities.regions.failover import RegionFailover
from activities.transition.wave_context import WaveContext
from activities.validation.activities import ValidationActivities
from benchmarks.databases import Opened, add_options, databases
from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.errors import Unavailable
from ipnext.infra.fake.infrastructure import MemoryInfrastructure
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.replica import Replica, ReplicaPhase
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.fleet import FleetSpec, SupplyItem
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.changes.transition_run import WaveInput
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.planning.transition import FleetState, GenerationReplicas, GenerationShare, Transition, Wave
from ipnext.model.registry.registry import ArtifactFile, Signature, SnapshotManifest, TensorSpec, single_part_graph
from ipnext.model.value import canonical_json
from ipnext.store.records import TransitionRecord
from ipnext.store.repository import Repository
from ipnext.store.store import Store
from ipnext.store.tables.changes import DeploymentRow, DrainRow, RouteRow, RouteShareRow
from ipnext.store.tables.registry import GenerationRow, ModelRow, SnapshotRow

REGIONS, LOST, PART = ("a", "b", "c"), "c", "part"
COUNTS = (10, 1_000, 5_000)
TENSOR = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
SIGNATURE = Signature(inputs=(TENSOR,), outputs=(TENSOR.model_copy(update={"name": "y"}),))
FILE = ArtifactFile(path="weights.safetensors", sha256="0" * 64, size_bytes=1)
SNAPSHOT = SnapshotManifest(engine="torch", signature=SIGNATURE, files=(FILE,))
GRAPH = single_part_graph(PART, SIGNATURE)
FLEET = FleetSpec(
    regions=REGIONS,
    rtt_ms=((1, 20, 40), (20, 1, 30), (40, 30, 1)),
    hardware=("cpu",),
    supply=tuple(SupplyItem(region=region, hardware="cpu", units=1e6, unit_cost=1) for region in REGIONS),
)
ROWS = 10_000
"""Rows of one INSERT."""


class Gateways(MemoryInfrastructure):
    """Regions that answer at once, and gateways that take a while to confirm a table, as real ones do.

    The time of the first confirmed table is kept.
    """

    def __init__(self, confirm_seconds: float) -> None:
        super().__init__(REGIONS)
        self.first: float | None = None
        self._confirm_seconds = confirm_seconds
        self._replicas: dict[tuple[str, str], list[Replica]] = {}

    def apply(self, deployment: Deployment) -> None:
        """Replicas are ready from the start."""
        key = deployment.key
        self._replicas[key.region, key.model] = [
            Replica(id=f"{key}-{n}", key=key, phase=ReplicaPhase.RUNNING, ready=deployment.generations)
            for n in range(deployment.replicas)
        ]

    def observe(self, region: str, models: Collection[str] | None = None) -> RegionState:
        """Those of some models; the lost region does not answer."""
        if region == LOST:
            msg = f"{region} does not answer"
            raise Unavailable(msg)
        found = tuple(replica for model in models or () for replica in self._replicas.get((region, model), ()))
        return RegionState(region=region, gateway_url="", replicas=found, routes=dict.fromkeys(models or (), 1))

    def route(self, table: RouteTable) -> None:  # noqa: ARG002 - the time is all that matters
        """See the port."""
        time.sleep(self._confirm_seconds)
        if self.first is None:
            self.first = time.perf_counter()


def manifest_of(name: str) -> ModelManifest:
    """One part, users everywhere."""
    spec = {
        "parts": [{"name": PART, "hardware": [{"kind": "cpu", "units": 1, "qps": 100}]}],
        "demand": [{"region": region, "qps": 100} for region in REGIONS],
        "latencyToleranceMs": 100,
        "rollout": {"keepWarm": 1},
    }
    parsed = parse_manifest({"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": name}, "spec": spec})
    assert isinstance(parsed, ModelManifest)
    return parsed


def write(repository: Repository, row: Any, columns: Iterable[Mapping[str, Any]]) -> None:
    """Insert many rows: on PostgreSQL by COPY, which takes a tenth of the time."""
    connection, rows = repository.connection(), iter(columns)
    if connection.dialect.name != "sqlite":
        _copy(connection, row, rows)
        return
    while some := list(islice(rows, ROWS)):
        connection.execute(insert(row), some)


def _copy(connection: Connection, row: Any, rows: Iterator[Mapping[str, Any]]) -> None:
    """Every row has the columns of the first one."""
    first = next(rows, None)
    if first is None:
        return
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    names = sql.SQL(", ").join(map(sql.Identifier, first))
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(row.__tablename__), names)
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        for each in chain([first], rows):
            copy.write_row(tuple(each.values()))


def add_models(repository: Repository, models: Iterable[str], history: int, serving: int) -> None:
    """Models with so many snapshots and generations, by rows: thousands of publishes would take an hour."""
    now, names = datetime.now(UTC), tuple(models)
    write(
        repository,
        ModelRow,
        (
            {
                "name": name,
                "manifest": canonical_json(manifest_of(name)),
                "generation": 1,
                "observed_generation": 1,
                "version": 1,
                "serving_generation": serving,
                "target_generation": history,
                "retired": False,
                "created_at": now,
                "updated_at": now,
            }
            for name in names
        ),
    )
    text, digest = canonical_json(SNAPSHOT), SNAPSHOT.digest
    own = {"model": "", "part": PART, "uri": "file:///x", "manifest": text, "created_at": now}
    for some in (names[start : start + 100] for start in range(0, len(names), 100)):
        numbers = [(name, number) for name in some for number in range(1, history + 1)]
        write(
            repository,
            SnapshotRow,
            (own | {"model": name, "number": number, "digest": f"{number:08}{digest[8:]}"} for name, number in numbers),
        )
        write(
            repository,
            GenerationRow,
            (
                {
                    "model": name,
                    "number": number,
                    "snapshots": canonical_json({PART: number}),
                    "layout": None,
                    "adapters": None,
                    "state": "serving" if number == serving else "retired",
                    "created_at": now,
                    "serving_at": now - timedelta(minutes=5 * (history - number)),
                }
                for name, number in numbers
            ),
        )


def deployments_of(model: str, serving: int, sent: frozenset[str]) -> list[Deployment]:
    """Two replicas in each region; models that are not in `sent` have none in the one that will be lost."""
    held = AssignedSnapshot(snapshot=serving, digest=SNAPSHOT.digest, uri="file:///x", generations=(serving,))
    keys = (DeploymentKey(model=model, part=PART, region=region, hardware="cpu") for region in _regions_of(model, sent))
    return [Deployment(key=key, replicas=2, engine="torch", units=1, qps=100, holds=(held,)) for key in keys]


def tables_of(model: str, serving: int, sent: frozenset[str]) -> list[RouteTable]:
    """Users are spread over all regions of the model."""
    regions = _regions_of(model, sent)
    served = ServedGeneration(generation=serving, graph=GRAPH, snapshots={PART: serving})
    shares = tuple(RouteShare(to=region, generation=serving, fraction=1 / len(regions)) for region in regions)
    return [RouteTable(model=model, region=region, revision=1, shares=shares, served=(served,)) for region in regions]


def _regions_of(model: str, sent: frozenset[str]) -> tuple[str, ...]:
    return REGIONS if model in sent else REGIONS[:2]


def serve(repository: Repository, models: Iterable[str], serving: int, sent: frozenset[str]) -> None:
    """Store the desired state of these models: deployments and route tables."""
    found = tuple(models)
    own = {"replicas": 2, "units": 1.0}
    deployments = (deployment for model in found for deployment in deployments_of(model, serving, sent))
    write(
        repository, DeploymentRow, ({**d.key.model_dump(), **own, "deployment": canonical_json(d)} for d in deployments)
    )
    repository.put_routes([table for model in found for table in tables_of(model, serving, sent)])


def whole_history(repository: Repository, model: str) -> None:
    """Read all generations and snapshots of a model as values: the baseline."""
    repository.generations(model)
    repository.snapshots(model)


def cpu_ms(work: Callable[[], object], times: int = 15) -> float:
    """Median of the process's CPU time. The first one imports and compiles, and does not count."""
    work()
    found = []
    for _ in range(times):
        began = time.process_time()
        work()
        found.append((time.process_time() - began) * 1e3)
    return statistics.median(found)


def fill_steps(count: int) -> Callable[[Store], None]:
    """Return a function that fills a store with one model of so many snapshots."""

    def fill(store: Store) -> None:
        with store.begin() as repository:
            repository.put_fleet(FLEET, expected_version=None)
            add_models(repository, ["m"], count, count - 1)
            serve(repository, ["m"], count - 1, frozenset(["m"]))
            change = repository.add_change("m", ChangeKind.ROLLBACK, change_id="change", generation=count)
            transition = Transition.model_validate(
                {"from": _state(count - 1), "to": _state(count), "waves": (Wave(gate="final"),)}
            )
            repository.save_transition(
                TransitionRecord(
                    id=change.id,
                    model="m",
                    change_id=change.id,
                    generation=count,
                    transition=transition,
                    created_at=datetime.now(UTC),
                )
            )

    return fill


def steps(store: Store, count: int) -> dict[str, float]:
    """CPU milliseconds of what a wave and validation read, and of the whole history."""
    wave = WaveInput(model="m", transition_id="change", generation=count, index=0, deadline_seconds=60)
    stage = StageInput(model="m", change_id="change", kind=ChangeKind.PUBLISH, generation=count)
    with tempfile.TemporaryDirectory() as directory:
        validating = ValidationActivities(store, FileArtifactStore(Path(directory)))

        def step() -> None:
            with store.read() as repository:
                WaveContext.read(repository, wave, "routed")

        def validation() -> None:
            with store.read() as repository:
                validating._candidate(repository, stage)  # noqa: SLF001 - what is measured is the read alone

        def history() -> None:
            with store.read() as repository:
                whole_history(repository, "m")

        return {"wave step": cpu_ms(step), "validation": cpu_ms(validation), "whole history": cpu_ms(history, 5)}


def _state(generation: int) -> FleetState:
    replicas = tuple(GenerationReplicas.from_trusted("m", PART, generation, region, "cpu", 2) for region in REGIONS)
    traffic = tuple(
        GenerationShare.model_validate(
            {"model": "m", "from": region, "to": region, "generation": generation, "fraction": 1.0}
        )
        for region in REGIONS
    )
    return FleetState(replicas=replicas, traffic=traffic)


class Lost:
    """A fleet of which one region is lost: `routed` of its models are sent there, evenly among all."""

    def __init__(self, models: int, routed: int, history: int) -> None:
        self.names = [f"m{number:05}" for number in range(models)]
        self.sent = frozenset(self.names[:: max(1, models // routed)][:routed])
        self._history = history

    def fill(self, store: Store) -> None:
        """Fill a store."""
        with store.begin() as repository:
            repository.put_fleet(FLEET, expected_version=None)
            add_models(repository, self.names, self._history, self._history)
        for start in range(0, len(self.names), 500):
            with store.begin() as repository:
                serve(repository, self.names[start : start + 500], self._history, self.sent)

    def measure(self, store: Store, confirm_seconds: float) -> dict[str, float]:
        """Seconds until the first and the last table are confirmed; and of the baseline's reads alone."""
        self._restore(store)
        infrastructure = Gateways(confirm_seconds)
        for model in self.names:
            for deployment in deployments_of(model, self._history, self.sent):
                infrastructure.apply(deployment)
        some = sorted(self.sent)[:20]
        with store.read() as repository:
            began = time.process_time()
            for name in some:
                whole_history(repository, name)
            baseline = (time.process_time() - began) / len(some) * len(self.sent)
        wall, cpu = time.perf_counter(), time.process_time()
        result = RegionFailover(store, infrastructure).send_around(LOST)
        return {
            "first table, wall s": (infrastructure.first or wall) - wall,
            "all tables, wall s": time.perf_counter() - wall,
            "all tables, CPU s": time.process_time() - cpu,
            "baseline: reads before the first table, CPU s": baseline,
            "models": float(result.models),
            "tables": float(result.tables),
        }

    def _restore(self, store: Store) -> None:
        """Restore the tables as they were before the region was lost, and the recorded drain."""
        with store.begin() as repository:
            connection = repository.connection()
            for row in (RouteShareRow, RouteRow):
                connection.execute(delete(row).where(row.model.in_(sorted(self.sent))))  # type: ignore[attr-defined]
            connection.execute(delete(DrainRow))
            for model in self.sent:
                repository.put_routes(tables_of(model, self._history, self.sent))
            repository.add_drain(LOST, disaster=True)


def shown_steps(engine: str, read: Mapping[int, Mapping[str, float]]) -> Table:
    """One line for each length of a history."""
    table = Table(title=f"{engine}: CPU milliseconds of a read, median")
    for head in ("snapshots of the model", *read[COUNTS[0]], "history / step"):
        table.add_column(head, justify="right")
    for count, found in read.items():
        ratio = found["whole history"] / found["wave step"]
        table.add_row(f"{count:,}", *(f"{ms:.1f}" for ms in found.values()), f"{ratio:.1f}")
    return table


def measured(opened: Opened, engine: str, given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure both on one engine, and show them; or only fill the databases."""
    lost = Lost(given.models, given.routed, given.history)
    stores = {count: opened(engine, f"steps_{count}", fill_steps(count)) for count in COUNTS}
    fleet = opened(engine, f"lost_{given.models}_{given.routed}_{given.history}", lost.fill)
    if given.fill:
        return {}
    read = {count: steps(store, count) for count, store in stores.items()}
    console.print(shown_steps(engine, read))
    found = lost.measure(fleet, given.confirm_ms / 1e3)
    console.print(
        f"{engine}: a lost region, {given.models:,} models with {given.history} generations and snapshots each:"
    )
    for what, figure in found.items():
        console.print(f"  {what}: {figure:,.2f}")
    ratio = found["baseline: reads before the first table, CPU s"] / found["first table, wall s"]
    console.print(f"  the baseline's reads alone take {ratio:.0f} times as long as the first table does")
    return {"steps": read, "disaster": found}


def main() -> None:
    """Measure each engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--routed", type=int, default=450)
    parser.add_argument("--history", type=int, default=100)
    parser.add_argument("--confirm-ms", type=float, default=25.0)
    parser.add_argument("--json", type=Path)
    add_options(parser)
    given = parser.parse_args()
    console = Console(width=120)
    with databases(given.directory, given.engines) as opened:
        results = {engine: measured(opened, engine, given, console) for engine in given.engines}
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
