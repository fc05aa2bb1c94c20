"""What the server writes into fields that a manifest leaves out."""

import base64

import pytest

from tests.kubernetes.contract.objects import config_map, deployment, pod
from tests.kubernetes.rest_client import Refused

NOWHERE = {"nodeSelector": {"test.ipnext/node": "none"}}
DIGEST = f"@sha256:{64 * '0'}"


def template(kube, container=None, **spec):
    """The pod template that a server makes of one."""
    made = deployment(replicas=0, **(container or {}))
    made["spec"]["template"]["spec"] |= spec
    return kube.create(made)["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    ("image", "policy"),
    [
        ("main", "Always"),
        ("main:latest", "Always"),
        ("host:5000/main", "Always"),
        ("main:1", "IfNotPresent"),
        (f"host:5000/main{DIGEST}", "IfNotPresent"),
    ],
)
def test_an_image_is_pulled_each_time_unless_its_tag_says_which(kube, image, policy):
    assert template(kube, {"image": image})["containers"][0]["imagePullPolicy"] == policy


def test_probes_and_hooks_over_http_have_a_path_and_a_scheme(kube):
    given = {"httpGet": {"port": 80}}
    hooks = {"postStart": given, "preStop": given}
    made = template(kube, {"readinessProbe": given, "lifecycle": hooks})["containers"][0]

    full = {"path": "/", "port": 80, "scheme": "HTTP"}
    assert made["lifecycle"] == {"postStart": {"httpGet": full}, "preStop": {"httpGet": full}}
    assert made["readinessProbe"] == {
        "httpGet": full,
        "timeoutSeconds": 1,
        "periodSeconds": 10,
        "successThreshold": 1,
        "failureThreshold": 3,
    }


def test_files_of_volumes_have_a_mode(kube):
    field = {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}
    token = {"serviceAccountToken": {"path": "token"}}
    volumes = [
        {"name": "entries", "configMap": {"name": "settings"}},
        {"name": "keys", "secret": {"secretName": "keys"}},
        {"name": "labels", "downwardAPI": {"items": [field]}},
        {"name": "all", "projected": {"sources": [token, {"downwardAPI": {"items": [field]}}]}},
        {"name": "work", "emptyDir": {}},
    ]
    made = template(kube, volumes=volumes)["volumes"]

    full = field | {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.labels"}}
    assert [each.get(kind, {}).get("defaultMode") for each in made for kind in each if kind != "name"] == [420] * 4 + [
        None
    ]
    assert made[2]["downwardAPI"]["items"] == [full]
    assert made[3]["projected"]["sources"] == [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
        {"downwardAPI": {"items": [full]}},
    ]


def test_a_reference_to_a_field_names_its_version(kube):
    env = [{"name": "ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]

    made = template(kube, {"env": env})["containers"][0]["env"]

    assert made[0]["valueFrom"]["fieldRef"] == {"apiVersion": "v1", "fieldPath": "status.podIP"}


def test_an_account_has_its_two_names(kube):
    assert template(kube, serviceAccountName="agent")["serviceAccount"] == "agent"


def test_a_pod_requests_what_it_may_take_and_its_template_does_not(kube):
    limits = {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}
    assert template(kube, {"resources": limits})["containers"][0]["resources"] == limits

    containers = [{"name": "main", "image": "main:1", "resources": limits}]
    made = kube.create(pod(containers=containers, **NOWHERE))

    assert made["spec"]["containers"][0]["resources"]["requests"] == {"cpu": "500m", "memory": "1Gi"}
    assert made["spec"]["enableServiceLinks"]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("Deployment", deployment(replicas=0)),
        ("ReplicaSet", deployment(replicas=0) | {"kind": "ReplicaSet"}),
        ("Service", {"spec": {"ports": [{"port": 80}]}}),
        ("ResourceQuota", {}),
    ],
)
def test_a_new_object_has_a_status(kube, kind, body):
    made = kube.create({"apiVersion": "v1", "kind": kind, "metadata": {"name": "web"}} | body)

    assert made["status"] == {"Service": {"loadBalancer": {}}, "ReplicaSet": {"replicas": 0}}.get(kind, {})


def test_a_new_disruption_budget_allows_none(kube):
    spec = {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}
    made = kube.create(
        {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "floor"}, "spec": spec}
    )

    assert set(made["status"].values()) == {0}


@pytest.mark.parametrize("kind", ["Service", "Namespace", "ResourceQuota", "ConfigMap"])
def test_some_kinds_have_no_generation(kube, kind):
    spec = {"spec": {"ports": [{"port": 80}]}} if kind == "Service" else {}
    made = kube.create({"apiVersion": "v1", "kind": kind, "metadata": {"name": "web"}} | spec, dryRun="All")

    assert "generation" not in made["metadata"]


def test_a_namespace_has_its_name_as_a_label(kube):
    labels = kube.get("Namespace", kube.namespace)["metadata"]["labels"]

    assert labels["kubernetes.io/metadata.name"] == kube.namespace


def test_the_texts_of_a_secret_become_data(kube):
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}}
    encoded = base64.b64encode(b"one").decode()

    made = kube.create(secret | {"data": {"a": encoded}, "stringData": {"b": "one"}})

    assert (made["data"], made["type"]) == ({"a": encoded, "b": encoded}, "Opaque")
    assert "stringData" not in made


def test_the_data_of_a_secret_is_encoded(kube):
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}}
    with pytest.raises(Refused) as refused:
        kube.create(secret | {"data": {"a": "not encoded!"}})
    assert refused.value.code == 400


@pytest.mark.parametrize("spec", [{"containers": "main"}, {"containers": [1]}, {"containers": [{"env": {"A": "1"}}]}])
def test_a_list_is_a_list_and_an_object_an_object(kube, spec):
    with pytest.raises(Refused) as refused:
        kube.create(pod(**spec))
    assert refused.value.code == 400


def test_a_text_of_a_config_map_is_a_text(kube):
    with pytest.raises(Refused) as refused:
        kube.create(config_map() | {"data": {"a": 1}})
    assert refused.value.code == 400
