"""Deletes what an end leaves behind: dependents of owners that went, and the contents of namespaces."""

from collections.abc import Iterable

from tests.kubernetes.server.cluster import FOREGROUND, ORPHAN, Cluster
from tests.kubernetes.server.errors import Json
from tests.kubernetes.server.storage import Change, Key, Place

MANAGER = "garbage-collector"


class GarbageCollector:
    """Looks at the dependents of an owner, by its uid, and at objects whose owners may be absent."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._dependents: dict[str, set[tuple[Place, Key]]] = {}
        self._places: dict[str, tuple[Place, Key]] = {}

    def concerned(self, change: Change) -> Iterable[Key]:
        """Return uids, as keys: of an owner that changed, and of the owners of an object that came or went."""
        self._places[change.last["metadata"]["uid"]] = change.place, change.key
        for reference in owners_of(change.last):
            known = self._dependents.setdefault(reference["uid"], set())
            (known.add if change.new else known.discard)((change.place, change.key))
            yield "", reference["uid"]
        if change.new is None or "deletionTimestamp" in change.new["metadata"]:
            yield "", change.last["metadata"]["uid"]

    def reconcile(self, key: Key) -> None:
        """Let the dependents of an owner follow it."""
        uid = key[1]
        known = sorted(self._dependents.get(uid, ()))
        dependents = [(place, obj) for place, each in known if (obj := self._at(place, each)) and _is_owned(obj, uid)]
        owner = self._owner(uid)
        if owner is None:
            self._collect(uid, dependents)
        elif "deletionTimestamp" in owner["metadata"]:
            self._finish(owner, uid, dependents)

    def _at(self, place: Place, key: Key) -> Json | None:
        return self._cluster.storage.get(place, key)

    def _owner(self, uid: str) -> Json | None:
        found = self._at(*self._places[uid]) if uid in self._places else None
        return found if found and found["metadata"]["uid"] == uid else None

    def _collect(self, uid: str, dependents: list[tuple[Place, Json]]) -> None:
        for _, obj in dependents:
            others = [each for each in owners_of(obj) if each["uid"] != uid and self._owner(each["uid"])]
            if others:
                self._disown(obj, uid)
            else:
                self._delete(obj, "Background")

    def _finish(self, owner: Json, uid: str, dependents: list[tuple[Place, Json]]) -> None:
        """Do what the finalizers of an owner under deletion ask for."""
        finalizers = owner["metadata"].get("finalizers") or []
        if ORPHAN in finalizers:
            for _, obj in dependents:
                self._disown(obj, uid)
            self._release(owner, ORPHAN)
        elif FOREGROUND in finalizers:
            for _, obj in dependents:
                self._delete(obj, "Foreground")
            if not any(_blocks(obj, uid) for place, obj in dependents if self._at(place, _key(obj))):
                self._release(owner, FOREGROUND)

    def _delete(self, obj: Json, propagation: str) -> None:
        if "deletionTimestamp" in obj["metadata"]:
            return
        resource = self._cluster.resource(obj["apiVersion"], obj["kind"])
        self._cluster.delete(resource, *_key(obj), {"propagationPolicy": propagation})

    def _disown(self, obj: Json, uid: str) -> None:
        left = [each for each in owners_of(obj) if each["uid"] != uid]
        metadata = {name: each for name, each in obj["metadata"].items() if name != "ownerReferences"}
        self._change({**obj, "metadata": metadata | ({"ownerReferences": left} if left else {})})

    def _release(self, obj: Json, finalizer: str) -> None:
        left = [each for each in obj["metadata"]["finalizers"] if each != finalizer]
        metadata = {name: each for name, each in obj["metadata"].items() if name != "finalizers"}
        self._change({**obj, "metadata": metadata | ({"finalizers": left} if left else {})})

    def _change(self, obj: Json) -> None:
        self._cluster.change(self._cluster.resource(obj["apiVersion"], obj["kind"]), obj, MANAGER)


class NamespaceEnd:
    """Empties a namespace that is being terminated, and then removes it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def concerned(self, change: Change) -> Iterable[Key]:
        """Return namespaces: that change, or that lose an object."""
        if change.place == ("", "namespaces"):
            yield change.key
        elif change.new is None and change.key[0]:
            yield "", change.key[0]

    def reconcile(self, key: Key) -> None:
        """Delete what is inside; remove the namespace once nothing is."""
        namespace = self._cluster.storage.get(("", "namespaces"), key)
        if namespace is None or "deletionTimestamp" not in namespace["metadata"]:
            return
        inside = [obj for _, obj in self._cluster.storage.all() if obj["metadata"].get("namespace") == key[1]]
        for obj in inside:
            if "deletionTimestamp" not in obj["metadata"]:
                resource = self._cluster.resource(obj["apiVersion"], obj["kind"])
                self._cluster.delete(resource, *_key(obj), {})
        if not inside and not namespace["metadata"].get("finalizers"):
            self._cluster.storage.remove(("", "namespaces"), key)


def owners_of(obj: Json) -> list[Json]:
    """Return the owner references of an object."""
    found: list[Json] = obj["metadata"].get("ownerReferences") or []
    return found


def _key(obj: Json) -> Key:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def _is_owned(obj: Json, uid: str) -> bool:
    return any(each["uid"] == uid for each in owners_of(obj))


def _blocks(obj: Json, uid: str) -> bool:
    return any(each["uid"] == uid and each.get("blockOwnerDeletion") for each in owners_of(obj))
