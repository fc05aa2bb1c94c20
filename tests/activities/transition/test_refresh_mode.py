"""What a host has in memory beside the snapshots that it answers for."""

from datetime import UTC, datetime
from types import SimpleNamespace

from activities.transition.refresh_mode import refresh_of, with_ground
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.planning.transition import FleetState, GenerationReplicas
from ipnext.model.registry.optimization import Derivatives
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


def test_a_kind_whose_derivatives_do_not_fit_together_makes_the_part_replaced():
    sizes = {1: 10, 2: 10**9, 3: 10**9}
    file = manifest("a").files[0]
    held = {
        number: manifest("a").model_copy(
            update={"files": (file.model_copy(update={"size_bytes": size, "sha256": str(number) * 64}),)}
        )
        for number, size in sizes.items()
    }
    snapshots = [SimpleNamespace(part="p", number=n, digest=m.digest, manifest=m) for n, m in held.items()]
    kinds = [{"kind": kind, "units": 1, "qps": 1} for kind in ("cpu", "small")]
    spec = {
        "parts": [{"name": "p", "hardware": kinds, "memoryBytes": 2 * 10**9}],
        "demand": [{"region": "eu", "qps": 1}],
    }
    document = {"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": "m", "owner": "a"}, "spec": spec}

    def refresh(second):
        """Generation 1 has snapshot 1 on cpu and 2 on small, generation 2 has 1 on cpu and `second` on small."""
        found = [
            Generation(
                model="m",
                number=number,
                snapshots={"p": 1},
                derived=Derivatives(steps="0" * 64, by_hardware={"small": {"p": on_small}}),
                created_at=datetime(2026, 1, 1, tzinfo=UTC),
            )
            for number, on_small in ((1, 2), (2, second))
        ]
        repository = SimpleNamespace(
            deployments=lambda _: (),
            generations_at_work=lambda *_: tuple(found),
            snapshots_named=lambda _: snapshots,
        )
        rows = (GenerationReplicas.from_trusted("m", "p", number, "eu", "small", 1) for number in (1, 2))
        return refresh_of(
            repository, parse_manifest(document), tuple(FleetState(replicas=(row,), traffic=()) for row in rows)
        )

    assert refresh(second=2) == "in_place"
    assert refresh(second=3) == "replace"


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
