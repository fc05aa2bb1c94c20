"""Calls about plans of the fleet, and replans with their moves."""

from collections.abc import Callable
from typing import Literal
from uuid import uuid4

from ipnext.client.connection import Connection
from ipnext.client.lists import Listing, params_of
from ipnext.client.polling import glance, poll
from ipnext.errors import DeadlineExceeded, Unavailable
from ipnext.model.api.resources import MovesView, PlanSummary, PlanView, ReplanRequest, ReplanView
from ipnext.model.lifecycle.replans.moves import MoverAction, ReplanProgress, SteerRequest
from ipnext.model.lifecycle.replans.replan import ReplanState
from ipnext.model.planning.plan import PlanDiff

Trigger = Literal["manual", "supply", "drain"]


class PlanCalls(Connection):
    """Plans and replans."""

    def replan(
        self,
        *,
        trigger: Trigger = "manual",
        dry_run: bool = False,
        max_moves: int | None = None,
        wait: bool = False,
        timeout_seconds: float = 600.0,
        replan_id: str | None = None,
    ) -> ReplanView:
        """Plan the whole fleet again; with `wait`, until the moved models have finished.

        `dry_run`: the plan is computed and stored, without further effect. `max_moves` is the most replicas that are
        started. The same `replan_id` twice is one replan. DeadlineExceeded; Unavailable if no plan was found.
        """
        body = ReplanRequest(replan_id=replan_id or uuid4().hex, trigger=trigger, dry_run=dry_run, max_moves=max_moves)
        replan = self._call("POST", "/v1/replans", ReplanView, body=body)
        return self.wait_replan(replan.id, timeout_seconds) if wait else replan

    def steer_replan(self, action: MoverAction, *, reason: str = "") -> ReplanProgress:
        """Pause or resume the moves of replans, or cancel the running replan: Conflict if none runs."""
        body = SteerRequest(action=action, reason=reason)
        return self._call("POST", "/v1/replans/steer", ReplanProgress, body=body, key=uuid4().hex)

    def moves(self) -> MovesView:
        """Return the pause of the moves, the replan that moves models now, and the number of waiting replans."""
        return self._get("/v1/moves", MovesView)

    def replan_status(self, replan_id: str) -> ReplanView:
        """Return the state of a replan."""
        return self._get(f"/v1/replans/{replan_id}", ReplanView)

    def replans(self, *, limit: int | None = 20) -> Listing[ReplanView]:
        """List replans, newest first."""
        return self._list("/v1/replans", ReplanView, limit)

    def wait_replan(
        self,
        replan_id: str,
        timeout_seconds: float = 600.0,
        on_update: Callable[[ReplanView], None] | None = None,
    ) -> ReplanView:
        """Wait for a replan's end. `on_update` gets each new state. Unavailable if it failed; DeadlineExceeded."""
        last: ReplanView | None = None
        for _ in poll(timeout_seconds):
            found = glance(lambda: self.replan_status(replan_id))
            if found is not None and found != last and on_update is not None:
                on_update(found)
            last = found or last
            if last is None or not last.state.final:
                continue
            if last.state is ReplanState.FAILED:
                msg = f"the replan failed: {last.reason.value}: {last.message}"
                raise Unavailable(msg)
            return last
        where = "unknown" if last is None else last.state.value
        msg = f"replan {replan_id} is {where} after {timeout_seconds:g} s; it goes on without you"
        raise DeadlineExceeded(msg)

    def plans(self, *, limit: int | None = 20, fleet_only: bool = False) -> Listing[PlanSummary]:
        """List plans, newest first; `fleet_only`: without those of one model."""
        return self._list("/v1/plans", PlanSummary, limit, **params_of(fleetOnly=fleet_only))

    def plan(self, plan_id: str) -> PlanView:
        """Return one plan with its problem; NotFound if only its entry is kept."""
        return self._get(f"/v1/plans/{plan_id}", PlanView)

    def plan_summary(self, plan_id: str) -> PlanSummary:
        """Return one plan without its documents, which may be megabytes."""
        return self._get(f"/v1/plans/{plan_id}/summary", PlanSummary)

    def plan_diff(self, plan_id: str) -> PlanDiff:
        """Return a plan's changes against the plan before it."""
        return self._get(f"/v1/plans/{plan_id}/diff", PlanDiff)
