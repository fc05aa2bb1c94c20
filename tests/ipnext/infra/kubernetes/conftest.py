"""The pods of a region on an API server double."""

from contextlib import asynccontextmanager

import pytest

from ipnext.infra.kubernetes.documents import read_templates
from ipnext.infra.kubernetes.runtime import PodHosts
from tests.ipnext.infra.kubernetes.samples import kubernetes_settings_of, region_context
from tests.kubernetes.conftest import config_of
from tests.kubernetes.rest_client import RestClient, open_http
from tests.kubernetes.server.server import running_server

QUICK = {"retry_seconds": 0.05, "request_seconds": 60.0}


@pytest.fixture
def server(listeners):
    """A double for one test, without controllers: tests say what becomes of pods."""
    with running_server({}) as server:
        yield server


@pytest.fixture
def kube(server):
    """A client of the region's namespace."""
    with open_http(config_of(server)) as http:
        yield RestClient(http)


@pytest.fixture
def pod_hosts(server, tmp_path):
    """Make the runtime of an agent; it ends with its block."""
    config = server.write_kubeconfig(tmp_path / "kubeconfig")

    @asynccontextmanager
    async def pod_hosts(agent=None, **settings):
        given = kubernetes_settings_of(tmp_path, **({"kubeconfig_file": config} | QUICK | settings))
        site = region_context(tmp_path, **(agent or {}))
        hosts = PodHosts(site, given, read_templates(given), trust_domain="ipnext.local")
        await hosts.start()
        try:
            yield hosts
        finally:
            await hosts.stop()

    return pod_hosts
