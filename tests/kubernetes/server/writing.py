"""From a request's object to what is stored: unknown fields, defaults, rules, versions and owners of fields."""

import random
import string
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tests.kubernetes.server.errors import Json, bad_request, invalid
from tests.kubernetes.server.fields import ownership
from tests.kubernetes.server.fields.ownership import BEFORE_FIRST_APPLY, UPDATE, Manager, Owned, Write
from tests.kubernetes.server.schema.canonical import canonical, counts
from tests.kubernetes.server.schema.defaults import with_defaults
from tests.kubernetes.server.schema.resources import Resource
from tests.kubernetes.server.schema.rules import broken_rules

STRICT, WARN = "Strict", "Warn"
WRITTEN_BY_SERVER = (
    *("uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds"),
    *("name", "namespace"),
)
FIXED = {"Deployment": ("selector",), "ReplicaSet": ("selector",)}
"""Fields of a spec that no update changes."""
FIXED_OUTSIDE = ("roleRef",)
"""The same outside of a spec."""
CHANGEABLE_OF_PODS = ("image", "resources")


@dataclass(frozen=True)
class Options:
    """What a write asks for beside its object."""

    manager: str = "unknown"
    operation: str = UPDATE
    dry_run: bool = False
    field_validation: str = WARN
    force: bool = False
    warnings: list[str] = field(default_factory=list, compare=False)


def now_text() -> str:
    """Return the time as objects have it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def generated_name(prefix: str) -> str:
    """Return a name that begins so."""
    alphabet = string.ascii_lowercase + string.digits
    return prefix + "".join(random.choices(alphabet, k=5))


def checked_fields(resource: Resource, obj: Json, options: Options) -> Json:
    """Return the object without undeclared fields. ApiFailure 400 with `fieldValidation=Strict`."""
    unknown = list(resource.schema.unknown_fields(obj))
    if unknown and options.field_validation == STRICT:
        text = ", ".join(f'unknown field "{each}"' for each in unknown)
        raise bad_request(f"strict decoding error: {text}")
    if options.field_validation == WARN:
        options.warnings.extend(f'unknown field "{each}"' for each in unknown)
    pruned: Json = resource.schema.pruned(obj) if unknown else obj
    return pruned


def identified(resource: Resource, obj: Json, namespace: str) -> Json:
    """Return the object with kind and namespace. ApiFailure 400 if they contradict the request."""
    if not isinstance(obj, dict):
        raise bad_request("the body is no object")
    for name, value in (("apiVersion", resource.api_version), ("kind", resource.kind)):
        if obj.get(name, value) != value:
            raise bad_request(f"{name} is {obj[name]}, but this is where {value} is served")
    metadata = obj.get("metadata") or {}
    if metadata.get("namespace", namespace) != namespace and resource.namespaced:
        raise bad_request(f"the namespace of the object is {metadata['namespace']}, that of the request {namespace}")
    place = {"namespace": namespace} if resource.namespaced else {}
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        **{name: each for name, each in obj.items() if name not in {"apiVersion", "kind", "metadata"}},
        "metadata": {**metadata, **place},
    }


def filled(resource: Resource, obj: Json) -> Json:
    """Return the object with defaults; null is no value of Kubernetes' own kinds."""
    if resource.is_custom:
        found: Json = resource.schema.with_defaults(obj)
        return found
    if "spec" in obj and obj["spec"] is None:
        obj = {name: each for name, each in obj.items() if name != "spec"}
    obj = _without_nulls(obj)
    check_types(resource, obj)
    obj = canonical(obj, resource.schema)
    if resource.has_status:
        obj |= {"status": counts(resource.schema.field("status")) | (obj.get("status") or {})}
    return with_defaults(resource.kind, obj) if _is_formed(obj) else obj


def _is_formed(obj: Json) -> bool:
    return isinstance(obj.get("spec", {}), dict) and ("spec" in obj or obj["kind"] in {"Namespace", "Secret"})


def _without_nulls(obj: Json) -> Json:
    return {
        name: _without_nulls(each) if isinstance(each, dict) else each for name, each in obj.items() if each is not None
    }


def check_types(resource: Resource, obj: Json) -> None:
    """ApiFailure 400 if a value has another type than its field."""
    wrong = [f"{path}: {message}" for path, message in resource.schema.violations(obj) if "is not of type" in message]
    if wrong:
        raise bad_request("; ".join(wrong))


def check_rules(resource: Resource, obj: Json, old: Json | None) -> None:
    """ApiFailure 422 with each rule that the object breaks."""
    name = obj["metadata"].get("name", "")
    found = resource.schema.violations(obj)
    found += broken_rules(resource, obj)
    if old is not None:
        found += _changed_fixed_fields(obj, old)
    if found:
        raise invalid(resource.kind, name, found, group=resource.group)


def _changed_fixed_fields(obj: Json, old: Json) -> list[tuple[str, str]]:
    if obj["kind"] == "Pod" and _fixed_of_pod(obj) != _fixed_of_pod(old):
        return [("spec", "of a pod only images, tolerations and resources may change")]
    new, former = obj.get("spec") or {}, old.get("spec") or {}
    fixed = [f"spec.{name}" for name in FIXED.get(obj["kind"], ()) if new.get(name) != former.get(name)]
    fixed += [name for name in FIXED_OUTSIDE if obj.get(name) != old.get(name)]
    return [(name, "the field does not change") for name in fixed]


def _fixed_of_pod(pod: Json) -> Json:
    spec = pod.get("spec") or {}
    free = {"tolerations", "activeDeadlineSeconds", "terminationGracePeriodSeconds"}
    containers = [
        {name: each for name, each in one.items() if name not in CHANGEABLE_OF_PODS} for one in spec["containers"]
    ]
    return {name: each for name, each in spec.items() if name not in free} | {"containers": containers}


def created(obj: Json) -> Json:
    """Return the object with what the server writes as it comes into being."""
    metadata = {name: each for name, each in obj["metadata"].items() if name not in {"resourceVersion", "generation"}}
    kept = {name: each for name, each in metadata.items() if not name.startswith("deletion")}
    return {
        **obj,
        "metadata": {**kept, "uid": str(uuid.uuid4()), "creationTimestamp": now_text()},
    }


def carried_over(resource: Resource, new: Json, old: Json, subresource: str) -> Json:
    """Return the object with those parts of the old one that this request does not write."""
    if subresource == "status":
        return {**old, "status": new.get("status", {})} if "status" in new else _without_status(old)
    server = {name: old["metadata"][name] for name in WRITTEN_BY_SERVER if name in old["metadata"]}
    given = {name: each for name, each in new["metadata"].items() if name not in WRITTEN_BY_SERVER}
    result = {**new, "metadata": given | server}
    if resource.has_status:
        result = _without_status(result) | ({"status": old["status"]} if "status" in old else {})
    return result


def _without_status(obj: Json) -> Json:
    return {name: each for name, each in obj.items() if name != "status"}


def numbered(resource: Resource, new: Json, old: Json | None) -> Json:
    """Return the object with its generation: one more if the desired state changed."""
    if not resource.counts_generations:
        return new
    before = old["metadata"].get("generation", 1) if old else 0
    changed = old is None or desired(resource, new) != desired(resource, old)
    return {**new, "metadata": {**new["metadata"], "generation": before + changed}}


def desired(resource: Resource, obj: Json) -> Json:
    """Return the part of an object whose changes are counted by its generation."""
    if not resource.is_custom:
        return obj.get("spec") or {}
    left_out = {"metadata", "apiVersion", "kind"} | ({"status"} if resource.has_status else set())
    return {name: each for name, each in obj.items() if name not in left_out}


def write_of(resource: Resource, options: Options, subresource: str) -> Write:
    """Return who writes what with a request."""
    manager = Manager(options.manager, options.operation, resource.api_version, subresource)
    if subresource == "status":
        ignored = frozenset({("f:spec",), ("f:metadata",)})
    else:
        ignored = frozenset({("f:status",)} if resource.has_status else ())
    return Write(manager, resource.schema, ignored)


def with_updated_owners(resource: Resource, new: Json, old: Json, options: Options, subresource: str) -> Json:
    """Return the object with the owners of its fields after a write that is no apply."""
    if new["metadata"].get("managedFields") == [{}]:
        return ownership.with_owners(new, {}, before={}, now="")
    write = write_of(resource, options, subresource)
    owners = ownership.update(_unmanaged(old), _unmanaged(new), ownership.read_owners(old), write)
    return ownership.with_owners(new, owners, before=old, now=now_text())


def applied(
    resource: Resource, live: Json | None, config: Json, options: Options, subresource: str
) -> tuple[Json, Owned]:
    """Return the object with the configuration applied, and its owners."""
    base = _unmanaged(live) if live else {"metadata": {}}
    write = write_of(resource, options, subresource)
    owners = ownership.read_owners(live) if live else {}
    if live and not owners:
        former = write_of(resource, Options(manager=BEFORE_FIRST_APPLY), "")
        owners = ownership.update({"metadata": {}}, base, {}, former)
    return ownership.apply(base, config, owners, write, force=options.force)


def _unmanaged(obj: Json) -> Json:
    metadata = {name: each for name, each in obj.get("metadata", {}).items() if name != "managedFields"}
    return {**obj, "metadata": metadata}


def is_same(new: Json, old: Json) -> bool:
    """Return whether a write changes nothing, times and version aside."""
    return _compared(new) == _compared(old)


def _compared(obj: Json) -> Json:
    metadata = {name: each for name, each in obj["metadata"].items() if name != "resourceVersion"}
    return {**obj, "metadata": metadata}
