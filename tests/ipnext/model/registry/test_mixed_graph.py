"""Graphs that end in a part that generates: what a manifest may say, and which node is named where it may not."""

import copy
import re
from pathlib import Path

import pytest
import yaml

from ipnext.errors import InvalidInput
from ipnext.model.manifest.parser import parse_manifest
from tests.mixed import manifest


def refused(change, text):
    document = copy.deepcopy(manifest())
    change(document["spec"])
    with pytest.raises(InvalidInput, match=text):
        parse_manifest(document)


def graph_node(spec, name):
    return next(node for node in spec["graph"]["nodes"] if node["name"] == name)


def test_embedding_ranking_and_generation_are_one_model():
    spec = parse_manifest(manifest()).spec
    assert {part.name: part.role for part in spec.parts} == {
        "embedder": "embeds",
        "ranker": "computes",
        "llm": "generates",
    }


def test_exactly_one_node_generates():
    def none(spec):
        spec["parts"][2]["settings"] = {"runner": "pooling"}
        del graph_node(spec, "generate")["prompt"]
        graph_node(spec, "generate")["inputs"] = {"prompt": "request.prompt"}

    def two(spec):
        del spec["parts"][0]["settings"]

    refused(none, r"graph.nodes: .* exactly one node that generates, its last, got \[\]")
    refused(two, r"exactly one node that generates, its last, got \['question', 'embed', 'generate'\]")


def test_a_prompt_belongs_to_a_node_that_generates():
    def on_ranker(spec):
        node = graph_node(spec, "rank")
        node["inputs"]["prompt"] = "request.prompt"
        node["prompt"] = {"template": "{prompt}{query}{documents}"}

    refused(on_ranker, "graph.nodes.rank.prompt: part 'ranker' computes; only a node that generates")


def test_the_generator_needs_a_prompt_and_the_clients_own():
    def without(spec):
        del graph_node(spec, "generate")["prompt"]

    def other(spec):
        graph_node(spec, "generate")["inputs"]["prompt"] = "request.documents"

    refused(without, "graph.nodes.generate.prompt: missing")
    refused(other, "graph.nodes.generate.inputs.prompt: must be 'request.prompt', got 'request.documents'")


def test_the_generator_is_last_and_nothing_is_idle():
    def after(spec):
        graph_node(spec, "embed")["inputs"]["prompt"] = "generate.text"

    def idle(spec):
        spec["graph"]["nodes"].append({"name": "idle", "part": "embedder", "inputs": {"prompt": "request.documents"}})

    def other_answer(spec):
        spec["graph"]["outputs"]["score"] = "rank.score"

    refused(after, r"graph.nodes: a circle among \['embed', 'generate', 'rank'\]")
    refused(idle, "graph.nodes.idle: nothing that 'generate' takes comes of it")
    refused(other_answer, "graph.outputs.score: 'rank.score' is not of 'generate'")


def test_no_node_takes_the_generators_text():
    def after(spec):
        spec["graph"]["nodes"].append({"name": "again", "part": "embedder", "inputs": {"prompt": "generate.text"}})

    refused(after, "graph.nodes.again.inputs: takes from 'generate'")


def test_the_task_is_generation():
    refused(
        lambda spec: spec.update(task="ranking"),
        "task: node 'generate' generates, so it must be 'generation', got 'ranking'",
    )


def test_a_node_that_embeds_takes_a_prompt_only():
    def renamed(spec):
        graph_node(spec, "embed")["inputs"] = {"text": "request.documents"}

    refused(renamed, r"graph.nodes.embed.inputs: a node that embeds takes 'prompt' and nothing else, got \['text'\]")


def test_models_without_a_generator_or_of_one_node_are_as_before():
    document = manifest()
    spec = document["spec"]
    spec["parts"] = [spec["parts"][2]]
    del spec["graph"]
    parse_manifest(document)
    spec["graph"] = {
        "nodes": [{"name": "llm", "part": "llm", "inputs": {"prompt": "request.prompt", "tone": "request.tone"}}],
        "outputs": {"text": "llm.text"},
    }
    spec["graph"]["nodes"][0]["prompt"] = {"template": "Be {tone}. {prompt}"}
    assert parse_manifest(document).spec.graph.nodes[0].prompt.inputs == {"prompt", "tone"}


def test_the_documented_manifests_are_read():
    root = Path(__file__).parents[4]
    whole = parse_manifest(yaml.safe_load((root / "examples/retrieval-model.yaml").read_text()))
    block = re.search(r"```yaml\n(spec:.*?)```", (root / "docs/mixed-graphs.md").read_text(), flags=re.DOTALL)[1]
    head = {"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": "answers", "owner": "docs"}}
    documented = parse_manifest(head | yaml.safe_load(block))
    assert whole.spec.graph.nodes[:3] == documented.spec.graph.nodes[:3]
    assert {part.name: part.role for part in documented.spec.parts} == {
        part.name: part.role for part in whole.spec.parts
    }


def test_a_pair_of_prefill_and_decode_stands_alone():
    def pair(spec):
        prefill, decode = ({"kvTransfer": {"connector": "nixl", "role": role}} for role in ("prefill", "decode"))
        spec["parts"][2]["settings"] = decode
        spec["parts"].append({**spec["parts"][2], "name": "reader", "settings": prefill})
        generate = graph_node(spec, "generate")
        del generate["prompt"]
        generate["inputs"] = {"prompt": "reader.text"}
        spec["graph"]["nodes"].append({"name": "reader", "part": "reader", "inputs": {"prompt": "request.prompt"}})

    def with_prompt(spec):
        pair(spec)
        generate = graph_node(spec, "generate")
        generate["prompt"] = {"template": "{prompt}"}

    refused(
        pair,
        r"parts: two that prefill and decode are a model of their own; got \['embedder', 'ranker', 'llm', 'reader'\]",
    )
    refused(with_prompt, "graph.nodes.generate.prompt: a pair of prefill and decode takes none")
