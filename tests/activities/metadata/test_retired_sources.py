"""Sources of a model that is retired, or to be: nothing is published, and nothing is lost if it is taken back."""

import pytest

from activities.metadata import source_pick_up
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.platform.publication import Publisher
from tests.activities.metadata.feeds import Feeds

pytestmark = pytest.mark.trust


@pytest.fixture
def feeds(house, kit):
    return Feeds(house, kit)


def test_a_retired_model_publishes_nothing(feeds):
    feeds.watch("in")
    feeds.put("in", "a", 1)
    feeds.poll("in")
    with feeds.house.store.begin("ranker") as unit:
        unit.update_model("ranker", retired=True)
    assert feeds.pick_up().pending == 0
    assert feeds.states("in") == {"a": "found"}


def test_a_version_waits_for_the_end_of_a_retirement_that_may_be_taken_back(feeds):
    feeds.watch("in")
    feeds.put("in", "a", 1)
    feeds.poll("in")
    feeds.retire()
    found = feeds.pick_up()
    assert (found.pending, found.next_seconds, found.change_id) == (1, source_pick_up.RETIRES_SECONDS, None)
    assert found.message == "retirement r is open; versions are published if it is taken back"
    with feeds.house.store.begin("ranker") as unit:
        unit.update_change("r", state=ChangeState.ROLLED_BACK)
    assert feeds.pick_up().published


@pytest.mark.parametrize("end", [ChangeState.REFUSED, ChangeState.DONE])
def test_a_version_whose_publish_a_retirement_superseded_is_published_if_that_is_taken_back(feeds, end):
    feeds.watch("in")
    feeds.put("in", "a", 1)
    feeds.poll("in")
    change = feeds.pick_up().change_id
    feeds.put("in", "b", 2)
    feeds.poll("in")
    feeds.retire()
    feeds.supersede(change, by="r")
    feeds.end("r", ChangeKind.RETIRE, end)
    if end is ChangeState.DONE:
        assert feeds.states("in") == {"a": "published", "b": "found"}
        return
    assert feeds.states("in") == {"a": "found", "b": "found"}
    found = feeds.pick_up()
    assert feeds.states("in") == {"a": "superseded", "b": "published"}
    feeds.retire("again")
    feeds.supersede(found.change_id, by="again")
    feeds.end("again", ChangeKind.RETIRE, end)
    assert feeds.states("in") == {"a": "superseded", "b": "found"}
    assert feeds.pick_up().change_id != found.change_id
    assert feeds.states("in") == {"a": "superseded", "b": "published"}


def test_a_model_that_is_retired_while_a_version_is_read_publishes_nothing(feeds, monkeypatch):
    feeds.watch("in")
    feeds.put("in", "a", 1)
    feeds.poll("in")
    monkeypatch.setattr(Publisher, "check_there", lambda *_: feeds.retire())
    found = feeds.pick_up()
    assert (found.pending, found.message, found.change_id) == (1, "the model is to be retired", None)
    assert (feeds.states("in"), feeds.snapshots()) == ({"a": "found"}, [])
