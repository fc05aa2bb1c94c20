"""Execution of one request's part graph: each node runs as soon as its inputs are ready.

Pure over a `call` function.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from ipnext.errors import InvalidInput, IPnextError
from ipnext.model.registry.registry import REQUEST, GraphNode, PartGraph, source_node, source_tensor
from ipnext.model.settings.prompt import PromptTemplate
from serving.protocol.tensors import Tensor

Tensors = Mapping[str, Tensor]
Call = Callable[[str, Tensors], Awaitable[Tensors]]
"""Runs a part on its inputs and returns its outputs."""

_NOTHING: Final[Tensors] = {}


@dataclass(frozen=True, slots=True)
class TensorSource:
    """The source of a tensor: a node (or the request) and the tensor's name there."""

    node: str
    tensor: str


@dataclass(frozen=True, slots=True)
class PlannedNode:
    """A node with its inputs resolved, and the other nodes it waits for."""

    name: str
    part: str
    inputs: Mapping[str, TensorSource]
    needs: frozenset[str]
    prompt: PromptTemplate | None = None
    """Prompt template of a generative node, if its prompt is built from its inputs."""


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """A part graph prepared for execution; built once per generation."""

    nodes: tuple[PlannedNode, ...]
    """In topological order: each node comes after those it needs."""
    outputs: Mapping[str, TensorSource]
    request_tensors: tuple[str, ...]
    """Names of all tensors that the request must supply."""

    @property
    def only_part(self) -> str | None:
        """The part of a one-node graph that passes the request's tensors and the outputs on under their own names.

        None for other graphs. If it is set, requests and answers can be relayed unchanged.
        """
        if len(self.nodes) != 1:
            return None
        [node] = self.nodes
        plain = all(source == TensorSource(REQUEST, name) for name, source in node.inputs.items())
        same = all(source == TensorSource(node.name, name) for name, source in self.outputs.items())
        return node.part if plain and same and node.inputs else None

    @property
    def parts(self) -> frozenset[str]:
        """All parts that the graph calls."""
        return frozenset(node.part for node in self.nodes)

    def check_request(self, tensors: Tensors) -> None:
        """Check the request's tensors; InvalidInput names one that is missing or that no node takes."""
        known = self.request_tensors
        for name in known:
            if name not in tensors:
                msg = f"input {name!r} is missing; the inputs are {', '.join(known)}"
                raise InvalidInput(msg, field=name, allowed=known)
        for name in tensors:
            if name not in known:
                msg = f"input {name!r} does not exist; the inputs are {', '.join(known)}"
                raise InvalidInput(msg, field=name, allowed=known)


def plan_graph(graph: PartGraph) -> GraphPlan:
    """Resolve a graph's references and order its nodes."""
    waiting = [_plan_node(node) for node in graph.nodes]
    ordered: list[PlannedNode] = []
    while waiting:  # the graph is known to be acyclic
        done = {node.name for node in ordered}
        ordered += [node for node in waiting if node.needs <= done]
        waiting = [node for node in waiting if not node.needs <= done]
    taken = [source.tensor for node in ordered for source in node.inputs.values() if source.node == REQUEST]
    outputs = {name: TensorSource(source_node(text), source_tensor(text)) for name, text in graph.outputs.items()}
    return GraphPlan(tuple(ordered), outputs, tuple(dict.fromkeys(taken)))


def before_last(plan: GraphPlan) -> GraphPlan:
    """Return the plan without the last node.

    Its outputs are the tensors for the last node's inputs, under the inputs' names.
    """
    *nodes, last = plan.nodes
    outputs = {name: source for name, source in last.inputs.items() if source.node != REQUEST}
    return GraphPlan(tuple(nodes), outputs, plan.request_tensors)


async def run_graph(plan: GraphPlan, request: Tensors, call: Call) -> dict[str, Tensor]:
    """Return the graph's outputs for one request.

    If a node fails or the caller is cancelled, all running calls are cancelled. Raises the error of the first failed
    call. The caller enforces the deadline by cancelling.
    """
    if len(plan.nodes) == 1:
        node = plan.nodes[0]
        results = {node.name: await call(node.part, inputs_of(node, {REQUEST: request}))}
    else:
        results = await _run_nodes(plan, request, call)
    return outputs_of(plan, results)


async def _run_nodes(plan: GraphPlan, request: Tensors, call: Call) -> dict[str, Tensors]:
    results: dict[str, Tensors] = {REQUEST: request}
    running: dict[asyncio.Task[Tensors], str] = {}
    waiting = list(plan.nodes)
    try:
        while waiting or running:
            ready = [node for node in waiting if node.needs <= results.keys()]
            waiting = [node for node in waiting if not node.needs <= results.keys()]
            for node in ready:
                task = asyncio.ensure_future(call(node.part, inputs_of(node, results)))
                running[task] = node.name
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                results[running.pop(task)] = task.result()
    finally:
        await cancel(running)
    return results


async def cancel(running: Collection[asyncio.Task[Tensors]]) -> None:
    """Cancel the tasks that still run, and wait until they end."""
    unfinished = [task for task in running if not task.done()]
    for task in unfinished:
        task.cancel()
    for task in running:
        if task.done() and not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not report it
    if unfinished:
        await asyncio.gather(*unfinished, return_exceptions=True)


def _plan_node(node: GraphNode) -> PlannedNode:
    inputs = {name: TensorSource(source_node(text), source_tensor(text)) for name, text in node.inputs.items()}
    needs = frozenset(source.node for source in inputs.values()) - {REQUEST}
    return PlannedNode(node.name, node.part, inputs, needs, node.prompt)


def inputs_of(node: PlannedNode, results: Mapping[str, Tensors]) -> dict[str, Tensor]:
    """Return a node's inputs from the results so far, keyed by the node that produced them (or the request)."""
    return {name: _pick(source, results) for name, source in node.inputs.items()}


def outputs_of(plan: GraphPlan, results: Mapping[str, Tensors]) -> dict[str, Tensor]:
    """Return the graph's outputs from the results of all nodes."""
    return {name: _pick(source, results) for name, source in plan.outputs.items()}


def _pick(source: TensorSource, results: Mapping[str, Tensors]) -> Tensor:
    tensors = results.get(source.node, _NOTHING)
    if source.tensor not in tensors:
        msg = f"node {source.node!r} gave no tensor {source.tensor!r}; it gave {', '.join(tensors) or 'none'}"
        raise IPnextError(msg)
    return tensors[source.tensor]
