"""Objects by resource and name with one growing version, and the log of their changes that watches read."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.kubernetes.server.errors import Json
from tests.kubernetes.server.schema.resources import Resource

Place = tuple[str, str]
"""Group and plural: versions of one kind share their objects."""
Key = tuple[str, str]
"""Namespace, empty of a resource of the whole cluster, and name."""
KEPT_EVENTS = 20_000


def place_of(resource: Resource) -> Place:
    """Return under what the objects of a resource are kept."""
    return resource.group, resource.plural


def key_of(obj: Json) -> Key:
    """Return the key of an object."""
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


@dataclass(frozen=True)
class Change:
    """An object that came, changed or went: `new` is None of one that went."""

    version: int
    place: Place
    key: Key
    old: Json | None
    new: Json | None
    last: Json
    """The object as of this version, also if it went."""


@dataclass(eq=False)
class Subscription:
    """Changes of one resource, in their order."""

    place: Place | None
    queue: "asyncio.Queue[Change | None]" = field(default_factory=asyncio.Queue)
    """None: the events that should come are gone."""


class Storage:
    """All objects of one API server. An object in here is never changed in place."""

    def __init__(self) -> None:
        self.version = 1
        self.oldest = 1
        """Watches can go on from this version or a later one."""
        self._objects: dict[Place, dict[Key, Json]] = {}
        self._log: deque[Change] = deque(maxlen=KEPT_EVENTS)
        self._subscriptions: set[Subscription] = set()
        self.listeners: list[Callable[[Change], None]] = []

    def get(self, place: Place, key: Key) -> Json | None:
        """Return an object."""
        return self._objects.get(place, {}).get(key)

    def of(self, place: Place, namespace: str = "") -> list[Json]:
        """Return the objects of a resource in a namespace, or in all, by their names."""
        found = self._objects.get(place, {})
        return [found[key] for key in sorted(found) if not namespace or key[0] == namespace]

    def all(self) -> Iterator[tuple[Place, Json]]:
        """Yield every object with its place."""
        return ((place, obj) for place, objects in list(self._objects.items()) for obj in list(objects.values()))

    def put(self, place: Place, obj: Json) -> Json:
        """Store an object under a new version and return it as stored."""
        self.version += 1
        stored = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.version)}}
        key = key_of(stored)
        objects = self._objects.setdefault(place, {})
        old = objects.get(key)
        objects[key] = stored
        self._record(Change(self.version, place, key, old, stored, stored))
        return stored

    def remove(self, place: Place, key: Key) -> Json:
        """Remove an object and return it as of the version of its end."""
        self.version += 1
        old = self._objects[place].pop(key)
        last = {**old, "metadata": {**old["metadata"], "resourceVersion": str(self.version)}}
        self._record(Change(self.version, place, key, old, None, last))
        return last

    def _record(self, change: Change) -> None:
        if len(self._log) == KEPT_EVENTS:
            self.oldest = self._log[0].version
        self._log.append(change)
        for one in list(self._subscriptions):
            if one.place in {None, change.place}:
                one.queue.put_nowait(change)
        for listener in self.listeners:
            listener(change)

    def subscribe(self, place: Place | None, since: int | None = None) -> Subscription:
        """Return a subscription that begins after a version, or now."""
        found = Subscription(place)
        for change in self._log:
            if since is not None and change.version > since and place in {None, change.place}:
                found.queue.put_nowait(change)
        self._subscriptions.add(found)
        return found

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription."""
        self._subscriptions.discard(subscription)

    def expire(self, *, running: bool) -> None:
        """Forget the log, so that clients list again before they watch; `running`: open watches get 410, too."""
        self._log.clear()
        self.oldest = self.version
        for one in list(self._subscriptions) if running else ():
            if one.place is not None:
                one.queue.put_nowait(None)
