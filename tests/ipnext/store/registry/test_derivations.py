"""Derived snapshots and finished steps, on both engines."""

from datetime import timedelta

import pytest

from ipnext.errors import Conflict, DuplicateSnapshot, InvalidInput
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.registry.optimization import AccuracyReport, Derivatives, Measured, ReplayReport
from ipnext.model.registry.registry import GenerationState, SplitLayout
from ipnext.model.registry.retention import Keep, SnapshotKeep
from ipnext.platform.denials import carry_out_denials
from ipnext.store.operations.rollback_targets import denied_generations
from tests.ipnext.store.registry.test_retention import unneeded

RECIPE, OTHER = "1" * 64, "2" * 64
INT8 = {"quantize": {"part": "dense", "embeddings": "int8"}}


def report(*broken):
    pair = Measured(before=2, after=1)
    return AccuracyReport(
        kind="quantize",
        settings={},
        parent="0" * 64,
        tools={},
        weights_bytes=pair,
        replaced_bytes=pair,
        replay=ReplayReport(rows=1, source="drawn"),
        max_error=0.5,
        max_relative_error=0.1,
        broken=broken,
    )


@pytest.fixture
def source(publish, store):
    """Snapshot 1 of part dense, published with generation 1."""
    publish("c1", dense="a", sparse="b")
    with store.read() as unit:
        return unit.snapshot("ctr", "dense", 1)


@pytest.fixture
def derive(store, make, source):
    def call(content="quantized a", recipe=RECIPE, of=source):
        with store.begin("ctr") as unit:
            return unit.add_derivation(of, recipe, report(), make.source(content))

    return call


def test_a_derived_snapshot_has_the_next_number_and_is_not_the_newest_published_one(derive, publish, store):
    made = derive()
    assert (made.number, made.derived_from) == (2, 1)
    publish("c2", sparse="c")
    publish("c3", dense="d")
    with store.read() as unit:
        assert unit.generation("ctr", 2).snapshots["dense"] == 1
        assert unit.generation("ctr", 3).snapshots["dense"] == 3
        assert not unit.has_snapshot("ctr", "dense", made.digest)


def test_a_published_snapshot_that_was_refused_is_not_replaced_by_a_derived_one(derive, publish, store):
    derive()
    publish("c2", dense="d")
    with store.read() as unit:
        second = unit.snapshot("ctr", "dense", 3)
    derive("quantized d", of=second)
    with store.begin("ctr") as unit:
        assert list(unit._published_numbers("ctr", "dense")) == [3, 1]


def test_what_is_derived_of_a_derived_snapshot_names_the_published_one(derive):
    assert derive("twice", OTHER, derive()).derived_from == 1


def test_a_finished_step_is_found_by_its_source_and_recipe_and_stored_once(derive, store, source):
    first = derive()
    assert derive("another result") == first
    with store.read() as unit:
        found = unit.derivation("ctr", "dense", source.digest, RECIPE)
        assert (found.snapshot, found.report) == (first, report())
        assert unit.derivation("ctr", "dense", source.digest, OTHER) is None
        assert unit.derivation("ctr", "dense", first.digest, RECIPE) is None


def test_a_broken_limit_is_stored_too(store, source):
    with store.begin("ctr") as unit:
        assert unit.add_derivation(source, RECIPE, report("maxError: 1 is above 0"), None) is None
    with store.read() as unit:
        found = unit.derivation("ctr", "dense", source.digest, RECIPE)
    assert (found.snapshot, found.report.broken) == (None, ("maxError: 1 is above 0",))


def test_a_step_whose_result_was_collected_is_not_finished(derive, store, source):
    made = derive()
    with store.begin("ctr") as unit:
        unit.release_snapshots("ctr", [("dense", made.number)])
    with store.read() as unit:
        assert unit.derivation("ctr", "dense", source.digest, RECIPE) is None
    again = derive("again")
    assert again.number == 3
    with store.read() as unit:
        assert unit.derivation("ctr", "dense", source.digest, RECIPE).snapshot == again


def test_a_generation_answers_with_what_it_was_derived_to_and_keeps_it_once_it_served(derive, store):
    derived = Derivatives(steps=RECIPE, parts={"dense": derive().number})
    with store.begin("ctr") as unit:
        unit.set_derived("ctr", 1, derived)
        found = unit.generation("ctr", 1)
        assert (found.derived, found.answering) == (derived, {"dense": 2, "sparse": 1})
        assert (found.snapshots, found.snapshots_of("dense", "cpu")) == ({"dense": 1, "sparse": 1}, {"dense": 2})
        unit.set_generation_state("ctr", 1, GenerationState.SERVING)
    with store.begin("ctr") as unit:
        unit.set_derived("ctr", 1, derived)
        with pytest.raises(Conflict, match="its snapshots stay"):
            unit.set_derived("ctr", 1, None)


def test_both_snapshots_of_a_generation_that_served_are_kept(derive, publish, store):
    made = derive()
    with store.begin("ctr") as unit:
        unit.set_derived("ctr", 1, Derivatives(steps=RECIPE, parts={"dense": made.number}))
        unit.set_generation_state("ctr", 1, GenerationState.SERVING)
    derive("never used", OTHER)
    assert unneeded(store) == {("dense", 3)}


def on_kinds(number, **by_hardware):
    """Derivatives of part dense: `number` on most kinds, None for the published one; others by kind."""
    others = {kind: {"dense": found} for kind, found in by_hardware.items()}
    return Derivatives(steps=RECIPE, parts={} if number is None else {"dense": number}, by_hardware=others)


def test_a_generation_has_the_derivative_of_each_hardware_kind(derive, store):
    derived = on_kinds(None, small=derive().number, large=derive("compiled", OTHER).number)
    with store.begin("ctr") as unit:
        unit.set_derived("ctr", 1, derived)
        unit.set_generation_state("ctr", 1, GenerationState.SERVING)
    with store.read() as unit:
        found = unit.generation("ctr", 1)
    assert found.derived == derived
    loaded = {kind: found.snapshots_of("dense", kind) for kind in ("small", "large", "other")}
    assert loaded == {"small": {"dense": 2}, "large": {"dense": 3}, "other": {"dense": 1}}
    assert set(found.named) == {("dense", 1), ("sparse", 1), ("dense", 2), ("dense", 3)}
    with store.begin("ctr") as unit, pytest.raises(Conflict, match="its snapshots stay"):
        unit.set_derived("ctr", 1, on_kinds(None, small=2))


def test_a_generation_without_kinds_is_stored_as_before_they_existed(derive, store):
    derived = on_kinds(derive().number)
    with store.begin("ctr") as unit:
        unit.set_derived("ctr", 1, derived)
        row = unit._generation_row("ctr", 1)
        assert row.derived == f'{{"parts":{{"dense":2}},"steps":"{RECIPE}"}}'


def test_no_derivative_of_a_generation_that_served_is_collected(derive, publish, store):
    derived = on_kinds(None, small=derive().number, large=derive("compiled", OTHER).number)
    with store.begin("ctr") as unit:
        unit.set_derived("ctr", 1, derived)
        unit.set_generation_state("ctr", 1, GenerationState.SERVING)
    derive("never used", "3" * 64)
    one = SnapshotKeep(Keep(1, timedelta(days=30)), 1)
    assert unneeded(store, keep=one) == {("dense", 4)}


@pytest.mark.parametrize("content", ["quantized a", "compiled"])
def test_a_denied_derivative_of_any_kind_counts_for_its_generation(derive, store, make, content):
    derived = on_kinds(None, small=derive().number, large=derive("compiled", OTHER).number)
    with store.begin("ctr") as unit:
        unit.set_derived("ctr", 1, derived)
        unit.set_generation_state("ctr", 1, GenerationState.SERVING)
        unit.update_model("ctr", serving_generation=1)
    with store.begin() as unit:
        unit.put_denial(make.source(content).manifest.digest, reason="a fault", denied_by="ops")
    carry_out_denials(store)
    with store.read() as unit:
        [use] = unit.denied_uses(["ctr"])
        assert (use.serving, use.denial.reason) == (1, "a fault")
        assert set(denied_generations(unit, "ctr", unit.generations("ctr"))) == {1}


def test_a_derived_snapshot_has_the_kinds_that_it_was_derived_for(store, make, source):
    def add(recipe, hardware):
        made = make.source(recipe)
        manifest = made.manifest.model_copy(update={"parent": source.digest})
        with store.begin("ctr") as unit:
            given = made.model_copy(update={"manifest": manifest})
            return unit.add_derivation(source, recipe, report(), given, hardware=hardware)

    for_all, for_one = add(RECIPE, ()), add(OTHER, ["small"])
    assert (for_all.hardware, for_one.hardware) == ((), ("small",))
    with store.begin("ctr") as unit:
        unit.add_hardware(for_all, ["small"])
        unit.add_hardware(for_one, ["large"])
    with store.read() as unit:
        numbers = {snapshot.number: snapshot.hardware for snapshot in unit.snapshots("ctr") if snapshot.part == "dense"}
        assert numbers == {1: (), 2: (), 3: ("large", "small")}
        [one] = unit.lineages("ctr", [("dense", 1)])
    derived = [(each.number, each.derivation, each.hardware) for each in one.derived]
    assert derived == [(3, "optimized", ("large", "small")), (2, "optimized", ())]


def piped(make, *steps):
    document = make.manifest().model_dump(mode="json", by_alias=True)
    document["spec"]["optimization"] = list(steps)
    return ModelManifest.model_validate(document)


def test_the_same_bytes_may_be_published_again_for_another_pipeline(source, publish, store, make):
    with pytest.raises(DuplicateSnapshot):
        publish("c2", dense="a")
    with store.begin() as unit:
        unit.put_model(piped(make, INT8), expected_version=None)
    assert publish("c3", dense="a").generation == 2


@pytest.mark.parametrize("steps", [(), (INT8,)])
def test_a_delta_of_a_part_with_a_step_or_of_a_derived_snapshot_is_refused(derive, store, make, source, steps):
    made = derive()
    with store.begin() as unit:
        unit.put_model(piped(make, *steps), expected_version=None)
    told = "a delta cannot be optimized" if steps else "which ctr.dense does not have"
    with pytest.raises(InvalidInput, match=told), store.begin("ctr") as unit:
        unit.publish("ctr", {"dense": make.delta("x", parent=made.digest)}, change_id="c9")


def cut_for_small(made, digest):
    """Layout of part dense: one segment, `table`, with snapshot 2 on the kind `small`."""
    segment = {"name": "table", "stage": 0, "snapshot": 1, "size_bytes": 4}
    part = {"name": "table", "modules": ["table"], "size_bytes": 4, "segments": [segment]}
    part["hardware"] = [{"kind": "small", "units": 1, "qps": 1}]
    nodes = [{"name": "table", "part": "table", "inputs": {"x": "request.x"}}]
    found = {"source": "dense", "digest": digest, "cut": "0" * 64, "equal_at": [1], "parts": [part]}
    found["graph"] = {"nodes": nodes, "outputs": {"x": "table.x"}}
    found["by_hardware"] = {"small": {"digest": made.digest, "segments": {"table": 2}}}
    return SplitLayout.model_validate(found)


def test_cuts_for_a_kind_are_kept_and_lineage_leads_to_them(derive, store, make, source):
    made = derive()
    with store.begin("ctr") as unit:
        for parent, kinds in ((source, ()), (made, ("small",))):
            cut = make.source(f"cut of {parent.number}")
            manifest = cut.manifest.model_copy(update={"parent": parent.digest})
            unit.add_segment("ctr", "table", cut.model_copy(update={"manifest": manifest}), hardware=kinds)
        unit.set_derived("ctr", 1, on_kinds(None, small=made.number))
        unit.set_layout("ctr", 1, cut_for_small(made, source.digest))
        unit.set_generation_state("ctr", 1, GenerationState.SERVING)
    assert unneeded(store, keep=SnapshotKeep(Keep(1, timedelta(days=30)), 1)) == set()
    with store.read() as unit:
        found = unit.lineages("ctr", [("dense", 1), ("dense", 2), ("table", 1), ("table", 2)])
    cuts = [[(one.part, one.number, one.hardware) for one in each.derived if one.derivation == "cut"] for each in found]
    assert cuts[:2] == [[("table", 1, ()), ("table", 2, ("small",))], [("table", 2, ("small",))]]
    parents = [(each.parent.part, each.parent.number, each.parent.derivation) for each in found[2:]]
    assert parents == [("dense", 1, "cut"), ("dense", 2, "cut")]
    assert [[one.number for one in each.generations] for each in found] == [[1]] * 4
