"""Volumes of pods: what a container sees at its mount paths, and what changes there while it runs."""

import base64
import os
import uuid
from pathlib import Path

import pytest

from tests.kubernetes.contract.objects import config_map, pod
from tests.kubernetes.contract.pods import NODE, SLEEP, logs, main, on, state_of, status, until_running
from tests.kubernetes.kubelet.kubelet import Node, running_node
from tests.kubernetes.kubelet.processes.isolation import is_possible
from tests.waiting import until

pytestmark = [pytest.mark.usefixtures("subprocesses", "listeners"), pytest.mark.allow_hosts(["127.0.0.0/8"])]

needs_namespaces = pytest.mark.skipif(not is_possible(), reason="this user may not make namespaces")


def secret(name="hidden", **data):
    encoded = {key: base64.b64encode(each.encode()).decode() for key, each in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": encoded}


def mounted(node, script, path, source, **fields):
    """A pod whose container sees one volume."""
    mount = {"name": "data", "mountPath": path}
    one = main(["sh", "-c", f"{script}; exec sleep 1000"], volumeMounts=[mount])
    return pod(**on(node, one), volumes=[{"name": "data", **source}], terminationGracePeriodSeconds=0, **fields)


def until_log(kube, text, **query):
    until(lambda: logs(kube, **query) == text, why=lambda: (logs(kube, **query), status(kube)))


@pytest.mark.parametrize("medium", ["", "Memory"])
def test_containers_share_an_empty_directory(kube, node, medium):
    mount = {"name": "data", "mountPath": "/test-ipnext/shared"}
    writes = main(["sh", "-c", "echo hello > /test-ipnext/shared/file; exec sleep 1000"], "a", volumeMounts=[mount])
    other = {"name": "data", "mountPath": "/etc/ipnext-test", "readOnly": True}
    script = "while ! test -s /etc/ipnext-test/file; do sleep 0.02; done; cat /etc/ipnext-test/file"
    reads = main(["sh", "-c", f"{script}; exec sleep 1000"], "b", volumeMounts=[other])
    volume = {"name": "data", "emptyDir": {"medium": medium}}
    kube.create(pod(**on(node, writes, reads), volumes=[volume], terminationGracePeriodSeconds=0))

    until_log(kube, "hello\n", container="b")
    assert not Path("/etc/ipnext-test").exists()
    assert not Path("/test-ipnext").exists()


def test_a_volume_at_the_temporary_directory_hides_no_other_one(kube, node):
    mounts = [{"name": "tmp", "mountPath": "/tmp"}, {"name": "data", "mountPath": "/tmp/inner/data"}]
    script = "echo hello > /tmp/inner/data/file; ls /tmp; cat /tmp/inner/data/file; exec sleep 1000"
    volumes = [{"name": name, "emptyDir": {}} for name in ("tmp", "data")]
    one = main(["sh", "-c", script], volumeMounts=mounts)
    kube.create(pod(**on(node, one), volumes=volumes, terminationGracePeriodSeconds=0))
    until_log(kube, "inner\nhello\n")


def test_an_empty_directory_outlives_its_container_and_ends_with_its_pod(kube, node):
    script = "echo x >> /run/ipnext-test/runs; cat /run/ipnext-test/runs; test $(wc -l < /run/ipnext-test/runs) -ge 2"
    kube.create(mounted(node, f"{script} || exit 1", "/run/ipnext-test", {"emptyDir": {}}))
    until_log(kube, "x\nx\n")

    kube.delete("Pod", "one")
    until(lambda: not kube.exists("Pod", "one"))
    kube.create(mounted(node, "ls /run/ipnext-test; echo end", "/run/ipnext-test", {"emptyDir": {}}))
    until_log(kube, "end\n")


def test_a_secret_and_a_config_map_are_files(kube, node):
    kube.create(secret(password="open"))
    items = [{"key": "password", "path": "below/word", "mode": 0o400}]
    script = "cat /etc/ipnext-test/below/word; echo; stat -L -c %a /etc/ipnext-test/below/word"
    kube.create(mounted(node, script, "/etc/ipnext-test", {"secret": {"secretName": "hidden", "items": items}}))

    until_log(kube, "open\n400\n")


def test_files_of_a_config_map_change_together_while_the_pod_runs(kube, node):
    kube.create(config_map(first="1", second="1"))
    script = "cd /etc/ipnext-test; while :; do echo $(cat ..data/first ..data/second | tr -d '\\n'); sleep 0.02; done"
    kube.create(mounted(node, script, "/etc/ipnext-test", {"configMap": {"name": "settings"}}))
    until(lambda: "11" in logs(kube).split())

    kube.merge("ConfigMap", "settings", {"data": {"first": "2", "second": "2"}})

    until(lambda: "22" in logs(kube).split(), why=lambda: logs(kube))


def test_a_pod_waits_for_an_object_that_it_mounts(kube, node):
    kube.create(mounted(node, "cat /etc/ipnext-test/color", "/etc/ipnext-test", {"configMap": {"name": "settings"}}))
    until(lambda: any(each["reason"] == "FailedMount" for each in kube.items("Event")))
    assert state_of(kube)["waiting"]["reason"] == "ContainerCreating"

    kube.create(config_map(color="red"))

    until_log(kube, "red")


def test_an_optional_object_may_be_missing(kube, node):
    source = {"configMap": {"name": "settings", "optional": True}}
    kube.create(mounted(node, "ls /etc/ipnext-test; echo end", "/etc/ipnext-test", source))

    until_log(kube, "end\n")


def test_a_directory_of_the_node_is_made_if_the_pod_asks_for_it(kube, node, tmp_path):
    source = {"hostPath": {"path": str(tmp_path / "new"), "type": "DirectoryOrCreate"}}
    kube.create(mounted(node, "echo hello > /run/ipnext-test/file", "/run/ipnext-test", source))

    until((tmp_path / "new/file").exists, why=lambda: status(kube))
    assert kube.get("Pod", "one")["spec"]["nodeName"] == node


def test_a_directory_of_the_node_must_be_there(kube, node, tmp_path):
    source = {"hostPath": {"path": str(tmp_path / "none"), "type": "Directory"}}
    kube.create(mounted(node, "true", "/run/ipnext-test", source))

    failed = until(lambda: [each for each in kube.items("Event") if each["reason"] == "FailedMount"])
    assert "hostPath type check failed" in failed[0]["message"]


def test_a_pod_reads_its_own_labels(kube, node):
    items = [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]
    kube.create(mounted(node, "cat /etc/ipnext-test/labels", "/etc/ipnext-test", {"downwardAPI": {"items": items}}))

    until_log(kube, 'app="one"')


@needs_namespaces
def test_a_part_of_a_volume_can_be_mounted(kube, node):
    kube.create(config_map(**{"run.sh": "#!/bin/sh\necho from $0\n"}))
    mount = {"name": "data", "mountPath": "/usr/local/bin/ipnext-test", "subPath": "run.sh"}
    one = main(["/usr/local/bin/ipnext-test"], volumeMounts=[mount])
    volume = {"name": "data", "configMap": {"name": "settings", "defaultMode": 0o755}}
    kube.create(pod(**on(node, one), volumes=[volume], restartPolicy="Never"))

    until_log(kube, "from /usr/local/bin/ipnext-test\n")
    assert not Path("/usr/local/bin/ipnext-test").exists()


def test_a_token_is_renewed_while_the_pod_runs(kube, node):
    token = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    script = f"first=$(cat {token}); while test $first = $(cat {token}); do sleep 0.05; done; echo renewed"
    kube.create(pod(**on(node, main(["sh", "-c", script])), restartPolicy="Never"))

    until_log(kube, "renewed\n")


@needs_namespaces
def test_a_socket_below_a_mount_has_a_short_path(kube, node):
    program = "import socket; s = socket.socket(socket.AF_UNIX); s.bind('/run/ipnext-test/' + 60 * 'a'); print('bound')"
    kube.create(mounted(node, f'python3 -c "{program}"', "/run/ipnext-test", {"emptyDir": {}}))

    until_log(kube, "bound\n")


@needs_namespaces
def test_a_container_can_have_another_user(kube, node):
    security = {"runAsUser": 65534, "runAsGroup": 65534}
    kube.create(pod(**on(node, main(["id", "-u"], securityContext=security)), restartPolicy="Never"))

    until_log(kube, "65534\n")


@needs_namespaces
def test_what_is_mounted_read_only_cannot_be_written(kube, node):
    kube.create(config_map(color="red"))
    source = {"configMap": {"name": "settings"}}
    kube.create(mounted(node, "touch /etc/ipnext-test/new || echo refused", "/etc/ipnext-test", source))

    until(lambda: "refused" in logs(kube), why=lambda: logs(kube))


def test_without_namespaces_paths_are_rewritten(kube, config):
    name = f"node-{uuid.uuid4().hex[:8]}"
    mount = {"name": "data", "mountPath": "/run/ipnext-test"}
    env = [{"name": "PLACE", "value": "/run/ipnext-test/file"}]
    probe = {"exec": {"command": ["test", "-e", "/run/ipnext-test/file"]}, "periodSeconds": 1}
    one = main(["sh", "-c", "echo hello > /run/ipnext-test/file; cat $PLACE; exec sleep 1000"], env=env)
    one |= {"volumeMounts": [mount], "readinessProbe": probe}
    with running_node(Node(name, config, {NODE: name}, pace=0.05, lease_seconds=1, is_isolated=False)):
        kube.create(pod(**on(name, one), volumes=[{"name": "data", "emptyDir": {}}]))
        until_log(kube, "hello\n")
        until(lambda: status(kube)["containerStatuses"][0]["ready"], why=lambda: status(kube))
        kube.delete("Pod", "one", gracePeriodSeconds=0)
    kube.delete("Node", name)


@needs_namespaces
def test_a_container_is_process_one_of_a_machine_of_its_own_name(kube, node):
    kube.create(pod(**on(node, main(["sh", "-c", "echo $$$$ $(hostname)"])), restartPolicy="Never"))

    until_log(kube, "1 one\n")
    assert os.uname().nodename != "one"


def test_a_container_works_where_its_spec_says(kube, node):
    kube.create(mounted(node, "true", "/run/ipnext-test", {"emptyDir": {}}))
    until_running(kube)
    mount = {"name": "data", "mountPath": "/run/ipnext-test"}
    one = main(["pwd"], volumeMounts=[mount], workingDir="/run/ipnext-test")
    kube.create(pod("two", **on(node, one), volumes=[{"name": "data", "emptyDir": {}}], restartPolicy="Never"))

    until(lambda: logs(kube, "two") == "/run/ipnext-test\n", why=lambda: (logs(kube, "two"), status(kube, "two")))


def test_environment_names_limits_and_the_api_server(kube, node, config):
    limit = {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}
    env = [{"name": "LIMIT", "valueFrom": limit}]
    kube.create(secret(password="open"))
    source = [{"secretRef": {"name": "hidden"}, "prefix": "MY_"}]
    script = "echo $LIMIT $MY_password $KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT"
    resources = {"limits": {"memory": "256Mi"}}
    one = main(["sh", "-c", script], env=env, envFrom=source, resources=resources)
    kube.create(pod(**on(node, one), restartPolicy="Never"))

    server = config.get().cluster.server.removeprefix("https://")
    until_log(kube, f"256 open {server}\n")


def test_a_sleeping_pod_ends_in_its_time(kube, node):
    kube.create(pod(**on(node, main(SLEEP))))
    until_running(kube)
    kube.delete("Pod", "one")
    until(lambda: not kube.exists("Pod", "one"))
