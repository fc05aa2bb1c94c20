"""The check `memory` of parts whose hardware kinds serve different snapshots, once these are derived.

The validation sees the published snapshots only. Called by the optimization activities.
"""

from collections.abc import Sequence

from activities.state.memory_fit import MEMORY, judge_part, need_of
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.checks import CheckOutcome, CheckResult
from ipnext.model.manifest.manifest import ModelSpec
from ipnext.model.manifest.optimization import parts_by_hardware
from ipnext.model.manifest.part import PartSpec
from ipnext.model.registry.registry import Generation
from ipnext.store.repository import Repository
from ipnext.store.store import Store


def judge_derived(store: Store, stage: StageInput, spec: ModelSpec) -> CheckResult | None:
    """Judge each hardware kind with its own snapshot, and put the results into the generation's report.

    Return the first refusal that no operator has overridden. Parts that are split are not judged.
    """
    if spec.split is not None:
        return None
    branched = parts_by_hardware(spec.optimization, {part.name: part.engine for part in spec.hosted_parts})
    if not branched or MEMORY in spec.validation.skip:
        return None
    parts = [part for part in spec.hosted_parts if part.name in branched]
    with store.begin(stage.model) as repository:
        results = _judge_parts(repository, stage, parts)
        report = repository.report(stage.model, stage.generation)
        if report is not None:
            checks = (results.get(each.subject, each) if each.check == MEMORY else each for each in report.checks)
            repository.save_report(report.model_copy(update={"checks": tuple(checks)}))
    return next((found for found in results.values() if not found.passed), None)


def _judge_parts(repository: Repository, stage: StageInput, parts: Sequence[PartSpec]) -> dict[str, CheckResult]:
    generation = repository.generation(stage.model, stage.generation)
    override = repository.check_overrides(stage.change_id).get(MEMORY)
    results = {}
    for part in parts:
        found = _judge(repository, generation, part)
        if override is not None and not found.passed:
            told = f"overridden by {override.who}: {override.reason}; {found.message}"
            found = found.model_copy(update={"outcome": CheckOutcome.OVERRIDDEN, "message": told})
        results[part.name] = found
    return results


def _judge(repository: Repository, generation: Generation, part: PartSpec) -> CheckResult:
    numbers = {option.kind: generation.optimized_on(option.kind)[part.name] for option in part.hardware}
    needs = {
        kind: need_of(repository.snapshot(generation.model, part.name, number)) for kind, number in numbers.items()
    }
    return judge_part(part, needs, repository.unit_memory())
