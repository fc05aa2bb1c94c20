"""What a split gives: parts, segments, the graph that joins them, and what the comparison said."""

from collections.abc import Mapping
from typing import Final

from pydantic import Field

from ipnext.model.registry import Datatype, PartGraph
from ipnext.model.split import SplitHardware
from ipnext.model.value import Name, Sha256, Value

FORM: Final = 2
"""Of what a cut makes of a program and a policy; another number when that changes. 1: each value travels by itself."""


class PartReport(Value):
    """A part: the modules it was given, its stored bytes, where it may run, and the segments it is called in."""

    name: Name
    bytes: int
    modules: tuple[str, ...]
    hardware: tuple[Name | SplitHardware, ...]
    segments: tuple[Name, ...]


class SegmentReport(Value):
    """One call of a part. `stage` is 0 where it waits for no other segment. `bytes` are those of its own weights."""

    name: Name
    part: Name
    stage: int
    bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class SentTensor(Value):
    """A tensor on its way from the request or a segment; -1 stands for the batch.

    `carries` names the tensors that it packs, along dimension 1 in this order; it is empty where it is one by itself.
    """

    name: str
    source: str = Field(alias="from")
    to: tuple[str, ...]
    datatype: Datatype
    shape: tuple[int, ...]
    carries: tuple[str, ...] = ()


class CopiedWeight(Value):
    """A weight that several segments hold, since each uses it."""

    weight: str
    bytes: int
    segments: tuple[Name, ...]


class SplitReport(Value):
    """The whole answer. `bit_equal` is empty where nothing was compared."""

    snapshot: Sha256
    bytes: int
    parts: tuple[PartReport, ...]
    segments: tuple[SegmentReport, ...]
    tensors: tuple[SentTensor, ...]
    copied: tuple[CopiedWeight, ...]
    graph: PartGraph
    bit_equal: Mapping[str, bool] = Field(default_factory=dict)
    """Batch size -> whether every bit of every output is the unsplit snapshot's."""
    differences: tuple[str, ...] = ()
    """One line for each output that differs."""

    @property
    def is_equal(self) -> bool:
        """Whether all that was compared is equal."""
        return all(self.bit_equal.values())
