"""Predictions that need a credential, as people use them.

Manifest, keys, command line, revocation, on a running platform.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ipnext.model.access.rights import KeyRequest, Role
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.e2e

BODY = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]}
CLOSED = """  access:
    {predictions: authenticated, callers: [shop], limits: {perKey: {requestsPerSecond: 0.001, burst: 4}}}
"""


@pytest.fixture
def closed(platform: Any, pair_manifest: str) -> Iterator[Any]:
    """The platform, whose model `pair` needs a credential until the test has ended."""
    for text in (pair_manifest + CLOSED, None, pair_manifest):
        if text is None:
            yield platform
            continue
        [applied] = platform.client.apply(text)
        if applied.change is not None:
            done = platform.client.wait_change(applied.change.id, timeout_seconds=PATIENCE_SECONDS)
            assert done.state == "done", done
        status = 401 if CLOSED in text else 200
        for region in platform.endpoints["gateways"]:
            await_status(platform, region, status)


def ask(platform: Any, region: str, key: str | None = None) -> int:
    """Status of one prediction."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url = f"{platform.endpoints['gateways'][region]}/v2/models/pair/infer"
    return httpx.post(url, json=BODY, headers=headers, timeout=60, trust_env=False).status_code


def await_status(platform: Any, region: str, status: int, key: str | None = None) -> None:
    """Return once a prediction is answered so."""
    until(lambda: ask(platform, region, key) == status, why=lambda: f"{region} answers {ask(platform, region, key)}")


def test_a_key_of_an_application_asks_and_reads_nothing_until_it_is_revoked(closed: Any) -> None:
    regions = list(closed.endpoints["gateways"])
    keys = {
        owner: closed.client.create_key(KeyRequest(name=f"app-of-{owner}", role=Role.CALLER, owner=owner))
        for owner in ("tests", "shop", "others")
    }
    wanted = {"tests": 200, "shop": 200, "others": 401}
    for region in regions:
        for owner, status in wanted.items():
            await_status(closed, region, status, keys[owner].key)

    headers = {"authorization": f"Bearer {keys['tests'].key}"}
    for path in ("/v1/models", "/v1/models/pair", "/v1/fleet", "/v1/events", "/v1/keys"):
        found = httpx.get(closed.endpoints["api"] + path, headers=headers, timeout=60, trust_env=False)
        assert found.status_code in {403, 404}, path
        assert "tests" not in found.text.replace("app-of-tests", ""), path

    def used(owner: str) -> Any:
        listed = closed.client.keys()
        return next(key.last_used_at for key in listed if key.id == keys[owner].id)

    until(lambda: used("shop"), why=lambda: "a key that asks gateways only is shown as used")

    statuses = [ask(closed, regions[0], keys["tests"].key) for _ in range(6)]
    assert statuses.count(429) >= 3, "a burst of four, and no more for a quarter of an hour"

    for api in closed.found("ipnext.api"):
        closed.client.revoke_key(keys["shop"].id)
        api.kill()  # what was committed reaches the regions although the API that did it is gone
    for region in regions:
        await_status(closed, region, 401, keys["shop"].key)
    until(closed.answers)


def test_the_command_line_gives_a_gateway_that_asks_for_it_the_key_of_the_api(closed: Any, tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps(BODY))

    def predict(**more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ipnext.cli", "predict", "pair", "-f", str(request), "-o", "json"]
        environment = {**os.environ, "IPNEXT_API_URL": closed.endpoints["api"], **more}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    found = predict()
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["answer"]["model_name"] == "pair"
