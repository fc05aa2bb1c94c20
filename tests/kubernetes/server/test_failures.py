"""What a test can do to the API server double."""

import select
import threading

import httpx2
import pytest
from lightkube.config.kubeconfig import KubeConfig

from tests.kubernetes.contract.objects import config_map, deployment
from tests.kubernetes.contract.pods import SLEEP
from tests.kubernetes.controllers.standard import standard_controllers
from tests.kubernetes.kubelet.kubelet import Node, running_node
from tests.kubernetes.rest_client import Refused, RestClient, open_http
from tests.kubernetes.server.access import service_account
from tests.kubernetes.server.server import running_server
from tests.waiting import until


def test_an_absent_server_cuts_connections_and_keeps_its_objects(server, of_server):
    made = of_server.create(config_map(color="red"))

    with of_server.watch("ConfigMap", fieldSelector="metadata.name=settings") as events:
        next(events)
        server.go_away()
        with pytest.raises(httpx2.HTTPError):
            next(events)
    with pytest.raises(httpx2.ConnectError):
        of_server.get("ConfigMap", "settings")

    server.come_back()
    assert of_server.get("ConfigMap", "settings") == made


def test_an_absent_server_is_back_after_its_block(server, of_server):
    with server.away():
        server.silence_watches()

    assert not of_server.exists("ConfigMap", "settings")


@pytest.mark.parametrize(("code", "reason"), [(500, "InternalError"), (429, "TooManyRequests"), (403, "Forbidden")])
def test_requests_are_refused_as_often_as_said(server, of_server, code, reason):
    refusal = server.refuse(code, verbs=("create",), plurals=("configmaps",), times=1)

    with pytest.raises(Refused) as refused:
        of_server.create(config_map())
    assert (refused.value.code, refused.value.reason) == (code, reason)
    of_server.create(config_map())
    assert refusal.met == 1


def test_too_many_requests_say_when_to_come_again(server, of_server):
    server.refuse(429)

    answer = of_server.http.get(of_server.path("ConfigMap"))

    assert answer.headers["Retry-After"] == "1"
    server.recover()
    assert of_server.items("Secret") == []


def test_a_request_hangs_until_the_server_recovers(server, of_server):
    hang = server.hang(plurals=("configmaps",))
    asking = threading.Thread(target=of_server.create, args=(config_map(),))
    asking.start()

    until(lambda: hang.met == 1)
    assert asking.is_alive()
    server.recover()
    asking.join(60)
    assert of_server.exists("ConfigMap", "settings")


def test_an_expired_version_has_to_be_listed_again(server, of_server):
    version = of_server.create(config_map())["metadata"]["resourceVersion"]
    of_server.create(config_map("other"))
    server.expire()

    with of_server.watch("ConfigMap", resourceVersion=version) as events:
        event = next(events)
    assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")
    version = of_server.page("ConfigMap")["metadata"]["resourceVersion"]
    of_server.merge("ConfigMap", "other", {"data": {"a": "b"}})
    with of_server.watch("ConfigMap", resourceVersion=version) as events:
        assert next(events)["type"] == "MODIFIED"


def test_an_open_watch_can_expire(server, of_server):
    with of_server.watch(
        "ConfigMap", resourceVersion=of_server.page("ConfigMap")["metadata"]["resourceVersion"]
    ) as events:
        server.expire(running=True)
        assert [each["object"]["code"] for each in events] == [410]


def test_pages_expire(server, of_server):
    for name in ("a", "b"):
        of_server.create(config_map(name))
    token = of_server.page("ConfigMap", limit=1)["metadata"]["continue"]
    server.expire()

    with pytest.raises(Refused) as refused:
        of_server.page("ConfigMap", limit=1, **{"continue": token})
    assert (refused.value.code, refused.value.reason) == (410, "Expired")


def test_a_silent_watch_keeps_its_connection_and_tells_nothing(server, of_server):
    asked = {"watch": "true", "timeoutSeconds": "60", "fieldSelector": "metadata.name=settings"}
    with of_server.http.stream("GET", of_server.path("ConfigMap"), params=asked) as answer:
        server.silence_watches()
        of_server.create(config_map())
        for _ in range(5):  # each takes the server longer than an event of a watch
            assert of_server.items("ConfigMap")
        connection = answer.extensions["network_stream"].get_extra_info("socket")
        assert select.select([connection], [], [], 0)[0] == []


def test_watches_can_be_cut(server, of_server):
    of_server.create(config_map())
    with of_server.watch("ConfigMap", fieldSelector="metadata.name=settings") as events:
        next(events)
        server.end_watches()
        with pytest.raises(httpx2.HTTPError):
            next(events)


def test_a_token_that_is_revoked_is_not_accepted(server):
    token = server.admit("admin")
    with open_http(KubeConfig.from_dict(server.kubeconfig(token=token))) as http:
        client = RestClient(http)
        assert client.items("Secret") == []
        server.revoke(token)
        with pytest.raises(Refused) as refused:
            client.items("Secret")
    assert (refused.value.code, refused.value.reason) == (401, "Unauthorized")


def test_a_service_account_may_do_what_its_role_says(server, of_server):
    access = "rbac.authorization.k8s.io"
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}]
    named = {"apiVersion": f"{access}/v1", "metadata": {"name": "reader"}}
    of_server.create(named | {"kind": "Role", "rules": rules})
    subject = {"kind": "ServiceAccount", "name": "agent", "namespace": "default"}
    reference = {"apiGroup": access, "kind": "Role", "name": "reader"}
    of_server.create(named | {"kind": "RoleBinding", "subjects": [subject], "roleRef": reference})
    token = server.admit(service_account("default", "agent"))

    with open_http(KubeConfig.from_dict(server.kubeconfig(token=token))) as http:
        agent = RestClient(http)
        assert agent.items("ConfigMap")
        for act in (
            lambda: agent.create(config_map()),
            lambda: agent.items("Secret"),
            lambda: agent.inside("kube-system").items("ConfigMap"),
        ):
            with pytest.raises(Refused) as refused:
                act()
            assert (refused.value.code, refused.value.reason) == (403, "Forbidden")
            assert "system:serviceaccount:default:agent" in refused.value.message


def test_without_controllers_objects_stay_as_they_are(server, of_server):
    server.stop_controllers()
    of_server.create(deployment())

    assert of_server.items("ReplicaSet") == []
    server.start_controllers()
    until(lambda: of_server.items("Pod"))


@pytest.mark.usefixtures("subprocesses", "listeners")
@pytest.mark.allow_hosts(["127.0.0.0/8"])
def test_pods_of_a_silent_node_run_elsewhere():
    makers = standard_controllers(node_grace_seconds=2, eviction_seconds=0.5)
    with running_server(makers) as server:
        config = KubeConfig.from_dict(server.kubeconfig())
        with open_http(config) as http, running_node(Node("first", config, lease_seconds=0.2)) as first:
            client = RestClient(http)
            client.create(deployment(command=SLEEP))
            until(lambda: ready_nodes(client) == ["first"])
            with running_node(Node("second", config, lease_seconds=0.2)):
                first.stop()
                until(lambda: ready_nodes(client) == ["second"])
                conditions = client.get("Node", "first")["status"]["conditions"]
    assert {each["status"] for each in conditions if each["type"] == "Ready"} == {"Unknown"}


@pytest.mark.usefixtures("subprocesses", "listeners")
@pytest.mark.allow_hosts(["127.0.0.0/8"])
def test_a_node_follows_its_pods_after_an_outage(server, of_server):
    config = KubeConfig.from_dict(server.kubeconfig())
    with running_node(Node("only", config, lease_seconds=0.2)):
        of_server.create(deployment(command=SLEEP))
        until(lambda: ready_nodes(of_server) == ["only"])
        (before,) = of_server.items("Pod")
        with server.away():
            pass
        server.expire(running=True)

        of_server.merge("Deployment", "web", {"spec": {"replicas": 2}}, subresource="scale")

        until(lambda: ready_nodes(of_server) == ["only", "only"])
        found = {each["metadata"]["uid"]: each["status"]["podIP"] for each in of_server.items("Pod")}
        assert found[before["metadata"]["uid"]] == before["status"]["podIP"]
        of_server.delete("Deployment", "web")
        until(lambda: not of_server.items("Pod"))


@pytest.mark.usefixtures("subprocesses", "listeners")
@pytest.mark.allow_hosts(["127.0.0.0/8"])
def test_an_image_that_cannot_be_pulled_is_named(server, of_server):
    config = KubeConfig.from_dict(server.kubeconfig())
    with running_node(Node("only", config, images={"other:1"}, pace=0.01)):
        of_server.create(deployment(command=SLEEP))

        def waiting():
            statuses = [each["status"].get("containerStatuses") for each in of_server.items("Pod")]
            return [each[0]["state"]["waiting"] for each in statuses if each and each[0]["state"].get("waiting")]

        (found,) = until(lambda: [each for each in waiting() if each["reason"] == "ErrImagePull"])
        assert "main:1" in found["message"]


def ready_nodes(client):
    """Nodes of the pods that are ready and not being deleted, one for each pod."""
    found = [each for each in client.items("Pod") if "deletionTimestamp" not in each["metadata"]]
    ready = (each for each in found if is_ready(each))
    return sorted(each["spec"]["nodeName"] for each in ready)


def is_ready(pod):
    conditions = pod["status"].get("conditions") or ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
