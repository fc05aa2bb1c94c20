"""Calls about sources of models, and the versions that they found."""

from collections.abc import Mapping
from datetime import datetime

from ipnext.client.connection import Connection
from ipnext.client.lists import Listing, label_params, params_of
from ipnext.model.api.sources import PushedVersion, SourceRequest, SourceView, VersionView


class SourceCalls(Connection):
    """Sources: upstream streams whose snapshots the platform publishes by itself."""

    def sources(
        self, model: str | None = None, *, limit: int | None = None, labels: Mapping[str, str] | None = None
    ) -> Listing[SourceView]:
        """List sources by model and name, of one model or of all, or of models with these labels."""
        return self._list("/v1/sources", SourceView, limit, **params_of(model=model), **label_params(labels))

    def source(self, model: str, name: str) -> SourceView:
        """Return one source. NotFound."""
        return self._get(f"/v1/models/{model}/sources/{name}", SourceView)

    def source_versions(self, model: str, name: str, *, limit: int | None = 50) -> Listing[VersionView]:
        """List the versions that a source found, newest first. NotFound."""
        return self._list(f"/v1/models/{model}/sources/{name}/versions", VersionView, limit)

    def pause_source(self, model: str, name: str, *, reason: str = "") -> SourceView:
        """Pause a source: nothing of it is polled or published until it is resumed. NotFound."""
        return self._steer_source(model, name, "pause", reason)

    def resume_source(self, model: str, name: str, *, reason: str = "") -> SourceView:
        """Resume a source from its cursor on. NotFound; Conflict if it is not paused."""
        return self._steer_source(model, name, "resume", reason)

    def poll_source(self, model: str, name: str, *, reason: str = "") -> SourceView:
        """Have a source polled ahead of its interval. NotFound; Conflict if it is paused."""
        return self._steer_source(model, name, "poll", reason)

    def push_version(  # noqa: PLR0913 - the facts of a version
        self,
        model: str,
        name: str,
        *,
        digest: str | None = None,
        uri: str | None = None,
        key: str | None = None,
        trained_at: datetime | None = None,
        tags: Mapping[str, str] | None = None,
        metrics: Mapping[str, float] | None = None,
        lineage: Mapping[str, str] | None = None,
    ) -> VersionView:
        """Announce a version to a source of kind `push`: the digest of an uploaded snapshot, or a uri.

        The same key (by default the digest or uri) twice is one version. NotFound; Conflict if the source is of another
        kind, or the key belongs to another place.
        """
        version = PushedVersion(
            digest=digest,
            uri=uri,
            key=key,
            trained_at=trained_at,
            tags=tags or {},
            metrics=metrics or {},
            lineage=lineage or {},
        )
        return self._call("POST", f"/v1/models/{model}/sources/{name}/versions", VersionView, body=version)

    def _steer_source(self, model: str, name: str, action: str, reason: str) -> SourceView:
        path = f"/v1/models/{model}/sources/{name}/{action}"
        return self._call("POST", path, SourceView, body=SourceRequest(reason=reason))
