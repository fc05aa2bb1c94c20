"""Validator of checkpoints.

Refuses by the headers of the weights whatever vLLM would fail on, before any engine loads it, and chat templates that
would hold an engine up.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, TypeVar

from activities.validation.validator import Candidate, fail_check, pass_check
from ipnext.artifacts.checkpoints.checkpoint_fit import misfits
from ipnext.artifacts.checkpoints.reader import ReadCheckpoint, read_checkpoint
from ipnext.errors import InvalidInput
from ipnext.model.deployment.deployment import SERVING_ENGINES
from ipnext.model.lifecycle.checks import CheckResult
from ipnext.model.lifecycle.status import Reason
from ipnext.model.manifest.part import PartSpec
from ipnext.model.registry.checkpoint import unfit_settings
from ipnext.model.registry.registry import Snapshot
from ipnext.model.settings.engine import vllm_settings

CHECKPOINT = "checkpoint"

T = TypeVar("T")


class StoredFiles:
    """Files of a snapshot in the artifact store."""

    def __init__(self, candidate: Candidate, snapshot: Snapshot) -> None:
        self._candidate = candidate
        self._digests = {file.path: file.sha256 for file in snapshot.manifest.files}
        self.sizes: Mapping[str, int] = {file.path: file.size_bytes for file in snapshot.manifest.files}

    def open(self, path: str) -> BinaryIO:
        """Open a file as a stream."""
        self._candidate.beat(f"reading {path}")
        return self._candidate.artifacts.open_blob(self._digests[path])

    def parse(self, size_bytes: int, read: Callable[[], T], /) -> T:
        """Parse as the validation does."""
        return self._candidate.parse(size_bytes, read)


def check_checkpoints(candidate: Candidate) -> Iterator[CheckResult]:
    """Check that a checkpoint is complete and consistent.

    Shards are complete, names and shapes match `config.json`, the manifest's facts are true and settings fit them. Chat
    templates render sample conversations within limits.
    """
    judged: dict[str, str | None] = {}
    for part in candidate.manifest.spec.hosted_parts:
        snapshot = candidate.snapshots.get(part.name)
        if snapshot is None or part.engine not in SERVING_ENGINES:
            continue
        candidate.beat(f"reading the headers of {part.name}")
        yield _check_part(candidate, part, snapshot, judged)
    yield from _apart(candidate)


def _check_part(candidate: Candidate, part: PartSpec, snapshot: Snapshot, judged: dict[str, str | None]) -> CheckResult:
    """Check the checkpoint of one part. `judged` caches faults of templates by snapshot: parts may share one."""
    try:
        checkpoint = read_checkpoint(StoredFiles(candidate, snapshot))
        fault = next(_faults(part, snapshot, checkpoint), None)
    except (InvalidInput, ValueError) as error:
        fault = str(error)
    if fault:
        return fail_check(CHECKPOINT, part.name, Reason.SCHEMA_MISMATCH, f"part {part.name!r}: {fault}")
    if snapshot.digest not in judged:
        judged[snapshot.digest] = candidate.find_template_fault(
            checkpoint.templates, checkpoint.special_tokens, candidate.beat
        )
    if fault := judged[snapshot.digest]:
        return fail_check(CHECKPOINT, part.name, Reason.UNSAFE_FORMAT, f"part {part.name!r}: {fault}")
    facts = snapshot.manifest.checkpoint
    return pass_check(CHECKPOINT, part.name, f"{facts.architecture}, {facts.parameters:,} parameters" if facts else "")


def _apart(candidate: Candidate) -> Iterator[CheckResult]:
    """Check parts that hand over keys and values: both must be of one checkpoint."""
    handoff = candidate.manifest.spec.handoff
    if handoff is None:
        return
    one, other = candidate.snapshots.get(handoff.prefill), candidate.snapshots.get(handoff.decode)
    if one is not None and other is not None and one.digest != other.digest:
        told = " and ".join(f"snapshot {s.number} of {s.part!r} ({s.digest:.12})" for s in (one, other))
        message = f"{told} are different checkpoints; publish one for both: --part {one.part},{other.part}=DIR"
        yield fail_check(CHECKPOINT, handoff.decode, Reason.SCHEMA_MISMATCH, message)


def _faults(part: PartSpec, snapshot: Snapshot, checkpoint: ReadCheckpoint) -> Iterator[str]:
    settings = vllm_settings(part.settings)
    told = snapshot.manifest.checkpoint
    if told is None:
        yield "snapshot.json tells nothing of the checkpoint; make the snapshot with `ipnext import-checkpoint`"
    elif (other := told.other_than(checkpoint.facts)) is not None:
        yield other
    yield from misfits(checkpoint)
    yield from unfit_settings(checkpoint.facts, settings)
