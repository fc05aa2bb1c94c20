"""Sets of fields as `managedFields` keeps them: of an object, of the difference of two, and as a FieldsV1 document.

A path is a tuple of FieldsV1's own elements: `f:spec`, `k:{"name":"main"}` for an item by its keys, `v:"a"` for an
item of a set. The rules are those of Kubernetes' structured merge: a field or an item is owned by itself, a struct is
not, and an atomic list or map is one field.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from tests.kubernetes.server.schema.schema import Json, Schema

Path = tuple[str, ...]
FieldSet = frozenset[Path]
ITSELF = "."
MISSING: Any = object()


def is_granular_map(value: Any, schema: Schema) -> bool:
    """Return whether each field of the value has an owner of its own."""
    return isinstance(value, dict) and not schema.is_atomic_map


def is_granular_list(value: Any, schema: Schema) -> bool:
    """Return whether each item of the value has an owner of its own."""
    return isinstance(value, list) and schema.list_type != "atomic"


def fields_of(value: Any, schema: Schema) -> FieldSet:
    """Return the fields that an applied configuration claims."""
    return frozenset(_walk(value, schema, ()))


def _walk(value: Any, schema: Schema, path: Path) -> Iterator[Path]:
    if is_granular_map(value, schema):
        for name, each in value.items():
            child = (*path, f"f:{name}")
            yield from _walk(each, schema.field(name), child)
            if each is None or each == {} or not schema.declares(name):
                yield child
    elif is_granular_list(value, schema):
        for each in value:
            child = (*path, schema.item_key(each))
            yield from _walk(each, schema.items, child)
            yield child
    else:
        yield path


def to_document(fields: FieldSet) -> Json:
    """Return the FieldsV1 document."""
    root: Json = {}
    for path in sorted(fields):
        node = root
        for element in path:
            node = node.setdefault(element, {})
        node[ITSELF] = {}
    return _without_lone_marks(root)


def _without_lone_marks(node: Json) -> Json:
    return {} if node.keys() == {ITSELF} else {name: _without_lone_marks(each) for name, each in node.items()}


def from_document(document: Json) -> FieldSet:
    """Read a FieldsV1 document."""
    return frozenset(_read(document, ()))


def _read(node: Json, path: Path) -> Iterator[Path]:
    for name, each in node.items():
        if name == ITSELF:
            yield path
        elif each:
            yield from _read(each, (*path, name))
        else:
            yield (*path, name)


@dataclass
class Difference:
    """Fields that one of two objects lacks, and those whose values differ."""

    added: set[Path] = field(default_factory=set)
    modified: set[Path] = field(default_factory=set)
    removed: set[Path] = field(default_factory=set)

    def note(self, path: Path, old: Any, new: Any) -> None:
        """Take a field into account."""
        if old is MISSING:
            self.added.add(path)
        elif new is MISSING:
            self.removed.add(path)
        elif old != new:
            self.modified.add(path)


def difference(old: Any, new: Any, schema: Schema) -> Difference:
    """Compare two objects field by field; the order of granular lists does not count."""
    found = Difference()
    _compare(old, new, schema, (), found)
    return found


def _compare(old: Any, new: Any, schema: Schema, path: Path, found: Difference) -> None:
    if old is new:
        return
    if not (old or new) or not _is_branch(old, schema) or not _is_branch(new, schema) or _differ_in_form(old, new):
        found.note(path, old, new)
        return
    before, after = _children(old, schema), _children(new, schema)
    for element in before.keys() | after.keys():
        child = schema.field(element[2:]) if element.startswith("f:") else schema.items
        _compare(before.get(element, MISSING), after.get(element, MISSING), child, (*path, element), found)
    if path and (old is MISSING or new is MISSING):
        found.note(path, old, new)


def _is_branch(value: Any, schema: Schema) -> bool:
    return value is MISSING or is_granular_map(value, schema) or is_granular_list(value, schema)


def _differ_in_form(old: Any, new: Any) -> bool:
    return old is not MISSING and new is not MISSING and type(old) is not type(new)


def _children(value: Any, schema: Schema) -> dict[str, Any]:
    if value is MISSING:
        return {}
    if isinstance(value, dict):
        return {f"f:{name}": each for name, each in value.items()}
    return {schema.item_key(each): each for each in value}


def without(value: Any, schema: Schema, gone: FieldSet, path: Path = ()) -> Any:
    """Return the value without these fields and items, and without structs that they leave empty."""
    if is_granular_map(value, schema):
        left = {}
        for name, each in value.items():
            child = (*path, f"f:{name}")
            if child not in gone:
                rest = without(each, schema.field(name), gone, child)
                if rest or rest == each:
                    left[name] = rest
        return left
    if is_granular_list(value, schema):
        kept = ((each, (*path, schema.item_key(each))) for each in value)
        return [without(each, schema.items, gone, child) for each, child in kept if child not in gone]
    return value


def with_structs(fields: FieldSet, schema: Schema) -> FieldSet:
    """Return the set with the structs around its fields, which it mostly leaves out."""
    found = set(fields)
    for path in fields:
        node = schema
        for depth, element in enumerate(path):
            is_field = element.startswith("f:")
            if is_field and node.declares(element[2:]):
                found.add(path[: depth + 1])
            node = node.field(element[2:]) if is_field else node.items
    return frozenset(found)


def as_text(path: Path) -> str:
    """Return a path as it appears in a conflict: `.spec.containers[name="main"].image`."""
    return "".join(_element_text(element) for element in path)


def _element_text(element: str) -> str:
    kind, value = element[:1], element[2:]
    if kind == "f":
        return f".{value}"
    if kind == "k":
        return f"[{','.join(f'{name}={orjson.dumps(each).decode()}' for name, each in orjson.loads(value).items())}]"
    return f"[={value}]"
