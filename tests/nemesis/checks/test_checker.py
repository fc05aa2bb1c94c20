"""Each rule of the checker: a good history passes, and each broken promise is told by its own rule."""

import pytest

from tests.nemesis.checks.checker import check
from tests.nemesis.history import Recorder, ended, read_history


def broken(tale):
    return {violation.rule for violation in check(tale.told())}


def test_a_history_in_which_every_promise_held_passes(tale):
    assert check(tale.told()) == []


def test_a_publish_that_was_acknowledged_and_is_not_recorded_is_lost(tale):
    tale.publish("gone", 3, 3, {"first": ["d9", "9.0"]}, at=21.0)
    assert "lost_publishes" in broken(tale)


def test_a_publish_that_never_ends_is_lost(tale, make_change):
    tale.changes.insert(0, make_change("open", 0, 1, 0.0, None, state="queued"))
    tale.publish("open", 0, 1, {"first": ["d1", "1.0"]}, at=0.0)
    assert "lost_publishes" in broken(tale)


def test_a_publish_that_is_superseded_by_nothing_newer_is_lost(tale, make_change):
    tale.changes.append(make_change("last", 3, 3, 31.0, 32.0, state="superseded"))
    tale.model["generations"]["3"] = {"first": 1, "second": 1}
    tale.publish("last", 3, 3, {"first": ["d1", "1.0"]}, at=31.0)
    found = check(tale.told())
    assert any("nothing newer" in violation.message for violation in found)


def test_a_publish_twice_with_one_id_is_two_where_the_answers_differ(tale):
    tale.publish("c2", 3, 2, {"first": ["d3", "3.0"]}, at=21.0)
    assert broken(tale) == {"lost_publishes"}


def test_a_generation_that_holds_other_content_than_was_published_is_a_loss(tale):
    tale.model["generations"]["2"]["second"] = 2
    tale.model["digests"]["second/2"] = "d2"
    tale.publish("c2", 2, 2, {"second": ["d9", "9.0"]}, at=21.0)
    assert "lost_publishes" in broken(tale)


@pytest.mark.parametrize(
    "said",
    [
        {"marks": [3.0, 2.0]},
        {"sum": 6.000001},
        {"snapshots": {"first": "2", "second": "1"}},
        {"generation": 7},
        {"marks": [float("nan"), 2.0]},
    ],
    ids=["data of another", "other bits", "proof of another", "unknown generation", "not a number"],
)
def test_an_answer_that_is_not_of_the_one_generation_it_names_is_mixed(tale, said):
    tale.answer(12.0, **said)
    assert "mixed_answers" in broken(tale)


def test_an_answer_by_a_generation_that_was_not_validated_is_told(tale):
    tale.model["validated"] = [1]
    assert broken(tale) == {"unvalidated_answers"}


def test_a_publish_that_leads_back_is_told(tale, make_change):
    tale.changes.append(make_change("c3", 3, 1, 31.0, 32.0))
    assert {"order", "final_state"} <= broken(tale)


def test_a_rollback_may_lead_back(tale, make_change):
    tale.changes += [
        make_change("b", 3, 1, 31.0, 32.0, kind="rollback"),
        make_change("c3", 4, 2, 33.0, 34.0, kind="publish"),
    ]
    tale.answer(33.5)
    assert broken(tale) == set()


@pytest.mark.parametrize(
    ("at", "generation"), [(35.0, 1), (12.0, 2)], ids=["after it was replaced", "before it was asked"]
)
def test_an_answer_by_what_neither_serves_nor_is_brought_is_told(tale, at, generation):
    marks, first = ([1.0, 2.0], "1") if generation == 1 else ([3.0, 2.0], "2")
    tale.answer(at, generation=generation, marks=marks, snapshots={"first": first, "second": "1"})
    assert broken(tale) == {"order"}


def test_traffic_may_stay_where_a_way_back_says_that_it_could_not_be_done(tale, make_change):
    half = "lost; not all of the way back was done then: send the traffic back"
    tale.changes.append(make_change("c3", 3, 1, 31.0, 32.0, state="rolled_back", message=half))
    tale.answer(33.0)
    assert broken(tale) == set()


SHORT = [["pair", "first", [1]]]


def test_less_capacity_than_traffic_is_told(tale):
    tale.sample(12.0, generation=1, ready=SHORT)
    assert broken(tale) == {"capacity_floor"}


def test_capacity_counts_for_the_generation_that_is_ready_alone(tale):
    tale.sample(12.0, generation=1, ready=[*SHORT, ["pair", "second", [2]]])
    assert broken(tale) == {"capacity_floor"}


def test_capacity_may_lack_where_a_host_was_killed_and_nowhere_else(tale):
    tale.fault(11.0, 13.0, "host", touches_data=True, region="us-east")
    tale.sample(12.0, generation=1, ready=SHORT)
    assert broken(tale) == set()
    tale.fault(14.0, 16.0, "host", touches_data=True, region="eu-west")
    tale.sample(15.0, generation=1, ready=SHORT)
    assert broken(tale) == {"capacity_floor"}


def test_capacity_may_not_lack_while_the_control_plane_has_a_fault(tale):
    tale.fault(11.0, 13.0, "worker", touches_data=False)
    tale.sample(12.0, generation=1, ready=SHORT)
    assert broken(tale) == {"capacity_floor"}


def test_more_demand_needs_capacity_once_its_change_is_done(tale, make_change):
    one_each = [["pair", "first", [1, 2]], ["pair", "second", [1, 2]]]
    told = {"model": "pair", "qps": 120.0}
    tale.event("apply", 31.0, "invoke", 99, **told)
    tale.event("apply", 31.1, "ok", 99, **told, sequence=3, id="c3")
    tale.changes.append(make_change("c3", 3, None, 31.0, 34.0, kind="apply"))
    tale.sample(33.0, generation=2, ready=one_each)
    assert broken(tale) == set()
    tale.sample(35.0, generation=2, ready=one_each)
    assert broken(tale) == {"capacity_floor"}


def test_more_processes_than_units_of_supply_are_told_unless_there_was_once_more(tale):
    tale.sample(12.0, generation=1, ready=[["pair", "first", [1]], ["pair", "second", [1]]] * 2)
    assert broken(tale) == {"supply"}
    tale.event("fleet", 13.0, "invoke", 98, units=4)
    assert broken(tale) == set()


@pytest.mark.parametrize("status", ["RUNNING", "FAILED", "TIMED_OUT", "TERMINATED"])
def test_a_run_that_did_not_end_well_is_told(tale, make_run, status):
    tale.workflows.append(make_run("transition/c9", status, "transition", kind="transition"))
    assert broken(tale) == {"runs_ended"}


def test_a_run_that_the_nemesis_terminated_is_excused_and_no_other_one(tale, make_run):
    tale.workflows.append(make_run("lifecycle/pair/c9", "TERMINATED") | {"run": "r1"})
    tale.event("fault", 21.0, number=77, kind="terminate", role="lifecycle", touches_data=False, run="r1")
    tale.event("healed", 22.0, number=77)
    assert broken(tale) == set()
    tale.workflows.append(make_run("lifecycle/pair/c9", "TERMINATED") | {"run": "r2"})
    assert broken(tale) == {"runs_ended"}


def test_a_gateway_that_sends_to_another_generation_at_rest_is_told(tale):
    tale.sample(42.0, generation=1, ready=[["pair", "first", [1]], ["pair", "second", [1]]])
    assert broken(tale) == {"final_state"}


def test_two_transitions_of_one_model_at_a_time_are_told(tale, make_run):
    first = make_run("transition/c1", "COMPLETED", kind="transition") | {"begun": 1000.0, "closed": 1004.0}
    second = make_run("transition/c2", "COMPLETED", kind="transition") | {"begun": 1004.0}
    tale.workflows += [first, second]
    assert broken(tale) == set()
    tale.workflows[-1] = second | {"begun": 1003.0}
    assert broken(tale) == {"one_at_a_time"}


def test_an_entity_that_still_works_is_told(tale, make_run):
    tale.workflows.append(make_run("model/solo", "RUNNING", "publish", kind="model"))
    assert broken(tale) == {"runs_ended"}


def test_a_replan_that_did_not_end_is_told(tale):
    tale.replans.append({"id": "r2", "state": "planning", "final": False})
    assert broken(tale) == {"runs_ended"}


@pytest.mark.parametrize("more", [{"left_over": ["17 envoy"]}, {"status": -9}], ids=["a process", "a bad status"])
def test_what_is_left_of_the_platform_is_told(tale, more):
    tale.ended |= more
    assert broken(tale) == {"orphans"}


def test_a_request_that_fails_without_a_fault_is_told(tale):
    tale.failure(12.0)
    assert broken(tale) == {"failed_requests"}


def test_a_request_that_fails_under_a_fault_of_the_control_plane_is_told(tale):
    tale.fault(11.0, 13.0, "temporal", touches_data=False)
    tale.failure(12.0)
    assert broken(tale) == {"failed_requests"}


def test_a_request_may_fail_where_the_data_plane_has_a_fault_and_nowhere_else(tale):
    tale.fault(11.0, 13.0, "envoy", touches_data=True, region="us-east")
    tale.failure(12.0)
    assert broken(tale) == set()
    tale.failure(12.0, region="eu-west")
    assert broken(tale) == {"failed_requests"}


def test_a_request_may_fail_where_its_gateway_sends_it_to_the_region_of_the_fault(tale):
    tale.fault(11.0, 13.0, "envoy", touches_data=True, region="us-east")
    tale.forwards(11.5, region="eu-west", to="us-east")
    tale.failure(12.0, region="eu-west")
    assert broken(tale) == set()


def test_a_last_publish_that_does_not_serve_in_the_end_is_told(tale):
    tale.model["serving"] = 1
    assert broken(tale) == {"final_state"}


def test_a_retired_model_that_still_holds_something_is_told(tale):
    tale.model["retired"] = True
    assert broken(tale) == {"final_state"}


def test_a_failure_at_rest_is_told_whatever_fault_is_open(tale):
    tale.fault(39.0, 60.0, "envoy", touches_data=True, region="us-east")
    tale.failure(45.0)
    assert "final_state" in broken(tale)


def test_a_run_that_never_came_to_rest_is_told(tale):
    told = [event for event in tale.told() if event.f != "quiet"]
    assert {violation.rule for violation in check(told)} == {"final_state"}


def test_a_fault_that_is_never_healed_is_told(tale):
    tale.fault(31.0, None, "worker", touches_data=False)
    assert broken(tale) == {"healed"}


def test_a_history_is_read_as_it_was_written(tmp_path):
    recorder = Recorder(tmp_path / "history.jsonl")
    op = recorder.op()
    written = [recorder.write("predict", "invoke", "load-1", op, x=1.0), recorder.write("predict", "ok", "load-1", op)]
    recorder.close()
    assert read_history(recorder.path) == written
    assert list(ended(written, "predict")) == [tuple(written)]
