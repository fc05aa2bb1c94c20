"""Kinds that a CustomResourceDefinition adds, with their schema and their subresources."""

import uuid

import pytest
from lightkube import Client
from lightkube.generic_resource import create_namespaced_resource
from lightkube.types import PatchType

from tests.kubernetes.contract.objects import managers
from tests.kubernetes.rest_client import PATHS, Refused
from tests.waiting import until

GROUP = "test.ipnext"


@pytest.fixture(scope="module")
def kind(http):
    """A kind of its own, with a desired and an observed state."""
    name = f"Kind{uuid.uuid4().hex[:8]}".lower().capitalize()
    plural = f"{name.lower()}s"
    states = {
        "spec": {
            "type": "object",
            "required": ["model"],
            "properties": {
                "model": {"type": "string", "maxLength": 10},
                "replicas": {"type": "integer", "default": 1},
                "parts": {
                    "type": "array",
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["name"],
                    "items": {
                        "type": "object",
                        "required": ["name"],
                        "properties": {"name": {"type": "string"}, "size": {"type": "integer"}},
                    },
                },
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
            },
        },
        "status": {"type": "object", "properties": {"replicas": {"type": "integer"}}},
    }
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": states}},
        "subresources": {
            "status": {},
            "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"},
        },
    }
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {"kind": name, "plural": plural, "singular": name.lower()},
            "versions": [version],
        },
    }
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    http.post(path, json=definition).raise_for_status()
    until(lambda: http.get(f"/apis/{GROUP}/v1/{plural}").is_success)
    PATHS[name] = f"apis/{GROUP}/v1", plural
    yield name
    http.delete(f"{path}/{plural}.{GROUP}").raise_for_status()


def custom(kind, **spec):
    return {"apiVersion": f"{GROUP}/v1", "kind": kind, "metadata": {"name": "one"}, "spec": {"model": "ranker", **spec}}


def test_a_custom_object_has_the_defaults_of_its_schema(kube, kind):
    assert kube.create(custom(kind))["spec"] == {"model": "ranker", "replicas": 1}


def test_a_custom_object_is_checked_by_its_schema(kube, kind):
    with pytest.raises(Refused) as refused:
        kube.create(custom(kind, model="much too long", replicas="many"))
    assert (refused.value.code, refused.value.reason) == (422, "Invalid")
    assert {each["field"].lstrip(".") for each in refused.value.causes} == {"spec.model", "spec.replicas"}


def test_unknown_fields_are_pruned_unless_the_schema_keeps_them(kube, kind):
    made = kube.create(custom(kind, unknown=1, free={"any": {"thing": 1}}))

    assert "unknown" not in made["spec"]
    assert made["spec"]["free"] == {"any": {"thing": 1}}
    with pytest.raises(Refused) as refused:
        kube.create(custom(kind, unknown=1) | {"metadata": {"name": "two"}}, fieldValidation="Strict")
    assert 'unknown field "spec.unknown"' in refused.value.message


def test_status_and_generation_are_those_of_the_kind(kube, kind):
    made = kube.create(custom(kind) | {"status": {"replicas": 5}})
    assert "status" not in made
    assert made["metadata"]["generation"] == 1

    kube.merge(kind, "one", {"status": {"replicas": 2}}, subresource="status")
    assert kube.get(kind, "one")["metadata"]["generation"] == 1
    assert kube.merge(kind, "one", {"spec": {"replicas": 3}})["metadata"]["generation"] == 2
    scale = kube.get(kind, "one", "scale")
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (3, 2)


def test_lists_of_a_custom_object_merge_by_their_keys(kube, kind):
    kube.apply(custom(kind, parts=[{"name": "a", "size": 1}]), "ours")

    merged = kube.apply(custom(kind, parts=[{"name": "b", "size": 2}]), "theirs")

    assert [each["name"] for each in merged["spec"]["parts"]] == ["a", "b"]
    assert 'k:{"name":"b"}' in managers(merged)["theirs/Apply"]["f:spec"]["f:parts"]
    assert len(kube.apply(custom(kind), "ours")["spec"]["parts"]) == 1


def test_a_replacement_of_a_custom_object_names_its_version(kube, kind):
    kube.create(custom(kind))

    with pytest.raises(Refused) as refused:
        kube.replace(custom(kind, replicas=2))
    assert refused.value.code == 422


def test_a_custom_object_takes_no_strategic_patch(kube, kind):
    kube.create(custom(kind))

    with pytest.raises(Refused) as refused:
        kube.patch_strategic(kind, "one", {"spec": {"replicas": 2}})
    assert refused.value.code == 415


def test_lightkube_applies_and_watches_a_custom_kind(kube, kind, config):
    resource = create_namespaced_resource(GROUP, "v1", kind, f"{kind.lower()}s")
    with Client(config, namespace=kube.namespace, field_manager="lightkube", trust_env=False) as client:
        made = client.apply(resource(metadata={"name": "one"}, spec={"model": "ranker"}))
        version = made.metadata.resourceVersion
        client.patch(resource, "one", {"spec": {"replicas": 4}}, patch_type=PatchType.MERGE)
        events = client.watch(resource, resource_version=version, server_timeout=30)
        change, seen = next(events)
        events.close()
    assert (change, seen.spec["replicas"]) == ("MODIFIED", 4)


def test_the_items_of_a_list_of_a_custom_kind_name_it(kube, kind):
    kube.create(custom(kind))

    assert [each["kind"] for each in kube.items(kind)] == [kind]


def test_discovery_lists_the_kind_and_its_subresources(kube, kind):
    listed = kube.send("GET", f"/apis/{GROUP}/v1")["resources"]

    names = {each["name"] for each in listed}
    plural = f"{kind.lower()}s"
    assert {plural, f"{plural}/status", f"{plural}/scale"} <= names
    groups = kube.send("GET", "/apis")["groups"]
    assert {"name": GROUP, "versions": [{"groupVersion": f"{GROUP}/v1", "version": "v1"}]}.items() <= next(
        each for each in groups if each["name"] == GROUP
    ).items()


def test_core_resources_are_discovered(kube):
    core = {each["name"]: each for each in kube.send("GET", "/api/v1")["resources"]}

    assert kube.send("GET", "/api")["versions"] == ["v1"]
    assert {"pods", "pods/status", "pods/binding", "pods/eviction", "pods/log", "namespaces", "nodes"} <= set(core)
    assert core["pods"]["namespaced"]
    assert not core["nodes"]["namespaced"]
    assert {"get", "list", "watch", "create", "update", "patch", "delete"} <= set(core["pods"]["verbs"])
    assert kube.send("GET", "/version")["gitVersion"].startswith("v1.")
