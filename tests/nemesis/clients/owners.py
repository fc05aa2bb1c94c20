"""The owners: people who change models and the fleet while faults strike, each in a thread of their own.

The model owner rolls back, pauses, freezes, asks for more; the approver lets waves go on; the capacity engineer
replans, changes prices, drains regions and brings them back.
"""

import contextlib
import random
import threading
import time
from datetime import UTC, datetime, timedelta
from functools import partial

from ipnext.errors import IPnextError
from ipnext.model.lifecycle.regions.drain import DrainState, DrainView
from ipnext.model.lifecycle.status import Reason
from tests.nemesis.clients.asking import Asking
from tests.nemesis.clients.changes import Changes
from tests.nemesis.models import (
    APPROVED,
    BASE_DEMAND,
    BRIEFS,
    MORE_DEMAND,
    REGIONS,
    TOO_MANY_UNITS,
    UNITS,
    fleet,
    freeze,
    manifest,
)
from tests.waiting import PATIENCE_SECONDS

REASON = "nemesis"
LOOK_SECONDS = 0.3
OUT_SECONDS = 6.0
"""How long a region that is drained stays out."""


class ModelOwner:
    """Changes single models."""

    def __init__(self, asking: Asking, changes: Changes) -> None:
        self._asking, self._changes, self._client = asking, changes, asking.client

    def work(self, draw: random.Random) -> None:
        """One thing after another until nothing new is asked for."""
        ways = (
            self._roll_back,
            self._change_demand,
            self._ask_too_much,
            self._come_and_go,
            self._steer,
            self._freeze,
        )
        while not self._asking.ending.wait(draw.uniform(1.0, 4.0)):
            draw.choice(ways)(draw)
            self._end_late_pauses()
        self._end_late_pauses()

    def _end_late_pauses(self) -> None:
        """Resume the models that are paused although no pause is wanted.

        A pause whose answer did not come in time may begin after the one that was asked for again has ended.
        """
        for model in self._changes.parts:
            with contextlib.suppress(IPnextError):
                if any(condition.reason is Reason.PAUSED for condition in self._client.model(model).status.conditions):
                    resume = partial(self._client.resume, model, reason=REASON)
                    self._asking.ask("resume", "owner", resume, model=model)

    def approve(self, draw: random.Random, over: threading.Event) -> None:
        """Lets waves that wait for a person go on, now and then, until the run is over."""
        while not over.wait(draw.uniform(1.0, 3.0)):
            self._asking.ask("approve", "approver", lambda: self._client.approve(APPROVED), model=APPROVED)

    def _roll_back(self, draw: random.Random) -> None:
        model, change_id = draw.choice(tuple(self._changes.parts)), f"rollback-{self._asking.recorder.op()}"
        call = lambda: self._client.rollback(model, change_id=change_id)  # noqa: E731 - asked several times
        self._asking.ask("rollback", "owner", call, model=model, change=change_id)

    def _change_demand(self, draw: random.Random) -> None:
        model, qps = draw.choice(tuple(self._changes.parts)), draw.choice((BASE_DEMAND, MORE_DEMAND))
        text = self._changes.manifest(model, qps)
        self._asking.ask("apply", "owner", lambda: self._client.apply(text), model=model, qps=qps)

    def _ask_too_much(self, draw: random.Random) -> None:
        """A manifest that nothing can be placed by, and after a while the usual one again.

        Publishes meanwhile are refused.
        """
        model, changes = draw.choice(tuple(self._changes.parts)), self._changes
        large, usual = changes.manifest(model, units=TOO_MANY_UNITS), changes.manifest(model)
        told = {"model": model, "qps": BASE_DEMAND}
        self._asking.ask("apply", "owner", lambda: self._client.apply(large), **told, unplaceable=True)
        self._asking.ending.wait(draw.uniform(1.0, 6.0))
        self._asking.ask("apply", "owner", lambda: self._client.apply(usual), **told)

    def _come_and_go(self, draw: random.Random) -> None:
        """A new model is published and retired, perhaps before it serves."""
        model, brief = f"brief-{self._asking.recorder.op()}", draw.choice(BRIEFS)
        source = self._changes.source_of(model) if brief == "sourced" else None
        part = "looking" if brief == "optimized" else "only"
        text = manifest(model, brief=brief, source=source, part=part)
        self._asking.ask("apply", "owner", lambda: self._client.apply(text), model=model, qps=0.0)
        if source is not None:
            self._changes.bring(source)
        else:
            self._changes.publish("owner", model, (part,))
        if brief == "shadowed":  # a first generation has nothing to be compared with
            self._changes.publish("owner", model, (part,))
        self._asking.ending.wait(draw.choice((0.0, 1.0, 4.0) if brief == "plain" else (0.0, 1.0, 4.0, 15.0)))
        self._asking.ask("retire", "owner", lambda: self._client.delete(model), model=model)

    def _steer(self, draw: random.Random) -> None:
        """A person pauses a model for a while, aborts what runs, or promotes it."""
        model, way = draw.choice(tuple(self._changes.parts)), draw.choice(("pause", "abort", "promote"))
        done = self._asking.ask(way, "owner", lambda: getattr(self._client, way)(model, reason=REASON), model=model)
        if way == "pause" and done:
            self._asking.ending.wait(draw.uniform(0.5, 5.0))
            self._asking.ask("resume", "owner", lambda: self._client.resume(model, reason=REASON), model=model)

    def _freeze(self, draw: random.Random) -> None:
        """Changes of one model wait for some seconds."""
        model, name = draw.choice(tuple(self._changes.parts)), f"freeze-{self._asking.recorder.op()}"
        text = freeze(name, model, since=datetime.now(UTC) - timedelta(days=1))
        self._asking.ask("freeze", "owner", lambda: self._client.apply(text), model=model, freeze=name)
        self._asking.ending.wait(draw.uniform(2.0, 8.0))
        call = lambda: self._client.delete_freeze(name, reason=REASON)  # noqa: E731 - asked several times
        self._asking.ask("unfreeze", "owner", call, model=model, freeze=name)


class CapacityEngineer:
    """Changes the fleet."""

    def __init__(self, asking: Asking) -> None:
        self._asking, self._client = asking, asking.client

    def work(self, draw: random.Random) -> None:
        """One thing after another until nothing new is asked for."""
        ways = (self._replan, self._change_prices, self._drain)
        while not self._asking.ending.wait(draw.uniform(2.0, 5.0)):
            draw.choice(ways)(draw)

    def _replan(self, draw: random.Random) -> None:
        """Plans the fleet anew, and sometimes lets it ask no more models for a while."""
        replan_id = f"asked-{self._asking.recorder.op()}"
        self._asking.ask("replan", "capacity", lambda: self._client.replan(replan_id=replan_id), replan=replan_id)
        if draw.random() < 0.5:
            return
        self._asking.ending.wait(draw.uniform(0.0, 2.0))
        self._asking.ask("steer", "capacity", lambda: self._client.steer_replan("pause", reason=REASON), way="pause")
        self._asking.ending.wait(draw.uniform(0.5, 3.0))
        self._asking.ask("steer", "capacity", lambda: self._client.steer_replan("resume"), way="resume")

    def _change_prices(self, draw: random.Random) -> None:
        east, units = draw.choice((0.5, 1.0, 2.0)), draw.choice((UNITS, UNITS + 2))
        text = fleet(units=units, east_cost=east)
        self._asking.ask("fleet", "capacity", lambda: self._client.apply(text), east=east, units=units)

    def _drain(self, draw: random.Random) -> None:
        """A region goes out of service, or is declared lost, and comes back, perhaps before it is drained."""
        region, disaster = draw.choice(REGIONS), draw.random() < 0.4
        call = lambda: self._client.drain(region, disaster=disaster, reason=REASON)  # noqa: E731 - asked several times
        if not self._asking.ask("drain", "capacity", call, region=region, disaster=disaster):
            return
        self._drained(region, draw.choice((0.5, 25.0, 45.0)))
        self._asking.ask("undrain", "capacity", lambda: self._client.undrain(region, reason=REASON), region=region)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            seen = self._seen(region)
            if seen is not None and seen.state.over:
                self._asking.recorder.note("returned", "capacity", region=region, state=seen.state.value)
                return
            time.sleep(LOOK_SECONDS)

    def _drained(self, region: str, seconds: float) -> None:
        """Watch the drain for so long at most; once it has ended, leave the region out for a moment."""
        deadline, routed = time.monotonic() + seconds, False
        while time.monotonic() < deadline and not self._asking.ending.is_set():
            seen = self._seen(region)
            state = seen.state if seen is not None else None
            if state in {DrainState.DRAINING, DrainState.DRAINED} and not routed:
                routed = True
                self._asking.recorder.note("routed", "capacity", region=region)
            if state is DrainState.DRAINED:
                self._asking.recorder.note("drained", "capacity", region=region)
                self._asking.ending.wait(OUT_SECONDS)
                return
            if state is DrainState.REFUSED:
                return
            time.sleep(LOOK_SECONDS)

    def _seen(self, region: str) -> DrainView | None:
        try:
            return self._client.drain_status(region)
        except IPnextError:
            return None
