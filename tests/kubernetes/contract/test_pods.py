"""Pods on a node of processes: environment, addresses, probes, restarts, logs and their end."""

import re
import sys
import uuid

import pytest

from tests.kubernetes.contract.objects import config_map, deployment, pod
from tests.kubernetes.contract.pods import NODE, SLEEP, container, logs, main, on, processes_of, status, until_running
from tests.kubernetes.kubelet.kubelet import Node, running_node
from tests.processes import gone
from tests.waiting import until

pytestmark = [pytest.mark.usefixtures("subprocesses", "listeners"), pytest.mark.allow_hosts(["127.0.0.0/8"])]


def spec(node, command, **container):
    return on(node, main(command, **container))


def test_a_pod_runs_its_command_with_its_environment(kube, node):
    kube.create(config_map(color="red"))
    env = [
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "SPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
        {"name": "ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "color"}}},
        {"name": "BOTH", "value": "$(NAME)-$(COLOR)"},
    ]
    script = 'echo "$NAME $SPACE $ADDRESS $BOTH $0"; sleep 1000'
    kube.create(pod(**spec(node, ["sh", "-c", script], args=["$(COLOR)"], env=env)))

    address = until_running(kube)["podIP"]

    assert re.fullmatch(r"127\.\d+\.\d+\.\d+", address)
    until(lambda: logs(kube) != "")
    assert logs(kube) == f"one {kube.namespace} {address} one-red red\n"


def test_each_pod_has_an_address_of_its_own_and_is_ready_once_its_probe_passes(kube, node):
    probe = {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1}
    serve = ["sh", "-c", f'cd /; exec {sys.executable} -m http.server --bind "$ADDRESS" 18080']
    env = [{"name": "ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]
    ports = [{"name": "http", "containerPort": 18080}]
    made = deployment(replicas=2)
    made["spec"]["template"]["spec"] = spec(node, serve, env=env, ports=ports, readinessProbe=probe)
    kube.create(made)

    until(lambda: kube.get("Deployment", "web").get("status", {}).get("readyReplicas") == 2)

    addresses = {each["status"]["podIP"] for each in kube.items("Pod", labelSelector="app=web")}
    assert len(addresses) == 2


def test_a_pod_whose_probe_fails_is_not_ready(kube, node, tmp_path):
    probe = {"exec": {"command": ["test", "-e", str(tmp_path / "fine")]}, "periodSeconds": 1, "failureThreshold": 1}
    kube.create(pod(**spec(node, SLEEP, readinessProbe=probe)))
    until_running(kube)
    assert not container(kube)["ready"]

    (tmp_path / "fine").touch()
    until(lambda: container(kube)["ready"])

    (tmp_path / "fine").unlink()
    until(lambda: not container(kube)["ready"])
    assert container(kube)["restartCount"] == 0


def test_a_container_that_is_not_alive_is_restarted(kube, node, tmp_path):
    probe = {"exec": {"command": ["test", "-e", str(tmp_path / "alive")]}, "periodSeconds": 1, "failureThreshold": 1}
    (tmp_path / "alive").touch()
    kube.create(pod(**spec(node, SLEEP, livenessProbe=probe)))
    until_running(kube)

    (tmp_path / "alive").unlink()

    until(lambda: container(kube)["restartCount"] >= 1)


def test_a_startup_probe_holds_the_others_back(kube, node, tmp_path):
    startup = {"exec": {"command": ["test", "-e", str(tmp_path / "up")]}, "periodSeconds": 1, "failureThreshold": 9999}
    kube.create(pod(**spec(node, SLEEP, startupProbe=startup)))
    until_running(kube)
    assert not container(kube)["started"]
    assert not container(kube)["ready"]

    (tmp_path / "up").touch()
    until(lambda: container(kube)["started"] and container(kube)["ready"])


def test_a_container_that_crashes_is_restarted_with_a_back_off(kube, node):
    kube.create(pod(**spec(node, ["sh", "-c", "echo run; exit 3"])))

    until(lambda: container(kube)["restartCount"] >= 2)
    until(lambda: container(kube)["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff")
    assert container(kube)["lastState"]["terminated"]["exitCode"] == 3


@pytest.mark.parametrize(
    ("command", "policy", "phase", "code"),
    [("true", "Never", "Succeeded", 0), ("false", "Never", "Failed", 1), ("true", "OnFailure", "Succeeded", 0)],
)
def test_a_pod_that_is_not_restarted_ends_with_its_command(kube, node, command, policy, phase, code):
    kube.create(pod(**spec(node, [command]), restartPolicy=policy))

    until(lambda: status(kube).get("phase") == phase)
    assert container(kube)["state"]["terminated"]["exitCode"] == code
    assert container(kube)["restartCount"] == 0


def test_a_command_that_cannot_run_says_why(kube, node):
    kube.create(pod(**spec(node, ["/no/such/program"])))

    until(lambda: container(kube)["state"].get("waiting", {}).get("reason") == "RunContainerError")
    assert "/no/such/program" in container(kube)["state"]["waiting"]["message"]


def test_a_deleted_pod_runs_its_hook_and_may_take_its_time(kube, node, tmp_path):
    hook = {"preStop": {"exec": {"command": ["sh", "-c", f"echo hook >> {tmp_path}/order"]}}}
    script = (
        f"trap 'echo term >> {tmp_path}/order; exit 0' TERM; echo up >> {tmp_path}/order; while :; do sleep 0.05; done"
    )
    kube.create(pod(**spec(node, ["sh", "-c", script], lifecycle=hook)))
    until_running(kube)
    until((tmp_path / "order").exists)

    kube.delete("Pod", "one")

    until(lambda: not kube.exists("Pod", "one"))
    assert (tmp_path / "order").read_text().split() == ["up", "hook", "term"]


def test_a_pod_that_does_not_end_is_killed_after_its_grace(kube, node):
    word = uuid.uuid4().hex
    script = "trap '' TERM; sleep 1000 & while :; do sleep 0.05; done"
    kube.create(pod(**spec(node, ["sh", "-c", script], env=[{"name": "WORD", "value": word}])))
    until_running(kube)
    found = until(lambda: (each := processes_of(word)) and len(each) >= 2 and each)

    kube.delete("Pod", "one", gracePeriodSeconds=1)

    until(lambda: not kube.exists("Pod", "one"))
    assert gone(found)
    assert not processes_of(word)


def test_a_node_that_stops_leaves_no_process(kube, config):
    name, word = f"node-{uuid.uuid4().hex[:8]}", uuid.uuid4().hex
    with running_node(Node(name, config, {NODE: name}, lease_seconds=1)):
        kube.create(pod(**spec(name, ["sh", "-c", "sleep 1000 & wait"], env=[{"name": "WORD", "value": word}])))
        until_running(kube)
        until(lambda: len(processes_of(word)) >= 2)

    assert not processes_of(word)
    assert kube.exists("Pod", "one")
    kube.delete("Node", name)
    until(lambda: not kube.exists("Pod", "one"))


def test_a_node_has_a_lease_and_is_ready(kube, node):
    found = kube.get("Node", node)

    conditions = {each["type"]: each["status"] for each in found["status"]["conditions"]}
    assert conditions["Ready"] == "True"
    lease = kube.inside("kube-node-lease").get("Lease", node)
    assert lease["spec"]["holderIdentity"] == node
    first = lease["spec"]["renewTime"]
    until(lambda: kube.inside("kube-node-lease").get("Lease", node)["spec"]["renewTime"] > first)
