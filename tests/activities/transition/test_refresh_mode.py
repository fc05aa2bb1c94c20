"""What a host has in memory beside the snapshots that it answers for."""

from datetime import UTC, datetime
from types import SimpleNamespace

from activities.transition.refresh_mode import refresh_of, with_ground
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.planning.transition import FleetState, GenerationReplicas
from ipnext.model.registry.registry import DELTA_FILE, ArtifactFile, Generation, Signature, SnapshotManifest


def manifest(name, parent=None, *, delta=False):
    path = DELTA_FILE if delta else "weights.safetensors"
    file = ArtifactFile(path=path, sha256=name * 64, size_bytes=1)
    signature = Signature(inputs=(), outputs=())
    return SnapshotManifest(engine="torch", signature=signature, files=(file,), parent=parent)


def family():
    """`full`, a delta on it, a delta on that, and one trained from `full` that is no delta; by name."""
    full = manifest("a")
    first = manifest("b", full.digest, delta=True)
    second = manifest("c", first.digest, delta=True)
    return {"full": full, "first": first, "second": second, "retrained": manifest("d", full.digest)}


def held_with(*names, known=("full", "first", "second", "retrained"), part="table"):
    members = family()
    manifests = {(part, members[name].digest): members[name] for name in known}
    found = with_ground({(part, members[name].digest) for name in names}, manifests)
    return {name for name, each in members.items() if (part, each.digest) in found}


def test_a_delta_brings_the_snapshots_that_it_stands_on():
    assert held_with("second") == {"second", "first", "full"}
    assert held_with("second", "full") == {"second", "first", "full"}


def test_a_full_snapshot_stands_alone_whatever_it_was_trained_from():
    assert held_with("retrained") == {"retrained"}
    assert held_with("first", "retrained") == {"first", "full", "retrained"}


def test_a_parent_that_is_not_known_ends_the_walk():
    assert held_with("second", known=("second",)) == {"second"}


def generation(number):
    return Generation(
        model="chat", number=number, snapshots={"llm": number}, created_at=datetime(2026, 1, 1, tzinfo=UTC)
    )


def test_a_part_whose_engine_serves_by_itself_is_replaced_unless_the_owner_says_otherwise():
    part = {"name": "llm", "engine": "vllm", "hardware": [{"kind": "cpu", "units": 1, "qps": 1}]}
    spec = {"task": "generation", "parts": [part], "demand": [{"region": "eu", "qps": 1}]}
    document = {"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": "chat", "owner": "a"}, "spec": spec}
    chosen = document | {"spec": spec | {"rollout": {"refresh": "in_place"}}}
    repository = SimpleNamespace(
        deployments=lambda _: (), generations_at_work=lambda _, numbers: tuple(map(generation, sorted(numbers)))
    )
    rows = (GenerationReplicas.from_trusted("chat", "llm", number, "eu", "cpu", 1) for number in (1, 2))
    ends = tuple(FleetState(replicas=(row,), traffic=()) for row in rows)

    assert refresh_of(repository, parse_manifest(document), ends) == "replace"
    assert refresh_of(repository, parse_manifest(chosen), ends) == "in_place"
