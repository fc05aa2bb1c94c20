"""Server-side apply and the ownership of fields, after the rules of Kubernetes' structured merge.

An owner is a manager with its operation, Apply or Update, and a subresource. An apply conflicts if it changes a field
that another one owns; a write by Update takes fields from their owners. A field that an applier drops is
removed if it has no other owner.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.kubernetes.server.errors import ApiFailure
from tests.kubernetes.server.fields.field_sets import (
    FieldSet,
    as_text,
    difference,
    fields_of,
    from_document,
    to_document,
    with_structs,
    without,
)
from tests.kubernetes.server.fields.merge import merged
from tests.kubernetes.server.schema.schema import Json, Schema

APPLY, UPDATE = "Apply", "Update"
BEFORE_FIRST_APPLY = "before-first-apply"
NOT_OWNED = frozenset({("f:apiVersion",), ("f:kind",), ("f:metadata",)}) | {
    ("f:metadata", f"f:{name}")
    for name in (
        *("name", "namespace", "uid", "creationTimestamp", "generation", "managedFields", "resourceVersion"),
        *("deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"),
    )
}
"""Fields that the server writes, or that tell objects apart."""


@dataclass(frozen=True, order=True)
class Manager:
    """An owner of fields."""

    name: str
    operation: str
    api_version: str
    subresource: str = ""

    def __str__(self) -> str:
        part = f' with subresource "{self.subresource}"' if self.subresource else ""
        version = f" using {self.api_version}" if self.operation == UPDATE else ""
        return f'"{self.name}"{part}{version}'


Owned = dict[Manager, FieldSet]


@dataclass(frozen=True)
class Write:
    """What one request does: who writes what of which kind."""

    manager: Manager
    schema: Schema
    ignored: FieldSet = frozenset()
    """Fields of another subresource, with everything in them."""

    def owned(self, fields: FieldSet) -> FieldSet:
        """Return those fields that this write can own."""
        return frozenset(path for path in fields if path not in NOT_OWNED and not self._ignores(path))

    def _ignores(self, path: tuple[str, ...]) -> bool:
        return any(path[: len(each)] == each for each in self.ignored)


def read_owners(obj: Json) -> Owned:
    """Read `managedFields` of an object."""
    return {_manager(each): from_document(each.get("fieldsV1", {})) for each in _entries(obj)}


def _entries(obj: Json) -> Iterator[Json]:
    return (each for each in obj.get("metadata", {}).get("managedFields") or () if each)


def _manager(entry: Json) -> Manager:
    return Manager(entry["manager"], entry["operation"], entry["apiVersion"], entry.get("subresource", ""))


def with_owners(obj: Json, owners: Owned, *, before: Json, now: str) -> Json:
    """Return the object with its `managedFields`; an entry keeps its time while its fields are the same."""
    known = {_manager(each): each for each in _entries(before)}
    entries = [_entry(one, to_document(owners[one]), known.get(one), now) for one in sorted(owners) if owners[one]]
    metadata = {name: each for name, each in obj["metadata"].items() if name != "managedFields"}
    return {**obj, "metadata": metadata | ({"managedFields": entries} if entries else {})}


def _entry(manager: Manager, document: Json, known: Json | None, now: str) -> Json:
    if known and known.get("fieldsV1") == document:
        return known
    entry = {
        "manager": manager.name,
        "operation": manager.operation,
        "apiVersion": manager.api_version,
        "time": now,
        "fieldsType": "FieldsV1",
        "fieldsV1": document,
    }
    return entry | ({"subresource": manager.subresource} if manager.subresource else {})


def update(live: Json, new: Json, owners: Owned, write: Write) -> Owned:
    """Return the owners after a write that takes what it changes."""
    left, change = _after_change(live, new, owners, write)
    gained = write.owned(frozenset(change.added | change.modified))
    return left | {write.manager: (left.get(write.manager, frozenset()) - change.removed) | gained}


def apply(live: Json, config: Json, owners: Owned, write: Write, *, force: bool) -> tuple[Json, Owned]:
    """Return the object with `config` applied, and its owners. ApiFailure 409 names each other owner."""
    before = owners.get(write.manager, frozenset())
    claimed = fields_of(config, write.schema)
    combined = merged(live, config, write.schema)
    new = _pruned(combined, before, owners | {write.manager: claimed}, write.schema)
    owners = owners | {write.manager: write.owned(claimed)}
    change = difference(live, new, write.schema)
    conflicts = _conflicts(owners, frozenset(change.added | change.modified), write.manager)
    if conflicts and not force:
        raise _conflict(conflicts)
    left, _ = _after_change(live, new, owners, write)
    return new, left


def _after_change(live: Json, new: Json, owners: Owned, write: Write) -> tuple[Owned, Any]:
    """Take from all others what this write changes or removes."""
    change = difference(live, new, write.schema)
    taken = write.owned(frozenset(change.added | change.modified)) | change.removed
    return {one: fields if one == write.manager else fields - taken for one, fields in owners.items()}, change


def _conflicts(owners: Owned, changed: FieldSet, applier: Manager) -> Owned:
    shared = {one: fields & changed for one, fields in owners.items() if one != applier}
    return {one: fields for one, fields in sorted(shared.items()) if fields}


def _conflict(conflicts: Owned) -> ApiFailure:
    causes = [
        {"reason": "FieldManagerConflict", "message": f"conflict with {one}", "field": as_text(path)}
        for one, fields in conflicts.items()
        for path in sorted(fields)
    ]
    noun = "conflict" if len(causes) == 1 else "conflicts"
    text = "; ".join(f"{each['message']}: {each['field']}" for each in causes)
    return ApiFailure(409, "Conflict", f"Apply failed with {len(causes)} {noun}: {text}", details={"causes": causes})


def _pruned(new: Json, before: FieldSet, owners: Mapping[Manager, FieldSet], schema: Schema) -> Json:
    """Remove what the applier owned and no one owns now; what lies in removed items and has another owner stays."""
    if not before:
        return new
    dropped = without(new, schema, with_structs(before, schema))
    claimed = with_structs(frozenset().union(*owners.values()), schema)
    everything = with_structs(fields_of(new, schema), schema)
    kept = with_structs(fields_of(dropped, schema), schema)
    back = without(new, schema, everything - kept - claimed)
    dangling = (everything - with_structs(fields_of(back, schema), schema)) & with_structs(before, schema)
    result: Json = without(new, schema, dangling)
    return result
