"""A torch program apart from its weights, kept while a snapshot of it is loaded: a refresh brings new weights only.

Rebuilding a graph and trying its calls takes a tenth of a second and more of Python, which the requests answered
meanwhile would wait for; binding other weights to it takes none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import fx

from serving.engines.torch.fx.direct_calls import Calls, DirectGraph, same_bits
from serving.engines.torch.fx.fused_lookup import Gatherer
from serving.weights.delta_snapshot import Delta
from serving.weights.weights import Weights


@dataclass(frozen=True, slots=True)
class Weight:
    """An argument of the graph that comes with the snapshot. `name` is that of the program's document."""

    position: int
    name: str
    requires_grad: bool


@dataclass(slots=True, eq=False, weakref_slot=True)
class ProgramTemplate:
    """What snapshots of one program share."""

    module: fx.GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    slots: tuple[int, ...]
    """Position of each of `inputs` among the graph's arguments."""
    fixed: tuple[Any, ...]
    """All arguments of the graph; None for those of the user's inputs and the weights."""
    weights: tuple[Weight, ...]
    places: Mapping[str, Any]
    """Name of a tensor -> where it lies in the weights file, as the document has it."""
    calls: Calls | None = None
    """What stands for each call of the graph; known once a snapshot of the program has been tried."""
    gatherer: Gatherer | None = None
    """Joins its embedding lookups, as the weights of a snapshot lie."""
    independent: bool | None = None
    """Whether rows answer independently; known as `calls`. A graph has no branch on values, so no weights change it."""

    def bound(self, weights: Weights) -> "TorchProgram":
        """The program with these weights. They keep the module's `requires_grad`.

        Where it is set torch folds a product of three dimensions into one of two, even where no gradient is taken, and
        the last bits of the two ways differ.
        """
        arguments, tensors = list(self.fixed), lay_out(weights, self.places)
        for weight in self.weights:
            arguments[weight.position] = tensors[weight.name].detach().requires_grad_(weight.requires_grad)
        return TorchProgram(self, tuple(arguments), weights)


def lay_out(weights: Weights, places: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Tensors by their names in a program's document, in memory as they were exported."""
    return {name: _lay_out(weights.tensors[place["key"]], place["strides"]) for name, place in places.items()}


def _lay_out(tensor: torch.Tensor, strides: Sequence[int] | None) -> torch.Tensor:
    if strides is None:
        return tensor
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


@dataclass(frozen=True, slots=True, eq=False)
class TorchProgram:
    """A program bound to its weights. `run` takes the user's tensors in `inputs` order, gives them in `outputs` order."""

    template: ProgramTemplate
    arguments: tuple[Any, ...]
    """All arguments of the graph; those of the user's inputs are None."""
    weights: Weights

    def changed_by(self, delta: Delta) -> "TorchProgram":
        """The program with a delta applied to its weights; what the delta leaves alone is the same memory. LoadFailed."""
        return self.template.bound(self.weights.changed_by(delta))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that it takes."""
        return self.template.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the tensors that it gives."""
        return self.template.outputs

    def run(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """One forward pass, to be called without gradients. The weights go to the graph as they are: no guard, no copy."""
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
        """The graph as functions of the tensors, in `inputs` order. To be called without gradients, as `run`.

        Lookups that can be done together are one call. Raises what `run` raises on the example.
        """
        plain, shared = self._plain(example), self.template
        if shared.gatherer is None:
            shared.gatherer = Gatherer(self.module.graph, self.slots)
        return shared.gatherer.agreeing(plain, self.arguments, self.run, example) or plain

    def _plain(self, example: Sequence[torch.Tensor]) -> DirectGraph:
        """Each call of the graph by itself.

        The first snapshot of a program has each call tried by itself on `example`. A later one takes the same calls,
        and its whole answer to `example` must have the bits of `run`; else its calls are tried anew.
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
    """The templates of the programs that are loaded now, by the digest of their document."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[str, ProgramTemplate] = WeakValueDictionary()

    def find(self, digest: str) -> ProgramTemplate | None:
        """The template, while a program made from it lives."""
        return self._known.get(digest)

    def keep(self, digest: str, template: ProgramTemplate) -> None:
        """Remember it while it is used."""
        self._known[digest] = template
