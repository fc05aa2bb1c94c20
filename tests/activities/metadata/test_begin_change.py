"""How a change begins: none of a model that is retired does."""

import pytest

from activities.metadata.activities import MetadataActivities
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.entity import SupersededChange, SupersededInput
from ipnext.model.lifecycle.changes.lifecycle_run import ProgressInput
from ipnext.model.lifecycle.status import Reason
from ipnext.model.registry.registry import GenerationState


@pytest.fixture
def published(house):
    """The publish of a model, not begun."""
    house.apply("ranker")
    return house.publish("ranker", 1, change_id="first")


def begin(house, change):
    progress = ProgressInput(model="ranker", change_id=change.id, stage="begin", run_id="run")
    return MetadataActivities(house.store, house.artifacts).begin_change(progress)


@pytest.mark.parametrize("kind", [ChangeKind.PUBLISH, ChangeKind.ROLLBACK, ChangeKind.APPLY, ChangeKind.REPAIR])
def test_a_change_of_a_retired_model_moves_nothing(house, published, kind):
    change = published if kind is ChangeKind.PUBLISH else house.ask("ranker", kind, "late")
    with house.store.begin("ranker") as unit:
        unit.update_model("ranker", retired=True)
    begun = begin(house, change)
    assert (begun.final, begun.generation, begun.retired) == (ChangeState.SUPERSEDED, None, True)
    ended = house.change(change.id)
    assert (ended.state, ended.reason, ended.message) == (
        ChangeState.SUPERSEDED,
        Reason.SUPERSEDED,
        "the model is retired",
    )
    with house.store.read() as unit:
        state = unit.generation("ranker", published.generation).state
        assert (state is GenerationState.SUPERSEDED) is (kind is ChangeKind.PUBLISH)
        assert unit.model("ranker").target_generation is None
    again = begin(house, change)
    assert (again.final, again.retired) == (ChangeState.SUPERSEDED, True)


@pytest.mark.parametrize("kind", [ChangeKind.PUBLISH, ChangeKind.RETIRE])
def test_a_change_from_before_a_retirement_moves_nothing_although_the_model_is_back(house, published, kind):
    change = published if kind is ChangeKind.PUBLISH else house.ask("ranker", kind, "late")
    house.ask("ranker", ChangeKind.RETIRE, "gone")
    with house.store.begin("ranker") as unit:
        unit.update_change("gone", state=ChangeState.DONE)
    house.apply("ranker")
    begun = begin(house, change)
    assert (begun.final, begun.retired) == (ChangeState.SUPERSEDED, False)
    assert house.change(change.id).message == "change gone is newer"
    assert begin(house, house.ask("ranker", ChangeKind.APPLY, "later")).final is None


@pytest.mark.parametrize("noticed_by", ["begin", "entity"])
def test_the_bytes_of_a_publish_that_a_retirement_superseded_can_be_published_again(house, published, noticed_by):
    if noticed_by == "entity":
        house.ask("ranker", ChangeKind.RETIRE, "gone")
        found = SupersededInput(model="ranker", superseded=(SupersededChange(change_id=published.id, by="gone"),))
        MetadataActivities(house.store, house.artifacts).mark_superseded(found)
    with house.store.begin("ranker") as unit:
        if noticed_by == "entity":
            unit.update_change("gone", state=ChangeState.DONE)
        unit.update_model("ranker", retired=True)
    begin(house, published)
    assert house.change(published.id).state is ChangeState.SUPERSEDED
    house.apply("ranker")
    assert house.publish("ranker", 1, change_id="second").generation == 2


def test_a_retirement_of_a_retired_model_begins(house, published):
    retirement = house.ask("ranker", ChangeKind.RETIRE, "again")
    with house.store.begin("ranker") as unit:
        unit.update_model("ranker", retired=True)
    assert begin(house, retirement).final is None
