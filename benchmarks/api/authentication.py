"""What it costs to ask who is calling: the API with authentication and without, and the proof of a key.

    python -m benchmarks.api.authentication  (--rounds 5 --requests 400 --json out.json --docs docs/benchmarks.md)

Two APIs over the same SQLite record in this process, each behind a socket of the loopback, are asked for the same model
by one client, in turns: one with `authentication=none`, which is the baseline, one with a key of one owner, as a
publisher has it. Then the proof of a key alone: looked up in the record, and remembered.
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import uvicorn

from ipnext.access.keys import draw_key
from ipnext.access.policy import Policies
from ipnext.api.app import create_app
from ipnext.api.authorization.access import Access
from ipnext.api.workflow_engine.port import MemoryLifecycle
from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.infra.fake.infrastructure import MemoryInfrastructure
from ipnext.model.access.rights import ApiKey, Grant, Role
from ipnext.model.fleet import FleetSpec
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.settings import PlatformSettings
from ipnext.store.store import Store

BEGIN, END = "<!-- access -->", "<!-- end access -->"
PATHS = {"a model": "/v1/models/model-0050", "a page of models": "/v1/models?limit=50"}


def filled(directory: Path) -> tuple[Store, str]:
    """Make a store with a hundred models of two owners, and return it with the text of a key for one of them."""
    store = Store.open(f"sqlite:///{directory}/ipnext.db")
    store.migrate()
    supply = [{"region": "eu", "hardware": "cpu", "units": 8, "unit_cost": 1}]
    fleet = {"regions": ["eu"], "rtt_ms": [[1]], "hardware": ["cpu"], "supply": supply}
    with store.begin() as unit:
        unit.put_fleet(FleetSpec.model_validate(fleet), expected_version=None)
        for number in range(100):
            unit.put_model(_model(f"model-{number:04}", ("ads", "search")[number % 2]), expected_version=None)
        drawn, now = draw_key(), datetime.now(UTC)
        grants = (Grant(role=Role.PUBLISHER, owner="ads"),)
        given = {
            "kind": "key",
            "digest": drawn.digest,
            "proof_key": drawn.proof_key,
            "created_by": "benchmark",
            "created_at": now,
            "last_used_at": now,
        }
        unit.add_key(ApiKey(id=drawn.id, name="publisher", grants=grants, **given))
    return store, drawn.text


def _model(name: str, owner: str) -> ModelManifest:
    spec = {
        "parts": [{"name": "only", "hardware": [{"kind": "cpu", "units": 1, "qps": 100}]}],
        "demand": [{"region": "eu", "qps": 10}],
    }
    metadata = {"name": name, "owner": owner}
    return ModelManifest.model_validate(
        {"apiVersion": "ipnext/v1", "kind": "Model", "metadata": metadata, "spec": spec}
    )


@contextmanager
def serving(store: Store, directory: Path, settings: PlatformSettings) -> Iterator[str]:
    """URL of an API over the record."""
    app = create_app(store, FileArtifactStore(directory), MemoryInfrastructure(["eu"]), MemoryLifecycle(), settings)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def asked(http: httpx.Client, url: str, requests: int, headers: dict[str, str]) -> float:
    """Median milliseconds of a request."""
    times = []
    for _ in range(requests):
        begun = time.perf_counter()
        http.get(url, headers=headers).raise_for_status()
        times.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(times)


def proofs(store: Store, key: str, count: int) -> dict[str, float]:
    """Median microseconds of a proof of a key: with the record asked, and remembered."""
    access = Access(store, Policies())
    looked_up, remembered = [], []
    for _ in range(count):
        access.forget()
        begun = time.perf_counter()
        access.prove(key)
        middle = time.perf_counter()
        access.recall(key, ("key",))
        looked_up.append((middle - begun) * 1e6)
        remembered.append((time.perf_counter() - middle) * 1e6)
    return {"looked up": statistics.median(looked_up), "remembered": statistics.median(remembered)}


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--docs", type=Path, help="a page whose table between the marks is written again")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        store, key = filled(directory)
        headers = {"Authorization": f"Bearer {key}"}
        found: dict[str, list[tuple[float, float]]] = {path: [] for path in PATHS}
        with (
            serving(store, directory, PlatformSettings(authentication="none")) as open_url,
            serving(store, directory, PlatformSettings()) as closed_url,
            httpx.Client(trust_env=False, timeout=60) as http,
        ):
            for _ in range(given.rounds):
                for path, at in PATHS.items():
                    for url, credential in ((open_url, {}), (closed_url, headers)):
                        asked(http, url + at, 20, credential)
                    before = asked(http, open_url + at, given.requests, {})
                    found[path].append((before, asked(http, closed_url + at, given.requests, headers)))
        proof = proofs(store, key, 500)
        store.close()
    lines = ["| asked for | open, ms | with a key, ms | added, ms | ratio |", "|---|---|---|---|---|"]
    for path, pairs in found.items():
        before, after = (statistics.median(column) for column in zip(*pairs, strict=True))
        lines.append(f"| {path} | {before:.2f} | {after:.2f} | {after - before:.2f} | {after / before:.2f} |")
    lines.append(
        f"\nA key is proved in {proof['looked up']:.0f} µs from the record, "
        f"in {proof['remembered']:.1f} µs if it was within the last 2 s."
    )
    sys.stdout.write("\n".join(lines) + "\n")
    if given.json:
        given.json.write_text(json.dumps({"pairs": found, "proof": proof}, indent=1))
    if given.docs:
        before, _, rest = given.docs.read_text().partition(BEGIN)
        text = "\n".join(lines)
        given.docs.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
