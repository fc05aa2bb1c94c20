"""Torch programs without their weights, cached while a snapshot of them is loaded.

A refresh then loads weights only.

Rebuilding a graph and trying its calls takes a tenth of a second or more of Python, during which requests would wait;
binding other weights to it takes none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import fx

from serving.engines.torch.fx.direct_calls import Calls, DirectGraph, same_bits
from serving.engines.torch.fx.fused_lookup import Gatherer
from serving.engines.torch.fx.packed_lookup import Unpack, unpack_small
from serving.weights.delta_snapshot import Delta
from serving.weights.weights import Weights


@dataclass(frozen=True, slots=True)
class WeightArgument:
    """An argument of the graph that comes with the snapshot. `name` is its name in the program's document."""

    position: int
    name: str
    requires_grad: bool


@dataclass(slots=True, eq=False, weakref_slot=True)
class ProgramTemplate:
    """The data shared by snapshots of one program."""

    module: fx.GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    slots: tuple[int, ...]
    """Position of each of `inputs` among the graph's arguments."""
    fixed: tuple[Any, ...]
    """All arguments of the graph; None for those of the user's inputs and the weights."""
    weights: tuple[WeightArgument, ...]
    places: Mapping[str, Any]
    """Name of a tensor -> its key in the weights file and strides, as in the document."""
    packed: Mapping[int, Unpack]
    """Position of each argument that is only looked up as a packed table -> the operator that unpacks it."""
    calls: Calls | None = None
    """Replacement of each call of the graph; known once a snapshot of the program has been tried."""
    gatherer: Gatherer | None = None
    """Fuses its embedding lookups, by the layout of a snapshot's weights."""
    independent: bool | None = None
    """Whether rows are independent; known once tried. A graph has no branch on values, so weights do not affect it."""

    def bound(self, weights: Weights) -> "TorchProgram":
        """Bind the program to these weights. They keep the module's `requires_grad`.

        If it is set, torch folds a product of three dimensions into one of two, even if no gradient is taken, and the
        last bits of both variants differ.
        """
        arguments, tensors = list(self.fixed), lay_out(weights, self.places)
        for weight in self.weights:
            arguments[weight.position] = tensors[weight.name].detach().requires_grad_(weight.requires_grad)
        given = {at: (unpack, arguments[at]) for at, unpack in self.packed.items() if arguments[at] is not None}
        for position, table in unpack_small(given).items():
            arguments[position] = table
        return TorchProgram(self, tuple(arguments), weights)


def lay_out(weights: Weights, places: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors by their names in a program's document, with the strides that they were exported with."""
    return {name: _lay_out(weights.tensors[place["key"]], place["strides"]) for name, place in places.items()}


def _lay_out(tensor: torch.Tensor, strides: Sequence[int] | None) -> torch.Tensor:
    if strides is None:
        return tensor
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


@dataclass(frozen=True, slots=True, eq=False)
class TorchProgram:
    """A program bound to its weights.

    `run` takes the user's tensors in `inputs` order, returns them in `outputs` order.
    """

    template: ProgramTemplate
    arguments: tuple[Any, ...]
    """All arguments of the graph; those of the user's inputs are None."""
    weights: Weights

    def changed_by(self, delta: Delta) -> "TorchProgram":
        """Return the program with a delta applied to its weights; unchanged tensors share memory. LoadFailed."""
        return self.template.bound(self.weights.changed_by(delta))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of its input tensors."""
        return self.template.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of its output tensors."""
        return self.template.outputs

    def run(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Run one forward pass, without gradients. The weights are passed to the graph directly: no guard, no copy."""
        arguments = list(self.arguments)
        for slot, tensor in zip(self.template.slots, tensors, strict=True):
            arguments[slot] = tensor
        return tuple(self.template.module.forward(*arguments))

    @property
    def module(self) -> fx.GraphModule:
        """The graph."""
        return self.template.module

    @property
    def slots(self) -> tuple[int, ...]:
        """Position in `arguments` of each of `inputs`."""
        return self.template.slots

    def direct(self, example: Sequence[torch.Tensor]) -> DirectGraph:
        """Return the graph as functions of the tensors, in `inputs` order. To be called without gradients, as `run`.

        Lookups that can be fused are one call. Raises the errors of `run` on the example.
        """
        plain, shared = self._plain(example), self.template
        if shared.gatherer is None:
            shared.gatherer = Gatherer(self.module.graph, self.slots)
        return shared.gatherer.agreeing(plain, self.arguments, self.run, example) or plain

    def _plain(self, example: Sequence[torch.Tensor]) -> DirectGraph:
        """Return the graph without fused lookups.

        For the first snapshot of a program each call is tried on `example`. A later one uses the same calls, and its
        whole answer to `example` must be bit-identical to `run`; otherwise its calls are tried again.
        """
        shared, known = self.template, self.template.calls
        if known is not None:
            graph = DirectGraph(self.module.graph, self.arguments, self.slots, example, calls=known)
            if same_bits(self.run(example), graph.whole()(*example)):
                return graph
        graph = DirectGraph(self.module.graph, self.arguments, self.slots, example)
        shared.calls = graph.calls
        return graph


class TemplateCache:
    """The templates of the currently loaded programs, by the digest of their document."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[str, ProgramTemplate] = WeakValueDictionary()

    def find(self, digest: str) -> ProgramTemplate | None:
        """Return the template, if a program made from it is still alive."""
        return self._known.get(digest)

    def keep(self, digest: str, template: ProgramTemplate) -> None:
        """Remember a template as long as it is used."""
        self._known[digest] = template
