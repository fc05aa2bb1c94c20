"""How long a revoked key lets in: at the API that revoked it, at another API process, at the gateways of two regions.

    python -m benchmarks.infra.revocation  (--rounds 10 --json out.json)

One platform with two regions and a second API process on its store, a model that needs a credential, and a key of its
owner that is asked with every 10 ms at each of them. A round creates a key, waits until it lets in everywhere, revokes
it, and takes the time until it is refused for the first time, with no good answer after it. The baseline is the same
key at the API that took the revocation, which refuses it in the next request.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.lifecycle.publish_to_serving import MANIFEST, MODEL, Lookup
from demo.embedded import Embedded
from ipnext.client import Client
from ipnext.infra.process.parent_death import tether
from ipnext.infra.process.ports import free_port
from ipnext.model.access.rights import KeyRequest, Role
from serving.export import export_model

BODY: Final = {"inputs": [{"name": "ids", "shape": [1, 4], "datatype": "INT64", "data": [1, 2, 3, 4]}]}
LOOK_SECONDS: Final = 0.01
PATIENCE_SECONDS: Final = 60.0
WATCH_SECONDS: Final = 6.0
"""How long a key is asked with after its revocation."""
Ask = Callable[[Mapping[str, str]], int]


@contextmanager
def second_api(state: Path, endpoints: Mapping[str, str]) -> Iterator[str]:
    """Start another API process on the store of the platform in `state`, and yield its URL."""
    port = free_port()
    environment = os.environ | {
        "IPNEXT_DATABASE_URL": f"sqlite:///{state}/ipnext.db",
        "IPNEXT_ARTIFACTS_URI": f"file://{state}/artifacts",
        "IPNEXT_API_PORT": str(port),
        "TEMPORAL_ADDRESS": endpoints["temporal_address"],
    }
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        [sys.executable, "-m", "ipnext.api"],
        env=environment,
        preexec_fn=tether(),  # noqa: PLW1509 - no other thread runs yet
    ) as process:
        try:
            until = time.monotonic() + PATIENCE_SECONDS
            while not _answers(f"{url}/healthz"):
                if time.monotonic() > until:
                    msg = f"the second API does not answer after {PATIENCE_SECONDS:g} s"
                    raise TimeoutError(msg)
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.TransportError:
        return False


def askers(endpoints: Mapping[str, str | Mapping[str, str]]) -> dict[str, Ask]:
    """Place -> a request there with some headers, and its status."""
    found: dict[str, Ask] = {}
    gateways = endpoints["gateways"]
    if isinstance(gateways, Mapping):
        for region, url in gateways.items():
            found[f"gateway of {region}"] = _asking("POST", f"{url}/v2/models/{MODEL}/infer")
    found["API"] = _asking("GET", f"{endpoints['api']}/v1/models/{MODEL}")
    found["another API process"] = _asking("GET", f"{endpoints['second_api']}/v1/models/{MODEL}")
    return found


def _asking(method: str, url: str) -> Ask:
    client = httpx.Client(trust_env=False, timeout=60)
    body = BODY if method == "POST" else None
    return lambda headers: client.request(method, url, json=body, headers=headers).status_code


def watch(ask: Ask, headers: Mapping[str, str], seen: list[tuple[float, int]], ends: threading.Event) -> None:
    """Note when each status came, until told to end."""
    while not ends.is_set():
        status = ask(headers)
        seen.append((time.perf_counter(), status))
        time.sleep(LOOK_SECONDS)


def one_round(client: Client, places: Mapping[str, Ask], number: int) -> dict[str, float]:
    """Place -> seconds from the order to revoke until nothing is answered there any more."""
    key = client.create_key(KeyRequest(name=f"round-{number}", role=Role.PUBLISHER, owner="bench"))
    headers = {"authorization": f"Bearer {key.key}"}
    until = time.monotonic() + PATIENCE_SECONDS
    while any(ask(headers) != 200 for ask in places.values()):
        if time.monotonic() > until:
            msg = f"key {key.id} lets in nowhere after {PATIENCE_SECONDS:g} s"
            raise TimeoutError(msg)
        time.sleep(0.2)
    seen: dict[str, list[tuple[float, int]]] = {place: [] for place in places}
    ends = threading.Event()
    threads = [
        threading.Thread(target=watch, args=(ask, headers, seen[place], ends), daemon=True)
        for place, ask in places.items()
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    ordered = time.perf_counter()
    client.revoke_key(key.id)
    time.sleep(WATCH_SECONDS)
    ends.set()
    for thread in threads:
        thread.join()
    return {place: _last_good(found) - ordered for place, found in seen.items()}


def _last_good(seen: Sequence[tuple[float, int]]) -> float:
    """When the first refusal came after the last good answer."""
    good = max(index for index, (_, status) in enumerate(seen) if status == 200)
    if good + 1 >= len(seen):
        msg = f"the key still lets in {WATCH_SECONDS:g} s after its revocation"
        raise TimeoutError(msg)
    return seen[good + 1][0]


def table(rows: Sequence[Mapping[str, float]]) -> Table:
    """Median and longest by place, and the ratio of medians to that of the API."""
    shown = Table(title=f"from the order to revoke to the first refusal, {len(rows)} rounds, seconds")
    for column in ("place", "median", "longest", "ratio"):
        shown.add_column(column, justify="left" if column == "place" else "right")
    base = statistics.median(row["API"] for row in rows)
    for place in rows[0]:
        values = [row[place] for row in rows]
        median = statistics.median(values)
        shown.add_row(place, f"{median:.3f}", f"{max(values):.3f}", f"{median / base:.1f}")
    return shown


def main() -> None:
    """Start a platform, revoke keys, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place, Embedded(Path(place)) as platform:
        client = Client(platform.endpoints["api"])
        client.apply(MANIFEST + "  access: {predictions: authenticated}\n")
        snapshot = Path(place) / "snapshots" / "0"
        export_model(Lookup(1000).eval(), {"ids": torch.zeros(2, 4, dtype=torch.int64)}, snapshot)
        change = client.publish(MODEL, {"table": snapshot})
        done = client.wait_change(change.id, timeout_seconds=120)
        if done.state != "done":
            raise RuntimeError(done.message)
        with second_api(Path(place), platform.endpoints) as url:
            places = askers({**platform.endpoints, "second_api": url})
            rows = [one_round(client, places, number) for number in range(given.rounds)]
    Console().print(table(rows))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
