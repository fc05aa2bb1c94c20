"""Validators that run programs of snapshots, in a confined process: figures on a replay set, and golden requests."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeVar

from activities.runtime.scratch import scratch_directory
from activities.validation.check_process import CheckFiles, CheckTooLong, CheckUnfit
from activities.validation.validator import Candidate, fail_check, pass_check, skip_check
from ipnext.model.lifecycle.checks import CheckResult
from ipnext.model.lifecycle.status import Reason
from ipnext.model.manifest.replay import ReplaySpec
from ipnext.model.registry.checking import GOLDEN_FILE, GoldenReport, RegressionReport
from ipnext.model.registry.optimization import REPLAY_FILE
from ipnext.model.registry.registry import Snapshot
from ipnext.model.value import Value

REPLAY: Final = "replay"
GOLDEN: Final = "golden"
ENGINE: Final = "torch"

R = TypeVar("R", bound=Value)


def check_replay(candidate: Candidate) -> Iterator[CheckResult]:
    """Compare the figures of each part with those of the serving snapshot, on the new snapshot's replay set.

    One result for each part; the limits are `spec.validation.replay`.
    """
    limits, name = candidate.manifest.spec.validation.replay, candidate.manifest.name
    if limits is None:
        yield skip_check(REPLAY, name, "the manifest has no spec.validation.replay")
    elif candidate.serving is None:
        yield skip_check(REPLAY, name, "no other generation serves: there is nothing to compare with")
    else:
        yield from _check_parts(candidate, limits, candidate.serving)


def replay_inputs(candidate: Candidate) -> Any:
    """Return all that the results of `check_replay` depend on; None if nothing is compared, or the machine decides."""
    limits = candidate.manifest.spec.validation.replay
    if not compares(candidate) or limits is None or limits.max_latency_ratio is not None:
        return None
    serving = {part: snapshot.digest for part, snapshot in (candidate.serving or {}).items()}
    digests = {part: (snapshot.digest, serving.get(part)) for part, snapshot in candidate.snapshots.items()}
    return {"limits": limits.model_dump(mode="json", by_alias=True), "parts": digests, "torch": version("torch")}


def check_golden(candidate: Candidate) -> Iterator[CheckResult]:
    """Run the golden requests that snapshots bring: each output is as expected, within its tolerances."""
    found = {part: _bearer(candidate, snapshot, GOLDEN_FILE) for part, snapshot in _programs(candidate).items()}
    if not any(found.values()):
        yield skip_check(GOLDEN, candidate.manifest.name, f"no snapshot has {GOLDEN_FILE}")
    for part, bearer in sorted(found.items()):
        if bearer is not None:
            yield _check_golden(candidate, part, bearer)


def golden_inputs(candidate: Candidate) -> Any:
    """Return all that the results of `check_golden` depend on; None if there are no golden requests."""
    programs = _programs(candidate)
    if not any(_bearer(candidate, snapshot, GOLDEN_FILE) for snapshot in programs.values()):
        return None
    return {"parts": {part: snapshot.digest for part, snapshot in programs.items()}, "torch": version("torch")}


def runs_programs(candidate: Candidate) -> bool:
    """Return whether one of these checks starts a process."""
    return compares(candidate) or golden_inputs(candidate) is not None


def compares(candidate: Candidate) -> bool:
    """Return whether the manifest limits figures, and another generation serves."""
    return candidate.manifest.spec.validation.replay is not None and candidate.serving is not None


def _check_parts(candidate: Candidate, limits: ReplaySpec, serving: Mapping[str, Snapshot]) -> Iterator[CheckResult]:
    parts = {part: each for part, each in _programs(candidate).items() if limits.part in {None, part}}
    bearers = {part: _bearer(candidate, snapshot, REPLAY_FILE) for part, snapshot in parts.items()}
    if limits.part is None and any(bearers.values()):
        parts = {part: snapshot for part, snapshot in parts.items() if bearers[part] is not None}
    if not parts:
        message = f"{limits.part or 'no part'!r} is a part of engine {ENGINE}: nothing can be replayed"
        yield fail_check(REPLAY, limits.part or candidate.manifest.name, Reason.METRICS_REGRESSED, message)
    for part, snapshot in sorted(parts.items()):
        bearer, before = bearers[part], serving.get(part)
        if before is None or before.digest == snapshot.digest:
            same = "no snapshot of it serves" if before is None else "the snapshot serves already"
            yield skip_check(REPLAY, part, f"{same}: there is nothing to compare with")
        elif bearer is None:
            message = f"the limits can't be judged: snapshot {snapshot.number} has no {REPLAY_FILE}"
            yield fail_check(REPLAY, part, Reason.METRICS_REGRESSED, message)
        else:
            yield _compare(candidate, limits, (before, snapshot), bearer)


def _compare(
    candidate: Candidate, limits: ReplaySpec, snapshots: tuple[Snapshot, Snapshot], bearer: Snapshot
) -> CheckResult:
    before, after = snapshots
    part, against = after.part, f"snapshot {after.number} against {before.number}, which serves"
    with _fetched(candidate, *snapshots) as (files, (old, new)):
        replay = Path(new[candidate.chain(after).index(bearer)]) / REPLAY_FILE
        job = {
            "after": new,
            "before": old,
            "replay": str(replay),
            "limits": limits.model_dump(mode="json", by_alias=True),
        }
        found = _examine(candidate, REPLAY, part, job, files, RegressionReport)
    if isinstance(found, CheckResult):
        return found
    evidence = found.model_dump(mode="json") | {"limits": job["limits"], "serving": before.digest}
    if found.broken:
        message = f"{against}: {'; '.join(found.broken)}"
        return fail_check(REPLAY, part, Reason.METRICS_REGRESSED, message, evidence=evidence)
    return pass_check(REPLAY, part, f"{against}: {found.summary}", evidence=evidence)


def _check_golden(candidate: Candidate, part: str, bearer: Snapshot) -> CheckResult:
    snapshot = candidate.snapshots[part]
    with _fetched(candidate, snapshot) as (files, (new,)):
        golden = Path(new[candidate.chain(snapshot).index(bearer)]) / GOLDEN_FILE
        job = {"after": new, "golden": str(golden)}
        found = _examine(candidate, GOLDEN, part, job, files, GoldenReport)
    if isinstance(found, CheckResult):
        return found
    evidence = found.model_dump(mode="json")
    if found.mismatches:
        more = f"; {found.mismatches} mismatches in all" if found.mismatches > 1 else ""
        return fail_check(GOLDEN, part, Reason.GOLDEN_MISMATCH, found.shown[0] + more, evidence=evidence)
    message = f"{found.requests} requests, {found.values} values, largest error {found.largest_error:.3g}"
    return pass_check(GOLDEN, part, message, evidence=evidence)


def _examine(
    candidate: Candidate, check: str, part: str, job: Mapping[str, Any], files: CheckFiles, report: type[R]
) -> R | CheckResult:
    """Return the report of a job, or a refusal if it does not fit or takes too long."""
    try:
        found: R = candidate.examine(job, files, report, lambda text: candidate.beat(f"{check} of {part}: {text}"))
    except CheckUnfit as error:
        return fail_check(check, part, Reason.SCHEMA_MISMATCH, str(error))
    except CheckTooLong as error:
        return fail_check(check, part, Reason.DEADLINE_EXCEEDED, str(error))
    return found


def _programs(candidate: Candidate) -> Mapping[str, Snapshot]:
    """Map each part that hosts run the program of to its snapshot."""
    hosted = {part.name for part in candidate.manifest.spec.hosted_parts if part.engine == ENGINE}
    return {part: snapshot for part, snapshot in candidate.snapshots.items() if part in hosted}


def _bearer(candidate: Candidate, snapshot: Snapshot, file: str) -> Snapshot | None:
    """Return the snapshot that brings a file: itself, else the newest one that it is a delta of."""
    chain = candidate.chain(snapshot)
    return next((each for each in reversed(chain) if any(f.path == file for f in each.manifest.files)), None)


@contextmanager
def _fetched(candidate: Candidate, *snapshots: Snapshot) -> Iterator[tuple[CheckFiles, Sequence[Sequence[str]]]]:
    """Fetch snapshots with those that they are deltas of; yield their directories, each as `Candidate.chain`."""
    with scratch_directory("check") as scratch:
        chains: list[list[str]] = []
        for snapshot in snapshots:
            chains.append([])
            for each in candidate.chain(snapshot):
                candidate.beat(f"fetching snapshot {each.number} of {each.part}")
                chains[-1].append(str(candidate.artifacts.fetch(each.uri, scratch / "snapshots")))
        yield CheckFiles([scratch / "snapshots"], scratch), chains
