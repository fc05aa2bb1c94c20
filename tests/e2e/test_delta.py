"""Deltas through the whole platform.

A user publishes changed rows, hosts make the next generation from what they hold.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import psutil
import pytest
import torch
from torch import Tensor, nn
from typer.testing import Result

from ipnext.errors import InvalidInput
from ipnext.model.registry.registry import SNAPSHOT_FILE, SnapshotManifest
from serving.deltas.export import export_delta
from serving.engines.base import find_engine
from serving.export import export_model
from serving.weights.row_changes import Rows
from tests.e2e.conftest import ipnext
from tests.processes import get_from
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.e2e

ROWS, WIDTH = 20_000, 16
TABLE_BYTES = ROWS * WIDTH * 4
IDS = np.array([[0, 3, 17], [5, 100, 1999], [ROWS - 1, 17, 250], [3, 3, 3]], np.int64)
MANIFEST = """
apiVersion: ipnext/v1
kind: Model
metadata: {name: NAME, owner: tests}
spec:
  parts:
    - {name: ranker, hardware: [{kind: cpu, units: 1, qps: 60}]}
  demand: [{region: us-east, qps: 50}, {region: eu-west, qps: 50}]
  latencyToleranceMs: 120
  rollout: {canary: 0.5, maxStep: 0.5, deadlineSeconds: 180}
"""


class Ranker(nn.Module):
    """items [B, 3] -> score [B]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.items = nn.EmbeddingBag(ROWS, WIDTH)
        self.top = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, items: Tensor) -> dict[str, Tensor]:
        return {"score": torch.sigmoid(self.top(self.items(items))).squeeze(1)}


class Shop:
    """A model of two hosts that is trained on.

    Its snapshots lie in `root` by the numbers that they get on the platform.
    """

    def __init__(self, platform: Any, name: str, root: Path) -> None:
        self.platform = platform
        self.client = platform.client
        self.name = name
        self.root = root
        self.ranker = Ranker().eval().requires_grad_(requires_grad=False)
        self.bits: dict[int, bytes] = {}

    def train(self, number: int) -> Path:
        """Change rows and a dense weight; the whole model as a snapshot, which is not published."""
        self.ranker.items.weight[[3, 17, 250 + number, ROWS - 1]] += 0.1 * number
        self.ranker.top[0].weight[number % 8] -= 0.05
        return self.full(number)

    def full(self, number: int) -> Path:
        """The whole model as a snapshot. Notes what it answers."""
        directory = self.root / f"full-{number}"
        export_model(self.ranker, {"items": torch.zeros(2, 3, dtype=torch.int64)}, directory)
        manifest = SnapshotManifest.model_validate_json((directory / SNAPSHOT_FILE).read_bytes())
        part = find_engine(manifest.engine).load(directory, manifest, {})
        self.bits[number] = part.infer({"items": IDS})["score"].tobytes()
        return directory

    def delta(self, number: int, parent: Path, *bases: Path) -> Path:
        """Train, and write what is other than in `parent`."""
        self.train(number)
        directory = self.root / f"delta-{number}"
        export_delta(parent, self.ranker, directory, bases=bases)
        return directory

    def publish(self, directory: Path) -> Any:
        return self.ended(self.client.publish(self.name, {"ranker": directory}))

    def ended(self, change: Any) -> Any:
        return self.client.wait_change(change.id, timeout_seconds=PATIENCE_SECONDS)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`ipnext ...`, as a person runs it."""
        environment = {**os.environ, "IPNEXT_API_URL": self.platform.endpoints["api"], "OMP_NUM_THREADS": "1"}
        whole = [sys.executable, "-m", "ipnext.cli", *words]
        return subprocess.run(whole, env=environment, capture_output=True, text=True, check=False)

    def command(self, *words: str) -> Result:
        """`ipnext ...` in this process."""
        return ipnext(*words, api=self.platform.endpoints["api"])

    def ask(self, region: str) -> httpx.Response:
        tensor = {"name": "items", "shape": list(IDS.shape), "datatype": "INT64", "data": IDS.ravel().tolist()}
        url = f"{self.platform.endpoints['gateways'][region]}/v2/models/{self.name}/infer"
        return httpx.post(url, json={"inputs": [tensor]}, timeout=60, trust_env=False)

    def answers(self, generation: int) -> bool:
        """Whether both regions answer with the generation."""
        found = [self.ask(region) for region in self.platform.endpoints["gateways"]]
        return all(a.status_code == 200 and a.headers["x-ipnext-generation"] == str(generation) for a in found)

    def check(self, generation: int) -> None:
        """Both regions answer with the bits of the full model, and prove it by the snapshot's number."""
        for region in self.platform.endpoints["gateways"]:
            answer = self.ask(region)
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-ipnext-generation"] == str(generation)
            assert answer.headers["x-ipnext-snapshots"] == f"ranker={generation}"
            [score] = answer.json()["outputs"]
            assert np.array(score["data"], np.float32).tobytes() == self.bits[generation]

    @property
    def hosts(self) -> list[psutil.Process]:
        return self.platform.found("serving.host", f"--id {self.name}.ranker.")

    def held(self) -> list[dict[int, int]]:
        """For each host: snapshot -> bytes that it takes beside what it shares."""
        return [{s["snapshot"]: s["size_bytes"] for s in state(host)["memory"]["snapshots"]} for host in self.hosts]


def state(host: psutil.Process) -> Mapping[str, Any]:
    """What a host tells of itself."""
    return get_from(host, "/control/state").json()


def ways(shop: Shop, snapshot: int) -> list[str]:
    """What the hosts' logs say that a delta was made from."""
    found = []
    for log in shop.platform.state.glob(f"regions/*/logs/{shop.name}.ranker.*.log"):
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        found += [line["made_from"] for line in lines if (line["event"], line.get("snapshot")) == ("delta", snapshot)]
    return found


@pytest.fixture(scope="module")
def platform(bare: Any) -> Any:
    return bare


@pytest.fixture
def shop(platform: Any, tmp_path: Path) -> Iterator[Shop]:
    """A model whose generation 1, a full snapshot, serves."""
    shop = Shop(platform, f"shop-{uuid4().hex[:6]}", tmp_path)
    shop.client.apply(MANIFEST.replace("NAME", shop.name))
    done = shop.publish(shop.full(1))
    assert done.state == "done", done.message
    yield shop
    shop.ended(shop.client.delete(shop.name))


def test_deltas_are_served_from_their_parents_by_every_host_and_can_be_rolled_back(shop: Shop) -> None:
    shop.check(1)
    first, second, third = shop.root / "full-1", shop.root / "delta-2", shop.root / "third"
    done = shop.publish(shop.delta(2, first))
    assert (done.state, done.generation) == ("done", 2), done.message
    shop.check(2)
    assert len(shop.hosts) == 2
    for sizes in shop.held():
        assert sizes[1] > TABLE_BYTES
        assert sizes[2] < TABLE_BYTES / 10
    digest = shop.client.snapshots(shop.name)[-1].digest
    assert ways(shop, 2) == [f"1 delta(s) on held {digest:.12}"] * 2

    made = ipnext(*("delta", str(second), str(shop.train(3)), "--base", str(first), "--out", str(third), "-o", "json"))
    assert json.loads(made.stdout)["rows"] < 50, made.output
    told = shop.run("publish", shop.name, "--part", f"ranker={third}", "--wait")
    assert told.returncode == 0, told.stderr
    shop.check(3)

    for generation in (2, 1, 3):
        done = shop.ended(shop.client.rollback(shop.name, generation=generation))
        assert done.state == "done", done.message
        shop.check(generation)


def test_a_host_that_starts_afresh_walks_the_lineage(shop: Shop) -> None:
    """Its cache is empty, and snapshot 1, on which the deltas stand, is not among what it is told to hold."""
    first, second = shop.root / "full-1", shop.delta(2, shop.root / "full-1")
    assert shop.publish(second).state == "done"
    assert shop.publish(shop.delta(3, second, first)).state == "done"
    until(lambda: [set(sizes) for sizes in shop.held()] == [{2, 3}, {2, 3}])

    before = {host.pid for host in shop.hosts}
    for cache in shop.platform.state.glob("regions/*/cache"):
        shutil.rmtree(cache)
    for host in shop.hosts:
        host.kill()
    until(lambda: shop.hosts and {host.pid for host in shop.hosts}.isdisjoint(before))
    until(lambda: shop.answers(3))
    shop.check(3)
    digest = shop.client.snapshots(shop.name)[-1].digest
    assert ways(shop, 2)[-1] == f"1 delta(s) on fetched {digest:.12}"


def test_a_delta_of_a_snapshot_that_no_host_holds_any_more_is_served(shop: Shop) -> None:
    for number in (2, 3):
        assert shop.publish(shop.train(number)).state == "done"
    until(lambda: [set(sizes) for sizes in shop.held()] == [{2, 3}, {2, 3}])
    done = shop.publish(shop.delta(4, shop.root / "full-1"))
    assert done.state == "done", done.message
    shop.check(4)


def test_a_delta_of_an_unknown_snapshot_is_refused_and_nothing_is_recorded(shop: Shop) -> None:
    orphan, changes = shop.delta(3, shop.train(2)), tuple(shop.client.changes(shop.name))
    with pytest.raises(InvalidInput, match=rf"a delta of snapshot [0-9a-f]{{64}}, which {shop.name}\.ranker does not"):
        shop.client.publish(shop.name, {"ranker": orphan})
    told = shop.command("publish", shop.name, "--part", f"ranker={orphan}")
    assert (told.exit_code, "Publish the parent first, or a full snapshot" in told.stderr) == (2, True)
    assert tuple(shop.client.changes(shop.name)) == changes
    shop.check(1)


def test_a_delta_with_nan_in_a_row_is_refused_and_explained(shop: Shop) -> None:
    rows = Rows(torch.tensor([8]), torch.full((1, WIDTH), torch.nan))
    export_delta(shop.root / "full-1", {"items.weight": rows}, shop.root / "bad")
    done = shop.publish(shop.root / "bad")
    assert (done.state, done.reason) == ("refused", "NonFiniteWeights"), done.message
    told = shop.command("explain", shop.name, "-o", "json").stdout
    assert "tensor 'values:state:items.weight' of part 'ranker' holds NaN or infinity" in told
    shop.check(1)


def test_a_delta_whose_ancestor_has_left_the_store_is_refused_and_explained(shop: Shop) -> None:
    first, second = shop.root / "full-1", shop.delta(2, shop.root / "full-1")
    assert shop.publish(second).state == "done"
    digest = next(s.digest for s in shop.client.snapshots(shop.name) if s.number == 1)
    [lost] = shop.platform.state.glob(f"**/artifacts/snapshots/{digest}")
    aside = lost.rename(lost.with_name("aside"))
    try:
        done = shop.publish(shop.delta(3, second, first))
    finally:
        aside.rename(lost)
    assert (done.state, done.reason) == ("refused", "ArtifactMissing"), done.message
    words = "its ancestor 1 is not in the artifact store any more; publish a full snapshot"
    assert words in shop.client.explain(shop.name).message
    assert words in shop.command("describe", shop.name, "-o", "json").stdout
    shop.check(2)
