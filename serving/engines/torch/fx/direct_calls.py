"""An exported graph as a plain Python function that calls torch's own bindings: the same kernels, with less overhead.

A graph of `torch.export` names operators of the dispatcher (`torch.ops.aten.linear.default`), whose Python entry checks
and converts each argument in several layers; eager modules call torch's own bindings (`torch._C._nn.linear`).

Each binding is tried once against the operator that it replaces, and used only if every bit, stride and type agrees. If
a binding reads its arguments differently, only time is lost. Weights become variables of the function's closure.

Called by the torch engine when a snapshot is warmed up.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final, TypeAlias

import torch
from torch import fx
from torch._ops import OpOverload

from serving.engines.torch.fx.codegen import CallWriter, last_uses
from serving.engines.torch.fx.fused_lookup_rewrite import waits_for_part

Function: TypeAlias = Callable[..., tuple[torch.Tensor, ...]]
"""Takes the user's tensors by position."""
Early: TypeAlias = Callable[..., tuple[Any, ...]]
"""Takes some of the user's tensors and returns a state."""

_HOMES: Final = ("_VariableFunctions", "_nn", "_special", "_linalg", "_fft")
_BY_OPERATOR_ONLY: Final = frozenset(
    {"index", "index_put", "scalar_tensor", "full", "arange", "zeros", "ones", "empty"}
)
"""Names whose bindings take other arguments, or defaults of the process (its default type)."""


Calls: TypeAlias = Mapping[str, Callable[..., Any]]
"""Name of a node -> the function to call for it."""


class DirectGraph:
    """A graph whose calls have been tried, from which functions are made."""

    def __init__(
        self,
        graph: fx.Graph,
        arguments: Sequence[Any],
        slots: Sequence[int],
        example: Sequence[torch.Tensor],
        *,
        calls: Calls | None = None,
        plain: "DirectGraph | None" = None,
    ) -> None:
        """Bind all `arguments` of a graph but the tensors in `slots`, and try its calls. To be run without gradients.

        Each call is tried with `example`, tensors of the user's inputs; raises the graph's own errors on them. If
        `calls` are given, found on other weights, nothing is tried: the caller compares the whole. `plain` has the same
        answers.
        """
        self._nodes = list(graph.nodes)
        self._arguments = arguments
        self._slots = slots
        self.plain = plain
        """The same graph without fused lookups; None if this one has none."""
        self.calls = _Trial(graph, arguments, slots).run(example) if calls is None else calls

    def rewritten(self, graph: fx.Graph, arguments: Sequence[Any]) -> "DirectGraph":
        """Return another graph of the same inputs and answers; nodes with the same name keep their calls."""
        return DirectGraph(graph, arguments, self._slots, (), calls=self.calls, plain=self)

    def whole(self) -> Function:
        """Return the graph as one function of all user's tensors, in their order."""
        writer, user = self._writer()
        writer.write_all(self._nodes, self._nodes)
        return writer.function(user.values())

    def stage(self, late: AbstractSet[int]) -> tuple[Early, Function] | None:
        """Return the graph as two functions.

        The share that needs none of the `late` inputs (by their numbers), and the rest. None if nothing can be computed
        without them. The first takes the other tensors and returns a state, the second takes that state and the late
        tensors. Both make the calls of the whole with the same values, so that no bit differs.
        """
        if any(is_mutable(node) for node in self._nodes):
            return None
        places = [node for node in self._nodes if node.op == "placeholder"]
        dependent = {places[self._slots[number]] for number in late}
        for node in self._nodes:
            if node.op == "output" or not dependent.isdisjoint(node.all_input_nodes):
                dependent.add(node)
        if self.plain is not None and waits_for_part(self._nodes, dependent):
            return self.plain.stage(late)
        early = [node for node in self._nodes if node.op == "call_function" and node not in dependent]
        if not early:
            return None
        given = [places[slot] for number, slot in enumerate(self._slots) if number not in late]
        used = {needed for node in self._nodes if node in dependent for needed in node.all_input_nodes}
        kept = [node for node in (*given, *early) if node in used]
        return self._early(early, given, kept), self._late([n for n in self._nodes if n in dependent], kept, late)

    def _early(self, nodes: Sequence[fx.Node], given: Sequence[fx.Node], kept: Sequence[fx.Node]) -> Early:
        writer, user = self._writer()
        writer.write_all(nodes, self._nodes)
        writer.give(kept)
        return writer.function([user[node] for node in given])

    def _late(self, nodes: Sequence[fx.Node], kept: Sequence[fx.Node], late: AbstractSet[int]) -> Function:
        writer, user = self._writer()
        writer.take(kept)
        writer.write_all(nodes, self._nodes)
        names = list(user.values())
        return writer.function(["state", *(names[number] for number in sorted(late))])

    def _writer(self) -> tuple[CallWriter, dict[fx.Node, str]]:
        writer = CallWriter(self.calls)
        places = [node for node in self._nodes if node.op == "placeholder"]
        user = {places[slot]: f"x{number}" for number, slot in enumerate(self._slots)}
        for node, value in zip(places, self._arguments, strict=True):
            writer.name(node, user.get(node) or writer.constant(value))
        return writer, user


def is_mutable(node: fx.Node) -> bool:
    """Whether a call writes to one of its arguments."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable  # noqa: SLF001  # no public name


class _Trial:
    """Runs a graph node by node and finds a replacement for each call."""

    def __init__(self, graph: fx.Graph, arguments: Sequence[Any], slots: Sequence[int]) -> None:
        self._nodes = list(graph.nodes)
        self._arguments = list(arguments)
        self._slots = slots

    def run(self, example: Sequence[torch.Tensor]) -> dict[str, Callable[..., Any]]:
        """Return the name of each node -> the function to call."""
        values: dict[fx.Node, Any] = {}
        given = list(self._arguments)
        for slot, tensor in zip(self._slots, example, strict=True):
            given[slot] = tensor
        placeholders = iter(given)
        last = last_uses(self._nodes)
        found: dict[str, Callable[..., Any]] = {}
        for node in self._nodes:
            if node.op == "placeholder":
                values[node] = next(placeholders)
            elif node.op == "call_function":
                found[node.name], values[node] = _try_call(node, values)
            for done in last.get(node, ()):
                values.pop(done, None)
        return found


def _try_call(node: fx.Node, values: Mapping[fx.Node, Any]) -> tuple[Callable[..., Any], Any]:
    """Return the function to call for a node, and the node's value."""
    target: Any = node.target
    args = fx.node.map_arg(node.args, lambda n: values[n])
    kwargs = fx.node.map_arg(node.kwargs, lambda n: values[n])
    expected = target(*args, **kwargs)
    if not isinstance(target, OpOverload):
        return target, expected
    plain: Callable[..., Any] = target._op  # noqa: SLF001  # the overload's own __call__ delegates to it
    if target._schema.is_mutable:  # noqa: SLF001  # no public name
        return plain, expected
    for candidate in _bindings(target):
        try:
            got = candidate(*args, **kwargs)
        except (TypeError, RuntimeError, ValueError, IndexError):
            continue
        if _identical(expected, got):
            return candidate, expected
    return plain, expected


def _bindings(target: OpOverload) -> Iterator[Callable[..., Any]]:
    space, _, name = target._schema.name.partition("::")  # noqa: SLF001  # no public name
    if space != "aten" or name in _BY_OPERATOR_ONLY:
        return
    if name == "sym_size":
        yield torch.Tensor.size
    homes = [getattr(torch._C, home, None) for home in _HOMES]  # noqa: SLF001  # the home of torch's Python bindings
    for home in (*homes, torch.Tensor):
        binding = getattr(home, name, None)
        if binding is not None and callable(binding):
            yield binding


def same_bits(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> bool:
    """Whether two answers agree in every bit, stride and type."""
    return _identical(tuple(left), tuple(right))


def _identical(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and _same_tensor(left, right)
    if isinstance(left, tuple | list):
        both = isinstance(right, tuple | list) and len(left) == len(right)
        return both and all(_identical(a, b) for a, b in zip(left, right, strict=True))
    return type(left) is type(right) and bool(left == right)


def _same_tensor(left: torch.Tensor, right: torch.Tensor) -> bool:
    form = (left.shape, left.stride(), left.dtype) == (right.shape, right.stride(), right.dtype)
    return form and torch.equal(_bits(left), _bits(right))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes, comparable even with NaNs. A tensor of one number may be contiguous and yet have any stride."""
    return tensor.clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8) if tensor.numel() else tensor
