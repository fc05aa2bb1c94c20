"""The client of the API server: configurations that it can't use, and watches that end at once."""

import base64
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import yaml

from ipnext.errors import InvalidInput, Unavailable
from ipnext.infra.kubernetes.cluster import PODS, Cluster
from ipnext.infra.kubernetes.latest_writes import LatestWrites
from tests.ipnext.infra.kubernetes.samples import kubernetes_settings_of
from tests.waiting import eventually


def config(server="https://127.0.0.1:1", user=None, **cluster):
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": server, **cluster}}],
            "users": [] if user is None else [{"name": "u", "user": user}],
        }
    )


UNFIT = {
    "empty": "",
    "a list": "[]",
    "no user": config(),
    "no CA file": config(user={"token": "t"}, **{"certificate-authority": "/no/such/file"}),
    "bad CA": config(user={"token": "t"}, **{"certificate-authority-data": base64.b64encode(b"x").decode()}),
    "bad address": config("http://[::1", {"token": "t"}),
    "no context": "{apiVersion: v1, kind: Config, clusters: [], users: [], contexts: []}",
}


@pytest.mark.parametrize("what", UNFIT)
def test_a_configuration_that_says_nothing_useful_is_named(tmp_path, what):
    (tmp_path / "kubeconfig").write_text(UNFIT[what])
    with pytest.raises(InvalidInput, match=r"KUBECONFIG_FILE: .*kubeconfig does not say how to reach the cluster"):
        Cluster(kubernetes_settings_of(tmp_path, kubeconfig_file=tmp_path / "kubeconfig"))


@pytest.mark.usefixtures("subprocesses")
async def test_a_credential_that_cannot_be_had_is_unavailable(tmp_path):
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1beta1", "command": "false"}}
    (tmp_path / "kubeconfig").write_text(config(user=user))
    cluster = Cluster(kubernetes_settings_of(tmp_path, kubeconfig_file=tmp_path / "kubeconfig"))
    try:
        with pytest.raises(Unavailable, match="no answer of the API server"):
            await cluster.read_log("one", "host")
    finally:
        await cluster.aclose()


async def test_watches_that_end_at_once_are_opened_again_with_pauses(server, tmp_path, monkeypatch):
    file = server.write_kubeconfig(tmp_path / "kubeconfig")
    cluster = Cluster(kubernetes_settings_of(tmp_path, kubeconfig_file=file, retry_seconds=7))
    done = []

    @asynccontextmanager
    async def end_at_once(*_, **__):
        done.append("watch")
        if len(done) > 4:
            msg = "enough"
            raise OSError(msg)
        yield SimpleNamespace(status_code=200, aiter_lines=no_lines)

    async def no_lines():
        for line in ():
            yield line

    async def pause(seconds):
        done.append(seconds)

    monkeypatch.setattr(cluster._http, "stream", end_at_once)
    monkeypatch.setattr("ipnext.infra.kubernetes.cluster.asyncio", SimpleNamespace(sleep=pause))
    with pytest.raises(Unavailable, match="enough"):
        async for _ in cluster._watch(PODS, "none=such", "0"):
            pass
    await cluster.aclose()
    assert done == ["watch", 7, "watch", 7, "watch"]


async def test_a_refused_write_is_repeated_with_growing_pauses():
    writes = LatestWrites(retry_seconds=0.001)
    calls = []

    async def refused():
        calls.append(1)
        msg = "403"
        raise Unavailable(msg)

    writes.put("one", refused)
    await eventually(lambda: len(calls) > 3)
    with pytest.raises(Unavailable, match="403"):
        await writes.wait_written("one", seconds=0)
    await writes.stop()


async def test_a_write_that_breaks_is_not_taken_for_written():
    writes = LatestWrites(retry_seconds=0.001)

    async def broken():
        msg = "broken"
        raise ValueError(msg)

    writes.put("one", broken)
    with pytest.raises(ValueError, match="broken"):
        await writes.wait_written("one", seconds=60)
