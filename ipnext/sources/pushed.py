"""Kind `push`: versions that the training system announces to the API. Nothing is polled."""

from collections.abc import Sequence

from ipnext.artifacts.sources import ArtifactSource
from ipnext.artifacts.stores.locations import open_source
from ipnext.model.manifest.sources import PushStream
from ipnext.model.registry.sources import FoundVersion, Listing
from ipnext.sources.access import ReadAccess
from ipnext.sources.port import StreamRequest


class PushedVersions:
    """Versions whose place is a uri, or the uri of a snapshot in the artifact store."""

    def __init__(self, access: ReadAccess) -> None:
        self._access = access

    def list_since(self, cursor: str) -> Listing:
        """See `Source`: the API records the versions."""
        return Listing(cursor=cursor)

    def open(self, version: FoundVersion) -> ArtifactSource:
        """See `Source`."""
        access = self._access
        return open_source(
            version.place, roots=access.roots, buckets=access.buckets, endpoint_url=access.s3_endpoint_url
        )


class PushKind:
    """The API's own endpoint."""

    name = "push"

    def upstream(self, settings: PushStream) -> str:
        """See `SourceKind`. The watch of a pushed source is that of its model."""
        del settings
        return ""

    def check(self, settings: PushStream, access: ReadAccess) -> None:
        """See `SourceKind`."""

    def connect(self, streams: Sequence[StreamRequest]) -> Sequence[PushedVersions]:
        """See `SourceKind`."""
        return [PushedVersions(each.access) for each in streams]
