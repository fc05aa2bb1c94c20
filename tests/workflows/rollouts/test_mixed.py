"""Embedding, ranking and generation on three kinds of hardware.

Planned, loaded and moved together, read from all that the infrastructure was told.
"""

import pytest

from ipnext.artifacts.checkpoints.checkpoint_import import import_checkpoint
from ipnext.artifacts.upload import ingest_directory
from ipnext.model.deployment.deployment import DeploymentKey
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.status import Reason
from ipnext.model.registry.registry import Signature, TensorSpec
from tests.genai.support.checkpoints import write_bert, write_llama
from tests.mixed import GRAPH, manifest

pytestmark = pytest.mark.usefixtures("workers")

FLEET = """
apiVersion: ipnext/v1
kind: Fleet
spec:
  regions: [us-east, eu-west]
  rttMs: [[1, 76], [76, 1]]
  hardware: [cpu, l4, h100]
  supply:
    - {region: us-east, hardware: cpu, units: 40, unitCost: 1.0}
    - {region: us-east, hardware: l4, units: 10, unitCost: 4.0}
    - {region: us-east, hardware: h100, units: 10, unitCost: 20.0}
"""
HARDWARE = {"embedder": ("l4", 30), "ranker": ("cpu", 50), "llm": ("h100", 10)}
"""Part -> kind, and requests a second of a replica."""
REPLICAS = {"embedder": 1, "ranker": 1, "llm": 2}
"""For 20 requests a second."""
RANKER = Signature(
    inputs=tuple(TensorSpec(name=name, datatype="FP32", shape=(-1, 4)) for name in ("query", "documents")),
    outputs=tuple(
        TensorSpec(name=name, datatype="FP32", shape=(-1,)) for name in ("score", "embedder", "question", "ranker")
    ),
)


@pytest.fixture
def apply(house, kit, model):
    house.apply_fleet(FLEET)
    parts = manifest()["spec"]["parts"]
    for part in parts:
        kind, qps = HARDWARE[part["name"]]
        part["hardware"] = [{"kind": kind, "units": 1, "qps": qps}]

    def applied(**rollout):
        given = {"canary": 0.5, "maxStep": 0.5, "deadlineSeconds": 180, "keepWarm": 0, **rollout}
        demand = [{"region": "us-east", "qps": 20}]
        house.apply(model, task="generation", parts=parts, graph=GRAPH, demand=demand, rollout=given)

    return applied


@pytest.fixture
def publish(house, kit, model, carried_out, tmp_path):
    async def published(number, **changed):
        directories = {
            "embedder": import_checkpoint(
                write_bert(tmp_path / f"e{number}", stamp=number), tmp_path / f"embedder-{number}"
            ),
            "llm": import_checkpoint(write_llama(tmp_path / f"l{number}", seed=number), tmp_path / f"llm-{number}"),
        }
        sources = {part: ingest_directory(house.artifacts, tmp_path / f"{part}-{number}") for part in directories}
        sources["ranker"] = house.source(RANKER, kit.weights(number))
        with house.store.begin() as repository:
            change = repository.publish(model, sources | changed, change_id=f"{model}-p{number}")
        return await carried_out(change)

    return published


def key(model, part):
    return DeploymentKey(model=model, part=part, region="us-east", hardware=HARDWARE[part][0])


def weight(moment, generation):
    return sum(s.fraction for table in moment.routes.values() for s in table.shares if s.generation == generation)


def ready(moment, model, generation):
    return {part: moment.ready.get((key(model, part), generation), 0) for part in HARDWARE}


async def test_three_parts_are_placed_each_on_its_hardware_and_move_together(house, model, apply, publish):
    apply()
    for number in (1, 2):
        change = await publish(number)
        assert change.state is ChangeState.DONE, change.message

    history = house.infrastructure.history
    last = {str(k.part): d for k, d in history[-1].deployments.items()}
    assert {part: (d.engine, d.replicas) for part, d in last.items()} == {
        "embedder": ("vllm", REPLICAS["embedder"]),
        "ranker": ("torch", REPLICAS["ranker"]),
        "llm": ("vllm", REPLICAS["llm"]),
    }
    assert weight(history[-1], 2) == 1
    seen = set()
    for moment in history:
        for generation in (1, 2):
            if weight(moment, generation):
                assert all(ready(moment, model, generation).values()), (moment.number, moment.call, generation)
                seen.add(generation)
    assert seen == {1, 2}
    both = [d for m in history for d in m.deployments.values() if len(d.generations) > 1]
    assert both, "for a while both generations have hosts"
    assert all(d.own for d in both), "each has processes of its own, the ranker's too"


@pytest.mark.parametrize("part", ["embedder", "ranker", "llm"])
async def test_no_part_gets_traffic_while_another_is_not_loaded(house, model, apply, publish, quick_waits, part):
    apply(deadlineSeconds=120)
    await publish(1)
    house.infrastructure.stall(key(model, part))

    change = await publish(2)

    assert (change.state, change.reason) == (ChangeState.ROLLED_BACK, Reason.DEADLINE_EXCEEDED)
    assert all(weight(moment, 2) == 0 for moment in house.infrastructure.history)
    others = [ready(m, model, 2) for m in house.infrastructure.history]
    assert any(all(count for name, count in found.items() if name != part) for found in others), "the others were ready"


async def test_a_ranker_for_other_vectors_is_refused_before_anything_moves(house, kit, model, apply, publish):
    apply()
    await publish(1)
    wide = Signature(
        inputs=tuple(i.model_copy(update={"shape": (-1, 8)}) for i in RANKER.inputs), outputs=RANKER.outputs
    )

    change = await publish(2, ranker=house.source(wide, kit.weights(2)))

    assert (change.state, change.reason) == (ChangeState.REFUSED, Reason.SCHEMA_MISMATCH)
    assert "embedding -> rank.documents: gives FP32[-1, 4], but FP32[-1, 8] is taken" in change.message
