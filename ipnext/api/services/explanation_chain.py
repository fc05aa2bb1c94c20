"""The links of an explanation between the deployment and its cause: change, step, part, region, host.

Pure functions.
"""

from collections.abc import Mapping

from ipnext.api.services.model_facts import ModelFacts
from ipnext.api.services.status import Trouble
from ipnext.model.api.resources import ExplanationStep
from ipnext.model.echoes import cut_text
from ipnext.model.lifecycle.changes.change import Change, ChangeState
from ipnext.model.lifecycle.checks import CheckResult, ValidationReport
from ipnext.model.lifecycle.failure_cause import STEPS, Cause
from ipnext.model.lifecycle.status import Condition, ConditionType, Reason
from ipnext.model.manifest.manifest import ModelSpec
from ipnext.model.planning.transition import TransitionState
from ipnext.model.planning.wave_progress import arrived_words, measure_arrival
from ipnext.model.value import canonical_json
from ipnext.store.operations.freshness import LATE
from ipnext.store.records import TransitionRecord

LONGEST_EVIDENCE = 400
"""Characters of evidence in an explanation; the report has all of it."""

_OF_STAGES = frozenset({Reason.STAGE_REFUSED, Reason.STAGE_FAILED})

UNHAPPY = frozenset({ChangeState.REFUSED, ChangeState.ROLLED_BACK})
"""Ends of a change that need an explanation."""


def deployment_step(facts: ModelFacts, ready: Condition | None) -> ExplanationStep:
    """Return the serving and the desired generation."""
    record = facts.record
    serving = (
        "nothing serves" if record.serving_generation is None else f"generation {record.serving_generation} serves"
    )
    target = record.target_generation
    toward = "" if target is None or target == record.serving_generation else f", {target} is wanted"
    state = f"Ready={ready.status}" if ready is not None else "Ready=Unknown"
    return ExplanationStep(level="deployment", subject=record.name, state=state, message=serving + toward)


def change_steps(change: Change | None) -> tuple[ExplanationStep, ...]:
    """Return the change that explains most, if there is one."""
    if change is None:
        return ()
    target = "" if change.generation is None else f" to generation {change.generation}"
    subject = f"{change.kind.value}{target}"
    return (ExplanationStep(level="change", subject=subject, state=change.state.value, message=f"change {change.id}"),)


def stage_steps(
    conditions: Mapping[ConditionType, Condition],
    change: Change | None,
    cause: Cause | None,
    transition: TransitionRecord | None,
    *,
    is_ready: bool,
) -> tuple[ExplanationStep, ...]:
    """Return the step that failed, as recorded; else the first that is not done."""
    done = change is not None and change.state is ChangeState.DONE
    if cause is not None and cause.place.step:
        return (_stage(cause.place.step, cause.reason.value, transition, change),)
    stuck = next((t for t in STEPS if (c := conditions.get(t)) is not None and c.status != "True"), None)
    if stuck is None or (is_ready and done):
        return ()
    return (_stage(STEPS[stuck], f"{stuck.value}={conditions[stuck].status}", transition, change),)


def wave_steps(transition: TransitionRecord | None, change: Change | None) -> tuple[ExplanationStep, ...]:
    """Return the present wave of a run that moves traffic."""
    if transition is None or change is None or change.state is not ChangeState.RUNNING:
        return ()
    waves = transition.transition.waves
    underway = transition.change_id == change.id and transition.state is TransitionState.RUNNING
    if not underway or transition.waves_done >= len(waves):
        return ()
    wave = waves[transition.waves_done]
    reach = arrived_words(measure_arrival(transition.transition, transition.model)[transition.waves_done])
    hold = f", then it holds {wave.hold_seconds:g} s" if wave.hold_seconds else ""
    message = f"brings {reach} of the traffic where it goes{hold}"
    state = f"wave {transition.waves_done + 1} of {len(waves)}"
    return (ExplanationStep(level="step", subject="move traffic", state=state, message=message),)


def refusal_steps(report: ValidationReport | None, spec: ModelSpec) -> tuple[ExplanationStep, ...]:
    """Return the part that a check of the validation refused, with check and file.

    For an edge: the part that it leads to.
    """
    refused = report.refusal if report is not None else None
    if refused is None:
        return ()
    if refused.reason in _OF_STAGES:
        return _evidence_steps(refused)
    subject, _, path = refused.subject.partition("/")
    nodes = {node.name: node.part for node in spec.wiring.nodes} if spec.wiring else {}
    target = subject.rpartition(" -> ")[2].partition(".")[0]
    part = subject if subject in {part.name for part in spec.parts} else nodes.get(target, subject)
    message = f"check {refused.check}" + (f" of {path}" if path else "")
    state = (refused.reason or Reason.INTERNAL_ERROR).value
    return (ExplanationStep(level="part", subject=part, state=state, message=message),)


def _evidence_steps(refused: CheckResult) -> tuple[ExplanationStep, ...]:
    """Return the evidence of a stage of another distribution; the stage itself is the step that failed."""
    if not refused.evidence:
        return ()
    message = cut_text(canonical_json(refused.evidence), LONGEST_EVIDENCE)
    return (ExplanationStep(level="step", subject="evidence", state=refused.reason.value, message=message),)


def cause_steps(cause: Cause | None) -> tuple[ExplanationStep, ...]:
    """Return the recorded part, region and host of a failed change."""
    if cause is None:
        return ()
    place = cause.place
    steps = []
    if place.part is not None:
        steps.append(ExplanationStep(level="part", subject=place.part, state="not ready"))
    if place.region is not None:
        seen = "unreachable" if cause.reason is Reason.REGION_UNREACHABLE else _hardware(place.hardware)
        steps.append(ExplanationStep(level="region", subject=place.region, state=seen))
    if place.host is not None:
        state = "not ready" if cause.reason is Reason.DEADLINE_EXCEEDED else cause.reason.value
        steps.append(ExplanationStep(level="host", subject=place.host, state=state, message=_log(place.log)))
    return tuple(steps)


def freshness_steps(fresh: Condition | None, reason: Reason) -> tuple[ExplanationStep, ...]:
    """Return the stage that is late, if a part breaches its freshness; with its message unless `reason` is the same."""
    if fresh is None or fresh.status != "False":
        return ()
    message = "" if fresh.reason is reason else fresh.message
    subject = LATE.get(fresh.reason, str(fresh.reason))
    return (ExplanationStep(level="freshness", subject=subject, state="Fresh=False", message=message),)


def trouble_steps(trouble: Trouble | None) -> tuple[ExplanationStep, ...]:
    """Return part, region and host of the trouble that is observed now."""
    if trouble is None:
        return ()
    seen = "unreachable" if trouble.reason is Reason.REGION_UNREACHABLE else "reachable"
    steps = [ExplanationStep(level="region", subject=trouble.region, state=seen)]
    if trouble.part is not None:
        steps.insert(0, ExplanationStep(level="part", subject=trouble.part, state="not ready"))
    if trouble.host is not None:
        state, message = trouble.reason.value, _log(trouble.log)
        steps.append(ExplanationStep(level="host", subject=trouble.host, state=state, message=message))
    return tuple(steps)


def _stage(name: str, state: str, transition: TransitionRecord | None, change: Change | None) -> ExplanationStep:
    return ExplanationStep(level="step", subject=name, state=state, message=_wave(transition, change))


def _wave(transition: TransitionRecord | None, change: Change | None) -> str:
    if transition is None or change is None or transition.change_id != change.id:
        return ""
    return f"{transition.waves_done} of {len(transition.transition.waves)} waves done"


def _log(file: str | None) -> str:
    return "" if file is None else f"log {file}"


def _hardware(hardware: str | None) -> str:
    return "" if hardware is None else f"on {hardware}"
