"""How long a publish takes until all traffic is on it, stage by stage, beside the bare load of the same snapshot.

    make bench            (ARGS='--generations 12 --megabytes 10 --engines PostgreSQL --json out.json')

One run on one platform for each engine of the store: two regions, one replica each, no canary, no hold. The baseline is
what no platform can avoid: fetching the snapshot from the artifact store, loading and warming it up in one process.
`overhead` is the rest. Times come from the histories of the runs (Temporal's clock) and from this process's clock for
publish and baseline.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import torch
from rich.console import Console
from rich.table import Table
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client as Temporal
from torch import Tensor, nn

from benchmarks.databases import ENGINES, empty_databases
from demo.embedded import Embedded
from ipnext import names
from ipnext.artifacts.stores.locations import open_store
from ipnext.client import Client
from serving.engines.torch.engine import TorchEngine
from serving.export import export_model

MODEL = "bench"
WIDTH = 16
MANIFEST = f"""
apiVersion: ipnext/v1
kind: Model
metadata: {{name: {MODEL}, owner: bench}}
spec:
  parts: [{{name: table, hardware: [{{kind: cpu, units: 1, qps: 100}}]}}]
  demand: [{{region: us-east, qps: 50}}, {{region: eu-west, qps: 50}}]
  latencyToleranceMs: 50
  rollout: {{canary: 1, maxStep: 1, holdSeconds: 0}}
"""


class Lookup(nn.Module):
    """ids [B, 4] -> score [B]; all its size is the table."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the mean of the rows."""
        mean: Tensor = self.table(ids).mean(dim=(1, 2))
        return mean


def bare_load_seconds(artifacts: str, uri: str) -> float:
    """Fetch, load and warm up, in this process."""
    with tempfile.TemporaryDirectory() as cache:
        began = time.perf_counter()
        store = open_store(artifacts)
        directory = store.fetch(uri, Path(cache))
        part = TorchEngine().load(directory, store.manifest(uri), {})
        part.warm_up()
        seconds = time.perf_counter() - began
        part.close()
    return seconds


async def stages(address: str, workflow_id: str) -> list[tuple[str, datetime, datetime, datetime]]:
    """(activity, scheduled, started, completed) of a run, children included, in order."""
    client = await Temporal.connect(address)
    found: list[tuple[str, datetime, datetime, datetime]] = []
    waiting = [workflow_id]
    while waiting:
        scheduled: dict[int, Any] = {}
        started: dict[int, Any] = {}
        async for event in client.get_workflow_handle(waiting.pop()).fetch_history_events():
            when = event.event_time.ToDatetime()
            match event.event_type:
                case EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
                    scheduled[event.event_id] = (
                        event.activity_task_scheduled_event_attributes.activity_type.name,
                        when,
                    )
                case EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED:
                    started[event.activity_task_started_event_attributes.scheduled_event_id] = when
                case EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
                    number = event.activity_task_completed_event_attributes.scheduled_event_id
                    found.append((*scheduled[number], started[number], when))
                case EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_STARTED:
                    child = event.child_workflow_execution_started_event_attributes.workflow_execution.workflow_id
                    waiting.append(child)
    return sorted(found, key=lambda stage: stage[1])


def publish_once(client: Client, endpoints: Mapping[str, Any], snapshot: Path, state: Path) -> dict[str, float]:
    """Seconds of one publish: each activity, the waits between them, the whole, and the bare load."""
    wall, began = time.time(), time.perf_counter()
    change = client.publish(MODEL, {"table": snapshot})
    acknowledged = time.perf_counter() - began
    done = client.wait_change(change.id, timeout_seconds=120)
    assert done.state == "done", done
    for url in endpoints["gateways"].values():
        body = {"inputs": [{"name": "ids", "shape": [1, 4], "datatype": "INT64", "data": [1, 2, 3, 4]}]}
        answer = httpx.post(f"{url}/v2/models/{MODEL}/infer", json=body, trust_env=False)
        assert answer.headers[names.GENERATION_HEADER] == str(done.generation), answer.text
    history = asyncio.run(stages(endpoints["temporal_address"], names.lifecycle_workflow_id(MODEL, change.id)))
    row = {"upload and acknowledge": acknowledged}
    for name, _, started, completed in history:
        row[name] = row.get(name, 0.0) + (completed - started).total_seconds()
    serving = max(completed for name, _, _, completed in history if name == "shift_traffic")
    whole = (serving - datetime.utcfromtimestamp(wall)).total_seconds()  # noqa: DTZ004 - the history's times are naive UTC
    before = [s for s in history if s[3] <= serving]
    row["engine and waits"] = whole - acknowledged - sum((s[3] - s[2]).total_seconds() for s in before)
    row["publish to 100 % serving"] = whole
    source = client.snapshots(MODEL)[-1]
    newest = max(client.snapshots(MODEL), key=lambda s: s.number) if source else source
    row["baseline: bare load"] = bare_load_seconds(f"file://{state / 'artifacts'}", newest.uri)
    row["overhead"] = whole - row["baseline: bare load"]
    return row


def table(engine: str, rows: Sequence[Mapping[str, float]]) -> Table:
    """Median, lowest and highest of each stage."""
    shown = Table(title=f"publish to serving, {engine}, {len(rows)} publishes, seconds")
    for column in ("stage", "median", "min", "max"):
        shown.add_column(column, justify="left" if column == "stage" else "right")
    for name in rows[0]:
        values = [row[name] for row in rows if name in row]
        shown.add_row(name, *(f"{f(values):.3f}" for f in (statistics.median, min, max)))
    return shown


def measured(database_url: str, rows: int, generations: int) -> list[dict[str, float]]:
    """Start a platform and publish that many generations after a first one, which starts the host processes."""
    options = ("--database-url", database_url)
    found = []
    with tempfile.TemporaryDirectory() as place, Embedded(Path(place), options=options) as platform:
        client = Client(platform.endpoints["api"])
        client.apply(MANIFEST)
        for number in range(generations + 1):
            torch.manual_seed(number)
            snapshot = Path(place) / "snapshots" / str(number)
            export_model(Lookup(rows).eval(), {"ids": torch.zeros(2, 4, dtype=torch.int64)}, snapshot)
            found.append(publish_once(client, platform.endpoints, snapshot, Path(place)))
    return found[1:]


def main() -> None:
    """Print a table for each engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--megabytes", type=float, default=10.0)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = int(given.megabytes * 1e6 / (4 * WIDTH))
    found = {}
    with empty_databases(given.engines) as empty:
        for engine in given.engines:
            found[engine] = measured(empty(engine, "bench"), rows, given.generations)
            Console().print(table(engine, found[engine]))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
