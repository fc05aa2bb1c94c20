"""Deployments, ReplicaSets and disruption budgets; the tests say which pods are ready, as a node would."""

import pytest

from tests.kubernetes.contract.objects import deployment
from tests.kubernetes.rest_client import Refused
from tests.waiting import until

NOWHERE = {"nodeSelector": {"test.ipnext/node": "none"}}
"""No real node takes the pods."""
COST = "controller.kubernetes.io/pod-deletion-cost"


def unplaced(replicas, image="main:1", **spec):
    made = deployment(replicas=replicas, image=image)
    made["spec"]["template"]["spec"] |= NOWHERE
    made["spec"] |= spec
    return made


def pods(kube, count=None):
    found = kube.items("Pod", labelSelector="app=web")
    return found if count is None or len(found) == count else []


def until_pods(kube, count):
    until(lambda: len(pods(kube)) == count, why=lambda: [each["metadata"]["name"] for each in pods(kube)])
    return pods(kube)


def set_ready(kube, pod, status="True", **extra):
    condition = {"type": "Ready", "status": status, "lastTransitionTime": "2026-01-01T00:00:00Z"}
    phase = {"phase": "Running"} | extra
    kube.patch_strategic(
        "Pod", pod["metadata"]["name"], {"status": phase | {"conditions": [condition]}}, subresource="status"
    )


def image(pod):
    return pod["spec"]["containers"][0]["image"]


def images(kube):
    return sorted(map(image, pods(kube)))


def condition(kube, kind):
    found = kube.get("Deployment", "web").get("status", {}).get("conditions") or ()
    return next((each for each in found if each["type"] == kind), {"status": None, "reason": None})


def status(kube):
    return kube.get("Deployment", "web").get("status", {})


def test_a_deployment_makes_pods_by_a_replica_set(kube):
    made = kube.create(unplaced(2))

    found = until_pods(kube, 2)

    (replica_set,) = kube.items("ReplicaSet", labelSelector="app=web")
    assert replica_set["metadata"]["ownerReferences"][0]["uid"] == made["metadata"]["uid"]
    assert {each["metadata"]["ownerReferences"][0]["uid"] for each in found} == {replica_set["metadata"]["uid"]}
    mark = replica_set["metadata"]["labels"]["pod-template-hash"]
    assert {each["metadata"]["labels"]["pod-template-hash"] for each in found} == {mark}


def test_a_deployment_is_available_once_enough_pods_are_ready(kube):
    kube.create(unplaced(2))
    found = until_pods(kube, 2)
    until(lambda: condition(kube, "Available")["status"] == "False")

    for each in found:
        set_ready(kube, each)

    until(lambda: condition(kube, "Available")["status"] == "True")
    until(lambda: condition(kube, "Progressing")["reason"] == "NewReplicaSetAvailable")
    until(lambda: status(kube).get("readyReplicas") == 2)
    assert status(kube)["observedGeneration"] == 1


def test_a_deleted_pod_is_replaced(kube):
    kube.create(unplaced(1))
    (first,) = until_pods(kube, 1)

    kube.delete("Pod", first["metadata"]["name"])

    until(lambda: [each for each in pods(kube, 1) if each["metadata"]["uid"] != first["metadata"]["uid"]])


def test_the_pod_of_least_deletion_cost_goes_first(kube):
    kube.create(unplaced(3))
    found = until_pods(kube, 3)
    for each in found:
        set_ready(kube, each)
    chosen = found[1]["metadata"]["name"]
    kube.merge("Pod", chosen, {"metadata": {"annotations": {COST: "-1"}}})
    until(lambda: status(kube).get("readyReplicas") == 3)

    kube.merge("Deployment", "web", {"spec": {"replicas": 2}}, subresource="scale")

    left = {each["metadata"]["name"] for each in until_pods(kube, 2)}
    assert left == {each["metadata"]["name"] for each in found} - {chosen}


def test_a_pod_that_is_not_ready_goes_before_a_cheaper_one(kube):
    kube.create(unplaced(2))
    ready, _ = until_pods(kube, 2)
    set_ready(kube, ready)
    kube.merge("Pod", ready["metadata"]["name"], {"metadata": {"annotations": {COST: "-1"}}})
    until(lambda: status(kube).get("readyReplicas") == 1)

    kube.merge("Deployment", "web", {"spec": {"replicas": 1}}, subresource="scale")

    assert [each["metadata"]["name"] for each in until_pods(kube, 1)] == [ready["metadata"]["name"]]


def test_a_rolling_update_surges_and_waits_for_ready_pods(kube):
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    kube.create(unplaced(2, strategy=rolling))
    for each in until_pods(kube, 2):
        set_ready(kube, each)
    until(lambda: status(kube).get("availableReplicas") == 2)

    kube.apply(unplaced(2, image="main:2", strategy=rolling), "editor", force=True)

    for step in (["main:1", "main:1", "main:2"], ["main:1", "main:2", "main:2"]):
        until(lambda step=step: images(kube) == step, why=lambda: images(kube))
        set_ready(kube, next(each for each in pods(kube) if image(each) == "main:2" and not is_ready(each)))
    until(lambda: images(kube) == ["main:2", "main:2"])
    until(lambda: condition(kube, "Progressing")["reason"] == "NewReplicaSetAvailable")
    assert kube.get("Deployment", "web")["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "2"


def is_ready(pod):
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", ()))


def test_a_rolling_update_takes_at_most_what_may_be_unavailable(kube):
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    kube.create(unplaced(3, strategy=rolling))
    for each in until_pods(kube, 3):
        set_ready(kube, each)
    until(lambda: status(kube).get("availableReplicas") == 3)

    kube.apply(unplaced(3, image="main:2", strategy=rolling), "editor", force=True)

    until(lambda: images(kube) == ["main:1", "main:1", "main:2"], why=lambda: images(kube))
    until(lambda: status(kube).get("updatedReplicas") == 1)
    assert images(kube) == ["main:1", "main:1", "main:2"]


def test_recreate_ends_all_pods_before_the_first_new_one(kube):
    version = kube.page("Pod")["metadata"]["resourceVersion"]
    kube.create(unplaced(2, strategy={"type": "Recreate"}))
    until_pods(kube, 2)

    kube.merge("Deployment", "web", {"spec": {"template": {"metadata": {"annotations": {"new": "yes"}}}}})

    with kube.watch("Pod", resourceVersion=version) as events:
        kinds = []
        while kinds.count("ADDED") < 3:  # two old pods and the first new one
            kinds.append(next(events)["type"])
    assert kinds.count("DELETED") == 2


def test_a_deployment_that_is_stuck_says_so(kube):
    kube.create(unplaced(1, progressDeadlineSeconds=1))

    until(lambda: condition(kube, "Progressing")["reason"] == "ProgressDeadlineExceeded")
    assert condition(kube, "Progressing")["status"] == "False"


def test_a_paused_deployment_starts_no_rollout(kube):
    kube.create(unplaced(1))
    until_pods(kube, 1)
    kube.merge("Deployment", "web", {"spec": {"paused": True}})

    changed = kube.apply(unplaced(1, image="main:2"), "editor", force=True)
    until(lambda: status(kube).get("observedGeneration") == changed["metadata"]["generation"])
    assert images(kube) == ["main:1"]

    kube.merge("Deployment", "web", {"spec": {"paused": False}})
    until(lambda: "main:2" in images(kube))


def test_scale_reads_and_writes_the_number_of_replicas(kube):
    kube.create(unplaced(1))
    until_pods(kube, 1)

    kube.merge("Deployment", "web", {"spec": {"replicas": 3}}, subresource="scale")

    until_pods(kube, 3)
    until(lambda: kube.get("Deployment", "web", "scale")["status"]["replicas"] == 3)
    scale = kube.get("Deployment", "web", "scale")
    assert (scale["kind"], scale["spec"]) == ("Scale", {"replicas": 3})
    assert scale["status"]["selector"] == "app=web"


def test_a_scale_of_zero_names_no_number(kube):
    kube.create(unplaced(0))

    assert kube.get("Deployment", "web", "scale")["spec"] == {}


def test_a_pod_that_no_node_takes_says_why(kube):
    kube.create(unplaced(1))
    (found,) = until_pods(kube, 1)

    def unschedulable():
        listed = kube.get("Pod", found["metadata"]["name"])["status"].get("conditions") or ()
        return next((each for each in listed if each["type"] == "PodScheduled"), None)

    until(unschedulable)
    assert (unschedulable()["status"], unschedulable()["reason"]) == ("False", "Unschedulable")


def budget(**spec):
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "floor"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, **spec},
    }


def evict(kube, pod):
    name = pod["metadata"]["name"]
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": kube.namespace}}
    return kube.send("POST", kube.path("Pod", name, "eviction"), body)


def allowed(kube):
    found = kube.get("PodDisruptionBudget", "floor").get("status") or {}
    return found.get("disruptionsAllowed")


def test_an_eviction_keeps_the_budget(kube):
    kube.create(unplaced(2))
    kube.create(budget(minAvailable=1))
    first, second = until_pods(kube, 2)
    for each in (first, second):
        set_ready(kube, each)
    until(lambda: allowed(kube) == 1)

    evict(kube, first)
    with pytest.raises(Refused) as refused:
        evict(kube, second)
    assert (refused.value.code, refused.value.reason) == (429, "TooManyRequests")
    assert "disruption budget" in refused.value.message
    assert kube.exists("Pod", second["metadata"]["name"])


def test_a_budget_counts_the_replicas_that_are_wanted(kube):
    kube.create(unplaced(3))
    kube.create(budget(maxUnavailable=1))
    found = until_pods(kube, 3)

    for each in found[:2]:
        set_ready(kube, each)
    until(lambda: (kube.get("PodDisruptionBudget", "floor").get("status") or {}).get("currentHealthy") == 2)
    assert allowed(kube) == 0

    set_ready(kube, found[2])
    until(lambda: allowed(kube) == 1)


def test_a_quota_that_refuses_is_named_by_the_deployment(kube):
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"}}
    kube.create(quota | {"spec": {"hard": {"pods": "1"}}})
    until(lambda: kube.exists("ResourceQuota", "small"))

    kube.create(unplaced(2))

    until(lambda: condition(kube, "ReplicaFailure")["status"] == "True")
    assert condition(kube, "ReplicaFailure")["reason"] == "FailedCreate"
    assert "exceeded quota: small" in condition(kube, "ReplicaFailure")["message"]
    assert len(pods(kube)) == 1

    kube.merge("ResourceQuota", "small", {"spec": {"hard": {"pods": "2"}}})
    until_pods(kube, 2)
    until(lambda: condition(kube, "ReplicaFailure")["status"] is None)
