"""Why a model is, or is not, where its owner wants it: one chain, one reason of the closed list, one advice.

The chain goes deployment -> change -> step -> part -> region -> host -> cause and leaves out links that nothing is
known of. Pure: the same facts give the same explanation.
"""

from collections.abc import Mapping

from ipnext.api.facts import ModelFacts
from ipnext.api.status import (
    States,
    Trouble,
    capacity_troubles,
    observed_conditions,
    serving_troubles,
)
from ipnext.model.lifecycle import Change, ChangeState, ValidationReport
from ipnext.model.resource import Explanation, ExplanationStep
from ipnext.model.status import Condition, ConditionType, Reason
from ipnext.store.records import TransitionRecord

STEPS: Mapping[ConditionType, str] = {
    ConditionType.RESOLVED: "resolve snapshots",
    ConditionType.VALIDATED: "validate",
    ConditionType.PLANNED: "plan",
    ConditionType.CAPACITY_READY: "bring up capacity",
    ConditionType.ROUTES_READY: "shift traffic",
}
"""The steps of a run in their order, by the condition that each one sets."""

ADVICE: Mapping[Reason, str] = {
    Reason.PENDING: "Nothing to do: the change waits for its turn.",
    Reason.PROGRESSING: "Nothing to do: the run is on its way; `ipnext wait MODEL --for ready` waits for its end.",
    Reason.SUCCEEDED: "Nothing to do.",
    Reason.SERVING: "Nothing to do.",
    Reason.NOT_PUBLISHED: "Publish a first snapshot of every part: `ipnext publish MODEL --part NAME=DIR`.",
    Reason.SUPERSEDED: "Nothing to do: a newer change takes its place.",
    Reason.ROLLED_BACK: "The former generation serves. See `ipnext events MODEL` for what went wrong, then publish a repaired snapshot.",
    Reason.ARTIFACT_MISSING: "A file of the snapshot is not in the artifact store: publish the snapshot again.",
    Reason.ARTIFACT_DIGEST_MISMATCH: "A file changed after it was published: publish the snapshot again from its source.",
    Reason.ENGINE_MISMATCH: "The snapshot was exported for another engine than the manifest names: change one of them.",
    Reason.UNSAFE_FORMAT: "The snapshot holds a file that runs code when it is loaded: export it with ipnext, as safetensors.",
    Reason.SCHEMA_MISMATCH: "The tensors of the snapshot do not fit the graph: repair the edge named in the message.",
    Reason.NON_FINITE_WEIGHTS: "The weights hold NaN or infinity: publish a snapshot from a healthy training step.",
    Reason.SPLIT_REFUSED: "The policy in spec.split does not fit the model: change what the message names, apply, publish again.",
    Reason.SPLIT_DIFFERS: "Cut like this the model answers otherwise: keep the modules that the message's output comes from in one part.",
    Reason.FROZEN: "A freeze is in force: wait until it ends.",
    Reason.NO_CAPACITY: "The fleet has no room: raise the supply, lower the demand, or allow another hardware kind.",
    Reason.OVER_BUDGET: "The owner's budget does not pay for it: raise the budget or lower the demand.",
    Reason.PLANNER_INFEASIBLE: "No placement keeps every rule: loosen one of the rules that the message names.",
    Reason.PLANNER_FAILED: "The planner found no answer in time; the plan in force stays. Ask again with `ipnext replan`.",
    Reason.TRANSITION_REFUSED: "There is no safe way there with this supply: add the surge that the message names.",
    Reason.LOAD_FAILED: "A host could not load the snapshot: see the host's message, then publish a repaired one.",
    Reason.OUT_OF_MEMORY: "The part needs more memory than the host gives: raise memoryBytes or choose larger hardware.",
    Reason.CRASH_LOOP: "A host ends again and again: see its log in the region's state directory.",
    Reason.REGION_UNREACHABLE: "The region's infrastructure does not answer: see `ipnext get regions`, bring it back.",
    Reason.ROUTE_FAILED: "A gateway did not take its routes: see the region's gateway, then try again.",
    Reason.GATE_FAILED: "The new generation answered worse than its gate allows and was taken back: look at its answers.",
    Reason.DEADLINE_EXCEEDED: "A step took longer than rollout.deadlineSeconds: see which host was not ready, or raise it.",
    Reason.INTERNAL_ERROR: "A fault of the platform: open the run's link and report what it shows.",
}
"""What a person does about each reason. docs/reference/reasons.md carries the same sentences."""

_UNHAPPY = frozenset({ChangeState.REFUSED, ChangeState.ROLLED_BACK})


def explain(
    facts: ModelFacts,
    states: States,
    *,
    report: ValidationReport | None = None,
    transition: TransitionRecord | None = None,
) -> Explanation:
    """Explain a model. `report` and `transition` belong to its newest change."""
    conditions = {condition.type: condition for condition in observed_conditions(facts, states)}
    ready = conditions.get(ConditionType.READY)
    is_ready = ready is not None and ready.status == "True"
    change = _telling_change(facts)
    trouble = _trouble(facts, states)
    reason, message = _cause(facts, change, trouble, conditions, is_ready=is_ready)
    chain = [
        _deployment_step(facts, ready),
        *_change_steps(change),
        *_stage_steps(conditions, change, report, transition, is_ready=is_ready),
        *(_trouble_steps(trouble) if trouble else ()),
        ExplanationStep(level="cause", subject=reason.value, state="", message=message),
    ]
    return Explanation(
        model=facts.record.name,
        ready=is_ready,
        reason=reason,
        message=message,
        advice=ADVICE[reason].replace("MODEL", facts.record.name),
        chain=tuple(chain),
    )


def _telling_change(facts: ModelFacts) -> Change | None:
    """The newest change that was not merely overtaken."""
    telling = (change for change in facts.changes if change.state is not ChangeState.SUPERSEDED)
    return next(telling, None)


def _trouble(facts: ModelFacts, states: States) -> Trouble | None:
    """The worst that is observed: of the generation on its way, else of the one that serves."""
    record = facts.record
    generations = {g for g in (record.target_generation, record.serving_generation) if g is not None}
    found = [t for g in sorted(generations, reverse=True) for t in capacity_troubles(facts, states, g)]
    found += serving_troubles(facts, states)
    found.sort(key=lambda t: (t.reason is Reason.PROGRESSING, t.status != "False"))
    return found[0] if found else None


def _cause(
    facts: ModelFacts,
    change: Change | None,
    trouble: Trouble | None,
    conditions: Mapping[ConditionType, Condition],
    *,
    is_ready: bool,
) -> tuple[Reason, str]:
    """The one reason: a failed change first, then what is observed, then what the conditions say."""
    if change is not None and change.state in _UNHAPPY:
        return change.reason or Reason.ROLLED_BACK, change.message
    if trouble is not None and (not is_ready or trouble.reason is not Reason.PROGRESSING):
        return trouble.reason, trouble.message
    if change is not None and not change.state.final:
        started = change.state is ChangeState.RUNNING
        return (Reason.PROGRESSING if started else Reason.PENDING), _progress(conditions, change)
    return _at_rest(facts, conditions.get(ConditionType.READY), is_ready=is_ready)


def _at_rest(facts: ModelFacts, ready: Condition | None, *, is_ready: bool) -> tuple[Reason, str]:
    """The reason while nothing runs and nothing is wrong."""
    if is_ready:
        return Reason.SERVING, f"generation {facts.record.serving_generation} serves"
    if facts.record.serving_generation is None and not any(c.generation for c in facts.changes):
        return Reason.NOT_PUBLISHED, "no snapshot was published yet"
    if ready is not None:
        return ready.reason, ready.message
    return Reason.PENDING, "no run has reported yet"


def _progress(conditions: Mapping[ConditionType, Condition], change: Change) -> str:
    waiting = next((c for t, _ in STEPS.items() if (c := conditions.get(t)) and c.status != "True"), None)
    return (waiting.message if waiting else "") or change.message or f"the change is {change.state.value}"


def _deployment_step(facts: ModelFacts, ready: Condition | None) -> ExplanationStep:
    record = facts.record
    serving = (
        "nothing serves" if record.serving_generation is None else f"generation {record.serving_generation} serves"
    )
    target = record.target_generation
    toward = "" if target is None or target == record.serving_generation else f", {target} is wanted"
    state = f"Ready={ready.status}" if ready is not None else "Ready=Unknown"
    return ExplanationStep(level="deployment", subject=record.name, state=state, message=serving + toward)


def _change_steps(change: Change | None) -> tuple[ExplanationStep, ...]:
    if change is None:
        return ()
    target = "" if change.generation is None else f" to generation {change.generation}"
    subject = f"{change.kind.value}{target}"
    return (ExplanationStep(level="change", subject=subject, state=change.state.value, message=f"change {change.id}"),)


def _stage_steps(
    conditions: Mapping[ConditionType, Condition],
    change: Change | None,
    report: ValidationReport | None,
    transition: TransitionRecord | None,
    *,
    is_ready: bool,
) -> tuple[ExplanationStep, ...]:
    """The first step that is not done, with the refused check or the wave it stands at."""
    stuck = next((t for t in STEPS if (c := conditions.get(t)) is not None and c.status != "True"), None)
    steps: list[ExplanationStep] = []
    if stuck is not None and not (is_ready and change is not None and change.state is ChangeState.DONE):
        condition = conditions[stuck]
        state = f"{stuck.value}={condition.status}"
        steps.append(
            ExplanationStep(level="step", subject=STEPS[stuck], state=state, message=_wave(transition, change))
        )
    refused = report.refused if report is not None else None
    if refused is not None and change is not None and change.state is ChangeState.REFUSED:
        message = f"check {refused.check}: {refused.message}"
        steps.append(
            ExplanationStep(level="part", subject=refused.subject, state=refused.reason.value, message=message)
        )
    return tuple(steps)


def _wave(transition: TransitionRecord | None, change: Change | None) -> str:
    if transition is None or change is None or transition.change_id != change.id:
        return ""
    return f"{transition.waves_done} of {len(transition.transition.waves)} waves done"


def _trouble_steps(trouble: Trouble) -> tuple[ExplanationStep, ...]:
    seen = "unreachable" if trouble.reason is Reason.REGION_UNREACHABLE else "reachable"
    steps = [ExplanationStep(level="region", subject=trouble.region, state=seen)]
    if trouble.part is not None:
        steps.insert(0, ExplanationStep(level="part", subject=trouble.part, state="not ready"))
    if trouble.host is not None:
        steps.append(ExplanationStep(level="host", subject=trouble.host, state=trouble.reason.value))
    return tuple(steps)
