"""Rules of names and values, and between fields: what is refused, and which field is named."""

import pytest

from tests.kubernetes.contract.objects import config_map, deployment, pod
from tests.kubernetes.rest_client import Refused

CONTAINER = "spec.template.spec.containers[0]"
LABELS = "spec.template.metadata.labels"
ROLES = "rbac.authorization.k8s.io"


def with_spec(**spec):
    return deployment() | {"spec": deployment()["spec"] | spec}


def with_metadata(**metadata):
    return config_map() | {"metadata": {"name": "settings", **metadata}}


def without(field):
    return deployment() | {"spec": {name: each for name, each in deployment()["spec"].items() if name != field}}


def of_template(**spec):
    made = deployment()
    made["spec"]["template"]["spec"] |= spec
    return made


def rolling(**parts):
    return with_spec(strategy={"type": "RollingUpdate", "rollingUpdate": parts})


def service(name="web", *ports):
    listed = [{"port": each} for each in ports or (80,)]
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": listed}}


def lease(seconds):
    metadata, spec = {"name": "leader"}, {"leaseDurationSeconds": seconds}
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}


def pod_of(*names):
    return pod(containers=[{"name": name, "image": "main:1"} for name in names])


BROKEN = [
    (with_metadata(name=""), {"metadata.name"}),
    (with_metadata(labels={"a b": "c"}), {"metadata.labels"}),
    (with_metadata(labels={"a": "b c"}), {"metadata.labels"}),
    (with_metadata(labels={"a": 64 * "b"}), {"metadata.labels"}),
    (with_metadata(finalizers=["hold"]), {"metadata.finalizers[0]"}),
    (config_map(**{"a/b": "c"}), {"data[a/b]"}),
    (with_spec(replicas=-1), {"spec.replicas"}),
    (with_spec(strategy={"type": "Sideways"}), {"spec.strategy"}),
    (rolling(maxSurge=0, maxUnavailable=0), {"spec.strategy.rollingUpdate.maxUnavailable"}),
    (rolling(maxSurge="0%", maxUnavailable=0), {"spec.strategy.rollingUpdate.maxUnavailable"}),
    (without("selector"), {"spec.selector", LABELS}),
    (without("template"), {LABELS, "spec.template.spec.containers"}),
    (of_template(containers=[]), {"spec.template.spec.containers"}),
    (of_template(restartPolicy="Never"), {"spec.template.spec.restartPolicy"}),
    (deployment(image=""), {f"{CONTAINER}.image"}),
    (deployment(imagePullPolicy="Sometimes"), {f"{CONTAINER}.imagePullPolicy"}),
    (deployment(ports=[{"containerPort": 65536}]), {f"{CONTAINER}.ports[0].containerPort"}),
    (deployment(env=[{"name": "A"}, {"value": "b"}]), {f"{CONTAINER}.env[1].name"}),
    (deployment(volumeMounts=[{"name": "none", "mountPath": "/a"}]), {f"{CONTAINER}.volumeMounts[0].name"}),
    (deployment(readinessProbe={"periodSeconds": 1}), {f"{CONTAINER}.readinessProbe"}),
    (
        deployment(resources={"limits": {"cpu": "1"}, "requests": {"cpu": "1500m"}}),
        {f"{CONTAINER}.resources.requests"},
    ),
    (pod_of("Main"), {"spec.containers[0].name"}),
    (pod_of("main", "main"), {"spec.containers[1].name"}),
    (service("1web"), {"metadata.name"}),
    (service(64 * "a"), {"metadata.name"}),
    (service("web", 80, 81), {"spec.ports[0].name", "spec.ports[1].name"}),
    (lease(0), {"spec.leaseDurationSeconds"}),
]


@pytest.mark.parametrize(("obj", "fields"), BROKEN, ids=[min(fields) for _, fields in BROKEN])
def test_a_broken_rule_is_told_with_its_field(kube, obj, fields):
    with pytest.raises(Refused) as refused:
        kube.create(obj)
    assert (refused.value.code, refused.value.reason) == (422, "Invalid")
    assert {each["field"] for each in refused.value.causes} == fields


@pytest.mark.parametrize(
    "obj",
    [
        with_metadata(labels={"test.ipnext/a": "", "b_c.d": "E-f.1"}, finalizers=["test.ipnext/hold"]),
        config_map(**{"a_B-1.c": "d"}),
        rolling(maxSurge=1, maxUnavailable=0),
        deployment(resources={"limits": {"cpu": "1"}, "requests": {"cpu": "1000m", "memory": "1Gi"}}),
        service("a"),
    ],
)
def test_what_keeps_the_rules_is_accepted(kube, obj):
    assert kube.create(obj, dryRun="All")["metadata"]["name"] == obj["metadata"]["name"]


def test_a_missing_value_has_a_reason_of_its_own(kube):
    with pytest.raises(Refused) as refused:
        kube.create(deployment(image=""))
    assert [each["reason"] for each in refused.value.causes] == ["FieldValueRequired"]


def test_rules_come_before_the_name(kube):
    kube.create(deployment(replicas=0))

    with pytest.raises(Refused) as refused:
        kube.create(deployment(image=""))
    assert refused.value.code == 422


def test_a_binding_keeps_its_role(kube):
    reference = {"apiGroup": ROLES, "kind": "Role", "name": "reader"}
    kube.create(
        {"apiVersion": f"{ROLES}/v1", "kind": "RoleBinding", "metadata": {"name": "agent"}, "roleRef": reference}
    )

    with pytest.raises(Refused) as refused:
        kube.merge("RoleBinding", "agent", {"roleRef": {"name": "writer"}})
    assert (refused.value.code, refused.value.causes[0]["field"]) == (422, "roleRef")
