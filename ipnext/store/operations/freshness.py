"""The stage that is late while the users of a region are answered by an old snapshot.

A snapshot passes training, pick-up, validation, freezes, supply and gates. The stage in which the newest one waits, or
failed, is late.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from ipnext.model.lifecycle.changes.change import Change, ChangeState
from ipnext.model.lifecycle.failure_cause import STEPS
from ipnext.model.lifecycle.freshness import ServingSnapshot
from ipnext.model.lifecycle.status import Condition, ConditionType, Reason
from ipnext.model.registry.registry import GenerationState
from ipnext.model.registry.sources import VersionState
from ipnext.store.operations.change_end import BRINGS_NEW
from ipnext.store.records import GenerationEnd, SourceRecord, VersionRecord
from ipnext.store.repository import Repository
from ipnext.store.sources.sources import is_poll_overdue

LOOKED_AT: Final = 20
"""Newest changes of a model among which the one that carries the newest snapshot is searched."""

LATE: Final[Mapping[Reason, str]] = {
    Reason.TRAINING_LATE: "training is late",
    Reason.PICK_UP_LATE: "pick-up is late",
    Reason.VALIDATION_LATE: "validation is late",
    Reason.FREEZE_LATE: "a freeze holds it back",
    Reason.SUPPLY_LATE: "supply is late",
    Reason.GATE_LATE: "a gate holds it back",
}
"""Reason of the condition `Fresh` -> description of the stage that is late."""

_OF_STEPS: Final[Mapping[ConditionType, Reason]] = {
    ConditionType.RESOLVED: Reason.VALIDATION_LATE,
    ConditionType.VALIDATED: Reason.VALIDATION_LATE,
    ConditionType.PLANNED: Reason.SUPPLY_LATE,
    ConditionType.CAPACITY_READY: Reason.SUPPLY_LATE,
    ConditionType.ROUTES_READY: Reason.GATE_LATE,
}
_VALIDATION: Final = frozenset(
    {
        Reason.ARTIFACT_MISSING,
        Reason.ARTIFACT_DIGEST_MISMATCH,
        Reason.SIGNATURE_INVALID,
        Reason.SNAPSHOT_DENIED,
        Reason.OPTIMIZATION_REFUSED,
        Reason.ACCURACY_LOST,
        Reason.STAGE_REFUSED,
        Reason.STAGE_FAILED,
        Reason.METRICS_REGRESSED,
        Reason.GOLDEN_MISMATCH,
        Reason.ENGINE_MISMATCH,
        Reason.UNSAFE_FORMAT,
        Reason.SCHEMA_MISMATCH,
        Reason.NON_FINITE_WEIGHTS,
        Reason.SPLIT_REFUSED,
        Reason.SPLIT_DIFFERS,
    }
)
_GATE: Final = frozenset(
    {
        Reason.GATE_FAILED,
        Reason.ROUTE_FAILED,
        Reason.ROLLED_BACK,
        Reason.ABORTED,
        Reason.PAUSED,
        Reason.AWAITING_APPROVAL,
    }
)


@dataclass(frozen=True, slots=True)
class LateStage:
    """The stage that is late, as a reason of the condition `Fresh`, and why."""

    reason: Reason
    message: str


def find_late_stage(unit: Repository, found: ServingSnapshot) -> LateStage:
    """Return the stage in which the newest snapshot of a part waits or failed; training if there is none."""
    newer = unit.find_newer_generation(found.model, found.part, found.number)
    if newer is None:
        return _judge_upstream(unit, found)
    open_changes = [change for change in reversed(unit.changes(found.model, limit=LOOKED_AT)) if not change.state.final]
    if any(change.generation == newer.number and change.kind in BRINGS_NEW for change in open_changes):
        return _judge_open(unit, open_changes[0], newer)
    return _judge_ended(unit, found, newer)


def _judge_open(unit: Repository, first: Change, newer: GenerationEnd) -> LateStage:
    """Judge the oldest open change: the one that brings the snapshot waits for it, if it is another one."""
    told = f"{first.kind} {first.id}" + (f" of generation {first.generation}" if first.generation else "")
    if first.generation != newer.number:
        told = f"generation {newer.number} waits for {told}"
    conditions = {condition.type: condition for condition in unit.conditions(first.model)}
    if first.reason is Reason.FROZEN:
        return LateStage(Reason.FREEZE_LATE, f"{told} is {first.message}")
    held = conditions.get(ConditionType.PROGRESSING)
    if held is not None and held.status == "False":
        reason = Reason.FREEZE_LATE if held.reason is Reason.FROZEN else Reason.GATE_LATE
        return LateStage(reason, f"{told} is held: {held.reason}: {held.message}")
    if first.state is not ChangeState.RUNNING:
        return LateStage(Reason.PICK_UP_LATE, f"{told} is recorded and has not begun")
    return _judge_step(unit, first, told, conditions, newer)


def _judge_step(
    unit: Repository,
    change: Change,
    told: str,
    conditions: Mapping[ConditionType, Condition],
    newer: GenerationEnd,
) -> LateStage:
    step = next((kind for kind in STEPS if kind in conditions and conditions[kind].status != "True"), None)
    why = change.message if change.is_retried else ""
    if step is not None:
        why = why or conditions[step].message
        return LateStage(_OF_STEPS[step], f"{told}, step {STEPS[step]}" + (f": {why}" if why else ""))
    moves = any(newer.number in table.answering for table in unit.routes(change.model))
    if moves:
        return LateStage(Reason.GATE_LATE, f"{told} moves the traffic wave by wave" + (f": {why}" if why else ""))
    return LateStage(Reason.SUPPLY_LATE, f"{told} brings up its replicas" + (f": {why}" if why else ""))


def _judge_ended(unit: Repository, found: ServingSnapshot, newer: GenerationEnd) -> LateStage:
    """Judge a generation that no change rolls out any more."""
    serving = unit.model(found.model).serving_generation
    if serving == newer.number:
        message = f"generation {serving} serves, but the users of {found.region} are sent to an older one"
        return LateStage(Reason.SUPPLY_LATE, message)
    if newer.served and newer.state is not GenerationState.FAILED:
        return LateStage(Reason.GATE_LATE, f"generation {newer.number} was rolled back to generation {serving}")
    reason = Reason(newer.reason) if newer.reason in set(Reason) else Reason.INTERNAL_ERROR
    why = f"generation {newer.number} ended as {newer.state}: {reason}" + (
        f": {newer.message}" if newer.message else ""
    )
    return LateStage(_of_failure(unit, found.model, reason), why)


def _of_failure(unit: Repository, model: str, reason: Reason) -> Reason:
    if reason in _VALIDATION:
        return Reason.VALIDATION_LATE
    if reason is Reason.FROZEN:
        return Reason.FREEZE_LATE
    if reason in _GATE:
        return Reason.GATE_LATE
    if reason is not Reason.DEADLINE_EXCEEDED:
        return Reason.SUPPLY_LATE
    ended = {condition.type: condition.reason for condition in unit.conditions(model)}
    kinds = (kind for kind, of in ended.items() if of is reason and kind in _OF_STEPS)
    return next((_OF_STEPS[kind] for kind in kinds), Reason.GATE_LATE)


def _judge_upstream(unit: Repository, found: ServingSnapshot) -> LateStage:
    """Judge the sources of a part of which nothing newer was published."""
    sources = [source for source in unit.sources(found.model) if source.part == found.part]
    newest = {source.name: unit.newest_version(found.model, source.name) for source in sources}
    waiting = [_judge_version(version) for version in newest.values() if version is not None]
    blocked = [_judge_source(source, unit.now()) for source in sources]
    message = next((text for text in (*waiting, *blocked) if text), "")
    if message:
        return LateStage(Reason.PICK_UP_LATE, message)
    if not sources:
        return LateStage(Reason.TRAINING_LATE, "no newer snapshot was published")
    names = ", ".join(source.name for source in sources)
    return LateStage(
        Reason.TRAINING_LATE, f"no newer version is in the source{'s' if len(sources) > 1 else ''} {names}"
    )


def _judge_version(version: VersionRecord) -> str:
    """Describe why the newest version of a source is not published; empty if nothing more happens to it."""
    named = f"version {version.version.key} of source {version.source}"
    why = f": {version.message}" if version.message else ""
    if version.state is VersionState.HELD:
        return f"{named} is held by its promotion rule{why}"
    if version.state is VersionState.FOUND:
        return f"{named} is found and not published yet{why}"
    return f"{named} is refused{why}" if version.state is VersionState.REFUSED else ""


def _judge_source(source: SourceRecord, now: datetime) -> str:
    """Describe why a source may have newer versions that are not known; empty if it was polled."""
    if source.paused_at is not None:
        why = f": {source.pause_reason}" if source.pause_reason else ""
        return f"source {source.name} is paused by {source.paused_by}{why}"
    if source.failures:
        return f"source {source.name} can't be polled: {source.error}"
    if source.polled_at is None:
        return f"source {source.name} was not polled yet"
    if is_poll_overdue(source, now):
        return f"source {source.name} was polled at {source.polled_at:%H:%M:%S} UTC last"
    return ""


def describe_lateness(found: ServingSnapshot, stage: LateStage) -> str:
    """Describe an old snapshot in the terms of its part's target, and what is late."""
    what = "published" if found.trained_at is None else "trained"
    target = f"{found.target_seconds or 0:g} s"
    return (
        f"{found.part} in {found.region}: snapshot {found.number} was {what} at {found.born_at:%Y-%m-%d %H:%M:%S} UTC, "
        f"more than {target} ago; {LATE[stage.reason]}: {stage.message}"
    )


def worst_first(found: Sequence[ServingSnapshot], now: datetime) -> list[ServingSnapshot]:
    """Return the places with a breach, the one that has been late for longest first."""
    breached = [each for each in found if each.is_breached(now)]
    return sorted(breached, key=lambda each: (each.late_at, each.place))
