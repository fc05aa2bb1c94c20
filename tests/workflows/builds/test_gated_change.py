"""The rule of docs/lifecycle.md, "Changing a workflow".

A change in the order of commands is gated with `workflow.patched`. Three builds of one workflow: as it was, with one
more command, and with that command behind a gate.
"""

from datetime import timedelta

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner, Worker
from temporalio.workflow import NondeterminismError

QUEUE, NAME = "gated-changes", "gated-change"
SHORT = timedelta(milliseconds=1)


@workflow.defn(name=NAME, sandboxed=False)
class Before:
    """The build that runs under way began with."""

    @workflow.run
    async def run(self) -> str:
        """Do one thing."""
        await workflow.sleep(SHORT)
        return "once"


@workflow.defn(name=NAME, sandboxed=False)
class Changed:
    """The next build, without a gate."""

    @workflow.run
    async def run(self) -> str:
        """Do another thing first."""
        await workflow.execute_activity("added", start_to_close_timeout=SHORT)
        await workflow.sleep(SHORT)
        return "twice"


@workflow.defn(name=NAME, sandboxed=False)
class Gated:
    """The next build, with one."""

    @workflow.run
    async def run(self) -> str:
        """Do another thing first, in runs that begin with this build."""
        if workflow.patched("another-thing-first"):
            await workflow.sleep(SHORT)
        await workflow.sleep(SHORT)
        return "twice"


@pytest.fixture
def recorded(client):
    """History of a run that a build carried out on the real server."""

    async def record(build, run_id) -> WorkflowHistory:
        async with Worker(client, task_queue=QUEUE, workflows=[build], workflow_runner=UnsandboxedWorkflowRunner()):
            handle = await client.start_workflow(NAME, id=run_id, task_queue=QUEUE)
            await handle.result()
        return await handle.fetch_history()

    return record


async def replay(build, history):
    await Replayer(workflows=[build]).replay_workflow(history)


async def test_a_run_under_way_goes_on_with_a_build_whose_change_is_gated(recorded):
    await replay(Gated, await recorded(Before, "began-before"))


async def test_a_run_under_way_breaks_on_a_change_without_a_gate(recorded):
    with pytest.raises(NondeterminismError):
        await replay(Changed, await recorded(Before, "began-before-a-change"))


async def test_a_run_of_the_gated_build_does_the_new_thing_and_replays(recorded):
    history = await recorded(Gated, "began-behind-the-gate")

    assert sum(event.HasField("timer_started_event_attributes") for event in history.events) == 2
    await replay(Gated, history)
    with pytest.raises(NondeterminismError):
        await replay(Before, history)
