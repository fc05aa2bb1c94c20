"""Validation of a generation: the built-in checks, then the plug-in validators of a platform engineer.

The report is kept.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, TypeVar

from temporalio import activity
from temporalio.exceptions import CancelledError, TemporalError

from activities.runtime.deadline import beat, throttle
from activities.runtime.failed_attempts import of_a_step
from activities.runtime.owner_turns import OwnerShares
from activities.state.facts import ancestors
from activities.validation.adapters import ADAPTER, ADAPTER_BASE, check_adapter_bases, check_adapters
from activities.validation.checkpoints import CHECKPOINT, check_checkpoints
from activities.validation.deltas import DELTAS, check_deltas
from activities.validation.denials import DENIED, check_denials
from activities.validation.files import DIGESTS, FORMATS, PATHS, check_digests, check_formats, check_forms, check_paths
from activities.validation.finite_weights import FINITE, check_finite, check_headers
from activities.validation.parsing import ParsingThread
from activities.validation.programs import PROGRAM, check_programs
from activities.validation.schema import EDGES, ENGINES, INTERFACE, check_edges, check_engines, check_interface
from activities.validation.signing import SIGNATURE, check_signatures
from activities.validation.template_verdicts import TemplateVerdicts
from activities.validation.validator import Candidate, FunctionValidator, Validator, fail_check, pass_check
from ipnext.artifacts.native_code import read_native_signers
from ipnext.artifacts.port import ArtifactStore
from ipnext.errors import InvalidInput, IPnextError, Unavailable
from ipnext.model.lifecycle.messages import CheckResult, StageInput, ValidationReport
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.registry.denials import Denial
from ipnext.model.registry.registry import Generation, GenerationState, PartGraph, Snapshot, single_part_graph
from ipnext.model.registry.signing import SignerPolicy
from ipnext.store.repository import Repository
from ipnext.store.store import Store
from serving.confinement.landlock import Confinement

BUILT_IN: Sequence[Validator] = (
    FunctionValidator(PATHS, check_paths, required=True),
    FunctionValidator(DENIED, check_denials, required=True),
    FunctionValidator(FORMATS, check_formats, required=True),
    FunctionValidator(DIGESTS, check_digests, required=True),
    FunctionValidator(PROGRAM, check_programs, required=True),
    FunctionValidator(SIGNATURE, check_signatures, required=True),
    FunctionValidator(ENGINES, check_engines, required=True),
    FunctionValidator(DELTAS, check_deltas, required=True),
    FunctionValidator(CHECKPOINT, check_checkpoints, required=True),
    FunctionValidator(ADAPTER, check_adapters, required=True),
    FunctionValidator(ADAPTER_BASE, check_adapter_bases),
    FunctionValidator(EDGES, check_edges),
    FunctionValidator(FINITE, check_finite),
    FunctionValidator(INTERFACE, check_interface),
)
"""In this order (as `ipnext.model.api.plugins.BUILT_IN_VALIDATORS` lists it). The first refusal ends the report, so
that no file is parsed before it was read and found safe.
"""


EARLY: Sequence[Validator] = (
    FunctionValidator(PATHS, check_paths, required=True),
    FunctionValidator(DENIED, check_denials, required=True),
    FunctionValidator(FORMATS, check_forms, required=True),
    FunctionValidator(SIGNATURE, check_signatures, required=True),
    FunctionValidator(ENGINES, check_engines, required=True),
    FunctionValidator(FINITE, check_headers),
    FunctionValidator(EDGES, check_edges),
    FunctionValidator(INTERFACE, check_interface),
)
"""Checks that run before regions fetch a generation: by its manifests, its signatures and the headers of its
weights."""

MOST_RESULTS = 500
"""Of one check in a report."""
MOST_CHECKS = 100
"""Names of checks in a report: a validator gives its results any. Results of further ones are counted together."""
MOST_REFUSALS = 500
"""Of one check: then it is stopped."""
LONGEST_TEXT = 2000
"""Of a subject or message in a report."""


T = TypeVar("T")
_END: Final[Any] = object()


class ValidatorError(Exception):
    """Fault inside a validator, which implies nothing about the candidate."""


class ValidationActivities:
    """Validation activities, on the store and the artifact store. `validators` run after the built-in ones.

    `native_library_keys_file` has the keys of signers whose native code the operator lets run (see `check_formats`).
    `confinement`: of the processes that render chat templates and parse large documents. `shares`: of the slots that
    owners' validations hold.
    """

    def __init__(
        self,
        store: Store,
        artifacts: ArtifactStore,
        *,
        validators: Sequence[Validator] = (),
        native_library_keys_file: Path | None = None,
        confinement: Confinement = Confinement.AVAILABLE,
        shares: OwnerShares | None = None,
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._native_library_keys_file = native_library_keys_file
        self._shares = shares or OwnerShares()
        self._confinement = confinement
        self._templates = TemplateVerdicts(confinement=confinement)
        self._validators = (*BUILT_IN, *validators)
        self._parsing = ParsingThread()

    @property
    def has_plugins(self) -> bool:
        """True if plug-in validators are registered: they may take any time."""
        return len(self._validators) > len(BUILT_IN)

    def all(self) -> Sequence[Callable[..., Any]]:
        """Return the activities that a worker registers."""
        return (self.validate_generation,)

    @activity.defn(name="validate_generation", no_thread_cancel_exception=True)
    @of_a_step
    def validate_generation(self, stage: StageInput) -> ValidationReport:
        """Run every check on a generation and keep the report. The first refusal is the reason of the condition.

        Raises ShareTaken if other validations of the owner hold its share of the slots.
        """
        with ExitStack() as slot:
            with self._store.read() as repository:
                record = repository.model(stage.model)
                slot.enter_context(self._shares.hold(record.manifest.metadata.owner))
                candidate = self._candidate(repository, stage)
            checks = abridge_results(run_validators(candidate, self._validators))
        report = ValidationReport(model=stage.model, generation=stage.generation, checks=checks)
        with self._store.begin(stage.model) as repository:
            repository.save_report(report)
            if report.refusal is None:
                repository.accept_revision(stage.model, record.generation, record.manifest.spec)
            else:
                repository.refuse_revision(stage.model, record.generation)
            _write_outcome(repository, stage, report)
        return report

    def is_fit_to_fetch(self, stage: StageInput) -> bool:
        """Check whether a generation passes the checks that read no whole file: EARLY.

        Nothing is recorded; the validation reports causes.

        False, too, if that cannot be determined now.
        """
        try:
            with self._store.read() as repository:
                candidate = self._candidate(repository, stage)
            skip = candidate.manifest.spec.validation.skip
            asked = (validator for validator in EARLY if validator.required or validator.name not in skip)
            with self._shares.hold(candidate.manifest.metadata.owner):
                return all(result.passed for validator in asked for result in _results(validator, candidate))
        except (IPnextError, OSError, ValidatorError):
            return False

    def _candidate(self, repository: Repository, stage: StageInput) -> Candidate:
        say = throttle(beat)
        record = repository.model(stage.model)
        owner = record.manifest.metadata.owner
        serving = record.serving_generation
        shown = [s for t in repository.routes(stage.model) for s in t.served if s.generation == serving]
        other = None if serving in {None, stage.generation} else repository.generation(stage.model, serving or 0)
        snapshots = _snapshots(repository, repository.generation(stage.model, stage.generation))
        return Candidate(
            manifest=record.manifest,
            snapshots=snapshots,
            serving=_snapshots(repository, other) if other else None,
            serving_graph=_interface_graph(repository, other, shown[0].graph if shown else None),
            denials=_find_denials(repository, snapshots),
            artifacts=self._artifacts,
            beat=say,
            parse=self._parsing.of(say, owner=owner),
            native_signers=_native_signers(self._native_library_keys_file),
            published=ancestors(repository, snapshots.values()),
            find_template_fault=self._templates.of(owner),
            confinement=self._confinement,
        )


def _find_denials(repository: Repository, snapshots: Mapping[str, Snapshot]) -> dict[str, Denial]:
    known = {part: repository.find_denial(snapshot.manifest) for part, snapshot in snapshots.items()}
    return {part: denial for part, denial in known.items() if denial is not None}


def _native_signers(file: Path | None) -> SignerPolicy | None:
    """Read the operator's keys. Raises Unavailable if the file can't be read: that is no fault of the snapshot."""
    try:
        return read_native_signers(file)
    except InvalidInput as error:
        raise Unavailable(error.message) from error


def abridge_results(results: Iterable[CheckResult]) -> tuple[CheckResult, ...]:
    """Bound the size of a report.

    For each check the first MOST_RESULTS results, all up to the first refusal, and a count of the rest. Results of the
    rest are not kept while further ones are made.
    """
    found: list[CheckResult] = []
    kept, left_out = Counter[str](), Counter[str]()
    has_refused = False
    for result in results:
        is_beyond = kept[result.check] >= MOST_RESULTS if result.check in kept else len(kept) >= MOST_CHECKS
        if is_beyond and (result.passed or has_refused):
            left_out[result.check if result.check in kept else "others"] += 1
            continue
        kept[result.check] += 1
        short = {"subject": result.subject[:LONGEST_TEXT], "message": result.message[:LONGEST_TEXT]}
        found.append(result.model_copy(update=short))
        has_refused = has_refused or not result.passed
    return (
        *found,
        *(pass_check(check, "more", f"{count} more results are left out") for check, count in left_out.items()),
    )


def run_validators(candidate: Candidate, validators: Sequence[Validator]) -> Iterator[CheckResult]:
    """Yield the results of all validators, up to and including the first that refuses."""
    skip = candidate.manifest.spec.validation.skip
    known = {validator.name: validator for validator in validators}
    for name, reason in sorted(skip.items()):
        if name not in known or known[name].required:
            allowed = ", ".join(sorted(v.name for v in validators if not v.required))
            message = f"{name!r} can't be skipped ({reason}); allowed: {allowed}"
            yield fail_check("skip", name, Reason.SCHEMA_MISMATCH, message)
            return
    for validator in validators:
        if validator.name in skip:
            yield pass_check(validator.name, candidate.manifest.name, f"skipped: {skip[validator.name]}")
            continue
        refusals = 0
        for result in _results(validator, candidate):
            yield result
            refusals += not result.passed
            if refusals == MOST_REFUSALS:
                break
        if refusals:
            return


def _results(validator: Validator, candidate: Candidate) -> Iterator[CheckResult]:
    """Run a validator: one result at a time, with a heartbeat for each, since it may yield any number of them.

    Its own faults are raised with its name, because most validators are third-party code.
    """
    results = _own_faults(validator, lambda: iter(validator.check(candidate)))
    while (result := _own_faults(validator, lambda: next(results, _END))) is not _END:
        if not isinstance(result, CheckResult):
            msg = (
                f"validator {validator.name!r} gave {result!r}; allowed: results of "
                "`activities.validation.validator.pass_check` and `fail_check`"
            )
            raise ValidatorError(msg)
        candidate.beat(f"running the check {validator.name}")
        yield result


def _own_faults(validator: Validator, step: Callable[[], T]) -> T:
    """Run a step of a validator; its own faults are raised as ValidatorError."""
    try:
        return step()
    except (IPnextError, OSError, TemporalError, CancelledError):
        raise
    except (Exception, SystemExit) as error:
        msg = f"validator {validator.name!r} ended with {type(error).__name__}: {error}"
        raise ValidatorError(msg) from error


def _snapshots(repository: Repository, generation: Generation) -> Mapping[str, Snapshot]:
    found = generation.snapshots.items()
    return {part: repository.snapshot(generation.model, part, number) for part, number in found}


def _interface_graph(repository: Repository, serving: Generation | None, shown: PartGraph | None) -> PartGraph | None:
    """Return the graph that clients rely on.

    For a split generation, the interface of the whole model that was published.
    """
    if serving is None or serving.layout is None:
        return shown
    part = serving.layout.source
    whole = repository.snapshot(serving.model, part, serving.snapshots[part])
    return single_part_graph(part, whole.manifest.signature)


def _write_outcome(repository: Repository, stage: StageInput, report: ValidationReport) -> None:
    refused = report.refusal
    reason = refused.reason if refused else Reason.SUCCEEDED
    told = f"{refused.check}: {refused.message}" if refused else f"{len(report.checks)} checks passed"
    message = f"generation {stage.generation}: {told}"
    repository.set_condition(stage.model, ConditionType.VALIDATED, "False" if refused else "True", reason, message)
    repository.add_event(stage.model, ConditionType.VALIDATED.value, message)
    state = repository.generation(stage.model, stage.generation).state
    if refused is None and state in {GenerationState.PENDING, GenerationState.REFUSED, GenerationState.FAILED}:
        repository.set_generation_state(stage.model, stage.generation, GenerationState.VALIDATED)
