"""What keeps a pod from running: images, crashes, memory, devices; and what ends with its node."""

import os
import signal
import subprocess
import sys
import uuid

import pytest
import yaml

from tests.kubernetes.contract.objects import pod
from tests.kubernetes.contract.pods import (
    NODE,
    SLEEP,
    container,
    logs,
    main,
    on,
    processes_of,
    state_of,
    status,
    until_running,
)
from tests.kubernetes.kubelet.kubelet import Node, running_node
from tests.kubernetes.kubelet.processes.isolation import is_possible
from tests.waiting import until

pytestmark = [pytest.mark.usefixtures("subprocesses", "listeners"), pytest.mark.allow_hosts(["127.0.0.0/8"])]

FILL = "import time; kept = bytearray(300 << 20); time.sleep(1000)"
GPU = "nvidia.com/gpu"


def reasons(kube, name="one"):
    """Reasons of a container's state and of its last one."""
    found = container(kube, name=name)
    states = [*found["state"].values(), *found.get("lastState", {}).values()]
    return {each.get("reason") for each in states}


@pytest.mark.parametrize("by_groups", [True, False])
def test_a_container_with_more_memory_than_its_limit_is_killed(kube, config, by_groups):
    name = f"node-{uuid.uuid4().hex[:8]}"
    limit = {"limits": {"memory": "100Mi"}}
    with running_node(Node(name, config, {NODE: name}, pace=0.05, lease_seconds=1, has_memory_groups=by_groups)):
        one = main([sys.executable, "-c", FILL], resources=limit)
        kube.create(pod(**on(name, one), restartPolicy="Never"))

        until(lambda: status(kube).get("phase") == "Failed", why=lambda: status(kube))
    ended = state_of(kube)["terminated"]
    assert (ended["reason"], ended["exitCode"], ended["signal"]) == ("OOMKilled", 137, 9)
    kube.delete("Node", name)


def test_an_image_that_is_not_there_is_named_until_it_comes(kube, config):
    name, images = f"node-{uuid.uuid4().hex[:8]}", {"other:1"}
    with running_node(Node(name, config, {NODE: name}, images=images, pace=0.05, lease_seconds=1)):
        kube.create(pod(**on(name, main(SLEEP))))
        seen = set()
        until(lambda: seen.update(reasons(kube)) or {"ErrImagePull", "ImagePullBackOff"} <= seen, why=lambda: seen)
        assert status(kube)["phase"] == "Pending"
        assert any("main:1" in each["message"] for each in kube.items("Event") if each["reason"] == "Failed")

        images.add("main:1")
        until_running(kube)
        kube.delete("Pod", "one", gracePeriodSeconds=0)
    kube.delete("Node", name)


def test_an_image_can_bring_the_command(kube, config):
    name, images = f"node-{uuid.uuid4().hex[:8]}", {"main:1": ["echo", "hello"]}
    with running_node(Node(name, config, {NODE: name}, images=images, lease_seconds=1)):
        one = {"name": "main", "image": "main:1", "args": ["world"]}
        kube.create(pod(**on(name, one), restartPolicy="Never"))

        until(lambda: logs(kube) == "hello world\n", why=lambda: status(kube))
    kube.delete("Node", name)


def test_a_crash_loop_keeps_the_last_exit(kube, node):
    kube.create(pod(**on(node, main(["sh", "-c", "exit 4"]))))

    until(lambda: {"CrashLoopBackOff", "Error"} <= reasons(kube), why=lambda: status(kube))
    assert container(kube)["lastState"]["terminated"]["exitCode"] == 4
    assert status(kube)["phase"] == "Running"
    until(lambda: any(each["reason"] == "BackOff" for each in kube.items("Event")))


def test_devices_are_counted(kube, node):
    wanted = {"limits": {GPU: "1"}}
    for name in ("one", "two", "three"):
        kube.create(pod(name, **on(node, main(SLEEP, resources=wanted))))
        if name != "three":
            until_running(kube, name)

    def refusal():
        found = [each for each in status(kube, "three").get("conditions") or () if each["type"] == "PodScheduled"]
        return found and found[0]["status"] == "False" and found[0]["message"]

    assert f"Insufficient {GPU}" in until(refusal)
    kube.delete("Pod", "one")
    until_running(kube, "three")


@pytest.mark.skipif(not is_possible(), reason="without namespaces the children of a container stay")
def test_a_node_that_is_killed_leaves_no_process(kube, config, tmp_path):
    name, word = f"node-{uuid.uuid4().hex[:8]}", uuid.uuid4().hex
    context = config.get()
    user = {"token": context.user.token}
    cluster = {"server": context.cluster.server, "certificate-authority-data": context.cluster.certificate_auth_data}
    file = tmp_path / "config"
    names = {"name": "test", "context": {"cluster": "test", "user": "test"}}
    document = {"current-context": "test", "contexts": [names]}
    document |= {"clusters": [{"name": "test", "cluster": cluster}], "users": [{"name": "test", "user": user}]}
    file.write_text(yaml.safe_dump(document))
    words = [sys.executable, "-m", "tests.kubernetes.kubelet", name, "--label", f"{NODE}={name}"]
    script = "setsid sh -c 'setsid sleep 1000 & sleep 1000' & sleep 1000"
    with subprocess.Popen(words, env=os.environ | {"KUBECONFIG": str(file)}) as process:
        kube.create(pod(**on(name, main(["sh", "-c", script], env=[{"name": "WORD", "value": word}]))))
        until(lambda: len(processes_of(word)) >= 4, why=lambda: status(kube))

        process.send_signal(signal.SIGKILL)
        process.wait()

    until(lambda: not processes_of(word), why=lambda: processes_of(word))
    kube.delete("Node", name)


CLIENT = """
from lightkube import Client
from lightkube.resources.core_v1 import ConfigMap
client = Client()
print(client.namespace, client.get(ConfigMap, "kube-root-ca.crt").metadata.name)
"""


@pytest.mark.skipif(not is_possible(), reason="the library looks for its token at a fixed path")
def test_a_client_in_a_pod_finds_the_api_server(kube, node):
    access = "rbac.authorization.k8s.io"
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}]
    named = {"apiVersion": f"{access}/v1", "metadata": {"name": "reader"}}
    kube.create(named | {"kind": "Role", "rules": rules})
    subject = {"kind": "ServiceAccount", "name": "default", "namespace": kube.namespace}
    reference = {"apiGroup": access, "kind": "Role", "name": "reader"}
    kube.create(named | {"kind": "RoleBinding", "subjects": [subject], "roleRef": reference})

    kube.create(pod(**on(node, main([sys.executable, "-c", CLIENT])), restartPolicy="Never"))

    until(lambda: status(kube).get("phase") in {"Succeeded", "Failed"}, why=lambda: status(kube))
    assert logs(kube) == f"{kube.namespace} kube-root-ca.crt\n"
