"""Schemas of kinds: which fields they declare, how their lists and maps merge, and which values they allow."""

import functools
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson

Json = dict[str, Any]
KEY_DEFAULTS = {"protocol": "TCP"}
"""Of keys of list items that a manifest may leave out."""
MISSING = re.compile(r'"(.+)" is a required property')
PACKAGE = "kubernetes_validate"


class Schema:
    """A node of a JSON schema with Kubernetes' extensions; references are followed."""

    def __init__(self, node: Mapping[str, Any], definitions: Mapping[str, Any]) -> None:
        while "$ref" in node:
            node = definitions[node["$ref"].rpartition("/")[2]]
        self.node, self._definitions = node, definitions
        self._fields: dict[str, Schema] = {}

    @functools.cached_property
    def properties(self) -> Mapping[str, Any]:
        """Declared fields."""
        found: Mapping[str, Any] = self.node.get("properties", {})
        return found

    @functools.cached_property
    def is_open(self) -> bool:
        """Whether any field is allowed, of any form."""
        if self.node.get("x-kubernetes-preserve-unknown-fields"):
            return True
        return not self.properties and not isinstance(self.node.get("additionalProperties"), dict)

    @functools.cached_property
    def required(self) -> frozenset[str]:
        """Fields that an object has in any case."""
        return frozenset(self.node.get("required", ()))

    @functools.cached_property
    def types(self) -> frozenset[str]:
        """JSON types of its values; none if any is allowed."""
        found = self.node.get("type", ())
        return frozenset({found} if isinstance(found, str) else found)

    @functools.cached_property
    def is_map(self) -> bool:
        """Whether an object here has keys of the client's choice."""
        return "object" in self.types and not self.properties and "additionalProperties" in self.node

    @functools.cached_property
    def is_quantity(self) -> bool:
        """Whether a value is a number with a suffix."""
        forms = [each.get("type", ()) for each in self.node.get("oneOf", ())]
        return any("number" in each for each in forms)

    @functools.cached_property
    def is_atomic_map(self) -> bool:
        """Whether an object here has one owner for all its fields."""
        return self.node.get("x-kubernetes-map-type") == "atomic"

    @functools.cached_property
    def list_type(self) -> str:
        """How a list here merges: atomic, set or map."""
        found: str = self.node.get("x-kubernetes-list-type", "atomic")
        return found

    @functools.cached_property
    def list_keys(self) -> tuple[str, ...]:
        """Fields that tell the items of a list of type map apart."""
        return tuple(self.node.get("x-kubernetes-list-map-keys", ()))

    @functools.cached_property
    def patch_key(self) -> str | None:
        """Field by which a strategic merge patch merges a list; None if it replaces the list."""
        strategy = self.node.get("x-kubernetes-patch-strategy", "")
        return self.node.get("x-kubernetes-patch-merge-key") if "merge" in strategy.split(",") else None

    @functools.cached_property
    def merges_as_set(self) -> bool:
        """Whether a strategic merge patch adds to a list of scalars."""
        return self.patch_key is None and self.node.get("x-kubernetes-patch-strategy") == "merge"

    @functools.cached_property
    def items(self) -> "Schema":
        """Schema of the items of a list."""
        return Schema(self.node.get("items", {}), self._definitions)

    def declares(self, name: str) -> bool:
        """Return whether it is a field of this kind, not a key of a map."""
        return name in self.properties

    def field(self, name: str) -> "Schema":
        """Return the schema of a field or of a value of a map; an open one if neither is declared."""
        if name not in self._fields:
            extra = self.node.get("additionalProperties")
            node = self.properties.get(name, extra if isinstance(extra, dict) else {})
            self._fields[name] = Schema(node, self._definitions)
        return self._fields[name]

    def allows(self, name: str) -> bool:
        """Return whether an object may have this field."""
        return self.is_open or name in self.properties or bool(self.node.get("additionalProperties"))

    def item_key(self, item: Any) -> str:
        """Return the path element of an item of a list of type set or map."""
        if self.list_type == "set" or not isinstance(item, dict):
            return f"v:{orjson.dumps(item).decode()}"
        keys = {key: item.get(key, KEY_DEFAULTS.get(key)) for key in sorted(self.list_keys)}
        return f"k:{orjson.dumps({key: value for key, value in keys.items() if value is not None}).decode()}"

    def unknown_fields(self, value: Any, path: str = "") -> Iterator[str]:
        """Yield paths of fields that are not declared."""
        if isinstance(value, dict):
            for name, each in value.items():
                here = f"{path}.{name}" if path else name
                if self.allows(name):
                    yield from self.field(name).unknown_fields(each, here)
                else:
                    yield here
        elif isinstance(value, list):
            for number, each in enumerate(value):
                yield from self.items.unknown_fields(each, f"{path}[{number}]")

    def repeated_items(self, value: Any, path: str = "") -> Iterator[str]:
        """Yield paths of items of lists that have the key of another one."""
        if isinstance(value, dict):
            for name, each in value.items():
                yield from self.field(name).repeated_items(each, f"{path}.{name}")
        elif isinstance(value, list):
            keys = [self.item_key(each) for each in value] if self.list_type != "atomic" else []
            yield from (f"{path}[{key}]" for number, key in enumerate(keys) if key in keys[:number])
            for number, each in enumerate(value):
                yield from self.items.repeated_items(each, f"{path}[{number}]")

    def pruned(self, value: Any) -> Any:
        """Return the value without undeclared fields."""
        if isinstance(value, dict):
            return {name: self.field(name).pruned(each) for name, each in value.items() if self.allows(name)}
        if isinstance(value, list):
            return [self.items.pruned(each) for each in value]
        return value

    def with_defaults(self, value: Any) -> Any:
        """Return the value with the defaults that the schema declares."""
        if isinstance(value, dict):
            given = {name: self.field(name).with_defaults(each) for name, each in value.items()}
            missing = {name: self.field(name) for name in self.properties if name not in given}
            return given | {name: each.node["default"] for name, each in missing.items() if "default" in each.node}
        if isinstance(value, list):
            return [self.items.with_defaults(each) for each in value]
        return value

    @functools.cached_property
    def _validator(self) -> Any:
        return jsonschema_rs.Draft202012Validator({**self.node, "$defs": self._definitions})

    def violations(self, value: Any) -> list[tuple[str, str]]:
        """Return (field, message) of each rule that the value breaks."""
        return [_told(_dotted(error.instance_path), error.message) for error in self._validator.iter_errors(value)]


def _told(field: str, message: str) -> tuple[str, str]:
    """Return what is broken; a missing field by its own name."""
    missing = MISSING.fullmatch(message)
    return (f"{field}.{missing[1]}".lstrip("."), "Required value") if missing else (field, message)


def _dotted(path: list[str | int]) -> str:
    return "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in path).lstrip(".")


@functools.cache
def core_definitions() -> Mapping[str, Any]:
    """Read the published schemas of Kubernetes' own kinds: those of the newest version in kubernetes-validate."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None, f"not installed: {PACKAGE}"
    folder = Path(next(iter(spec.submodule_search_locations or ()))) / "kubernetes-json-schema"
    newest = max(folder.glob("v*-local"), key=lambda each: [int(part) for part in re.findall(r"\d+", each.name)])
    found: Mapping[str, Any] = orjson.loads((newest / "_definitions.json").read_bytes())["$defs"]
    return found


@functools.cache
def core_schema(group: str, version: str, kind: str) -> Schema:
    """Return the schema of one of Kubernetes' own kinds."""
    wanted = {"group": group, "version": version, "kind": kind}
    definitions = core_definitions()
    node = next(each for each in definitions.values() if wanted in each.get("x-kubernetes-group-version-kind", ()))
    return Schema(node, definitions)


def custom_schema(document: Mapping[str, Any]) -> Schema:
    """Return the schema of a custom resource, from `openAPIV3Schema`."""
    meta = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
    node = _to_json_schema(document)
    properties = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"$ref": f"#/$defs/{meta}"},
    }
    return Schema({**node, "properties": node.get("properties", {}) | properties}, core_definitions())


def _to_json_schema(node: Any) -> Any:
    """Translate OpenAPI's `nullable` and Kubernetes' integers or strings."""
    if isinstance(node, list):
        return [_to_json_schema(each) for each in node]
    if not isinstance(node, dict):
        return node
    found = {name: _to_json_schema(each) for name, each in node.items()}
    if found.get("nullable") is True and isinstance(found.get("type"), str):
        found["type"] = [found["type"], "null"]
    if found.get("x-kubernetes-int-or-string") is True:
        found["type"] = ["integer", "string"]
    return found
