"""Finalizers, owners and namespaces: what a deletion waits for and what it takes along."""

import pytest

from tests.kubernetes.contract.objects import config_map, deployment, owned, pod
from tests.kubernetes.rest_client import Refused
from tests.waiting import until

GOING = {
    "ConfigMap": config_map(),
    "Deployment": deployment(replicas=0),
    "Pod": pod(nodeSelector={"test.ipnext/node": "none"}),
}
HELD = {"metadata": {"name": "held", "finalizers": ["test.ipnext/hold"]}}


def test_a_finalizer_holds_an_object_until_it_is_removed(kube):
    kube.create(config_map() | HELD)

    kube.delete("ConfigMap", "held")
    assert "deletionTimestamp" in kube.get("ConfigMap", "held")["metadata"]

    kube.merge("ConfigMap", "held", {"metadata": {"finalizers": None}})
    assert not kube.exists("ConfigMap", "held")


def test_a_deletion_answers_what_was_deleted(kube):
    uids = {kind: kube.create(obj)["metadata"]["uid"] for kind, obj in GOING.items()}

    answers = {kind: kube.delete(kind, GOING[kind]["metadata"]["name"]) for kind in GOING}

    details = {kind: {"name": GOING[kind]["metadata"]["name"], "uid": uids[kind]} for kind in GOING}
    assert answers["ConfigMap"]["details"] == details["ConfigMap"] | {"kind": "configmaps"}
    assert answers["Deployment"]["details"] == details["Deployment"] | {"kind": "deployments", "group": "apps"}
    assert answers["Pod"]["metadata"]["uid"] == uids["Pod"]


def test_a_second_deletion_changes_nothing(kube):
    kube.create(config_map() | HELD)
    kube.delete("ConfigMap", "held")
    first = kube.get("ConfigMap", "held")

    kube.delete("ConfigMap", "held")

    assert kube.get("ConfigMap", "held") == first
    kube.merge("ConfigMap", "held", {"metadata": {"finalizers": None}})


def test_dependents_follow_their_owner(kube):
    owner = kube.create(config_map("owner"))
    child = kube.create(owned(config_map("child"), owner))
    kube.create(owned(config_map("grandchild"), child))
    kube.create(config_map("other"))

    kube.delete("ConfigMap", "owner")

    until(lambda: not kube.exists("ConfigMap", "grandchild"))
    assert not kube.exists("ConfigMap", "child")
    assert kube.exists("ConfigMap", "other")


def test_a_dependent_of_two_owners_stays_with_the_other(kube):
    first, second = kube.create(config_map("first")), kube.create(config_map("second"))
    child = owned(config_map("child"), first)
    child["metadata"]["ownerReferences"] += owned(config_map(), second)["metadata"]["ownerReferences"]
    kube.create(child)
    kube.create(owned(config_map("only"), first))

    kube.delete("ConfigMap", "first")

    until(lambda: not kube.exists("ConfigMap", "only"))
    assert kube.exists("ConfigMap", "child")


def test_an_owner_is_known_by_its_uid_not_by_its_name(kube):
    former = kube.create(config_map("owner"))
    kube.delete("ConfigMap", "owner")
    kube.create(config_map("owner"))

    kube.create(owned(config_map("child"), former))

    until(lambda: not kube.exists("ConfigMap", "child"))


def test_orphans_stay(kube):
    owner = kube.create(config_map("owner"))
    kube.create(owned(config_map("child"), owner))

    kube.delete("ConfigMap", "owner", {"propagationPolicy": "Orphan"})

    until(lambda: not kube.exists("ConfigMap", "owner"))
    assert "ownerReferences" not in kube.get("ConfigMap", "child")["metadata"]


def test_in_the_foreground_the_owner_goes_last(kube):
    owner = kube.create(config_map("owner"))
    kube.create(owned(config_map() | HELD, owner, blocks=True))

    kube.delete("ConfigMap", "owner", {"propagationPolicy": "Foreground"})

    until(lambda: "deletionTimestamp" in kube.get("ConfigMap", "held")["metadata"])
    assert kube.get("ConfigMap", "owner")["metadata"]["finalizers"] == ["foregroundDeletion"]
    kube.merge("ConfigMap", "held", {"metadata": {"finalizers": None}})
    until(lambda: not kube.exists("ConfigMap", "owner"))


def test_a_namespace_takes_its_contents_along(kube):
    made = kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": "test-"}})
    inside = kube.inside(made["metadata"]["name"])
    inside.create(config_map() | HELD)

    kube.delete("Namespace", inside.namespace)

    until(lambda: "deletionTimestamp" in inside.get("ConfigMap", "held")["metadata"])
    with pytest.raises(Refused) as refused:
        inside.create(config_map("late"))
    assert refused.value.code == 403
    inside.merge("ConfigMap", "held", {"metadata": {"finalizers": None}})
    until(lambda: not kube.exists("Namespace", inside.namespace))


def test_a_collection_is_deleted_by_a_selector(kube):
    kube.create(config_map("kept"))
    kube.create(config_map("gone") | {"metadata": {"name": "gone", "labels": {"old": "yes"}}})

    kube.send("DELETE", kube.path("ConfigMap"), labelSelector="old=yes")

    assert not kube.exists("ConfigMap", "gone")
    assert kube.exists("ConfigMap", "kept")
