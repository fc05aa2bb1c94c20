"""The note of a host as an annotation of its pod."""

import json
from collections.abc import Mapping
from typing import Final

import structlog
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from ipnext.infra.host.runtime import HostIdentity
from ipnext.infra.kubernetes.documents import NOTE_ANNOTATION, REPLICA_ANNOTATION, Json, deployment_labels
from ipnext.infra.process.notes import HostNote
from ipnext.model.wire import decode_plain

LONGEST_NOTE: Final = 128 * 1024
"""Bytes of a note that may be an annotation: all annotations of an object may have 256 KiB."""
MOST_NUMBER: Final = 1_000_000
"""Largest number of a replica that is believed."""
_REASON_LETTERS: Final = 300


def write_note(note: HostNote) -> Mapping[str, str]:
    """Return the annotation. One that is too long lacks the holds: the next agent sends them again."""
    text = note.model_dump_json()
    if len(text.encode()) > LONGEST_NOTE:
        text = note.model_copy(update={"sent": None}).model_dump_json()
    return {NOTE_ANNOTATION: text}


def read_note(document: Json) -> HostNote | None:
    """Return the note of a pod; None if it has no valid one.

    An agent of another build may have written it: unknown fields are ignored.
    """
    metadata = document["metadata"]
    annotations: Mapping[str, str] = metadata.get("annotations", {})
    try:
        note = decode_plain(HostNote, json.loads(annotations[NOTE_ANNOTATION]))
        note.model_dump_json()  # a text that can't be encoded could not be written again
        _check(note, metadata)
    except (KeyError, ValueError, RecursionError, ValidationError, PydanticSerializationError) as error:
        structlog.get_logger().error("pod not adopted", pod=metadata["name"], reason=str(error)[:_REASON_LETTERS])
        return None
    return note


def _check(note: HostNote, metadata: Json) -> None:
    """Raise ValueError unless the note is of the replica that annotation and labels of the pod name."""
    identity = HostIdentity(key=note.key, number=note.number, engine=note.engine)
    labels = metadata.get("labels", {})
    expected = deployment_labels(note.key)
    if not 0 <= note.number <= MOST_NUMBER:
        msg = f"number: must be from 0 to {MOST_NUMBER}"
        raise ValueError(msg)
    if metadata["annotations"].get(REPLICA_ANNOTATION) != identity.name or not expected.items() <= labels.items():
        msg = "the note is of another replica than annotation and labels of the pod"
        raise ValueError(msg)
