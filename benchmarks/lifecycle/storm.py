"""A model that is published every second, against a rollout of some ten seconds.

What waits, and how stale what serves is.

    python -m benchmarks.lifecycle.storm  (--seconds 300 --every 1 --hold 4 --json out.json)

The embedded platform with real hosts and gateways; a rollout has two waves with a hold each. The publisher never waits
for a rollout. `lag` of a publish: from its acknowledgement until it, or a newer one, serves all traffic. The baseline
is what the same publishes would lag if each was rolled out in its turn, computed from the rollouts of the same run.
"""

import argparse
import asyncio
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

from benchmarks.lifecycle import manifest, snapshots
from benchmarks.lifecycle.figures import report
from demo.embedded import Embedded
from ipnext import names
from ipnext.client import Client
from ipnext.model.api.resources import ChangeView
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.changes.entity import ModelEntityState
from ipnext.temporal import connect

MODEL = "storm"
LIMIT = 1000
"""Changes that one look asks for."""


async def most_queued(address: str, stop: threading.Event) -> int:
    """Return the most changes that waited in the model's entity at any look, several looks a second."""
    temporal, most = await connect(address=address), 0
    entity = temporal.get_workflow_handle(names.model_workflow_id(MODEL))
    while not stop.is_set():
        state = await entity.query(names.MODEL_STATE, result_type=ModelEntityState)
        most = max(most, len(state.queue))
        await asyncio.sleep(0.2)
    return most


def published(client: Client, address: str, sources: list[Path], seconds: float, every: float) -> tuple[int, list[str]]:
    """Publish at a fixed rate; the most that waited at any look, and the ids in order."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(lambda: asyncio.run(most_queued(address, stop)))
        began, ids = time.monotonic(), list[str]()
        while time.monotonic() - began < seconds:
            ids.append(client.publish(MODEL, {"dense": sources[(len(ids) + 1) % len(sources)]}).id)
            time.sleep(max(0.0, len(ids) * every - (time.monotonic() - began)))
        stop.set()
        return looking.result(), ids


def ended(client: Client, ids: list[str]) -> list[ChangeView]:
    """Return the changes in order, once all have ended."""
    client.wait_change(ids[-1], timeout_seconds=300)
    found = {change.id: change for change in client.changes(MODEL, limit=LIMIT)}
    return [
        client.wait_change(change_id, timeout_seconds=60) if not found[change_id].state.final else found[change_id]
        for change_id in ids
    ]


def figures(changes: list[ChangeView], most: int) -> dict[str, float]:
    """Return the figures of one run, in seconds."""
    done = [change for change in changes if change.state is ChangeState.DONE]
    ends = sorted(change.finished_at for change in done if change.finished_at)
    rollouts = [(b - a).total_seconds() for a, b in pairwise(ends)]
    lags, own = [], []
    for change in changes:
        served = min(c.finished_at for c in done if c.sequence >= change.sequence and c.finished_at)
        lags.append((served - change.created_at).total_seconds())
        if (place := ends.index(served)) > 1:
            own.append(lags[-1] / (served - ends[place - 2]).total_seconds())
    generations = [change.generation or 0 for change in sorted(done, key=lambda c: str(c.finished_at))]
    rollout = statistics.median(rollouts)
    span = (changes[-1].created_at - changes[0].created_at).total_seconds()
    return {
        "publishes": len(changes),
        "rolled out": len(done),
        "superseded": sum(change.state is ChangeState.SUPERSEDED for change in changes),
        "lost or failed": sum(change.state not in {ChangeState.DONE, ChangeState.SUPERSEDED} for change in changes),
        "most waiting": most,
        "order goes backwards": sum(b <= a for a, b in pairwise(generations)),
        "rollout, median": rollout,
        "lag, median": statistics.median(lags),
        "lag, most": max(lags),
        "lag, most / rollout": max(lags) / rollout,
        "lag / the two rollouts that ended last by then, most": max(own),
        "baseline: last lag when each is rolled out in its turn": len(changes) * rollout - span,
        "baseline / lag": (len(changes) * rollout - span) / max(lags),
    }


def main() -> None:
    """Start a platform, publish, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--every", type=float, default=1.0)
    parser.add_argument("--hold", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, Embedded(Path(place) / "state") as platform:
        client = Client(platform.endpoints["api"])
        client.apply(manifest(MODEL, canary=0.5, maxStep=0.5, holdSeconds=0))
        sources = snapshots(Path(place) / "snapshots", 40)
        client.wait_change(client.publish(MODEL, {"dense": sources[0]}).id)
        client.apply(manifest(MODEL, canary=0.5, maxStep=0.5, holdSeconds=given.hold))
        client.wait_ready(MODEL)
        most, ids = published(client, platform.endpoints["temporal_address"], sources, given.seconds, given.every)
        found = figures(ended(client, ids), most)
    report(f"a publish every {given.every:g} s for {given.seconds:g} s", found, given.json)


if __name__ == "__main__":
    main()
