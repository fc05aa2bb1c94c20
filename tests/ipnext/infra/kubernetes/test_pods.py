"""Real hosts in pods: a real agent, Envoy, router and proxies on a cluster whose nodes run pods as processes."""

from pathlib import Path

import pytest

from tests.ipnext.infra.kubernetes.region import running_cluster
from tests.ipnext.infra.test_real_data_plane import ask, deployment, publish, serve, store, table  # noqa: F401

pytestmark = pytest.mark.allow_hosts(["127.0.0.0/8"])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, subprocesses, listeners):
    with running_cluster(tmp_path_factory.mktemp("cluster"), "eu", nodes=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def region(tmp_path_factory, running_agent, store, cluster):  # noqa: F811
    agent = running_agent(
        "eu",
        tmp_path_factory.mktemp("region"),
        artifacts=store.uri,
        real=True,
        certificates=cluster.certificates,
        environment=cluster.environment(Path(store.uri.removeprefix("file://"))),
    )
    import os, json, time
    from threading import Timer
    def show():
        for pod in cluster.kube.items("Pod"):
            print(pod["metadata"]["name"], json.dumps(pod["status"], indent=1)[:3000], flush=True)
            for c in ("proxy", "host"):
                r = cluster.kube.http.get(cluster.kube.path("Pod", pod["metadata"]["name"], "log"), params={"container": c})
                print(c, r.text[:3000], flush=True)
        print(os.popen(f"tail -c 3000 {agent.state}/agent.log; ls -la {agent.state} {agent.state}/logs; tail -c 1500 {agent.state}/logs/*.log").read(), flush=True)
    t = Timer(25, show); t.start()
    try:
        yield agent.start()
    finally:
        t.cancel()
        agent.close()


def test_a_model_of_two_parts_is_answered_by_pods(region, publish, cluster):  # noqa: F811
    serve(region, publish)
    answer = ask(region)
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"] == [4.0, 8.0, 12.0]
    assert len(cluster.kube.items("Pod")) == 2
