"""A node for the tests of pods."""

import uuid
from collections.abc import Iterator

import pytest

from tests.kubernetes.contract.pods import NODE
from tests.kubernetes.kubelet.kubelet import Node, running_node

PACE = 0.05


@pytest.fixture(scope="session")
def node(config, subprocesses, listeners) -> Iterator[str]:
    """The name of a node that only these tests' pods select."""
    name = f"node-{uuid.uuid4().hex[:8]}"
    labels, taint = {NODE: name}, {"key": NODE, "value": name, "effect": "NoSchedule"}
    capacity = {"nvidia.com/gpu": "2"}
    with running_node(
        Node(
            name,
            config,
            labels,
            capacity,
            (taint,),
            pace=PACE,
            lease_seconds=1,
            refresh_seconds=0.3,
            token_seconds=0.5,
        )
    ):
        yield name
