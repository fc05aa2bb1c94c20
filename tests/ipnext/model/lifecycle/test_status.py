"""`Ready` follows from `Serving` and `UpToDate`."""

from datetime import UTC, datetime, timedelta

import pytest

from ipnext.model.lifecycle.status import Condition, ConditionType, ModelStatus, Reason, ready_of, with_ready

AT = datetime(2026, 11, 28, tzinfo=UTC)


def condition(kind, status, reason=Reason.SUCCEEDED, *, minute=0):
    return Condition(
        type=kind,
        status=status,
        reason=reason,
        message=f"of {kind}",
        last_transition_time=AT + timedelta(minutes=minute),
    )


def halves(up_to_date, serving):
    return [
        condition(ConditionType.UP_TO_DATE, up_to_date, Reason.GATE_FAILED, minute=1),
        condition(ConditionType.SERVING, serving, Reason.OUT_OF_MEMORY, minute=2),
    ]


@pytest.mark.parametrize(
    ("up_to_date", "serving", "status", "reason", "minute"),
    [
        ("True", "True", "True", Reason.OUT_OF_MEMORY, 2),
        ("False", "True", "False", Reason.GATE_FAILED, 1),
        ("True", "False", "False", Reason.OUT_OF_MEMORY, 2),
        ("False", "False", "False", Reason.GATE_FAILED, 1),
        ("True", "Unknown", "Unknown", Reason.OUT_OF_MEMORY, 2),
        ("Unknown", "False", "False", Reason.OUT_OF_MEMORY, 2),
        ("False", "Unknown", "False", Reason.GATE_FAILED, 1),
    ],
)
def test_ready_is_both_with_the_reason_of_what_keeps_it_from_being_true(up_to_date, serving, status, reason, minute):
    found = ready_of(halves(up_to_date, serving))
    assert found.type is ConditionType.READY
    assert (found.status, found.reason) == (status, reason)
    assert found.last_transition_time == AT + timedelta(minutes=minute)


def test_a_half_that_was_never_written_leaves_ready_unknown_or_false():
    assert ready_of([condition(ConditionType.PLANNED, "True")]) is None
    assert ready_of([condition(ConditionType.UP_TO_DATE, "True")]).status == "Unknown"
    assert ready_of([condition(ConditionType.UP_TO_DATE, "False")]).status == "False"


def test_ready_is_last_and_never_what_was_given():
    stored = condition(ConditionType.READY, "True")
    found = with_ready([stored, *halves("False", "True"), condition(ConditionType.PLANNED, "True")])
    assert [c.type for c in found] == ["Planned", "Serving", "UpToDate", "Ready"]
    assert found[-1].status == "False"


def test_a_condition_that_is_not_there_is_unknown():
    status = ModelStatus(model="m", generation=1, conditions=with_ready(halves("True", "True")))
    assert status.ready
    assert status.is_met(ConditionType.SERVING)
    assert status.is_met(ConditionType.PLANNED, "Unknown")
    assert not status.is_met(ConditionType.PLANNED)
