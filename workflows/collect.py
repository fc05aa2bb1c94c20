"""Workflow `collect`: one garbage collection of the artifact store. A schedule starts it, one at a time."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from ipnext import names
    from ipnext.model.access.artifact_use import CollectInput
    from ipnext.model.lifecycle.changes.lifecycle_run import Done
    from workflows import policies
    from workflows.policies import perform


@workflow.defn(name=names.COLLECT_WORKFLOW, failure_exception_types=policies.BUGS, versioning_behavior=policies.ONE_RUN)
class CollectWorkflow:
    """Removes unreferenced artifacts from the artifact store."""

    @workflow.run
    async def run(self, asked: CollectInput) -> Done:
        """Collect and end. If a pass fails after some retries, the next scheduled one does its work."""
        return await perform(policies.COLLECT_ARTIFACTS, asked, "collect what nothing names")
