"""Real hosts in pods: a real agent, Envoy, router and proxies on a cluster whose nodes run pods as processes."""

from pathlib import Path

import pytest

from ipnext.infra.kubernetes.documents import SERVING_CONDITION
from ipnext.model.deployment.logs import LogQuery
from tests.ipnext.infra.kubernetes.region import running_cluster
from tests.ipnext.infra.test_real_data_plane import BODY, ask, deployment, publish, serve, store, table  # noqa: F401
from tests.waiting import until

pytestmark = pytest.mark.allow_hosts(["127.0.0.0/8"])  # addresses of pods
PARTS = ("first", "second")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, subprocesses, listeners):
    with running_cluster(tmp_path_factory.mktemp("cluster"), "eu", nodes=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def region(tmp_path_factory, running_agent, store, cluster):  # noqa: F811
    """An agent that answers as generation 1 with two replicas of each part; each test leaves it serving."""
    agent = running_agent(
        "eu",
        tmp_path_factory.mktemp("region"),
        artifacts=store.uri,
        real=True,
        certificates=cluster.certificates,
        environment={
            **cluster.environment(Path(store.uri.removeprefix("file://")), LOST_SECONDS="0.1"),
            "IPNEXT_AGENT_DRAIN_SECONDS": "4",
            "IPNEXT_AGENT_GRACE_SECONDS": "2",
        },
    )
    try:
        yield agent.start()
    finally:
        agent.close()


@pytest.fixture(scope="module")
def serving(region, publish):  # noqa: F811
    serve(region, publish, replicas=2)
    return region


def pods(cluster):
    return {pod["metadata"]["name"]: pod for pod in cluster.kube.items("Pod")}


def serves(pod):
    conditions = {each["type"]: each["status"] for each in pod.get("status", {}).get("conditions", ())}
    return conditions.get(SERVING_CONDITION) == conditions.get("Ready") == "True"


def until_all_serve(serving):
    for part in PARTS:
        serving.await_ready(deployment(part).key, 1, replicas=2)


def test_a_model_of_two_parts_is_answered_by_pods(serving, cluster):
    answer = ask(serving)
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"] == [4.0, 8.0, 12.0]
    until(lambda: len(pods(cluster)) == 4 and all(map(serves, pods(cluster).values())))


def test_each_replica_set_has_a_budget_that_counts_its_ready_pods(serving, cluster):
    until_all_serve(serving)
    until(
        lambda: [each["status"].get("currentHealthy") for each in cluster.kube.items("PodDisruptionBudget")] == [2, 2]
    )


def test_the_output_of_a_host_is_read(serving):
    until_all_serve(serving)
    logs = serving.infra.logs("eu", LogQuery(model="scaled", part="first", tail=100))
    assert sorted(log.replica for log in logs) == ["scaled.first.cpu.0", "scaled.first.cpu.1"]
    assert all("host listens" in log.text for log in logs)


def test_snapshots_are_replaced_in_running_pods_without_a_failed_request(serving, cluster, publish, load):  # noqa: F811
    until_all_serve(serving)
    before = set(pods(cluster))
    with load(serving, "scaled", body=BODY) as clients:
        for part in PARTS:
            serving.infra.apply(deployment(part, publish(part, 1, 2), publish(part, 2, 3), replicas=2))
        for part in PARTS:
            serving.await_ready(deployment(part).key, 2, replicas=2)
        serving.infra.route(table(2, 2, served=[1, 2]))
        until(lambda: clients.answers[200, "2"] > 20)
        serving.infra.route(table(3, 1, served=[1]))
        for part in PARTS:
            serving.infra.apply(deployment(part, publish(part, 1, 2), replicas=2))
    assert clients.bad == []
    assert set(pods(cluster)) == before


def test_an_agent_that_is_killed_costs_no_request_and_the_next_one_adopts_all_pods(serving, cluster, load):
    until_all_serve(serving)
    before = set(pods(cluster))
    with load(serving, "scaled", body=BODY) as clients:
        serving.kill()
        serving.launch()
        until_all_serve(serving)
    assert clients.bad == []
    assert set(pods(cluster)) == before


def test_an_api_server_that_is_away_costs_no_request_and_what_was_asked_for_is_done_afterwards(
    serving,
    cluster,
    load,
    publish,  # noqa: F811
):
    until_all_serve(serving)
    first = deployment("first", publish("first", 1, 2), replicas=3)
    with load(serving, "scaled", body=BODY) as clients:
        with cluster.server.away():
            serving.infra.apply(first)
            until(lambda: any("could not be started" in (one.message or "") for one in serving.replicas(first.key)))
            seen = clients.answers.total()
            until(lambda: clients.answers.total() > seen + 50)
        serving.await_ready(first.key, 1, replicas=3)
        serving.infra.apply(first.model_copy(update={"replicas": 2}))
        until(lambda: len(pods(cluster)) == 4)
    assert clients.bad == []


def test_a_host_whose_pod_is_deleted_by_somebody_is_replaced_without_a_failed_request(serving, cluster, load):
    until_all_serve(serving)
    name = next(iter(pods(cluster)))
    with load(serving, "scaled", body=BODY) as clients:
        cluster.kube.delete("Pod", name)
        until(lambda: name not in pods(cluster) and len(pods(cluster)) == 4)
        until_all_serve(serving)
    assert clients.bad == []


def test_pods_of_a_lost_node_are_replaced_on_another_one(serving, cluster, load):
    until_all_serve(serving)
    with load(serving, "scaled", body=BODY) as clients:
        cluster.lose_node("node-0")
        until(lambda: placed(cluster) == ["node-1"] * 4)
        until_all_serve(serving)
    assert [text for text in clients.bad if "HostLost" not in text] == []


def placed(cluster):
    """The nodes of all pods that stay."""
    staying = (pod for pod in pods(cluster).values() if "deletionTimestamp" not in pod["metadata"])
    return [pod["spec"].get("nodeName") for pod in staying]


def test_the_end_of_the_region_leaves_no_pod(serving, cluster):
    serving.end()
    until(lambda: not placed(cluster))
