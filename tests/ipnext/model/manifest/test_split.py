"""`spec.split` of a manifest, and the parts that a generation is laid out in."""

from datetime import UTC, datetime
from typing import Any

import pytest

from ipnext.errors import InvalidInput
from ipnext.model.fleet import HardwareOption
from ipnext.model.manifest.derived.layout import laid_out
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.manifest.split import SplitPolicy, options_of
from ipnext.model.registry.optimization import Derivatives
from ipnext.model.registry.registry import Generation, KindCut, SplitLayout

CPU = {"kind": "cpu", "units": 1, "qps": 100}


def manifest(split: dict[str, Any] | None, *, name: str = "whole", **part: Any) -> ModelManifest:
    whole = {"name": name, "hardware": [CPU], "minReplicas": 2, "settings": {"threads": 2}, **part}
    spec = {"parts": [whole], "split": split, "demand": [{"region": "eu", "qps": 10}]}
    found = parse_manifest({"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": "m"}, "spec": spec})
    assert isinstance(found, ModelManifest)
    return found


def tables(**more: Any) -> dict[str, Any]:
    part = {"name": "tables", "modules": ["tables.*"], "shard": {"by": "count", "count": 2}, **more}
    return {"parts": [part], "default": "dense"}


def generation(cut: str) -> Generation:
    names = {"tables-0": ("tables-0",), "tables-1": ("tables-1",), "dense": ("dense-s0", "dense-s2")}
    parts = [
        {
            "name": name,
            "modules": [],
            "size_bytes": 8,
            "hardware": [{"kind": "old", "units": 3, "qps": 7}],
            "segments": [{"name": s, "stage": i, "snapshot": i + 1, "size_bytes": 4} for i, s in enumerate(segments)],
        }
        for name, segments in names.items()
    ]
    nodes = [{"name": n, "part": n, "inputs": {"x": "request.x"}} for found in names.values() for n in found]
    graph = {"nodes": nodes, "outputs": {"y": "dense-s2.y"}}
    layout = SplitLayout.model_validate(
        {"source": "whole", "digest": "0" * 64, "cut": cut, "equal_at": [1], "parts": parts, "graph": graph}
    )
    return Generation(model="m", number=1, snapshots={"whole": 4}, layout=layout, created_at=datetime.now(UTC))


def test_a_kind_alone_and_a_throughput_left_out_are_as_the_whole_model_has_them():
    model = (HardwareOption(kind="cpu", units=2, qps=50), HardwareOption(kind="gpu", units=1, qps=900))
    policy = SplitPolicy.model_validate(tables(hardware=["gpu", {"kind": "cpu"}, {"kind": "l4", "qps": 5}]))
    assert options_of(policy.parts[0].hardware, model) == (
        HardwareOption(kind="gpu", units=1, qps=900),
        HardwareOption(kind="cpu", units=1, qps=50),
        HardwareOption(kind="l4", units=1, qps=5),
    )
    assert options_of((), model) == model


@pytest.mark.parametrize(
    ("split", "told"),
    [
        (tables(hardware=["l4"]), "split.parts.0.hardware: 'l4' is not among the model's own (cpu)"),
        (tables(hardware=[{"kind": "l4", "units": 2}]), "write {kind: l4, units: 1, qps: N}"),
    ],
)
def test_hardware_without_a_throughput_is_refused_by_its_place(split, told):
    with pytest.raises(InvalidInput) as error:
        manifest(split)
    assert told in error.value.message


def test_a_hardware_kind_that_a_part_of_a_cut_names_twice_is_refused():
    with pytest.raises(InvalidInput, match="names the kind 'cpu' 2 times"):
        manifest(tables(hardware=["cpu", {"kind": "cpu", "units": 2, "qps": 3}]))


@pytest.mark.parametrize("name", ["tables", "tables-0", "dense", "dense-s2", "tables-1-s3"])
def test_the_part_that_is_cut_has_a_name_of_its_own(name):
    with pytest.raises(InvalidInput, match="is the part that is cut"):
        manifest(tables(), name=name)


def test_other_names_are_free():
    assert manifest(tables(), name="tables-of-all").spec.split is not None


def test_several_parts_are_not_split():
    document = manifest(None).model_dump(mode="json", by_alias=True)
    document["spec"]["parts"].append({**document["spec"]["parts"][0], "name": "other"})
    document["spec"]["split"] = tables()
    with pytest.raises(InvalidInput, match="split: cuts a model of one part"):
        parse_manifest(document)


def test_the_hardware_does_not_change_where_a_model_is_cut():
    plain, other = SplitPolicy.model_validate(tables()), SplitPolicy.model_validate(tables(hardware=["cpu"]))
    assert plain.cut_digest == other.cut_digest
    assert SplitPolicy.model_validate(tables(modules=["tables.0"])).cut_digest != plain.cut_digest
    assert SplitPolicy.model_validate(tables() | {"default": "rest"}).cut_digest != plain.cut_digest


def test_the_parts_of_a_finished_cut_are_named_module_by_module_and_the_rest_stays_the_rest():
    policy = SplitPolicy.model_validate(tables())
    found = policy.assigning({"tables-0": ("tables.a[0]",), "tables-1": ("tables.b", "tables.c"), "dense": ("top",)})
    given = [(part.name, part.modules, part.shard) for part in found.parts]
    assert given == [("tables-0", ("tables.a[[]0]",), None), ("tables-1", ("tables.b", "tables.c"), None)]
    assert found.default == "dense"


def test_a_default_part_that_the_policy_names_keeps_its_modules():
    policy = SplitPolicy.model_validate({"parts": [{"name": "dense", "modules": ["top"]}], "default": "dense"})
    assert [part.name for part in policy.assigning({"dense": ("top",)}).parts] == ["dense"]


def test_a_generation_that_is_not_cut_is_served_in_the_parts_of_the_manifest():
    whole = Generation(model="m", number=1, snapshots={"whole": 1}, created_at=datetime.now(UTC))
    given = manifest(tables())
    assert laid_out(given, whole) == laid_out(given, None) == given
    assert (whole.parts, whole.answering) == (("whole",), {"whole": 1})
    assert (whole.snapshots_of("whole", "cpu"), whole.snapshots_of("other", "cpu")) == ({"whole": 1}, {})


def test_hosts_of_each_kind_load_the_segments_of_the_derivative_for_it():
    plain = generation("0" * 64)
    kinds = {
        "small": KindCut(digest="1" * 64, segments={"dense-s0": 7}),
        "large": KindCut(digest="2" * 64, segments={}),
    }
    derived = Derivatives(steps="3" * 64, by_hardware={"small": {"whole": 5}, "large": {"whole": 6}})
    layout = plain.layout.model_copy(update={"by_hardware": kinds})
    found = plain.model_copy(update={"layout": layout, "derived": derived})
    for kind, number in (("small", 7), ("large", 1), ("other", 1)):
        assert found.snapshots_of("dense", kind) == {"dense-s0": number, "dense-s2": 2}
    assert found.by_hardware == {"small": {"dense-s0": 7}}
    assert found.answering == plain.answering
    others = {("whole", 5), ("whole", 6), ("dense-s0", 7)}
    assert set(found.named) == set(plain.named) | others


def test_parts_of_a_cut_generation_have_the_hardware_of_the_manifest_that_cuts_so():
    given = manifest(tables(hardware=[{"kind": "cpu", "qps": 30}]))
    found = laid_out(given, generation(given.spec.split.cut_digest)).spec.parts
    assert [(part.name, part.hardware[0].qps) for part in found] == [("tables-0", 30), ("tables-1", 30), ("dense", 100)]
    assert {(part.min_replicas, part.engine, part.settings["threads"]) for part in found} == {(2, "torch", 2)}


@pytest.mark.parametrize("split", [None, {"parts": [{"name": "a", "modules": ["a"]}]}])
def test_parts_of_a_generation_cut_otherwise_keep_the_hardware_they_had(split):
    found = laid_out(manifest(split), generation("0" * 64)).spec.parts
    assert {part.hardware for part in found} == {(HardwareOption(kind="old", units=3, qps=7),)}


def test_a_host_of_a_part_holds_its_segments_and_each_of_them_answers():
    cut = generation("0" * 64)
    assert cut.parts == ("tables-0", "tables-1", "dense")
    assert cut.snapshots_of("dense", "cpu") == {"dense-s0": 1, "dense-s2": 2}
    assert cut.snapshots_of("whole", "cpu") == {}
    assert set(cut.answering) == {"tables-0", "tables-1", "dense-s0", "dense-s2"}
