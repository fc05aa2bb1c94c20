"""Names, versions and generations of objects, and writes that meet each other."""

import pytest

from tests.kubernetes.contract.objects import config_map, deployment
from tests.kubernetes.rest_client import Refused


def test_a_created_object_has_identity_and_times(kube):
    made = kube.create(config_map(color="red"))

    assert made["metadata"]["uid"]
    assert made["metadata"]["creationTimestamp"].endswith("Z")
    assert made["metadata"]["namespace"] == kube.namespace
    assert kube.get("ConfigMap", "settings") == made


def test_each_change_has_a_later_version(kube):
    first = kube.create(config_map(color="red"))
    second = kube.replace(first | {"data": {"color": "blue"}})
    other = kube.create(config_map("other"))

    versions = [int(each["metadata"]["resourceVersion"]) for each in (first, second, other)]
    assert versions == sorted(set(versions))
    assert second["metadata"]["uid"] == first["metadata"]["uid"]


def test_a_write_that_changes_nothing_keeps_the_version(kube):
    made = kube.create(config_map(color="red"))

    assert kube.replace(made)["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]


def test_a_stale_replacement_is_a_conflict(kube):
    first = kube.create(config_map(color="red"))
    kube.replace(first | {"data": {"color": "blue"}})

    with pytest.raises(Refused) as refused:
        kube.replace(first | {"data": {"color": "green"}})
    assert (refused.value.code, refused.value.reason) == (409, "Conflict")
    assert kube.get("ConfigMap", "settings")["data"] == {"color": "blue"}


def test_a_conflict_names_the_object_and_its_group(kube):
    first = kube.create(deployment(replicas=0))
    kube.merge("Deployment", "web", {"metadata": {"labels": {"team": "ranking"}}})

    with pytest.raises(Refused) as refused:
        kube.replace(first)
    assert refused.value.status["details"] == {"name": "web", "group": "apps", "kind": "deployments"}
    assert 'deployments.apps "web"' in refused.value.message


def test_a_stale_patch_is_a_conflict(kube):
    first = kube.create(config_map(color="red"))
    kube.replace(first | {"data": {"color": "blue"}})

    version = {"metadata": {"resourceVersion": first["metadata"]["resourceVersion"]}}
    with pytest.raises(Refused) as refused:
        kube.merge("ConfigMap", "settings", {"data": {"color": "green"}} | version)
    assert refused.value.code == 409


def test_a_name_is_taken_once(kube):
    kube.create(config_map())

    with pytest.raises(Refused) as refused:
        kube.create(config_map())
    assert (refused.value.code, refused.value.reason) == (409, "AlreadyExists")


def test_a_new_object_of_an_old_name_has_another_uid(kube):
    first = kube.create(config_map())
    kube.delete("ConfigMap", "settings")
    second = kube.create(config_map())

    assert first["metadata"]["uid"] != second["metadata"]["uid"]
    with pytest.raises(Refused) as refused:
        kube.replace(first)
    assert refused.value.code == 409


def test_a_deletion_can_name_the_object_it_means(kube):
    kube.create(config_map())

    with pytest.raises(Refused) as refused:
        kube.delete("ConfigMap", "settings", {"preconditions": {"uid": "another"}})
    assert refused.value.code == 409
    assert kube.exists("ConfigMap", "settings")


def test_a_server_generates_names(kube):
    made = {kube.create(config_map() | {"metadata": {"generateName": "job-"}})["metadata"]["name"] for _ in range(3)}

    assert len(made) == 3
    assert all(name.startswith("job-") for name in made)


def test_the_generation_counts_changes_of_the_desired_state_only(kube):
    made = kube.create(deployment(replicas=0))
    assert made["metadata"]["generation"] == 1

    labelled = kube.merge("Deployment", "web", {"metadata": {"labels": {"team": "ranking"}}})
    assert labelled["metadata"]["generation"] == 1

    changed = kube.merge("Deployment", "web", {"spec": {"paused": True}})
    assert changed["metadata"]["generation"] == 2


def test_status_is_written_by_its_subresource_only(kube):
    kube.create(deployment(replicas=0))

    kube.merge("Deployment", "web", {"status": {"collisionCount": 7}})
    assert "collisionCount" not in kube.get("Deployment", "web").get("status", {})

    written = kube.merge(
        "Deployment", "web", {"spec": {"replicas": 5}, "status": {"collisionCount": 7}}, subresource="status"
    )
    assert written["status"]["collisionCount"] == 7
    assert written["spec"]["replicas"] == 0
    assert written["metadata"]["generation"] == 1


def test_what_the_server_writes_cannot_be_changed(kube):
    made = kube.create(config_map())
    metadata = {"uid": made["metadata"]["uid"], "creationTimestamp": "2001-01-01T00:00:00Z", "generation": 9}

    kube.merge("ConfigMap", "settings", {"metadata": metadata, "data": {"a": "b"}})

    found = kube.get("ConfigMap", "settings")["metadata"]
    assert found["creationTimestamp"] == made["metadata"]["creationTimestamp"]
    assert "generation" not in found


def test_nothing_is_found_where_nothing_is(kube):
    with pytest.raises(Refused) as refused:
        kube.get("ConfigMap", "nothing")
    assert (refused.value.code, refused.value.reason) == (404, "NotFound")
    assert refused.value.status["details"] == {"name": "nothing", "kind": "configmaps"}

    assert kube.http.get("/apis/none.test.ipnext/v1/things").text == "404 page not found\n"
    with pytest.raises(Refused) as refused:
        kube.send("GET", f"/api/v1/namespaces/{kube.namespace}/things")
    assert (refused.value.code, refused.value.reason) == (404, "NotFound")

    with pytest.raises(Refused) as refused:
        kube.inside("no-such-namespace").create(config_map())
    assert refused.value.code == 404
