"""Generates the source of a function from graph nodes, one line per call.

Used by serving.engines.torch.fx.direct_calls.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from types import CodeType
from typing import Any, Final

import torch
from torch import fx

_WHOLE: Final = (0, 0, 2**63 - 1)
"""Arguments of a slice along dimension 0 that takes everything."""


def last_uses(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Map each node to the values not needed after it, so that a trial takes no more memory than a request."""
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        for used in (*node.all_input_nodes, node):
            last[used] = node
    ends: dict[fx.Node, list[fx.Node]] = {}
    for used, node in last.items():
        ends.setdefault(node, []).append(used)
    return ends


@lru_cache(maxsize=64)
def _compile_source(source: str) -> CodeType:
    """Compile once for all snapshots of a program: compiling blocks every other thread."""
    return compile(source, "<graph>", "exec")


class CallWriter:
    """Lines of the function, and the values that they name."""

    def __init__(self, calls: Mapping[str, Callable[..., Any]]) -> None:
        self.lines: list[str] = []
        self.constants: dict[str, Any] = {}
        self._calls = calls
        self._functions: dict[Any, str] = {}
        self._names: dict[fx.Node, str] = {}
        self._views = 0

    def name(self, node: fx.Node, name: str) -> None:
        """Set the name of a value."""
        self._names[node] = name

    def constant(self, value: Any) -> str:
        """Return a new name in the closure for a value."""
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    def write_all(self, nodes: Sequence[fx.Node], graph: Sequence[fx.Node]) -> None:
        """Write the lines of these nodes of a graph."""
        last = last_uses(graph)
        for node in nodes:
            self.write(node, last.get(node, ()))

    def give(self, nodes: Sequence[fx.Node]) -> None:
        """Return the values of these nodes."""
        self.lines.append(f"return {self._text(tuple(nodes))}")

    def take(self, nodes: Sequence[fx.Node]) -> None:
        """Begin with the values of these nodes in `state`."""
        for number, node in enumerate(nodes):
            if node.op == "call_function":
                self.name(node, f"v{len(self._names)}")
            self.lines.append(f"{self._names[node]} = state[{number}]")

    def function(self, arguments: Iterable[str]) -> Callable[..., Any]:
        """Compile the lines to a function.

        Their source consists of names and numbers made here, without text of the snapshot.
        """
        body = "\n  ".join(self.lines)
        source = (
            f"def make({', '.join(self.constants)}):\n def forward({', '.join(arguments)}):\n  {body}\n return forward"
        )
        made: dict[str, Any] = {}
        exec(_compile_source(source), made)  # noqa: S102  # written above
        function: Callable[..., Any] = made["make"](**self.constants)
        return function

    def write(self, node: fx.Node, ended: Sequence[fx.Node]) -> None:
        """Write the line of a node, and delete values that are no longer needed."""
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
        function = self._calls.get(node.name, node.target)
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
