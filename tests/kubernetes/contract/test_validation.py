"""Objects and patches that are refused, and what happens to fields that no schema has."""

import pytest

from tests.kubernetes.contract.objects import config_map, deployment, pod
from tests.kubernetes.rest_client import Refused
from tests.kubernetes.server.cluster import APPLY_PATCH, MERGE_PATCH


def test_an_unknown_field_is_refused_if_asked_for(kube):
    with pytest.raises(Refused) as refused:
        kube.create(deployment(imagePullPolice="Always"), fieldValidation="Strict")
    assert (refused.value.code, refused.value.reason) == (400, "BadRequest")
    assert 'unknown field "spec.template.spec.containers[0].imagePullPolice"' in refused.value.message


def test_an_unknown_field_is_dropped_otherwise(kube):
    made = kube.create(deployment(replicas=0, imagePullPolice="Always"))

    assert "imagePullPolice" not in made["spec"]["template"]["spec"]["containers"][0]


def test_an_unknown_field_comes_with_a_warning(kube):
    answer = kube.http.post(kube.path("ConfigMap"), json=config_map() | {"datas": {}})

    assert answer.status_code == 201
    assert answer.headers["Warning"] == r'299 - "unknown field \"datas\""'


def test_apply_declares_its_fields(kube):
    with pytest.raises(Refused) as refused:
        kube.apply(deployment(imagePullPolice="Always"), "ours")
    assert (refused.value.code, refused.value.reason) == (500, "")
    assert "imagePullPolice" in refused.value.message
    assert not kube.exists("Deployment", "web")


def test_a_value_of_another_type_is_refused(kube):
    with pytest.raises(Refused) as refused:
        kube.create(deployment(replicas="three"))
    assert refused.value.code == 400
    assert "replicas" in refused.value.message


def test_a_required_field_is_named(kube):
    with pytest.raises(Refused) as refused:
        kube.create(deployment() | {"spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {}}})
    assert refused.value.code == 422
    assert "template" in refused.value.message


def test_the_selector_of_a_deployment_matches_its_template(kube):
    wrong = deployment()
    wrong["spec"]["selector"] = {"matchLabels": {"app": "another"}}

    with pytest.raises(Refused) as refused:
        kube.create(wrong)
    assert (refused.value.code, refused.value.reason) == (422, "Invalid")
    assert refused.value.causes[0]["field"] == "spec.template.metadata.labels"


def test_the_selector_of_a_deployment_stays(kube):
    made = kube.create(deployment(replicas=0))
    labels = {"app": "another"}
    changed = {"selector": {"matchLabels": labels}}
    template = made["spec"]["template"] | {"metadata": {"labels": labels}}

    with pytest.raises(Refused) as refused:
        kube.merge("Deployment", "web", {"spec": changed | {"template": template}})
    assert refused.value.code == 422


def test_a_pod_keeps_its_command(kube):
    made = kube.create(pod(nodeSelector={"none": "such"}))
    container = made["spec"]["containers"][0] | {"command": ["another"]}

    with pytest.raises(Refused) as refused:
        kube.merge("Pod", "one", {"spec": {"containers": [container]}})
    assert refused.value.code == 422


@pytest.mark.parametrize("name", ["Upper", "under_score", "-begins", "ends-"])
def test_a_name_is_one_of_dns(kube, name):
    with pytest.raises(Refused) as refused:
        kube.create(config_map(name))
    assert (refused.value.code, refused.value.reason) == (422, "Invalid")
    assert refused.value.causes[0]["field"] == "metadata.name"


@pytest.mark.parametrize("body", [b"[]", b"1", b"{bad"])
def test_a_body_is_an_object(kube, body):
    with pytest.raises(Refused) as refused:
        kube.send("POST", kube.path("ConfigMap"), body)
    assert refused.value.code == 400


def test_an_update_is_of_the_name_of_its_path(kube):
    made = kube.create(config_map())
    other = {**made, "metadata": made["metadata"] | {"name": "other"}}

    for method, form in (("PUT", "application/json"), ("PATCH", MERGE_PATCH), ("PATCH", APPLY_PATCH)):
        with pytest.raises(Refused) as refused:
            kube.send(method, kube.path("ConfigMap", "settings"), other, form=form, fieldManager="ours")
        assert (refused.value.code, refused.value.reason) == (400, "BadRequest")


@pytest.mark.parametrize(("name", "value"), [("dryRun", "Some"), ("fieldValidation", "Sometimes")])
def test_a_parameter_has_one_of_its_values(kube, name, value):
    with pytest.raises(Refused) as refused:
        kube.create(config_map(), **{name: value})
    assert (refused.value.code, refused.value.reason) == (422, "Invalid")
    assert (refused.value.causes[0]["field"], refused.value.causes[0]["reason"]) == (name, "FieldValueNotSupported")
    assert refused.value.status["details"]["group"] == "meta.k8s.io"
    assert not kube.exists("ConfigMap", "settings")


def test_a_propagation_is_one_that_is_known(kube):
    kube.create(config_map())

    with pytest.raises(Refused) as refused:
        kube.delete("ConfigMap", "settings", {"propagationPolicy": "Sideways"})
    assert refused.value.code == 422
    assert kube.exists("ConfigMap", "settings")


def test_an_object_to_create_has_no_version(kube):
    with pytest.raises(Refused) as refused:
        kube.create(config_map() | {"metadata": {"name": "settings", "resourceVersion": "1"}})
    assert (refused.value.code, refused.value.reason) == (500, "")


def test_an_invalid_object_is_told_with_its_group(kube):
    with pytest.raises(Refused) as refused:
        kube.create(deployment() | {"spec": deployment()["spec"] | {"selector": {"matchLabels": {"app": "another"}}}})
    details = refused.value.status["details"]
    assert (details["group"], details["kind"], details["name"]) == ("apps", "Deployment", "web")
    assert refused.value.message.startswith('Deployment.apps "web" is invalid: ')


def test_namespaces_are_not_deleted_as_a_collection(kube):
    with pytest.raises(Refused) as refused:
        kube.send("DELETE", kube.path("Namespace"))
    assert refused.value.code == 405


def test_an_object_is_of_the_kind_of_its_path(kube):
    with pytest.raises(Refused) as refused:
        kube.send("POST", kube.path("ConfigMap"), config_map() | {"kind": "Secret"})
    assert refused.value.code == 400


def test_an_object_is_of_the_namespace_of_its_path(kube):
    with pytest.raises(Refused) as refused:
        kube.create(config_map() | {"metadata": {"name": "settings", "namespace": "default"}})
    assert refused.value.code == 400


def test_a_json_patch_tests_before_it_changes(kube):
    kube.create(config_map(color="red"))
    change = {"op": "replace", "path": "/data/color", "value": "blue"}

    with pytest.raises(Refused) as refused:
        kube.patch_json("ConfigMap", "settings", [{"op": "test", "path": "/data/color", "value": "green"}, change])
    assert refused.value.code == 422

    changed = kube.patch_json("ConfigMap", "settings", [{"op": "test", "path": "/data/color", "value": "red"}, change])
    assert changed["data"] == {"color": "blue"}


def test_a_merge_patch_removes_by_null_and_replaces_lists(kube):
    kube.create(deployment(replicas=0, env=[{"name": "A", "value": "1"}]))
    containers = [{"name": "main", "image": "main:2"}]

    changed = kube.merge(
        "Deployment", "web", {"spec": {"strategy": None, "template": {"spec": {"containers": containers}}}}
    )

    assert "env" not in changed["spec"]["template"]["spec"]["containers"][0]
    assert changed["spec"]["strategy"]["type"] == "RollingUpdate"


def test_a_strategic_patch_merges_lists_by_their_keys(kube):
    kube.create(deployment(replicas=0, env=[{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]))
    env = [{"name": "A", "$patch": "delete"}, {"name": "C", "value": "3"}]
    containers = [{"name": "main", "env": env}]

    changed = kube.patch_strategic("Deployment", "web", {"spec": {"template": {"spec": {"containers": containers}}}})

    container = changed["spec"]["template"]["spec"]["containers"][0]
    assert sorted(each["name"] for each in container["env"]) == ["B", "C"]
    assert container["image"] == "main:1"


def test_a_patch_of_another_form_is_refused(kube):
    kube.create(config_map())

    with pytest.raises(Refused) as refused:
        kube.send("PATCH", kube.path("ConfigMap", "settings"), {}, form="application/json")
    assert refused.value.code == 415
