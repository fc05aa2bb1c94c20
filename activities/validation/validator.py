"""What a validator looks at, and how validators are found: a closed list, and those of the entry-point group."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

import structlog

from activities.validation.parsing import Parse, parse_at_once
from ipnext.artifacts.port import ArtifactStore
from ipnext.model.lifecycle import CheckResult
from ipnext.model.manifest import ModelManifest
from ipnext.model.part_tensors import graph_of_one
from ipnext.model.registry import PartGraph, Snapshot
from ipnext.model.signing import SignerPolicy
from ipnext.model.status import Reason
from ipnext.plugins import Plugins

CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One generation of a model, with what serves now beside it.

    `beat` is called with a few words while a validator works for long; what it raises ends the validation.
    """

    manifest: ModelManifest
    snapshots: Mapping[str, Snapshot]
    """Part -> its snapshot in this generation."""
    serving: Mapping[str, Snapshot] | None
    """The same for the generation that serves; none before the first."""
    serving_graph: PartGraph | None
    """The graph that requests follow now; none before the first generation serves."""
    artifacts: ArtifactStore
    beat: Callable[[str], None]
    published: Mapping[tuple[str, str], Snapshot] = field(default_factory=dict)
    """(part, digest) -> every snapshot that a delta of this generation stands on, its parent's parent included."""
    native_signers: SignerPolicy | None = None
    """The keys of those whose native code the operator of the platform lets run; None: nobody's."""
    parse: Parse = parse_at_once
    """Runs what makes objects of a document."""

    @property
    def graph(self) -> PartGraph:
        """The manifest's graph; a model with one part that has hosts may leave it out."""
        wiring = self.manifest.spec.wiring
        if wiring is not None:
            return wiring
        part = self.manifest.spec.hosted[0]
        return graph_of_one(part, self.snapshots[part.name].manifest)

    @contextmanager
    def open(self, sha256: str) -> Iterator[BinaryIO]:
        """A file of a snapshot as a stream. Raises ArtifactMissing or Unavailable."""
        stream = self.artifacts.open_blob(sha256)
        try:
            yield stream
        finally:
            stream.close()


class Validator(Protocol):
    """One validator. `required`: a manifest can't skip it."""

    @property
    def name(self) -> str:
        """Unique; manifests name it in `validation.skip`."""

    @property
    def required(self) -> bool:
        """Whether it always runs."""

    def check(self, candidate: Candidate) -> Iterable[CheckResult]:
        """One result for each thing looked at."""


@dataclass(frozen=True)
class FunctionValidator:
    """A validator made of one function."""

    name: str
    check: Callable[[Candidate], Iterable[CheckResult]]
    required: bool = False


def discovered() -> tuple[Validator, ...]:
    """Load the validators that other distributions bring. One that is broken, or has a taken name, is logged and left out."""
    found = Plugins().validators
    for one in found:
        if one.value is None:
            view = one.view
            structlog.get_logger().error("validator refused", name=view.name, source=view.source, reason=view.reason)
    return tuple(one.value for one in found if one.value is not None)


def passed(check: str, subject: str, message: str = "") -> CheckResult:
    """A check that holds."""
    return CheckResult(check=check, subject=subject, passed=True, message=message)


def failed(check: str, subject: str, reason: Reason, message: str) -> CheckResult:
    """A check that does not hold; `message` names what was found and what is allowed."""
    return CheckResult(check=check, subject=subject, passed=False, reason=reason, message=message)
