"""Signature entries of a segment's tensors, from torch's descriptions in a program."""

from collections.abc import Mapping
from typing import Any, Final

from ipnext.errors import InvalidInput
from ipnext.model.registry.registry import Datatype, TensorSpec
from serving.splitting.ir.symbolic_shapes import dimension

DATATYPES: Final[Mapping[int, Datatype]] = {
    1: "UINT8", 2: "INT8", 3: "INT16", 4: "INT32", 5: "INT64", 6: "FP16", 7: "FP32", 8: "FP64", 12: "BOOL", 13: "BF16",
    28: "UINT16", 34: "UINT32", 35: "UINT64",
}  # fmt: skip
"""V2 datatypes by torch's numbers of element types."""


def tensor_specs(metas: Mapping[str, Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    """Convert name -> torch's description. InvalidInput if an element type has no V2 datatype."""
    return tuple(_spec(name, meta) for name, meta in metas.items())


def _spec(name: str, meta: Mapping[str, Any]) -> TensorSpec:
    if meta["dtype"] not in DATATYPES:
        msg = (
            f"parts: the cut would send {name!r}, whose element type no V2 datatype has; keep what uses it in one part"
        )
        raise InvalidInput(msg, field="parts", value=name, allowed=tuple(DATATYPES.values()))
    sizes = [dimension(item) for item in meta["sizes"]]
    return TensorSpec(
        name=name, datatype=DATATYPES[meta["dtype"]], shape=tuple(-1 if s.text else s.hint for s in sizes)
    )
