"""The composition root as a real process: it starts and answers without Temporal, and ends in order."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from ipnext.client import Client
from ipnext.errors import Unavailable
from ipnext.infra.ports import free_port
from ipnext.model.fleet import FleetManifest
from ipnext.model.manifest import ModelManifest
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.usefixtures("subprocesses")


def environment(directory, **extra):
    return os.environ | {
        "IPNEXT_DATABASE_URL": f"sqlite:///{directory}/ipnext.db",
        "IPNEXT_ARTIFACTS_URI": f"file://{directory}/artifacts",
        "IPNEXT_AGENTS": '{"eu": "http://127.0.0.1:1"}',
        "IPNEXT_API_PORT": str(free_port()),
        "TEMPORAL_ADDRESS": "127.0.0.1:1",
        **extra,
    }


@pytest.fixture
def process(tmp_path, rooms):
    env = environment(tmp_path)
    with (tmp_path / "api.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "ipnext.api"], env=env, stdout=log, stderr=log)
    client = Client(f"http://127.0.0.1:{env['IPNEXT_API_PORT']}", api_key=rooms.admin_key)

    def answers():
        assert process.poll() is None, (tmp_path / "api.log").read_text()
        with suppress(Unavailable):
            return client.readiness()

    until(answers)
    yield process, client
    client.close()
    if process.poll() is None:
        process.kill()
        process.wait()


def test_it_takes_changes_without_temporal_and_ends_with_status_0(process, rooms):
    running, client = process
    client.put_fleet(FleetManifest.model_validate(rooms.fleet_document()))
    client.apply(ModelManifest.model_validate(rooms.model_document()))
    parts = {}
    for part in ("sparse", "dense"):
        parts[part] = rooms.directory / part
        rooms.write_snapshot(parts[part], part.encode())
    assert client.publish("ranker", parts).state.value == "recorded"
    ready = client.readiness()
    assert (ready.ready, ready.temporal, ready.unsubmitted_changes) == (True, "down", 1)
    assert [region.reachable for region in client.regions()] == [False, False]
    running.send_signal(signal.SIGTERM)
    assert running.wait(PATIENCE_SECONDS) == 0


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [("IPNEXT_DATABASE_URL", "oracle://x", "sqlite:///FILE"), ("IPNEXT_API_PORT", "many", "api_port")],
)
def test_a_bad_setting_is_said_at_the_start(tmp_path, setting, value, named):
    env = environment(tmp_path, **{setting: value})
    ran = subprocess.run(
        [sys.executable, "-m", "ipnext.api"],
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: ")
    assert named in ran.stderr
    assert "Traceback" not in ran.stderr
