"""The snapshots of a generation that are cut, what was cut of them before, and whether two cuts fit each other.

Called by the splitter.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from activities.optimization.split_process import CutRefused
from ipnext.model.lifecycle.status import Reason
from ipnext.model.registry.registry import (
    Generation,
    KindCut,
    Signature,
    Snapshot,
    SnapshotManifest,
    SnapshotSource,
    SplitLayout,
)
from ipnext.store.repository import Repository
from serving.splitting.report import SplitReport

LOOKED_AT = 50
"""Newest split generations that are searched for one of the same bytes."""


@dataclass(frozen=True, slots=True)
class CutSources:
    """The snapshots that are cut: one for most hardware kinds, and those of kinds with a derivative of their own."""

    default: Snapshot
    by_kind: Mapping[str, Snapshot]

    @classmethod
    def of(cls, repository: Repository, generation: Generation) -> Self:
        """Read those of a generation: a model that is split has one published part, which may be derived from."""
        part, number = next(iter(generation.optimized.items()))
        derived = {} if generation.derived is None else generation.derived.by_hardware
        by_kind = {
            kind: repository.snapshot(generation.model, part, numbers[part])
            for kind, numbers in sorted(derived.items())
            if part in numbers
        }
        return cls(repository.snapshot(generation.model, part, number), by_kind)

    def grouped(self) -> Iterator[tuple[Snapshot, list[str]]]:
        """Yield each derivative of single hardware kinds, with its kinds."""
        for snapshot in {one.digest: one for one in self.by_kind.values()}.values():
            yield snapshot, [kind for kind, one in self.by_kind.items() if one.digest == snapshot.digest]


@dataclass(frozen=True, slots=True)
class KnownCuts:
    """What was cut before of the same bytes, by the same policy and in the same form."""

    layout: SplitLayout | None = None
    kinds: Mapping[str, KindCut] = field(default_factory=dict)
    """Digest of a derivative -> its cut into the layout's parts."""

    @classmethod
    def of(cls, repository: Repository, generation: Generation, sources: CutSources, *, cut: str, form: int) -> Self:
        """Find them among the newest cut generations; segments whose bytes were collected are not there.

        The generation's own layout may have an older form.
        """
        gone = repository.collected_snapshots(generation.model)
        layout, kinds = None, dict[str, KindCut]()
        for other in (generation, *repository.newest_cut(generation.model, limit=LOOKED_AT)):
            known = other.layout
            if known is None or (known.source, known.digest) != (sources.default.part, sources.default.digest):
                continue
            if known.cut != cut or gone & known.named or (known.form != form and other.number != generation.number):
                continue
            layout = layout or known
            if known.numbers == layout.numbers:
                kinds |= {one.digest: one for one in known.by_hardware.values() if one.digest not in kinds}
        wanted = {snapshot.digest for snapshot in sources.by_kind.values()}
        return cls(layout, {digest: one for digest, one in kinds.items() if digest in wanted})


def check_parts(subject: str, layout: SplitLayout, report: SplitReport) -> None:
    """Check that a cut has the parts, segments and graph of a layout. Raises CutRefused."""
    wanted = {part.name: (part.modules, [(one.name, one.stage) for one in part.segments]) for part in layout.parts}
    stages = {segment.name: segment.stage for segment in report.segments}
    found = {part.name: (part.modules, [(name, stages[name]) for name in part.segments]) for part in report.parts}
    if found.keys() != wanted.keys():
        raise _refused(subject, f"it gives the parts {', '.join(sorted(found))}, not {', '.join(sorted(wanted))}")
    other = next((name for name in wanted if found[name] != wanted[name]), None)
    if other is not None:
        raise _refused(subject, f"part {other} gets other modules or segments: {_describe_part(*found[other])}")
    if report.graph != layout.graph:
        nodes = {node.name: node for node in layout.graph.nodes}
        changed = [node.name for node in report.graph.nodes if node != nodes.get(node.name)]
        raise _refused(subject, f"other tensors go to {', '.join(changed) or 'the answer'}")


def find_others(
    subject: str, known: Mapping[str, SnapshotManifest], found: Mapping[str, SnapshotSource]
) -> dict[str, SnapshotSource]:
    """Return the segments of a derivative's cut whose contents are not those of the known ones.

    Raises CutRefused if one takes or gives other tensors.
    """
    other = next((name for name, one in found.items() if one.manifest.signature != known[name].signature), None)
    if other is not None:
        differing = _describe_difference(known[other].signature, found[other].manifest.signature)
        raise _refused(subject, f"segment {other} takes or gives other tensors: {differing}")
    return {name: one for name, one in found.items() if not _is_same_content(one.manifest, known[name])}


def _is_same_content(one: SnapshotManifest, other: SnapshotManifest) -> bool:
    """Return whether both load the same, whatever they were cut from."""
    return (one.engine, one.files) == (other.engine, other.files)


def _refused(subject: str, difference: str) -> CutRefused:
    told = f"{subject}: it can't be cut like that of other hardware kinds: {difference}"
    return CutRefused(Reason.SPLIT_REFUSED, told)


def _describe_part(modules: Sequence[str], segments: Sequence[tuple[str, int]]) -> str:
    return f"modules {' '.join(modules)}; segments {' '.join(name for name, _ in segments)}"


def _describe_difference(known: Signature, found: Signature) -> str:
    before, after = (set(_describe_tensors(one)) for one in (known, found))
    return f"{', '.join(sorted(after - before)) or 'none'} in place of {', '.join(sorted(before - after)) or 'none'}"


def _describe_tensors(signature: Signature) -> Iterator[str]:
    for role, tensors in (("input", signature.inputs), ("output", signature.outputs)):
        yield from (f"{role} {tensor.name} {tensor.datatype} {list(tensor.shape)}" for tensor in tensors)
