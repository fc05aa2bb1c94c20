"""Takeover of a change whose run is gone: its transition is reverted under the same workflow id, or awaited.

Called by the lifecycle whose transition is gone, and by the entity whose lifecycle is.
"""

from temporalio import workflow
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import ChildWorkflowError, WorkflowAlreadyStartedError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from ipnext import names
    from ipnext.model.lifecycle.changes.takeover import TakenOver, TakeOver
    from ipnext.model.lifecycle.changes.transition_run import TransitionInput, TransitionResult
    from workflows import policies
    from workflows.errors import explain_error
    from workflows.policies import perform


async def wait_reverted(asked: TakeOver) -> TakenOver:
    """Wait until no run moves the model for the change any more, and all that it moved is reverted, as far as possible.

    The transition's run is awaited if there is one. If it is gone, another one is started that only reverts; if that
    disappears too, another one, `policies.MOST_REVERTS` times at most. The first that completes is the last one.
    """
    wait, reverts = policies.TAKEOVER_LOOK_SOON, 0
    while True:
        taken = await perform(policies.TAKE_OVER, asked, f"see whether anything moves for {asked.change.id}")
        if taken.waits:
            await workflow.sleep(wait, summary=f"the transition of {asked.change.id} reverts")
            wait = min(2 * wait, policies.TAKEOVER_LOOK)
            continue
        if taken.transition is None:
            return taken
        if reverts == policies.MOST_REVERTS:
            return _leave_undone(taken, f"{reverts} runs that revert it were ended from outside")
        reverts += 1
        if (result := await _run_revert(taken.transition)) is not None:
            return _leave_undone(taken, result.undone)


async def _run_revert(transition: TransitionInput) -> TransitionResult | None:
    """Return the result of a run that reverts; None if it was ended from outside, or another one runs."""
    try:
        result: TransitionResult = await workflow.execute_child_workflow(
            names.TRANSITION_WORKFLOW,
            transition,
            result_type=TransitionResult,
            id=names.transition_workflow_id(transition.transition_id),
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            task_timeout=workflow.info().task_timeout,
            parent_close_policy=workflow.ParentClosePolicy.ABANDON,
            priority=policies.URGENT,
            static_summary=f"{transition.model}: reverts generation {transition.generation}",
        )
    except WorkflowAlreadyStartedError:
        return None
    except ChildWorkflowError as error:
        if is_cancelled_exception(error):
            raise
        workflow.logger.warning("the revert of %s failed: %s", transition.transition_id, explain_error(error).message)
        return None
    return result


def _leave_undone(taken: TakenOver, undone: str) -> TakenOver:
    return taken.model_copy(update={"transition": None, "undone": undone})
