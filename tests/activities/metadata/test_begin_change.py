"""How a change begins: none of a model that is retired does."""

import pytest

from activities.metadata.activities import MetadataActivities
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
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
    assert (begun.final, begun.generation) == (ChangeState.SUPERSEDED, None)
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
    assert begin(house, change).final is ChangeState.SUPERSEDED


def test_a_retirement_of_a_retired_model_begins(house, published):
    retirement = house.ask("ranker", ChangeKind.RETIRE, "again")
    with house.store.begin("ranker") as unit:
        unit.update_model("ranker", retired=True)
    assert begin(house, retirement).final is None
