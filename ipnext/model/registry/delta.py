"""`delta.json`: the changes of a delta snapshot against its parent. Read by validation and by hosts."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from ipnext.model.registry.registry import DELTA_FILE, DELTA_WEIGHTS_FILE
from ipnext.model.value import Sha256, Value

DELTA_FILES = frozenset({DELTA_FILE, DELTA_WEIGHTS_FILE})
"""All files of a delta snapshot: it uses the parent's program."""

RowDigest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
"""The sum of the hashes of a tensor's rows (serving.weights.row_digest)."""

ROWS, VALUES, WHOLE = "rows:", "values:", "whole:"
"""Prefixes of tensors in the delta's weights: indices (int64, ascending) and rows of a partly changed tensor; a
whole tensor."""


class ChangedTensor(Value):
    """A tensor of the parent's weights that differs in the result."""

    rows: int = Field(ge=0)
    """Rows in the delta."""
    whole: bool = False
    """Whether the delta has all of its rows."""
    before: RowDigest
    after: RowDigest


class DeltaDocument(Value):
    """The changes against the parent named in the snapshot's manifest."""

    format: Literal["ipnext/delta/v1"] = "ipnext/delta/v1"
    full: Sha256 | None = None
    """Digest of a snapshot with the whole result: a host fetches it if the parent is not available."""
    tensors: Mapping[str, ChangedTensor]
    """By their names in the parent's weights."""
