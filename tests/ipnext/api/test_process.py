"""The composition root as a real process: it starts and answers without Temporal, and ends in order."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import httpx
import pytest

from ipnext.client import Client
from ipnext.errors import Unavailable
from ipnext.infra.process.ports import free_port
from ipnext.model.access.rights import Role
from ipnext.model.fleet import FleetManifest
from ipnext.model.manifest.manifest import ModelManifest
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.usefixtures("subprocesses")


def environment(directory, **extra):
    return os.environ | {
        "IPNEXT_DATABASE_URL": f"sqlite:///{directory}/ipnext.db",
        "IPNEXT_ARTIFACTS_URI": f"file://{directory}/artifacts",
        "IPNEXT_AGENTS": '{"eu": "http://127.0.0.1:1", "us": "http://127.0.0.1:1"}',
        "IPNEXT_API_PORT": str(free_port()),
        "TEMPORAL_ADDRESS": "127.0.0.1:1",
        **extra,
    }


@pytest.fixture
def process(tmp_path, rooms):
    env = environment(tmp_path)
    with (tmp_path / "api.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "ipnext.api"], env=env, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{env['IPNEXT_API_PORT']}"
    client = Client(url, api_key=rooms.admin_key)

    def answers():
        assert process.poll() is None, (tmp_path / "api.log").read_text()
        with suppress(Unavailable):
            return client.readiness()

    until(answers)
    yield process, client, url
    client.close()
    if process.poll() is None:
        process.kill()
        process.wait()


def test_it_takes_changes_without_temporal_and_ends_with_status_0(process, rooms):
    running, client, _ = process
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


def test_a_body_that_is_refused_unread_does_not_harm_what_comes_next(process, rooms):
    """The server drops what it did not read, and goes on with the next request of the connection or of another one."""
    _, _, url = process
    key = rooms.add_key("viewer", Role.VIEWER)
    headers = {"Authorization": f"Bearer {key}", "content-type": "application/json"}
    with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=PATIENCE_SECONDS) as http:
        for _ in range(3):
            refused = http.put("/v1/fleet", content=b'"' + b"x" * 2**22 + b'"')
            assert (refused.status_code, refused.json()["code"]) == (403, "Forbidden")
            assert http.get("/v1/models").status_code == 200
