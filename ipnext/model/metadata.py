"""Metadata of every object that a person writes."""

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import Field

from ipnext.model.value import Name, WrittenValue

MOST_LABELS: Final = 64
"""Labels of one object."""
LabelText = Annotated[str, Field(max_length=317)]
"""Name or value of a label: as long as the name of one in Kubernetes, with its prefix."""


class Metadata(WrittenValue):
    """Name, owner and free labels of an object."""

    name: Name
    owner: Name = "default"
    labels: Mapping[LabelText, LabelText] = Field(default_factory=dict, max_length=MOST_LABELS)
    """By which lists are filtered."""
    annotations: Mapping[str, str] = Field(default_factory=dict)
