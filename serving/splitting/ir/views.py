"""Operations that return views of their input's memory, by name, since the program's file does not mark them."""

from typing import Final

from serving.splitting.ir.program import Operation

_VIEWS: Final = frozenset(
    [
        "alias", "as_strided", "broadcast_to", "chunk", "detach", "diagonal", "dropout", "expand", "expand_as",
        "flatten", "movedim", "narrow", "permute", "real", "reshape", "select", "slice", "split", "split_with_sizes",
        "squeeze", "swapaxes", "swapdims", "t", "tensor_split", "transpose", "unbind", "unflatten", "unfold",
        "unsafe_chunk", "unsafe_split", "unsqueeze", "view", "view_as",
    ]
)  # fmt: skip


def operator_name(operation: Operation) -> str:
    """Reduce `torch.ops.aten.add_.Tensor` to `add_`; empty if it is not an ATen operation."""
    steps = operation.target.split(".")
    return steps[3] if operation.target.startswith("torch.ops.aten.") and len(steps) == 5 else ""


def gives_view(operation: Operation) -> bool:
    """Whether the result may share its input's memory."""
    return operator_name(operation) in _VIEWS
