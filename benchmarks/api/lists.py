"""How long lists, the overview, metrics and single models take to answer in a large fleet.

    .venv/bin/python -m benchmarks.api.lists
        (ARGS: --models 1000 10000 --requests 40 --directory DIR --fill --json out.json)

A store holds N models of one to three parts in 20 regions with four generations each, their changes, conditions,
events, routes and a plan in force, drawn from a seed; one model in 200 is not ready. Their regions report every replica
that is wanted. The API runs in this process and is asked over ASGI, one request after another. What is computed is
measured with nothing kept; the lines `again` ask for the same once more while nothing is written. The baseline of the
same run is one row of one table by its key, and `/healthz`, which asks nothing. Each size is measured on SQLite and on
PostgreSQL, see benchmarks/databases.py for `--engines`, `--directory` and `--fill`.
"""

import argparse
import asyncio
import json
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table
from sqlalchemy import insert, text

from benchmarks.databases import add_options, databases
from benchmarks.lifecycle.place_in_a_big_fleet import filled
from ipnext.api.app import create_app
from ipnext.api.workflow_engine.port import MemoryLifecycle
from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.infra.fake.infrastructure import MemoryInfrastructure
from ipnext.model.deployment.deployment import Deployment
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.replica import Replica, ReplicaPhase
from ipnext.model.fleet import FleetSpec
from ipnext.model.lifecycle.status import ConditionType
from ipnext.process.garbage_collection import collect_rarely
from ipnext.settings import PlatformSettings
from ipnext.store.store import Store
from ipnext.store.tables.row import METADATA

GENERATIONS = 4
NOT_READY = 200
"""One model in so many is not ready."""

BATCH = 2000
PAGE = 50

Times = dict[str, list[tuple[float, float]]]
"""What was asked -> (wall, CPU) milliseconds of each time."""


def filled_with(models: int) -> Callable[[Store], None]:
    """Return a function that fills a store with so many models and their histories."""

    def fill(store: Store) -> None:
        filled(store, models)
        write_histories(store)

    return fill


def write_histories(store: Store) -> None:
    """Give each model four generations, their changes, conditions and events, straight into the tables."""
    with store.read() as unit:
        names = [record.name for record in unit.models()]
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number, name in enumerate(names):
        _history(rows, name, ready=number % NOT_READY > 0)
    with store.begin() as unit:
        connection = unit.connection()
        for table, found in rows.items():
            for start in range(0, len(found), BATCH):
                connection.execute(insert(METADATA.tables[table]), found[start : start + BATCH])
        ready = "SELECT model FROM conditions WHERE type = 'UpToDate' AND status = 'True'"
        connection.execute(text(f"UPDATE models SET ready = TRUE, serving_generation = 4 WHERE name IN ({ready})"))


def _history(rows: dict[str, list[dict[str, Any]]], name: str, *, ready: bool) -> None:
    at = datetime.now(UTC) - timedelta(hours=GENERATIONS)
    for number in range(1, GENERATIONS + 1):
        state = "serving" if number == GENERATIONS else "warm"
        moment = at + timedelta(hours=number - 1)
        generation = {"model": name, "number": number, "snapshots": '{"part0":1}', "state": state, "created_at": moment}
        rows["generations"].append(generation | {"serving_at": moment})
        change = {"id": f"{name}-{number}", "model": name, "kind": "publish", "sequence": number, "generation": number}
        ended = {"state": "done", "reason": "Succeeded", "message": "", "created_at": moment, "finished_at": moment}
        rows["changes"].append(change | ended | {"run_id": "r"})
        rows["events"] += [
            {"at": moment, "model": name, "kind": kind, "message": f"generation {number}", "run_id": "r"}
            for kind in ("Recorded", "Serving")
        ]
    for kind in set(ConditionType) - {ConditionType.READY}:
        status, reason = ("True", "Serving") if ready else ("False", "LoadFailed")
        condition = {"model": name, "type": kind.value, "status": status, "reason": reason, "message": ""}
        rows["conditions"].append(condition | {"last_transition_time": at})


class Reports(MemoryInfrastructure):
    """Regions that report every wanted replica as ready, at once."""

    def __init__(self, fleet: FleetSpec, deployments: Sequence[Deployment]) -> None:
        super().__init__(fleet.regions)
        found: dict[str, list[Replica]] = defaultdict(list)
        for wanted in deployments:
            found[wanted.key.region] += [
                Replica(id=f"{wanted.key}-{n}", key=wanted.key, phase=ReplicaPhase.RUNNING, ready=(GENERATIONS,))
                for n in range(wanted.replicas)
            ]
        self.replicas = sum(map(len, found.values()))
        self._reports = {
            region: RegionState(region=region, gateway_url=f"http://{region}", replicas=tuple(found[region]))
            for region in fleet.regions
        }

    def observe(self, region: str, models: object = None) -> RegionState:  # noqa: ARG002 - of all models
        """Return the report."""
        return self._reports[region]


async def timed(times: list[tuple[float, float]], count: int, ask: Callable[[int], Awaitable[object]]) -> None:
    """Note the milliseconds of each of `count` calls after one that does not count.

    They are by the clock, and in CPU time of this process.
    """
    for number in range(count + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        await ask(number)
        if number:
            times.append(((time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3))


async def measured(store: Store, infrastructure: Reports, requests: int) -> tuple[Times, dict[str, int]]:
    """Ask the API for each thing; return milliseconds and bytes of the answers."""
    times: Times = defaultdict(list)
    sizes: dict[str, int] = {}
    with store.read() as unit:
        names = [name for name, _, _ in unit.served_generations_of_all()]
    with tempfile.TemporaryDirectory() as directory:
        artifacts = FileArtifactStore(Path(directory))
        app = create_app(store, artifacts, infrastructure, MemoryLifecycle(), PlatformSettings(authentication="none"))
        shared = app.state.platform.shared
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://localhost", timeout=600
        ) as http:

            async def get(path: str, *, keep: bool = False) -> None:
                if not keep:
                    shared._kept.clear()  # noqa: SLF001 - each request computes
                answer = await http.get(path)
                answer.raise_for_status()
                sizes[re.sub(r"model-\d+", "M", path.partition("?")[0])] = len(answer.content)

            def middle(number: int) -> str:
                return names[len(names) * number // (requests + 1)]

            async def key(number: int) -> None:
                with store.read() as unit:
                    unit.recorded_readiness([middle(number)])

            await timed(times["baseline: one row by its key"], requests, key)
            await timed(times["baseline: /healthz"], requests, lambda _: get("/healthz"))
            await timed(times["models, a page"], requests, lambda n: get(f"/v1/models?limit={PAGE}&after={middle(n)}"))
            await timed(times["models, not ready"], requests, lambda _: get(f"/v1/models?limit={PAGE}&ready=false"))
            await timed(
                times["models, of an owner"], requests, lambda _: get(f"/v1/models?limit={PAGE}&owner=owner-07")
            )
            await timed(
                times["overview, a page"], requests, lambda n: get(f"/v1/overview?limit={PAGE}&after={middle(n)}")
            )
            await timed(times["overview, not ready"], requests, lambda _: get(f"/v1/overview?limit={PAGE}&ready=false"))
            await timed(times["overview, again"], requests, lambda _: get(f"/v1/overview?limit={PAGE}", keep=True))
            await timed(times["describe"], requests, lambda n: get(f"/v1/models/{middle(n)}"))
            await timed(times["explain"], requests, lambda n: get(f"/v1/models/{middle(n)}/explanation"))
            await timed(times["metrics"], requests, lambda _: get("/metrics"))
            await timed(times["events"], requests, lambda _: get("/v1/events?limit=100"))
            await timed(times["changes"], requests, lambda _: get("/v1/changes?limit=100"))
            await timed(times["regions"], requests, lambda _: get("/v1/regions"))
        app.state.platform.observer.close()
    return times, sizes


def run(store: Store, models: int, requests: int) -> dict[str, Any]:
    """Measure one filled store."""
    with store.read() as unit:
        infrastructure = Reports(unit.fleet().spec, unit.deployments())
    collect_rarely()
    times, sizes = asyncio.run(measured(store, infrastructure, requests))
    return {"models": models, "replicas": infrastructure.replicas, "ms": times, "bytes": sizes}


def shown(engine: str, found: Mapping[str, Any], requests: int) -> Table:
    """One line for each thing that was asked."""
    title = f"{engine}, {found['models']} models, {found['replicas']} replicas; ms of {requests} requests"
    table = Table("", "p50", "p95", "CPU p50", "CPU p95", title=title)
    for name, times in found["ms"].items():
        walls, cpus = zip(*times, strict=True)
        table.add_row(name, *(f"{value:.1f}" for each in (walls, cpus) for value in _quantiles(each)))
    return table


def _quantiles(values: Sequence[float]) -> tuple[float, float]:
    return statistics.median(values), statistics.quantiles(values, n=20)[-1]


def main() -> None:
    """Measure each size on each engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--json", type=Path)
    add_options(parser)
    given = parser.parse_args()
    console, results = Console(width=120), {}
    with databases(given.directory, given.engines) as opened:
        for models in given.models:
            for engine in given.engines:
                store = opened(engine, f"lists_{models}", filled_with(models))
                if given.fill:
                    continue
                results[f"{engine}, {models}"] = run(store, models, given.requests)
                console.print(shown(engine, results[f"{engine}, {models}"], given.requests))
    if given.json:
        given.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
