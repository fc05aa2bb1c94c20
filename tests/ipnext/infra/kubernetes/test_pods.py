"""Real hosts in pods: a real agent, Envoy, router and proxies on a cluster whose nodes run pods as processes."""

from pathlib import Path

import pytest

from ipnext.infra.kubernetes.documents import SERVING_CONDITION
from ipnext.model.deployment.logs import LogQuery
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.registry.registry import GraphNode, PartGraph
from tests.ipnext.infra.kubernetes.region import running_cluster
from tests.ipnext.infra.test_real_data_plane import BODY, ask, deployment, publish, store  # noqa: F401
from tests.waiting import until

pytestmark = pytest.mark.allow_hosts(["127.0.0.0/8"])  # addresses of pods
GRAPH = PartGraph(
    nodes=(GraphNode(name="first", part="first", inputs={"x": "request.x"}),), outputs={"score": "first.output"}
)
KEY = deployment("first").key


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, subprocesses, listeners):
    with running_cluster(tmp_path_factory.mktemp("cluster"), "eu", nodes=4) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def region(tmp_path_factory, running_agent, store, cluster):  # noqa: F811
    """An agent; each test leaves it serving generation 1 by two replicas."""
    agent = running_agent(
        "eu",
        tmp_path_factory.mktemp("region"),
        artifacts=store.uri,
        real=True,
        certificates=cluster.certificates,
        environment={
            **cluster.environment(Path(store.uri.removeprefix("file://")), alone=True, LOST_SECONDS="0.1"),
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
    region.infra.apply(wanted(publish))
    region.await_ready(KEY, 1, replicas=2)
    region.infra.route(table(1, 1, served=[1]))
    return region


def wanted(publish, *, replicas=2, generations=(1,)):  # noqa: F811
    return deployment("first", *(publish("first", number, number + 1) for number in generations), replicas=replicas)


def table(revision, generation, served):
    return RouteTable(
        model="scaled",
        region="eu",
        revision=revision,
        shares=(RouteShare(to="eu", generation=generation, fraction=1.0),),
        served=tuple(ServedGeneration(generation=one, graph=GRAPH, snapshots={"first": one}) for one in served),
    )


def pods(cluster):
    return {pod["metadata"]["name"]: pod for pod in cluster.kube.items("Pod")}


def serves(pod):
    conditions = {each["type"]: each["status"] for each in pod.get("status", {}).get("conditions", ())}
    return conditions.get(SERVING_CONDITION) == conditions.get("Ready") == "True"


def until_all_serve(serving):
    serving.await_ready(KEY, 1, replicas=2)


def test_a_model_is_answered_by_pods(serving, cluster):
    answer = ask(serving)
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"] == [2.0, 4.0, 6.0]
    until(lambda: len(pods(cluster)) == 2 and all(map(serves, pods(cluster).values())))


def test_a_replica_set_has_a_budget_that_counts_its_ready_pods(serving, cluster):
    until_all_serve(serving)
    healthy = lambda: [each.get("status", {}).get("currentHealthy") for each in budgets(cluster)]  # noqa: E731
    until(lambda: healthy() == [2], why=lambda: (budgets(cluster), pods(cluster)))


def budgets(cluster):
    return cluster.kube.items("PodDisruptionBudget")


def test_the_output_of_a_host_is_read(serving):
    until_all_serve(serving)
    logs = serving.infra.logs("eu", LogQuery(model="scaled", part="first", tail=100))
    assert sorted(log.replica for log in logs) == ["scaled.first.cpu.0", "scaled.first.cpu.1"]
    assert all("host listens" in log.text for log in logs)


def test_snapshots_are_replaced_in_running_pods_without_a_failed_request(serving, cluster, publish, load):  # noqa: F811
    until_all_serve(serving)
    before = set(pods(cluster))
    with load(serving, "scaled", body=BODY) as clients:
        serving.infra.apply(wanted(publish, generations=(1, 2)))
        serving.await_ready(KEY, 2, replicas=2)
        serving.infra.route(table(2, 2, served=[1, 2]))
        until(lambda: clients.answers[200, "2"] > 20)
        serving.infra.route(table(3, 1, served=[1]))
        serving.infra.apply(wanted(publish))
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
    if cluster.server is None:
        pytest.skip("needs an API server that a test can cut off")
    until_all_serve(serving)
    with load(serving, "scaled", body=BODY) as clients:
        with cluster.server.away():
            serving.infra.apply(wanted(publish, replicas=3))
            until(lambda: any("could not be started" in (one.message or "") for one in serving.replicas(KEY)))
            seen = clients.answers.total()
            until(lambda: clients.answers.total() > seen + 50)
        serving.await_ready(KEY, 1, replicas=3)
        serving.infra.apply(wanted(publish))
        until(lambda: len(pods(cluster)) == 2)
    assert clients.bad == []


def test_a_host_whose_pod_is_deleted_by_somebody_is_replaced_without_a_failed_request(serving, cluster, load):
    until_all_serve(serving)
    name = next(iter(pods(cluster)))
    with load(serving, "scaled", body=BODY) as clients:
        cluster.kube.delete("Pod", name)
        until(lambda: name not in pods(cluster) and len(pods(cluster)) == 2)
        until_all_serve(serving)
    assert clients.bad == []


def test_pods_of_a_lost_node_are_replaced_on_another_one_without_a_failed_request(serving, cluster, load):
    until_all_serve(serving)
    with load(serving, "scaled", body=BODY) as clients:
        lost = placed(cluster)[0]
        cluster.lose_node(lost)
        until(lambda: len(set(placed(cluster)) - {lost, None}) == 2)
        until_all_serve(serving)
    assert clients.bad == []


def placed(cluster):
    """The nodes of all pods that stay."""
    staying = (pod for pod in pods(cluster).values() if "deletionTimestamp" not in pod["metadata"])
    return [pod["spec"].get("nodeName") for pod in staying]


def test_the_end_of_the_region_leaves_no_pod(serving, cluster):
    serving.end()
    until(lambda: not placed(cluster))
