"""A step that fails and is tried again is told by its change and by events, until it succeeds."""

import pytest

from activities.runtime.failed_attempts import EVENT, MOST_EVENTS
from ipnext.errors import FenceLost, Unavailable
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.changes.transition_run import WaveInput
from ipnext.model.lifecycle.status import Reason
from tests.activities.carried_out import CarriedOut


@pytest.fixture
def wave(house):
    """The first wave of a publish that runs: its replicas are ready."""
    carried = CarriedOut(house)
    house.apply("ranker")
    change = house.publish("ranker", 1)
    with house.store.begin() as unit:
        unit.update_change(change.id, state=ChangeState.RUNNING)
    assert carried.placed(change, 1).feasible
    carried.planned(change, 1)
    wave = WaveInput(transition_id=change.id, model="ranker", generation=1, index=0, deadline_seconds=60)
    assert not carried.step("ensure_capacity", wave)
    return carried, wave


def fails(house, carried, wave, text, *, step="shift_traffic"):
    house.infrastructure.fail_next("route", Unavailable(text))
    with pytest.raises(Unavailable):
        carried.env.run(getattr(carried.transition, step), wave)


def told(house, wave):
    change = house.change(wave.transition_id)
    with house.store.read() as unit:
        return change, [event.message for event in unit.events("ranker") if event.kind == EVENT]


def test_a_failed_attempt_is_told_by_the_change_until_the_step_succeeds(house, wave):
    carried, wave = wave
    again = wave.model_copy(update={"waited_seconds": 0.5})

    fails(house, carried, wave, "the disk is full")
    change, events = told(house, wave)
    assert (change.state, change.reason, events) == (ChangeState.RUNNING, Reason.ROUTE_FAILED, [])
    assert change.message.startswith("shift traffic is tried again: the gateway of region ")
    assert change.message.endswith("the disk is full")
    assert change.is_retried

    fails(house, carried, again, "the disk is full")
    assert told(house, wave)[1] == [change.message]

    assert not carried.step("shift_traffic", again)
    change, events = told(house, wave)
    assert (change.reason, change.message, change.is_retried) == (Reason.PROGRESSING, "", False)
    assert len(events) == 1


def test_each_message_is_one_event_and_figures_make_no_new_one(house, wave):
    carried, wave = wave
    texts = ["the disk is full", "disk 1 is full", "disk 2 is full", "the disk is full", "no such file"]
    for text in (texts[0], *texts):
        fails(house, carried, wave, text)

    assert [message.rpartition(": ")[2] for message in reversed(told(house, wave)[1])] == [
        "the disk is full",
        "disk 1 is full",
        "no such file",
    ]

    for letter in "abcdefghijklmnop":
        fails(house, carried, wave, f"file {letter}")
    assert len(told(house, wave)[1]) == MOST_EVENTS


def test_a_failure_of_a_change_that_has_ended_or_is_frozen_is_not_written(house, wave):
    carried, wave = wave
    with house.store.begin() as unit:
        unit.update_change(wave.transition_id, state=ChangeState.RUNNING, reason=Reason.FROZEN, message="frozen")
    fails(house, carried, wave, "the disk is full")
    assert told(house, wave)[0].message == "frozen"

    with house.store.begin() as unit:
        unit.update_change(
            wave.transition_id, state=ChangeState.ROLLED_BACK, reason=Reason.ABORTED, message="aborted by ann"
        )
    with pytest.raises(FenceLost):
        carried.env.run(carried.transition.shift_traffic, wave)
    assert told(house, wave)[0].message == "aborted by ann"
