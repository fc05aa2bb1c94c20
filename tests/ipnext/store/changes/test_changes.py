"""The order and the states of changes on both engines."""

import pytest

from ipnext.errors import Conflict, InvalidInput, NotFound
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.status import Reason
from ipnext.store.operations.repetition import is_replaced


@pytest.fixture
def published(applied, publish):
    publish("c1", dense="d1", sparse="s1")
    return applied


def test_the_sequence_rises_by_one_for_each_model(published, make):
    with published.begin() as repository:
        repository.put_model(make.manifest("other"), expected_version=None)
        other = repository.add_change("other", ChangeKind.APPLY, change_id="o1")
        second = repository.add_change("ctr", ChangeKind.ROLLBACK, change_id="c2", generation=1)
        third = repository.add_change("ctr", ChangeKind.RETIRE, change_id="c3")
        assert (other.sequence, second.sequence, third.sequence) == (1, 2, 3)
        assert [change.id for change in repository.changes("ctr")] == ["c3", "c2", "c1"]
        assert [change.id for change in repository.changes("ctr", limit=2)] == ["c3", "c2"]
        assert [change.id for change in repository.unsubmitted_changes()] == ["c1", "o1", "c2", "c3"]


def test_unsubmitted_changes_are_read_in_pages_without_models_that_are_busy(published, make):
    with published.begin() as repository:
        repository.put_model(make.manifest("other"), expected_version=None)
        repository.add_change("ctr", ChangeKind.RETIRE, change_id="c2")
        repository.add_change("other", ChangeKind.APPLY, change_id="o1")
        assert [change.id for change in repository.unsubmitted_changes(limit=2)] == ["c1", "c2"]
        assert [change.id for change in repository.unsubmitted_changes(limit=2, but={"ctr"})] == ["o1"]
        assert repository.models_unsubmitted({"ctr", "unknown"}) == {"ctr"}
        assert repository.models_unsubmitted(()) == frozenset()


@pytest.mark.parametrize("limit", [0, -1, 10**30])
def test_any_limit_is_taken(published, limit):
    with published.begin() as repository:
        assert len(repository.changes("ctr", limit=limit)) in {0, 1}
        assert repository.events(limit=limit) == ()


def test_the_same_id_is_one_change(published):
    with published.begin("ctr") as repository:
        first = repository.add_change("ctr", ChangeKind.ROLLBACK, change_id="c2", generation=1)
        assert repository.add_change("ctr", ChangeKind.ROLLBACK, change_id="c2", generation=1) == first
        with pytest.raises(Conflict, match="generation 1"):
            repository.add_change("ctr", ChangeKind.ROLLBACK, change_id="c2")
        assert repository.change("c2") == first


def test_a_change_to_what_does_not_exist_is_refused(published):
    with published.begin() as repository:
        with pytest.raises(NotFound, match=r"no generation 9; it has 1\.\.1"):
            repository.add_change("ctr", ChangeKind.ROLLBACK, change_id="c2", generation=9)
        with pytest.raises(NotFound, match="plan 'p9'"):
            repository.add_change("ctr", ChangeKind.MOVE, change_id="c2", plan_id="p9")
        with pytest.raises(NotFound, match="known: ctr"):
            repository.add_change("unknown", ChangeKind.APPLY, change_id="c2")
        with pytest.raises(InvalidInput, match=r"publish\(\)"):
            repository.add_change("ctr", ChangeKind.PUBLISH, change_id="c2")
        with pytest.raises(NotFound, match="'c2'"):
            repository.change("c2")


def test_a_change_goes_forward_and_keeps_what_is_not_given(published):
    with published.begin() as repository:
        repository.update_change("c1", state=ChangeState.QUEUED)
        assert repository.unsubmitted_changes() == ()
        repository.update_change("c1", state=ChangeState.RUNNING, run_id="run", message="validating")
        done = repository.update_change("c1", state=ChangeState.DONE, reason=Reason.SUCCEEDED)
    assert (done.state, done.run_id, done.message) == (ChangeState.DONE, "run", "validating")
    assert done.reason is Reason.SUCCEEDED
    assert done.finished_at >= done.created_at


def test_a_late_report_does_not_take_a_running_change_back(published):
    with published.begin() as repository:
        running = repository.update_change("c1", state=ChangeState.RUNNING)
        assert repository.update_change("c1", state=ChangeState.QUEUED, message="late") == running


@pytest.mark.parametrize("final", [state for state in ChangeState if state.final])
@pytest.mark.parametrize("later", [ChangeState.RUNNING, ChangeState.DONE, ChangeState.REFUSED])
def test_a_final_change_stays_as_it_is(published, final, later):
    with published.begin() as repository:
        ended = repository.update_change("c1", state=final, reason=Reason.SUPERSEDED, message="first")
        assert repository.update_change("c1", state=later, reason=Reason.SUCCEEDED, message="later") == ended
    with published.begin() as repository:
        assert repository.change("c1") == ended


def test_a_message_of_any_origin_can_be_kept(published):
    with published.begin() as repository:
        repository.update_change("c1", state=ChangeState.REFUSED, message="nul \0 and half a pair \ud83d, emoji 🙂")
        repository.add_event("ctr", "Refused", "nul \0", detail={"text": "nul \0 🙂"})
    with published.begin() as repository:
        assert "emoji 🙂" in repository.change("c1").message
        assert repository.events("ctr")[0].detail == {"text": "nul \0 🙂"}


def test_a_model_retires_from_when_that_change_runs_until_it_has_ended(published):
    with published.begin("ctr") as repository:
        repository.add_change("ctr", ChangeKind.RETIRE, change_id="c2")
        assert repository.retiring_models() == frozenset()
        repository.update_change("c2", state=ChangeState.RUNNING)
        assert repository.retiring_models() == {"ctr"}
        repository.update_change("c2", state=ChangeState.RUNNING, reason=Reason.FROZEN)
        assert (repository.retiring_models(), repository.is_moved("ctr")) == (frozenset(), False)
        repository.update_change("c2", state=ChangeState.RUNNING, reason=Reason.PROGRESSING)
        assert (repository.retiring_models(), repository.is_moved("ctr")) == ({"ctr"}, True)
        repository.update_change("c2", state=ChangeState.ROLLED_BACK)
        repository.update_change("c1", state=ChangeState.RUNNING)
        assert repository.retiring_models() == frozenset()


@pytest.mark.parametrize("between", [0, 60])
def test_a_newer_publish_replaces_a_change_however_many_came_after(applied, publish, between):
    refused = publish("c1", dense="a", sparse="x")
    assert not replaced(applied, refused)
    publish("c2", dense="b")
    with applied.begin("ctr") as unit:
        for number in range(between):
            unit.add_change("ctr", ChangeKind.APPLY, change_id=f"a{number}")
    assert replaced(applied, refused)


def replaced(store, change):
    with store.read() as unit:
        return is_replaced(unit, change)
