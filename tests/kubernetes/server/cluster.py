"""The operations of the API server double on its objects: what each request means, without HTTP."""

from collections.abc import Callable
from typing import Any

from tests.kubernetes.server import errors
from tests.kubernetes.server.accounts import ACCOUNT, ROOT_AUTHORITY, with_account
from tests.kubernetes.server.certificates import authority
from tests.kubernetes.server.errors import Json
from tests.kubernetes.server.fields.ownership import APPLY, with_owners
from tests.kubernetes.server.fields.patches import json_patched, merge_patched, strategic_patched
from tests.kubernetes.server.quotas import check_quotas
from tests.kubernetes.server.schema.registry import Registry
from tests.kubernetes.server.schema.resources import Resource, installed_definitions
from tests.kubernetes.server.storage import Change, Key, Storage, place_of
from tests.kubernetes.server.writing import (
    Options,
    applied,
    carried_over,
    check_rules,
    checked_fields,
    created,
    filled,
    generated_name,
    identified,
    is_same,
    now_text,
    numbered,
    with_updated_owners,
)

ORPHAN, FOREGROUND = "orphan", "foregroundDeletion"
PROPAGATION = {"Orphan": ORPHAN, "Foreground": FOREGROUND}
NAMESPACES = ("default", "kube-system", "kube-node-lease", "kube-public")
JSON_PATCH, MERGE_PATCH = "application/json-patch+json", "application/merge-patch+json"
STRATEGIC_PATCH, APPLY_PATCH = "application/strategic-merge-patch+json", "application/apply-patch+yaml"
OPTIONS = "meta.k8s.io"
"""Group of the parameters of requests, as errors name it."""
DEFINITIONS = ("apiextensions.k8s.io", "v1", "customresourcedefinitions")


class Cluster:
    """Objects of one API server and the rules of their changes. For the thread of one event loop."""

    def __init__(self) -> None:
        self.registry, self.storage = Registry(), Storage()
        self.storage.listeners += [self._follow_definitions, self._furnish]
        for name in NAMESPACES:
            self.create(self.resource("v1", "Namespace"), "", {"metadata": {"name": name}}, Options())
        for definition in installed_definitions():
            self.create(self.resource(definition["apiVersion"], definition["kind"]), "", definition, Options())

    def resource(self, api_version: str, kind: str) -> Resource:
        """Return a resource by the words of a manifest."""
        found = self.registry.of_kind(api_version, kind)
        if found is None:
            raise errors.not_found(kind, api_version)
        return found

    def find(self, resource: Resource, namespace: str, name: str) -> Json | None:
        """Return an object, None if there is none."""
        found = self.storage.get(place_of(resource), (namespace, name))
        return _as_version(found, resource)

    def get(self, resource: Resource, namespace: str, name: str) -> Json:
        """Return an object. ApiFailure 404 if there is none."""
        found = self.find(resource, namespace, name)
        if found is None:
            raise errors.not_found(resource.plural, name, resource.group)
        return found

    def objects(self, resource: Resource, namespace: str = "") -> list[Json]:
        """Return the objects of a namespace, or of all, by name."""
        found = self.storage.of(place_of(resource), namespace)
        return [_as_version(each, resource) or each for each in found]

    def create(self, resource: Resource, namespace: str, obj: Json, options: Options) -> Json:
        """Create an object. ApiFailure 409 if its name is taken."""
        obj = self._named(identified(resource, obj, namespace))
        obj = checked_fields(resource, obj, options)
        self._check_place(resource, obj)
        if resource.has_status:
            obj = {name: each for name, each in obj.items() if name != "status"}
        new = created(filled(resource, obj))
        check_rules(resource, new, None)
        self._check_free(resource, new)
        if resource.kind == "Pod":
            new = self._with_account(new)
            self._check_quotas(namespace, new)
        empty = {"apiVersion": new["apiVersion"], "kind": new["kind"], "metadata": {}}
        new = with_updated_owners(resource, numbered(resource, new, None), empty, options, "")
        return self._commit(resource, new, options)

    def _with_account(self, pod: Json) -> Json:
        """Return the pod with its service account. ApiFailure 403 if there is none of that name."""
        namespace, name = pod["metadata"]["namespace"], pod["spec"].get("serviceAccountName") or ACCOUNT
        account = self.find(self.resource("v1", "ServiceAccount"), namespace, name)
        if account is None:
            why = f'error looking up service account {namespace}/{name}: serviceaccount "{name}" not found'
            raise errors.forbidden(f'pods "{pod["metadata"]["name"]}" is forbidden: {why}')
        return with_account(pod, account)

    def _check_quotas(self, namespace: str, pod: Json) -> None:
        quotas = self.objects(self.resource("v1", "ResourceQuota"), namespace)
        if quotas:
            check_quotas(quotas, self.objects(self.resource("v1", "Pod"), namespace), pod)

    def _named(self, obj: Json) -> Json:
        metadata = obj["metadata"]
        if not metadata.get("name") and metadata.get("generateName"):
            metadata = metadata | {"name": generated_name(metadata["generateName"])}
        if metadata.get("resourceVersion"):
            raise errors.internal("resourceVersion should not be set on objects to be created")
        return {**obj, "metadata": metadata}

    def _check_free(self, resource: Resource, obj: Json) -> None:
        """Refuse a name that is taken."""
        namespace, name = _key(obj)
        if self.find(resource, namespace, name) is not None:
            raise errors.already_exists(resource.plural, name, resource.group)

    def _check_place(self, resource: Resource, obj: Json) -> None:
        """Refuse a namespace that is not there or ends."""
        name, namespace = obj["metadata"].get("name", ""), obj["metadata"].get("namespace", "")
        if not resource.namespaced:
            return
        parent = self.get(self.resource("v1", "Namespace"), "", namespace)
        if "deletionTimestamp" in parent["metadata"]:
            raise errors.forbidden(f"{resource.plural} {name!r}: the namespace {namespace} is being terminated")

    def update(
        self, resource: Resource, namespace: str, name: str, obj: Json, options: Options, *, subresource: str = ""
    ) -> Json:
        """Replace an object. ApiFailure 409 if it names another resourceVersion or uid."""
        _check_name(obj, name)
        obj = checked_fields(resource, identified(resource, obj, namespace), options)
        old = self.get(resource, namespace, name)
        self._check_preconditions(resource, old, obj["metadata"])
        if resource.is_custom and not obj["metadata"].get("resourceVersion"):
            why = [("metadata.resourceVersion", "must be given for an update")]
            raise errors.invalid(resource.kind, name, why, group=resource.group)
        return self._replace(resource, old, obj, options, subresource)

    def _replace(self, resource: Resource, old: Json, new: Json, options: Options, subresource: str) -> Json:
        new = filled(resource, carried_over(resource, new, old, subresource))
        check_rules(resource, new, old)
        new = with_updated_owners(resource, numbered(resource, new, old), old, options, subresource)
        return self._store(resource, new, old, options)

    def _store(self, resource: Resource, new: Json, old: Json, options: Options) -> Json:
        new = {**new, "metadata": new["metadata"] | {"resourceVersion": old["metadata"]["resourceVersion"]}}
        if is_same(new, old):
            return old
        if _is_let_go(new):
            return new if options.dry_run else self.storage.remove(place_of(resource), _key(old))
        return self._commit(resource, new, options)

    def _commit(self, resource: Resource, new: Json, options: Options) -> Json:
        return new if options.dry_run else self.storage.put(place_of(resource), new)

    def _check_preconditions(self, resource: Resource, old: Json, given: Json) -> None:
        metadata, plural, group = old["metadata"], resource.plural, resource.group
        if given.get("uid") not in {None, "", metadata["uid"]}:
            why = f"uid is {metadata['uid']}, not {given['uid']}"
            raise errors.conflict(plural, metadata["name"], why, group=group)
        if given.get("resourceVersion") not in {None, "", metadata["resourceVersion"]}:
            raise errors.stale(plural, metadata["name"], group)

    def patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        patch: Any,
        form: str,
        options: Options,
        *,
        subresource: str = "",
    ) -> Json:
        """Change an object by a patch of one of four forms."""
        if form == APPLY_PATCH:
            return self._apply(resource, namespace, name, patch, options, subresource)
        old = self.get(resource, namespace, name)
        patched = _patch_function(resource, form)(old, patch)
        _check_name(patched, name)
        new = checked_fields(resource, identified(resource, patched, namespace), options)
        self._check_preconditions(resource, old, new["metadata"])
        return self._replace(resource, old, new, options, subresource)

    def _apply(
        self, resource: Resource, namespace: str, name: str, config: Json, options: Options, subresource: str
    ) -> Json:
        _check_name(config, name)
        if not (config.get("apiVersion") and config.get("kind")):
            raise errors.bad_request("an applied configuration names its apiVersion and its kind")
        config = identified(resource, config, namespace)
        _check_configuration(resource, config)
        live = self.find(resource, namespace, name)
        if live is None and subresource:
            raise errors.not_found(resource.plural, name, resource.group)
        if live is None:
            self._check_place(resource, config)
        else:
            self._check_preconditions(resource, live, config["metadata"])
        options = _as_apply(options)
        claimed = _claimable(resource, config, subresource)
        new, owners = applied(resource, live, claimed, options, subresource)
        new = filled(resource, carried_over(resource, new, live, subresource) if live else created(new))
        check_rules(resource, new, live)
        new = with_owners(numbered(resource, new, live), owners, before=live or {}, now=now_text())
        return self._store(resource, new, live, options) if live else self._commit(resource, new, options)

    def delete(self, resource: Resource, namespace: str, name: str, asked: Json, *, dry_run: bool = False) -> Json:
        """Delete an object, or mark it as to be deleted while finalizers or a node hold it."""
        old = self.get(resource, namespace, name)
        self._check_preconditions(resource, old, asked.get("preconditions") or {})
        grace = _grace_seconds(resource, old, asked)
        finalizers = _finalizers(old, asked.get("propagationPolicy"))
        if dry_run:
            return old
        if not finalizers and not grace and resource.kind != "Namespace":
            return self.storage.remove(place_of(resource), (namespace, name))
        marks: Json = {"deletionTimestamp": old["metadata"].get("deletionTimestamp", now_text())}
        marks |= {"deletionGracePeriodSeconds": grace} if grace is not None else {}
        marks |= {"finalizers": finalizers} if finalizers else {}
        new = {**old, "metadata": old["metadata"] | marks}
        if resource.kind == "Namespace":
            new["status"] = {**new.get("status", {}), "phase": "Terminating"}
        return old if is_same(new, old) else self.storage.put(place_of(resource), new)

    def change(self, resource: Resource, obj: Json, manager: str, *, subresource: str = "") -> Json:
        """Store the object of a controller, whatever version it is based on."""
        old = self.find(resource, *_key(obj))
        if old is None:
            return obj
        return self._replace(resource, old, obj, Options(manager=manager), subresource)

    def _furnish(self, change: Change) -> None:
        """Give a new namespace what each one has: an account, and the authority of this API server."""
        if change.place != ("", "namespaces") or change.old is not None or change.new is None:
            return
        name = change.key[1]
        self.create(self.resource("v1", "ServiceAccount"), name, {"metadata": {"name": ACCOUNT}}, Options())
        data = {"ca.crt": authority().pem.decode()}
        entries = {"metadata": {"name": ROOT_AUTHORITY}, "data": data}
        self.create(self.resource("v1", "ConfigMap"), name, entries, Options())

    def _follow_definitions(self, change: Change) -> None:
        if change.place != (DEFINITIONS[0], DEFINITIONS[2]):
            return
        if change.new is None:
            self.registry.withdraw(change.last)
        elif change.old is None or change.old["spec"] != change.new["spec"]:
            self.registry.define(change.new)


def _key(obj: Json) -> Key:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def _as_version(obj: Json | None, resource: Resource) -> Json | None:
    """Return an object under the version that is asked for."""
    return obj if obj is None or not resource.is_custom else {**obj, "apiVersion": resource.api_version}


def _is_let_go(obj: Json) -> bool:
    """Return whether the last finalizer of a deleted object went; nodes and namespaces end in another way."""
    metadata = obj["metadata"]
    held = metadata.get("finalizers") or metadata.get("deletionGracePeriodSeconds") or obj["kind"] == "Namespace"
    return "deletionTimestamp" in metadata and not held


def _grace_seconds(resource: Resource, old: Json, asked: Json) -> int | None:
    """Return how long a pod may take to end; a pod of no node ends at once."""
    if resource.kind != "Pod":
        return None
    ended = old.get("status", {}).get("phase") in {"Succeeded", "Failed"}
    given = asked.get("gracePeriodSeconds")
    if not old["spec"].get("nodeName") or ended:
        return 0
    seconds = old["spec"].get("terminationGracePeriodSeconds", 30) if given is None else given
    return min(int(seconds), int(old["metadata"].get("deletionGracePeriodSeconds", seconds)))


def _finalizers(old: Json, propagation: str | None) -> list[str]:
    held = list(old["metadata"].get("finalizers") or ())
    extra = PROPAGATION.get(propagation or "")
    return held if extra is None or extra in held else [*held, extra]


def _check_name(obj: Any, name: str) -> None:
    """Refuse the object of a request if it is none, or does not name what the path names."""
    if not isinstance(obj, dict):
        raise errors.bad_request("the body is no object")
    named = (obj.get("metadata") or {}).get("name") or ""
    if named != name:
        raise errors.bad_request(f"the name of the object is {named!r}, that of the request {name!r}")


def _check_configuration(resource: Resource, config: Json) -> None:
    """Refuse an applied configuration with undeclared fields, repeated items or `managedFields`."""
    wrong = [f".{each}: field not declared in schema" for each in resource.schema.unknown_fields(config)]
    wrong += [f"{each}: duplicate entries" for each in resource.schema.repeated_items(config)]
    if wrong:
        text = ", ".join(wrong)
        raise errors.internal(f"failed to create typed patch object: {text}")
    if config["metadata"].get("managedFields"):
        raise errors.bad_request("metadata.managedFields must be nil")


def _as_apply(options: Options) -> Options:
    if options.manager == "unknown":
        raise errors.invalid("PatchOptions", "", [("fieldManager", "Required value: an apply names it")], group=OPTIONS)
    return Options(options.manager, APPLY, options.dry_run, options.field_validation, options.force, options.warnings)


def _claimable(resource: Resource, config: Json, subresource: str) -> Json:
    """Return the configuration without versions, and without what the other endpoint writes."""
    metadata = {name: each for name, each in config["metadata"].items() if name not in {"resourceVersion", "uid"}}
    if subresource == "status":
        named = {name: each for name, each in metadata.items() if name in {"name", "namespace"}}
        kept = {"apiVersion", "kind", "status"}
        return {name: each for name, each in config.items() if name in kept} | {"metadata": named}
    left_out = {"status"} if resource.has_status else set()
    return {name: each for name, each in config.items() if name not in left_out} | {"metadata": metadata}


def _patch_function(resource: Resource, form: str) -> Callable[[Json, Any], Json]:
    if form == JSON_PATCH:
        return json_patched
    if form == MERGE_PATCH:
        return merge_patched
    if form == STRATEGIC_PATCH and not resource.is_custom:
        return lambda old, patch: strategic_patched(old, patch, resource.schema)
    raise errors.ApiFailure(415, "UnsupportedMediaType", f"{form} is no patch of {resource.qualified}")
