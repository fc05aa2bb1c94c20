"""A graph of embedding, ranking and generation, as its validation and its route table see it."""

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from activities.state.desired import DesiredFacts
from activities.state.replica_sets import wanted_deployments
from activities.state.routes.served_generations import served_generation
from activities.state.wave_state import ModelWaveState
from activities.transition.refresh_mode import refresh_of
from activities.validation.schema import check_edges, check_engines, check_interface
from activities.validation.validator import Candidate
from ipnext.artifacts.checkpoints.checkpoint_import import describe_checkpoint
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.planning.transition import FleetState, GenerationReplicas
from ipnext.model.registry.registry import Generation, Signature, Snapshot, SnapshotManifest, TensorSpec
from tests.genai.support.checkpoints import write_bert, write_llama
from tests.mixed import manifest


def tensor(name, *shape, datatype="FP32"):
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def ranker(**changes):
    inputs = {"query": tensor("query", -1, 4), "documents": tensor("documents", -1, 4)}
    outputs = {name: tensor(name, -1) for name in ("score", "embedder", "question")}
    outputs["ranker"] = tensor("ranker", -1, datatype="INT64")
    inputs |= {name: found for name, found in changes.items() if name in inputs}
    outputs |= {name: found for name, found in changes.items() if name not in inputs}
    signature = Signature(inputs=tuple(inputs.values()), outputs=tuple(outputs.values()), request_inputs=("query",))
    return SnapshotManifest(engine="torch", signature=signature, files=())


@pytest.fixture
def checkpoints(tmp_path):
    return {
        "embedder": describe_checkpoint(write_bert(tmp_path / "bert")).manifest,
        "llm": describe_checkpoint(write_llama(tmp_path / "llama")).manifest,
    }


def snapshot(part, found, number=1):
    now = datetime(2026, 1, 1, tzinfo=UTC)
    values = {"model": "answers", "part": part, "number": number, "digest": found.digest, "uri": f"file:///{part}"}
    return Snapshot(**values, manifest=found, created_at=now)


def candidate(parts, *, spec=None, serving=None, serving_graph=None):
    document = manifest()
    change = spec or (lambda _: None)
    change(document["spec"])
    return Candidate(
        manifest=parse_manifest(document),
        snapshots={part: snapshot(part, found) for part, found in parts.items()},
        serving={part: snapshot(part, found) for part, found in serving.items()} if serving else None,
        serving_graph=serving_graph,
        artifacts=None,
        beat=lambda _: None,
    )


def faults(results):
    return [result.message for result in results if not result.passed]


def test_three_parts_of_two_engines_fit(checkpoints):
    whole = candidate({**checkpoints, "ranker": ranker()})
    assert faults(check_engines(whole)) == []
    assert faults(check_edges(whole)) == []
    assert faults(check_interface(whole)) == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"documents": tensor("documents", -1, 5)},
            "embed.embedding -> rank.documents: gives FP32[-1, 4], but FP32[-1, 5]",
        ),
        (
            {"query": tensor("query", -1, 4, datatype="FP64")},
            "question.embedding -> rank.query: gives FP32[-1, 4], but FP64",
        ),
        (
            {"score": tensor("score", -1, 1)},
            "rank.score -> generate.score: gives FP32[-1, 1], but a prompt takes lists",
        ),
        ({"score": tensor("score", -1, datatype="BOOL")}, "gives BOOL[-1], but what orders a list is numbers"),
        (
            {"ranker": tensor("other", -1)},
            "rank.ranker -> generate.ranker: no such output; rank gives: score, embedder, question, other",
        ),
    ],
)
def test_an_edge_that_does_not_fit_is_named(checkpoints, changes, text):
    (found,) = faults(check_edges(candidate({**checkpoints, "ranker": ranker(**changes)})))
    assert text in found


def test_a_model_that_was_made_to_generate_embeds_where_its_part_does(checkpoints):
    """Embedding models of the Qwen and Llama families have the architecture of a model that generates."""
    whole = candidate({"embedder": checkpoints["llm"], "llm": checkpoints["llm"], "ranker": ranker()})
    found = faults(check_edges(whole))
    assert len(found) == 2
    assert "embed.embedding -> rank.documents: gives FP32[-1, 8], but FP32[-1, 4] is taken" in found


def test_a_tensor_of_the_request_is_what_the_part_that_takes_it_says(checkpoints):
    """Whichever node stands first.

    Text that only the prompt takes is text, numbers that a part takes are its numbers.
    """

    def priced(spec):
        *others, rank, generate = spec["graph"]["nodes"]
        rank["inputs"]["price"] = "request.prices"
        generate["inputs"] |= {"price": "request.prices", "country": "request.country"}
        generate["prompt"]["lists"]["documents"]["item"] += "{price}"
        generate["prompt"]["template"] += "{country}"
        spec["graph"]["nodes"] = [generate, rank, *others]

    found = ranker()
    signature = found.signature
    priced_ranker = found.model_copy(
        update={
            "signature": signature.model_copy(
                update={"inputs": (*signature.inputs, tensor("price", -1, datatype="INT64"))}
            )
        }
    )
    parts = {**checkpoints, "ranker": priced_ranker}
    assert faults(check_edges(candidate(parts, spec=priced))) == []
    served = served_generation(facts(parts, spec=priced), 1)
    assert {one.name: one.datatype for one in served.inputs} == {
        "prices": "INT64",
        "country": "BYTES",
        "documents": "BYTES",
    }


def test_routers_are_told_how_much_a_part_takes_at_once(checkpoints):
    def long(spec):
        spec["parts"][-1]["settings"] = {"maxModelLen": 512, "routing": {"policy": "least-loaded"}}

    served = served_generation(facts({**checkpoints, "ranker": ranker()}, spec=long), 1)
    assert served.contexts == {"llm": 512}


def test_clients_must_not_have_to_send_more_than_before(checkpoints):
    parts = {**checkpoints, "ranker": ranker()}

    def more(spec):
        generate = spec["graph"]["nodes"][-1]
        generate["inputs"]["tone"] = "request.tone"
        generate["prompt"]["template"] += "{tone}"

    serving_graph = parse_manifest(manifest()).spec.graph
    found = faults(check_interface(candidate(parts, spec=more, serving=parts, serving_graph=serving_graph)))
    assert found == ["input tone: the new generation needs it, but clients don't send it"]


def facts(parts, *, spec=None):
    held = candidate(parts, spec=spec)
    generation = Generation(
        model="answers", number=1, snapshots=dict.fromkeys(parts, 1), created_at=datetime(2026, 1, 1, tzinfo=UTC)
    )
    snapshots = {(part, 1): found for part, found in held.snapshots.items()}
    return DesiredFacts(
        manifest=held.manifest, target=1, generations={1: generation}, snapshots=snapshots, deployments={}, tables={}
    )


def test_the_router_is_told_engines_snapshots_and_what_a_request_brings(checkpoints):
    served = served_generation(facts({**checkpoints, "ranker": ranker()}), 1)
    assert served.engines == {"embedder": "vllm", "llm": "vllm"}
    assert served.snapshots == {"embedder": 1, "ranker": 1, "llm": 1}
    assert served.inputs == (tensor("documents", -1, datatype="BYTES"),)
    assert served.graph.nodes[-1].prompt.lists["documents"].top == 2


def test_each_part_has_hosts_of_its_own_engine(checkpoints):
    state = ModelWaveState(
        counts={((part, "us-east", "cpu"), 1): 2 for part in ("embedder", "ranker", "llm")}, shares={}, apart=True
    )
    deployments = {d.key.part: d for d in wanted_deployments(facts({**checkpoints, "ranker": ranker()}), state)}
    assert {part: found.engine for part, found in deployments.items()} == {
        "embedder": "vllm",
        "ranker": "torch",
        "llm": "vllm",
    }
    assert deployments["ranker"].drain_seconds is None
    assert deployments["embedder"].settings == {"runner": "pooling"}
    assert {found.own[1] for found in deployments.values()} == {2}


def refreshed(former, new):
    """How a generation of these snapshots (part -> number) follows another."""
    hold = SnapshotManifest(engine="torch", signature=Signature(inputs=(), outputs=()), files=())
    generations = [generation(number, each) for number, each in enumerate((former, new), 1)]
    snapshots = [snapshot(part, hold, number) for part in former for number in {former[part], new[part]}]
    repository = SimpleNamespace(
        deployments=lambda _: (), generations_at_work=lambda *_: generations, snapshots_named=lambda _: snapshots
    )
    ends = [
        FleetState(
            replicas=(GenerationReplicas.from_trusted("answers", "llm", number, "us-east", "cpu", 1),), traffic=()
        )
        for number in (1, 2)
    ]
    return refresh_of(repository, parse_manifest(manifest()), tuple(ends))


def generation(number, snapshots):
    return Generation(model="answers", number=number, snapshots=snapshots, created_at=datetime(2026, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize(("changed", "refresh"), [("ranker", "in_place"), ("llm", "replace"), ("embedder", "replace")])
def test_engines_are_replaced_where_one_of_them_gets_a_snapshot_and_stay_where_only_the_ranker_does(changed, refresh):
    former = {"embedder": 1, "ranker": 1, "llm": 1}
    assert refreshed(former, {**former, changed: 2}) == refresh
