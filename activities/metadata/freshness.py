"""Freshness: judges the parts whose manifests say how old the snapshots may be that answer users.

Run with each pass of workflow `reconcile`. A pass reads what is late now, whatever the length of the history, and
writes only what has changed: breaches that began or ended, with an event each, and the condition.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final, Literal

from temporalio import activity

from activities.runtime.deadline import beat
from activities.runtime.single_calls import SingleCalls
from ipnext.model.lifecycle.changes.lifecycle_run import Done
from ipnext.model.lifecycle.freshness import ServingSnapshot
from ipnext.model.lifecycle.regions.reconciliation import FreshnessJudged
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.store.operations.freshness import describe_lateness, find_late_stage, worst_first
from ipnext.store.repository import Repository
from ipnext.store.store import Store

JUDGED_AGAIN: Final = 100
"""Models with a breach that lasts whose cause one pass looks for again; the next pass goes on with others."""
NAMED: Final = 10
"""Failed models that an answer names at most."""


class FreshnessActivities:
    """Activity of the reconciler that judges freshness."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._last = ""
        """The last model whose cause was looked for again."""

    def all(self) -> Sequence[Callable[..., Any]]:
        """Return the activities that a worker registers."""
        return (self.judge_freshness,)

    @activity.defn(name="judge_freshness", no_thread_cancel_exception=True)
    def judge_freshness(self, nothing: Done) -> FreshnessJudged:
        """Record breaches that begin or end, and the condition `Fresh` of their models.

        A model that fails is left to the next pass.
        """
        del nothing
        with self._store.read() as unit:
            now = unit.now()
            late = unit.late_snapshots()
            changed = {*unit.unjudged_models(), *(model for model, _, _ in unit.void_breaches())}
            parts = unit.count_judged()
        breaches = 0
        lasting = list[str]()
        for model, found in late.items():
            breached = [each for each in found if each.is_breached(now)]
            breaches += len(breached)
            if any((each.breached_at is not None) != (each in breached) for each in found):
                changed.add(model)
            elif breached:
                lasting.append(model)
        calls = SingleCalls()
        for model in sorted(changed.union(self._next_of(lasting))):
            beat(f"freshness of {model}")
            calls.run(model, partial(self._judge, model))
        return FreshnessJudged(parts=parts, breaches=breaches, failed=dict(list(calls.failed.items())[:NAMED]))

    def _next_of(self, lasting: Sequence[str]) -> Sequence[str]:
        """Return the models after those of the last pass, in turn."""
        later = [model for model in lasting if model > self._last]
        chosen = [*later, *(model for model in lasting if model <= self._last)][:JUDGED_AGAIN]
        self._last = chosen[-1] if chosen else ""
        return chosen

    def _judge(self, model: str) -> None:
        with self._store.begin(model) as unit:
            for _, part, region in (place for place in unit.void_breaches() if place[0] == model):
                unit.mark_breach((model, part, region), begins=False)
                unit.add_event(model, "FreshnessRestored", f"{part} in {region}: it is not judged any more")
            found = [each for each in unit.serving_snapshots(model) if each.target_seconds is not None]
            if not found:
                unit.delete_condition(model, ConditionType.FRESH)
                return
            now = unit.now()
            breached = worst_first(found, now)
            for each in found:
                _note_breach(unit, each, now)
            _write_condition(unit, model, breached)


def _note_breach(unit: Repository, found: ServingSnapshot, now: datetime) -> None:
    """Record a breach that begins or ends, with its event."""
    breaks = found.is_breached(now)
    if breaks == (found.breached_at is not None):
        return
    unit.mark_breach(found.place, begins=breaks)
    if found.breached_at is None:
        text = describe_lateness(found, find_late_stage(unit, found))
        unit.add_event(found.model, "FreshnessBreached", text, detail=_detail(found))
        return
    lasted = (now - found.breached_at).total_seconds()
    text = f"{found.part} in {found.region}: snapshot {found.number} is fresh; the breach lasted {lasted:.0f} s"
    unit.add_event(found.model, "FreshnessRestored", text, detail=_detail(found))


def _detail(found: ServingSnapshot) -> Mapping[str, Any]:
    return {"part": found.part, "region": found.region, "snapshot": found.number}


def _write_condition(unit: Repository, model: str, breached: Sequence[ServingSnapshot]) -> None:
    """Write the condition of the part and region that has been late for longest."""
    status: Literal["True", "False"] = "True"
    reason, message = Reason.FRESH, "no part breaches its freshness"
    if breached:
        stage = find_late_stage(unit, breached[0])
        more = f"; and {len(breached) - 1} more" if len(breached) > 1 else ""
        status, reason, message = "False", stage.reason, describe_lateness(breached[0], stage) + more
    known = next((each for each in unit.conditions(model) if each.type is ConditionType.FRESH), None)
    if known is None or (known.status, known.reason, known.message) != (status, reason, message):
        unit.set_condition(model, ConditionType.FRESH, status, reason, message)
