"""Operations that give another view of their input's memory, by name: the program's file says it nowhere."""

from typing import Final

from serving.splitting.program import Operation

_VIEWS: Final = frozenset(
    [
        "alias", "as_strided", "broadcast_to", "chunk", "detach", "detach_", "diagonal", "dropout", "expand", "expand_as",
        "flatten", "movedim", "narrow", "permute", "real", "reshape", "select", "slice", "split", "split_with_sizes",
        "squeeze", "swapaxes", "swapdims", "t", "tensor_split", "transpose", "unbind", "unflatten", "unfold", "unsafe_chunk",
        "unsafe_split", "unsqueeze", "view", "view_as",
    ]
)  # fmt: skip
_NOT_WRITES: Final = frozenset(["detach_", "requires_grad_", "resolve_neg_", "resolve_conj_"])


def operator_name(operation: Operation) -> str:
    """`torch.ops.aten.add_.Tensor` -> `add_`; empty for what is no ATen operation."""
    steps = operation.target.split(".")
    return steps[3] if operation.target.startswith("torch.ops.aten.") and len(steps) == 5 else ""


def gives_view(operation: Operation) -> bool:
    """Whether the result may share its input's memory."""
    return operator_name(operation) in _VIEWS


def writes_in_place(operation: Operation) -> bool:
    """Whether it changes an input: ATen says so by a `_` at the end, or by an argument `out`."""
    name = operator_name(operation)
    plain = name.endswith("_") and not name.endswith("__") and name not in _NOT_WRITES
    return plain or any(item["name"] == "out" for item in operation.raw["inputs"])
