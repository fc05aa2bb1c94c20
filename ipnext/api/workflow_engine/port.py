"""The API's port to the workflow engine, and its fake.

The real adapter is `ipnext.api.workflow_engine.temporal`. Callers: the outbox and the links on the page.
"""

from typing import Protocol
from urllib.parse import quote

from ipnext import names
from ipnext.errors import Conflict, Unavailable
from ipnext.model.api.resources import ChangeView, ReplanView
from ipnext.model.lifecycle.changes.change import Change
from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAnswer, ControlAsked
from ipnext.model.lifecycle.changes.entity import ChangeAccepted
from ipnext.model.lifecycle.replans.moves import MoverAsked, ReplanProgress
from ipnext.model.lifecycle.replans.replan import Replan
from ipnext.model.lifecycle.workflow_namespace import WorkflowNamespace


class Lifecycle(Protocol):
    """Submits changes to the workflow engine. Raises Unavailable if it can't be reached."""

    async def namespace(self) -> WorkflowNamespace:
        """Return the namespace that runs changes."""

    async def submit(self, change: Change) -> ChangeAccepted:
        """Submit a recorded change to its model's entity. The same change twice is one change."""

    async def control(
        self,
        model: str,
        action: ControlAction,
        asked: ControlAsked,
        *,
        change_id: str | None = None,
        update_id: str,
    ) -> ControlAnswer:
        """Send a control to a model's changes; `change_id` is the running one. The same `update_id` again is sent once.

        Conflict if it does not fit the running change.
        """

    async def runs(self, workflow_id: str) -> bool:
        """Return whether a run of a workflow is open now."""

    async def begin_entity(self, model: str) -> None:
        """Start the entity of a model unless it runs; it reads the model's changes from the store."""

    async def look_again(self, model: str) -> None:
        """Signal the entity of a model, which is started unless it runs, to read its open changes again.

        May be repeated.
        """

    async def wake_replan(self) -> None:
        """Signal the engine that a replan is recorded. May be repeated."""

    async def signal_freeze_change(self, change: Change) -> None:
        """Signal the run of a change that freezes have changed. An ended or missing run is no error."""

    async def cancel_replan(self, asked: MoverAsked, *, update_id: str) -> ReplanProgress:
        """Cancel the running replan. The same `update_id` again gets the first answer. Raises Conflict if none runs."""

    async def signal_steering(self) -> None:
        """Signal the running replan, if any, that moves were paused or resumed. May be repeated."""

    async def signal_drain(self, region: str) -> None:
        """Signal the engine that a region has a new request. May be repeated."""

    async def wake_watch(self, kind: str, upstream: str) -> None:
        """Have an upstream system polled soon; its watch is started if it does not run. May be repeated."""

    async def reachable(self) -> bool:
        """Return whether the engine answers now. Never raises."""

    def run_url(self, workflow_id: str, run_id: str) -> str:
        """Return the link to a run in the engine's own page."""


class MemoryLifecycle:
    """The fake: records all calls, and can be `down`."""

    def __init__(self, *, ui_url: str = "http://127.0.0.1:8233") -> None:
        self.down = False
        self.submitted: list[Change] = []
        self.replans_woken = 0
        self.held: dict[str, ControlAsked] = {}
        self.controls: list[tuple[str, ControlAction, ControlAsked]] = []
        self.told_of_freezes: list[str] = []
        self.drains_told: list[str] = []
        self.watches_woken: list[tuple[str, str]] = []
        self.cancelled: list[str] = []
        self.moves_steered = 0
        self.entities: set[str] = set()
        """Models whose entity runs; remove one to simulate its termination."""
        self.entities_begun: list[str] = []
        """Entities that were started without a submission."""
        self.looked_again: list[str] = []
        """Models whose entity was signalled to read its open changes again."""
        self.change_runs: set[str] = set()
        """Ids of running changes' workflows; remove one to simulate its termination."""
        self.fleet_runs: set[str] = set()
        """Ids of running drains and the replan; remove one to simulate its termination."""
        self._ui_url = ui_url
        self._answered: dict[str, ControlAnswer] = {}
        self._cancels: set[str] = set()

    async def namespace(self) -> WorkflowNamespace:
        """Return always the same namespace."""
        self._answer()
        return WorkflowNamespace(id="memory", name=names.NAMESPACE, address="memory")

    async def submit(self, change: Change) -> ChangeAccepted:
        """Record the change once."""
        self._answer()
        if all(known.id != change.id for known in self.submitted):
            self.submitted.append(change)
        self.entities.add(change.model)
        workflow_id = names.lifecycle_workflow_id(change.model, change.id)
        return ChangeAccepted(change_id=change.id, position=0, lifecycle_workflow_id=workflow_id)

    async def control(
        self,
        model: str,
        action: ControlAction,
        asked: ControlAsked,
        *,
        change_id: str | None = None,
        update_id: str,
    ) -> ControlAnswer:
        """Record the control and the pause; nothing runs here, so that nothing can be approved, promoted or aborted."""
        self._answer()
        if update_id in self._answered:
            return self._answered[update_id]
        if action is ControlAction.PAUSE:
            self.held[model] = asked
        elif action is not ControlAction.RESUME or self.held.pop(model, None) is None:
            msg = f"nothing of {model} to {action.value}"
            raise Conflict(msg)
        self.controls.append((model, action, asked))
        message = f"{action.value}d {asked.text}"
        answer = ControlAnswer(model=model, action=action, change_id=change_id, message=message)
        self._answered[update_id] = answer
        return answer

    async def runs(self, workflow_id: str) -> bool:
        """Return whether a change of the model, a drain or a replan was submitted, or a change was set to run."""
        self._answer()
        return workflow_id in self.fleet_runs | self.change_runs | {
            names.model_workflow_id(model) for model in self.entities
        }

    async def begin_entity(self, model: str) -> None:
        """Record the start."""
        self._answer()
        self.entities.add(model)
        self.entities_begun.append(model)

    async def look_again(self, model: str) -> None:
        """Record the signal."""
        self._answer()
        self.entities.add(model)
        self.looked_again.append(model)

    async def wake_replan(self) -> None:
        """Count the signal."""
        self._answer()
        self.replans_woken += 1
        self.fleet_runs.add(names.REPLAN_ID)

    async def signal_freeze_change(self, change: Change) -> None:
        """Record the change's id."""
        self._answer()
        self.told_of_freezes.append(change.id)

    async def cancel_replan(self, asked: MoverAsked, *, update_id: str) -> ReplanProgress:
        """Record the cancellation, once for each id."""
        self._answer()
        if update_id not in self._cancels:
            self.cancelled.append(asked.reason)
        self._cancels.add(update_id)
        return ReplanProgress(total=0)

    async def signal_steering(self) -> None:
        """Count the signal."""
        self._answer()
        self.moves_steered += 1

    async def signal_drain(self, region: str) -> None:
        """Record the region."""
        self._answer()
        self.drains_told.append(region)
        self.fleet_runs.add(names.drain_workflow_id(region))

    async def wake_watch(self, kind: str, upstream: str) -> None:
        """Record the upstream system."""
        self._answer()
        self.watches_woken.append((kind, upstream))
        self.fleet_runs.add(names.watch_workflow_id(kind, upstream))

    async def reachable(self) -> bool:
        """Return whether it is not `down`."""
        return not self.down

    def run_url(self, workflow_id: str, run_id: str) -> str:
        """Return a link in the form of Temporal's page."""
        return f"{self._ui_url}/namespaces/{names.NAMESPACE}/workflows/{quote(workflow_id, safe='')}/{run_id}"

    def _answer(self) -> None:
        if self.down:
            msg = "the workflow engine is down (a fake that was told so)"
            raise Unavailable(msg)


def change_view(change: Change, lifecycle: Lifecycle) -> ChangeView:
    """Return a change with the link to its run, if it has one."""
    url = None
    if change.run_id is not None:
        url = lifecycle.run_url(names.lifecycle_workflow_id(change.model, change.id), change.run_id)
    return ChangeView(**change.model_dump(), run_url=url)


def replan_view(replan: Replan, lifecycle: Lifecycle) -> ReplanView:
    """Return a replan with the link to its run, if it has one."""
    url = None if replan.run_id is None else lifecycle.run_url(names.REPLAN_ID, replan.run_id)
    return ReplanView(**replan.model_dump(), run_url=url)
