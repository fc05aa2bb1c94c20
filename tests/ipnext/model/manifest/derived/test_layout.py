"""The parts of a generation that has served, by a manifest that has other ones."""

from datetime import UTC, datetime
from typing import Any

from ipnext.model.manifest.derived.layout import hosting_of, laid_out
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.registry.registry import Generation


def part(name: str, *, kind: str = "cpu", **more: Any) -> dict[str, Any]:
    return {"name": name, "hardware": [{"kind": kind, "units": 2, "qps": 100}], **more}


def manifest(*parts: dict[str, Any]) -> ModelManifest:
    nodes = [{"name": one["name"], "part": one["name"], "inputs": {"x": "request.x"}} for one in parts]
    graph = {"nodes": nodes, "outputs": {"y": f"{parts[0]['name']}.y"}}
    spec = {"parts": list(parts), "graph": graph, "demand": [{"region": "eu", "qps": 10}]}
    found = parse_manifest({"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": "m"}, "spec": spec})
    assert isinstance(found, ModelManifest)
    return found


def generation(by: ModelManifest, *names: str) -> Generation:
    """A generation of these parts that served by a manifest."""
    whole = Generation(model="m", number=1, snapshots=dict.fromkeys(names, 1), created_at=datetime.now(UTC))
    return whole.model_copy(update={"hosting": hosting_of(by, whole)})


def test_a_part_that_the_manifest_lost_is_the_one_that_served():
    first = manifest(part("a"), part("b", minReplicas=2, memoryBytes=7, settings={"threads": 3}))
    found = laid_out(manifest(part("a", kind="gpu")), generation(first, "a", "b")).spec.parts
    assert [one.name for one in found] == ["a", "b"]
    assert found[0].hardware[0].kind == "gpu", "the manifest counts for a part that it has"
    assert found[1] == first.spec.parts[1]


def test_a_part_that_the_manifest_has_with_another_engine_is_the_one_that_served():
    first = manifest(part("a"), part("b"))
    found = laid_out(manifest(part("a", engine="other"), part("b")), generation(first, "a", "b"))
    assert {(one.name, one.engine) for one in found.spec.parts} == {("a", "torch"), ("b", "torch")}


def test_a_part_that_the_generation_lacks_is_left_out():
    first = manifest(part("a"))
    found = laid_out(manifest(part("a"), part("b")), generation(first, "a"))
    assert [one.name for one in found.spec.parts] == ["a"]


def test_what_a_generation_keeps_outlasts_several_manifests():
    first, second = manifest(part("a"), part("b", memoryBytes=7)), manifest(part("a"), part("c"))
    kept = generation(first, "a", "b")
    again = kept.model_copy(update={"hosting": hosting_of(second, kept)})
    assert {(one.name, one.memory_bytes) for one in again.hosting.parts} == {("a", None), ("b", 7)}
