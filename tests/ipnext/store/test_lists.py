"""Pages, filters and facts of many models on both engines, and the mark of what was committed."""

import pytest

from ipnext.errors import InvalidInput
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.store.store import Store


def all_pages(read):
    """All items of a list, read in pages."""
    items, after = [], None
    while True:
        page = read(after)
        items += page.items
        after = page.next
        if after is None:
            return items


@pytest.fixture
def many(store, make):
    """Seven models in no order; those of odd numbers are ready."""
    with store.begin() as repository:
        for number in (3, 0, 6, 1, 5, 2, 4):
            repository.put_model(make.manifest(f"m{number}"), expected_version=None)
            status = "True" if number % 2 else "False"
            for half in (ConditionType.UP_TO_DATE, ConditionType.SERVING):
                repository.set_condition(f"m{number}", half, status, Reason.SERVING)
        repository.update_model("m5", retired=True)
    return store


def test_models_come_in_pages_by_name_without_the_retired(many):
    with many.read() as repository:
        found = all_pages(lambda after: repository.model_page(after=after, limit=2))
        assert [record.name for record in found] == ["m0", "m1", "m2", "m3", "m4", "m6"]
        assert repository.model_counts() == (6, 2)


def test_readiness_follows_the_condition_whoever_writes_it(many):
    with many.begin("m1") as repository:
        repository.set_condition("m1", ConditionType.SERVING, "Unknown", Reason.REGION_UNREACHABLE)
        repository.set_condition("m1", ConditionType.PLANNED, "True", Reason.SUCCEEDED)
    with many.read() as repository:
        assert [record.name for record in repository.model_page(ready=True).items] == ["m3"]
        assert repository.recorded_readiness(["m1", "m3", "m5", "none"]) == {"m1": False, "m3": True}


def test_a_model_is_ready_once_both_halves_are_true_in_whatever_order_they_are_written(many):
    with many.begin("m0") as repository:
        repository.set_condition("m0", ConditionType.SERVING, "True", Reason.SERVING)
        assert not repository.recorded_readiness(["m0"])["m0"]
        repository.set_condition("m0", ConditionType.UP_TO_DATE, "True", Reason.SUCCEEDED)
        assert repository.recorded_readiness(["m0"])["m0"]
        repository.set_condition("m0", ConditionType.SERVING, "False", Reason.OUT_OF_MEMORY)
        repository.set_condition("m0", ConditionType.UP_TO_DATE, "True", Reason.SUCCEEDED)
        assert not repository.recorded_readiness(["m0"])["m0"]


def test_ready_follows_and_is_not_written(many):
    with many.begin("m1") as repository, pytest.raises(RuntimeError, match="Serving and UpToDate"):
        repository.set_condition("m1", ConditionType.READY, "True", Reason.SERVING)


def test_suspects_are_listed_among_those_that_are_not_ready(many):
    with many.read() as repository:
        found = all_pages(lambda after: repository.model_page(ready=False, suspects={"m1", "m5"}, after=after, limit=2))
        assert [record.name for record in found] == ["m0", "m1", "m2", "m4", "m6"]


def test_the_newest_changes_and_generations_of_each_model_are_found(many, make):
    with many.begin() as repository:
        for model, count in (("m0", 3), ("m1", 1)):
            for number in range(count):
                sources = {part: make.source(f"{model}{part}{number}") for part in ("dense", "sparse")}
                change = repository.publish(model, sources, change_id=f"{model}-{number}")
                repository.update_change(change.id, state=ChangeState.DONE)
        repository.add_change("m0", ChangeKind.APPLY, change_id="open")
    with many.read() as repository:
        changes = repository.recent_changes(["m0", "m1", "m2"], limit=2)
        assert {m: [c.id for c in found] for m, found in changes.items()} == {"m0": ["open", "m0-2"], "m1": ["m1-0"]}
        generations = repository.recent_generations(["m0", "m1"], limit=2)
        assert {m: [g.number for g in found] for m, found in generations.items()} == {"m0": [3, 2], "m1": [1]}
        assert repository.open_kinds("m0") == {ChangeKind.APPLY: "open"}
        assert [c.id for c in all_pages(lambda a: repository.change_page(after=a, limit=2))] == [
            "open", "m1-0", "m0-2", "m0-1", "m0-0",
        ]  # fmt: skip
        assert [c.id for c in repository.change_page(state=ChangeState.RECORDED).items] == ["open"]
        found = all_pages(lambda after: repository.snapshot_page("m0", after=after, limit=2))
        assert [(s.part, s.number) for s in found] == [(p, n) for p in ("dense", "sparse") for n in (3, 2, 1)]
        assert all_pages(lambda after: repository.snapshot_page("m0", part="sparse", after=after)) == found[3:]
        counts = repository.change_counts(changes["m1"][0].created_at)
        assert (counts[ChangeState.RECORDED], counts.get(ChangeState.DONE, 0)) == (1, 0), "none has ended since"
        assert set(repository.run_durations(among=10)) == {("m0", "publish", "done"), ("m1", "publish", "done")}


def test_a_page_begins_where_the_former_ended_although_rows_came_between(many):
    with many.begin() as repository:
        for number in range(4):
            repository.add_event("m0", "Test", str(number))
        first = repository.event_page(limit=2)
        repository.add_event("m0", "Test", "later")
        rest = repository.event_page(after=first.next, limit=2)
        assert [e.message for e in (*first.items, *rest.items)] == ["3", "2", "1", "0"]
        assert rest.next is None
        assert [event.message for _, event in repository.events_since(3, limit=9)] == ["3", "later"]


@pytest.mark.parametrize("after", ["x", "-1", "1.5", "9" * 30, "²"])
def test_what_is_no_cursor_is_named(many, after):
    with many.read() as repository, pytest.raises(InvalidInput, match="no cursor"):
        repository.event_page(after=after)


def test_the_revision_moves_with_every_commit_and_with_nothing_else(many):
    first = many.revision()
    with many.read() as repository:
        repository.models()
    assert many.revision() == first
    with many.begin("m0") as repository:
        repository.set_condition("m0", ConditionType.SERVING, "True", Reason.SERVING)
    second = many.revision()
    assert second != first
    other = Store.open(many._engine.url.render_as_string(hide_password=False))
    with other.begin() as repository:
        repository.add_event(None, "Test", "of another process")
    other.close()
    assert many.revision() != second
