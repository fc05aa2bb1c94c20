"""The rules about what people asked for.

A history that keeps each passes, and one that breaks it is told by it alone.
"""

import pytest

from tests.nemesis.checks.checker import check
from tests.nemesis.checks.conftest import WALL
from tests.nemesis.checks.spans import FOREVER, drains


def broken(tale):
    return {violation.rule for violation in check(tale.told())}


@pytest.fixture
def carried(tale, make_change, make_run):
    """A change of `pair` with its run and its transition, begun at these times."""

    def carry(change_id, *, run, walk, kind="move", steps=()):
        generation = None if kind == "move" else 2
        tale.changes.append(make_change(change_id, len(tale.changes) + 1, generation, run, walk + 3.0, kind=kind))
        for name, what, begun in (
            (f"lifecycle/pair/{change_id}", "lifecycle", run),
            (f"transition/{change_id}", "transition", walk),
        ):
            tale.workflows.append(
                make_run(name, "COMPLETED", kind=what)
                | {"begun": WALL + begun, "closed": WALL + walk + 3.0}
                | {"steps": [[step, WALL + at, back] for step, at, back in steps]}
            )

    return carry


@pytest.fixture
def hold(tale):
    """Something of `pair` holds from one time to another: a freeze or a pause."""

    def hold(begins, ends, begin, end):
        told = {"model": "pair", "freeze": "f1"}
        tale.event(begins, begin - 0.1, "invoke", 90, **told)
        tale.event(begins, begin, "ok", 90, **told)
        if end is not None:
            tale.event(ends, end, "invoke", 91, **told)
            tale.event(ends, end + 0.1, "ok", 91, **told)

    return hold


def test_a_transition_that_begins_in_a_freeze_is_told(hold, tale, carried):
    hold("freeze", "unfreeze", 31.0, 35.0)
    carried("m", run=32.0, walk=33.0)
    assert broken(tale) == {"frozen"}


@pytest.mark.parametrize(
    ("run", "walk", "kind"),
    [(30.5, 33.0, "move"), (32.0, 35.5, "move"), (32.0, 33.0, "rollback")],
    ids=["asked before it", "begins after it", "a rollback passes"],
)
def test_what_a_freeze_does_not_hold_back_may_begin(hold, tale, carried, run, walk, kind):
    hold("freeze", "unfreeze", 31.0, 35.0)
    carried("m", run=run, walk=walk, kind=kind)
    assert broken(tale) == set()


def test_a_freeze_that_is_never_lifted_holds_to_the_end(hold, tale, carried):
    hold("freeze", "unfreeze", 31.0, None)
    carried("m", run=32.0, walk=36.0)
    assert broken(tale) == {"frozen"}


def test_a_change_that_begins_while_its_model_is_paused_is_told(hold, tale, carried):
    hold("pause", "resume", 31.0, 36.0)
    carried("m", run=34.0, walk=36.5)
    assert broken(tale) == {"paused"}


def test_a_rollback_begins_in_a_pause(hold, tale, carried):
    hold("pause", "resume", 31.0, 36.0)
    steps = [("ensure_capacity", 34.3, False), ("shift_traffic", 34.4, False)]
    carried("m", run=34.0, walk=34.2, kind="rollback", steps=steps)
    assert broken(tale) == set()


def test_a_run_that_goes_on_while_it_is_paused_is_told(hold, tale, carried):
    hold("pause", "resume", 31.0, 36.0)
    carried("m", run=30.0, walk=30.5, steps=[("ensure_capacity", 31.5, False), ("shift_traffic", 32.0, False)])
    assert broken(tale) == {"paused"}


@pytest.mark.parametrize(
    "steps",
    [
        [("ensure_capacity", 30.9, False), ("shift_traffic", 31.1, False)],
        [("shift_traffic", 31.1, False), ("ensure_capacity", 36.1, False), ("shift_traffic", 36.2, False)],
        [("ensure_capacity", 31.1, True), ("shift_traffic", 31.3, True)],
    ],
    ids=["the step under way", "after it was resumed", "the way back"],
)
def test_steps_that_a_pause_does_not_hold_are_none(hold, tale, carried, steps):
    hold("pause", "resume", 31.0, 36.0)
    carried("m", run=30.0, walk=30.5, steps=steps)
    assert broken(tale) == set()


@pytest.fixture
def bad(tale):
    """Generation 3 of `pair` answers too slowly."""
    tale.model["generations"]["3"] = {"first": 3, "second": 1}
    tale.model["digests"]["first/3"] = "d4"
    tale.model["validated"].append(3)
    told = {"model": "pair", "change": "c3", "parts": {"first": ["d4", "4.0"]}, "bad": "slow"}
    tale.event("publish", 21.0, "invoke", 80, **told)
    tale.event("publish", 21.1, "ok", 80, **told, sequence=3, generation=3, id="c3")


def test_a_bad_generation_that_gets_through_its_gate_is_told(tale, bad, make_change):
    tale.changes.append(make_change("c3", 3, 3, 30.5, 32.0))
    assert "bad_generations" in broken(tale)


def test_a_bad_generation_that_is_rolled_back_to_is_told(tale, bad, make_change):
    tale.changes.append(make_change("c3", 3, 3, 30.5, 32.0, state="rolled_back"))
    tale.changes.append(make_change("b", 4, 3, 33.0, 34.0, kind="rollback"))
    assert "bad_generations" in broken(tale)


def test_a_bad_generation_may_go_back(tale, bad, make_change):
    tale.changes.append(make_change("c3", 3, 3, 30.5, 32.0, state="rolled_back"))
    found = broken(tale)
    assert "bad_generations" not in found


@pytest.fixture
def drain(tale):
    """us-east is drained from 12 to 18: asked at 11, back at 20."""

    def drain(*, disaster=False, told=("routed", "drained", "undrain", "returned")):
        told_at = {"routed": 11.5, "drained": 12.0, "undrain": 18.0, "returned": 20.0}
        tale.event("drain", 11.0, "invoke", 70, region="us-east", disaster=disaster)
        tale.event("drain", 11.1, "ok", 70, region="us-east", disaster=disaster)
        for f in told:
            tale.event(f, told_at[f], "invoke" if f == "undrain" else "info", 71, region="us-east")

    return drain


ONE_EACH = [["pair", "first", [1]], ["pair", "second", [1]]]


def sample(tale, at, *, gateway="eu-west", to="eu-west", runs="eu-west", ready=ONE_EACH):
    tables = {gateway: {"pair": [[to, 1, 1.0]]}}
    tale.event("sample", at, tables=tables, replicas={runs: ready}, taken={runs: len(ready)})


def test_a_region_that_is_drained_in_order_passes(tale, drain):
    drain()
    sample(tale, 11.5, to="us-east", runs="us-east")
    sample(tale, 16.0)
    sample(tale, 21.0, to="us-east", runs="us-east")
    assert broken(tale) == set()


def test_traffic_to_a_drained_region_is_told(tale, drain):
    drain()
    sample(tale, 16.0, to="us-east")
    assert broken(tale) == {"drained"}


def test_what_still_runs_after_a_planned_drain_is_told(tale, drain):
    drain()
    sample(tale, 16.0, runs="us-east")
    assert broken(tale) == {"drained"}


def test_a_lost_region_keeps_what_it_held_and_the_others_send_it_nothing(tale, drain):
    drain(disaster=True)
    sample(tale, 16.0, gateway="us-east", to="us-east", runs="us-east")
    assert broken(tale) == set()
    sample(tale, 17.0, gateway="eu-west", to="us-east", runs="us-east")
    assert broken(tale) == {"drained"}


def test_requests_fail_in_no_planned_drain(tale, drain):
    drain()
    tale.failure(11.2, region="eu-west")
    assert broken(tale) == {"failed_requests"}


def test_requests_may_fail_until_the_traffic_of_a_lost_region_goes_elsewhere_and_in_itself_until_it_is_back(
    tale, drain
):
    drain(disaster=True)
    tale.failure(11.2, region="eu-west")
    tale.failure(19.0, region="us-east")
    assert broken(tale) == set()
    tale.failure(13.0, region="eu-west")
    assert broken(tale) == {"failed_requests"}


def test_requests_may_fail_where_a_disaster_left_a_model_nowhere_until_it_is_placed_anew(tale, drain, make_change):
    drain(disaster=True)
    tale.event("sample", 13.0, tables={"eu-west": {"pair": []}}, replicas={}, taken={})
    tale.changes.append(make_change("m", 3, None, 11.2, 14.5, kind="move"))
    tale.failure(14.0, region="eu-west")
    assert broken(tale) == set()
    tale.failure(15.0, region="eu-west")
    assert broken(tale) == {"failed_requests"}


def test_a_lost_region_may_answer_with_what_it_held(tale, drain):
    drain(disaster=True)
    marks, proof = [3.0, 2.0], {"first": "2", "second": "1"}
    tale.answer(15.0, generation=2, marks=marks, snapshots=proof)
    assert broken(tale) == set()
    tale.answer(15.0, region="eu-west", generation=2, marks=marks, snapshots=proof)
    assert broken(tale) == {"order"}


@pytest.fixture
def lost_at_the_end(tale, make_change):
    """us-east is declared lost while the publish of generation 2 ends there.

    A repair that is done at 33 sends users back to it.
    """
    tale.event("drain", 29.0, "invoke", 70, region="us-east", disaster=True)
    tale.event("drain", 29.1, "ok", 70, region="us-east", disaster=True)
    tale.event("returned", 31.0, region="us-east")
    tale.changes.append(make_change("r", 3, 2, 32.0, 33.0, kind="repair"))
    return tale


def test_users_get_what_a_disaster_left_until_the_repair_is_done(lost_at_the_end):
    sample(lost_at_the_end, 30.5)
    lost_at_the_end.answer(30.6, region="eu-west")
    lost_at_the_end.answer(32.5)
    assert broken(lost_at_the_end) == set()
    lost_at_the_end.answer(33.5, region="eu-west")
    assert broken(lost_at_the_end) == {"order"}


def test_users_may_not_go_back_in_a_disaster_if_what_serves_is_ready_elsewhere(lost_at_the_end):
    sample(lost_at_the_end, 30.5, ready=[["pair", "first", [1, 2]], ["pair", "second", [1, 2]]])
    lost_at_the_end.answer(30.6, region="eu-west")
    assert broken(lost_at_the_end) == {"order"}


def test_users_keep_what_a_disaster_left_while_the_repair_brings_what_serves(lost_at_the_end):
    sample(lost_at_the_end, 32.4, ready=[["pair", "first", [1, 2]], ["pair", "second", [1, 2]]])
    lost_at_the_end.answer(32.5, region="eu-west")
    assert broken(lost_at_the_end) == set()


def test_a_disaster_leaves_nothing_but_what_was_at_work_when_it_came(lost_at_the_end, make_change):
    lost_at_the_end.changes.append(make_change("c0", 0, 1, 0.0, 4.0))
    lost_at_the_end.changes[0] |= {"generation": 2}
    lost_at_the_end.answer(30.6, region="eu-west")
    assert "order" in broken(lost_at_the_end)


def test_capacity_may_lack_in_a_disaster_until_a_change_has_placed_the_model_anew(tale, drain, make_change):
    drain(disaster=True)
    tale.changes.append(make_change("m", 3, None, 11.2, 12.5, kind="move"))
    sample(tale, 11.6, ready=ONE_EACH[:1])
    assert broken(tale) == set()
    sample(tale, 13.0, ready=ONE_EACH[:1])
    assert broken(tale) == {"capacity_floor"}


def test_a_lost_region_that_lives_on_sends_its_users_where_it_last_did(tale, drain, make_change):
    drain(disaster=True)
    tale.changes.append(make_change("m", 3, None, 11.2, 12.5, kind="move"))
    sample(tale, 15.0, gateway="us-east", ready=ONE_EACH[:1])
    assert broken(tale) == set()
    sample(tale, 22.0, gateway="us-east", ready=ONE_EACH[:1])
    assert broken(tale) == {"capacity_floor"}


def test_capacity_may_not_lack_in_a_planned_drain(tale, drain):
    drain()
    tale.sample(11.6, generation=1, ready=[["pair", "first", [1]]])
    assert broken(tale) == {"capacity_floor"}


def test_a_model_may_lack_what_its_change_said_that_it_dips(tale, make_change):
    tale.events[0].value["dips"] = {"pair": 0.5}
    tale.changes.append(make_change("m", 3, None, 11.0, 14.0, kind="move", message="dips: first in us-east by 50%"))
    tale.event("apply", 10.5, "invoke", 60, model="pair", qps=200.0)
    tale.event("apply", 10.6, "ok", 60, model="pair", qps=200.0, sequence=4, id="a")
    tale.changes.append(make_change("a", 4, None, 10.5, 11.0, kind="apply"))
    tale.sample(12.0, generation=1, ready=ONE_EACH)
    assert broken(tale) == set()
    tale.sample(15.0, generation=1, ready=ONE_EACH)
    assert broken(tale) == {"capacity_floor"}


def test_a_drain_that_is_asked_again_because_its_answer_was_lost_is_one(tale):
    told = {"region": "us-east", "disaster": False}
    for at, kind in ((1.0, "invoke"), (2.0, "info"), (2.5, "invoke"), (3.0, "ok"), (9.0, "invoke"), (9.1, "fail")):
        tale.event("drain", at, kind, 50, **told)
    found = drains(tale.told())
    assert [(each.asked, each.returned) for each in found] == [(1.0, FOREVER), (9.0, 9.0)]


def applied(tale, make_change, change_id, *, unplaceable, begin=31.0, end=33.0, **more):
    """A manifest of `pair` that was applied, and its change."""
    told = {"model": "pair", "qps": 60.0} | ({"unplaceable": True} if unplaceable else {})
    sequence = len(tale.changes) + 1
    tale.event("apply", 31.0, "invoke", 95, **told)
    tale.event("apply", 31.1, "ok", 95, **told, sequence=sequence, generation=2, id=change_id)
    tale.changes.append(make_change(change_id, sequence, 2, begin, end, kind="apply", **more))


def test_a_manifest_that_nothing_can_be_placed_by_is_refused(tale, make_change):
    applied(tale, make_change, "a", unplaceable=True, state="refused")
    assert broken(tale) == set()


@pytest.mark.parametrize("state", ["done", "rolled_back"])
def test_a_manifest_that_nothing_can_be_placed_by_and_that_is_carried_out_is_told(tale, make_change, state):
    applied(tale, make_change, "a", unplaceable=True, state=state)
    assert broken(tale) == {"unplaceable"}


@pytest.mark.parametrize(("begin", "told"), [(32.0, set()), (34.0, {"unplaceable"})])
def test_a_change_may_be_carried_out_by_a_newer_manifest_that_came_before_its_end(tale, make_change, begin, told):
    applied(tale, make_change, "a", unplaceable=True, state="done")
    applied(tale, make_change, "b", unplaceable=False, begin=begin, end=begin + 2)
    assert broken(tale) == told


def test_a_usual_manifest_may_be_carried_out(tale, make_change):
    applied(tale, make_change, "a", unplaceable=False)
    assert broken(tale) == set()


def test_a_refused_manifest_whose_transition_ran_is_told(tale, make_change, make_run):
    applied(tale, make_change, "a", unplaceable=True, state="refused")
    tale.workflows.append(make_run("transition/a", "COMPLETED", kind="transition"))
    assert broken(tale) == {"unplaceable"}


@pytest.mark.parametrize(
    ("closed", "events", "excused"),
    [(25.0, 151, True), (25.0, 20, False), (35.0, 151, False)],
    ids=["beyond the limit", "too short", "after it"],
)
def test_only_a_run_beyond_the_limit_of_that_time_may_be_terminated(tale, make_run, closed, events, excused):
    fault = {"number": 77, "kind": "limit", "role": "temporal", "touches_data": False, "events": 150}
    tale.event("fault", 21.0, **fault)
    tale.event("healed", 30.0, number=77)
    tale.workflows.append(
        make_run("transition/c9", "TERMINATED", kind="transition") | {"closed": WALL + closed, "events": events}
    )
    assert broken(tale) == (set() if excused else {"runs_ended"})
