"""Which changes are carried out again because a region was lost in their way."""

from datetime import UTC, datetime, timedelta

import pytest

from activities.deployment.repetition import record_again
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.lifecycle_run import LifecycleResult
from ipnext.model.lifecycle.regions.drain import DrainState
from ipnext.model.lifecycle.status import Reason
from ipnext.model.planning.transition import Transition
from ipnext.model.registry.registry import GenerationState
from ipnext.names import again_id
from ipnext.store.operations.repetition import pend_again
from ipnext.store.records import TransitionRecord

LOST = LifecycleResult(state=ChangeState.ROLLED_BACK, generation=1, reason=Reason.REGION_UNREACHABLE, message="lost")


@pytest.fixture
def on_its_way(house):
    """A change of a model that moves it to eu-west."""

    def ask(kind=ChangeKind.PUBLISH):
        house.apply("m")
        change = house.publish("m", 1)
        if kind is not ChangeKind.PUBLISH:
            generation = 1 if kind is ChangeKind.ROLLBACK else None
            change = house.ask("m", kind, "asked", generation=generation)
        send_to_europe(house, change)
        return change

    return ask


def send_to_europe(house, change):
    rows = [{"model": "m", "part": "dense", "region": "eu-west", "hardware": "cpu", "generation": 1, "count": 2}]
    stated = {"from": {}, "to": {"replicas": rows}, "waves": ({"gate": "final"},)}
    with house.store.begin("m") as unit:
        unit.save_transition(
            TransitionRecord(
                id=change.id,
                model="m",
                change_id=change.id,
                generation=1,
                transition=Transition.model_validate(stated),
                created_at=datetime.now(UTC),
            )
        )


def lose(house, region="eu-west", *, clock_ahead=timedelta()):
    """Declare a region lost, as an API whose clock is ahead of the workers' does."""
    with house.store.begin() as unit:
        unit._now = lambda: datetime.now(UTC) + clock_ahead
        unit.add_drain(region, disaster=True)


def bring_back(house, region="eu-west"):
    with house.store.begin() as unit:
        unit.ask_return(region)
        unit.update_drain(unit.drain(region).id, state=DrainState.RETURNED)


def recorded(house, change, result=LOST):
    with house.store.begin("m") as unit:
        return record_again(unit, unit.change(change.id), result)


@pytest.mark.parametrize("kind", [ChangeKind.PUBLISH, ChangeKind.APPLY, ChangeKind.ROLLBACK])
def test_what_is_asked_of_a_model_is_carried_out_again_by_its_kind_and_generation(house, on_its_way, kind):
    change = on_its_way(kind)
    lose(house)

    again = recorded(house, change)

    assert (again.id, again.kind) == (again_id("m", change.sequence), kind)
    assert (again.generation, again.state) == (change.generation, ChangeState.RECORDED)
    assert again.sequence > change.sequence


@pytest.mark.parametrize(
    "result",
    [
        LOST.model_copy(update={"state": ChangeState.DONE}),
        LOST.model_copy(update={"reason": Reason.GATE_FAILED}),
        LOST.model_copy(update={"reason": Reason.ABORTED}),
        LOST.model_copy(update={"state": ChangeState.SUPERSEDED, "reason": Reason.SUPERSEDED}),
        LOST.model_copy(update={"reason": Reason.DEADLINE_EXCEEDED, "unanswered": True}),
    ],
    ids=lambda result: f"{result.state}-{result.reason}",
)
def test_a_change_that_ended_for_another_reason_is_not_carried_out_again(house, on_its_way, result):
    change = on_its_way()
    lose(house)

    assert recorded(house, change, result) is None


def test_a_region_that_was_not_declared_lost_or_is_none_of_the_change_repeats_nothing(house, on_its_way):
    change = on_its_way()
    assert recorded(house, change) is None
    lose(house, "us-east")
    assert recorded(house, change) is None


def test_a_region_that_was_lost_before_the_change_was_asked_for_repeats_nothing(house, on_its_way):
    lose(house)
    assert recorded(house, on_its_way()) is None


@pytest.mark.parametrize("clock_ahead", [timedelta(hours=1), timedelta(hours=-1)], ids=["ahead", "behind"])
def test_clocks_do_not_decide_whether_a_loss_was_before_a_change(house, on_its_way, clock_ahead):
    change = on_its_way()
    lose(house, clock_ahead=clock_ahead)

    again = recorded(house, change)
    send_to_europe(house, again)

    assert recorded(house, again) is None


def test_a_loss_counts_after_its_region_is_back_and_drained_as_planned(house, on_its_way):
    change = on_its_way()
    lose(house)
    bring_back(house)
    with house.store.begin() as unit:
        unit.add_drain("eu-west", reason="racks")

    assert recorded(house, change) is not None


@pytest.mark.parametrize("kind", [ChangeKind.ROLLBACK, ChangeKind.RETIRE])
def test_what_is_asked_later_counts_instead(house, on_its_way, kind):
    change = on_its_way()
    lose(house)
    house.ask("m", kind, "later", generation=1 if kind is ChangeKind.ROLLBACK else None)

    assert recorded(house, change) is None


def test_what_lets_a_change_pass_freezes_lets_the_next_one_pass(house, on_its_way):
    change = on_its_way()
    with house.store.begin("m") as unit:
        unit.override_freezes(change.id, who="ann", reason="urgent", passes=None)
    lose(house)

    again = recorded(house, change)

    with house.store.read() as unit:
        given = unit.freeze_override(again.id)
        assert (given.who, given.reason) == ("ann", "urgent")


def test_what_lets_a_change_pass_a_check_lets_the_next_one_pass(house, on_its_way):
    change = on_its_way()
    with house.store.begin("m") as unit:
        unit.override_check(change.id, "replay", who="ann", reason="urgent")
    lose(house)

    again = recorded(house, change)

    with house.store.read() as unit:
        given = unit.check_overrides(again.id)["replay"]
        assert (given.change_id, given.who, given.reason) == (again.id, "ann", "urgent")


def test_its_generation_waits_as_one_that_was_just_published(house, on_its_way):
    change = on_its_way()
    lose(house)
    again = recorded(house, change)
    with house.store.begin("m") as unit:
        unit.set_generation_state("m", 1, GenerationState.FAILED, reason=LOST.reason, message=LOST.message)
        pend_again(unit, again)
        assert unit.generation("m", 1).state is GenerationState.PENDING
