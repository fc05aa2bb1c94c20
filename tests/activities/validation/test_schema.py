"""What fits together: engines, edges, the interface that clients rely on."""

import pytest

from activities.validation import schema
from activities.validation.activities import BUILT_IN
from activities.validation.runs import run_validators
from activities.validation.schema import check_edges, check_engines, check_interface, compatible
from ipnext.model.lifecycle.status import Reason
from ipnext.model.registry.registry import Signature, TensorSpec


def tensor(name: str, shape=(-1, 4), datatype: str = "FP32") -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def refused(results):
    return [result for result in results if not result.passed]


def test_a_model_that_fits_passes_everything(candidate):
    assert refused(run_validators(candidate(), BUILT_IN)) == []


def test_a_snapshot_for_another_engine_is_refused(candidate, house, kit):
    (found,) = refused(check_engines(candidate(dense=house.source(kit.DENSE, kit.weights(2), engine="vllm"))))

    assert (found.subject, found.reason) == ("dense", Reason.ENGINE_MISMATCH)


@pytest.mark.parametrize(
    ("one", "other", "fits"),
    [
        (tensor("a"), tensor("b"), True),
        (tensor("a", (-1, 4)), tensor("b", (-1, -1)), True),
        (tensor("a", (-1, 4)), tensor("b", (-1, 5)), False),
        (tensor("a", (-1,)), tensor("b", (-1, 4)), False),
        (tensor("a"), tensor("b", datatype="FP16"), False),
    ],
)
def test_tensors_fit_by_datatype_rank_and_known_dimensions(one, other, fits):
    assert compatible(one, other) is compatible(other, one) is fits


def test_a_graph_of_too_many_edges_is_refused_by_their_number(candidate, house, kit, monkeypatch):
    found = candidate()
    edges = len(list(check_edges(found)))
    monkeypatch.setattr(schema, "MOST_EDGES", edges)
    assert refused(check_edges(found)) == []
    monkeypatch.setattr(schema, "MOST_EDGES", edges - 1)
    (only,) = check_edges(found)
    assert (only.subject, only.reason) == ("graph", Reason.SCHEMA_MISMATCH)
    assert only.message.startswith(f"the 2 nodes of the graph have {edges} edges together")
    many = Signature(inputs=tuple(tensor(f"x{n}") for n in range(100)), outputs=(tensor("score", (-1, 1)),))
    (only,) = check_edges(candidate(dense=house.source(many, kit.weights(2))))
    assert "edges together" in only.message


@pytest.mark.parametrize(
    ("dense", "edge", "text"),
    [
        (Signature(inputs=(tensor("x", (-1, 8), "FP64"),), outputs=(tensor("score", (-1, 1)),)),
         "sparse.embeddings -> dense.x", "FP32[-1, 8], but FP64[-1, 8] is taken"),
        (Signature(inputs=(tensor("x", (-1, 8)), tensor("y")), outputs=(tensor("score", (-1, 1)),)),
         "? -> dense.y", "nothing feeds input 'y'"),
        (Signature(inputs=(tensor("z", (-1, 8)),), outputs=(tensor("score", (-1, 1)),)),
         "sparse.embeddings -> dense.x", "has no input 'x'; it takes: z"),
        (Signature(inputs=(tensor("x", (-1, 8)),), outputs=(tensor("other", (-1, 1)),)),
         "dense.score -> score", "dense gives: other"),
    ],
    ids=["datatype", "unfed input", "unknown input", "unknown output"],
)  # fmt: skip
def test_a_broken_edge_is_named(candidate, house, kit, dense, edge, text):
    found = refused(check_edges(candidate(dense=house.source(dense, kit.weights(2)))))

    assert {result.reason for result in found} == {Reason.SCHEMA_MISMATCH}
    assert any(result.subject == edge and text in result.message for result in found)


def test_two_nodes_must_take_a_tensor_of_the_request_alike(candidate, house, kit):
    graph = {
        "nodes": [
            {"name": "sparse", "part": "sparse", "inputs": {"features": "request.features"}},
            {"name": "dense", "part": "dense", "inputs": {"x": "request.features"}},
        ],
        "outputs": {"score": "dense.score"},
    }

    (found,) = refused(check_edges(candidate(spec={"graph": graph})))

    assert "another node takes the same tensor of the request as FP32[-1, 4]" in found.message


@pytest.mark.parametrize(
    ("change", "subject"),
    [
        ({"outputs": (tensor("score", (-1, 1), "FP64"),)}, "output score"),
        ({"outputs": (tensor("score", (-1, 2)),)}, "output score"),
    ],
)
def test_clients_of_the_serving_generation_must_not_break(candidate, house, kit, change, subject):
    serving = {"sparse": house.source(kit.SPARSE, kit.weights(1)), "dense": house.source(kit.DENSE, kit.weights(2))}
    dense = house.source(kit.DENSE.model_copy(update=change), kit.weights(5))

    (found,) = refused(check_interface(candidate(serving=serving, dense=dense)))

    assert (found.subject, found.reason) == (subject, Reason.SCHEMA_MISMATCH)


def test_an_input_that_clients_send_once_must_stay_one(candidate, house, kit):
    once = house.source(kit.SPARSE.model_copy(update={"request_inputs": ("features",)}), kit.weights(1))
    each, dense = house.source(kit.SPARSE, kit.weights(1)), house.source(kit.DENSE, kit.weights(2))

    (found,) = refused(check_interface(candidate(serving={"sparse": once, "dense": dense}, sparse=each)))

    assert (found.subject, found.reason) == ("input features", Reason.SCHEMA_MISMATCH)
    assert "clients may send it once for all rows" in found.message
    assert refused(check_interface(candidate(serving={"sparse": each, "dense": dense}, sparse=once))) == []
    assert refused(check_interface(candidate(serving={"sparse": once, "dense": dense}, sparse=once))) == []


def test_a_validator_is_skipped_with_its_reason_and_the_report_says_so(candidate, house, kit):
    dense = house.source(kit.DENSE, kit.weights(3, value=float("nan")))
    spec = {"validation": {"skip": {"finite-weights": "masks are minus infinity on purpose"}}}

    results = tuple(run_validators(candidate(spec=spec, dense=dense), BUILT_IN))

    assert refused(results) == []
    assert any("masks are minus infinity on purpose" in result.message for result in results)


@pytest.mark.parametrize("name", ["safe-formats", "no-such-check"])
def test_what_can_not_be_skipped_is_refused_with_what_can(candidate, name):
    (found,) = refused(run_validators(candidate(spec={"validation": {"skip": {name: "hurry"}}}), BUILT_IN))

    allowed = "adapter-base, finite-weights, golden, graph-edges, interface, live-latency, memory, replay"
    assert f"allowed: {allowed}" in found.message
