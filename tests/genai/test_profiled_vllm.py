"""`ipnext profile` on real vLLM with a tiny random Llama.

Counts and orders only: how fast the machine is, is no test.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess

import httpx
import pytest
from typer.testing import CliRunner

from ipnext.cli import app
from ipnext.infra.process.parent_death import tether
from tests.waiting import until

pytestmark = [pytest.mark.genai, pytest.mark.timeout(1500)]

START_SECONDS = 900
"""A busy machine; on a quiet one half a minute."""
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_WORKER_MULTIPROC_METHOD": "fork",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="module")
def engine(vllm, llamas, tmp_path_factory):
    """URL of a vLLM server with the tiny model, as `chat`."""
    root = tmp_path_factory.mktemp("profiled")
    scratch = tmp_path_factory.mktemp("v")  # killed, it leaves its sockets
    environment = os.environ | ENVIRONMENT | {"TMPDIR": str(scratch), "VLLM_RPC_BASE_PATH": str(scratch)}
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [vllm, "-m", "vllm.entrypoints.openai.api_server", "--model", str(llamas[1])]
    command += ["--served-model-name", "chat", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    command += ["--max-model-len", "512", "--max-num-seqs", "4", "--dtype", "bfloat16"]
    log = (root / "log").open("w")
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=log,
        stderr=log,
        start_new_session=True,
        preexec_fn=tether(),  # noqa: PLW1509 - no other thread forks here
    )
    url = f"http://127.0.0.1:{port}"

    def starts():
        assert process.poll() is None, (root / "log").read_text()[-3000:]
        return _answers(url)

    try:
        until(starts, why=lambda: "vLLM did not start", every_seconds=0.2, seconds=START_SECONDS)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def _answers(url):
    try:
        return httpx.get(f"{url}/health", timeout=60).status_code == 200
    except httpx.HTTPError:
        return False


def test_a_real_engine_is_measured_and_nothing_of_it_runs_on(engine):
    lengths = ("--prompt-tokens", "64", "--output-tokens", "16")
    command = ("profile", "chat", "--url", engine, "--dry-run", *lengths, "--concurrency", "1,6", "--seconds", "0")
    result = CliRunner().invoke(app, [*command, "--ttft-ms", "600000", "-o", "json"])
    assert result.exit_code == 0, result.output
    profile = json.loads(result.stdout)["profile"]
    given = profile["conditions"]
    assert given["engine_version"].startswith("vllm ")
    assert given["prompt_tokens"] == pytest.approx(64, abs=6)
    one, six = profile["steps"]
    assert (one["concurrency"], six["concurrency"], six["requests"] >= 6) == (1, 6, True)
    assert 0 < one["ttft_p50_ms"] <= one["ttft_p99_ms"]
    assert six["tokens_per_second"] > 0
    assert (one["others_running"], six["others_running"]) == (0, 0)
    until(lambda: not _running(engine), why=lambda: "streams run on in the engine", every_seconds=0.1)


def _running(url):
    lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
    found = [line.split()[-1] for line in lines if line.startswith("vllm:num_requests_running{")]
    return sum(map(float, found))
