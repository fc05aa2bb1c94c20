"""Labels of models and owners on both engines, as filters of lists."""

import pytest
from sqlalchemy import select

from ipnext.model.access.owner import OwnerManifest
from ipnext.model.manifest.sources import SourceSpec
from ipnext.store.sources.sources import WatchedSource
from ipnext.store.tables.row import METADATA

LABELS = {"a": {"team": "ads", "tier": "gold"}, "b": {"team": "ads"}, "c": {}}


@pytest.fixture
def labelled(store, make):
    """Models a, b, c with labels, and a source each; owners of the same names and labels."""
    with store.begin() as unit:
        for name, labels in LABELS.items():
            put(unit, make.manifest(name), labels)
            owner = {"apiVersion": "ipnext/v1", "kind": "Owner", "metadata": {"name": name, "labels": labels}}
            unit.put_owner(OwnerManifest.model_validate(owner), expected_version=None)
    for name in LABELS:
        with store.begin(name) as unit:
            spec = SourceSpec.model_validate({"name": "feed", "part": "dense", "push": {}})
            unit.put_sources(name, [WatchedSource(spec=spec, part="dense", upstream=name)])
    return store


def put(unit, manifest, labels):
    metadata = manifest.metadata.model_copy(update={"labels": labels})
    unit.put_model(manifest.model_copy(update={"metadata": metadata}), expected_version=None)


def models(store, **labels):
    with store.read() as unit:
        return [record.name for record in unit.model_page(labels=labels).items]


def owners(store, **labels):
    with store.read() as unit:
        return [record.manifest.name for record in unit.owner_page(after=None, limit=10, labels=labels).items]


def sources(store, **labels):
    with store.read() as unit:
        return [record.model for record in unit.source_page(labels=labels).items]


@pytest.mark.parametrize("found", [models, owners, sources])
def test_lists_are_filtered_by_all_labels(labelled, found):
    assert found(labelled) == ["a", "b", "c"]
    assert found(labelled, team="ads") == ["a", "b"]
    assert found(labelled, team="ads", tier="gold") == ["a"]
    assert found(labelled, team="gold") == []


def test_pages_go_on_within_a_filter(labelled):
    with labelled.read() as unit:
        page = unit.model_page(labels={"team": "ads"}, limit=1)
        assert [record.name for record in unit.model_page(labels={"team": "ads"}, after=page.next).items] == ["b"]


def test_labels_follow_the_manifest(labelled, make):
    with labelled.begin("b") as unit:
        put(unit, make.manifest("b"), {"tier": "gold"})
    assert models(labelled, team="ads") == ["a"]
    assert models(labelled, tier="gold") == ["a", "b"]


def test_labels_go_with_their_owner(labelled):
    owner = {"apiVersion": "ipnext/v1", "kind": "Owner", "metadata": {"name": "zeta", "labels": {"team": "ads"}}}
    with labelled.begin() as unit:
        unit.put_owner(OwnerManifest.model_validate(owner), expected_version=None)
        unit.delete_owner("zeta", expected_version=None)
        table = METADATA.tables["labels"].c
        assert unit.connection().execute(select(table.key).where(table.name == "zeta")).all() == []
