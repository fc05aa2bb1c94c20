"""A cluster for the tests: the double, or for the contract the one of TEST_KUBECONFIG."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from lightkube.config.kubeconfig import KubeConfig

from tests.kubernetes.rest_client import RestClient, open_http
from tests.kubernetes.server.server import ApiServer, running_server

REAL = "TEST_KUBECONFIG"
"""Names the configuration of a real API server, on which the contract tests run then."""


def config_of(server: ApiServer, **options: Any) -> KubeConfig:
    return KubeConfig.from_dict(server.kubeconfig(**options))


@pytest.fixture(scope="session")
def shared_server(listeners) -> Iterator[ApiServer]:
    """One double for all tests that break nothing. Its bookmarks come soon: those of a real server, each minute."""
    with running_server() as server:
        server.api.bookmark_seconds = 0.2
        yield server


@pytest.fixture
def server(listeners) -> Iterator[ApiServer]:
    """A double for one test, which may break it."""
    with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def config(shared_server) -> KubeConfig:
    """The cluster under test."""
    path = os.environ.get(REAL)
    return KubeConfig.from_file(path) if path else config_of(shared_server)


@pytest.fixture(scope="session")
def http(config) -> Iterator[Any]:
    with open_http(config) as client:
        yield client


@pytest.fixture
def kube(http) -> Iterator[RestClient]:
    """A client of a namespace of its own."""
    cluster = RestClient(http)
    made = cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": "test-"}})
    name = made["metadata"]["name"]
    yield cluster.inside(name)
    cluster.delete("Namespace", name)


@pytest.fixture
def of_server(server) -> Iterator[RestClient]:
    """A client of the test's own double."""
    with open_http(config_of(server)) as client:
        yield RestClient(client)
