"""Before and after a stage of another distribution: its request is read from the store, its answer is judged and kept.

The stage itself is an activity, or a workflow, of that distribution (`ipnext.stages.port`).
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from pydantic import ValidationError
from temporalio import activity

from activities.runtime.failed_attempts import of_a_step
from ipnext.model.echoes import cut_text, show_value
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.change_stages import StageOutcome, Stages, end_stage
from ipnext.model.lifecycle.checks import CheckOutcome, CheckResult, ValidationReport
from ipnext.model.lifecycle.failure_cause import Cause, Place
from ipnext.model.lifecycle.stages import (
    LONGEST_MESSAGE,
    MOST_EVIDENCE_BYTES,
    StageAnswer,
    StageAsked,
    StageEnded,
    StageJudged,
    StageRequest,
    StageSnapshot,
    activity_name,
)
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.value import canonical_json
from ipnext.model.wire import decode_plain
from ipnext.store.repository import Repository
from ipnext.store.store import Store

EVENT: Final = "StageEnded"
"""Kind of the event of a stage; its detail has the evidence."""
LOOKED_AT: Final = 50
"""Newest events among which that of an earlier attempt is searched."""

_VALIDATED: Final = frozenset({ChangeKind.PUBLISH, ChangeKind.APPLY})
"""Kinds of change with a validation, whose report and condition show their stages."""


_OUTCOMES: Final[Mapping[Reason, CheckOutcome]] = {
    Reason.SUCCEEDED: CheckOutcome.PASSED,
    Reason.STAGE_REFUSED: CheckOutcome.REFUSED,
    Reason.STAGE_FAILED: CheckOutcome.FAILED,
}


_STAGE_OUTCOMES: Final[Mapping[Reason, StageOutcome]] = {
    Reason.SUCCEEDED: "passed",
    Reason.STAGE_REFUSED: "refused",
    Reason.STAGE_FAILED: "failed",
}


class StageActivities:
    """Activities around stages of other distributions, on the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def all(self) -> Sequence[Callable[..., Any]]:
        """Return the activities that a worker registers."""
        return (self.begin_stage, self.record_stage)

    @activity.defn(name="begin_stage", no_thread_cancel_exception=True)
    @of_a_step
    def begin_stage(self, asked: StageAsked) -> StageRequest:
        """Return what a stage is given. The condition `Validated` shows that the change has reached it."""
        with self._store.begin(asked.model) as repository:
            record = repository.model(asked.model)
            if asked.kind in _VALIDATED:
                message = f"generation {asked.generation}: stage {asked.name}"
                repository.set_condition(asked.model, ConditionType.VALIDATED, "Unknown", Reason.PROGRESSING, message)
            return StageRequest(
                stage=asked.name,
                change_id=asked.change_id,
                kind=asked.kind,
                model=asked.model,
                owner=record.manifest.metadata.owner or "",
                labels=record.manifest.metadata.labels,
                revision=record.generation,
                generation=asked.generation or None,
                snapshots=_snapshots(repository, asked.model, asked.generation or None),
                serving_generation=record.serving_generation,
                serving=_snapshots(repository, asked.model, record.serving_generation),
                settings=asked.settings,
            )

    @activity.defn(name="record_stage", no_thread_cancel_exception=True)
    @of_a_step
    def record_stage(self, ended: StageEnded) -> StageJudged:
        """Judge the answer of a stage, and keep it with its evidence: in the validation's report, and as an event."""
        found = _result_of(ended)
        judged = StageJudged(
            passed=found.passed, reason=found.reason, message=f"stage {ended.name}: {found.message}".rstrip(": ")
        )
        with self._store.begin(ended.model) as repository:
            if ended.kind in _VALIDATED:
                _keep_result(repository, ended, found)
                _write_validated(repository, ended, judged)
            _end_stage(repository, ended, found)
            _write_event(repository, ended, found, judged)
        return judged


def _snapshots(repository: Repository, model: str, number: int | None) -> Mapping[str, StageSnapshot]:
    if number is None:
        return {}
    generation = repository.generation(model, number)
    found = {part: _snapshot(repository, model, part, snapshot) for part, snapshot in generation.answering.items()}
    for kind, numbers in generation.by_hardware.items():
        for part, snapshot in numbers.items():
            on_kind = {**found[part].by_hardware, kind: _snapshot(repository, model, part, snapshot)}
            found[part] = found[part].model_copy(update={"by_hardware": on_kind})
    return found


def _snapshot(repository: Repository, model: str, part: str, number: int) -> StageSnapshot:
    snapshot = repository.snapshot(model, part, number)
    return StageSnapshot(
        number=snapshot.number,
        digest=snapshot.digest,
        uri=snapshot.uri,
        size_bytes=snapshot.manifest.size_bytes,
        published=snapshot.derived_from or snapshot.number,
    )


def _result_of(ended: StageEnded) -> CheckResult:
    """Return the result of a stage. An answer that is none is a failure of the stage."""
    if ended.failure:
        return _failed(ended, ended.failure)
    try:
        answer = decode_plain(StageAnswer, ended.answer)
        size = len(canonical_json(answer.evidence).encode())
    except ValidationError:
        needed = "passed (true or false), message (text) and evidence (an object)"
        return _failed(ended, f"its answer is {show_value(ended.answer)}; needed: {needed}")
    except ValueError as error:
        return _failed(ended, f"its evidence holds a value that JSON can't carry: {error}")
    if size > MOST_EVIDENCE_BYTES:
        return _failed(ended, f"its evidence has {size} bytes of JSON; allowed: {MOST_EVIDENCE_BYTES}")
    reason = Reason.SUCCEEDED if answer.passed else Reason.STAGE_REFUSED
    message = answer.message or ("" if answer.passed else "it refused, and gave no message")
    return _result(ended, reason, message, answer.evidence)


def _failed(ended: StageEnded, message: str) -> CheckResult:
    return _result(ended, Reason.STAGE_FAILED, message, {})


def _result(ended: StageEnded, reason: Reason, message: str, evidence: Mapping[str, Any]) -> CheckResult:
    return CheckResult(
        check=activity_name(ended.name),
        subject=ended.model,
        outcome=_OUTCOMES[reason],
        reason=reason,
        message=cut_text(message, LONGEST_MESSAGE),
        evidence=evidence,
        duration_seconds=ended.duration_seconds or 0.0,
        source=ended.source,
    )


def _keep_result(repository: Repository, ended: StageEnded, found: CheckResult) -> None:
    """Add the result to the report of the generation, in place of one of the same stage."""
    report = repository.report(ended.model, ended.generation)
    others = () if report is None else (check for check in report.checks if check.check != found.check)
    kept = ValidationReport(model=ended.model, generation=ended.generation, checks=(*others, found))
    repository.save_report(kept)


def _write_validated(repository: Repository, ended: StageEnded, judged: StageJudged) -> None:
    told = judged.message if judged.message.partition(": ")[2] else f"{judged.message} passed"
    message = f"generation {ended.generation}: {told}"
    status = "True" if judged.passed else "False"
    repository.set_condition(ended.model, ConditionType.VALIDATED, status, judged.reason, message)  # type: ignore[arg-type]
    if not judged.passed:
        record = repository.model(ended.model)
        repository.refuse_revision(ended.model, record.validated.revision if record.validated else record.generation)


def _end_stage(repository: Repository, ended: StageEnded, found: CheckResult) -> None:
    outcome: StageOutcome = _STAGE_OUTCOMES[found.reason]

    def end(stages: Stages, at: datetime) -> Stages:
        return end_stage(stages, ended.name, at, outcome=outcome, message=found.message)

    repository.note_stages(ended.model, ended.change_id, end)


def _write_event(repository: Repository, ended: StageEnded, found: CheckResult, judged: StageJudged) -> None:
    """Write the event once, with the cause of a failure for `ipnext explain`."""
    outcome = "passed" if judged.passed else "failed" if judged.reason is Reason.STAGE_FAILED else "refused"
    told = f"{ended.kind} {ended.change_id}: stage {ended.name} {outcome}: {found.message}".rstrip(": ")
    if any(event.kind == EVENT and event.message == told for event in repository.events(ended.model, limit=LOOKED_AT)):
        return
    place = Place(step=f"stage {ended.name}")
    cause = Cause(change=ended.change_id, reason=judged.reason, message=judged.message, place=place)
    caused = {} if judged.passed else dict(cause.detail)
    detail = {"stage": ended.name, "source": ended.source, "evidence": dict(found.evidence), **caused}
    repository.add_event(ended.model, EVENT, told, detail=detail)
