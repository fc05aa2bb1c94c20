"""How far a change is in its stages."""

from datetime import UTC, datetime, timedelta

import pytest

from ipnext.api.services.change_views import stages_of
from ipnext.model.lifecycle.changes.change import Change, ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.change_stages import begin_stages, end_stage, hold_stage
from ipnext.model.lifecycle.changes.stage_order import ComposedStage

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
ORDER = tuple(ComposedStage(name=n) for n in ("metadata", "optimization", "freeze", "planning", "transition"))


def after(seconds):
    return BEGAN + timedelta(seconds=seconds)


def change(state, ended=None):
    return Change(
        id="c", model="m", kind=ChangeKind.PUBLISH, sequence=1, state=state, created_at=BEGAN, finished_at=ended
    )


def read(stages, state=ChangeState.RUNNING, ended=None):
    return [(each.state, each.seconds) for each in stages_of(change(state, ended), stages)]


def test_a_stage_begins_when_the_one_before_it_ends():
    stages = end_stage(begin_stages(ORDER, BEGAN), "metadata", after(2), skips={"optimization"})
    assert read(stages) == [
        ("passed", 2.0),
        ("skipped", None),
        ("passed", None),
        ("running", None),
        ("to_come", None),
    ]


def test_a_freeze_that_holds_a_change_is_where_it_is_and_takes_time():
    stages = end_stage(begin_stages(ORDER, BEGAN), "metadata", after(2), skips={"optimization"})
    held = hold_stage(stages, "freeze", after(3))
    assert [state for state, _ in read(held)] == ["passed", "skipped", "running", "to_come", "to_come"]
    assert read(end_stage(held, "freeze", after(9)))[2:] == [("passed", 6.0), ("running", None), ("to_come", None)]


@pytest.mark.parametrize(
    ("state", "shown", "later"),
    [
        (ChangeState.DONE, "passed", "passed"),
        (ChangeState.REFUSED, "refused", "not_reached"),
        (ChangeState.ROLLED_BACK, "rolled_back", "not_reached"),
        (ChangeState.SUPERSEDED, "superseded", "not_reached"),
    ],
)
def test_a_change_ends_in_the_stage_that_had_begun(state, shown, later):
    stages = end_stage(begin_stages(ORDER, BEGAN), "metadata", after(2), skips={"optimization"})
    assert read(stages, state, after(7))[3:] == [(shown, 5.0), (later, None)]


def test_no_stage_begins_after_one_that_refused():
    stages = end_stage(begin_stages(ORDER, BEGAN), "metadata", after(2), outcome="refused", message="no")
    assert [state for state, _ in read(stages, ChangeState.REFUSED, after(3))] == ["refused", *["not_reached"] * 4]
