"""Prefill and decode as two parts: which manifests may have them, and the graph between both."""

import pytest

from ipnext.errors import InvalidInput
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.settings.kv_transfer import Handoff

GRAPH = {
    "nodes": [
        {"name": "read", "part": "prefill", "inputs": {"prompt": "request.prompt"}},
        {"name": "write", "part": "decode", "inputs": {"prompt": "read.text"}},
    ],
    "outputs": {"text": "write.text"},
}


def part(name, role=None, *, connector="example", **settings):
    transfer = {"kvTransfer": {"connector": connector, "role": role}} if role else {}
    hardware = [{"kind": "cpu", "units": 1, "qps": 1}]
    return {"name": name, "engine": "vllm", "hardware": hardware, "settings": settings | transfer}


def spec_of(*parts, **more):
    spec = {"task": "generation", "parts": list(parts), "demand": [{"region": "east", "qps": 1}], **more}
    return parse_manifest({"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": "chat"}, "spec": spec}).spec


PREFILL, DECODE = part("prefill", "prefill"), part("decode", "decode")


def test_a_pair_needs_no_graph():
    spec = spec_of(DECODE, PREFILL)
    assert spec.handoff == Handoff(prefill="prefill", decode="decode", connector="example")
    assert spec.graph is None
    nodes = [(node.name, node.inputs) for node in spec.wiring.nodes]
    assert nodes == [("prefill", {"prompt": "request.prompt"}), ("decode", {"prompt": "prefill.text"})]
    assert spec.wiring.outputs == {"text": "decode.text"}


def test_a_graph_that_leads_from_one_to_the_other_is_taken_as_it_is():
    spec = spec_of(PREFILL, DECODE, graph=GRAPH)
    assert spec.wiring is spec.graph
    assert spec.handoff == Handoff(prefill="prefill", decode="decode", connector="example")


def test_a_model_of_one_part_has_neither():
    spec = spec_of(part("llm"))
    assert (spec.handoff, spec.wiring) == (None, None)


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ([PREFILL], r"parts.0.settings.kvTransfer.role: 'prefill' needs a second part .* role 'decode'"),
        ([part("llm"), DECODE], r"parts.1.settings.kvTransfer.role: 'decode' needs .* role 'prefill'"),
        (
            [PREFILL, part("b", "prefill")],
            r"parts.1.settings.kvTransfer.role: 'prefill' is part 'prefill' already, not 'b'",
        ),
        (
            [PREFILL, part("decode", "decode", connector="nixl")],
            r"parts.1.settings.kvTransfer.connector: 'nixl', but 'prefill' has 'example'",
        ),
        (
            [part("prefill", "prefill", dtype="float32"), DECODE],
            r"parts.1.settings.dtype: 'auto', but 'prefill' has 'float32'",
        ),
        (
            [PREFILL, part("decode", "decode", maxModelLen=8)],
            r"parts.1.settings.maxModelLen: 8, but 'prefill' has None",
        ),
        ([part("one"), part("two")], r"graph: needed for a model of several parts"),
        (
            [PREFILL, DECODE, part("third")],
            r"parts: two that prefill and decode are a model of their own; got .*'third'",
        ),
    ],
)
def test_parts_that_are_no_pair_are_refused_by_their_field(parts, told):
    with pytest.raises(InvalidInput, match=told):
        spec_of(*parts)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"nodes": [{**GRAPH["nodes"][1], "inputs": {"prompt": "request.prompt"}}]}, r"0 nodes call part 'prefill'"),
        (
            {"nodes": [GRAPH["nodes"][0], {**GRAPH["nodes"][1], "inputs": {"prompt": "request.prompt"}}]},
            r"graph.nodes.write.inputs.prompt: 'request.prompt'; .* write 'read.text'",
        ),
        ({"outputs": {"text": "read.text"}}, r"graph.outputs.text: 'read.text' comes from the prefill part"),
    ],
)
def test_a_graph_that_leads_elsewhere_is_refused(change, told):
    with pytest.raises(InvalidInput, match=told):
        spec_of(PREFILL, DECODE, graph=GRAPH | change)


def test_no_other_part_takes_the_text_of_the_one_that_reads():
    third = {"name": "third", "part": "third", "inputs": {"prompt": "read.text"}}
    graph = GRAPH | {"nodes": [*GRAPH["nodes"], third]}
    with pytest.raises(InvalidInput, match=r"graph.nodes.third.inputs: 'read' gives 'decode' its keys"):
        spec_of(PREFILL, DECODE, part("third"), graph=graph)


def test_parts_of_several_snapshots_hand_nothing_over():
    with pytest.raises(InvalidInput, match=r"sync.policy: 'unsynced'; .* write locked"):
        spec_of(PREFILL, DECODE, sync={"policy": "unsynced"})
