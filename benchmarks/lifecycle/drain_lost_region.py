"""How long a lost region's traffic takes to go elsewhere, for many models: all at once, against model by model.

    .venv/bin/python -m benchmarks.lifecycle.drain_lost_region  (ARGS: --models 100 --confirm-ms 25 --json out.json)

A store in a SQLite file holds N models of one part that are served in three regions and answer each other's users.
Gateways are in memory and take so long to confirm a table as is asked for. One region is recorded as lost. The baseline
is what transitions would do, one model after the other: the same tables by the same function, through the gateways that
a wave uses.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from rich.console import Console

from activities.regions.failover import RegionFailover
from activities.state.desired import DesiredFacts, read_facts
from activities.state.observed import observe
from activities.state.routes.route_shares import fail_over, survivors
from activities.transition.traffic_shift import Gateways
from ipnext.infra.fake.infrastructure import MemoryInfrastructure
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.fleet import FleetSpec, SupplyItem
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.registry.registry import (
    GenerationState,
    Signature,
    SnapshotManifest,
    SnapshotSource,
    TensorSpec,
    single_part_graph,
)
from ipnext.store.repository import Repository
from ipnext.store.store import Store

REGIONS = ("a", "b", "c")
LOST = "c"
TENSOR = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
SIGNATURE = Signature(inputs=(TENSOR,), outputs=(TENSOR.model_copy(update={"name": "y"}),))
FLEET = FleetSpec(
    regions=REGIONS,
    rtt_ms=((1, 20, 40), (20, 1, 30), (40, 30, 1)),
    hardware=("cpu",),
    supply=tuple(SupplyItem(region=region, hardware="cpu", units=100_000, unit_cost=1) for region in REGIONS),
)


class SlowGateways(MemoryInfrastructure):
    """Each table takes a while to be confirmed, as in a real gateway."""

    def __init__(self, confirm_seconds: float) -> None:
        super().__init__(REGIONS)
        self.confirm_seconds = 0.0
        self._later = confirm_seconds

    def begin(self) -> None:
        """From now on it takes long."""
        self.confirm_seconds = self._later

    def route(self, table: RouteTable) -> None:
        """See the port."""
        super().route(table)
        time.sleep(self.confirm_seconds)

    def _remember(self, call: str, subject: str, refused: str | None) -> None:
        """No history: it would cost more than the work."""


def manifest_of(name: str) -> ModelManifest:
    """One part, users everywhere."""
    part = {"name": "part", "hardware": [{"kind": "cpu", "units": 1, "qps": 100}]}
    spec = {
        "parts": [part],
        "demand": [{"region": region, "qps": 100} for region in REGIONS],
        "latencyToleranceMs": 100,
    }
    parsed = parse_manifest({"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": name}, "spec": spec})
    assert isinstance(parsed, ModelManifest)
    return parsed


def fill(store: Store, infrastructure: SlowGateways, models: int) -> None:
    """Models that serve: two replicas in each region, users spread over all three."""
    with store.begin() as repository:
        repository.put_fleet(FLEET, expected_version=None)
    for number in range(models):
        with store.begin() as repository:
            add_model(repository, infrastructure, f"m{number:05}")
    with store.begin() as repository:
        repository.add_drain(LOST, disaster=True)
    observe(infrastructure, REGIONS)
    infrastructure.cut(LOST)
    infrastructure.begin()


def add_model(repository: Repository, infrastructure: SlowGateways, name: str) -> None:
    """One that serves everywhere."""
    repository.put_model(manifest_of(name), expected_version=None)
    snapshot = SnapshotManifest(engine="torch", signature=SIGNATURE, files=())
    source = SnapshotSource(manifest=snapshot, uri=f"file:///{name}")
    repository.publish(name, {"part": source}, change_id=f"{name}-1")
    repository.set_generation_state(name, 1, GenerationState.SERVING)
    repository.update_model(name, serving_generation=1)
    held = AssignedSnapshot(snapshot=1, digest=snapshot.digest, uri=source.uri, generations=(1,))
    served = ServedGeneration(generation=1, graph=single_part_graph("part", SIGNATURE), snapshots={"part": 1})
    shares = tuple(RouteShare(to=region, generation=1, fraction=1 / 3) for region in REGIONS)
    for region in REGIONS:
        key = DeploymentKey(model=name, part="part", region=region, hardware="cpu")
        deployment = Deployment(key=key, replicas=2, engine="torch", units=1, qps=100, holds=(held,))
        table = RouteTable(model=name, region=region, revision=1, shares=shares, served=(served,))
        repository.put_deployment(deployment)
        repository.put_route(table)
        infrastructure.apply(deployment)
        infrastructure.route(table)


def at_once(store: Store, infrastructure: SlowGateways) -> None:
    """Reroute all models as the drain does."""
    RegionFailover(store, infrastructure).send_around(LOST)


def one_by_one(store: Store, infrastructure: SlowGateways) -> None:
    """Reroute all models as a wave of each model would."""
    with store.read() as repository:
        names = [record.name for record in repository.models()]
    for name in names:
        with store.read() as repository:
            facts: DesiredFacts = read_facts(repository, name, 1)
        held = tuple(facts.deployments.values())
        now = {region: table.shares for region, table in facts.tables.items()}
        Gateways(store, infrastructure, facts).follow(fail_over(facts, now, survivors(facts, held)), held)


def seconds_of(way: Callable[[Store, SlowGateways], None], models: int, confirm_seconds: float) -> float:
    """Wall seconds until every gateway that is left sends nothing to the lost region."""
    infrastructure = SlowGateways(confirm_seconds)
    with tempfile.TemporaryDirectory() as directory, closing(Store.open(f"sqlite:///{directory}/store.db")) as store:
        store.migrate()
        fill(store, infrastructure, models)
        began = time.perf_counter()
        way(store, infrastructure)
        took = time.perf_counter() - began
    for region in set(REGIONS) - {LOST}:
        for number in range(models):
            table = infrastructure.table(f"m{number:05}", region)
            assert table is not None
            assert LOST not in {share.to for share in table.shares}
    return took


def main() -> None:
    """Both ways once each, in one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--confirm-ms", type=float, default=25.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    once = seconds_of(at_once, given.models, given.confirm_ms / 1000)
    each = seconds_of(one_by_one, given.models, given.confirm_ms / 1000)
    found = {
        "models": given.models,
        "confirm_ms": given.confirm_ms,
        "at_once_seconds": once,
        "one_by_one_seconds": each,
        "ratio": each / once,
    }
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    Console().print(
        f"{given.models} models: {once:.2f} s at once, {each:.2f} s one by one (baseline): "
        f"{each / once:.1f} times faster"
    )


if __name__ == "__main__":
    main()
