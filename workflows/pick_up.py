"""Workflow `pick_up/MODEL`: publishes what the sources of a model found, until nothing is left to publish.

Level-triggered: each step reads the versions from the store. If this run is lost, the next poll starts another one.
"""

from datetime import timedelta

from temporalio import workflow
from temporalio.common import SearchAttributeKey

with workflow.unsafe.imports_passed_through():
    from ipnext import names
    from ipnext.model.lifecycle.sources import PickUpInput, PickUpResult
    from workflows import policies
    from workflows.errors import raise_if_cancelled
    from workflows.policies import perform

MODEL = SearchAttributeKey.for_keyword(names.MODEL_ATTRIBUTE)


@workflow.defn(
    name=names.PICK_UP_WORKFLOW, failure_exception_types=policies.BEGUN_AGAIN, versioning_behavior=policies.ENTITY
)
class PickUpWorkflow:
    """The publication of a model's versions."""

    @workflow.run
    async def run(self, asked: PickUpInput) -> None:
        """Publish until nothing is left. Continues as new if it takes long."""
        workflow.upsert_search_attributes([MODEL.value_set(asked.model)])
        while True:
            seen = await perform(policies.PICK_UP_VERSIONS, asked, f"publish new versions of {asked.model}")
            workflow.set_current_details(_details(asked.model, seen))
            if not seen.pending:
                return
            raise_if_cancelled()
            await workflow.sleep(
                timedelta(seconds=seen.next_seconds), summary=f"until {asked.model} can publish its next version"
            )
            if workflow.info().is_continue_as_new_suggested():
                workflow.continue_as_new(asked)


def _details(model: str, seen: PickUpResult) -> str:
    """Describe the last attempt for the Web UI."""
    done = "".join(f"\n- {source}: version {key}" for source, key in sorted(seen.published.items()))
    told = f"\n\nPublished by {seen.change_id}:{done}" if done else ""
    why = f"\n\n{seen.message}" if seen.message else ""
    return f"**{model}**: {seen.pending} versions left{told}{why}"
