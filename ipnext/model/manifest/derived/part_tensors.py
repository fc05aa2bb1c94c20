"""The tensors of parts and nodes in a graph: those of the snapshot, with the changes of manifest and graph."""

from collections.abc import Iterable, Mapping
from typing import Final

from ipnext.model.manifest.part import PartSpec
from ipnext.model.registry.registry import (
    REQUEST,
    GraphNode,
    PartGraph,
    Signature,
    SnapshotManifest,
    TensorSpec,
    single_part_graph,
    source_node,
    source_tensor,
)
from ipnext.model.settings.prompt import PROMPT

EMBEDDING: Final = "embedding"
"""Output of a part that embeds."""


def text_spec(name: str) -> TensorSpec:
    """Return the spec of a list of texts."""
    return TensorSpec(name=name, datatype="BYTES", shape=(-1,))


def embedding_signature(size: int | None) -> Signature:
    """Return the signature of a part that embeds: texts in, a vector for each out.

    `size` is the vectors' length; None: unknown.
    """
    vector = TensorSpec(name=EMBEDDING, datatype="FP32", shape=(-1, size or -1))
    return Signature(inputs=(text_spec(PROMPT),), outputs=(vector,))


def part_signature(part: PartSpec | None, snapshot: SnapshotManifest) -> Signature:
    """Return the signature of a snapshot as this part runs it: a generative model embeds with `runner: pooling`."""
    if part is None or part.role != "embeds":
        return snapshot.signature
    return embedding_signature(snapshot.checkpoint.hidden_size if snapshot.checkpoint else None)


def graph_of_one(part: PartSpec, snapshot: SnapshotManifest) -> PartGraph:
    """Return the graph of a model of one part that has none: the part's inputs and outputs."""
    return single_part_graph(part.name, part_signature(part, snapshot))


def signatures(parts: Iterable[PartSpec], snapshots: Mapping[str, SnapshotManifest]) -> dict[str, Signature]:
    """Return part -> its signature, for all snapshots."""
    specs = {part.name: part for part in parts}
    return {name: part_signature(specs.get(name), snapshot) for name, snapshot in snapshots.items()}


def prompt_inputs(node: GraphNode, signature: Signature) -> frozenset[str]:
    """Return the inputs of a node for its prompt that its part does not have."""
    own = {tensor.name for tensor in signature.inputs}
    return frozenset() if node.prompt is None else node.prompt.inputs - own


def written_spec(node: GraphNode, name: str, tensor: str) -> TensorSpec:
    """Return the spec of a request's tensor for a prompt's input: numbers if it orders a list, else text."""
    if node.prompt is not None and name in node.prompt.orders:
        return TensorSpec(name=tensor, datatype="FP32", shape=(-1,))
    return text_spec(tensor)


def request_tensors(graph: PartGraph, parts: Mapping[str, Signature]) -> dict[str, TensorSpec]:
    """Return the tensors of a request: the first part with a tensor determines its spec, else the prompt."""
    found: dict[str, TensorSpec] = {}
    written: dict[str, TensorSpec] = {}
    for node in graph.nodes:
        own = {tensor.name: tensor for tensor in parts[node.part].inputs}
        for name, source in node.inputs.items():
            if source_node(source) != REQUEST:
                continue
            tensor = source_tensor(source)
            if name in own:
                found.setdefault(tensor, own[name].model_copy(update={"name": tensor}))
            else:
                written.setdefault(tensor, written_spec(node, name, tensor))
    return {**written, **found}
