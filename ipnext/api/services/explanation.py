"""Explanation of a model's state: one chain, one reason of the closed list, one advice.

The chain is deployment -> change -> step -> part -> region -> host -> freshness -> cause and omits links without known
facts. Pure: the same facts give the same explanation.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ipnext.api.services.explanation_chain import (
    UNHAPPY,
    cause_steps,
    change_steps,
    deployment_step,
    freshness_steps,
    refusal_steps,
    stage_steps,
    trouble_steps,
    wave_steps,
)
from ipnext.api.services.model_facts import ModelFacts
from ipnext.api.services.region_states import States
from ipnext.api.services.status import (
    Trouble,
    awaited_regions,
    capacity_troubles,
    observed_conditions,
    serving_troubles,
)
from ipnext.model.api.resources import ExplanationStep, StatusExplanation
from ipnext.model.lifecycle.changes.change import Change, ChangeKind, ChangeState
from ipnext.model.lifecycle.checks import ValidationReport
from ipnext.model.lifecycle.failure_cause import STEPS, Cause, cause_in
from ipnext.model.lifecycle.reasons import ADVICE, ADVICE_FOR_MOVES
from ipnext.model.lifecycle.regions.drain import Drain, DrainState
from ipnext.model.lifecycle.regions.stray_users import describe_astray
from ipnext.model.lifecycle.status import Condition, ConditionType, Reason
from ipnext.store.records import TransitionRecord
from ipnext.store.repository import Repository

LOOKED_AT = 200
"""Events among which the cause of the newest change is searched; its later ones are few."""

ADVICE_FOR_RETIRED = "To bring it back: `ipnext apply` its manifest again, then `ipnext publish MODEL --part NAME=DIR`."
"""A publish to a retired model is refused."""


ADVICE_FOR_RESTORED = (
    "Publish it (`ipnext publish MODEL --part NAME=DIR`), or `ipnext rollback MODEL` to a generation that served."
)
"""It was retired and is applied again: its generations are known."""

ADVICE_FOR_OLD_MANIFEST = (
    "Apply the manifest again (`ipnext apply -f FILE`), or publish: no change is open that brings it."
)
"""The change that carried the newest manifest was superseded, for example by a rollback."""

ADVICE_WHILE_RETRIED = (
    "The platform tries the step again: remove the cause that the message names, "
    "or stop the change with `ipnext abort MODEL`."
)
"""A step of the running change fails."""

ADVICE_WHILE_STUCK = (
    "The platform submits the change again until Temporal accepts it: remove the cause that the message names. "
    "`ipnext platform check` looks for it."
)
"""The oldest change is recorded, and Temporal does not accept it."""

ADVICE_WHILE_ASTRAY = (
    "Nothing to do: a repair or the next plan moves the users. If no region has room for it, raise the supply or bring "
    "a region back: `ipnext get regions`."
)
"""Users are sent to a generation that does not serve, and no change is open."""

ADVICE_WHILE_OUT = (
    "Out of service: {regions}. A model that serves is moved to the regions that are left, if they have room; "
    "else {back}, or raise the "
    "supply elsewhere. A change that was refused has to be asked for again."
)
"""There is no capacity while regions are drained or lost."""

ADVICE_ONCE_BACK = "Ask again: publish, apply or roll back once more. A change that has ended is not repeated."
"""The region that made a change fail is back."""

BY_A_REGION = frozenset(
    {Reason.REGION_UNREACHABLE, Reason.NO_CAPACITY, Reason.PLANNER_INFEASIBLE, Reason.TRANSITION_REFUSED}
)
"""Reasons that a change may have because of a region that does not answer, or is out of service."""


def explanation_of(unit: Repository, facts: ModelFacts, states: States) -> StatusExplanation:
    """Explain a model by the store's records of its newest change."""
    return explanations_of(unit, (facts,), states)[facts.record.name]


def explanations_of(unit: Repository, facts: Sequence[ModelFacts], states: States) -> Mapping[str, StatusExplanation]:
    """Explain models by name. The number of statements does not depend on the number of models."""
    changes = {each.record.name: telling_change(each) for each in facts}
    telling = [change for change in changes.values() if change is not None]
    unhappy = [change for change in telling if change.state in UNHAPPY]
    transitions = unit.newest_transitions([change.model for change in telling])
    reports = unit.reports_of({change.model: change.generation for change in unhappy if change.generation})
    details = unit.event_details([change.model for change in unhappy], among=LOOKED_AT)
    outages = _outages_of(unit, unhappy)
    found = {}
    for each in facts:
        name = each.record.name
        change = changes[name]
        cause = _cause_in(details.get(name, ()), change)
        passed = change is not None and outages.has_passed(change, cause, states)
        told = explain(
            each, states, report=reports.get(name), transition=transitions.get(name), cause=cause, passed=passed
        )
        found[name] = told if passed else outages.advise(told)
    return found


@dataclass(frozen=True, slots=True)
class _Outages:
    """Open drains, and the newest that have ended."""

    open: Sequence[Drain]
    returned: Sequence[Drain]

    def has_passed(self, change: Change, cause: Cause | None, states: States) -> bool:
        """Return whether a change ended because of a region that is back in service.

        Its message no longer applies then.
        """
        if change.state not in UNHAPPY or change.reason not in BY_A_REGION or change.finished_at is None:
            return False
        if change.reason is Reason.REGION_UNREACHABLE:
            named = {cause.place.region} if cause is not None and cause.place.region else set(states)
            answering = all(states.get(region) is not None for region in named - {None})
            return answering and not named & {drain.region for drain in self.open}
        at = change.finished_at
        return any(drain.finished_at and drain.created_at <= at <= drain.finished_at for drain in self.returned)

    def advise(self, told: StatusExplanation) -> StatusExplanation:
        """Name the regions that are out of service if there is no room."""
        out = [drain.region for drain in self.open if drain.holds] if told.reason is Reason.NO_CAPACITY else []
        if not out:
            return told
        back = " or ".join(f"`ipnext undrain {region}`" for region in out)
        return told.model_copy(update={"advice": ADVICE_WHILE_OUT.format(regions=", ".join(out), back=back)})


def _outages_of(unit: Repository, unhappy: Iterable[Change]) -> _Outages:
    """Read the drains in two statements, the second one only if it may matter."""
    returned: Sequence[Drain] = ()
    if any(change.reason in BY_A_REGION for change in unhappy):
        page = unit.drain_page(None, after=None, limit=LOOKED_AT).items
        returned = [drain for drain in page if drain.state is DrainState.RETURNED]
    return _Outages(unit.drains(), returned)


def _cause_in(details: Iterable[Mapping[str, Any]], change: Change | None) -> Cause | None:
    """Return the first cause that was recorded for a change, of the details of events, oldest first."""
    causes = (cause_in(detail) for detail in details)
    return next((found for found in causes if found is not None and change and found.change == change.id), None)


def explain(
    facts: ModelFacts,
    states: States,
    *,
    report: ValidationReport | None = None,
    transition: TransitionRecord | None = None,
    cause: Cause | None = None,
    passed: bool = False,
) -> StatusExplanation:
    """Explain a model.

    `report`, `transition` and `cause` belong to its telling change, like `passed`: its cause is gone.
    """
    conditions = {condition.type: condition for condition in observed_conditions(facts, states)}
    ready = conditions.get(ConditionType.READY)
    is_ready = ready is not None and ready.status == "True"
    change = telling_change(facts)
    failed = change is not None and change.state in UNHAPPY and not _is_down(facts, states)
    trouble = None if failed else _trouble(facts, states, change)
    failure = change if failed else None
    reason, message = _cause(facts, change, trouble, conditions, failure=failure, is_ready=is_ready)
    passed = passed and failed and change is not None
    if passed and change is not None:
        message = f"{change.kind} {change.id} ended as {change.state.value} for a region that is back in service now"
    told = cause if failed and not passed and cause is not None and cause.reason is reason else None
    waves = wave_steps(transition, change)
    stages = stage_steps(conditions, change, told, transition, is_ready=is_ready)
    if change is not None and not message:
        message = next((f"{wave.state}: {wave.message}" for wave in waves), f"the change is {change.state.value}")
    refused = report if failed and change is not None and change.state is ChangeState.REFUSED else None
    advice = (_advice_once_back(change) if passed else _advice(facts, reason, change)).replace(
        "MODEL", facts.record.name
    )
    chain = [
        deployment_step(facts, ready),
        *change_steps(change),
        *(stages or waves),
        *refusal_steps(refused, facts.record.manifest.spec),
        *cause_steps(told),
        *trouble_steps(
            trouble if trouble is not None and (trouble.reason, trouble.message) == (reason, message) else None
        ),
        *freshness_steps(conditions.get(ConditionType.FRESH), reason),
        ExplanationStep(level="cause", subject=reason.value, state="", message=message),
    ]
    return StatusExplanation(
        model=facts.record.name,
        ready=is_ready,
        reason=reason,
        message=message,
        advice=advice if change is None else advice.replace("CHANGE", change.id),
        chain=tuple(chain),
    )


def _advice_once_back(change: Change | None) -> str:
    repeated = change is not None and change.kind in {ChangeKind.MOVE, ChangeKind.REPAIR}
    return "Nothing to do: the platform tries it again." if repeated else ADVICE_ONCE_BACK


def _advice(facts: ModelFacts, reason: Reason, change: Change | None) -> str:
    if facts.record.retired and reason is Reason.NOT_PUBLISHED:
        return ADVICE_FOR_RETIRED
    if reason is Reason.NOT_PUBLISHED and any(found.generation for found in facts.changes):
        return ADVICE_FOR_RESTORED
    if all(found.state.final for found in facts.changes) and (rests := _advice_at_rest(facts, reason)):
        return rests
    if (retried := _retried(facts)) is not None and retried.reason is reason:
        return ADVICE_WHILE_RETRIED
    if reason is Reason.PENDING and _stuck(facts) is not None:
        return ADVICE_WHILE_STUCK
    moves = change is not None and change.kind is ChangeKind.MOVE
    return (ADVICE_FOR_MOVES.get(reason) if moves else None) or ADVICE[reason]


def _advice_at_rest(facts: ModelFacts, reason: Reason) -> str | None:
    """Return the advice for a model that no open change brings where it should be."""
    if reason is Reason.SUPERSEDED:
        return ADVICE_FOR_OLD_MANIFEST
    serving = facts.record.serving_generation
    astray = reason is Reason.PROGRESSING and serving is not None and describe_astray(facts.routes, serving)
    return ADVICE_WHILE_ASTRAY if astray else None


def telling_change(facts: ModelFacts) -> Change | None:
    """Return the change that a freeze blocks, since others wait behind it; else the newest that was not superseded."""
    telling = [change for change in facts.changes if change.state is not ChangeState.SUPERSEDED]
    frozen = (change for change in telling if change.reason is Reason.FROZEN and not change.state.final)
    return next(frozen, next(iter(telling), None))


def _is_down(facts: ModelFacts, states: States) -> bool:
    """Return whether the serving generation can't answer, for a known cause: that has priority over a failed change."""
    return any(t.status == "False" and t.reason is not Reason.PROGRESSING for t in serving_troubles(facts, states))


def _trouble(facts: ModelFacts, states: States, change: Change | None) -> Trouble | None:
    """Return the worst observed trouble.

    It is one of the target generation, else of the serving one, else of a repair's regions.
    """
    record = facts.record
    generations = {g for g in (record.target_generation, record.serving_generation) if g is not None}
    found = [t for g in sorted(generations, reverse=True) for t in capacity_troubles(facts, states, g)]
    found += serving_troubles(facts, states)
    if change is not None and change.kind is ChangeKind.REPAIR and not change.state.final:
        found += awaited_regions(facts, states)
    found.sort(key=lambda t: (t.reason is Reason.PROGRESSING, t.status != "False"))
    return found[0] if found else None


def _cause(
    facts: ModelFacts,
    change: Change | None,
    trouble: Trouble | None,
    conditions: Mapping[ConditionType, Condition],
    *,
    failure: Change | None,
    is_ready: bool,
) -> tuple[Reason, str]:
    """Return the one reason: a failed change first, then observed trouble, then the conditions."""
    if failure is not None:
        return failure.reason or Reason.ROLLED_BACK, failure.message
    if trouble is not None and trouble.reason is not Reason.PROGRESSING:
        return trouble.reason, trouble.message
    if change is not None and change.reason is Reason.FROZEN and not change.state.final:
        return Reason.FROZEN, change.message
    return _explain_unfailed(facts, change, trouble, conditions, is_ready=is_ready)


def _explain_unfailed(
    facts: ModelFacts,
    change: Change | None,
    trouble: Trouble | None,
    conditions: Mapping[ConditionType, Condition],
    *,
    is_ready: bool,
) -> tuple[Reason, str]:
    """Return the reason if nothing failed: the block of the change, else its progress."""
    under_way = change is not None and not change.state.final
    held = conditions.get(ConditionType.PROGRESSING)
    if held is not None and held.status == "False" and (under_way or not is_ready):
        return held.reason, held.message
    if (retried := _retried(facts)) is not None:
        return retried.reason or Reason.PROGRESSING, retried.message
    if trouble is not None and (not is_ready or (under_way and trouble.told)):
        return trouble.reason, trouble.message
    if (stuck := _stuck(facts)) is not None:
        return Reason.PENDING, stuck.message
    if change is not None and under_way:
        started = change.state is ChangeState.RUNNING
        return (Reason.PROGRESSING if started else Reason.PENDING), _progress(conditions, change)
    ready, fresh = conditions.get(ConditionType.READY), conditions.get(ConditionType.FRESH)
    return _at_rest(facts, ready, fresh, is_ready=is_ready)


def _retried(facts: ModelFacts) -> Change | None:
    """Return the oldest change with a step that fails and is tried again: the others wait for it."""
    return next((change for change in reversed(facts.changes) if change.is_retried), None)


def _stuck(facts: ModelFacts) -> Change | None:
    """Return the oldest change that Temporal does not accept, if none runs: the others wait for it."""
    if any(change.state is ChangeState.RUNNING for change in facts.changes):
        return None
    return next((change for change in reversed(facts.changes) if change.is_stuck), None)


def _at_rest(
    facts: ModelFacts, ready: Condition | None, fresh: Condition | None, *, is_ready: bool
) -> tuple[Reason, str]:
    """Return the reason while nothing runs and nothing is wrong, but what serves may be denied or old."""
    if is_ready and (denied := _describe_denied(facts)):
        return Reason.SNAPSHOT_DENIED, denied
    if is_ready and fresh is not None and fresh.status == "False":
        return fresh.reason, fresh.message
    if is_ready:
        return Reason.SERVING, f"generation {facts.record.serving_generation} serves"
    if facts.record.serving_generation is None and not any(c.generation for c in facts.changes):
        return Reason.NOT_PUBLISHED, "no snapshot was published yet"
    if ready is not None:
        return ready.reason, ready.message
    return Reason.PENDING, "no run has reported yet"


def _describe_denied(facts: ModelFacts) -> str:
    """Describe a denied snapshot that serves; empty without one. A model with a generation to go back to leaves it."""
    serving = facts.record.serving_generation
    for wanted in facts.deployments:
        for held in wanted.holds:
            if held.denied and serving in held.generations:
                return (
                    f"generation {serving} serves with snapshot {held.snapshot} of {held.part or wanted.key.part} "
                    f"although {held.denied}; no host may load it again"
                )
    return ""


def _progress(conditions: Mapping[ConditionType, Condition], change: Change) -> str:
    """Return the message of an unfinished step, or of the change; empty if neither has one."""
    waiting = next((c for t in STEPS if (c := conditions.get(t)) and c.status != "True"), None)
    return (waiting.message if waiting else "") or change.message
