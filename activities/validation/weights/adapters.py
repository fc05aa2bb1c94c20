"""Validators of adapters.

Each fits the base model of its generation, by the headers of both, before any engine loads it.
"""

from collections.abc import Iterator

from activities.validation.validator import Candidate, fail_check, pass_check
from activities.validation.weights.checkpoints import StoredFiles
from ipnext.artifacts.checkpoints.adapter_base import base_misfits, other_base
from ipnext.artifacts.checkpoints.checkpoint_fit import misfits
from ipnext.artifacts.checkpoints.reader import ReadCheckpoint, read_checkpoint
from ipnext.errors import InvalidInput
from ipnext.model.lifecycle.checks import CheckResult
from ipnext.model.lifecycle.status import Reason
from ipnext.model.settings.engine import VllmSettings, vllm_settings

ADAPTER = "adapter"
ADAPTER_BASE = "adapter-base"


def check_adapters(candidate: Candidate) -> Iterator[CheckResult]:
    """Check that vLLM loads the adapter.

    Its rank is within the base's limit, and its modules and shapes are those of the base.
    """
    settings = {
        part.name: vllm_settings(part.settings)
        for part in candidate.manifest.spec.hosted_parts
        if part.engine == "vllm"
    }
    for part, base in candidate.manifest.spec.adapters.items():
        if part not in candidate.snapshots or base not in candidate.snapshots:
            continue
        candidate.beat(f"reading the headers of {part}")
        fault = next(_faults(candidate, part, base, settings[base]), None)
        if fault:
            message = (
                f"part {part!r} on {base!r} (snapshots {_number(candidate, part)} and "
                f"{_number(candidate, base)}): {fault}"
            )
            yield fail_check(ADAPTER, _newer(candidate, part, base), Reason.SCHEMA_MISMATCH, message)
        else:
            facts = candidate.snapshots[part].manifest.checkpoint
            yield pass_check(ADAPTER, part, f"rank {facts.rank}, {facts.parameters:,} parameters" if facts else "")


def check_adapter_bases(candidate: Candidate) -> Iterator[CheckResult]:
    """Check that adapter and base name the same model, if both name one of a hub.

    A base that was trained further has another name.
    """
    for part, base in candidate.manifest.spec.adapters.items():
        if part not in candidate.snapshots or base not in candidate.snapshots:
            continue
        fault = other_base(_read(candidate, part), _read(candidate, base).config.name_or_path)
        if fault:
            message = f"part {part!r}: {fault}. If it fits all the same, skip this check with the reason"
            yield fail_check(ADAPTER_BASE, _newer(candidate, part, base), Reason.SCHEMA_MISMATCH, message)
        else:
            yield pass_check(ADAPTER_BASE, part)


def _faults(candidate: Candidate, part: str, base: str, settings: VllmSettings) -> Iterator[str]:
    try:
        adapter, below = _read(candidate, part), _read(candidate, base)
    except InvalidInput as error:
        yield str(error)
        return
    yield from base_misfits(adapter, below, max_rank=settings.max_lora_rank)
    yield from misfits(adapter)
    told = candidate.snapshots[part].manifest.checkpoint
    other = told.other_than(adapter.facts) if told else "snapshot.json tells nothing of the adapter"
    if other is not None:
        yield other


def _read(candidate: Candidate, part: str) -> ReadCheckpoint:
    return read_checkpoint(StoredFiles(candidate, candidate.snapshots[part]))


def _number(candidate: Candidate, part: str) -> int:
    return candidate.snapshots[part].number


def _newer(candidate: Candidate, part: str, base: str) -> str:
    """Return the part to blame: the adapter, unless it serves already and only its base has changed."""
    serving = candidate.serving or {}
    same = {name: name in serving and serving[name].digest == candidate.snapshots[name].digest for name in (part, base)}
    return base if same[part] and not same[base] else part
