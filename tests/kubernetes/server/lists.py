"""Lists in pages, and watches: the changes of a resource as a client with selectors sees them."""

import asyncio
import base64
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import orjson

from tests.kubernetes.server import errors
from tests.kubernetes.server.cluster import Cluster
from tests.kubernetes.server.errors import Json
from tests.kubernetes.server.schema.resources import Resource
from tests.kubernetes.server.selectors import Matcher, parse_fields, parse_labels
from tests.kubernetes.server.storage import Change, Subscription, place_of

INITIAL_EVENTS_END = "k8s.io/initial-events-end"
BOOKMARK_SECONDS = 60.0
BEFORE_END_SECONDS = 2.0
"""A watch of limited time gets a bookmark so long before its end, as in Kubernetes."""
LIMIT_SECONDS = 1800.0
"""Of a watch that names no time limit."""


@dataclass(frozen=True)
class Query:
    """What a list or a watch selects."""

    resource: Resource
    namespace: str
    parameters: Mapping[str, str]

    def matcher(self) -> Matcher:
        """Return whether an object is selected. ApiFailure 400 if a selector cannot be parsed."""
        labels = parse_labels(self.parameters.get("labelSelector", ""))
        fields = parse_fields(self.parameters.get("fieldSelector", ""), self.resource.kind)
        return lambda obj: self._is_near(obj) and labels(obj) and fields(obj)

    def _is_near(self, obj: Json) -> bool:
        return not self.namespace or obj["metadata"].get("namespace", "") == self.namespace

    def number(self, name: str) -> int:
        """Return a parameter that is a count. ApiFailure 400 if it is none."""
        text = self.parameters.get(name) or "0"
        if not text.isdecimal():
            raise errors.bad_request(f"{name} must be a count, not {text!r}")
        return int(text)

    def asks(self, name: str) -> bool:
        """Return whether a parameter is set."""
        return self.parameters.get(name, "").lower() in {"true", "1"}


class Pages:
    """Lists, whose later pages show the objects as of the first one."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._rest: dict[str, tuple[str, list[Json]]] = {}

    def expire(self) -> None:
        """Forget all pages that were not fetched."""
        self._rest.clear()

    def page(self, query: Query) -> Json:
        """Return a list or its next page. ApiFailure 410 if the page is gone."""
        limit = query.number("limit")
        query.number("resourceVersion")
        version, items = self._remaining(query)
        page, rest = (items[:limit], items[limit:]) if limit else (items, [])
        metadata: Json = {"resourceVersion": version}
        if rest:
            token = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()
            self._rest[token] = version, rest
            metadata |= {"continue": token, "remainingItemCount": len(rest)}
        resource = query.resource
        return {
            "kind": f"{resource.kind}List",
            "apiVersion": resource.api_version,
            "metadata": metadata,
            "items": page if resource.is_custom else [_without_kind(each) for each in page],
        }

    def _remaining(self, query: Query) -> tuple[str, list[Json]]:
        token = query.parameters.get("continue")
        if not token:
            matches = query.matcher()
            found = self._cluster.objects(query.resource, query.namespace)
            return str(self._cluster.storage.version), [each for each in found if matches(each)]
        if token not in self._rest:
            raise errors.expired("the continue token is too old: list from the beginning")
        return self._rest[token]


def _without_kind(obj: Json) -> Json:
    """Return an object as lists of Kubernetes' own kinds show it."""
    return {name: each for name, each in obj.items() if name not in {"apiVersion", "kind"}}


class Watch:
    """One watch: a stream of events from a version on."""

    def __init__(self, cluster: Cluster, query: Query, *, bookmark_seconds: float = BOOKMARK_SECONDS) -> None:
        self._storage, self._query = cluster.storage, query
        self._matches = query.matcher()
        self._bookmark_seconds = bookmark_seconds
        self._end = asyncio.get_running_loop().time() + (query.number("timeoutSeconds") or LIMIT_SECONDS)
        self._bookmarks = query.asks("allowWatchBookmarks")
        since = query.number("resourceVersion")
        self._is_expired = 0 < since < self._storage.oldest
        self._shows_all = since == 0 or query.asks("sendInitialEvents")
        self._initial = cluster.objects(query.resource, query.namespace) if self._shows_all else []
        self._begun = self._storage.version
        start = self._begun if self._shows_all else since
        self.subscription: Subscription = self._storage.subscribe(place_of(query.resource), start)

    def close(self) -> None:
        """End the watch."""
        self._storage.unsubscribe(self.subscription)

    async def events(self) -> AsyncIterator[Json]:
        """Yield events until the time limit, or until the version is too old."""
        if self._is_expired:
            yield _error(errors.expired())
            return
        for obj in self._initial:
            if self._matches(obj):
                yield {"type": "ADDED", "object": obj}
        if self._query.asks("sendInitialEvents") and self._bookmarks:
            yield self._bookmark(self._begun, {INITIAL_EVENTS_END: "true"})
        async for event in self._changes():
            yield event

    async def _changes(self) -> AsyncIterator[Json]:
        loop = asyncio.get_running_loop()
        due = self._next_bookmark(loop.time())
        while (now := loop.time()) < self._end:
            try:
                change = await asyncio.wait_for(self.subscription.queue.get(), min(due, self._end) - now)
            except TimeoutError:
                if self._bookmarks:
                    yield self._bookmark(self._storage.version)
                due = self._next_bookmark(loop.time())
                continue
            if change is None:
                yield _error(errors.expired())
                return
            if event := self._event(change):
                yield event

    def _next_bookmark(self, now: float) -> float:
        last = self._end - BEFORE_END_SECONDS
        regular = now + self._bookmark_seconds
        return min(regular, last) if last > now else regular

    def _event(self, change: Change) -> Json | None:
        """Return how the change looks to this client: an object may enter or leave the selection."""
        before = change.old is not None and self._matches(change.old)
        after = change.new is not None and self._matches(change.new)
        if not before and not after:
            return None
        kind = "ADDED" if not before else "MODIFIED" if after else "DELETED"
        return {"type": kind, "object": self._as_version(change.last)}

    def _as_version(self, obj: Json) -> Json:
        return {**obj, "apiVersion": self._query.resource.api_version}

    def _bookmark(self, version: int, annotations: Mapping[str, str] | None = None) -> Json:
        metadata: Json = {"resourceVersion": str(version), "creationTimestamp": None}
        metadata |= {"annotations": dict(annotations)} if annotations else {}
        resource = self._query.resource
        body = {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}
        return {"type": "BOOKMARK", "object": body}


def _error(failure: errors.ApiFailure) -> Json:
    return {"type": "ERROR", "object": failure.status()}


def line(event: Json) -> bytes:
    """Return an event as a line of the stream."""
    return orjson.dumps(event) + b"\n"
