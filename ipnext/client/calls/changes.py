"""Calls about changes of models: rollback, repair, and control of the running one."""

import time
from collections.abc import Callable
from uuid import uuid4

from ipnext.client.connection import Connection
from ipnext.client.lists import Listing
from ipnext.client.polling import glance, poll
from ipnext.errors import DeadlineExceeded
from ipnext.model.api.resources import ChangeView, RepairRequest, RollbackRequest
from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAnswer, ControlRequest


class ChangeCalls(Connection):
    """Changes of models, and control of the running ones."""

    def rollback(self, model: str, *, generation: int | None = None, change_id: str | None = None) -> ChangeView:
        """Roll back to a generation that has served; default: the newest other one."""
        request = RollbackRequest(change_id=change_id or uuid4().hex, generation=generation)
        return self._call("POST", f"/v1/models/{model}/rollback", ChangeView, body=request)

    def repair(self, model: str, *, change_id: str | None = None) -> ChangeView:
        """Repair a model: move users and replicas that were left on another generation back to the serving one."""
        request = RepairRequest(change_id=change_id or uuid4().hex)
        return self._call("POST", f"/v1/models/{model}/repair", ChangeView, body=request)

    def pause(self, model: str, *, reason: str = "") -> ControlAnswer:
        """Pause a model's changes: a running one stops at its next step; rollbacks and retirements pass."""
        return self._control(model, ControlAction.PAUSE, reason)

    def resume(self, model: str, *, reason: str = "") -> ControlAnswer:
        """Resume a model's changes. Conflict if nothing is paused."""
        return self._control(model, ControlAction.RESUME, reason)

    def approve(self, model: str, *, reason: str = "") -> ControlAnswer:
        """Approve the wave that waits for an approval. Conflict if none waits."""
        return self._control(model, ControlAction.APPROVE, reason)

    def promote(self, model: str, *, reason: str = "") -> ControlAnswer:
        """Skip the remaining bake times and approvals; gates and capacity stay in force.

        Conflict if no run moves traffic.
        """
        return self._control(model, ControlAction.PROMOTE, reason)

    def abort(self, model: str, *, reason: str = "") -> ControlAnswer:
        """Stop the running change and revert its moves. Conflict if none runs."""
        return self._control(model, ControlAction.ABORT, reason)

    def _control(self, model: str, action: ControlAction, reason: str) -> ControlAnswer:
        body, path = ControlRequest(reason=reason), f"/v1/models/{model}/{action.value}"
        return self._call("POST", path, ControlAnswer, body=body, key=uuid4().hex)

    def change(self, change_id: str) -> ChangeView:
        """Return one change."""
        return self._get(f"/v1/changes/{change_id}", ChangeView)

    def changes(self, model: str | None = None, *, limit: int | None = 50) -> Listing[ChangeView]:
        """List the changes of a model, or of all, newest first."""
        path = "/v1/changes" if model is None else f"/v1/models/{model}/changes"
        return self._list(path, ChangeView, limit)

    def wait_change(
        self,
        change_id: str,
        timeout_seconds: float = 600.0,
        on_update: Callable[[ChangeView], None] | None = None,
    ) -> ChangeView:
        """Wait for a change's end, with any outcome. `on_update` gets each new state. DeadlineExceeded.

        If the platform executes the change again, because a region was lost during it, that change is awaited and
        returned.
        """
        last: ChangeView | None = None
        deadline = time.monotonic() + timeout_seconds
        for _ in poll(timeout_seconds):
            change = glance(lambda: self.change(change_id))
            if change is not None and change != last and on_update is not None:
                on_update(change)
            last = change or last
            if last is not None and last.state.final:
                left = max(0.0, deadline - time.monotonic())
                return last if last.again is None else self.wait_change(last.again, left, on_update)
        state = "unknown" if last is None else last.state.value
        msg = f"change {change_id} is {state} after {timeout_seconds:g} s; it goes on without you"
        raise DeadlineExceeded(msg)
