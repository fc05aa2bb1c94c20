"""Server-side apply: who owns which field, who conflicts with whom, and what goes when it is dropped."""

import pytest

from tests.kubernetes.contract.objects import config_map, deployment, managers
from tests.kubernetes.rest_client import Refused
from tests.kubernetes.server.cluster import APPLY_PATCH


def test_apply_creates_an_object_and_owns_what_it_names(kube):
    made = kube.apply(config_map(color="red", size="1"), "ours")

    assert made["data"] == {"color": "red", "size": "1"}
    assert managers(made) == {"ours/Apply": {"f:data": {"f:color": {}, "f:size": {}}}}


def test_apply_of_the_same_configuration_changes_nothing(kube):
    first = kube.apply(config_map(color="red"), "ours")

    assert kube.apply(config_map(color="red"), "ours") == first


def test_a_dropped_field_goes_with_its_only_owner(kube):
    kube.apply(config_map(color="red", size="1"), "ours")

    assert kube.apply(config_map(color="red"), "ours")["data"] == {"color": "red"}


def test_a_shared_field_stays_until_its_last_owner_drops_it(kube):
    kube.apply(config_map(color="red", size="1"), "ours")
    shared = kube.apply(config_map(color="red"), "theirs")
    assert set(managers(shared)) == {"ours/Apply", "theirs/Apply"}

    left = kube.apply(config_map(size="1"), "ours")
    assert left["data"] == {"color": "red", "size": "1"}
    assert managers(left)["ours/Apply"] == {"f:data": {"f:size": {}}}

    assert kube.apply(config_map(), "theirs")["data"] == {"size": "1"}


def test_another_value_is_a_conflict_that_names_manager_and_field(kube):
    kube.apply(config_map(color="red"), "ours")

    with pytest.raises(Refused) as refused:
        kube.apply(config_map(color="blue"), "theirs")
    assert (refused.value.code, refused.value.reason) == (409, "Conflict")
    assert refused.value.causes == [
        {"reason": "FieldManagerConflict", "message": 'conflict with "ours"', "field": ".data.color"}
    ]
    assert "ours" in refused.value.message
    assert kube.get("ConfigMap", "settings")["data"] == {"color": "red"}


def test_force_takes_a_field_from_its_owner(kube):
    kube.apply(config_map(color="red", size="1"), "ours")

    taken = kube.apply(config_map(color="blue"), "theirs", force=True)

    assert taken["data"] == {"color": "blue", "size": "1"}
    assert managers(taken) == {
        "ours/Apply": {"f:data": {"f:size": {}}},
        "theirs/Apply": {"f:data": {"f:color": {}}},
    }


def test_an_owner_that_lost_a_field_conflicts_when_it_comes_back(kube):
    kube.apply(config_map(color="red"), "ours")
    kube.apply(config_map(color="blue"), "theirs", force=True)

    with pytest.raises(Refused) as refused:
        kube.apply(config_map(color="red"), "ours")
    assert refused.value.causes[0]["message"] == 'conflict with "theirs"'


def test_an_update_takes_ownership_of_what_it_changes(kube):
    made = kube.apply(config_map(color="red", size="1"), "ours")

    changed = kube.replace(made | {"data": {"color": "blue", "size": "1"}}, fieldManager="editor")

    assert managers(changed) == {
        "ours/Apply": {"f:data": {"f:size": {}}},
        "editor/Update": {"f:data": {"f:color": {}}},
    }
    with pytest.raises(Refused) as refused:
        kube.apply(config_map(color="red", size="1"), "ours")
    assert refused.value.causes[0]["field"] == ".data.color"
    assert 'conflict with "editor" using v1' in refused.value.causes[0]["message"]


def test_an_update_does_not_conflict(kube):
    kube.apply(config_map(color="red"), "ours")

    kube.merge("ConfigMap", "settings", {"data": {"color": "blue"}}, fieldManager="editor")

    assert kube.get("ConfigMap", "settings")["data"] == {"color": "blue"}


def test_a_field_that_an_update_removed_has_no_owner(kube):
    kube.apply(config_map(color="red", size="1"), "ours")

    removed = kube.merge("ConfigMap", "settings", {"data": {"color": None}}, fieldManager="editor")

    assert managers(removed) == {"ours/Apply": {"f:data": {"f:size": {}}}}


def test_apply_and_update_of_one_manager_own_separately(kube):
    kube.create(config_map(color="red"), fieldManager="ours")

    applied = kube.apply(config_map(color="red"), "ours")

    assert set(managers(applied)) == {"ours/Update", "ours/Apply"}
    assert kube.apply(config_map(), "ours")["data"] == {"color": "red"}


def test_the_default_of_a_field_has_no_owner(kube):
    applied = kube.apply(deployment(replicas=None), "ours")
    assert applied["spec"]["replicas"] == 1
    assert "f:replicas" not in managers(applied)["ours/Apply"]["f:spec"]

    scaled = kube.apply(deployment(replicas=0), "scaler")
    assert scaled["spec"]["replicas"] == 0


def test_a_dropped_field_gets_its_default_again(kube):
    kube.apply(deployment(replicas=0) | {"spec": deployment(replicas=0)["spec"] | {"minReadySeconds": 5}}, "ours")

    applied = kube.apply(deployment(replicas=0), "ours")

    assert "minReadySeconds" not in applied["spec"]
    assert applied["spec"]["strategy"]["type"] == "RollingUpdate"


def test_list_items_merge_by_their_keys(kube):
    kube.apply(deployment(replicas=0, env=[{"name": "A", "value": "1"}]), "ours")

    merged = kube.apply(deployment(replicas=0, env=[{"name": "B", "value": "2"}]), "theirs")

    container = merged["spec"]["template"]["spec"]["containers"][0]
    assert sorted(each["name"] for each in container["env"]) == ["A", "B"]
    fields = managers(merged)["theirs/Apply"]["f:spec"]["f:template"]["f:spec"]["f:containers"]
    assert fields == {
        'k:{"name":"main"}': {
            ".": {},
            "f:env": {'k:{"name":"B"}': {".": {}, "f:name": {}, "f:value": {}}},
            "f:image": {},
            "f:name": {},
        }
    }


def test_an_applied_list_repeats_no_key(kube):
    with pytest.raises(Refused) as refused:
        kube.apply(deployment(replicas=0, env=[{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]), "ours")
    assert (refused.value.code, refused.value.reason) == (500, "")
    assert not kube.exists("Deployment", "web")


def test_a_conflict_names_the_item_of_a_list(kube):
    kube.apply(deployment(replicas=0), "ours")

    with pytest.raises(Refused) as refused:
        kube.apply(deployment(replicas=0, image="main:2"), "theirs")
    assert [each["field"] for each in refused.value.causes] == ['.spec.template.spec.containers[name="main"].image']


def test_ports_of_one_number_differ_by_protocol(kube):
    kube.apply(deployment(replicas=0, ports=[{"containerPort": 53, "protocol": "UDP"}]), "ours")

    merged = kube.apply(deployment(replicas=0, ports=[{"containerPort": 53, "protocol": "TCP"}]), "theirs")

    ports = merged["spec"]["template"]["spec"]["containers"][0]["ports"]
    assert sorted(each["protocol"] for each in ports) == ["TCP", "UDP"]


def test_a_dropped_item_goes_and_those_of_others_stay(kube):
    kube.apply(deployment(replicas=0, env=[{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]), "ours")
    kube.apply(deployment(replicas=0, env=[{"name": "C", "value": "3"}]), "theirs")

    left = kube.apply(deployment(replicas=0, env=[{"name": "A", "value": "1"}]), "ours")

    container = left["spec"]["template"]["spec"]["containers"][0]
    assert sorted(each["name"] for each in container["env"]) == ["A", "C"]


def test_an_atomic_list_has_one_owner(kube):
    kube.apply(deployment(replicas=0, args=["--a"]), "ours")

    with pytest.raises(Refused) as refused:
        kube.apply(deployment(replicas=0, args=["--a", "--b"]), "theirs")
    assert [each["field"] for each in refused.value.causes] == ['.spec.template.spec.containers[name="main"].args']


def test_status_is_applied_by_its_subresource(kube):
    kube.apply(deployment(replicas=0), "ours")
    status = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}}

    applied = kube.apply(status | {"status": {"collisionCount": 3}}, "observer", subresource="status")

    assert applied["status"]["collisionCount"] == 3
    entry = next(each for each in applied["metadata"]["managedFields"] if each["manager"] == "observer")
    assert entry["subresource"] == "status"
    assert entry["fieldsV1"] == {"f:status": {"f:collisionCount": {}}}


def test_scaling_is_an_owner_of_its_own(kube):
    kube.apply(deployment(replicas=0), "ours")
    kube.merge("Deployment", "web", {"spec": {"paused": True}}, fieldManager="editor")

    kube.merge("Deployment", "web", {"spec": {"replicas": 2}}, subresource="scale", fieldManager="scaler")

    with pytest.raises(Refused) as refused:
        kube.apply(deployment(replicas=0), "ours")
    assert [each["field"] for each in refused.value.causes] == [".spec.replicas"]
    assert '"scaler" with subresource "scale"' in refused.value.causes[0]["message"]


def test_metadata_is_owned_by_its_labels(kube):
    kube.apply(config_map(color="red") | {"metadata": {"name": "settings", "labels": {"a": "1"}}}, "ours")

    both = kube.apply(config_map(color="red") | {"metadata": {"name": "settings", "labels": {"b": "2"}}}, "theirs")
    assert both["metadata"]["labels"] == {"a": "1", "b": "2"}

    left = kube.apply(config_map(color="red"), "ours")
    assert left["metadata"]["labels"] == {"b": "2"}


def test_apply_names_its_manager(kube):
    with pytest.raises(Refused) as refused:
        kube.send("PATCH", kube.path("ConfigMap", "settings"), config_map(), form=APPLY_PATCH)
    assert (refused.value.code, refused.value.causes[0]["field"]) == (422, "fieldManager")


def test_apply_names_its_kind(kube):
    body = {"metadata": {"name": "settings"}, "data": {"color": "red"}}

    with pytest.raises(Refused) as refused:
        kube.send("PATCH", kube.path("ConfigMap", "settings"), body, form=APPLY_PATCH, fieldManager="ours")
    assert refused.value.code == 400


def test_apply_of_an_older_version_is_a_conflict(kube):
    first = kube.apply(config_map(color="red"), "ours")
    kube.merge("ConfigMap", "settings", {"data": {"size": "1"}})

    metadata = {"name": "settings", "resourceVersion": first["metadata"]["resourceVersion"]}
    with pytest.raises(Refused) as refused:
        kube.apply(config_map(color="blue") | {"metadata": metadata}, "ours")
    assert refused.value.code == 409


def test_apply_carries_no_managed_fields(kube):
    made = kube.apply(config_map(color="red"), "ours")

    with pytest.raises(Refused) as refused:
        kube.apply(made, "ours")
    assert refused.value.code == 400
    assert "managedFields" in refused.value.message
