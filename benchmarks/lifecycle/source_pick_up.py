"""How far users are behind a training system that brings snapshots faster than rollouts, with components killed.

    python -m benchmarks.lifecycle.source_pick_up --streams 5 --seconds 300 --kill-every 15 --json out.json

One platform of `ipnext dev`; each stream is a model of one part with a source of kind `directory`. A snapshot is moved
into each directory every second, all different. With `--kill-every`, a worker, the API or Temporal is killed with -9
that often, and `ipnext dev` starts it again. Afterwards every snapshot has to be one version, published or superseded,
and the last one of each stream has to serve: exit status 1 if not.

A snapshot's staleness is the time from its move until it, or a newer one, serves alone. The baseline is the time of one
rollout in the same run, from the record of its change to its end.
"""

import argparse
import hashlib
import json
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from demo.embedded import Embedded
from ipnext.client import Client
from ipnext.errors import IPnextError
from ipnext.model.api.sources import VersionView
from ipnext.model.lifecycle.changes.change import Change
from serving.export import export_model

MANIFEST = """
apiVersion: ipnext/v1
kind: Model
metadata: {{name: {name}, owner: bench}}
spec:
  parts: [{{name: whole, hardware: [{{kind: cpu, units: 1, qps: 100}}]}}]
  demand: [{{region: us-east, qps: 10}}]
  rollout: {{canary: 1, maxStep: 1, holdSeconds: 0}}
  sources: [{{name: feed, every: {every}, directory: {{path: {path}}}}}]
"""
KILLED = ("workflows.worker", "ipnext.api", "temporal server")
PATIENCE_SECONDS = 600.0
WEIGHTS = "weights.safetensors"


class Tiny(nn.Module):
    """x [B, 4] -> score [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores."""
        found: Tensor = self.layer(x).squeeze(1)
        return found


@dataclass
class Stream:
    """A model, its directory, and when each snapshot was moved there."""

    name: str
    incoming: Path
    moved: dict[str, float] = field(default_factory=dict)


def move_variant(base: Path, drafts: Path, stream: Stream, number: int) -> None:
    """Move a copy of a snapshot with other weights into a stream's directory."""
    name = f"s{number:05}"
    draft = drafts / stream.name / name
    shutil.copytree(base, draft)
    content = bytearray((draft / WEIGHTS).read_bytes())
    content[-4:] = np.float32(number + 1).tobytes()
    (draft / WEIGHTS).write_bytes(content)
    manifest = json.loads((draft / "snapshot.json").read_text())
    for file in manifest["files"]:
        if file["path"] == WEIGHTS:
            file["sha256"] = hashlib.sha256(content).hexdigest()
    (draft / "snapshot.json").write_text(json.dumps(manifest))
    draft.rename(stream.incoming / name)
    stream.moved[name] = time.time()


def kill_one(state: Path) -> str:
    """Kill a worker, the API or Temporal of the platform in a directory; return what was killed."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "ipnext.dev" in words and str(state) in words:
            children = [(child, " ".join(child.cmdline())) for child in process.children()]
            found += [(kind, child) for child, text in children for kind in KILLED if kind in text]
    if not found:
        return "nothing"
    kind, child = random.choice(found)
    child.send_signal(signal.SIGKILL)
    return kind


def feed_streams(base: Path, place: Path, streams: Sequence[Stream], given: argparse.Namespace) -> Counter[str]:
    """Move a snapshot into each stream every second, and kill; return what was killed how often."""
    killed = Counter[str]()
    began, next_kill = time.monotonic(), given.kill_every or float("inf")
    for number in range(given.seconds):
        for stream in streams:
            move_variant(base, place / "drafts", stream, number)
        if time.monotonic() - began >= next_kill:
            killed[kill_one(place / "platform")] += 1
            next_kill += given.kill_every
        time.sleep(max(0.0, began + number + 1 - time.monotonic()))
    return killed


def wait_until_over(client: Client, stream: Stream) -> list[VersionView]:
    """Return a stream's versions, oldest first, once its last snapshot is over and its change has ended."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    last = max(stream.moved)
    while time.monotonic() < deadline:
        try:
            newest = client.source_versions(stream.name, "feed", limit=1)
            if newest and newest[0].place == last and newest[0].change_state and newest[0].change_state.final:
                return list(client.source_versions(stream.name, "feed", limit=None))[::-1]
        except IPnextError:  # the API was killed
            pass
        time.sleep(0.5)
    return list(client.source_versions(stream.name, "feed", limit=None))[::-1]


def find_faults(stream: Stream, versions: Sequence[VersionView], client: Client) -> list[str]:
    """Return what was missed or doubled, in words."""
    places = Counter(version.place for version in versions)
    faults = [f"{stream.name}/{name} was missed" for name in stream.moved if name not in places]
    faults += [f"{stream.name}/{name} was found {count} times" for name, count in places.items() if count > 1]
    states = Counter(version.state.value for version in versions)
    faults += [
        f"{stream.name}: {states[state]} versions are {state}"
        for state in ("held", "found", "refused")
        if states[state]
    ]
    digests = Counter(snapshot.digest for snapshot in client.snapshots(stream.name))
    faults += [
        f"{stream.name}: snapshot {digest:.12} was published twice" for digest, count in digests.items() if count > 1
    ]
    if versions and versions[-1].state.value != "published":
        faults.append(f"{stream.name}: the last snapshot is {versions[-1].state.value}")
    return faults


def measure_staleness(stream: Stream, versions: Sequence[VersionView], changes: Mapping[str, Change]) -> list[float]:
    """Return the staleness of each snapshot, in seconds."""
    found, served = [], None
    for version in reversed(versions):
        change = changes.get(version.change_id or "")
        if change is not None and change.finished_at is not None and change.state.value == "done":
            served = change.finished_at.timestamp()
        if served is not None:
            found.append(served - stream.moved[version.place])
    return found


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Feed the streams of one platform; return figures and faults."""
    with tempfile.TemporaryDirectory() as folder, Embedded(Path(folder) / "platform") as platform:
        place, client = Path(folder), Client(platform.endpoints["api"])
        torch.manual_seed(0)
        export_model(Tiny().eval(), {"x": torch.zeros(2, 4)}, place / "base")
        streams = [Stream(f"stream-{number}", place / "incoming" / str(number)) for number in range(given.streams)]
        for stream in streams:
            stream.incoming.mkdir(parents=True)
            client.apply(MANIFEST.format(name=stream.name, every=given.every, path=stream.incoming))
        killed = feed_streams(place / "base", place, streams, given)
        stale, rollouts, faults, counts = list[float](), list[float](), list[str](), Counter[str]()
        for stream in streams:
            versions = wait_until_over(client, stream)
            changes = {change.id: change for change in client.changes(stream.name, limit=None)}
            faults += find_faults(stream, versions, client)
            stale += measure_staleness(stream, versions, changes)
            done = [change for change in changes.values() if change.finished_at and change.state.value == "done"]
            rollouts += [
                (change.finished_at - change.created_at).total_seconds() for change in done if change.finished_at
            ]
            counts.update(version.state.value for version in versions)
    return {
        "snapshots": sum(len(stream.moved) for stream in streams),
        "versions": dict(counts),
        "killed": dict(killed),
        "faults": faults,
        "staleness_median_s": statistics.median(stale),
        "staleness_p95_s": float(np.percentile(stale, 95)),
        "rollout_median_s": statistics.median(rollouts),
        "rollout_p95_s": float(np.percentile(rollouts, 95)),
        "staleness_in_rollouts_median": statistics.median(stale) / statistics.median(rollouts),
        "staleness_in_rollouts_p95": float(np.percentile(stale, 95) / np.percentile(rollouts, 95)),
    }


def main() -> int:
    """Print the figures. Exit status 1 if a snapshot was missed or doubled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--every", default="1s", help="interval of the sources' polls")
    parser.add_argument("--kill-every", type=float, default=0.0, help="seconds between two kills; 0: none")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = run(given)
    table = Table(title=f"{given.streams} streams, a snapshot a second each, {given.seconds} s")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in found.items():
        table.add_row(name, f"{value:.2f}" if isinstance(value, float) else str(value))
    Console().print(table)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))
    return int(bool(found["faults"]))


if __name__ == "__main__":
    sys.exit(main())
