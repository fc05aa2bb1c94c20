"""What every endpoint is given: the rooms behind the API, passed in at the composition root."""

from dataclasses import dataclass
from typing import Annotated
from urllib.parse import unquote

from fastapi import Depends, Header, Path, Query, Request

from ipnext.api.lifecycle import Lifecycle
from ipnext.api.observation import RegionObserver
from ipnext.api.outbox import Outbox
from ipnext.artifacts.port import ArtifactStore
from ipnext.infra.port import Infrastructure
from ipnext.model.resource import ChangeId
from ipnext.model.value import Name
from ipnext.plugins import Plugins
from ipnext.settings import PlatformSettings
from ipnext.store.session import Store


@dataclass(frozen=True, slots=True)
class Platform:
    """The rooms behind the API."""

    store: Store
    artifacts: ArtifactStore
    infrastructure: Infrastructure
    lifecycle: Lifecycle
    outbox: Outbox
    observer: RegionObserver
    settings: PlatformSettings
    plugins: Plugins


def platform_of(request: Request) -> Platform:
    """The platform of the application that answers this request."""
    platform: Platform = request.app.state.platform
    return platform


Rooms = Annotated[Platform, Depends(platform_of)]
ModelName = Annotated[Name, Path(description="Name of the model.")]
RecordId = Annotated[ChangeId, Path(description="Id of the record.")]
GenerationNumber = Annotated[int, Path(ge=1, lt=2**31, description="Number of a generation of the model.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="At most so many, newest first.")]
ExpectedVersion = Annotated[
    int | None,
    Query(
        alias="expectedVersion", ge=0, lt=2**31, description="Refuse the write (409) unless this version is in force."
    ),
]
DryRun = Annotated[bool, Query(alias="dryRun", description="Validate and say what would change; write nothing.")]


def user_of(
    user: Annotated[
        str, Header(alias="X-IPnext-User", max_length=400, description="Who asks, for the audit; percent-encoded.")
    ] = "",
) -> str:
    """Who asks, as the caller says; `unknown` where it says nothing."""
    return "".join(letter for letter in unquote(user) if letter.isprintable()).strip()[:100] or "unknown"


User = Annotated[str, Depends(user_of)]


IdempotencyKey = Annotated[
    str,
    Header(
        alias="Idempotency-Key",
        max_length=200,
        description="Makes a repeated request one request: what was said with this key is not said again.",
    ),
]
"""Empty where the caller gives none."""
