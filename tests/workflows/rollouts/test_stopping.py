"""A run that is stopped at an awkward moment goes no further."""

import ast
import asyncio
import threading
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from temporalio import activity
from temporalio.api.enums.v1 import EventType

from activities.planning.solver import ThreadSolver
from ipnext import names
from ipnext.devfile import read_devfile
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from tests.waiting import PATIENCE_SECONDS
from workflows import policies
from workflows.worker import lifecycle_activities, planner_activities, worker_of


def held_back(activities, held, is_meant, begun, go):
    """The activities.

    The one named `held`, if it is the meant one, does its work, tells so, and answers when it may.
    """

    def with_wait(method):
        hints = typing.get_type_hints(method.__func__)

        def work(stage):
            answer = method(stage)
            if is_meant(stage):
                begun.set()
                go.wait(PATIENCE_SECONDS)
            return answer

        wanted = next(kind for key, kind in hints.items() if key != "return")
        work.__annotations__ = {"stage": wanted, "return": hints["return"]}
        return activity.defn(name=held, no_thread_cancel_exception=True)(work)

    named = [(activity._Definition.must_from_callable(method).name, method) for method in activities]
    return [with_wait(method) if name == held else method for name, method in named]


async def asked_to_stop(client, workflow_id):
    """Whether a run has heard that it shall end."""
    history = await client.get_workflow_handle(workflow_id).fetch_history()
    return any(e.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED for e in history.events)


def planned_for(model):
    """The waves of its third generation."""
    return "prepare_change", lambda preparation: preparation.stage.change_id == f"{model}-3"


def moved_for(model):
    """The first traffic of its third generation."""
    return "shift_traffic", lambda wave: wave.transition_id == f"{model}-3" and wave.index == 0 and not wave.back


@pytest.mark.parametrize(("when", "used"), [(planned_for, {1, 2}), (moved_for, {1, 2, 3})])
async def test_a_rollback_while_waves_are_planned_or_traffic_moves_is_heard_before_anything_further(
    house, model, client, submit, ended, no_engine, when, used
):
    """The hold would be longer than this test may take."""
    begun, go, devfile = threading.Event(), threading.Event(), read_devfile()
    house.apply(model, rollout={"canary": 1, "maxStep": 1, "deadlineSeconds": 180})
    ours = lifecycle_activities(house.store, house.artifacts, house.infrastructure, no_engine)
    held = held_back(ours, *when(model), begun, go)
    async with (
        worker_of(client, devfile.group(names.LIFECYCLE_QUEUE), held, devfile.timing),
        worker_of(client, devfile.group(names.URGENT_QUEUE), held, devfile.timing),
        worker_of(
            client, devfile.group(names.PLANNER_QUEUE), planner_activities(house.store, ThreadSolver()), devfile.timing
        ),
    ):
        for number in (1, 2):
            change = house.publish(model, number)
            await submit(change)
            await ended(change)
        house.apply(model, rollout={"canary": 0.5, "maxStep": 0.5, "deadlineSeconds": 180, "holdSeconds": 3600})
        third = house.publish(model, 3, change_id=f"{model}-3")
        await submit(third)
        assert await asyncio.to_thread(begun.wait, PATIENCE_SECONDS)
        back = house.ask(model, ChangeKind.ROLLBACK, f"{model}-back", generation=1)
        await submit(back)
        while not await asked_to_stop(client, names.lifecycle_workflow_id(model, third.id)):  # noqa: ASYNC110 - the server tells
            await asyncio.sleep(0.05)
        go.set()
        ends = [await ended(change) for change in (third, back)]

    assert ends[1].state is ChangeState.DONE
    assert ends[0].state in {ChangeState.SUPERSEDED, ChangeState.ROLLED_BACK}
    found = {g for moment in house.infrastructure.history for _, g in moment.generations_with_traffic(model)}
    assert found == used


@pytest.mark.parametrize("bug", [NameError, UnboundLocalError, AttributeError, KeyError, TypeError, ZeroDivisionError])
def test_a_slip_in_workflow_code_fails_the_run_instead_of_hanging_it(bug):
    assert issubclass(bug, policies.BUGS)


GO_ON_THOUGH_TOLD = {
    "stages/retirement.py": "a retirement that no gateway sends requests to any more goes to its end",
    "model.py": "the entity of a model ends with its model",
    "entity/superseded_marks.py": "marks of the entity",
    "stages/change_ends.py": "waits of the entity for a run",
    "stages/takeover.py": "part of a way back, which goes to its end",
}
"""Modules whose own waits begin although their run was told to end, and why."""


def waits(module: Path) -> Iterator[ast.AsyncFunctionDef]:
    """Functions of a module that wait for a time, or until something is so."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.AsyncFunctionDef) and {"workflow.sleep", "workflow.wait_condition"} & calls_in(node):
            yield node


def calls_in(node: ast.AST) -> set[str]:
    return {ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}


def test_no_wait_begins_after_the_run_was_told_to_end():
    """A stop that came while an activity ran, which ended well, ends no wait that begins later."""
    looks = ("raise_if_cancelled()", "self._stopping", "stopping()", "workflow.all_handlers_finished")
    paths = {path.relative_to("workflows").as_posix(): path for path in Path("workflows").rglob("*.py")}
    assert paths.keys() >= GO_ON_THOUGH_TOLD.keys()
    found = [(name, wait) for name, path in paths.items() if name not in GO_ON_THOUGH_TOLD for wait in waits(path)]
    waiting = (
        "stages/freeze_wait.py",
        "drain.py",
        "replan.py",
        "stages/move_window.py",
        "transition.py",
    )
    assert {*waiting} <= {name for name, _ in found}
    assert [
        f"{name}: {wait.name}" for name, wait in found if not any(look in ast.unparse(wait) for look in looks)
    ] == []
