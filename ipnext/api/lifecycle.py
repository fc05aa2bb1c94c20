"""The port to the workflow engine, as the API sees it, and its fake.

The real adapter is `ipnext.api.temporal_lifecycle`. Callers: the outbox, the replan endpoint and the links on the page.
"""

from typing import Protocol
from urllib.parse import quote

from ipnext import names
from ipnext.errors import NotFound, Unavailable
from ipnext.model.lifecycle import Change, ChangeAccepted, ReplanInput, ReplanResult
from ipnext.model.resource import ChangeView, ReplanStatus, RunStarted


class Lifecycle(Protocol):
    """Hands changes to the workflow engine. Raises Unavailable where it can't be reached."""

    async def submit(self, change: Change) -> ChangeAccepted:
        """Give a recorded change to its model's entity. The same change twice is one change."""

    async def start_replan(self, replan: ReplanInput) -> RunStarted:
        """Start a replan of the whole fleet, or find the one that runs."""

    async def replan_status(self, workflow_id: str, run_id: str) -> ReplanStatus:
        """Where a replan run stands. Raises NotFound."""

    async def reachable(self) -> bool:
        """True where the engine answers now. Never raises."""

    def run_url(self, workflow_id: str, run_id: str) -> str:
        """Link to a run in the engine's own page."""


class MemoryLifecycle:
    """The fake: keeps what it was given, and can be `down`."""

    def __init__(self, *, ui_url: str = "http://127.0.0.1:8233") -> None:
        self.down = False
        self.submitted: list[Change] = []
        self.replans: list[ReplanInput] = []
        self.replan_result: ReplanResult | None = None
        """What every replan so far ended with; None while it runs."""
        self._ui_url = ui_url

    async def submit(self, change: Change) -> ChangeAccepted:
        """Remember the change once."""
        self._answer()
        if all(known.id != change.id for known in self.submitted):
            self.submitted.append(change)
        workflow_id = names.lifecycle_workflow_id(change.model, change.id)
        return ChangeAccepted(change_id=change.id, position=0, lifecycle_workflow_id=workflow_id)

    async def start_replan(self, replan: ReplanInput) -> RunStarted:
        """Remember the replan."""
        self._answer()
        self.replans.append(replan)
        workflow_id, run_id = f"replan/{replan.trigger}", f"run-{len(self.replans)}"
        return RunStarted(workflow_id=workflow_id, run_id=run_id, run_url=self.run_url(workflow_id, run_id))

    async def replan_status(self, workflow_id: str, run_id: str) -> ReplanStatus:
        """Running until `replan_result` is set."""
        self._answer()
        if run_id not in {f"run-{n + 1}" for n in range(len(self.replans))}:
            msg = f"no replan run {run_id!r} of {workflow_id!r}"
            raise NotFound(msg)
        return ReplanStatus(
            workflow_id=workflow_id,
            run_id=run_id,
            run_url=self.run_url(workflow_id, run_id),
            state="running" if self.replan_result is None else "done",
            result=self.replan_result,
        )

    async def reachable(self) -> bool:
        """True unless `down`."""
        return not self.down

    def run_url(self, workflow_id: str, run_id: str) -> str:
        """The link Temporal's page would have."""
        return f"{self._ui_url}/namespaces/{names.NAMESPACE}/workflows/{quote(workflow_id, safe='')}/{run_id}"

    def _answer(self) -> None:
        if self.down:
            msg = "the workflow engine is down (a fake that was told so)"
            raise Unavailable(msg)


def change_view(change: Change, lifecycle: Lifecycle) -> ChangeView:
    """A change with the link to its run, where it has one."""
    url = None
    if change.run_id is not None:
        url = lifecycle.run_url(names.lifecycle_workflow_id(change.model, change.id), change.run_id)
    return ChangeView(**change.model_dump(), run_url=url)
