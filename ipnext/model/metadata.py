"""Metadata of every object that a person writes."""

from collections.abc import Mapping

from pydantic import Field

from ipnext.model.value import Name, WrittenValue


class Metadata(WrittenValue):
    """Name, owner and free labels of an object."""

    name: Name
    owner: Name = "default"
    labels: Mapping[str, str] = Field(default_factory=dict)
    annotations: Mapping[str, str] = Field(default_factory=dict)
