"""Runs the validators of a generation: the safety-critical ones in order, then all others side by side.

Called by the validation activities. Results of the same inputs are read from a `ResultCache`.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from threading import Event
from typing import Any, Final, Protocol, TypeVar

from temporalio.exceptions import CancelledError, TemporalError

from activities.validation.validator import Candidate, Validator, fail_check, pass_check, skip_check
from ipnext import __version__
from ipnext.errors import IPnextError
from ipnext.model.lifecycle.checks import BUILT_IN, SAFETY_CRITICAL, CheckOutcome, CheckResult
from ipnext.model.lifecycle.status import Reason
from ipnext.model.value import digest_of

AT_ONCE: Final = 4
"""Checks of one validation that run at the same time."""
MOST_RESULTS: Final = 500
"""Of one check in a report."""
MOST_CHECKS: Final = 100
"""Names of checks in the results of one validator. Results of further ones are counted together."""
MOST_REFUSALS: Final = 500
"""Of one check: then it is stopped."""
LONGEST_TEXT: Final = 2000
"""Of a subject or message in a report."""
LARGEST_EVIDENCE_BYTES: Final = 16 << 10
"""Of one result, as JSON."""

T = TypeVar("T")
_END: Final[Any] = object()


class ValidatorError(Exception):
    """Fault inside a validator, which implies nothing about the candidate."""


class ResultCache(Protocol):
    """Results of earlier runs, by the digest of all that they depend on."""

    def find(self, key: str) -> Sequence[CheckResult] | None:
        """Return the results of a key; None if there are none."""

    def keep(self, check: str, key: str, results: Sequence[CheckResult]) -> None:
        """Keep the results of a run that has finished."""


class NoCache:
    """Computes every result."""

    def find(self, key: str) -> Sequence[CheckResult] | None:  # noqa: ARG002 - the protocol's form
        """Return None."""
        return None

    def keep(self, check: str, key: str, results: Sequence[CheckResult]) -> None:
        """Keep nothing."""


def run_validators(
    candidate: Candidate, validators: Sequence[Validator], cache: ResultCache | None = None
) -> Iterator[CheckResult]:
    """Yield the results of all validators.

    SAFETY_CRITICAL ones run first, in their order, and the first that refuses ends the run: no file is parsed before
    it was read and found safe. The others do not depend on each other: they run side by side, each to its end, and
    their results come in the order of the validators.

    Raises ValidatorError after the results if a validator had a fault and none refused.
    """
    fault = _find_skip_fault(candidate, validators)
    if fault is not None:
        yield fault
        return
    run = _Run(candidate, cache or NoCache())
    for validator in (each for each in validators if each.name in SAFETY_CRITICAL):
        yield from run.results(validator)
        if run.has_refused or run.faults:
            break
    else:
        yield from run.together([each for each in validators if each.name not in SAFETY_CRITICAL])
    if run.faults and not run.has_refused:
        raise run.faults[0]


def collect_results(results: Iterable[CheckResult]) -> tuple[tuple[CheckResult, ...], ValidatorError | None]:
    """Return the results of a run, and the fault that ended it, if any."""
    found: list[CheckResult] = []
    try:
        for result in results:
            found.append(result)  # noqa: PERF402 - those before an error stay
    except ValidatorError as error:
        return tuple(found), error
    return tuple(found), None


def abridge_results(results: Iterable[CheckResult]) -> Iterator[CheckResult]:
    """Bound the size of a validator's results.

    For each check the first MOST_RESULTS results, all up to the first refusal, and a count of the rest. Results of the
    rest are not kept while further ones are made.
    """
    kept, left_out = Counter[str](), Counter[str]()
    has_refused = False
    for result in results:
        is_beyond = kept[result.check] >= MOST_RESULTS if result.check in kept else len(kept) >= MOST_CHECKS
        if is_beyond and (result.passed or has_refused):
            left_out[result.check if result.check in kept else "others"] += 1
            continue
        kept[result.check] += 1
        short = {"subject": result.subject[:LONGEST_TEXT], "message": result.message[:LONGEST_TEXT]}
        yield result.model_copy(update=short)
        has_refused = has_refused or not result.passed
    for check, count in left_out.items():
        yield pass_check(check, "more", f"{count} more results are left out")


class _Run:
    """One run over a candidate: notes refusals and faults while results are yielded."""

    def __init__(self, candidate: Candidate, cache: ResultCache) -> None:
        self._candidate = candidate
        self._cache = cache
        self._stopped = Event()
        self.has_refused = False
        self.faults: list[ValidatorError] = []

    def together(self, validators: Sequence[Validator]) -> Iterator[CheckResult]:
        """Run validators side by side, at most AT_ONCE at a time; a single one in this thread."""
        if len(validators) < 2:
            for validator in validators:
                yield from self.results(validator)
            return
        with ThreadPoolExecutor(min(AT_ONCE, len(validators)), thread_name_prefix="check") as threads:
            tasks = [self._begin(threads, validator) for validator in validators]
            try:
                wait(tasks, return_when=FIRST_EXCEPTION)
            finally:
                self._stopped.set()  # nothing runs any more, or another check has raised an error
        _raise_first(tasks)
        for task in tasks:
            yield from task.result()

    def _begin(self, threads: ThreadPoolExecutor, validator: Validator) -> "Future[tuple[CheckResult, ...]]":
        """Start a validator in a thread that knows the activity: it sends heartbeats."""
        own = copy_context()
        return threads.submit(own.run, lambda: tuple(self.results(validator)))

    def results(self, validator: Validator) -> Iterator[CheckResult]:
        """Yield the results of one validator, abridged; a fault of it is its last result."""
        return abridge_results(self._all_results(validator))

    def _all_results(self, validator: Validator) -> Iterator[CheckResult]:
        skipped = self._candidate.manifest.spec.validation.skip.get(validator.name)
        if skipped is not None:
            yield skip_check(validator.name, self._candidate.manifest.name, f"skipped: {skipped}")
            return
        refusals = 0
        self._beat(f"beginning the check {validator.name}")
        try:
            for result in self._known_or_made(validator):
                judged = self._override(validator, result)
                yield judged
                refusals += judged.outcome is CheckOutcome.REFUSED
                self.has_refused = self.has_refused or bool(refusals)
                if refusals == MOST_REFUSALS:
                    return
        except ValidatorError as error:
            yield self._note_fault(validator, error)

    def _known_or_made(self, validator: Validator) -> Iterator[CheckResult]:
        key = _cache_key(validator, self._candidate)
        found = None if key is None else self._cache.find(key)
        if found is not None:
            yield from (result.model_copy(update={"cached": True}) for result in found)
            return
        made: list[CheckResult] = []
        for result in run_validator(validator, replace(self._candidate, beat=self._beat)):
            if key is not None:
                made.append(result)
            yield result
        if key is not None and len(made) <= MOST_RESULTS and not any(map(_is_by_chance, made)):
            self._cache.keep(validator.name, key, made)

    def _beat(self, what: str) -> None:
        if self._stopped.is_set():
            msg = "another check of the validation has ended it"
            raise _Stopped(msg)
        self._candidate.beat(what)

    def _override(self, validator: Validator, result: CheckResult) -> CheckResult:
        given = self._candidate.overrides.get(validator.name)
        if given is None or result.passed or validator.name in SAFETY_CRITICAL:
            return result
        message = f"overridden by {given.who}: {given.reason}; {result.message}"
        return result.model_copy(update={"outcome": CheckOutcome.OVERRIDDEN, "message": message})

    def _note_fault(self, validator: Validator, error: ValidatorError) -> CheckResult:
        failed = CheckResult(
            check=validator.name,
            subject=self._candidate.manifest.name,
            outcome=CheckOutcome.FAILED,
            reason=Reason.INTERNAL_ERROR,
            message=str(error),
            source=source_of(validator),
        )
        judged = self._override(validator, failed)
        if judged.outcome is CheckOutcome.FAILED:
            self.faults.append(error)
        return judged


class _Stopped(CancelledError):
    """A check was ended because another one raised an error."""


def _raise_first(tasks: Sequence["Future[Any]"]) -> None:
    """Raise the error that ended a run, if any: not that of a check that was stopped for it."""
    errors = [error for task in tasks if (error := task.exception()) is not None]
    own = [error for error in errors if not isinstance(error, _Stopped)]
    if errors:
        raise (own or errors)[0]


def _is_by_chance(result: CheckResult) -> bool:
    """Return whether the machine decided, too."""
    return result.reason is Reason.DEADLINE_EXCEEDED


def _find_skip_fault(candidate: Candidate, validators: Sequence[Validator]) -> CheckResult | None:
    known = {validator.name: validator for validator in validators}
    for name, reason in sorted(candidate.manifest.spec.validation.skip.items()):
        if name not in known or known[name].required:
            allowed = ", ".join(sorted(v.name for v in validators if not v.required))
            message = f"{name!r} can't be skipped ({reason}); allowed: {allowed}"
            return fail_check("skip", name, Reason.SCHEMA_MISMATCH, message)
    return None


def source_of(validator: Validator) -> str:
    """Return the distribution of a plug-in; BUILT_IN for those of IPnext."""
    source: str = getattr(validator, "source", BUILT_IN)
    return source


def _cache_key(validator: Validator, candidate: Candidate) -> str | None:
    """Return the digest of all that results depend on; None if the validator runs each time."""
    inputs = getattr(validator, "inputs", None)
    if inputs is None or validator.name in SAFETY_CRITICAL:
        return None
    found = _own_faults(validator, lambda: inputs(candidate))
    if found is None:
        return None
    of = {"check": validator.name, "source": source_of(validator), "ipnext": __version__, "inputs": found}
    return _own_faults(validator, lambda: digest_of({**of, "version": getattr(validator, "version", 1)}))


def run_validator(validator: Validator, candidate: Candidate) -> Iterator[CheckResult]:
    """Run a validator: one result at a time, with a heartbeat for each, since it may yield any number of them.

    Its own faults are raised with its name, because most validators are third-party code.
    """
    source = source_of(validator)
    began = time.monotonic()
    results = _own_faults(validator, lambda: iter(validator.check(candidate)))
    while (result := _own_faults(validator, lambda: next(results, _END))) is not _END:
        if not isinstance(result, CheckResult):
            msg = (
                f"validator {validator.name!r} gave {result!r}; allowed: results of "
                "`activities.validation.validator.pass_check`, `fail_check` and `skip_check`"
            )
            raise ValidatorError(msg)
        candidate.beat(f"running the check {validator.name}")
        now = time.monotonic()
        evidence = _own_faults(validator, partial(_bound, result.evidence))
        yield result.model_copy(
            update={
                "check": validator.name,
                "evidence": evidence,
                "duration_seconds": round(now - began, 6),
                "cached": False,
                "source": source,
            }
        )
        began = time.monotonic()


def _bound(evidence: Any) -> Any:
    """Return evidence that is JSON and of a bounded size. Raises TypeError or ValueError."""
    size = len(json.dumps(evidence, allow_nan=False)) if evidence else 0
    if size > LARGEST_EVIDENCE_BYTES:
        return {"left_out": f"{size} bytes of evidence; kept: {LARGEST_EVIDENCE_BYTES}"}
    return evidence


def _own_faults(validator: Validator, step: Callable[[], T]) -> T:
    """Run a step of a validator; its own faults are raised as ValidatorError."""
    try:
        return step()
    except (IPnextError, OSError, TemporalError, CancelledError):
        raise
    except (Exception, SystemExit) as error:
        msg = f"validator {validator.name!r} ended with {type(error).__name__}: {error}"
        raise ValidatorError(msg) from error
