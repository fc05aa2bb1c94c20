"""Partition of a program into the nodes that depend on request inputs alone, and those that also depend on its rows.

Used by serving.engines.torch.request_level.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
from torch import fx
from torch._ops import OpOverload

from serving.engines.torch.fx.direct_calls import DirectGraph, Function
from serving.engines.torch.fx.fused_lookup import Gatherer
from serving.engines.torch.program_cache import TorchProgram

Call: TypeAlias = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
"""Takes a program's inputs in their order and returns its outputs in theirs."""

ROWS: Final = 0
"""The batch dimension of an input."""


@dataclass(frozen=True, slots=True, eq=False)
class GraphPartition:
    """A graph with its arguments; `slots` are the positions of its inputs among them."""

    module: fx.GraphModule
    arguments: tuple[Any, ...]
    slots: tuple[int, ...]

    def run(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Run the graph."""
        arguments = list(self.arguments)
        for slot, tensor in zip(self.slots, tensors, strict=True):
            arguments[slot] = tensor
        return tuple(self.module.forward(*arguments))


@dataclass(frozen=True, slots=True)
class RequestPartition:
    """A program in two halves.

    The results of `once`, repeated along `dimensions`, are inputs of `each`, after the others.
    """

    once: GraphPartition
    each: GraphPartition
    dimensions: tuple[int | None, ...]
    """Batch dimension of each result of `once`; None if the result is the same at any batch."""
    request: tuple[int, ...]
    """Positions of the request inputs among those of the whole program."""
    others: tuple[int, ...]

    def direct(self, example: Sequence[torch.Tensor], *, copied: bool) -> Call:
        """Return the whole program, both halves called directly; `example` has one row of each request input.

        `copied`: results are repeated in memory instead of by strides, which some operations do not accept.
        """
        once = _directly(self.once, [example[place] for place in self.request])
        each = _directly(self.each, self._met(example, once, copied=copied))

        def run(given: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
            return each(*self._met(given, once, copied=copied))

        return run

    def _met(self, given: Sequence[torch.Tensor], once: Function, *, copied: bool) -> list[torch.Tensor]:
        others = [given[place] for place in self.others]
        rows = others[0].shape[ROWS]
        results = once(*(given[place] for place in self.request))
        pairs = zip(results, self.dimensions, strict=True)
        return [*others, *(repeat(tensor, at, rows, copied=copied) for tensor, at in pairs)]


def _directly(half: GraphPartition, example: Sequence[torch.Tensor]) -> Function:
    plain = DirectGraph(half.module.graph, half.arguments, half.slots, example)
    gatherer = Gatherer(half.module.graph, half.slots)
    return (gatherer.agreeing(plain, half.arguments, half.run, example) or plain).whole()


def repeat(tensor: torch.Tensor, dimension: int | None, rows: int, *, copied: bool) -> torch.Tensor:
    """Repeat the tensor's single row along `dimension`."""
    if dimension is None or tensor.shape[dimension] != 1:
        return tensor
    sizes = list(tensor.shape)
    sizes[dimension] = rows
    wide = tensor.expand(sizes)
    return wide.contiguous() if copied else wide


def partition_by_request(program: TorchProgram, request_inputs: Collection[str]) -> RequestPartition | None:
    """Partition a program at the boundary of its request-level nodes; None if that is impossible or pointless."""
    try:
        return _Partitioner(program, frozenset(request_inputs)).partition()
    except _CannotError:
        return None


class _CannotError(Exception):
    """The program cannot be partitioned."""


class _Partitioner:
    """Nodes of a program by their dependencies: sizes and weights (0), also request inputs (1), also others (2)."""

    def __init__(self, program: TorchProgram, request_inputs: frozenset[str]) -> None:
        self._program = program
        self._nodes = list(program.module.graph.nodes)
        places = [node for node in self._nodes if node.op == "placeholder"]
        self._arguments = dict(zip(places, program.arguments, strict=True))
        self._inputs = [places[slot] for slot in program.slots]
        self._request = [
            node for node, name in zip(self._inputs, program.inputs, strict=True) if name in request_inputs
        ]
        self._others = [node for node in self._inputs if node not in self._request]
        if not self._others or not all(_free(node) for node in self._inputs):
            raise _CannotError
        self._batch = _sizes(self._inputs[0])[ROWS]
        self._levels = self._assign_levels()

    def partition(self) -> RequestPartition:
        """Return the partition. _CannotError if nothing would be computed once, or a result does not show its batch."""
        met = self._met()
        if all(node.op == "placeholder" for node in met):
            raise _CannotError
        answers = list(self._answers())
        return RequestPartition(
            once=self._part(self._request, met),
            each=self._part([*self._others, *met], answers),
            dimensions=tuple(self._dimension(node) for node in met),
            request=tuple(self._inputs.index(node) for node in self._request),
            others=tuple(self._inputs.index(node) for node in self._others),
        )

    def _assign_levels(self) -> dict[fx.Node, int]:
        levels: dict[fx.Node, int] = {}
        for node in self._nodes:
            if node.op == "placeholder":
                levels[node] = 1 if node in self._request else 2 if node in self._others else 0
            elif node.op == "call_function":
                levels[node] = 0 if self._is_batch(node) else max((levels[n] for n in node.all_input_nodes), default=0)
                if levels[node] and _writes(node):
                    raise _CannotError
            elif node.op != "output":
                raise _CannotError
        return levels

    def _is_batch(self, node: fx.Node) -> bool:
        return bool(_expression(node.meta.get("val")) == self._batch)

    def _answers(self) -> Iterable[fx.Node]:
        [end] = [node for node in self._nodes if node.op == "output"]
        answers: Any = end.args[0]
        if not all(isinstance(answer, fx.Node) for answer in answers):
            raise _CannotError
        return list(answers)

    def _met(self) -> list[fx.Node]:
        """Return values of level 1 that a value of level 2 or the answer uses, in their order."""
        takers = [node for node in self._nodes if self._levels.get(node) == 2]
        taken = {n for node in takers for n in node.all_input_nodes} | set(self._answers())
        return [node for node in self._nodes if node in taken and self._levels[node] == 1]

    def _dimension(self, node: fx.Node) -> int | None:
        if not isinstance(node.meta.get("val"), torch.Tensor):
            raise _CannotError
        free = {place: size for place, size in enumerate(_sizes(node)) if size is not None}
        if any(size != self._batch for size in free.values()) or len(free) > 1:
            raise _CannotError
        return next(iter(free), None)

    def _part(self, given: Sequence[fx.Node], answers: Sequence[fx.Node]) -> GraphPartition:
        """Build the graph from `given` to `answers`; both halves compute sizes and weights themselves."""
        needed = self._find_needed(given, answers)
        graph = fx.Graph()
        weights = [node for node in self._nodes if node.op == "placeholder" and node in needed]
        made = {node: graph.placeholder(node.name) for node in (*given, *weights)}
        for node, place in made.items():
            place.meta = dict(node.meta)
        source = next(node for node in given if node in self._inputs)
        for node in self._nodes:
            if node.op == "call_function" and node in needed:
                if self._is_batch(node):
                    made[node] = graph.call_function(torch.ops.aten.sym_size.int, (made[source], ROWS))
                else:
                    made[node] = graph.node_copy(node, made.__getitem__)
        graph.output(tuple(made[node] for node in answers))
        arguments = (*(None for _ in given), *(self._arguments[node] for node in weights))
        module = fx.GraphModule(torch.nn.Module(), graph)
        return GraphPartition(module, arguments, tuple(range(len(given))))

    def _find_needed(self, given: Sequence[fx.Node], answers: Sequence[fx.Node]) -> set[fx.Node]:
        known, needed, open_ = set(given), set[fx.Node](), list(answers)
        while open_:
            node = open_.pop()
            if node in known or node in needed:
                continue
            if node in self._inputs:
                raise _CannotError
            needed.add(node)
            if not self._is_batch(node):
                open_ += node.all_input_nodes
        return needed


def _writes(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, OpOverload) and target._schema.is_mutable  # noqa: SLF001  # no public name


def _free(node: fx.Node) -> bool:
    sizes = _sizes(node)
    return bool(sizes) and sizes[ROWS] is not None


def _sizes(node: fx.Node) -> list[Any]:
    """Return the expression of each dimension's size if it is free, else None."""
    value = node.meta.get("val")
    return [_expression(size) for size in value.shape] if isinstance(value, torch.Tensor) else []


def _expression(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else None
