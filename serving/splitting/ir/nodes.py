"""Nodes that splitting adds to a program, in torch's JSON schema."""

from collections.abc import Mapping, Sequence
from typing import Any

from serving.splitting.ir.symbolic_shapes import Dimension, written

_POSITIONAL = 1
_KEYWORD = 2


def tensor_argument(name: str) -> dict[str, Any]:
    """Return a reference to a tensor value."""
    return {"as_tensor": {"name": name}}


def aten(
    operator: str, source: str, result: str, arguments: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the node `result = aten.operator(source, arguments, *, options)`, tensor to tensor.

    Both are JSON forms by name.
    """
    given = {"self": tensor_argument(source), **arguments}
    return _node(f"torch.ops.aten.{operator}", given, tensor_argument(result), options)


def stack(sources: Sequence[str], result: str) -> dict[str, Any]:
    """Return a node that stacks tensors of one shape along a new dimension 1."""
    arguments = {"tensors": {"as_tensors": [{"name": name} for name in sources]}, "dim": {"as_int": 1}}
    return _node("torch.ops.aten.stack.default", arguments, tensor_argument(result))


def batch_size(source: str, result: str) -> dict[str, Any]:
    """Return a node with the size of dimension 0 of a tensor."""
    arguments = {"self": tensor_argument(source), "dim": {"as_int": 0}}
    return _node("torch.ops.aten.sym_size.int", arguments, {"as_sym_int": {"as_name": result}})


def product(source: str, factor: int, result: str) -> dict[str, Any]:
    """Return a node that multiplies a size by a number."""
    arguments = {"a": {"as_sym_int": {"as_name": source}}, "b": {"as_int": factor}}
    return _node("_operator.mul", arguments, {"as_sym_int": {"as_name": result}})


def rename_values(value: Any, names: Mapping[str, str]) -> Any:
    """Return the JSON form of a node with its values renamed."""
    if isinstance(value, dict):
        return {
            key: names.get(item, item)
            if key in {"name", "as_name"} and isinstance(item, str)
            else rename_values(item, names)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [rename_values(item, names) for item in value]
    return value


def tensor_meta(like: Mapping[str, Any], sizes: Sequence[Dimension], strides: Sequence[int]) -> dict[str, Any]:
    """Return the description of a tensor value with other sizes and strides."""
    return {
        **like,
        "sizes": [written(size) for size in sizes],
        "strides": [{"as_int": stride} for stride in strides],
        "storage_offset": {"as_int": 0},
    }


def _node(
    target: str, arguments: Mapping[str, Any], output: Mapping[str, Any], options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    given = [{"name": key, "arg": value, "kind": _POSITIONAL} for key, value in arguments.items()]
    given += [{"name": key, "arg": value, "kind": _KEYWORD} for key, value in (options or {}).items()]
    name = next(item for form in output.values() for item in form.values())
    return {
        "target": target,
        "inputs": given,
        "outputs": [dict(output)],
        "metadata": {},
        "is_hop_single_tensor_return": None,
        "name": name,
    }
