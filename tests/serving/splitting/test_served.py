"""A split model behind a real router, its segments on two real hosts.

The bits of the unsplit snapshot in this process.
"""

import numpy as np
import torch
from torch import nn

from ipnext.artifacts.upload import ingest_directory
from ipnext.model.deployment.host_control import HostedSnapshot
from ipnext.model.deployment.router_table import PartEndpoint, RoutedModel, RouterTable
from ipnext.model.deployment.served_generation import ServedGeneration
from serving.engines.torch.engine import TorchEngine
from serving.export import export_model
from serving.splitting.policy import parse_policy
from serving.splitting.split import split_snapshot
from tests.waiting import until

POLICY = {
    "parts": [
        {"name": "sparse", "modules": ["tables.*"], "shard": {"by": "count", "count": 2}},
        {"name": "middle", "modules": ["middle"]},
    ],
    "default": "dense",
}


class Ranker(nn.Module):
    """Four tables, two for each shard, and a middle that comes between two calls of the default part."""

    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(20, 4) for _ in range(4)])
        self.first, self.middle, self.last = nn.Linear(19, 13), nn.Linear(13, 13), nn.Linear(13, 1)

    def forward(self, user, item, dense):
        rows = [table(ids) for table, ids in zip(self.tables, (user, item, user, item), strict=True)]
        low = torch.relu(self.first(torch.cat([*rows, dense], 1)))
        return {"score": self.last(low + torch.tanh(self.middle(low))).squeeze(1), "likes": low > 0.5}


def request(batch):
    random = np.random.default_rng(batch)
    ids = {name: random.integers(0, 20, batch) for name in ("user", "item")}
    return ids | {"dense": random.standard_normal((batch, 3)).astype(np.float32)}


def test_a_split_model_is_served_across_hosts_with_equal_bits(tmp_path, published, machine, toolbox):
    torch.manual_seed(0)
    examples = {name: torch.from_numpy(array) for name, array in request(4).items()}
    manifest = export_model(Ranker(), examples, tmp_path / "whole")
    report = split_snapshot(tmp_path / "whole", parse_policy(POLICY), out=tmp_path / "split")
    assert [tensor.shape for tensor in report.tensors if tensor.carries] == [(-1, 2, 4), (-1, 2, 4)]
    whole = TorchEngine().load(tmp_path / "whole", manifest, {})
    hosts = [machine.start_host(name, wait=False) for name in ("one", "two")]
    router = machine.start_router("router")
    names = [segment.name for segment in report.segments]
    sources = {name: ingest_directory(published.store, tmp_path / "split" / name) for name in names}
    homes = {name: hosts[place % 2] for place, name in enumerate(names)}
    for host in hosts:
        until(host.answers)
        host.hold(*(hold(name, sources[name]) for name in names if homes[name] is host))
    for host in hosts:
        assert not host.settle().failures
    served = ServedGeneration(generation=1, graph=report.graph, snapshots=dict.fromkeys(names, 1))
    endpoints = tuple(PartEndpoint(part=name, url=homes[name].url, generations=(1,)) for name in names)
    model = RoutedModel(model="ranker", served=(served,), endpoints=endpoints)
    router.follow(RouterTable(revision=1, region="north", models=(model,)))
    for batch in (1, 2, 64, 257):
        answer = toolbox.decode(router.infer("/v2/models/ranker/infer", request(batch)))
        for name, expected in whole.infer(request(batch)).items():
            assert np.array_equal(answer.outputs[name].data, expected), (batch, name)


def hold(name, source):
    return HostedSnapshot(
        model="ranker",
        part=name,
        engine="torch",
        snapshot=1,
        digest=source.manifest.digest,
        uri=source.uri,
        generations=(1,),
    )
