"""The mock engine stands for vLLM in other tests: what a router or host can see of either is the same."""

import os
import subprocess
import sys

import httpx
import pytest

from ipnext.infra.process.ports import free_port
from tests.genai.engine.conformance import EngineConformance
from tests.genai.support.checkpoints import write_adapter
from tests.genai.support.hosts import MOCK, MODEL
from tests.waiting import until


@pytest.fixture(scope="module")
def url(subprocesses):
    port = free_port()
    command = [sys.executable, str(MOCK), "--port", str(port), "--model", MODEL, "--itl-ms", "20"]
    command += ["--served", f"{MODEL}@1"]
    switches = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_SERVER_DEV_MODE": "1"}
    process = subprocess.Popen(command, env={**os.environ, **switches})
    url = f"http://127.0.0.1:{port}"
    until(lambda: up(url))
    yield url
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return write_adapter(tmp_path_factory.mktemp("adapter") / "lora")


def up(url):
    try:
        return httpx.get(f"{url}/health", timeout=60).status_code == 200
    except httpx.TransportError:
        return False


class TestMock(EngineConformance):
    """The mock engine."""
