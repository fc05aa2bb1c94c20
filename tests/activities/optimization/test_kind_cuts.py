"""A model that is split, with steps for single hardware kinds: each derivative is cut like the published snapshot."""

import pytest
from temporalio.testing import ActivityEnvironment

from activities.optimization.activities import OptimizationActivities
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.status import Reason
from ipnext.model.registry.registry import GenerationState

MODEL = "ranker"
KINDS = ("cpu", "small", "large")
WHOLE = {"name": "whole", "engine": "torch", "hardware": [{"kind": kind, "units": 1, "qps": 100} for kind in KINDS]}


def quantize(*kinds, embeddings="int8"):
    return {"quantize": {"embeddings": embeddings, **({"hardware": list(kinds)} if kinds else {})}}


@pytest.fixture
def apply(house, kit):
    def call(*steps, split=kit.BY_TABLE):
        house.apply_split(MODEL, split, parts=[WHOLE], optimization=list(steps))

    return call


@pytest.fixture
def publish(house):
    """Publish the whole, and run the optimization on its generation."""
    activities = OptimizationActivities(house.store, house.artifacts, cutter=house.cutter, deriver=house.deriver)

    def call(seed, number):
        change = house.publish_whole(MODEL, seed, change_id=f"c{number}")
        assert change.generation == number
        return run(number)

    def run(number):
        stage = StageInput(model=MODEL, change_id=f"c{number}", kind=ChangeKind.PUBLISH, generation=number)
        return ActivityEnvironment().run(activities.optimize_generation, stage)

    call.again = run
    return call


def generation(house, number):
    with house.store.read() as unit:
        return unit.generation(MODEL, number)


def loaded(house, number, part):
    """Hardware kind -> the number of a part's only segment there."""
    found = generation(house, number)
    return {kind: found.snapshots_of(part, kind)[part] for kind in KINDS}


def snapshot(house, part, number):
    with house.store.read() as unit:
        return unit.snapshot(MODEL, part, number)


def test_hosts_of_a_kind_load_its_derivative_in_the_parts_of_the_published_one(house, apply, publish):
    apply(quantize("small"))
    found = publish(1, 1)
    assert not found.refused, found.summary
    assert loaded(house, 1, "sparse") == {"cpu": 1, "small": 2, "large": 1}
    assert loaded(house, 1, "dense") == dict.fromkeys(KINDS, 1), "the same content is one snapshot"
    assert generation(house, 1).by_hardware == {"small": {"sparse": 2}}
    assert snapshot(house, "sparse", 2).manifest.parent == snapshot(house, "whole", 2).digest
    assert (snapshot(house, "sparse", 2).hardware, snapshot(house, "sparse", 1).hardware) == (("small",), ())
    assert found.summary.startswith("derived: whole 2 on small; whole is cut into sparse 160 bytes, dense 160 bytes")
    assert found.summary.endswith("; on small: sparse 2")


def test_the_derivative_is_cut_by_the_modules_that_the_parts_of_the_published_one_have(house, apply, publish, kit):
    shards = {"parts": [{**kit.BY_TABLE["parts"][0], "shard": {"by": "bytes", "max_bytes": 9}}], "default": "dense"}
    apply(quantize("small"), split=shards)
    assert not publish(1, 1).refused
    first, second = house.cutter.policies
    assert (first.parts[0].shard.max_bytes, first.parts[0].modules) == (9, ("tables",))
    assert [(part.name, part.modules, part.shard) for part in second.parts] == [("sparse", ("sparse",), None)]
    assert second.default == "dense"


def test_kinds_with_one_derivative_are_cut_once_and_others_apart(house, apply, publish):
    apply(quantize("small", "large"))
    publish(1, 1)
    assert (house.cutter.calls, loaded(house, 1, "sparse")) == (2, {"cpu": 1, "small": 2, "large": 2})
    assert snapshot(house, "sparse", 2).hardware == ("large", "small")
    apply(quantize("small", "large"), quantize("large", embeddings="int4"))
    publish(2, 2)
    assert (house.cutter.calls, loaded(house, 2, "sparse")) == (5, {"cpu": 3, "small": 5, "large": 4})


def test_what_the_shared_steps_led_to_is_cut_for_the_kinds_without_steps_of_their_own(house, apply, publish):
    apply(quantize(embeddings="int4"), quantize("small"))
    publish(1, 1)
    shared, own = snapshot(house, "whole", 2), snapshot(house, "whole", 3)
    layout = generation(house, 1).layout
    assert (layout.digest, layout.by_hardware["small"].digest) == (shared.digest, own.digest)
    assert snapshot(house, "sparse", 1).manifest.parent == shared.digest
    assert snapshot(house, "sparse", 2).manifest.parent == own.digest


def test_the_same_bytes_are_not_cut_again_for_a_kind_that_had_them(house, apply, publish):
    apply(quantize("small"))
    publish(1, 1)
    apply(quantize("small"), quantize("large"))
    found = publish(1, 2)
    assert house.cutter.calls == 2
    assert "(cut before)" in found.summary
    assert loaded(house, 2, "sparse") == {"cpu": 1, "small": 2, "large": 2}
    assert snapshot(house, "sparse", 2).hardware == ("large", "small")


def test_only_the_derivative_is_cut_if_the_published_one_was_cut_before(house, apply, publish):
    apply()
    publish(1, 1)
    apply(quantize("small"))
    found = publish(1, 2)
    assert house.cutter.calls == 2
    assert "(cut before)" not in found.summary
    assert generation(house, 2).layout.numbers == generation(house, 1).layout.numbers
    assert loaded(house, 2, "sparse") == {"cpu": 1, "small": 2, "large": 1}


def test_segments_of_a_kind_whose_bytes_were_collected_are_cut_again(house, apply, publish):
    apply(quantize("small"))
    publish(1, 1)
    with house.store.begin(MODEL) as unit:
        unit.release_snapshots(MODEL, [("sparse", 2)])
    apply(quantize("small"), quantize("large"))
    assert not publish(1, 2).refused
    with house.store.read() as unit:
        assert ("sparse", 2) not in unit.collected_snapshots(MODEL)
    assert loaded(house, 2, "sparse") == {"cpu": 1, "small": 2, "large": 2}


def test_a_generation_that_has_not_served_is_cut_again_if_its_steps_have_changed(house, apply, publish):
    apply()
    publish(1, 1)
    apply(quantize())
    publish.again(1)
    assert generation(house, 1).layout.digest == snapshot(house, "whole", 2).digest
    assert loaded(house, 1, "sparse") == dict.fromkeys(KINDS, 2)


def test_a_generation_that_has_served_keeps_the_cuts_of_all_kinds(house, apply, publish):
    apply(quantize("small"))
    publish(1, 1)
    with house.store.begin(MODEL) as unit:
        unit.set_generation_state(MODEL, 1, GenerationState.SERVING)
    apply()
    publish.again(1)
    assert loaded(house, 1, "sparse") == {"cpu": 1, "small": 2, "large": 1}


def test_a_derivative_with_other_tensors_between_its_parts_is_refused_by_name(house, apply, publish, kit):
    apply(quantize("small"))
    house.cutter.sends = [kit.IN, kit.IN.model_copy(update={"datatype": "UINT8"})]
    found = publish(1, 1)
    assert (found.refused, found.reason) == (True, Reason.SPLIT_REFUSED)
    told = "split: snapshot 2 of whole, derived for small: it can't be cut like that of other hardware kinds: "
    assert found.summary.startswith(
        f"{told}segment sparse takes or gives other tensors: output features UINT8 [-1, 4] in"
    )
    assert generation(house, 1).layout is None


@pytest.mark.parametrize(
    ("pieces", "told"),
    [
        (("sparse", "dense-s1"), "part dense gets other modules or segments: modules dense; segments dense-s1"),
        (("sparse", "dense", "more"), "it gives the parts dense, more, sparse, not dense, sparse"),
    ],
)
def test_a_derivative_of_other_parts_is_refused_by_name(house, apply, publish, kit, monkeypatch, pieces, told):
    apply()
    publish(1, 1)
    apply(quantize("small"))
    monkeypatch.setitem(kit.PIECES, "sparse", pieces)
    found = publish(1, 2)
    assert (found.refused, found.reason) == (True, Reason.SPLIT_REFUSED)
    assert found.summary.endswith(f"derived for small: it can't be cut like that of other hardware kinds: {told}")


@pytest.mark.trust
@pytest.mark.parametrize(("part", "number"), [("whole", 2), ("sparse", 2)])
def test_a_denied_derivative_or_cut_of_it_is_refused(house, apply, publish, part, number):
    apply(quantize("small"))
    publish(1, 1)
    with house.store.begin() as unit:
        unit.put_denial(unit.snapshot(MODEL, part, number).digest, reason="poisoned", denied_by="ann")
    found = publish.again(1)
    assert (found.refused, found.reason) == (True, Reason.SNAPSHOT_DENIED)
    assert "of ranker.sparse: " in found.summary
    assert "is denied: poisoned" in found.summary


def test_memory_of_the_whole_is_not_judged_since_no_host_loads_it(house, kit, apply, publish):
    fleet = kit.FLEET.replace("  supply:", "  memoryBytes: {cpu: 1}\n  supply:")
    assert fleet != kit.FLEET
    house.apply_fleet(fleet)
    apply(quantize("small"))
    assert not publish(1, 1).refused
