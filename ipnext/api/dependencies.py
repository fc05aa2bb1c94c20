"""Context of every endpoint: the adapters behind the API, passed in at the composition root."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Path, Query, Request
from pydantic import StringConstraints

from ipnext.api.authorization.access import Access
from ipnext.api.authorization.caller import acting_of
from ipnext.api.requests.shared_answers import SharedAnswers
from ipnext.api.requests.stream import Stream
from ipnext.api.services.region_observer import RegionObserver
from ipnext.api.workflow_engine.outbox import Outbox
from ipnext.api.workflow_engine.port import Lifecycle
from ipnext.api.workflow_engine.source_wakes import SourceWakes
from ipnext.artifacts.port import ArtifactStore
from ipnext.errors import InvalidInput
from ipnext.infra.port import Infrastructure
from ipnext.model.api.resources import AnyId, ListPage
from ipnext.model.value import Name
from ipnext.optimization_kinds import OptimizationKinds
from ipnext.platform.access.settings import AccessSettings
from ipnext.platform.publication import Publisher
from ipnext.platform.signatures import SignatureKeeper
from ipnext.plugins import Plugins
from ipnext.settings import PlatformSettings
from ipnext.sources.kinds import SourceKinds
from ipnext.stages.kinds import StageKinds
from ipnext.store.paging import Item, Page
from ipnext.store.store import Store


@dataclass(frozen=True, slots=True)
class PlatformAdapters:
    """The adapters behind the API."""

    store: Store
    artifacts: ArtifactStore
    infrastructure: Infrastructure
    lifecycle: Lifecycle
    outbox: Outbox
    observer: RegionObserver
    shared: SharedAnswers
    stream: Stream
    settings: PlatformSettings
    plugins: Plugins
    access: Access
    access_settings: AccessSettings
    """As they were when the process started."""
    source_wakes: SourceWakes
    source_kinds: SourceKinds
    optimization_kinds: OptimizationKinds
    stage_kinds: StageKinds

    @property
    def publisher(self) -> Publisher:
        """What records publishes."""
        return Publisher(self.store, self.artifacts, self.plugins, owner_bytes=self.settings.artifact_bytes)

    @property
    def signatures(self) -> SignatureKeeper:
        """The stored signatures."""
        return SignatureKeeper(self.store, self.artifacts, self.settings.native_library_keys_file)


def platform_of(request: Request) -> PlatformAdapters:
    """Return the platform of the application that answers this request."""
    platform: PlatformAdapters = request.app.state.platform
    return platform


Rooms = Annotated[PlatformAdapters, Depends(platform_of)]
ModelName = Annotated[Name, Path(description="Name of the model.")]
RecordId = Annotated[AnyId, Path(description="Id of the record.")]
GenerationNumber = Annotated[int, Path(ge=1, lt=2**31, description="Number of a generation of the model.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="Items of the page, 1 to 1000.")]
After = Annotated[
    str | None, Query(max_length=200, description="Cursor: the `next` of the previous page; the first page without it.")
]


LONGEST_LABEL = 700
"""Characters of `KEY=VALUE`."""
MOST_FILTERS = 10


def parse_labels(
    label: Annotated[
        list[Annotated[str, StringConstraints(max_length=LONGEST_LABEL)]],
        Query(max_length=MOST_FILTERS, description="Only those with this label, `KEY=VALUE`; may be repeated."),
    ] = [],  # noqa: B006 - FastAPI copies it
) -> tuple[tuple[str, str], ...]:
    """Read the labels by which a list is filtered. Raises InvalidInput."""
    pairs = [text.partition("=") for text in label]
    for text, (key, equals, _) in zip(label, pairs, strict=True):
        if not key or not equals:
            msg = f"label: {text!r} is not of the form KEY=VALUE"
            raise InvalidInput(msg, field="label", value=text, allowed=("KEY=VALUE",))
    return tuple((key, value) for key, _, value in pairs)


WantedLabels = Annotated[tuple[tuple[str, str], ...], Depends(parse_labels)]


def view_page(page: Page[Item]) -> ListPage[Item]:
    """Return a page of the store in the API's form."""
    return ListPage(items=page.items, next=page.next)


ExpectedVersion = Annotated[
    int | None,
    Query(
        alias="expectedVersion", ge=0, lt=2**31, description="Refuse the write (409) unless this version is in force."
    ),
]
DryRun = Annotated[bool, Query(alias="dryRun", description="Validate and say what would change; write nothing.")]


def user_of(request: Request) -> str:
    """Return the authenticated principal, and the user that the caller claims to act for.

    The user (`X-IPnext-User`) is not authenticated.
    """
    acting = acting_of(request)
    if acting.principal.kind == "local":
        return acting.said or "unknown"
    return f"{acting.principal.text} (for {acting.said})" if acting.said else acting.principal.text


User = Annotated[str, Depends(user_of)]


IdempotencyKey = Annotated[
    str,
    Header(
        alias="Idempotency-Key",
        max_length=200,
        description="Makes a repeated request one request: what was said with this key is not said again.",
    ),
]
"""Empty if the caller gives none."""
