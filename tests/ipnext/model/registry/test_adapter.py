"""Adapters in a manifest and in a generation: parts that stand on another one and run nowhere else."""

from datetime import UTC, datetime

import pytest

from ipnext.errors import InvalidInput
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.registry.adapter import client_name, engine_name
from ipnext.model.registry.registry import Generation

HARDWARE = [{"kind": "cpu", "units": 1, "qps": 1}]
LLM = {"name": "llm", "engine": "vllm", "hardware": HARDWARE}
STYLE = {"name": "style", "engine": "vllm", "adapterOf": "llm"}


def document(*parts, **spec):
    whole = {"task": "generation", "parts": list(parts), "demand": [{"region": "eu", "qps": 1}], **spec}
    return {"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": "chat", "owner": "a"}, "spec": whole}


def test_adapters_stand_beside_the_part_that_has_hosts():
    spec = parse_manifest(document(STYLE, LLM, {**STYLE, "name": "tone"})).spec
    assert [part.name for part in spec.hosted_parts] == ["llm"]
    assert spec.adapters == {"style": "llm", "tone": "llm"}


def test_a_manifest_with_an_adapter_is_read_back_as_it_was():
    manifest = parse_manifest(document(LLM, STYLE))
    assert ModelManifest.model_validate_json(manifest.model_dump_json()) == manifest
    assert ModelManifest.model_validate(manifest.model_dump(by_alias=True)) == manifest


def test_a_manifest_without_adapters_is_written_as_before():
    written = parse_manifest(document(LLM)).model_dump_json(by_alias=True)
    assert "adapter" not in written.lower()


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"adapterOf": "nobody"}, r"parts\.1\.adapterOf: 'nobody' is no part of the model; allowed: llm"),
        ({"adapterOf": "style"}, r"adapterOf: 'style' is no part of engine vllm that runs by itself; allowed: llm"),
        ({"adapterOf": "rank"}, r"adapterOf: 'rank' is no part of engine vllm"),
        ({"adapterOf": "tone"}, r"adapterOf: 'tone' is no part of engine vllm"),
        ({"engine": "torch"}, r"engine: 'torch' loads no adapters.*allowed: vllm"),
        (
            {"hardware": HARDWARE},
            r"hardware: 'style' is an adapter.*processes of 'llm'; allowed: name, engine, adapterOf, freshness",
        ),
        ({"minReplicas": 1}, r"minReplicas: 'style' is an adapter"),
        ({"settings": {"maxModelLen": 8}}, r"settings: 'style' is an adapter"),
        ({"memoryBytes": 1}, r"memoryBytes: 'style' is an adapter"),
    ],
)
def test_what_an_adapter_may_not_be_is_named(part, told):
    others = [{"name": "rank", "hardware": HARDWARE}, {**STYLE, "name": "tone"}]
    nodes = [{"name": name, "part": name, "inputs": {"x": "request.x"}} for name in ("llm", "rank")]
    graph = {"nodes": nodes, "outputs": {"text": "llm.text"}}
    with pytest.raises(InvalidInput, match=told):
        parse_manifest(document(LLM, STYLE | part, *others, graph=graph))


def test_a_part_that_is_no_adapter_needs_hardware():
    with pytest.raises(InvalidInput, match="hardware: part 'llm' needs at least one"):
        parse_manifest(document({"name": "llm", "engine": "vllm"}))


def test_no_node_calls_an_adapter():
    graph = {"nodes": [{"name": "n", "part": "style", "inputs": {}}], "outputs": {"text": "n.text"}}
    with pytest.raises(InvalidInput, match=r"'style' is an adapter, which no node calls; known: .'llm'"):
        parse_manifest(document(LLM, STYLE, graph=graph))


def test_parts_that_prefill_and_decode_take_no_adapters():
    pair = [
        {**LLM, "name": n, "settings": {"kvTransfer": {"role": n, "connector": "example"}}}
        for n in ("prefill", "decode")
    ]
    with pytest.raises(
        InvalidInput, match="style can't stand on parts that prefill and decode; allowed: a part without"
    ):
        parse_manifest(document(*pair, {**STYLE, "adapterOf": "decode"}))


def test_adapters_are_served_locked():
    with pytest.raises(InvalidInput, match=r"sync\.policy: 'unsynced'.*allowed with adapterOf: locked"):
        parse_manifest(document(LLM, STYLE, sync={"policy": "unsynced"}))


def test_a_generation_has_its_adapters_where_their_base_is():
    snapshots = {"llm": 3, "style": 5, "rank": 7}
    found = Generation(
        model="chat", number=2, snapshots=snapshots, adapters={"style": "llm"}, created_at=datetime.now(UTC)
    )
    assert found.parts == ("llm", "rank")
    assert found.snapshots_of("llm", "cpu") == {"llm": 3, "style": 5}
    assert tuple(found.snapshots_of(part, "cpu") for part in ("style", "rank", "other")) == (
        {},
        {"rank": 7},
        {},
    )
    assert found.answering == snapshots


def test_another_snapshot_has_another_name_in_an_engine_and_the_same_for_clients():
    assert engine_name("style", "a" * 64) != engine_name("style", "b" * 64) != engine_name("tone", "b" * 64)
    assert client_name("chat", "style") == "chat:style"
