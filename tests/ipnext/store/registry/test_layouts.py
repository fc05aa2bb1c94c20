"""How generations are cut, on both engines."""

import pytest

from ipnext.errors import Conflict, DuplicateSnapshot
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.registry.registry import GenerationState, SplitLayout

BY_TABLE = {"parts": [{"name": "tables", "modules": ["tables.*"]}], "default": "dense"}
BY_TOWER = {"parts": [{"name": "tower", "modules": ["tower"]}], "default": "dense"}


def cut_manifest(make, split):
    document = make.manifest(parts=("whole",)).model_dump(mode="json", by_alias=True)
    document["spec"] |= {"split": split, "graph": None}
    return ModelManifest.model_validate(document)


def layout_of(manifest, number=1):
    segment = {"name": "tables", "stage": 0, "snapshot": number, "size_bytes": 4}
    hardware = [{"kind": "cpu", "units": 1, "qps": 100}]
    part = {"name": "tables", "modules": ["tables"], "size_bytes": 4, "hardware": hardware, "segments": [segment]}
    graph = {
        "nodes": [{"name": "tables", "part": "tables", "inputs": {"x": "request.x"}}],
        "outputs": {"x": "tables.x"},
    }
    found = {
        "source": "whole",
        "digest": "0" * 64,
        "cut": manifest.spec.split.cut_digest,
        "equal_at": [1],
        "parts": [part],
        "graph": graph,
    }
    return SplitLayout.model_validate(found)


@pytest.fixture
def manifest(make):
    return cut_manifest(make, BY_TABLE)


@pytest.fixture
def cut(store, make, manifest):
    """A store with generation 1 of `ctr`, published whole."""
    with store.begin() as repository:
        repository.put_model(manifest, expected_version=None)
        repository.publish("ctr", {"whole": make.source("w1")}, change_id="c1")
    return store


def test_a_generation_keeps_its_layout(cut, manifest):
    layout = layout_of(manifest)
    with cut.begin("ctr") as repository:
        assert repository.generation("ctr", 1).layout is None
        assert repository.set_layout("ctr", 1, layout).layout == layout
    with cut.read() as repository:
        assert repository.generation("ctr", 1).layout == layout


def test_a_layout_stays_as_it_is_once_its_generation_has_served(cut, manifest):
    with cut.begin("ctr") as repository:
        repository.set_layout("ctr", 1, layout_of(manifest))
        repository.set_generation_state("ctr", 1, GenerationState.SERVING)
        repository.set_layout("ctr", 1, layout_of(manifest))
        with pytest.raises(Conflict, match="has served: its parts stay as they are"):
            repository.set_layout("ctr", 1, None)


def test_a_segment_of_the_same_content_is_one_snapshot(cut, make):
    with cut.begin("ctr") as repository:
        numbers = [repository.add_segment("ctr", "tables", make.source(text)).number for text in ("a", "b", "a", "c")]
        other = repository.add_segment("ctr", "dense", make.source("b"))
    assert numbers == [1, 2, 1, 3]
    assert (other.part, other.number) == ("dense", 1)


def test_only_cut_generations_at_work_are_listed(cut, make, manifest):
    with cut.begin() as repository:
        repository.put_model(make.manifest("plain"), expected_version=None)
        repository.publish("plain", {"dense": make.source("d"), "sparse": make.source("s")}, change_id="p1")
        repository.update_model("plain", serving_generation=1)
        for number in (2, 3):
            repository.publish("ctr", {"whole": make.source(f"w{number}")}, change_id=f"c{number}")
            repository.set_layout("ctr", number, layout_of(manifest))
        assert repository.cut_generations() == {}
        repository.update_model("ctr", serving_generation=2, target_generation=3)
        assert {m: [g.number for g in found] for m, found in repository.cut_generations().items()} == {"ctr": [2, 3]}
        repository.update_model("ctr", serving_generation=1, target_generation=3)
        assert [g.number for g in repository.cut_generations()["ctr"]] == [3]


def test_the_same_bytes_are_new_where_the_manifest_cuts_them_otherwise(cut, make, manifest):
    with cut.begin("ctr") as repository:
        repository.set_layout("ctr", 1, layout_of(manifest))
        with pytest.raises(DuplicateSnapshot, match="whole snapshot 1"):
            repository.publish("ctr", {"whole": make.source("w1")}, change_id="c2")
        repository.put_model(cut_manifest(make, BY_TOWER), expected_version=None)
        change = repository.publish("ctr", {"whole": make.source("w1")}, change_id="c3")
        assert repository.generation("ctr", change.generation).snapshots == {"whole": 1}


def test_the_same_bytes_are_new_where_they_were_never_cut(cut, make):
    with cut.begin("ctr") as repository:
        assert repository.publish("ctr", {"whole": make.source("w1")}, change_id="c2").generation == 2
