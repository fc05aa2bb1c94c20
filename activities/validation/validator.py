"""Protocol of a validator and its candidate, its results, and discovery of validators.

Built-in ones, and those of the entry-point group.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

import structlog

from activities.validation.chat_templates.process import find_template_fault
from activities.validation.chat_templates.verdicts import FindTemplateFault
from activities.validation.check_process import Examine, examine_in_process
from activities.validation.documents.parsing import Parse, parse_at_once
from ipnext.artifacts.port import ArtifactStore
from ipnext.model.lifecycle.checks import CheckOutcome, CheckOverride, CheckResult
from ipnext.model.lifecycle.status import Reason
from ipnext.model.manifest.derived.part_tensors import graph_of_one
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.registry.denials import Denial
from ipnext.model.registry.registry import PartGraph, Snapshot
from ipnext.model.registry.signing import SignerPolicy
from ipnext.plugins import Plugins
from serving.confinement.landlock import Confinement

CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One generation of a model, with the serving one beside it.

    `beat` is called with a few words while a validator works for long; an error that it raises ends the validation.
    """

    manifest: ModelManifest
    snapshots: Mapping[str, Snapshot]
    """Part -> its snapshot in this generation."""
    serving: Mapping[str, Snapshot] | None
    """The same for the serving generation; None before the first."""
    serving_graph: PartGraph | None
    """The graph that requests follow now; None before the first generation serves."""
    artifacts: ArtifactStore
    beat: Callable[[str], None]
    denials: Mapping[str, Denial] = field(default_factory=dict)
    """Part -> the denial that covers its snapshot."""
    memory_bytes: Mapping[str, int] = field(default_factory=dict)
    """Hardware kind -> memory of one unit, as the fleet has it; kinds that it does not tell are left out."""
    overrides: Mapping[str, CheckOverride] = field(default_factory=dict)
    """Check -> the override by which its refusals let the change pass."""
    derived: Mapping[tuple[str, str], Snapshot] = field(default_factory=dict)
    """(part, hardware kind) -> the snapshot that replicas there load, of parts whose kinds differ in it. Empty before
    they are derived."""
    published: Mapping[tuple[str, str], Snapshot] = field(default_factory=dict)
    """(part, digest) -> every ancestor of this generation's deltas, down to the full snapshots."""
    native_signers: SignerPolicy | None = None
    """Keys of the signers whose native code the platform's operator lets run; None: native code is not allowed."""
    plugins: Plugins = field(default_factory=Plugins)
    """Name the files that snapshots of other engines may have."""
    parse: Parse = parse_at_once
    """Runs functions that build objects from a document."""
    find_template_fault: FindTemplateFault = find_template_fault
    """Judges chat templates in a confined process."""
    confinement: Confinement = Confinement.AVAILABLE
    """Of the process that parses large documents."""
    examine: Examine = examine_in_process
    """Runs programs of snapshots in a confined process."""

    @property
    def graph(self) -> PartGraph:
        """The manifest's graph; a model with one hosted part may leave it out."""
        wiring = self.manifest.spec.wiring
        if wiring is not None:
            return wiring
        part = self.manifest.spec.hosted_parts[0]
        return graph_of_one(part, self.snapshots[part.name].manifest)

    def chain(self, snapshot: Snapshot) -> Sequence[Snapshot]:
        """Return the full snapshot and the deltas that make up a snapshot, which is the last one."""
        chain = [snapshot]
        while chain[0].manifest.is_delta:
            below = self.published.get((snapshot.part, chain[0].manifest.parent or ""))
            if below is None:
                break  # refused by the check of deltas
            chain.insert(0, below)
        return chain

    @contextmanager
    def open(self, sha256: str) -> Iterator[BinaryIO]:
        """Open a file of a snapshot as a stream. Raises ArtifactMissing or Unavailable."""
        stream = self.artifacts.open_blob(sha256)
        try:
            yield stream
        finally:
            stream.close()


class Validator(Protocol):
    """One validator. If it is `required`, a manifest can't skip it."""

    @property
    def name(self) -> str:
        """Unique name; manifests use it in `validation.skip`."""

    @property
    def required(self) -> bool:
        """True if it always runs."""

    def check(self, candidate: Candidate) -> Iterable[CheckResult]:
        """Yield one result for each subject that was checked."""


@dataclass(frozen=True)
class FunctionValidator:
    """A validator made of one function."""

    name: str
    check: Callable[[Candidate], Iterable[CheckResult]]
    required: bool = False
    inputs: Callable[[Candidate], Any] | None = None
    """Returns all that the results depend on, as JSON: the same inputs are not checked again. None: it runs each
    time."""
    version: int = 1
    """Raised by a change after which the same inputs may give other results."""


class PluginValidator:
    """A validator of another distribution. It may have `inputs` and `version`, as `FunctionValidator` has."""

    def __init__(self, plugin: Any, source: str) -> None:
        self.name: str = plugin.name
        self.required: bool = plugin.required
        self.check: Callable[[Candidate], Iterable[CheckResult]] = plugin.check
        self.inputs: Callable[[Candidate], Any] | None = getattr(plugin, "inputs", None)
        self.version: Any = getattr(plugin, "version", 1)
        self.source = source


def discover_validators() -> tuple[PluginValidator, ...]:
    """Load the validators of other distributions. One that is broken, or has a taken name, is logged and left out."""
    found = Plugins().validators
    for one in found:
        if one.value is None:
            view = one.view
            structlog.get_logger().error("validator refused", name=view.name, source=view.source, reason=view.reason)
    return tuple(PluginValidator(one.value, one.view.source) for one in found if one.value is not None)


def snapshot_digests(candidate: Candidate) -> Mapping[str, str]:
    """Map each part to the digest of its snapshot: the inputs of a check that reads nothing else."""
    return {part: snapshot.digest for part, snapshot in candidate.snapshots.items()}


def pass_check(
    check: str, subject: str, message: str = "", *, evidence: Mapping[str, Any] | None = None
) -> CheckResult:
    """Return the result of a check that holds. `evidence`: the figures that decided, as JSON."""
    return CheckResult(
        check=check, subject=subject, outcome=CheckOutcome.PASSED, message=message, evidence=evidence or {}
    )


def skip_check(check: str, subject: str, message: str) -> CheckResult:
    """Return the result of a check that was not made; `message` says why."""
    return CheckResult(check=check, subject=subject, outcome=CheckOutcome.SKIPPED, message=message)


def fail_check(
    check: str, subject: str, reason: Reason, message: str, *, evidence: Mapping[str, Any] | None = None
) -> CheckResult:
    """Return the result of a check that fails; `message` names the value found and the allowed ones."""
    return CheckResult(
        check=check,
        subject=subject,
        outcome=CheckOutcome.REFUSED,
        reason=reason,
        message=message,
        evidence=evidence or {},
    )
