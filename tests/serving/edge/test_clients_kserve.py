"""The KServe SDK's own client, unmodified, against the edge. `make clients` makes its environment and runs this."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.waiting import PATIENCE_SECONDS

PYTHON = os.environ.get("IPNEXT_KSERVE_PYTHON")
pytestmark = pytest.mark.skipif(
    PYTHON is None, reason="needs the package kserve in an environment of its own: `make clients`"
)


@pytest.fixture(scope="module")
def found(edge):
    script = Path(__file__).with_name("kserve_client.py")
    done = subprocess.run(
        [str(PYTHON), str(script), edge.url], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_client_sees_that_server_and_model_are_ready(found):
    assert (found["live"], found["ready"], found["model ready"], found["absent ready"]) == (True, True, True, False)


def test_every_datatype_that_the_client_knows_comes_back_bit_for_bit(found):
    trips = {name: value for name, value in found.items() if name.startswith(("echo-", "chain-"))}
    assert len(trips) == 50
    assert {name: value for name, value in trips.items() if value is not True} == {}


def test_the_client_raises_our_words(found):
    assert "model 'absent' is not served here" in found["absent"]
    assert "input 'x': datatype must be FP32, got FP64" in found["wrong"]


def test_a_plain_json_object_is_answered(found):
    assert found["plain"] == [1.5, 2.5]
