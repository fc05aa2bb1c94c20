"""`ipnext dev` at Ctrl-C, with an agent that hangs while a stream runs through it."""

import os
import signal

import pytest

from tests.e2e.conftest import NO_HOSTS, Running, small_options
from tests.genai.support.checkpoints import write_llama
from tests.genai.support.hosts import mock_command
from tests.genai.support.regions import ENDLESS, Stream
from tests.processes import gone
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.e2e

MANIFEST = """
apiVersion: ipnext/v1
kind: Model
metadata: {name: chat, owner: tests}
spec:
  task: generation
  parts:
    - name: llm
      engine: vllm
      hardware: [{kind: cpu, units: 1, qps: 60}]
      settings: {graceSeconds: 0.5}
  demand: [{region: us-east, qps: 50}]
  latencyToleranceMs: 60
  rollout: {canary: 1, maxStep: 1, drainSeconds: 1, deadlineSeconds: 180}
"""


def test_an_agent_that_hangs_is_killed_after_its_models_drain_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("IPNEXT_VLLM_COMMAND", mock_command(itl_ms=20))
    monkeypatch.setenv("IPNEXT_AGENT_GRACE_SECONDS", "0.5")
    running = Running(tmp_path / "state", *small_options(tmp_path / "state"), **NO_HOSTS).start()
    try:
        running.client.apply(MANIFEST)
        change = running.client.publish("chat", {"llm": write_llama(tmp_path / "hf", seed=1)})
        assert running.client.wait_change(change.id, timeout_seconds=PATIENCE_SECONDS).state == "done"
        stream = Stream(running.endpoints["gateways"]["us-east"], ENDLESS)
        family = running.family()
        agent = running.child("ipnext.infra.agent", "--region us-east")
        os.kill(agent.pid, signal.SIGSTOP)
        assert running.stop(signal.SIGINT) == 0
        until(lambda: gone(family))
        assert "process killed after its grace" in running.log.read_text()
        until(lambda: stream.over)
    finally:
        running.stop(signal.SIGKILL)
