"""`training.json` beside a snapshot: what its training run says of it, for promotion rules and lineage."""

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from pydantic import Field, ValidationError

from ipnext.artifacts.sources import ArtifactSource
from ipnext.errors import ArtifactMissing, InvalidInput
from ipnext.model.registry.sources import MOST_LABELS, Label
from ipnext.model.validation_errors import first_line
from ipnext.model.value import WrittenMoment, WrittenValue

TRAINING_FILE = "training.json"
LARGEST_BYTES = 16 * 2**10


class TrainingRecord(WrittenValue):
    """Content of `training.json`; all of it may be left out."""

    trained_at: WrittenMoment | None = None
    tags: Mapping[Label, Label] = Field(default_factory=dict, max_length=MOST_LABELS)
    metrics: Mapping[Label, float] = Field(default_factory=dict, max_length=MOST_LABELS)
    lineage: Mapping[Label, Label] = Field(default_factory=dict, max_length=MOST_LABELS)

    def facts(self, *, trained_at: datetime | None) -> dict[str, Any]:
        """Return the fields of a FoundVersion; `trained_at` counts if the file has none."""
        return {**dict(self), "trained_at": self.trained_at or trained_at}


def trained_at_of(source: ArtifactSource) -> datetime | None:
    """Return when the training of a snapshot's directory ended; None if it has no record that says so."""
    with suppress(InvalidInput):
        return read_training_record(source).trained_at
    return None


def read_training_record(source: ArtifactSource) -> TrainingRecord:
    """Return the record of a snapshot's directory; an empty one without the file. Raises InvalidInput."""
    try:
        stream = source.open(TRAINING_FILE)
    except ArtifactMissing:
        return TrainingRecord()
    with stream:
        content = stream.read(LARGEST_BYTES + 1)
    if len(content) > LARGEST_BYTES:
        msg = f"{TRAINING_FILE} in {source.uri} is too large; allowed: {LARGEST_BYTES} bytes"
        raise InvalidInput(msg, field=TRAINING_FILE, value=f"more than {LARGEST_BYTES} bytes")
    try:
        return TrainingRecord.model_validate_json(content)
    except ValidationError as error:
        msg = f"{TRAINING_FILE} in {source.uri}: {first_line(error)}"
        raise InvalidInput(msg, field=TRAINING_FILE, value=TRAINING_FILE) from error
