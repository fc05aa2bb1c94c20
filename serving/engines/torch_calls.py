"""An exported graph as a plain Python function that calls torch's own bindings: the same kernels, less on the way to them.

A graph of `torch.export` names operators of the dispatcher (`torch.ops.aten.linear.default`), whose Python entry checks
and converts each argument in several layers; torch's own bindings (`torch._C._nn.linear`) are what eager modules call.
Each call is tried once beside the operator it stands for and taken only if every bit, stride and type agrees, so a
binding that reads its arguments otherwise costs time and nothing else. Weights become variables of the function's closure.
Called by the torch engine when a snapshot is warmed up.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import torch
from torch import fx
from torch._ops import OpOverload

Function: TypeAlias = Callable[..., tuple[torch.Tensor, ...]]
"""Takes the user's tensors by position."""

_HOMES: Final = ("_VariableFunctions", "_nn", "_special", "_linalg", "_fft")
_WHOLE: Final = (0, 0, 2**63 - 1)
"""Arguments of a slice along dimension 0 that leaves nothing out."""
_BY_OPERATOR_ONLY: Final = frozenset(
    {"index", "index_put", "scalar_tensor", "full", "arange", "zeros", "ones", "empty"}
)
"""Bindings of these names take other arguments, or defaults of the process (its default type)."""


def direct_function(
    module: fx.GraphModule, arguments: Sequence[Any], slots: Sequence[int], example: Sequence[torch.Tensor]
) -> Function:
    """The graph as one function of the tensors in `slots`; all other `arguments` are bound. Run without gradients.

    `example` are tensors of the user's inputs, with which each call is tried. Raises what the graph itself raises on them.
    """
    calls = _Trial(module, arguments, slots).run(example)
    return _compiled(module, arguments, slots, calls)


class _Trial:
    """Runs a graph node by node and finds for each call what may stand for it."""

    def __init__(self, module: fx.GraphModule, arguments: Sequence[Any], slots: Sequence[int]) -> None:
        self._nodes = list(module.graph.nodes)
        self._arguments = list(arguments)
        self._slots = slots

    def run(self, example: Sequence[torch.Tensor]) -> dict[str, Callable[..., Any]]:
        """Name of a node -> what to call."""
        values: dict[fx.Node, Any] = {}
        given = list(self._arguments)
        for slot, tensor in zip(self._slots, example, strict=True):
            given[slot] = tensor
        placeholders = iter(given)
        last = _last_uses(self._nodes)
        found: dict[str, Callable[..., Any]] = {}
        for node in self._nodes:
            if node.op == "placeholder":
                values[node] = next(placeholders)
            elif node.op == "call_function":
                found[node.name], values[node] = _tried(node, values)
            for done in last.get(node, ()):
                values.pop(done, None)
        return found


def _last_uses(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Node -> values that nothing after it needs, so that a trial takes no more memory than a request."""
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        for used in (*node.all_input_nodes, node):
            last[used] = node
    ends: dict[fx.Node, list[fx.Node]] = {}
    for used, node in last.items():
        ends.setdefault(node, []).append(used)
    return ends


def _tried(node: fx.Node, values: Mapping[fx.Node, Any]) -> tuple[Callable[..., Any], Any]:
    """What to call for a node, and the value the node has."""
    target: Any = node.target
    args = fx.node.map_arg(node.args, lambda n: values[n])
    kwargs = fx.node.map_arg(node.kwargs, lambda n: values[n])
    expected = target(*args, **kwargs)
    if not isinstance(target, OpOverload):
        return target, expected
    plain: Callable[..., Any] = target._op  # noqa: SLF001  # what the overload's own __call__ hands everything to
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
    homes = [getattr(torch._C, home, None) for home in _HOMES]  # noqa: SLF001  # where torch's Python keeps its bindings
    for home in (*homes, torch.Tensor):
        binding = getattr(home, name, None)
        if binding is not None and callable(binding):
            yield binding


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
    """Comparable by value even where there are NaNs."""
    return tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else tensor


def _compiled(
    module: fx.GraphModule, arguments: Sequence[Any], slots: Sequence[int], calls: Mapping[str, Callable[..., Any]]
) -> Function:
    """One function with a line for each call. Its source is made of names and numbers that are made here, of no text."""
    writer = _Writer(calls)
    places = [node for node in module.graph.nodes if node.op == "placeholder"]
    user = {places[slot]: f"x{number}" for number, slot in enumerate(slots)}
    for node, value in zip(places, arguments, strict=True):
        writer.name(node, user.get(node) or writer.constant(value))
    last = _last_uses(list(module.graph.nodes))
    for node in module.graph.nodes:
        writer.write(node, last.get(node, ()))
    body = "\n  ".join(writer.lines)
    source = f"def make({', '.join(writer.constants)}):\n def forward({', '.join(user.values())}):\n  {body}\n return forward"
    made: dict[str, Any] = {}
    exec(source, made)  # noqa: S102  # written above, from the checked graph, with no text of the snapshot in it
    function: Function = made["make"](**writer.constants)
    return function


class _Writer:
    """Lines of the function, and the values that they name."""

    def __init__(self, calls: Mapping[str, Callable[..., Any]]) -> None:
        self.lines: list[str] = []
        self.constants: dict[str, Any] = {}
        self._calls = calls
        self._functions: dict[Any, str] = {}
        self._names: dict[fx.Node, str] = {}
        self._views = 0

    def name(self, node: fx.Node, name: str) -> None:
        """Call a value so."""
        self._names[node] = name

    def constant(self, value: Any) -> str:
        """A name in the closure for a value."""
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    def write(self, node: fx.Node, ended: Sequence[fx.Node]) -> None:
        """The line of a node, and the end of what nothing needs any more."""
        if node.op == "output":
            self.lines.append(f"return {self._text(tuple(node.args[0]))}")  # type: ignore[arg-type]  # a graph returns a tuple
        elif node.op == "call_function":
            self._call(node)
            gone = [self._names[n] for n in ended if n.op == "call_function" and self._names[n].startswith("v")]
            if gone:
                self.lines.append(f"del {', '.join(dict.fromkeys(gone))}")

    def _call(self, node: fx.Node) -> None:
        name = f"v{len(self._names)}"
        self.name(node, name)
        if node.target is torch.ops.aten.slice.Tensor and tuple(node.args[1:]) == _WHOLE and not node.kwargs:
            self.lines.append(f"{name} = {self._text(node.args[0])}")
            return
        function = self._calls[node.name]
        called = self._functions.get(function) or self._functions.setdefault(function, self.constant(function))
        words = [*map(self._text, node.args), *(f"{key}={self._text(value)}" for key, value in node.kwargs.items())]
        self.lines.append(f"{name} = {called}({', '.join(words)})")

    def _text(self, value: Any) -> str:
        if isinstance(value, fx.Node):
            return self._names[value]
        if isinstance(value, tuple):
            return f"({''.join(self._text(item) + ', ' for item in value)})"
        if isinstance(value, list):
            return f"[{', '.join(map(self._text, value))}]"
        if value is None or isinstance(value, bool | int):
            return repr(value)
        return self.constant(value)
