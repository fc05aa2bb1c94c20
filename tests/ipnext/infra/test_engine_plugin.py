"""An engine of another distribution, from an entry point to an answer at the gateway.

Real agent, Envoy, router and host.
"""

import hashlib
import os

import numpy as np
import pytest

from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.artifacts.upload import ingest_directory
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.registry.registry import ArtifactFile, Signature, SnapshotManifest, TensorSpec, single_part_graph
from tests.plugin_packages import write_distribution

CODE = """
import json


class TimesEngine:
    def load(self, directory, manifest, settings):
        return Times(manifest.signature, json.loads((directory / "factor.json").read_text()) + settings.get("more", 0))


class Times:
    size_bytes = 8
    rows_are_independent = True

    def __init__(self, signature, factor):
        self.signature, self.factor = signature, factor

    def infer(self, inputs):
        return {"y": inputs["x"] * self.factor}

    def warm_up(self):
        pass

    def close(self):
        pass
"""


@pytest.fixture
def agent(new_agent, tmp_path):
    packages = tmp_path / "packages"
    write_distribution(packages, "times_engine", CODE, {"ipnext.engines": {"times": "times_engine:TimesEngine"}})
    path = os.pathsep.join(filter(None, (str(packages), os.environ.get("PYTHONPATH"))))
    store = FileArtifactStore(tmp_path / "artifacts")
    return new_agent(artifacts=store.uri, real=True, environment={"PYTHONPATH": path}).start()


def test_a_registered_engine_serves_what_is_published_for_it(agent, tmp_path):
    directory = tmp_path / "snapshot"
    directory.mkdir()
    (directory / "factor.json").write_text("2")
    x, y = (TensorSpec(name=name, datatype="FP32", shape=(-1, 3)) for name in ("x", "y"))
    signature = Signature(inputs=(x,), outputs=(y,))
    content = (directory / "factor.json").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    file = ArtifactFile(path="factor.json", sha256=digest, size_bytes=len(content))
    manifest = SnapshotManifest(engine="times", signature=signature, files=(file,))
    (directory / "snapshot.json").write_text(manifest.model_dump_json())
    source = ingest_directory(FileArtifactStore(tmp_path / "artifacts"), directory)
    held = AssignedSnapshot(snapshot=1, digest=source.manifest.digest, uri=source.uri, generations=(1,))
    key = DeploymentKey(model="scaled", part="whole", region="eu", hardware="cpu")
    settings = {"more": 5}
    agent.infra.apply(Deployment(key=key, replicas=1, engine="times", units=1, qps=1, holds=(held,), settings=settings))
    agent.await_ready(key, 1)
    served = ServedGeneration(generation=1, graph=single_part_graph("whole", signature), snapshots={"whole": 1})
    shares = (RouteShare(to="eu", generation=1, fraction=1.0),)
    agent.infra.route(RouteTable(model="scaled", region="eu", revision=1, shares=shares, served=(served,)))
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.0, 3.0]}]}
    answer = agent.client.post(f"{agent.gateway}/v2/models/scaled/infer", json=body)
    assert answer.status_code == 200, answer.text
    np.testing.assert_array_equal(answer.json()["outputs"][0]["data"], [7.0, 14.0, 21.0])
