"""Snapshots that a region fetches before a deployment needs them."""

from typing import Annotated

from pydantic import Field

from ipnext.model.value import Value

MOST_SNAPSHOTS = 256
MOST_CHARACTERS = 2048
"""Length of a uri."""


class Prefetch(Value):
    """Body of `POST /prefetches` of an agent."""

    uris: Annotated[tuple[Annotated[str, Field(max_length=MOST_CHARACTERS)], ...], Field(max_length=MOST_SNAPSHOTS)]
    """URIs in the artifact store that the agent's hosts fetch from; others are not fetched."""
