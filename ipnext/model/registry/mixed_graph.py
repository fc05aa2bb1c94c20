"""Graphs that end in a part that generates: embedding and ranking before it, its answer last. Checks of manifests."""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from ipnext.model.registry.registry import REQUEST, GraphNode, PartGraph, source_node
from ipnext.model.settings.prompt import PROMPT

Role = Literal["computes", "embeds", "generates"]
"""A part's role: tensors to tensors; text to vectors; text to text."""
_PROMPT_SOURCE: Final = f"{REQUEST}.{PROMPT}"


def check_roles(graph: PartGraph, roles: Mapping[str, Role], task: str) -> None:
    """Check that the nodes' roles fit the graph and the task. `roles`: part -> its role.

    Raises:
        ValueError: it has the node in a wrong place.
    """
    for node in graph.nodes:
        if node.prompt is not None and roles[node.part] != "generates":
            msg = (
                f"graph.nodes.{node.name}.prompt: part {node.part!r} {roles[node.part]}; "
                "only a node that generates has a prompt"
            )
            raise ValueError(msg)
    if len(graph.nodes) == 1 or set(roles.values()) == {"computes"}:
        return
    last = _generator(graph, roles)
    if task != "generation":
        msg = f"task: node {last.name!r} generates, so it must be 'generation', got {task!r}"
        raise ValueError(msg)
    _check_generator(graph, last)
    for node in graph.nodes:
        if roles[node.part] == "embeds" and set(node.inputs) != {PROMPT}:
            msg = (
                f"graph.nodes.{node.name}.inputs: a node that embeds takes {PROMPT!r} and nothing else, "
                f"got {sorted(node.inputs)}"
            )
            raise ValueError(msg)


def check_pair_alone(parts: Sequence[str], graph: PartGraph | None = None) -> None:
    """Check a model whose parts prefill and decode.

    Raises:
        ValueError: it has other parts, or its graph makes a prompt.
    """
    node = next((node for node in graph.nodes if node.prompt is not None), None) if graph else None
    if node is not None:
        msg = f"graph.nodes.{node.name}.prompt: a pair of prefill and decode takes none; leave it out, or kvTransfer"
        raise ValueError(msg)
    if len(parts) > 2:  # the pair
        msg = f"parts: two that prefill and decode are a model of their own; got {list(parts)}"
        raise ValueError(msg)


def _generator(graph: PartGraph, roles: Mapping[str, Role]) -> GraphNode:
    found = [node for node in graph.nodes if roles[node.part] == "generates"]
    if len(found) != 1:
        names = [node.name for node in found]
        msg = (
            f"graph.nodes: a graph with parts of engine vllm has exactly one node that generates, its last, got {names}"
        )
        raise ValueError(msg)
    return found[0]


def _check_generator(graph: PartGraph, last: GraphNode) -> None:
    """Check that the generator depends on all nodes, and that the answer is its output."""
    if last.prompt is None:
        msg = f"graph.nodes.{last.name}.prompt: missing; it says how the prompt is made of what the node takes"
        raise ValueError(msg)
    if last.inputs.get(PROMPT) != _PROMPT_SOURCE:
        msg = f"graph.nodes.{last.name}.inputs.{PROMPT}: must be {_PROMPT_SOURCE!r}, got {last.inputs.get(PROMPT)!r}"
        raise ValueError(msg)
    needs = {node.name: {source_node(source) for source in node.inputs.values()} for node in graph.nodes}
    for name, taken in needs.items():
        if last.name in taken:
            msg = f"graph.nodes.{name}.inputs: takes from {last.name!r}, whose text goes to the client and nowhere else"
            raise ValueError(msg)
    idle = sorted(needs.keys() - _before(last.name, needs))
    if idle:
        msg = f"graph.nodes.{idle[0]}: nothing that {last.name!r} takes comes of it"
        raise ValueError(msg)
    for output, source in graph.outputs.items():
        if source_node(source) != last.name:
            msg = (
                f"graph.outputs.{output}: {source!r} is not of {last.name!r}; "
                "a model that generates answers with that node's text"
            )
            raise ValueError(msg)


def _before(name: str, needs: Mapping[str, set[str]]) -> set[str]:
    """Return the node, and all its direct and indirect sources."""
    found: set[str] = set()
    open_ends = {name}
    while open_ends:
        found |= open_ends
        open_ends = set().union(*(needs.get(one, set()) for one in open_ends)) - found
    return found
