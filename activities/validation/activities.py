"""Validation of a generation: the built-in checks, then the plug-in validators of a platform engineer.

The report is kept.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from temporalio import activity

from activities.runtime.deadline import beat, throttle
from activities.runtime.failed_attempts import of_a_step
from activities.runtime.owner_turns import OwnerShares
from activities.state.facts import ancestors
from activities.state.memory_fit import MEMORY
from activities.validation.chat_templates.verdicts import TemplateVerdicts
from activities.validation.check_process import Examine, examine_in_process
from activities.validation.denials import DENIED, check_denials
from activities.validation.documents.parsing import ParsingThread
from activities.validation.files import DIGESTS, FORMATS, PATHS, check_digests, check_formats, check_forms, check_paths
from activities.validation.live import check_live
from activities.validation.memory import check_memory
from activities.validation.program_checks import (
    GOLDEN,
    REPLAY,
    check_golden,
    check_replay,
    golden_inputs,
    replay_inputs,
    runs_programs,
)
from activities.validation.programs import PROGRAM, check_programs
from activities.validation.result_cache import StoredResults
from activities.validation.runs import ValidatorError, collect_results, run_validator, run_validators
from activities.validation.schema import EDGES, ENGINES, INTERFACE, check_edges, check_engines, check_interface
from activities.validation.signing import SIGNATURE, check_signatures
from activities.validation.validator import Candidate, FunctionValidator, Validator, snapshot_digests
from activities.validation.weights.adapters import ADAPTER, ADAPTER_BASE, check_adapter_bases, check_adapters
from activities.validation.weights.checkpoints import CHECKPOINT, check_checkpoints
from activities.validation.weights.deltas import DELTAS, check_deltas
from activities.validation.weights.finite_weights import FINITE, check_finite, check_headers
from ipnext.artifacts.native_code import read_native_signers
from ipnext.artifacts.port import ArtifactStore
from ipnext.errors import InvalidInput, IPnextError, Unavailable
from ipnext.model.lifecycle.changes.change_stages import end_stage
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.checks import LIVE_LATENCY, ValidationReport
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.registry.denials import Denial
from ipnext.model.registry.registry import Generation, GenerationState, PartGraph, Snapshot, single_part_graph
from ipnext.model.registry.signing import SignerPolicy
from ipnext.store.records import ModelRecord
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
    FunctionValidator(FINITE, check_finite, inputs=snapshot_digests),
    FunctionValidator(INTERFACE, check_interface),
    FunctionValidator(MEMORY, check_memory),
    FunctionValidator(GOLDEN, check_golden, inputs=golden_inputs),
    FunctionValidator(REPLAY, check_replay, inputs=replay_inputs),
    FunctionValidator(LIVE_LATENCY, check_live),
)
"""In the order of `ipnext.model.lifecycle.checks.BUILT_IN_VALIDATORS`, which is that of their results."""


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


class ValidationActivities:
    """Validation activities, on the store and the artifact store. `validators` run after the built-in ones.

    `native_library_keys_file` has the keys of signers whose native code the operator lets run (see `check_formats`).
    `confinement`: of the processes that render chat templates and parse large documents. `shares`: of the slots that
    owners' validations hold. `examine` replaces the process of checks that run programs.
    """

    def __init__(  # noqa: PLR0913 - the process that runs programs can be replaced
        self,
        store: Store,
        artifacts: ArtifactStore,
        *,
        validators: Sequence[Validator] = (),
        native_library_keys_file: Path | None = None,
        confinement: Confinement = Confinement.AVAILABLE,
        shares: OwnerShares | None = None,
        examine: Examine | None = None,
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._native_library_keys_file = native_library_keys_file
        self._shares = shares or OwnerShares()
        self._confinement = confinement
        self._examine: Examine = examine or partial(examine_in_process, confinement=confinement)
        self._templates = TemplateVerdicts(confinement=confinement)
        self._validators = (*BUILT_IN, *validators)
        self._parsing = ParsingThread()

    def may_take_long(self, stage: StageInput) -> bool:
        """Return whether plug-in validators are registered, or programs of the generation are run."""
        if len(self._validators) > len(BUILT_IN):
            return True
        with self._store.read() as repository:
            return runs_programs(self._candidate(repository, stage))

    def all(self) -> Sequence[Callable[..., Any]]:
        """Return the activities that a worker registers."""
        return (self.validate_generation,)

    @activity.defn(name="validate_generation", no_thread_cancel_exception=True)
    @of_a_step
    def validate_generation(self, stage: StageInput) -> ValidationReport:
        """Run every check on a generation and keep the report. The first refusal is the reason of the condition.

        Raises ShareTaken if other validations of the owner hold its share of the slots, ValidatorError after a fault
        of a check.
        """
        with ExitStack() as slot:
            with self._store.read() as repository:
                record = repository.model(stage.model)
                slot.enter_context(self._shares.hold(record.manifest.metadata.owner))
                candidate = self._candidate(repository, stage)
            cache = StoredResults(self._store, stage.model)
            checks, fault = collect_results(run_validators(candidate, self._validators, cache))
        report = ValidationReport(model=stage.model, generation=stage.generation, checks=checks)
        with self._store.begin(stage.model) as repository:
            repository.save_report(report)
            cache.write(repository)
            if fault is None:
                _write_outcome(repository, stage, record, report)
        if fault is not None:
            raise fault
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
                return all(result.passed for validator in asked for result in run_validator(validator, candidate))
        except (IPnextError, OSError, ValidatorError):
            return False

    def _candidate(self, repository: Repository, stage: StageInput) -> Candidate:
        say = throttle(beat)
        record = repository.model(stage.model)
        owner = record.manifest.metadata.owner
        serving = record.serving_generation
        shown = [s for t in repository.routes(stage.model) for s in t.served if s.generation == serving]
        other = None if serving in {None, stage.generation} else repository.generation(stage.model, serving or 0)
        generation = repository.generation(stage.model, stage.generation)
        snapshots = _snapshots(repository, generation)
        before = _snapshots(repository, other) if other else None
        return Candidate(
            manifest=record.manifest,
            snapshots=snapshots,
            serving=before,
            serving_graph=_interface_graph(repository, other, shown[0].graph if shown else None),
            derived=_derived(repository, generation, record.manifest),
            denials=_find_denials(repository, snapshots),
            memory_bytes=repository.unit_memory(),
            overrides=repository.check_overrides(stage.change_id),
            artifacts=self._artifacts,
            beat=say,
            parse=self._parsing.of(say, owner=owner),
            native_signers=_native_signers(self._native_library_keys_file),
            published=ancestors(repository, (*snapshots.values(), *(before or {}).values())),
            find_template_fault=self._templates.of(owner),
            confinement=self._confinement,
            examine=self._examine,
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


def _snapshots(repository: Repository, generation: Generation) -> Mapping[str, Snapshot]:
    found = generation.snapshots.items()
    return {part: repository.snapshot(generation.model, part, number) for part, number in found}


def _derived(
    repository: Repository, generation: Generation, manifest: ModelManifest
) -> Mapping[tuple[str, str], Snapshot]:
    """Map (part, hardware kind) to the snapshot there, of the parts whose kinds differ in it."""
    branched = {part for numbers in generation.by_hardware.values() for part in numbers}
    return {
        (part.name, kind): repository.snapshot(generation.model, part.name, generation.optimized_on(kind)[part.name])
        for part in manifest.spec.hosted_parts
        if part.name in branched
        for kind in (option.kind for option in part.hardware)
    }


def _interface_graph(repository: Repository, serving: Generation | None, shown: PartGraph | None) -> PartGraph | None:
    """Return the graph that clients rely on.

    For a split generation, the interface of the whole model that was published.
    """
    if serving is None or serving.layout is None:
        return shown
    part = serving.layout.source
    whole = repository.snapshot(serving.model, part, serving.snapshots[part])
    return single_part_graph(part, whole.manifest.signature)


def _write_outcome(repository: Repository, stage: StageInput, record: ModelRecord, report: ValidationReport) -> None:
    refused = report.refusal
    if refused is None:
        repository.accept_revision(stage.model, record.generation, record.manifest.spec)
        repository.note_stages(stage.model, stage.change_id, lambda stages, at: end_stage(stages, "validation", at))
    else:
        repository.refuse_revision(stage.model, record.generation)
    reason = refused.reason if refused else Reason.SUCCEEDED
    told = f"{refused.check}: {refused.message}" if refused else f"{len(report.checks)} checks passed"
    message = f"generation {stage.generation}: {told}"
    repository.set_condition(stage.model, ConditionType.VALIDATED, "False" if refused else "True", reason, message)
    repository.add_event(stage.model, ConditionType.VALIDATED.value, message)
    state = repository.generation(stage.model, stage.generation).state
    if refused is None and state in {GenerationState.PENDING, GenerationState.REFUSED, GenerationState.FAILED}:
        repository.set_generation_state(stage.model, stage.generation, GenerationState.VALIDATED)
