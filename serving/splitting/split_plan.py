"""Planning of a split, from a program and a policy to segments and their report."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from ipnext.errors import InvalidInput
from ipnext.model.manifest.split import SplitPolicy
from ipnext.model.registry.registry import GraphNode, PartGraph, SnapshotManifest, TensorSpec
from serving.splitting.assign.op_assignment import PartAssignment
from serving.splitting.assign.segments import DataFlow, segments_of
from serving.splitting.emit.extract import CutProgram, cut_program
from serving.splitting.emit.segment_program import SegmentDocument
from serving.splitting.ir.program import Program
from serving.splitting.report import CopiedWeight, PartReport, SegmentReport, SentTensor, SplitReport

_TRIES: Final = 12
_LONGEST_NAME: Final = 63


@dataclass(frozen=True, eq=False)
class SplitPlan:
    """A policy applied to a program."""

    policy: SplitPolicy
    placement: PartAssignment
    whole: CutProgram

    @property
    def segments(self) -> tuple[str, ...]:
        """Names of the segments, each after those it waits for."""
        return tuple(self.whole.cuts)

    @cached_property
    def graph(self) -> PartGraph:
        """The part graph, in which each segment is a node with a separate snapshot."""
        nodes = [GraphNode(name=n, part=n, inputs=self.whole.sources(cut)) for n, cut in self.whole.cuts.items()]
        return PartGraph(nodes=tuple(nodes), outputs=self.whole.answers())

    def stored_bytes(self, segment: str) -> dict[str, int]:
        """Return stored tensor -> bytes, for the weights of a segment."""
        weights = self.whole.program.weights
        return {weights[name].key: weights[name].size_bytes for name in self.whole.cuts[segment].weights}

    def part_bytes(self, part: str) -> int:
        """Return the bytes of a part's weights over its segments; if two of them use a weight, it counts twice."""
        return sum(sum(self.stored_bytes(n).values()) for n, cut in self.whole.cuts.items() if cut.segment.part == part)

    def report(self, manifest: SnapshotManifest) -> SplitReport:
        """Report the split; nothing is compared yet."""
        keys = {w.key: w.size_bytes for w in self.whole.program.weights.values()}
        return SplitReport(
            snapshot=manifest.digest,
            bytes=sum(keys.values()),
            parts=tuple(self._parts()),
            segments=tuple(self._segments()),
            tensors=tuple(self._tensors()),
            copied=tuple(self._find_copied()),
            graph=self.graph,
        )

    def _parts(self) -> Iterator[PartReport]:
        hardware = {part.name: part.hardware for part in self.policy.parts}
        for part in self.placement.parts.values():
            called = tuple(name for name, cut in self.whole.cuts.items() if cut.segment.part == part.name)
            if called:
                kinds = hardware.get(part.origin, ())
                size = self.part_bytes(part.name)
                yield PartReport(name=part.name, bytes=size, modules=part.modules, hardware=kinds, segments=called)

    def _segments(self) -> Iterator[SegmentReport]:
        for node in self.graph.nodes:
            cut = self.whole.cuts[node.name]
            signature = SegmentDocument(self.whole, cut).signature()
            yield SegmentReport(
                name=node.name,
                part=cut.segment.part,
                stage=cut.segment.stage,
                bytes=sum(self.stored_bytes(node.name).values()),
                inputs=tuple(node.inputs),
                outputs=tuple(spec.name for spec in signature.outputs),
            )

    def _tensors(self) -> Iterator[SentTensor]:
        takers: dict[str, list[str]] = {}
        for node in self.graph.nodes:
            for source in node.inputs.values():
                takers.setdefault(source, []).append(node.name)
        specs: dict[str, TensorSpec] = {}
        for node in self.graph.nodes:
            signature = SegmentDocument(self.whole, self.whole.cuts[node.name]).signature()
            specs |= {node.inputs[spec.name]: spec for spec in signature.inputs}
        for source, spec in specs.items():
            giver = source.partition(".")[0]
            yield SentTensor(
                name=spec.name,
                **{"from": giver},
                to=tuple(takers[source]),
                datatype=spec.datatype,
                shape=spec.shape,
                carries=self._list_packed(spec.name),
            )

    def _list_packed(self, tensor: str) -> tuple[str, ...]:
        """Return the names of the tensors packed into one in transit."""
        parcels = (parcel for parcel in self.whole.parcels.values() if parcel.is_packed and parcel.name == tensor)
        return next((tuple(self.whole.names[value] for value in parcel.values) for parcel in parcels), ())

    def _find_copied(self) -> Iterator[CopiedWeight]:
        paths = {w.key: w.path for w in reversed(self.whole.program.weights.values())}
        holders: dict[str, list[str]] = {}
        for name in self.segments:
            for key in self.stored_bytes(name):
                holders.setdefault(key, []).append(name)
        for key, names in sorted(holders.items()):
            if len(names) > 1:
                yield CopiedWeight(weight=paths[key], bytes=self.stored_bytes(names[0])[key], segments=tuple(names))


def plan_split(program: Program, policy: SplitPolicy) -> SplitPlan:
    """Apply a policy to a program. InvalidInput names the field that does not fit the model."""
    reserved: dict[str, int] = {}
    for _ in range(_TRIES):
        plan = _plan(program, policy, reserved)
        over = dict(_over_budget(plan))
        if not over:
            _check(plan)
            return plan
        for part, excess in over.items():
            reserved[part] = max(reserved.get(part, 0) + excess, 2 * reserved.get(part, 0))
    part, excess = next(iter(over.items()))
    field = next(p.field for p in plan.placement.parts.values() if p.origin == part)
    msg = f"{field}.max_bytes: copies of weights that several parts use take {excess:,} bytes beyond it; allow more"
    raise InvalidInput(msg, field=f"{field}.max_bytes")


def _plan(program: Program, policy: SplitPolicy, reserved: Mapping[str, int]) -> SplitPlan:
    placement = PartAssignment(program, policy, reserved)
    flow = DataFlow(program, placement, policy.default)
    return SplitPlan(
        policy, placement, cut_program(program, flow, segments_of(flow, tuple(placement.parts)), policy.default)
    )


def _over_budget(plan: SplitPlan) -> Iterator[tuple[str, int]]:
    """Yield the parts above their budget, with the excess: small buffers copied into sub-parts count too."""
    for part in plan.placement.parts.values():
        if part.max_bytes is not None and plan.part_bytes(part.name) > part.max_bytes:
            yield part.origin, plan.part_bytes(part.name) - part.max_bytes


def _check(plan: SplitPlan) -> None:
    called = {cut.segment.part for cut in plan.whole.cuts.values()}
    for part in plan.placement.parts.values():
        if part.name not in called and part.name != plan.policy.default:
            msg = (
                f"{part.field}: part {part.name!r} would be empty: {', '.join(part.modules)} of the model "
                "computes nothing that an answer needs, or only turns tensors; leave the part out"
            )
            raise InvalidInput(msg, field=part.field, value=part.name)
    long = next((name for name in plan.whole.cuts if len(name) > _LONGEST_NAME), None)
    if long is not None:
        msg = (
            f"parts: the segment {long!r} would have a name of {len(long)} letters, "
            f"{_LONGEST_NAME} are allowed; name its part shorter"
        )
        raise InvalidInput(msg, field="parts", value=long)
    twice = [name for name, cut in plan.whole.cuts.items() if name != cut.segment.part and name in plan.placement.parts]
    if twice:
        msg = f"parts: {twice[0]!r} is the name of a part and of a stage of another; rename the part"
        raise InvalidInput(msg, field="parts", value=twice[0])
