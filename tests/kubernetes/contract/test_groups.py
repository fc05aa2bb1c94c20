"""LeaderWorkerSets and HTTPRoutes: kinds that the double has from the start, and a cluster by installation."""

import pytest

from tests.kubernetes.contract.test_deployments import set_ready
from tests.kubernetes.rest_client import Refused
from tests.waiting import until

NAME = "leaderworkerset.sigs.k8s.io/name"


def group_set(*, replicas=2, size=2, image="main:1"):
    spec = {"containers": [{"name": "main", "image": image}], "nodeSelector": {"test.ipnext/node": "none"}}
    template = {"size": size, "workerTemplate": {"spec": spec}}
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": "large"},
        "spec": {"replicas": replicas, "leaderWorkerTemplate": template},
    }


def pods(kube):
    """Name -> pod, of those that stay."""
    found = kube.items("Pod", labelSelector=f"{NAME}=large")
    return {each["metadata"]["name"]: each for each in found if "deletionTimestamp" not in each["metadata"]}


def place(kube, name):
    """Say that a pod has an address and is ready."""
    pod = until(lambda: pods(kube).get(name), why=lambda: list(pods(kube)))
    set_ready(kube, pod, podIP="127.200.0.1", podIPs=[{"ip": "127.200.0.1"}])
    return pod


def image_of(kube, name):
    pod = pods(kube).get(name)
    return pod and pod["spec"]["containers"][0]["image"]


def status(kube):
    return kube.get("LeaderWorkerSet", "large").get("status") or {}


def ready_groups(kube, *groups):
    for number in groups:
        place(kube, f"large-{number}")
        place(kube, f"large-{number}-1")
    until(lambda: status(kube).get("readyReplicas") == len(groups), why=lambda: status(kube))


def test_workers_come_once_their_leader_has_an_address(kube):
    kube.create(group_set())
    until(lambda: set(pods(kube)) == {"large-0", "large-1"})

    place(kube, "large-0")

    worker = until(lambda: pods(kube).get("large-0-1"))
    env = {each["name"]: each["value"] for each in worker["spec"]["containers"][0]["env"]}
    assert env["LWS_GROUP_SIZE"] == "2"
    assert env["LWS_WORKER_INDEX"] == "1"
    assert "large-1-1" not in pods(kube)


def test_a_set_is_available_once_all_groups_are_ready(kube):
    kube.create(group_set())
    ready_groups(kube, 0, 1)

    conditions = {each["type"]: each["status"] for each in status(kube)["conditions"]}
    assert conditions["Available"] == "True"
    assert status(kube)["replicas"] == 2


def test_a_group_is_replaced_as_a_whole(kube):
    kube.create(group_set())
    ready_groups(kube, 0, 1)
    leader = pods(kube)["large-0"]["metadata"]["uid"]
    other = pods(kube)["large-1"]["metadata"]["uid"]

    restarted = {"name": "main", "image": "main:1", "imageID": "", "ready": True, "restartCount": 1}
    set_ready(kube, pods(kube)["large-0-1"], containerStatuses=[restarted])

    until(lambda: "large-0" in pods(kube) and pods(kube)["large-0"]["metadata"]["uid"] != leader)
    assert pods(kube)["large-1"]["metadata"]["uid"] == other


def test_fewer_groups_leave_the_first_ones(kube):
    kube.create(group_set())
    ready_groups(kube, 0, 1)

    kube.merge("LeaderWorkerSet", "large", {"spec": {"replicas": 1}}, subresource="scale")

    until(lambda: set(pods(kube)) == {"large-0", "large-0-1"}, why=lambda: list(pods(kube)))


def test_a_new_template_replaces_one_group_at_a_time(kube):
    kube.create(group_set())
    ready_groups(kube, 0, 1)

    kube.apply(group_set(image="main:2"), "editor", force=True)

    until(lambda: image_of(kube, "large-1") == "main:2")
    assert image_of(kube, "large-0") == "main:1"
    place(kube, "large-1")
    place(kube, "large-1-1")
    until(lambda: image_of(kube, "large-0") == "main:2")


def route(**rule):
    backend = {"name": "gateway-1", "port": 80}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "ranker"},
        "spec": {"parentRefs": [{"name": "public"}], "rules": [{"backendRefs": [backend], **rule}]},
    }


def test_a_route_has_its_defaults(kube):
    made = kube.create(route(matches=[{"headers": [{"name": "generation", "value": "1"}]}]))

    (rule,) = made["spec"]["rules"]
    assert rule["matches"][0]["headers"][0]["type"] == "Exact"
    assert rule["matches"][0]["path"] == {"type": "PathPrefix", "value": "/"}
    assert rule["backendRefs"][0]["weight"] == 1


def test_a_route_is_checked(kube):
    with pytest.raises(Refused) as refused:
        kube.create(route(backendRef=[]), fieldValidation="Strict")
    assert 'unknown field "spec.rules[0].backendRef"' in refused.value.message
    with pytest.raises(Refused) as refused:
        kube.create(route(matches=[{"method": "FETCH"}]))
    assert refused.value.code == 422
