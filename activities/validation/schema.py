"""Validators of compatibility: engines, the edges of the graph, and the interface that clients rely on."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from activities.validation.validator import Candidate, fail_check, pass_check
from ipnext.model.lifecycle.checks import CheckResult
from ipnext.model.lifecycle.status import Reason
from ipnext.model.manifest.derived.part_tensors import prompt_inputs, request_tensors, signatures, written_spec
from ipnext.model.manifest.part import PartSpec
from ipnext.model.registry.registry import (
    NAMED,
    REQUEST,
    GraphNode,
    PartGraph,
    Signature,
    Snapshot,
    TensorSpec,
    source_node,
    source_tensor,
)

ENGINES = "engines"
EDGES = "graph-edges"
INTERFACE = "interface"

MOST_EDGES = 100_000
"""Of a graph. Each one is written in the manifest, which has at most that many commas and opening brackets."""

_UNORDERED = frozenset({"BYTES", "BOOL"})


def check_engines(candidate: Candidate) -> Iterator[CheckResult]:
    """Check that every part has a snapshot, made for the engine that the manifest runs it on."""
    for part in candidate.manifest.spec.parts:
        snapshot = candidate.snapshots.get(part.name)
        if snapshot is None:
            message = f"the generation has no snapshot of part {part.name!r}; publish one"
            yield fail_check(ENGINES, part.name, Reason.ENGINE_MISMATCH, message)
        elif snapshot.manifest.engine != part.engine:
            message = f"made for engine {snapshot.manifest.engine!r}, the manifest runs it on {part.engine!r}"
            yield fail_check(ENGINES, part.name, Reason.ENGINE_MISMATCH, message)
        else:
            yield pass_check(ENGINES, part.name, part.engine)


def check_edges(candidate: Candidate) -> Iterator[CheckResult]:
    """Check that every input of every node, and every output, has a source, of the input's datatype and shape."""
    graph, signatures = candidate.graph, _signatures(candidate.manifest.spec.parts, candidate.snapshots)
    if fault := _too_many_edges(graph, signatures):
        yield fail_check(EDGES, "graph", Reason.SCHEMA_MISMATCH, fault)
        return
    parts = {node.name: node.part for node in graph.nodes}
    known = _outputs_by_name(signatures)
    inputs_of = {part: {tensor.name: tensor for tensor in signature.inputs} for part, signature in signatures.items()}
    request: dict[str, TensorSpec] = {}
    for node in sorted(
        graph.nodes, key=lambda node: node.prompt is not None
    ):  # other nodes that take a tensor of the request declare it first
        inputs = inputs_of[node.part]
        written = prompt_inputs(node, signatures[node.part])
        for name in sorted(inputs.keys() | node.inputs.keys()):
            edge = f"{node.inputs.get(name, '?')} -> {node.name}.{name}"
            if name in written:
                fault = _written_fault(node, name, known, parts, request)
            else:
                fault = _input_fault(inputs, node.inputs, name) or _edge_fault(
                    inputs[name], node.inputs[name], known, parts, request
                )
            yield (
                fail_check(EDGES, edge, Reason.SCHEMA_MISMATCH, f"{edge}: {fault}")
                if fault
                else pass_check(EDGES, edge)
            )
    for name, source in sorted(graph.outputs.items()):
        edge = f"{source} -> {name}"
        fault = "" if _output(source, known, parts) else f"no such output; {_known_outputs(source, known, parts)}"
        yield fail_check(EDGES, edge, Reason.SCHEMA_MISMATCH, f"{edge}: {fault}") if fault else pass_check(EDGES, edge)


def check_interface(candidate: Candidate) -> Iterator[CheckResult]:
    """Check that clients of the serving generation keep working: the same inputs, and no output missing or changed."""
    if candidate.serving is None or candidate.serving_graph is None:
        yield pass_check(INTERFACE, candidate.manifest.name, "nothing serves yet")
        return
    parts = candidate.manifest.spec.parts
    before = interface(candidate.serving_graph, _signatures(parts, candidate.serving))
    now = interface(candidate.graph, _signatures(parts, candidate.snapshots))
    lost = _find_request_inputs(candidate.serving_graph, candidate.serving) - _find_request_inputs(
        candidate.graph, candidate.snapshots
    )
    has_faults = False
    for subject, message in itertools.chain(
        _input_changes(before[0], now[0]), _once_changes(lost, now[0]), _output_changes(before[1], now[1])
    ):
        has_faults = True
        yield fail_check(INTERFACE, subject, Reason.SCHEMA_MISMATCH, f"{subject}: {message}")
    if not has_faults:
        yield pass_check(INTERFACE, candidate.manifest.name)


Tensors = Mapping[str, TensorSpec]
Outputs = Mapping[str, Tensors]
"""Part -> its outputs by name."""


def interface(graph: PartGraph, signatures: Mapping[str, Signature]) -> tuple[Tensors, Tensors]:
    """Return the tensors of a request and those of the answer. Broken edges are left out."""
    parts = {node.name: node.part for node in graph.nodes}
    inputs = request_tensors(graph, signatures)
    known = _outputs_by_name(signatures)
    found = {name: _output(source, known, parts) for name, source in graph.outputs.items()}
    return inputs, {name: tensor for name, tensor in found.items() if tensor is not None}


def compatible(one: TensorSpec, other: TensorSpec) -> bool:
    """Check whether datatypes and ranks are equal, and each dimension is equal, or free (-1) on either side."""
    if one.datatype != other.datatype or len(one.shape) != len(other.shape):
        return False
    return all(a == b or -1 in {a, b} for a, b in zip(one.shape, other.shape, strict=True))


def _signatures(parts: Iterable[PartSpec], snapshots: Mapping[str, Snapshot]) -> Mapping[str, Signature]:
    return signatures(parts, {part: snapshot.manifest for part, snapshot in snapshots.items()})


def _outputs_by_name(signatures: Mapping[str, Signature]) -> Outputs:
    return {part: {tensor.name: tensor for tensor in signature.outputs} for part, signature in signatures.items()}


def _too_many_edges(graph: PartGraph, signatures: Mapping[str, Signature]) -> str:
    """Return why a graph has too many edges, before any is looked at; empty if it has not."""
    edges = len(graph.outputs)
    edges += sum(max(len(signatures[node.part].inputs), len(node.inputs)) for node in graph.nodes)
    if edges <= MOST_EDGES:
        return ""
    return (
        f"the {len(graph.nodes)} nodes of the graph have {edges} edges together, by the inputs that the snapshots of "
        f"their parts take; allowed: {MOST_EDGES}"
    )


def _written_fault(
    node: GraphNode,
    name: str,
    known: Outputs,
    parts: Mapping[str, str],
    request: dict[str, TensorSpec],
) -> str:
    """Check an input that is written into a prompt: a list of anything, or of numbers if it orders another list."""
    source = node.inputs[name]
    if source_node(source) == REQUEST:
        found: TensorSpec | None = request.setdefault(
            source_tensor(source), written_spec(node, name, source_tensor(source))
        )
    else:
        found = _output(source, known, parts)
    if found is None:
        return f"no such output; {_known_outputs(source, known, parts)}"
    if len(found.shape) != 1:
        return f"gives {_format_tensor(found)}, but a prompt takes lists: one dimension"
    ordering = node.prompt is not None and name in node.prompt.orders
    return (
        f"gives {_format_tensor(found)}, but what orders a list is numbers"
        if ordering and found.datatype in _UNORDERED
        else ""
    )


def _input_fault(inputs: Tensors, wired: Mapping[str, str], name: str) -> str:
    if name not in inputs:
        return f"the part has no input {name!r}; it takes: {_join_names(sorted(inputs)) or 'none'}"
    return "" if name in wired else f"nothing feeds input {name!r} ({_format_tensor(inputs[name])})"


def _edge_fault(
    wanted: TensorSpec,
    source: str,
    known: Outputs,
    parts: Mapping[str, str],
    request: dict[str, TensorSpec],
) -> str:
    """Check one edge. `request` collects the request's tensors as earlier edges define them."""
    if source_node(source) == REQUEST:
        given = request.setdefault(source_tensor(source), wanted)
        if compatible(given, wanted):
            return ""
        return (
            f"takes {_format_tensor(wanted)}, another node takes the same tensor of the request as "
            f"{_format_tensor(given)}"
        )
    found = _output(source, known, parts)
    if found is None:
        return f"no such output; {_known_outputs(source, known, parts)}"
    return "" if compatible(found, wanted) else f"gives {_format_tensor(found)}, but {_format_tensor(wanted)} is taken"


def _output(source: str, known: Outputs, parts: Mapping[str, str]) -> TensorSpec | None:
    return known[parts[source_node(source)]].get(source_tensor(source))


def _known_outputs(source: str, known: Outputs, parts: Mapping[str, str]) -> str:
    outputs = known[parts[source_node(source)]]
    return f"{source_node(source)} gives: {_join_names(list(outputs)) or 'nothing'}"


def _join_names(names: Sequence[str]) -> str:
    """Join the first NAMED of the names, and add how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _input_changes(before: Tensors, now: Tensors) -> Iterator[tuple[str, str]]:
    for name in sorted(before.keys() | now.keys()):
        subject = f"input {name}"
        if name not in now:
            yield subject, "clients send it, but the new generation takes it no more"
        elif name not in before:
            yield subject, "the new generation needs it, but clients don't send it"
        elif not compatible(before[name], now[name]):
            yield subject, f"was {_format_tensor(before[name])}, would be {_format_tensor(now[name])}"


def _find_request_inputs(graph: PartGraph, snapshots: Mapping[str, Snapshot]) -> frozenset[str]:
    """Return the tensors of the request that may come with one row for all: every node that takes one must allow it."""
    taken: dict[str, bool] = {}
    for node in graph.nodes:
        once = snapshots[node.part].manifest.signature.request_inputs
        for name, source in node.inputs.items():
            if source.startswith(f"{REQUEST}."):
                tensor = source_tensor(source)
                taken[tensor] = taken.get(tensor, True) and name in once
    return frozenset(tensor for tensor, once in taken.items() if once)


def _once_changes(lost: frozenset[str], after: Tensors) -> Iterator[tuple[str, str]]:
    for name in sorted(lost & after.keys()):
        yield f"input {name}", "clients may send it once for all rows, but the new generation needs it for each"


def _output_changes(before: Tensors, now: Tensors) -> Iterator[tuple[str, str]]:
    for name in sorted(before):
        subject = f"output {name}"
        if name not in now:
            yield subject, "clients read it, but the new generation gives it no more"
        elif not compatible(before[name], now[name]):
            yield subject, f"was {_format_tensor(before[name])}, would be {_format_tensor(now[name])}"


def _format_tensor(tensor: TensorSpec) -> str:
    return f"{tensor.datatype}{list(tensor.shape)}"
