"""The note of a host as an annotation of its pod."""

import json
from collections.abc import Mapping
from typing import Final

import structlog
from pydantic import ValidationError

from ipnext.infra.kubernetes.documents import NOTE_ANNOTATION, Json
from ipnext.infra.process.notes import HostNote
from ipnext.model.wire import decode_plain

LONGEST_NOTE: Final = 128 * 1024
"""Bytes of a note that may be an annotation: all annotations of an object may have 256 KiB."""


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
    annotations: Mapping[str, str] = document["metadata"].get("annotations", {})
    try:
        return decode_plain(HostNote, json.loads(annotations[NOTE_ANNOTATION]))
    except (KeyError, ValueError, ValidationError) as error:
        structlog.get_logger().error("pod not adopted", pod=document["metadata"]["name"], reason=str(error))
        return None
