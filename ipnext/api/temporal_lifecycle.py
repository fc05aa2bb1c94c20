"""The workflow engine for real: Temporal. Connects with its first call, so that the API starts and reads without it."""

import asyncio

from ipnext import names, temporal
from ipnext.model.lifecycle import Change, ChangeAccepted, ReplanInput, ReplanResult
from ipnext.model.resource import ReplanStatus, RunStarted


class TemporalLifecycle:
    """A Lifecycle over `ipnext.temporal`. Where the server is says temporal.toml or TEMPORAL_*."""

    def __init__(self, *, ui_url: str) -> None:
        self._ui_url = ui_url
        self._client: temporal.Connection | None = None
        self._connecting = asyncio.Lock()

    async def submit(self, change: Change) -> ChangeAccepted:
        """See the port."""
        return await temporal.submit_change(await self._connected(), change)

    async def start_replan(self, replan: ReplanInput) -> RunStarted:
        """See the port."""
        workflow_id, run_id = await temporal.start_replan(await self._connected(), replan)
        return RunStarted(workflow_id=workflow_id, run_id=run_id, run_url=self.run_url(workflow_id, run_id))

    async def replan_status(self, workflow_id: str, run_id: str) -> ReplanStatus:
        """See the port."""
        outcome = await temporal.replan_outcome(await self._connected(), workflow_id, run_id)
        status = ReplanStatus(
            workflow_id=workflow_id, run_id=run_id, run_url=self.run_url(workflow_id, run_id), state="running"
        )
        if outcome is None:
            return status
        if isinstance(outcome, ReplanResult):
            return status.model_copy(update={"state": "done", "result": outcome})
        return status.model_copy(update={"state": "failed", "message": f"the run is {outcome}"})

    async def reachable(self) -> bool:
        """See the port."""
        return await temporal.reachable(await self._connected())

    def run_url(self, workflow_id: str, run_id: str) -> str:
        """See the port."""
        namespace = names.NAMESPACE if self._client is None else self._client.namespace
        return temporal.ui_link(self._ui_url, namespace, workflow_id, run_id)

    async def _connected(self) -> temporal.Connection:
        async with self._connecting:
            if self._client is None:
                self._client = await temporal.connect(lazy=True)
            return self._client
