"""Times live replicas of a new generation against those of the serving one, before its first traffic moves.

It makes the check `live-latency`, with the same form of result as the checks of the validation.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from temporalio import activity

from activities.runtime.failed_attempts import of_a_step
from activities.runtime.fence import of_a_wave, still_ours
from activities.state.observed import observe
from activities.state.wave_state import ModelWaveState, Slot
from activities.transition.gate.live import FEWEST_ROUNDS, count_answered, judge_live, read_figures
from activities.transition.gate.timed_parts import TimedPart, read_timed_parts
from activities.transition.live.readiness import PartReadiness, ReplicaPair, is_as_before, read_readiness
from activities.transition.live.replay_requests import UnfitReplay, read_requests
from activities.transition.wave_context import WaveContext
from ipnext.artifacts.port import ArtifactStore
from ipnext.errors import NotFound, RegionUnreachable
from ipnext.infra.port import Infrastructure
from ipnext.model.gate.live import ROUNDS, JudgedRound, LiveLatencySpec, TimedReplica, TimingRound
from ipnext.model.lifecycle.changes.transition_run import WaveInput, WaveResult
from ipnext.model.lifecycle.checks import LIVE_LATENCY, CheckOutcome, CheckOverride, CheckResult, ValidationReport
from ipnext.model.lifecycle.failure_cause import GATE, Cause, Place
from ipnext.model.lifecycle.status import Reason
from ipnext.model.registry.optimization import REPLAY_FILE
from ipnext.store.repository import Repository
from ipnext.store.store import Store

ENGINE: Final = "torch"
AGAIN_SECONDS: Final = 0.5
NOT_JUDGED_EVENT: Final = "NotJudged"
"""Kind of the event of a rollout that continues although its limits could not be judged."""


_REASONS: Final = {CheckOutcome.REFUSED: Reason.GATE_FAILED, CheckOutcome.NOT_JUDGED: Reason.UNAVAILABLE}


@dataclass(frozen=True)
class _Case:
    """One comparison, as stored."""

    limits: LiveLatencySpec
    former: int | None
    """The serving generation; None if no other one serves."""
    is_split: bool
    parts: tuple[TimedPart, ...]
    regions: frozenset[str]
    wanted: frozenset[Slot]
    """Replica sets that have to hold replicas of both generations."""
    change: str
    override: CheckOverride | None


class LiveTimingActivities:
    """The activity that times live replicas, on the store, the infrastructure and the artifact store."""

    def __init__(self, store: Store, infrastructure: Infrastructure, artifacts: ArtifactStore) -> None:
        self._store = store
        self._infrastructure = infrastructure
        self._artifacts = artifacts

    def all(self) -> Sequence[Callable[..., Any]]:
        """Return the activities that a worker registers."""
        return (self.time_replicas,)

    @activity.defn(name="time_replicas", no_thread_cancel_exception=True)
    @of_a_wave
    @of_a_step
    def time_replicas(self, wave: WaveInput) -> WaveResult:
        """Make one more round of the comparison, or judge it and add the results to the generation's report.

        If `again_seconds` is above 0, the workflow calls again with the `rounds` of the result; without `ok`, replicas
        are not ready just now, and it pauses before. Raises RegionUnreachable if the replicas of a region can't be
        seen.
        """
        began = time.monotonic()
        with self._store.read() as repository:
            case = _read_case(repository, wave)
        if case is None:
            return WaveResult(ok=True)
        results = tuple(_judge_stored(wave.model, case))
        if results:
            return self._end(wave, case, results)
        found = self._read_readiness(wave, case)
        rounds, unfit = wave.rounds, []
        for part in case.parts:
            own = part.rounds_of(rounds)
            pair = found[part].pair
            if not part.has_changed or pair is None or len(own) == ROUNDS:
                continue
            try:
                rounds += self._make_round(wave, case, part, pair, len(own))
            except UnfitReplay as error:
                unfit.append(_result(part.name, CheckOutcome.REFUSED, f"the limits can't be judged: {error}"))
        if unfit:
            return self._end(wave, case, unfit)
        return self._continue(wave, case, found, rounds, time.monotonic() - began)

    def _continue(
        self,
        wave: WaveInput,
        case: _Case,
        found: Mapping[TimedPart, PartReadiness],
        rounds: tuple[JudgedRound, ...],
        seconds: float,
    ) -> WaveResult:
        """Ask for a further call, at once or after a pause; judge all parts if none gets a further round.

        Replicas that are not ready are waited for as long as the wave's deadline allows, in all rounds together. An
        override ends the wait.
        """
        lacking = [part for part in case.parts if part.has_changed and len(part.rounds_of(rounds)) < ROUNDS]
        waited = wave.waited_before + wave.waited_seconds
        if lacking and rounds != wave.rounds:
            return WaveResult(ok=True, again_seconds=AGAIN_SECONDS, waited_seconds=waited, rounds=rounds)
        waits = any(found[part].may_be_timed for part in lacking)
        if waits and waited < wave.deadline_seconds and case.override is None:
            return WaveResult(ok=False, again_seconds=AGAIN_SECONDS, waited_seconds=seconds)
        return self._end(wave, case, [_judge_part(case, part, found[part], rounds, waited) for part in case.parts])

    def _read_readiness(self, wave: WaveInput, case: _Case) -> Mapping[TimedPart, PartReadiness]:
        states, silent = observe(self._infrastructure, case.regions, [wave.model])
        found = {
            part: read_readiness(states.values(), part, wave.generation, case.former, wanted=case.wanted)
            for part in case.parts
        }
        if silent and any(each.pair is None for each in found.values()):
            msg = f"region {silent[0]!r} can't be reached, so its replicas can't be timed"
            raise RegionUnreachable(msg)
        return found

    def _make_round(
        self, wave: WaveInput, case: _Case, part: TimedPart, pair: ReplicaPair, number: int
    ) -> tuple[JudgedRound, ...]:
        """Return a round; none if a replica has ended, or the serving one restarted, so that it says nothing."""
        limits = case.limits
        new, serving = pair.new[number % len(pair.new)], pair.serving[number % len(pair.serving)]
        asked = TimingRound(
            model=wave.model,
            part=part.name,
            new=TimedReplica(id=new.id, generation=wave.generation),
            serving=TimedReplica(id=serving.id, generation=case.former or 0),
            bodies=self._read_bodies(part, limits.rows),
            requests=limits.requests // ROUNDS,
            concurrency=limits.concurrency,
            seconds=limits.seconds / ROUNDS / len(case.parts),
        )
        began = time.monotonic()
        try:
            times = self._infrastructure.time_replicas(pair.region, asked)
        except NotFound:
            return ()
        judged = JudgedRound(
            part=part.name,
            region=pair.region,
            hardware=pair.hardware,
            new=read_figures(times.new, limits.concurrency),
            serving=read_figures(times.serving, limits.concurrency),
            seconds=round(time.monotonic() - began, 6),
        )
        if new.id != serving.id and (judged.serving.failed or not judged.serving.p50):
            states, _ = observe(self._infrastructure, [pair.region], [wave.model])
            if not is_as_before(states.values(), serving, case.former or 0):
                return ()
        return (judged,)

    def _read_bodies(self, part: TimedPart, rows: int) -> tuple[str, ...]:
        bearer = part.replay or part.new
        file = next((file for file in bearer.manifest.files if file.path == REPLAY_FILE), None)
        if file is None:
            msg = f"snapshot {part.new.number} has no {REPLAY_FILE}"
            raise UnfitReplay(msg)
        with self._artifacts.open_blob(file.sha256) as stream:
            return read_requests(stream, file.size_bytes, part.new.manifest.signature, rows=rows)

    def _end(self, wave: WaveInput, case: _Case, results: Iterable[CheckResult]) -> WaveResult:
        """Add the results to the report. A refusal fails the wave, unless an operator lets the change pass."""
        judged = tuple(_override(case.override, result) for result in results)
        refused = next((result for result in judged if not result.passed), None)
        with self._store.begin(wave.model) as repository:
            still_ours(repository)
            repository.save_report(_add_results(repository, wave, judged))
            if refused is not None:
                message = f"{LIVE_LATENCY}: {refused.subject}: {refused.message}"
                place = Place(part=refused.subject, step=GATE)
                cause = Cause(change=case.change, reason=refused.reason, message=message, place=place)
                told = f"generation {wave.generation}, wave {wave.index + 1}: {message}"
                repository.add_event(wave.model, refused.reason.value, told, detail=cause.detail)
            for result in judged:
                if result.outcome is CheckOutcome.NOT_JUDGED:
                    told = f"generation {wave.generation}: {LIVE_LATENCY}: {result.subject}: {result.message}"
                    repository.add_event(wave.model, NOT_JUDGED_EVENT, told, detail={"evidence": dict(result.evidence)})
        if refused is None:
            return WaveResult(ok=True, message="; ".join(f"{one.subject}: {one.message}" for one in judged))
        return WaveResult(ok=False, reason=refused.reason, message=message, place=Place(part=refused.subject))


def _read_case(repository: Repository, wave: WaveInput) -> _Case | None:
    """Return what is compared; None if the manifest in force no longer asks for it."""
    reaching = WaveContext.read(repository, wave, "scaled_up")
    record = repository.model(wave.model)
    spec = record.in_force.spec
    limits = spec.validation.live_latency
    if limits is None:
        return None
    former = record.serving_generation if record.serving_generation != wave.generation else None
    generation = repository.generation(wave.model, wave.generation)
    hosted = [part for part in spec.hosted_parts if part.engine == ENGINE]
    named = [part for part in hosted if part.name in generation.optimized and limits.part in {None, part.name}]
    serving = None if former is None else repository.generation(wave.model, former)
    parts = read_timed_parts(repository, generation, serving, named)
    if limits.part is None and any(part.replay for part in parts):
        parts = tuple(part for part in parts if part.replay is not None)
    return _Case(
        limits=limits,
        former=former,
        is_split=generation.layout is not None,
        parts=parts,
        regions=frozenset(region for _, region, _ in reaching.state.slots) - reaching.facts.lost,
        wanted=_held_by_both(reaching.state.outside(reaching.facts.lost), wave.generation, former),
        change=reaching.record.change_id,
        override=repository.check_overrides(reaching.record.change_id).get(LIVE_LATENCY),
    )


def _judge_stored(model: str, case: _Case) -> Iterator[CheckResult]:
    """Yield the results of a comparison that needs no replica: there is nothing to compare, or nothing to send."""
    if case.former is None:
        yield _result(model, CheckOutcome.SKIPPED, "no other generation serves: there is nothing to compare with")
    elif case.is_split:
        yield _result(model, CheckOutcome.SKIPPED, "the model is split: a replay set has no requests of its pieces")
    elif not case.parts:
        told = f"{case.limits.part or 'no part'!r} is a part of engine {ENGINE}: nothing can be timed"
        yield _result(case.limits.part or model, CheckOutcome.REFUSED, told)
    elif not any(part.has_changed for part in case.parts):
        for part in case.parts:
            yield _unchanged(part)


def _held_by_both(state: ModelWaveState, generation: int, former: int | None) -> frozenset[Slot]:
    """Return the replica sets that hold replicas of both generations in this state."""
    return frozenset(
        slot for slot in state.slots if state.counts.get((slot, generation)) and state.counts.get((slot, former or 0))
    )


def _judge_part(
    case: _Case, part: TimedPart, readiness: PartReadiness, rounds: Iterable[JudgedRound], waited: float
) -> CheckResult:
    own = part.rounds_of(rounds)
    if not part.has_changed:
        return _unchanged(part)
    if not own and not readiness.may_be_timed:
        told = f"no region has replicas of this generation and of generation {case.former} on one hardware kind"
        told += part.on
        return _result(part.name, CheckOutcome.SKIPPED, told)
    if len(own) < ROUNDS and count_answered(own) < FEWEST_ROUNDS:
        return _unready(case, part, readiness, own, waited)
    verdict = judge_live(case.limits, own)
    against = f"on {own[0].hardware} in {own[0].region} against generation {case.former}: {verdict.message}"
    return _with_evidence(case, _result(part.name, CheckOutcome(verdict.outcome), against), verdict.evidence, own)


def _unready(
    case: _Case, part: TimedPart, readiness: PartReadiness, own: Sequence[JudgedRound], waited: float
) -> CheckResult:
    """Return the result of a part whose replicas were not ready for too long.

    Those of the new generation have to be: traffic would move to them. Those of the serving one may be broken, and the
    reason for the change.
    """
    outcome = CheckOutcome.REFUSED if readiness.lacks_new else CheckOutcome.NOT_JUDGED
    made = f"; {len(own)} of {ROUNDS} rounds were made" if own else ""
    told = f"the limits can't be judged: {readiness.text}{part.on}, after {waited:.0f} s{made}"
    evidence = {
        "waitedSeconds": round(waited, 3),
        "ready": readiness.evidence,
        "rounds": [each.model_dump(mode="json") for each in own],
    }
    return _with_evidence(case, _result(part.name, outcome, told), evidence, own)


def _with_evidence(
    case: _Case, result: CheckResult, evidence: Mapping[str, Any], own: Iterable[JudgedRound]
) -> CheckResult:
    limits = case.limits.model_dump(mode="json", by_alias=True)
    took = round(sum(each.seconds for each in own), 6)
    return result.model_copy(update={"evidence": {**evidence, "limits": limits}, "duration_seconds": took})


def _unchanged(part: TimedPart) -> CheckResult:
    same = "no snapshot of it serves" if part.serving is None else "the snapshot serves already"
    return _result(part.name, CheckOutcome.SKIPPED, f"{same}{part.on}: there is nothing to compare with")


def _result(subject: str, outcome: CheckOutcome, message: str) -> CheckResult:
    reason = _REASONS.get(outcome, Reason.SUCCEEDED)
    return CheckResult(check=LIVE_LATENCY, subject=subject, outcome=outcome, reason=reason, message=message)


def _override(given: CheckOverride | None, result: CheckResult) -> CheckResult:
    if given is None or (result.passed and result.outcome is not CheckOutcome.NOT_JUDGED):
        return result
    message = f"overridden by {given.who}: {given.reason}; {result.message}"
    return result.model_copy(update={"outcome": CheckOutcome.OVERRIDDEN, "message": message})


def _add_results(repository: Repository, wave: WaveInput, results: Iterable[CheckResult]) -> ValidationReport:
    """Return the generation's report with these results in the place of the check's earlier ones."""
    report = repository.report(wave.model, wave.generation)
    others = [] if report is None else [each for each in report.checks if each.check != LIVE_LATENCY]
    return ValidationReport(model=wave.model, generation=wave.generation, checks=(*others, *results))
