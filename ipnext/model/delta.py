"""`delta.json`: what a delta snapshot changes against its parent. Read by validation and by hosts."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from ipnext.model.registry import DELTA_FILE, DELTA_WEIGHTS_FILE
from ipnext.model.value import Sha256, Value

DELTA_FILES = frozenset({DELTA_FILE, DELTA_WEIGHTS_FILE})
"""All files of a delta snapshot: the program is the parent's."""

RowDigest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
"""The sum of the hashes of a tensor's rows (serving.weights.row_digest)."""

ROWS, VALUES, WHOLE = "rows:", "values:", "whole:"
"""Prefixes of tensors in the delta's weights: indices (int64, ascending) and rows of one that changed in part; all of one."""


class ChangedTensor(Value):
    """One tensor of the parent's weights that is another in the result."""

    rows: int = Field(ge=0)
    """Rows that the delta carries."""
    whole: bool = False
    """Whether it carries all of them."""
    before: RowDigest
    after: RowDigest


class DeltaDocument(Value):
    """What changes against the parent that the snapshot's manifest names."""

    format: Literal["ipnext/delta/v1"] = "ipnext/delta/v1"
    full: Sha256 | None = None
    """Digest of a snapshot that holds the whole result: a host takes it where the parent is not to be had."""
    tensors: Mapping[str, ChangedTensor]
    """By their names in the parent's weights."""
