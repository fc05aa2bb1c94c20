"""Recorded histories replay on today's code, and the order of each workflow's commands is written down here.

A red test means: runs under way would break. Gate the change with workflow.patched, then record anew.
"""

import json
from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from ipnext.payloads import DATA_CONVERTER
from ipnext.timing import Timing
from workflows.time_limits import TimeLimitInterceptor
from workflows.worker import WORKFLOWS

HISTORIES = sorted((Path(__file__).parent / "histories").glob("*.json"))

WAVE = ["ensure_capacity", "shift_traffic", "timer", "check_gate", "release_capacity"]
BEGUN = ["begin_change", "prepare_change"]
WALK = ["child transition", "finish_change"]

TURN = ["move_models", "timer"]
"""A turn of the replan's window: how many there are depends on the machine that recorded them."""

ORDER = {
    "lifecycle-publish": [*BEGUN, *WALK],
    "lifecycle-rolled-back": [*BEGUN, *WALK],
    "lifecycle-refused": [*BEGUN, "finish_change"],
    "lifecycle-rollback": [*BEGUN, *WALK],
    "lifecycle-cut": [*BEGUN, "optimize_generation", "freeze_of", "place_model", "plan_transition", *WALK],
    "lifecycle-cut-back": [*BEGUN, *WALK],
    "lifecycle-frozen": [*BEGUN, "freeze_of", "timer", "freeze_of", "place_model", "plan_transition", *WALK],
    "lifecycle-staged": [
        *BEGUN,
        "begin_stage",
        "stage.audit",
        "record_stage",
        "freeze_of",
        "place_model",
        "plan_transition",
        *WALK,
    ],
    "lifecycle-retire": ["begin_change", "freeze_of", "withdraw_model", "release_model", "finish_change"],
    "transition-done": WAVE * 2,
    "transition-back": [*WAVE[:-1], "ensure_capacity", "shift_traffic", "release_capacity"],
    "replan-turns": ["replan_fleet", *TURN, "move_models", "finish_replan"],
    "drain": ["look_at_drain", "check_drain", "timer", "look_at_drain"],
    "drain-back": ["look_at_drain", "return_region"],
    "drain-lost": ["look_at_drain", "route_around", *["timer", "look_at_drain"] * 2],
    "scheduled-replan": ["ask_replan"],
    "model": ["open_changes", *["child lifecycle"] * 9],
    "model-retired": ["open_changes", "child lifecycle"],
}


def workflow_id_of(history: dict) -> str:
    return history["events"][0]["workflowExecutionStartedEventAttributes"]["workflowId"]


def commands_of(history: dict) -> list[str]:
    """Activities, children and timers in the order in which the workflow asked for them."""
    found = []
    for event in history["events"]:
        if "activityTaskScheduledEventAttributes" in event:
            found.append(event["activityTaskScheduledEventAttributes"]["activityType"]["name"])
        elif "startChildWorkflowExecutionInitiatedEventAttributes" in event:
            attributes = event["startChildWorkflowExecutionInitiatedEventAttributes"]
            found.append(f"child {attributes['workflowType']['name']}")
        elif "timerStartedEventAttributes" in event:
            found.append("timer")
        if found[-4:] == TURN * 2:
            del found[-2:]
    return found


def test_every_recorded_history_has_its_order_written_down():
    assert {path.stem for path in HISTORIES} == set(ORDER)


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_commands_come_in_the_order_that_is_written_down(path):
    assert commands_of(json.loads(path.read_text())) == ORDER[path.stem]


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
async def test_recorded_history_replays_on_this_code(path):
    text = path.read_text()
    replayer = Replayer(workflows=WORKFLOWS, data_converter=DATA_CONVERTER)

    await replayer.replay_workflow(WorkflowHistory.from_json(workflow_id_of(json.loads(text)), text))


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
async def test_recorded_history_replays_on_a_worker_with_other_time_limits(path):
    other = Timing(**{name: 7 + seconds for name, seconds in Timing()})
    text = path.read_text()
    replayer = Replayer(workflows=WORKFLOWS, data_converter=DATA_CONVERTER, interceptors=[TimeLimitInterceptor(other)])

    await replayer.replay_workflow(WorkflowHistory.from_json(workflow_id_of(json.loads(text)), text))


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_histories_name_no_machine(path):
    text = path.read_text()
    assert str(Path(__file__).parents[3]) not in text
    assert '"identity": "worker"' in text
