"""The result of a split: parts, segments, the graph that connects them, and the comparison."""

from collections.abc import Mapping
from typing import Final

from pydantic import Field

from ipnext.model.manifest.split import SplitHardware
from ipnext.model.registry.registry import Datatype, PartGraph
from ipnext.model.value import Name, Sha256, Value

FORM: Final = 4
"""Version of the split's output for a program and a policy; it changes with that output. 1: each value is sent
alone. 2: a lookup in a quantized table and the unpacking of its rows are placed one by one. 3: a bag over unpacked rows
is placed apart from them."""


class PartReport(Value):
    """A part: its modules, its stored bytes, its allowed hardware, and its segments."""

    name: Name
    bytes: int
    modules: tuple[str, ...]
    hardware: tuple[Name | SplitHardware, ...]
    segments: tuple[Name, ...]


class SegmentReport(Value):
    """One call of a part. `stage` is 0 if it waits for no other segment. `bytes` are those of its own weights."""

    name: Name
    part: Name
    stage: int
    bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class SentTensor(Value):
    """A tensor in transit from the request or a segment; -1 is the batch.

    `carries` names the tensors packed into it, along dimension 1 in this order; empty if it is a single one.
    """

    name: str
    source: str = Field(alias="from")
    to: tuple[str, ...]
    datatype: Datatype
    shape: tuple[int, ...]
    carries: tuple[str, ...] = ()


class CopiedWeight(Value):
    """A weight that is stored in several segments, because each uses it."""

    weight: str
    bytes: int
    segments: tuple[Name, ...]


class SplitReport(Value):
    """The complete answer. `bit_equal` is empty if nothing was compared."""

    snapshot: Sha256
    bytes: int
    parts: tuple[PartReport, ...]
    segments: tuple[SegmentReport, ...]
    tensors: tuple[SentTensor, ...]
    copied: tuple[CopiedWeight, ...]
    graph: PartGraph
    bit_equal: Mapping[str, bool] = Field(default_factory=dict)
    """Batch size -> whether every bit of every output equals the unsplit snapshot's."""
    differences: tuple[str, ...] = ()
    """One line per output that differs."""

    @property
    def is_equal(self) -> bool:
        """Whether all compared outputs are equal."""
        return all(self.bit_equal.values())
