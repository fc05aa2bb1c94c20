"""Prefill and decode as two parts of one model: the pair, the settings on which both agree, and their graph. Pure."""

from collections.abc import Sequence
from typing import Final

from ipnext.model.registry.registry import REQUEST, GraphNode, PartGraph, source_node
from ipnext.model.settings.engine import VllmSettings
from ipnext.model.settings.kv_transfer import Handoff, KvRole

PROMPT: Final = "prompt"
TEXT: Final = "text"
"""Input and output of a part that generates, as checkpoints name them."""

_ALIKE: Final = ("dtype", "max_model_len")
"""Settings that determine the form of keys and values, or the requests that both parts accept."""

Parts = Sequence[tuple[str, VllmSettings | None]]
"""Name and settings of each part in a manifest's order; None for a part of another engine."""


def handoff_of(parts: Parts) -> Handoff | None:
    """Return the pair of a model; None if no part has `kvTransfer`.

    Raises:
        ValueError: it names the part and the setting.
    """
    found: dict[KvRole, tuple[int, VllmSettings]] = {}
    for index, (name, settings) in enumerate(parts):
        if settings is None or settings.kv_transfer is None:
            continue
        role = settings.kv_transfer.role
        if role in found:
            msg = (
                f"{_field(index)}.role: {role!r} is part {parts[found[role][0]][0]!r} already, "
                f"not {name!r} too; one part has each role"
            )
            raise ValueError(msg)
        found[role] = (index, settings)
    if not found:
        return None
    if len(found) == 1:
        ((role, (index, _)),) = found.items()
        missing = "decode" if role == "prefill" else "prefill"
        msg = f"{_field(index)}.role: {role!r} needs a second part of engine vllm, with role {missing!r}"
        raise ValueError(msg)
    return _pair(parts, found["prefill"], found["decode"])


def _pair(parts: Parts, prefill: tuple[int, VllmSettings], decode: tuple[int, VllmSettings]) -> Handoff:
    (first, one), (second, other) = prefill, decode
    assert one.kv_transfer is not None  # noqa: S101 - found by it
    assert other.kv_transfer is not None  # noqa: S101 - found by it
    if one.kv_transfer.connector != other.kv_transfer.connector:
        told = other.kv_transfer.connector, one.kv_transfer.connector
        msg = f"{_field(second)}.connector: {told[0]!r}, but {parts[first][0]!r} has {told[1]!r}; both have the same"
        raise ValueError(msg)
    for name in _ALIKE:
        if getattr(one, name) != getattr(other, name):
            alias = VllmSettings.model_fields[name].alias
            values = getattr(other, name), getattr(one, name)
            msg = (
                f"parts.{second}.settings.{alias}: {values[0]!r}, but {parts[first][0]!r} has {values[1]!r}; "
                "both have the same"
            )
            raise ValueError(msg)
    return Handoff(prefill=parts[first][0], decode=parts[second][0], connector=one.kv_transfer.connector)


def _field(index: int) -> str:
    return f"parts.{index}.settings.kvTransfer"


def handoff_graph(handoff: Handoff) -> PartGraph:
    """Return the graph of a model that consists of such a pair and nothing else."""
    prefill = GraphNode(name=handoff.prefill, part=handoff.prefill, inputs={PROMPT: f"{REQUEST}.{PROMPT}"})
    decode = GraphNode(name=handoff.decode, part=handoff.decode, inputs={PROMPT: f"{handoff.prefill}.{TEXT}"})
    return PartGraph(nodes=(prefill, decode), outputs={TEXT: f"{handoff.decode}.{TEXT}"})


def check_graph(handoff: Handoff, graph: PartGraph) -> None:
    """Check that a graph leads from the prefill part to the decode part, and from there to the answer.

    Raises:
        ValueError: it does not.
    """
    prefill, decode = (_node_of(graph, part) for part in (handoff.prefill, handoff.decode))
    source = f"{prefill.name}.{TEXT}"
    if decode.inputs.get(PROMPT) != source:
        given = decode.inputs.get(PROMPT)
        msg = (
            f"graph.nodes.{decode.name}.inputs.{PROMPT}: {given!r}; it goes on where {handoff.prefill!r} "
            f"ends: write {source!r}"
        )
        raise ValueError(msg)
    for node in graph.nodes:
        if node is not decode and prefill.name in {source_node(text) for text in node.inputs.values()}:
            msg = (
                f"graph.nodes.{node.name}.inputs: {prefill.name!r} gives {handoff.decode!r} its keys and "
                "values, and no text to others"
            )
            raise ValueError(msg)
    for name, text in graph.outputs.items():
        if source_node(text) == prefill.name:
            msg = f"graph.outputs.{name}: {text!r} comes from the prefill part; write '{decode.name}.{TEXT}'"
            raise ValueError(msg)


def _node_of(graph: PartGraph, part: str) -> GraphNode:
    nodes = [node for node in graph.nodes if node.part == part]
    if len(nodes) != 1:
        msg = f"graph.nodes: {len(nodes)} nodes call part {part!r}; allowed: one, if prefill and decode are apart"
        raise ValueError(msg)
    return nodes[0]
