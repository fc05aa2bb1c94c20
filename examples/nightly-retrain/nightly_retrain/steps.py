"""The activities: each calls one module of the platform by its client, and may be repeated at any point."""

import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from temporalio import activity

from ipnext.client import Client
from ipnext.errors import NotFound
from ipnext.model.api.resources import ChangeView
from ipnext.model.lifecycle.status import ConditionType, Reason
from nightly_retrain.orders import Night, Order, Outcome, Verdict

DONE = "DONE"
POLL_SECONDS = 1.0


class Steps:
    """Activities of the workflow on one platform."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def all(self) -> Sequence[Callable[..., Any]]:
        """Return what a worker registers."""
        steps = (self.find_data, self.train, self.publish, self.await_canary)
        return (*steps, self.judge_canary, self.promote, self.abort, self.await_end)

    @activity.defn(name="find_data")
    def find_data(self, order: Order) -> str | None:
        """Return the newest day with complete data; None if it was published. The platform's changes are the memory."""
        days = sorted(place.parent.name for place in Path(order.data).glob(f"*/{DONE}"))
        if not days or self._change(Night(order, days[-1])) is not None:
            return None
        return days[-1]

    @activity.defn(name="train")
    def train(self, night: Night) -> None:
        """Train the day's snapshot, unless it is there: the export names its directory last."""
        if not Path(night.directory).exists():
            import_module("nightly_retrain.training").train(Path(night.order.data, night.day), Path(night.directory))

    @activity.defn(name="publish")
    def publish(self, night: Night) -> None:
        """Publish it. The same id twice is one change."""
        parts = {night.order.part: Path(night.directory)}
        self._client.publish(night.order.model, parts, change_id=night.change_id)

    @activity.defn(name="await_canary")
    def await_canary(self, night: Night) -> str:
        """Wait until the canary needs an approval (`waits`), or the change has ended: its state.

        The model's shadow comes first: one that is refused ends the change.
        """
        while True:
            change = self._client.change(night.change_id)
            if change.finished_at is not None:
                return change.state.value
            if self._waits(night):
                return "waits"
            shadow = "" if change.shadow is None else f", its shadow {change.shadow.state}: {change.shadow.message}"
            _pause(f"change {night.change_id} is {change.state}{shadow}")

    @activity.defn(name="judge_canary")
    def judge_canary(self, night: Night) -> Verdict:
        """Promote a canary that has answered enough requests, and none of them with an error."""
        generation = self._client.change(night.change_id).generation
        began = time.monotonic()
        while time.monotonic() - began < night.order.canary_seconds:
            found = [each for each in self._client.model(night.order.model).answers if each.generation == generation]
            requests, errors = sum(each.requests for each in found), sum(each.errors for each in found)
            if errors:
                return Verdict(promote=False, reason=f"{errors} of {requests} answers of the canary are errors")
            if requests >= night.order.canary_requests:
                return Verdict(promote=True, reason=f"the canary answered {requests} requests without an error")
            _pause(f"the canary has answered {requests} of {night.order.canary_requests} requests")
        return Verdict(promote=False, reason=f"no {night.order.canary_requests} answers of the canary in time")

    @activity.defn(name="promote")
    def promote(self, night: Night, reason: str) -> None:
        """Let the rollout continue to its end. A repeated promotion has nothing left to do."""
        if self._waits(night):
            self._client.promote(night.order.model, reason=reason)

    @activity.defn(name="abort")
    def abort(self, night: Night, reason: str) -> None:
        """Take the canary back."""
        if self._client.change(night.change_id).finished_at is None:
            self._client.abort(night.order.model, reason=reason)

    @activity.defn(name="await_end")
    def await_end(self, night: Night) -> Outcome:
        """Return how the change ended."""
        while (change := self._client.change(night.change_id)).finished_at is None:
            _pause(f"change {night.change_id} is {change.state}")
        return Outcome(night.day, change.state.value, change.message)

    def _change(self, night: Night) -> ChangeView | None:
        try:
            return self._client.change(night.change_id)
        except NotFound:
            return None

    def _waits(self, night: Night) -> bool:
        """Check whether the model's rollout waits for an approval."""
        conditions = self._client.model(night.order.model).status.conditions
        held = (each for each in conditions if each.type is ConditionType.PROGRESSING and each.status == "False")
        return any(each.reason is Reason.AWAITING_APPROVAL for each in held)


def _pause(doing: str) -> None:
    activity.heartbeat(doing)
    time.sleep(POLL_SECONDS)
